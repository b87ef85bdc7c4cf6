"""The embedded scene: photographs of a ray-cast still life, blurred physically, with the sharp truth of every view.

The truth is not made of Gaussians, and blur is an average in linear light over real camera poses, so nothing that a
model fits here was put in by the same model. World: `still_life.py`; ray caster: `raycast.py`.
"""

import dataclasses
import hashlib
import inspect
import math
import os
import pathlib
import sys
import tempfile
import zipfile
import zlib

import numpy as np
from jaxtyping import Float

from bags_jax.data import raycast, still_life
from bags_jax.data.mixed import coarsen
from bags_jax.data.scene import Scene
from bags_jax.errors import UserError

BLURS = ("motion", "defocus", "mixed", "none")

_FOCAL = 0.94  # focal length over image width
_TARGET = np.array([0.0, 0.1, 0.78])  # what the cameras look at, world frame
_ARC_DEGREES = 64.0  # between the outermost training cameras
_APERTURE = 0.18  # diameter of the lens, scene units
_FOCUS_DEPTHS = (2.5, 3.7, 6.0)  # near, middle, far, scene units
_POINT_NOISE = 0.025  # scene units: about 1 % of what the cameras see
_COLOR_NOISE = 0.03  # sRGB
_LATTICE = 13, 8  # rays a pixel of a sharp image, and their Fibonacci lattice: no two share a row or a column
_MIXED_FACTORS = (1, 2, 4, 8)
_STREAMS = {"cameras": 0, "blur": 1, "points": 2}  # one random stream for each purpose: so blurs share their cameras


def make_scene(
    blur: str = "motion",
    *,
    width: int = 128,
    height: int = 84,
    num_train: int = 24,
    num_test: int = 5,
    num_points: int = 1500,
    seed: int = 0,
) -> Scene:
    """Makes the embedded scene, or reads it from the user's cache.

    Test views lie between training views and are sharp. `sharp_images` is the truth of every view at its pose (motion:
    the pose at the middle of the exposure). The world is the same at every size; blur in px grows with the width.

    Args:
      blur: "motion" (6-DoF camera shake during the exposure), "defocus" (thin lens), "mixed" (training views of
        1, 1/2, 1/4, 1/8 of the resolution, resized back), or "none".
      width, height: px, at least 16.
      num_train: training views, at least 2.
      num_points: noisy surface points that training cameras see, as structure from motion would give them.
      seed: of the cameras, the blur and the points.
    Raises:
      UserError: an unknown blur, an image side under 16 px, or too few views.
    Deterministic. Cached in `$XDG_CACHE_HOME/bags_jax/procedural` (else `~/.cache`), where that can be written.
    """
    _check(blur, width, height, num_train, num_test, num_points, seed)
    arguments = (blur, width, height, num_train, num_test, num_points, seed)
    path = _cache_path(arguments)
    scene = _read_cache(path, num_train + num_test, (height, width, 3))
    if scene is None:
        scene = _generate(*arguments)
        _write_cache(path, scene)
    return scene


def _check(blur: str, width: int, height: int, num_train: int, num_test: int, num_points: int, seed: int) -> None:
    if blur not in BLURS:
        raise UserError(f"blur {blur!r} is unknown: use one of {', '.join(BLURS)}")
    if width < 16 or height < 16:
        raise UserError(f"image size {width} x {height} px is too small: use a width and a height of at least 16")
    if num_train < 2 or num_test < 0 or num_points < 0 or seed < 0:
        raise UserError(
            f"num_train={num_train}, num_test={num_test}, num_points={num_points}, seed={seed}: "
            "use at least 2 training views and no negative number"
        )


def _generate(blur: str, width: int, height: int, num_train: int, num_test: int, num_points: int, seed: int) -> Scene:
    world = still_life.still_life()
    viewmats = _place_cameras(num_train, num_test, _random("cameras", seed))
    K = np.array([[_FOCAL * width, 0, width / 2], [0, _FOCAL * width, height / 2], [0, 0, 1]], np.float32)
    size = {"height": height, "width": width}
    truth = [_to_srgb(_render_sharp(world, viewmat, K, **size)) for viewmat in viewmats]
    train_ids = np.arange(num_test, num_test + num_train)
    key = _random("blur", seed)
    images = list(truth)
    if blur == "motion":
        lengths = key.permutation(_path_lengths(num_train)) * width / 128
        for view, length in zip(train_ids, lengths, strict=True):
            images[view] = _to_srgb(_render_shaken(world, viewmats[view], K, float(length), key, **size))
    elif blur == "defocus":
        for view, depth in zip(train_ids, _focus_depths(num_train, key), strict=True):
            images[view] = _to_srgb(_render_defocused(world, viewmats[view], K, float(depth), **size))
    elif blur == "mixed":
        for view, factor in zip(train_ids, key.permutation(np.resize(_MIXED_FACTORS, num_train)), strict=True):
            images[view] = coarsen(truth[view], int(factor))
    points, colors = _sample_points(world, viewmats[train_ids], K, num_points, _random("points", seed), **size)
    names = [f"test_{i:03d}.png" for i in range(num_test)] + [f"train_{i:03d}.png" for i in range(num_train)]
    return Scene(
        names=tuple(names),
        images=tuple(images),
        viewmats=viewmats,
        Ks=np.tile(K, (len(names), 1, 1)),
        train_ids=train_ids,
        test_ids=np.arange(num_test),
        points=points,
        point_colors=colors,
        sharp_images=tuple(truth),
    )


def _random(stream: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, _STREAMS[stream]])


def _to_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1] to 8-bit sRGB."""
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-8) ** (1 / 2.4) - 0.055)
    return np.round(255 * np.clip(encoded, 0.0, 1.0)).astype(np.uint8)


# --- cameras ---------------------------------------------------------------------------------------------------------


def _look_at(center: np.ndarray, target: np.ndarray, roll: float) -> np.ndarray:
    """cam_from_world of a camera at `center`; roll in rad."""
    forward = (target - center) / np.linalg.norm(target - center)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    turn = _rotation(np.array([0.0, 0.0, roll])) @ np.stack([right, np.cross(forward, right), forward])
    return _rigid(turn, -turn @ center)


def _rigid(turn: np.ndarray, shift: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, shift
    return matrix


def _rotation(vector: np.ndarray) -> np.ndarray:
    """Rotation matrix of an axis-angle vector, rad (Rodrigues' formula)."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def _place_cameras(num_train: int, num_test: int, key: np.random.Generator) -> Float[np.ndarray, "V 4 4"]:
    """Test cameras, then training cameras, on an arc; each test camera halfway between two training cameras."""
    gaps = np.floor((np.arange(num_test) + 0.5) / max(num_test, 1) * (num_train - 1)) + 0.5
    places = np.concatenate([gaps, np.arange(num_train)]) / (num_train - 1)
    viewmats = []
    for place in places:
        angle = math.radians(_ARC_DEGREES) * (place - 0.5)
        distance, height = 3.7 + key.uniform(-0.15, 0.15), 1.45 + key.uniform(-0.25, 0.25)
        center = np.array([_TARGET[0] + distance * math.sin(angle), _TARGET[1] - distance * math.cos(angle), height])
        target = _TARGET + key.uniform(-0.08, 0.08, 3)
        viewmats.append(_look_at(center, target, math.radians(key.uniform(-1.5, 1.5))))
    return np.stack(viewmats).astype(np.float32)


# --- exposures -------------------------------------------------------------------------------------------------------


def _shifted(K: np.ndarray, x: float, y: float) -> np.ndarray:
    """The camera whose pixel centres see what lies (x, y) px beside the old ones."""
    moved = K.copy()
    moved[:2, 2] -= (x, y)
    return moved


def _spread(index: int) -> tuple[float, float]:
    """A point of the R2 low-discrepancy sequence, in [-0.5, 0.5)^2 (Roberts 2018)."""
    return (0.5 + 0.7548776662 * index) % 1.0 - 0.5, (0.5 + 0.5698402910 * index) % 1.0 - 0.5


def _render_sharp(world: raycast.World, viewmat: np.ndarray, K: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Pinhole image in linear light, averaged over each pixel's square."""
    num, stride = _LATTICE
    total = np.zeros((height, width, 3), np.float32)
    for i in range(num):
        x, y = (i + 0.5) / num - 0.5, (i * stride % num + 0.5) / num - 0.5
        total += raycast.render_frame(world, viewmat, _shifted(K, x, y), height=height, width=width)[0]
    return total / num


def _path_lengths(num: int) -> np.ndarray:
    """Mean path lengths of the views, px at width 128: 1 in 8 nearly sharp, most of the others 2.5 to 6."""
    num_sharp = round(num / 8)
    places = (np.arange(num - num_sharp) + 0.5) / (num - num_sharp)
    shaken = np.interp(places, [0.0, 0.15, 0.9, 1.0], [0.5, 2.5, 6.0, 6.6])
    return np.concatenate([np.linspace(0.1, 0.3, num_sharp), shaken])


def _shake(key: np.random.Generator) -> np.ndarray:
    """Coefficients [3, 6] of t, t^2, t^3 for translation (scene units) and rotation (rad): a curved path, 0 at t = 0."""
    first = key.normal(size=6) * np.array([1.0, 1.0, 0.5, 0.25, 0.25, 0.35])
    bend = key.normal(size=(2, 6)) * np.array([1.0, 1.0, 0.5, 0.25, 0.25, 0.35])
    return np.stack([first, 0.8 * bend[0], 2.0 * bend[1]])


def _pose_at(viewmat: np.ndarray, shake: np.ndarray, t: float) -> np.ndarray:
    """cam_from_world at time t in [-0.5, 0.5] of the exposure."""
    moved = np.array([t, t * t, t**3]) @ shake
    return _rigid(_rotation(moved[3:]), moved[:3]) @ viewmat


def _path_length(points: np.ndarray, viewmat: np.ndarray, K: np.ndarray, shake: np.ndarray) -> float:
    """Mean length, px, of the screen paths of world points [4, n] during the exposure."""
    screens = [K @ (_pose_at(viewmat, shake, t) @ points)[:3] for t in np.linspace(-0.5, 0.5, 17)]
    places = np.stack([screen[:2] / screen[2] for screen in screens])
    return float(np.linalg.norm(np.diff(places, axis=0), axis=1).sum(0).mean())


def _render_shaken(
    world: raycast.World,
    viewmat: np.ndarray,
    K: np.ndarray,
    length: float,
    key: np.random.Generator,
    *,
    height: int,
    width: int,
) -> np.ndarray:
    """Average in linear light along a random camera path whose mean screen length is `length` px."""
    rows, columns = np.mgrid[0.5:height:6, 0.5:width:6].reshape(2, -1)
    origin, directions = raycast.camera_rays(viewmat, K, np.stack([columns, rows]))
    points = origin + raycast.cast(world, origin, directions)[0] * directions
    points = np.concatenate([points, np.ones_like(points[:1])])
    shake = 0.02 * _shake(key)
    for _ in range(2):  # nearly linear in the coefficients
        shake = shake * length / _path_length(points, viewmat, K, shake)
    num = max(16, math.ceil(1.25 * length))
    total = np.zeros((height, width, 3), np.float32)
    for i in range(num):
        pose = _pose_at(viewmat, shake, (i + 0.5) / num - 0.5)
        total += raycast.render_frame(world, pose, _shifted(K, *_spread(i)), height=height, width=width)[0]
    return total / num


def _focus_depths(num: int, key: np.random.Generator) -> np.ndarray:
    """Focus depth of each view, scene units: near, middle and far in turn, not exactly the same twice."""
    return np.resize(_FOCUS_DEPTHS, num) * key.uniform(0.92, 1.08, num)


def _render_defocused(
    world: raycast.World, viewmat: np.ndarray, K: np.ndarray, depth: float, *, height: int, width: int
) -> np.ndarray:
    """Average in linear light over a thin lens focused at camera z = depth (circle of confusion: up to about 6 px)."""
    num = min(160, max(32, round(32 * (width / 128) ** 2)))
    focal = float(K[0, 0])
    total = np.zeros((height, width, 3), np.float32)
    for i in range(num):  # Vogel's sunflower: even over the disc
        radius, angle = _APERTURE / 2 * math.sqrt((i + 0.5) / num), i * math.pi * (3 - math.sqrt(5))
        u, v = radius * math.cos(angle), radius * math.sin(angle)
        pose = _rigid(np.eye(3), np.array([-u, -v, 0.0])) @ viewmat
        x, y = _spread(i)  # the lens point sees the plane of focus where the lens centre does
        lens_K = _shifted(K, x - focal * u / depth, y - focal * v / depth)
        total += raycast.render_frame(world, pose, lens_K, height=height, width=width)[0]
    return total / num


# --- points ----------------------------------------------------------------------------------------------------------


def _sample_points(
    world: raycast.World,
    viewmats: np.ndarray,
    K: np.ndarray,
    num: int,
    key: np.random.Generator,
    *,
    height: int,
    width: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Noisy points [num, 3] on the surfaces that the cameras see, and their noisy sRGB colours."""
    points, colors = [], []
    for viewmat, share in zip(viewmats, np.array_split(np.arange(num), len(viewmats)), strict=True):
        pixels = key.random((2, len(share))) * np.array([[width], [height]])
        origin, directions = raycast.camera_rays(viewmat, K, pixels)
        t, radiance = raycast.cast(world, origin, directions)
        points.append((origin + t * directions).T)
        colors.append(_to_srgb(radiance) / 255)
    points, colors = np.concatenate(points), np.concatenate(colors)
    points = points + _POINT_NOISE * key.normal(size=points.shape)
    colors = np.clip(colors + _COLOR_NOISE * key.normal(size=colors.shape), 0.0, 1.0)
    return points.astype(np.float32), colors.astype(np.float32)


# --- cache -----------------------------------------------------------------------------------------------------------


def _cache_path(arguments: tuple) -> pathlib.Path | None:
    """Where the scene of these arguments and of this very generator is kept; None: nowhere."""
    folder = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = pathlib.Path(folder) if os.path.isabs(folder) else pathlib.Path.home() / ".cache"
        sources = "".join(inspect.getsource(module) for module in (raycast, still_life, sys.modules[__name__]))
    except (OSError, RuntimeError):  # no home folder, or no sources to tell the version by
        return None
    name = hashlib.sha256((repr(arguments) + sources).encode()).hexdigest()[:32]
    return root / "bags_jax" / "procedural" / f"{name}.npz"


def _read_cache(path: pathlib.Path | None, num_views: int, shape: tuple[int, int, int]) -> Scene | None:
    """The cached scene, or None where it is absent or cannot be read."""
    if path is None:
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            fields = {name: file[name] for name in file.files}
        stacks = [fields.pop(name) for name in ("images", "sharp_images")]
        if any(stack.shape != (num_views, *shape) or stack.dtype != np.uint8 for stack in stacks):
            return None
        names = tuple(str(name) for name in fields.pop("names"))
        return Scene(names=names, images=tuple(stacks[0]), sharp_images=tuple(stacks[1]), **fields)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _write_cache(path: pathlib.Path | None, scene: Scene) -> None:
    """Writes the whole file or nothing; a cache that cannot be written is done without."""
    if path is None:
        return
    arrays = dataclasses.asdict(scene)
    del arrays["background"], arrays["notes"]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    except OSError:
        return
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, **{name: np.asarray(value) for name, value in arrays.items()})
        os.replace(temporary, path)
    except OSError:
        pathlib.Path(temporary).unlink(missing_ok=True)
