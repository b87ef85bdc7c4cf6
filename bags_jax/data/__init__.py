"""Readers of captures: `load_scene` reads a folder of any known format into a `Scene`.

1. `formats.py` finds the format of the folder. Its table names one reader for each format.
2. The reader (`colmap.py`, `blender.py`, `nerfstudio.py`, `llff.py`) returns a `Capture` (`capture.py`): names, poses,
   lenses and points, no pixels.
3. `load.py` checks the capture, decodes the photographs (`images.py`), undistorts them (`lens.py`) and holds views out
   (`split.py`). The result is a `Scene` (`scene.py`).

`pyramid.py` resizes the training views of a Scene for the stages of training.
"""

from bags_jax.data.load import load_scene

__all__ = ["load_scene"]
