"""make_scene: photographs of ray-cast worlds, blurred physically, with the sharp truth of every view.

The truth does not consist of Gaussians, and blur is an average in linear light over real camera poses. So a model that
fits these scenes recovers nothing that the same model has put in.
"""

import dataclasses
import hashlib
import itertools
import pathlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from bags_jax.cache_home import find_cache_home
from bags_jax.data import poses
from bags_jax.data.scene import Scene
from bags_jax.errors import UserError
from bags_jax.synthetic import corner, exposures, flight, mixed, raycast, relief, scene_cache, still_life, true_blur
from bags_jax.synthetic.layout import Layout

# Part of the key of each cached scene. Increase it with every change of the pixels, poses or points of a scene.
GENERATOR_VERSION = 2

BLURS = ("motion", "defocus", "mixed", "reduced", "both", "varied", "none")
LAYOUTS = {
    "still_life": still_life.LAYOUT,
    "corner": corner.LAYOUT,
    "relief": relief.LAYOUT,
    "flight": flight.LAYOUT,
}

_MAX_REDRAWS = 30  # of points that lie too far away
_COLOR_NOISE = 0.03  # standard deviation of the points' colours, sRGB
_MIXED_FACTORS, _MIXED_FACTORS_EASY = (1, 2, 4, 8), (1, 1, 2, 4)
_REDUCED_FACTORS, _REDUCED_FACTORS_EASY = (4,), (1, 4)  # as the authors of BAGS made their photographs: see mixed.py
_BOTH_KINDS = ("both", "motion", "both", "defocus")
_MAX_BLUR_SCALE = 4.0  # larger blur takes minutes to render
# One random stream for each purpose, so that all blurs of a seed share their cameras.
_STREAMS = {"cameras": 0, "blur": 1, "points": 2, "poses": 3, "noise": 4}  # 5: auto_exposure.py


@dataclasses.dataclass(frozen=True)
class _Options:
    """The arguments of make_scene."""

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

    def make_key(self, stream: str) -> np.random.Generator:
        """Returns the random generator of one purpose."""
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

    Test views lie between training views and are sharp. `sharp_images` of the result is the truth of every view at its
    true pose (motion: the pose in the middle of the exposure). The world is the same at every image size; blur in px
    grows with the width. Deterministic.

    Args:
      blur: "motion" (6-DoF camera shake during the exposure), "defocus" (thin lens), "mixed" (training views of
        1, 1/2, 1/4, 1/8 of the resolution, resized back), "reduced" (training views of 1/4 of the resolution, as the authors
        of BAGS made theirs), "both" (each training view has motion, defocus or both at once), "varied" (motion whose
        length differs by 5 times between views), or "none".
      layout: "still_life" (a playroom, cameras on an arc), "corner" (a room corner from inside, cameras on a track),
        "relief" (an ivy-grown wall, a forward-facing grid of cameras), or "flight" (a town by night from a drone that flies
        above a street; training photographs have photon and read noise, and motion is the flight and its vibration).
      blur_scale: factor of the camera paths (motion, both, varied) and the aperture (defocus, both): 1 is hard, 0.5 easy. "mixed": up to
        0.5 the training views have 1, 1, 1/2, 1/4 of the resolution. "reduced": up to 0.5 half of the training views are
        sharp.
      pose_noise_px: error of the training poses. 6-DoF errors of the size that moves the contents of a view by that
        many px (RMS, averaged over the views). Test poses are exact.
      width, height: px, at least 16.
      num_train: training views, at least 2.
      num_test: test views.
      num_points: noisy surface points visible to the training cameras, as structure from motion would return them.
      seed: of the cameras, the blur, the points, the pose errors and the noise, each independently.
    Returns:
      Scene, cached in `$XDG_CACHE_HOME/bags_jax/procedural` (else `~/.cache`) if that folder can be written.
    Raises:
      UserError: an unknown blur or layout, an image side under 16 px, too few views, or blur_scale or pose_noise_px out
        of range.
    """
    options = _Options(blur, layout, blur_scale, pose_noise_px, width, height, num_train, num_test, num_points, seed)
    _check(options)
    path = _find_cache_path(options)
    scene = scene_cache.read_cache(path, num_train + num_test, (height, width, 3))
    if scene is None:
        scene = _generate(options)
        scene_cache.write_cache(path, scene)
    return scene


def _check(options: _Options) -> None:
    if options.blur not in BLURS:
        raise UserError(f"blur {options.blur!r} is unknown: use one of {', '.join(BLURS)}")
    if options.layout not in LAYOUTS:
        raise UserError(f"layout {options.layout!r} is unknown: use one of {', '.join(LAYOUTS)}")
    if not 0 < options.blur_scale <= _MAX_BLUR_SCALE:
        raise UserError(
            f"blur_scale is {options.blur_scale}, expected more than 0 and at most {_MAX_BLUR_SCALE:g}: 0.5 is easy, 1 "
            'is hard; for no blur use blur "none"'
        )
    if not 0 <= options.pose_noise_px <= options.width / 8:
        raise UserError(
            f"pose_noise_px is {options.pose_noise_px}, expected 0 to {options.width / 8:g}, an eighth of the "
            "width: 0 is exact"
        )
    if options.width < 16 or options.height < 16:
        raise UserError(
            f"image size {options.width} x {options.height} px is too small: use a width and a height of at least 16"
        )
    if options.num_train < 2 or options.num_test < 0 or options.num_points < 0 or options.seed < 0:
        raise UserError(
            f"num_train={options.num_train}, num_test={options.num_test}, num_points={options.num_points}, "
            f"seed={options.seed}: expected at least 2 training views and no negative number"
        )


def _generate(options: _Options) -> Scene:
    layout = LAYOUTS[options.layout]
    world, focal = layout.make_world(), layout.focal * options.width
    viewmats = _place_cameras(layout, options)
    K = np.array([[focal, 0, options.width / 2], [0, focal, options.height / 2], [0, 0, 1]], np.float32)
    size = {"height": options.height, "width": options.width}
    truth = [exposures.encode_srgb(exposures.render_sharp(world, viewmat, K, **size)) for viewmat in viewmats]
    train_ids = np.arange(options.num_test, options.num_test + options.num_train)
    photos, blur_px = _expose(options, world, viewmats[train_ids], K, truth[options.num_test :])
    images = truth[: options.num_test] + photos
    points, colors = _sample_points(world, viewmats[train_ids], K, options)
    if options.pose_noise_px:
        viewmats[train_ids] = _perturb_poses(world, viewmats[train_ids], K, options)
    names = [f"test_{i:03d}.png" for i in range(options.num_test)]
    names += [f"train_{i:03d}.png" for i in range(options.num_train)]
    return Scene(
        names=tuple(names),
        images=tuple(images),
        viewmats=viewmats,
        Ks=np.tile(K, (len(names), 1, 1)),
        train_ids=train_ids,
        test_ids=np.arange(options.num_test),
        points=points,
        point_colors=colors,
        sharp_images=tuple(truth),
        blur_px=(*[true_blur.still(**size)] * options.num_test, *blur_px),
    )


def _place_cameras(layout: Layout, options: _Options) -> Float[np.ndarray, "V 4 4"]:
    """Returns test cameras, then training cameras. Each test camera lies halfway between two training cameras."""
    num_train, num_test, key = options.num_train, options.num_test, options.make_key("cameras")
    gaps = np.floor((np.arange(num_test) + 0.5) / max(num_test, 1) * (num_train - 1)) + 0.5
    indices = np.concatenate([gaps, np.arange(num_train)])
    return np.stack([_make_viewmat(*layout.place_camera(i, num_train, key)) for i in indices]).astype(np.float32)


def _make_viewmat(center: np.ndarray, target: np.ndarray, roll: float) -> Float[np.ndarray, "4 4"]:
    """Returns cam_from_world of a camera that looks at a point with z up, then is rolled about its axis, rad."""
    level = poses.look_at(center, target, np.array([0.0, 0.0, -1.0]))[:3, :3]
    rotation = poses.make_rotation(np.array([0.0, 0.0, roll])) @ level
    return poses.make_rigid(rotation, -rotation @ center)


def _expose(
    options: _Options, world: raycast.World, viewmats: np.ndarray, K: np.ndarray, truth: list[np.ndarray]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Renders the training photographs, and the true blur of each of their pixels, px."""
    key, num, size = options.make_key("blur"), options.num_train, {"height": options.height, "width": options.width}
    if options.blur in ("motion", "defocus", "both", "varied"):
        shots = list(_plan_exposures(options, world, viewmats, K, key))
        views = list(zip(viewmats, shots, strict=True))
        photos = _develop(options, [exposures.render_both(world, viewmat, K, shot, **size) for viewmat, shot in views])
        return photos, [true_blur.of_exposure(world, viewmat, K, shot, **size) for viewmat, shot in views]
    is_hard = options.blur_scale > 0.5
    if options.blur == "mixed":
        coarsen, all_factors = mixed.coarsen, _MIXED_FACTORS if is_hard else _MIXED_FACTORS_EASY
    elif options.blur == "reduced":
        coarsen, all_factors = mixed.reduce_and_enlarge, _REDUCED_FACTORS if is_hard else _REDUCED_FACTORS_EASY
    else:
        return _add_noise(options, truth), [true_blur.still(**size)] * num
    factors = [int(factor) for factor in key.permutation(np.resize(all_factors, num))]
    photos = [coarsen(image, factor) for image, factor in zip(truth, factors, strict=True)]
    return _add_noise(options, photos), [true_blur.of_resolution(factor, **size) for factor in factors]


def _plan_exposures(
    options: _Options, world: raycast.World, viewmats: np.ndarray, K: np.ndarray, key: np.random.Generator
) -> Iterator[exposures.Exposure]:
    """Draws how each training view is exposed. Motion is drawn first: "both" moves as "motion" does."""
    layout, num, size = LAYOUTS[options.layout], options.num_train, {"height": options.height, "width": options.width}
    lengths, shakes = np.zeros(num), [np.zeros((3, 6))] * num
    if options.blur != "defocus":
        make_lengths = exposures.make_varied_path_lengths if options.blur == "varied" else exposures.make_path_lengths
        lengths = key.permutation(make_lengths(num)) * options.width / 128 * options.blur_scale
        views = zip(viewmats, lengths.tolist(), strict=True)
        shakes = [exposures.scale_shake(world, x, K, n, layout.draw_motion(x, key), **size) for x, n in views]
    depths, apertures = np.resize(layout.focus_depths, num).astype(float), np.zeros(num)
    if options.blur in ("defocus", "both"):
        depths *= key.uniform(0.92, 1.08, num)  # never exactly the same twice
        apertures += layout.aperture * options.blur_scale
    if options.blur == "both":
        kinds = key.permutation(np.resize(_BOTH_KINDS, num))
        lengths, apertures = lengths * (kinds != "defocus"), apertures * (kinds != "motion")
    yield from itertools.starmap(
        exposures.Exposure, zip(shakes, lengths.tolist(), depths.tolist(), apertures.tolist(), strict=True)
    )


def _develop(options: _Options, frames: list[np.ndarray]) -> list[np.ndarray]:
    """Converts light of training views to photographs, with the noise of the layout's sensor."""
    sensor, key = LAYOUTS[options.layout].sensor, options.make_key("noise")
    return [exposures.encode_srgb(sensor.expose(frame, key) if sensor else frame) for frame in frames]


def _add_noise(options: _Options, photos: list[np.ndarray]) -> list[np.ndarray]:
    """Adds the noise of the layout's sensor to photographs."""
    return _develop(options, [exposures.decode_srgb(x) for x in photos]) if LAYOUTS[options.layout].sensor else photos


def _perturb_poses(
    world: raycast.World, viewmats: np.ndarray, K: np.ndarray, options: _Options
) -> Float[np.ndarray, "A 4 4"]:
    """Adds 6-DoF errors to poses, as a bundle adjustment of blurry photographs leaves them."""
    shifts = options.make_key("poses").normal(size=(len(viewmats), 6)) * exposures.SHAKE_SHARES
    points = [
        exposures.find_visible_points(world, pose, K, height=options.height, width=options.width) for pose in viewmats
    ]
    scale, perturbed = 1e-3, list(viewmats)
    for _ in range(3):  # the displacement is nearly linear in the errors
        perturbed = [
            poses.make_rigid(poses.make_rotation(s[3:]), s[:3]) @ pose
            for s, pose in zip(scale * shifts, viewmats, strict=True)
        ]
        distances = [
            exposures.measure_displacement(p, a, b, K) for p, a, b in zip(points, viewmats, perturbed, strict=True)
        ]
        scale *= options.pose_noise_px / float(np.mean(distances))
    return np.stack(perturbed).astype(np.float32)


def _sample_points(
    world: raycast.World,
    viewmats: np.ndarray,
    K: np.ndarray,
    options: _Options,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns noisy points [P, 3] on the surfaces visible to the cameras, and their noisy sRGB colours."""
    key, layout = options.make_key("points"), LAYOUTS[options.layout]
    points, colors, depths = [], [], []
    for viewmat, share in zip(viewmats, np.array_split(np.arange(options.num_points), len(viewmats)), strict=True):
        pixels = key.random((2, len(share))) * np.array([[options.width], [options.height]])
        origin, directions = raycast.make_camera_rays(viewmat, K, pixels)
        t, radiance = raycast.cast(world, origin, directions)
        for _ in range(_MAX_REDRAWS):
            far = np.flatnonzero(t > layout.farthest_point)
            if not far.size:
                break
            pixels = key.random((2, far.size)) * np.array([[options.width], [options.height]])
            directions[:, far] = raycast.make_camera_rays(viewmat, K, pixels)[1]
            t[far], radiance[far] = raycast.cast(world, origin, directions[:, far])
        points.append((origin + t * directions).T)
        colors.append(exposures.encode_srgb(radiance) / 255)
        depths.append(t)
    points, colors = np.concatenate(points), np.concatenate(colors)
    noise = layout.point_noise * (np.concatenate(depths)[:, None] if layout.grows_with_depth else 1.0)
    points = points + noise * key.normal(size=points.shape)
    colors = np.clip(colors + _COLOR_NOISE * key.normal(size=colors.shape), 0.0, 1.0)
    return points.astype(np.float32), colors.astype(np.float32)


def _find_cache_path(options: _Options) -> pathlib.Path | None:
    """Returns the cache file of a scene; None if there is no home folder."""
    try:
        folder = find_cache_home() / "procedural"
    except RuntimeError:
        return None
    name = hashlib.sha256(f"{GENERATOR_VERSION} {dataclasses.asdict(options)}".encode()).hexdigest()[:32]
    return folder / f"{name}.npz"
