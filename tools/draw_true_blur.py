"""Draws the blur that runs on embedded scenes found beside the true blur, one run a row.

  python -m tools.draw_true_blur --out=docs/pictures/true_blur.png runs/motion runs/defocus

Of each run it shows the training view whose true blur varies most. Prints the figures of all views.
"""

import argparse
import pathlib

import numpy as np

from bags_jax.report.colors import colorize
from bags_jax.report.pictures import enlarge, make_contact_sheet, write_png
from bags_jax.report.with_truth import FoundBlur, mean_of_blocks, score_blur
from bags_jax.run import open_run
from bags_jax.training_views import render_training_views

COLUMNS = ("photograph", "mask: light from elsewhere", "blur width found", "true blur width")
SCALE = 3  # screen px for a px of the photograph


def draw_run(workdir: pathlib.Path, limit_px: float) -> list[np.ndarray]:
    """Returns the pictures of one row."""
    run = open_run(workdir)
    maps = run.scene.blur_px
    if maps is None:
        raise SystemExit(
            f"{workdir}: the true blur of its photographs is not known, expected a run on an embedded scene"
        )
    index = int(np.argmax([maps[i].std() for i in run.scene.train_ids]))
    views = list(render_training_views(run))
    found = [
        FoundBlur(
            np.asarray(v.blur.mask), np.asarray(v.blur.widths), mean_of_blocks(maps[i], np.asarray(v.blur.mask).shape)
        )
        for i, v in zip(run.scene.train_ids, views, strict=True)
        if v.blur is not None
    ]
    scores = {name: value and round(value, 3) for name, value in score_blur(found).items()}
    print(f"{workdir.name}: {scores}")
    chosen, photo = found[index], views[index].photo
    fields = (chosen.mask, chosen.widths / limit_px, chosen.truth / limit_px)
    return [enlarge(picture, SCALE, smooth=False) for picture in (photo, *(_fit(x, photo.shape[:2]) for x in fields))]


def _fit(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Colours of a map of blocks at the size of the photograph."""
    rows, columns = (np.arange(n) * count // n for n, count in zip(size, values.shape, strict=True))
    return colorize(np.clip(values, 0.0, 1.0)[np.ix_(rows, columns)])


def main() -> None:
    """Draws the runs of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", type=pathlib.Path)
    parser.add_argument("--out", required=True)
    parser.add_argument("--limit_px", type=float, default=2.5, help="width with the brightest colour")
    arguments = parser.parse_args()
    rows = [draw_run(workdir, arguments.limit_px) for workdir in arguments.workdirs]
    names = [workdir.name for workdir in arguments.workdirs]
    write_png(arguments.out, make_contact_sheet(rows, column_titles=COLUMNS, row_titles=names))


if __name__ == "__main__":
    main()
