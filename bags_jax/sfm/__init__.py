"""Structure from motion, and everything else that needs pycolmap.

- `capture_folder.py`: from a folder of photographs or a video to a capture (the commands `bags-jax sfm` and `run`).
  `photographs.py` copies photographs upright, `masks.py` their masks; `video.py` measures and writes frames,
  `frame_choice.py` chooses them.
- `reconstruct.py`: camera poses and points of the photographs. `pairs.py` says which are matched, `appearance.py` which
  look alike, `lost.py` why some found no pose.
- `client.py`: sends requests to the process of pycolmap, and starts it. The readers in `data/` use it, too.
- `process.py`: the script that this process runs, which alone imports pycolmap. It imports nothing of bags_jax.

Nothing is imported here: `data/` needs `client.py`, and the other files need `data/`.
"""
