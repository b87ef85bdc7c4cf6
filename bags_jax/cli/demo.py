"""Trains plain splatting and BAGS on a small blurred scene and compares both, in minutes on a CPU.

  bags-jax demo --workdir=runs/demo

Writes results.json, before_after.png, scene.ply, and the folders plain/ and bags/ of the two runs.
"""

import json
import pathlib

import numpy as np
from absl import flags

from bags_jax.atomic import write_atomic
from bags_jax.cli.launch import launch, use_compilation_cache
from bags_jax.config import load_config
from bags_jax.evaluation import evaluate, mean_scores, score_view
from bags_jax.export.splat import check_export
from bags_jax.metrics import why_no_lpips
from bags_jax.report.pictures import make_contact_sheet, to_uint8, write_png
from bags_jax.report.tables import SCORES, format_scores, markdown_table
from bags_jax.run import nearest_training_view, open_run, render_scene_views
from bags_jax.training import train

_WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "Folder for all files of the demo.")
_BLUR = flags.DEFINE_enum("blur", "motion", ["motion", "defocus", "mixed"], "Kind of blur.")
_SMOKE = flags.DEFINE_bool("smoke", False, "A test of the demo itself: runs in seconds and learns nothing.")

NUM_ROWS = 3  # held-out views in the picture


def photo_scores(scene) -> dict:
    """Scores of the blurred training photographs against their sharp truth, in the format of `evaluate`."""
    views = {scene.names[i]: score_view(scene.images[i] / 255.0, scene.sharp_images[i]) for i in scene.train_ids}
    return mean_scores(views)


def before_after(plain, bags):
    """A picture with one row for each of some held-out views: nearest blurred photograph, plain splatting, BAGS, truth."""
    scene = bags.scene
    ids = scene.test_ids[np.linspace(0, len(scene.test_ids) - 1, min(NUM_ROWS, len(scene.test_ids))).astype(int)]
    renders = zip(render_scene_views(plain, ids), render_scene_views(bags, ids), strict=True)
    rows = [
        [scene.images[nearest_training_view(scene, i)], to_uint8(p.image), to_uint8(b.image), scene.images[i]]
        for i, (p, b) in zip(ids, renders, strict=True)
    ]
    titles = ("blurred photograph nearby", "plain splatting", "BAGS", "sharp truth")
    return make_contact_sheet(rows, column_titles=titles, scale=3)


def table(results: dict, photos: dict) -> str:
    """Scores in both protocols, which must not be compared with each other."""
    rows = []
    for protocol in ("deblur_nerf", "gaussian_splatting"):
        named = {"photo blur": photos, "plain splatting": results["plain"], "BAGS": results["bags"]}
        for name, scores in named.items():
            rows.append([protocol, name, *format_scores(scores[protocol])])
    return markdown_table(["protocol", "", *SCORES], rows)


def main() -> None:
    """Trains and scores both methods, then prints and draws the comparison."""
    config = load_config(f"procedural:{_BLUR.value}{',smoke' if _SMOKE.value else ''}")
    use_compilation_cache(config.compilation_cache)
    workdir = pathlib.Path(_WORKDIR.value).expanduser()
    results = {}
    for name in ("plain", "bags"):
        config.blur.enabled = name == "bags"
        print(f"{name}: {config.num_steps} steps", flush=True)
        train(config, workdir / name)
        results[name] = evaluate(workdir / name)
    write_atomic(workdir / "results.json", (json.dumps(results, indent=2) + "\n").encode())

    plain, bags = open_run(workdir / "plain"), open_run(workdir / "bags")
    write_png(workdir / "before_after.png", before_after(plain, bags))
    print(table(results, photo_scores(bags.scene)))
    if results["bags"]["deblur_nerf"]["LPIPS"] is None:
        print(why_no_lpips())
    gain = results["bags"]["deblur_nerf"]["PSNR"] - results["plain"]["deblur_nerf"]["PSNR"]
    print(f"BAGS is ahead of plain splatting by {gain:.2f} dB on held-out sharp views.")
    print(check_export(bags, workdir / "scene.ply"))
    print(f"See {workdir / 'before_after.png'}, and the estimated blur in {workdir / 'bags' / 'blur'}.")


def run() -> None:
    """The command `bags-jax demo`."""
    launch(main, resumes=True)
