"""Scores a trained scene on its held-out views, on any machine; writes results.json, eval/ and blur/ into the run.

  python -m experiments.evaluate --workdir=runs/motion

Both metric protocols are printed, and they are not comparable: see bags_jax/metrics.py.
"""

from absl import flags

from bags_jax.cli.launch import launch, use_compilation_cache
from bags_jax.evaluation import evaluate
from bags_jax.metrics import why_no_lpips
from bags_jax.report.no_truth import format_rows
from bags_jax.report.tables import SCORES, format_scores, markdown_table

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_STEP = flags.DEFINE_integer("step", None, "Which checkpoint; default: the last.")
_DATA = flags.DEFINE_string("data_root", None, "Folder of the capture, if it is not where training found it.")
_CACHE = flags.DEFINE_string("compilation_cache", "auto", "Folder for compiled programs; empty: none.")


def score_rows(results: dict) -> list[list[str]]:
    """One row a protocol."""
    protocols = ("deblur_nerf", "gaussian_splatting")
    return [[name, *format_scores(results[name])] for name in protocols]


def main() -> None:
    """Evaluates from the flags."""
    use_compilation_cache(_CACHE.value)
    results = evaluate(_WORKDIR.value, step=_STEP.value, data_root=_DATA.value)
    print(f"step {results['step']}, {results['num_gaussians']} Gaussians, {len(results['per_view'])} held-out views")
    print(markdown_table(["protocol", *SCORES], score_rows(results)))
    if results["shift_aligned"]["PSNR"] is not None:
        print(f"PSNR after the best sub-pixel shift of each view: {results['shift_aligned']['PSNR']:.2f}")
    print(markdown_table(["without sharp truth", "value", "what it says"], format_rows(results["no_truth"])))
    if results["per_view"] and results["deblur_nerf"]["LPIPS"] is None:
        print(why_no_lpips())


def run() -> None:
    """The program, as a command."""
    launch(main)


if __name__ == "__main__":
    run()
