"""Names of the pictures that a user writes from the viewer."""

import pathlib
import re


def next_picture_path(workdir: pathlib.Path, step: int, mode: str) -> pathlib.Path:
    """The next free name in viewer/, such as 0001_step3200_depth.png: nothing is overwritten."""
    folder = workdir / "viewer"
    found = [re.match(r"(\d{4,})_", path.name) for path in folder.iterdir()] if folder.is_dir() else []
    number = 1 + max((int(match[1]) for match in found if match), default=0)
    return folder / f"{number:04d}_step{step}_{mode.lower()}.png"
