"""How far the poses of a capture made of a film of tools/world_video.py are from the truth, in px.

  python -m tools.pose_error --capture=my_capture --truth=flight.npz

World points that a frame sees are projected by the true camera, and by the estimated one (pose, focal length, distortion)
after the best similarity between both worlds. The error of a frame is the median distance of the two.
"""

import argparse
import pathlib
import re

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from bags_jax.data.colmap import read_colmap
from bags_jax.data.lens import Lens


def measure_poses(capture: pathlib.Path, truth: pathlib.Path) -> Float[np.ndarray, "V"]:
    """Returns the error of each posed frame, px of the film.

    Args:
      capture: folder with images/ and sparse/0; the names of its photographs end in the number of the frame.
      truth: the .npz file of tools/world_video.py.
    """
    found = read_colmap(capture)
    numbers = [int(re.findall(r"\d+", name)[-1]) for name in found.names]
    data = np.load(truth)
    true = data["viewmats"][numbers].astype(float)
    points = data["points"][numbers].astype(float)
    places = _project_pinhole(points, true, data["K"])
    start = _align(found.viewmats, true)

    def residuals(parameters: np.ndarray) -> np.ndarray:
        return np.clip(
            _project_lens(_move(points, parameters), found.viewmats, found.lenses) - places, -1e3, 1e3
        ).ravel()

    best = least_squares(residuals, start, loss="soft_l1", x_scale=np.maximum(np.abs(start), 0.1)).x
    return np.median(np.linalg.norm(residuals(best).reshape(*places.shape), axis=-1), axis=1)


def _align(estimated: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns the similarity (rotation vector, log scale, translation) from the true world to the estimated one."""
    rotation = Rotation.from_matrix(estimated[:, :3, :3].transpose(0, 2, 1) @ true[:, :3, :3]).mean()
    here, there = (-np.einsum("vji,vj->vi", x[:, :3, :3], x[:, :3, 3]) for x in (true, estimated))
    turned = rotation.apply(here - here.mean(0))
    spread = there - there.mean(0)
    scale = float(np.sqrt(np.sum(spread**2) / np.sum(turned**2)))
    return np.concatenate([rotation.as_rotvec(), [np.log(scale)], there.mean(0) - scale * rotation.apply(here.mean(0))])


def _move(points: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    turned = points @ Rotation.from_rotvec(parameters[:3]).as_matrix().T
    return np.exp(parameters[3]) * turned + parameters[4:]


def _to_camera(points: np.ndarray, viewmats: np.ndarray) -> np.ndarray:
    """Returns x / z and y / z of world points [V, P, 3] in the cameras [V, 4, 4]."""
    inside = np.einsum("vij,vpj->vpi", viewmats[:, :3, :3], points) + viewmats[:, None, :3, 3]
    return inside[..., :2] / np.maximum(inside[..., 2:], 1e-6)


def _project_pinhole(points: np.ndarray, viewmats: np.ndarray, K: np.ndarray) -> np.ndarray:
    return _to_camera(points, viewmats) * K[[0, 1], [0, 1]] + K[:2, 2]


def _project_lens(points: np.ndarray, viewmats: np.ndarray, lenses: tuple[Lens, ...]) -> np.ndarray:
    """Projects by COLMAP's SIMPLE_RADIAL model: focal length, principal point, one coefficient."""
    focal, x, y, bend = (
        np.array(column)[:, None, None] for column in zip(*(lens.params for lens in lenses), strict=True)
    )
    flat = _to_camera(points, viewmats)
    curved = flat * (1 + bend * np.sum(flat**2, axis=-1, keepdims=True))
    return focal * curved + np.concatenate([x, y], axis=-1)


def main() -> None:
    """Prints the errors."""
    parser = argparse.ArgumentParser(description="Compares the poses of a capture with the truth of its film.")
    parser.add_argument("--capture", type=pathlib.Path, required=True, help="folder of the capture")
    parser.add_argument("--truth", type=pathlib.Path, required=True, help="the .npz file of the film")
    chosen = parser.parse_args()
    errors = measure_poses(chosen.capture, chosen.truth)
    print(f"{len(errors)} frames: median {np.median(errors):.2f} px, 90 % under {np.quantile(errors, 0.9):.2f} px")


if __name__ == "__main__":
    main()
