"""Structure from motion, and everything else that needs pycolmap.

- `reconstruct.py`: camera poses and points of a folder of photographs (the command `bags-jax sfm`); uses `client.py`.
- `client.py`: sends requests to the process of pycolmap, and starts it. The readers in `data/` use it, too.
- `process.py`: the script that this process runs, which alone imports pycolmap. It imports nothing of bags_jax.

Nothing is imported here: `data/` needs `client.py`, and `reconstruct.py` needs `data/`.
"""
