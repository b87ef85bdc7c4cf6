"""The embedded scenes: photographs of ray-cast worlds, blurred physically, with the sharp truth of every view.

The truth is not made of Gaussians, and blur is an average in linear light over real camera poses, so nothing that a
model fits here was put in by the same model. Worlds: `still_life.py`, `corner.py`, `relief.py`; ray caster:
`raycast.py`; blur: `exposures.py`.
"""

import dataclasses
import hashlib
import pathlib

import numpy as np
from jaxtyping import Float

from bags_jax.cache_home import find_cache_home
from bags_jax.data import poses
from bags_jax.data.scene import Scene
from bags_jax.errors import UserError
from bags_jax.synthetic import corner, exposures, mixed, raycast, relief, scene_cache, still_life
from bags_jax.synthetic.layout import Layout

# Part of the name of each cached scene. Increase it with every change of the pixels, poses or points of any scene.
GENERATOR_VERSION = 1

BLURS = ("motion", "defocus", "mixed", "none")
LAYOUTS = {"still_life": still_life.LAYOUT, "corner": corner.LAYOUT, "relief": relief.LAYOUT}

_COLOR_NOISE = 0.03  # sRGB
_MIXED_FACTORS, _MIXED_FACTORS_EASY = (1, 2, 4, 8), (1, 1, 2, 4)
_MAX_BLUR_SCALE = 4.0  # more would take minutes to render
# One random stream for each purpose: so blurs share their cameras.
_STREAMS = {"cameras": 0, "blur": 1, "points": 2, "poses": 3}


@dataclasses.dataclass(frozen=True)
class _Order:
    """What is asked of make_scene, whose fields these are."""

    blur: str
    layout: str
    blur_scale: float
    pose_noise_px: float
    width: int
    height: int
    num_train: int
    num_test: int
    num_points: int
    seed: int

    def random(self, stream: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, _STREAMS[stream]])


def make_scene(
    blur: str = "motion",
    *,
    layout: str = "still_life",
    blur_scale: float = 1.0,
    pose_noise_px: float = 0.0,
    width: int = 128,
    height: int = 84,
    num_train: int = 24,
    num_test: int = 5,
    num_points: int = 1500,
    seed: int = 0,
) -> Scene:
    """Makes an embedded scene, or reads it from the user's cache.

    Test views lie between training views and are sharp. `sharp_images` is the truth of every view at its true pose
    (motion: the pose at the middle of the exposure). The world is the same at every size; blur in px grows with the
    width.

    Args:
      blur: "motion" (6-DoF camera shake during the exposure), "defocus" (thin lens), "mixed" (training views of
        1, 1/2, 1/4, 1/8 of the resolution, resized back), or "none".
      layout: "still_life" (a playroom, cameras on an arc), "corner" (a room corner from inside, cameras on a track), or
        "relief" (an ivy-grown wall, a forward-facing grid of cameras).
      blur_scale: of the paths (motion) and the aperture (defocus): 1 is hard, 0.5 easy. "mixed": up to 0.5 the training
        views have 1, 1, 1/2, 1/4 of the resolution.
      pose_noise_px: how wrong the poses of the training views are. 6-DoF errors, as large as needed for what a view
        sees to move by that many px: its root mean square, averaged over the views. Test poses are exact.
      width, height: px, at least 16.
      num_train: training views, at least 2.
      num_points: noisy surface points that training cameras see, as structure from motion would give them.
      seed: of the cameras, the blur, the points and the wrong poses, each on its own.
    Raises:
      UserError: an unknown blur or layout, an image side under 16 px, too few views, or blur_scale or pose_noise_px out
        of range.
    Deterministic. Cached in `$XDG_CACHE_HOME/bags_jax/procedural` (else `~/.cache`), where that can be written.
    """
    order = _Order(blur, layout, blur_scale, pose_noise_px, width, height, num_train, num_test, num_points, seed)
    _check(order)
    path = _cache_path(order)
    scene = scene_cache.read_cache(path, num_train + num_test, (height, width, 3))
    if scene is None:
        scene = _generate(order)
        scene_cache.write_cache(path, scene)
    return scene


def _check(order: _Order) -> None:
    if order.blur not in BLURS:
        raise UserError(f"blur {order.blur!r} is unknown: use one of {', '.join(BLURS)}")
    if order.layout not in LAYOUTS:
        raise UserError(f"layout {order.layout!r} is unknown: use one of {', '.join(LAYOUTS)}")
    if not 0 < order.blur_scale <= _MAX_BLUR_SCALE:
        raise UserError(
            f"blur_scale is {order.blur_scale}, expected more than 0 and at most {_MAX_BLUR_SCALE:g}: 0.5 is easy, 1 hard; "
            'for no blur use blur "none"'
        )
    if not 0 <= order.pose_noise_px <= order.width / 8:
        raise UserError(
            f"pose_noise_px is {order.pose_noise_px}, expected 0 to {order.width / 8:g}, an eighth of the width: 0 is exact"
        )
    if order.width < 16 or order.height < 16:
        raise UserError(
            f"image size {order.width} x {order.height} px is too small: use a width and a height of at least 16"
        )
    if order.num_train < 2 or order.num_test < 0 or order.num_points < 0 or order.seed < 0:
        raise UserError(
            f"num_train={order.num_train}, num_test={order.num_test}, num_points={order.num_points}, seed={order.seed}: "
            "use at least 2 training views and no negative number"
        )


def _generate(order: _Order) -> Scene:
    place = LAYOUTS[order.layout]
    world, focal = place.make_world(), place.focal * order.width
    viewmats = _place_cameras(place, order)
    K = np.array([[focal, 0, order.width / 2], [0, focal, order.height / 2], [0, 0, 1]], np.float32)
    size = {"height": order.height, "width": order.width}
    truth = [exposures.to_srgb(exposures.render_sharp(world, viewmat, K, **size)) for viewmat in viewmats]
    train_ids = np.arange(order.num_test, order.num_test + order.num_train)
    images = truth[: order.num_test] + _expose(order, world, viewmats[train_ids], K, truth[order.num_test :])
    points, colors = _sample_points(world, viewmats[train_ids], K, order, noise=place.point_noise)
    if order.pose_noise_px:
        viewmats[train_ids] = _wrong_poses(world, viewmats[train_ids], K, order)
    names = [f"test_{i:03d}.png" for i in range(order.num_test)]
    names += [f"train_{i:03d}.png" for i in range(order.num_train)]
    return Scene(
        names=tuple(names),
        images=tuple(images),
        viewmats=viewmats,
        Ks=np.tile(K, (len(names), 1, 1)),
        train_ids=train_ids,
        test_ids=np.arange(order.num_test),
        points=points,
        point_colors=colors,
        sharp_images=tuple(truth),
    )


def _place_cameras(place: Layout, order: _Order) -> Float[np.ndarray, "V 4 4"]:
    """Test cameras, then training cameras; each test camera halfway between two training cameras."""
    num_train, num_test, key = order.num_train, order.num_test, order.random("cameras")
    gaps = np.floor((np.arange(num_test) + 0.5) / max(num_test, 1) * (num_train - 1)) + 0.5
    indices = np.concatenate([gaps, np.arange(num_train)])
    return np.stack([_stand(*place.place_camera(i, num_train, key)) for i in indices]).astype(np.float32)


def _stand(center: np.ndarray, target: np.ndarray, roll: float) -> Float[np.ndarray, "4 4"]:
    """A camera that looks at a point and is then rolled about its axis, rad; z is up in these worlds."""
    level = poses.look_at(center, target, np.array([0.0, 0.0, -1.0]))[:3, :3]
    turn = poses.make_rotation(np.array([0.0, 0.0, roll])) @ level
    return poses.make_rigid(turn, -turn @ center)


def _expose(
    order: _Order, world: raycast.World, viewmats: np.ndarray, K: np.ndarray, truth: list[np.ndarray]
) -> list[np.ndarray]:
    """The training photographs."""
    place, key, num = LAYOUTS[order.layout], order.random("blur"), order.num_train
    size = {"height": order.height, "width": order.width}
    if order.blur == "motion":
        lengths = key.permutation(exposures.path_lengths(num)) * order.width / 128 * order.blur_scale
        views = zip(viewmats, lengths, strict=True)
        frames = [exposures.render_shaken(world, pose, K, float(length), key, **size) for pose, length in views]
        return [exposures.to_srgb(frame) for frame in frames]
    if order.blur == "defocus":
        depths = np.resize(place.focus_depths, num) * key.uniform(0.92, 1.08, num)  # never exactly the same twice
        views, aperture = zip(viewmats, depths, strict=True), place.aperture * order.blur_scale
        frames = [exposures.render_defocused(world, pose, K, float(depth), aperture, **size) for pose, depth in views]
        return [exposures.to_srgb(frame) for frame in frames]
    if order.blur == "mixed":
        factors = _MIXED_FACTORS if order.blur_scale > 0.5 else _MIXED_FACTORS_EASY
        factors = key.permutation(np.resize(factors, num))
        return [mixed.coarsen(image, int(factor)) for image, factor in zip(truth, factors, strict=True)]
    return list(truth)


def _wrong_poses(
    world: raycast.World, viewmats: np.ndarray, K: np.ndarray, order: _Order
) -> Float[np.ndarray, "A 4 4"]:
    """Poses with 6-DoF errors, as a bundle adjustment of blurry photographs leaves them."""
    shifts = order.random("poses").normal(size=(len(viewmats), 6)) * exposures.SHAKE_SHARES
    points = [exposures.seen_points(world, pose, K, height=order.height, width=order.width) for pose in viewmats]
    scale, wrong = 1e-3, list(viewmats)
    for _ in range(3):  # nearly linear in the errors
        wrong = [
            poses.make_rigid(poses.make_rotation(s[3:]), s[:3]) @ pose for s, pose in zip(scale * shifts, viewmats, strict=True)
        ]
        moves = [exposures.displacement(p, a, b, K) for p, a, b in zip(points, viewmats, wrong, strict=True)]
        scale *= order.pose_noise_px / float(np.mean(moves))
    return np.stack(wrong).astype(np.float32)


def _sample_points(
    world: raycast.World,
    viewmats: np.ndarray,
    K: np.ndarray,
    order: _Order,
    *,
    noise: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Noisy points [P, 3] on the surfaces that the cameras see, and their noisy sRGB colours."""
    key = order.random("points")
    points, colors = [], []
    for viewmat, share in zip(viewmats, np.array_split(np.arange(order.num_points), len(viewmats)), strict=True):
        pixels = key.random((2, len(share))) * np.array([[order.width], [order.height]])
        origin, directions = raycast.camera_rays(viewmat, K, pixels)
        t, radiance = raycast.cast(world, origin, directions)
        points.append((origin + t * directions).T)
        colors.append(exposures.to_srgb(radiance) / 255)
    points, colors = np.concatenate(points), np.concatenate(colors)
    points = points + noise * key.normal(size=points.shape)
    colors = np.clip(colors + _COLOR_NOISE * key.normal(size=colors.shape), 0.0, 1.0)
    return points.astype(np.float32), colors.astype(np.float32)


def _cache_path(order: _Order) -> pathlib.Path | None:
    """The cache file of a scene; None if there is no home folder."""
    try:
        folder = find_cache_home() / "procedural"
    except RuntimeError:
        return None
    name = hashlib.sha256(f"{GENERATOR_VERSION} {order!r}".encode()).hexdigest()[:32]
    return folder / f"{name}.npz"
