"""Scores a trained scene on its held-out views. Any machine will do.

  bags-jax evaluate --workdir=runs/motion

Prints the scores of two metric protocols. They define SSIM and LPIPS differently: never compare one
with the other. Writes into the folder of the run: report/index.html (open it in a browser),
results.json and .csv, eval/, blur/ and photographs_deblurred/.
"""

import pathlib

from absl import flags

from bags_jax.cli.launch import launch, use_compilation_cache
from bags_jax.evaluation import evaluate
from bags_jax.report.score_text import describe_scores

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; by default the last.")
_DATA = flags.DEFINE_string("data_root", None, "Folder of the capture, if it has moved since training.")
_CACHE = flags.DEFINE_string("compilation_cache", "auto", "Folder of compiled programs; empty: none.")


def main() -> None:
    """Evaluates the run of the flags and prints its scores."""
    use_compilation_cache(_CACHE.value)
    results = evaluate(_WORKDIR.value, step=_STEP.value, data_root=_DATA.value)
    print(describe_scores(results))
    print(f"Open {pathlib.Path(_WORKDIR.value).expanduser() / 'report' / 'index.html'} in a browser.")


def run() -> None:
    """The command `bags-jax evaluate`."""
    launch(main)
