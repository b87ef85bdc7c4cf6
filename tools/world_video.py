"""Films an embedded world as a hand-held camera does: 30 frames a second, motion blur, known poses.

  python -m tools.world_video --output=flight.mp4
  python -m tools.world_video --output=turn.mp4 --motion=turn --seconds=4

Writes flight.mp4 and flight.npz: viewmats [F, 4, 4] (cam_from_world in the middle of each exposure), K [3, 3] in px, the
points of the world that each pose is measured with, and the blur of each frame in px.
"""

import argparse
import dataclasses
import math
import pathlib

import numpy as np
from jaxtyping import Float, UInt8
from scipy.interpolate import CubicSpline

from bags_jax.data.poses import look_at, make_rigid, make_rotation
from bags_jax.synthetic import exposures, raycast
from bags_jax.synthetic.procedural import LAYOUTS

FPS = 30.0
SHUTTER = 0.9  # share of the time of a frame that the shutter is open, as indoors in the evening
ANCHORS = 9  # cameras of the layout that the flight passes in 8 s
TREMOR = ((1.3, 0.8), (2.9, 0.45), (5.7, 0.22))  # of a walking hand: frequency in Hz, angle in degrees
MOTIONS = ("flight", "turn", "still")
NUM_POINTS = 400  # world points a frame, for measuring poses


@dataclasses.dataclass(frozen=True)
class Film:
    """A film: its world, the motion of the camera, length and size."""

    layout: str = "corner"
    motion: str = "flight"  # flight: through the world; turn: on a tripod that pans; still: only the tremor
    seconds: float = 8.0
    width: int = 640  # px
    height: int = 360  # px
    samples: int = 8  # poses that an exposure averages over
    seed: int = 0

    @property
    def num_frames(self) -> int:
        """Frames of the film."""
        return round(self.seconds * FPS)

    @property
    def K(self) -> Float[np.ndarray, "3 3"]:
        """Intrinsics, px."""
        focal = LAYOUTS[self.layout].focal * self.width
        return np.array([[focal, 0, self.width / 2], [0, focal, self.height / 2], [0, 0, 1]], np.float32)


def make_path(film: Film):
    """Returns the function from a time, in seconds, to the pose cam_from_world [4, 4]."""
    key = np.random.default_rng(film.seed)
    num = max(4, round(ANCHORS * film.seconds / 8))
    layout = LAYOUTS[film.layout]
    times = np.linspace(-0.1, film.seconds + 0.1, num)
    places = [layout.place_camera(i, num, key) for i in range(num)]
    anchors = CubicSpline(times, np.array([np.concatenate([c, t, [roll]]) for c, t, roll in places]))
    middle = anchors(film.seconds / 2)
    phases = key.uniform(0, 2 * math.pi, (len(TREMOR), 3))
    slow = 1.0 + 1.2 * np.sin(2 * math.pi * (key.uniform() + np.arange(2) / 2))  # size of the tremor comes and goes

    def pose(time: float) -> Float[np.ndarray, "4 4"]:
        state = anchors(time) if film.motion == "flight" else middle
        center, target, roll = state[:3], state[3:6], state[6]
        size = max(0.3, slow[0] + (slow[1] - slow[0]) * (0.5 + 0.5 * math.sin(1.9 * time)))
        angles = sum(
            math.radians(degrees) * size * np.sin(2 * math.pi * hertz * time + phase)
            for (hertz, degrees), phase in zip(TREMOR, phases, strict=True)
        )
        angles = np.asarray(angles) + [0.0, 0.0, roll]
        if film.motion == "turn":
            angles = angles + [0.0, math.radians(50.0) * (time / film.seconds - 0.5), 0.0]
        level = look_at(center, target, np.array([0.0, 0.0, -1.0]))[:3, :3]
        rotation = make_rotation(angles) @ level
        return make_rigid(rotation, -rotation @ center).astype(np.float32)

    return pose


def expose(film: Film, world: raycast.World, pose, time: float) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the frame whose exposure has its middle at a time: the mean, in linear light, over the poses during it."""
    offsets = np.random.default_rng(round(time * 1e4)).uniform(-0.5, 0.5, (film.samples, 2))
    total = np.zeros((film.height, film.width, 3), np.float32)
    for i, (x, y) in enumerate(offsets - offsets.mean(0)):
        K = film.K.copy()
        K[:2, 2] -= (x, y)
        moment = time + SHUTTER / FPS * ((i + 0.5) / film.samples - 0.5)
        total += raycast.render_frame(world, pose(moment), K, height=film.height, width=film.width)[0]
    return exposures.encode_srgb(total / film.samples)


def measure(film: Film, world: raycast.World, pose, time: float) -> tuple[np.ndarray, float]:
    """Returns world points [NUM_POINTS, 3] that a frame sees, and its mean blur in px."""
    view = pose(time)
    points = exposures.find_visible_points(world, view, film.K, height=film.height, width=film.width)
    opened, closed = (pose(time + SHUTTER / FPS * t) for t in (-0.5, 0.5))
    blur = exposures.measure_displacement(points, opened, closed, film.K)
    ids = np.linspace(0, points.shape[1] - 1, NUM_POINTS).astype(int)
    return points[:3, ids].T, blur


def write_film(path: pathlib.Path, film: Film) -> None:
    """Writes the film (MPEG-4) and, beside it, its truth (.npz)."""
    import cv2

    world, pose = LAYOUTS[film.layout].make_world(), make_path(film)
    times = (np.arange(film.num_frames) + 0.5) / FPS
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (film.width, film.height)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), FPS, size)
    for time in times:
        writer.write(np.ascontiguousarray(expose(film, world, pose, time)[..., ::-1]))
    writer.release()
    points, blurs = zip(*(measure(film, world, pose, time) for time in times), strict=True)
    viewmats = np.stack([pose(time) for time in times])
    np.savez_compressed(
        path.with_suffix(".npz"),
        viewmats=viewmats,
        K=film.K,
        points=np.stack(points).astype(np.float32),
        blur_px=np.array(blurs, np.float32),
    )


def main() -> None:
    """Films what the arguments say."""
    parser = argparse.ArgumentParser(description="Films an embedded world.")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("flight.mp4"), help="the film to write")
    parser.add_argument("--layout", choices=sorted(LAYOUTS), default="corner", help="the embedded world")
    parser.add_argument("--motion", choices=MOTIONS, default="flight", help="how the camera moves")
    parser.add_argument("--seconds", type=float, default=8.0, help="length")
    parser.add_argument("--width", type=int, default=640, help="width, px; the height is 9/16 of it")
    parser.add_argument("--seed", type=int, default=0, help="of the path")
    chosen = parser.parse_args()
    height = round(chosen.width * 9 / 32) * 2
    film = Film(chosen.layout, chosen.motion, chosen.seconds, chosen.width, height, seed=chosen.seed)
    write_film(chosen.output, film)
    blur = np.load(chosen.output.with_suffix(".npz"))["blur_px"]
    size = f"{chosen.width} x {height} px"
    print(f"{film.num_frames} frames of {size}, blur {np.median(blur):.1f} px ({blur.max():.1f}): {chosen.output}")


if __name__ == "__main__":
    main()
