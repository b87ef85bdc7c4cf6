"""Exports a run as a splat file for viewers, upright, and measures how viewers will show it."""

import dataclasses
import json
import pathlib
import tempfile
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bags_jax import metrics
from bags_jax.atomic import write_atomic
from bags_jax.checkpoint import Checkpoints
from bags_jax.data.poses import make_rigid
from bags_jax.errors import UserError
from bags_jax.export import splat_transform
from bags_jax.export.glb import read_glb, write_glb
from bags_jax.export.ply import bake_filter, read_ply, write_ply
from bags_jax.export.rotation import rotate_gaussians
from bags_jax.export.start_camera import FLIP_GLTF, StartCamera, choose_start, viewer_settings
from bags_jax.job import load_photographs
from bags_jax.run import Run, render_scene_views
from bags_jax.settings import Settings
from bags_jax.spherical_harmonics import degree_of
from bags_jax.splatting import rasterization
from bags_jax.structs import Gaussians
from bags_jax.upright import Upright, find_up
from bags_jax.workdir import CAPTURE_FILE, read_settings

FORMATS = (".ply", ".glb", *splat_transform.FORMATS)
MODES = {"antialiased": 0.1, "classic": 0.3}  # of viewers, with their 2D filter, px^2
CHECK_WIDTH = 640  # px, at most, of the picture that compares the file with what was written


@dataclasses.dataclass(frozen=True)
class Exported:
    """An exported file: its Gaussians, and how they were rotated."""

    path: pathlib.Path
    step: int  # of the checkpoint
    gaussians: Gaussians  # in the frame of the file, 3D filter baked in
    rotation: Float[np.ndarray, "3 3"]  # file frame from world frame
    upright: Upright | None  # None: the world frame was kept
    start: StartCamera | None  # file frame; None: the cameras of the run are not known


@dataclasses.dataclass(frozen=True)
class _Capture:
    """The training cameras of a run."""

    viewmats: Float[np.ndarray, "V 4 4"]
    Ks: Float[np.ndarray, "V 3 3"] | None  # None: not known, because the capture is not here


def export(
    workdir: str | pathlib.Path,
    path: str | pathlib.Path,
    *,
    step: int | None = None,
    up: Upright | None = None,
    keep_frame: bool = False,
) -> Exported:
    """Writes the living Gaussians of a run with the 3D filter baked in, rotated to stand upright. The write is atomic.

    Args:
      workdir: folder of the run.
      path: the file, in a folder that exists; ends in .ply, .glb, .spz, .sog or .html.
      step: step of the checkpoint; None: the last one.
      up: the up direction of the scene; None: it is estimated.
      keep_frame: keep the world frame of the capture instead.
    Raises:
      UserError: no run, no checkpoint, no living Gaussian; or the file cannot be written, or needs a program that is
        missing.
    """
    path = pathlib.Path(path).expanduser()
    check_output(path)
    settings = read_settings(workdir)  # raises the clearest error for a folder without a run
    with Checkpoints(pathlib.Path(workdir).expanduser(), create=False) as checkpoints:
        living, filter_3d, step = checkpoints.restore_living(step)
    if not len(filter_3d):
        raise UserError(f"the checkpoint of step {step} has no living Gaussian: export another step")
    gaussians = bake_filter(living, filter_3d)
    capture = _read_capture(pathlib.Path(workdir).expanduser(), settings)
    start, rotation = None, np.eye(3)
    if capture is not None:
        points = _solid_points(gaussians)
        up = up or find_up(capture.viewmats, points)
        start = choose_start(capture.viewmats, capture.Ks, points, up=up.direction)
    if not keep_frame:
        if start is None:
            raise UserError(f"{workdir} has no {CAPTURE_FILE} to work out the up direction: pass --upright=False")
        rotation = start.level_axes()
        rotation = FLIP_GLTF @ rotation if path.suffix.lower() == ".glb" else rotation
        gaussians = rotate_gaussians(gaussians, rotation)
    start = start and start.rotate(rotation)
    _write(path, gaussians, start, settings)
    return Exported(path, step, gaussians, rotation, None if keep_frame else up, start)


def check_output(path: pathlib.Path) -> None:
    """Raises UserError if a file of this name cannot be written here."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise UserError(f"the output file is {str(path)!r}; expected a name that ends in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: {path.parent} is no folder; make it first, or choose another --output")
    if suffix in splat_transform.FORMATS:
        splat_transform.find_command()


def write_viewer_settings(exported: Exported, workdir: str | pathlib.Path) -> pathlib.Path:
    """Writes start camera, target and field of view beside the file, as SuperSplat's viewer reads them."""
    if exported.start is None:
        raise UserError(f"{workdir} has no {CAPTURE_FILE} to choose a start camera: leave --viewer_settings out")
    path = exported.path.with_name(f"{exported.path.name}.viewer.json")
    write_atomic(path, _viewer_settings(exported.path, exported.start, read_settings(workdir)).encode())
    return path


def read_splat(path: str | pathlib.Path) -> Gaussians:
    """Reads a splat file of any format that `export` writes.

    Raises:
      UserError: it cannot be read, or needs a program that is missing.
    """
    path = pathlib.Path(path)
    match path.suffix.lower():
        case ".ply":
            return read_ply(path)
        case ".glb":
            return read_glb(path)
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder, "copy.ply")
        if path.suffix.lower() == ".html":
            splat_transform.extract_sog(path, source := copy.with_suffix(".sog"))
            path = source
        splat_transform.convert(path, copy)
        return read_ply(copy)


def read_back(exported: Exported) -> str:
    """Reads an exported file and compares it with what was written: number of Gaussians, PSNR from the start camera.

    Raises:
      UserError: the file holds another number of Gaussians.
    """
    found, ours = read_splat(exported.path), exported.gaussians
    if len(found.means) != len(ours.means):
        raise UserError(f"{exported.path} holds {len(found.means)} of {len(ours.means)} Gaussians: export it again")
    line = f"{len(found.means)} Gaussians"
    if exported.start is None:
        return line
    horizontal, vertical = (np.tan(np.radians(fov) / 2) for fov in exported.start.fov_deg)
    width = CHECK_WIDTH
    height, focal = round(width * vertical / horizontal), width / 2 / horizontal
    K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    pictures = [render_splat(g, exported.start.viewmat(), K, width=width, height=height) for g in (ours, found)]
    return f"{line}, {_psnr(*pictures):.1f} dB to our render of what was written, from the start camera"


def render_splat(
    gaussians: Gaussians,
    viewmat: Float[np.ndarray, "4 4"],
    K: Float[np.ndarray, "3 3"],
    *,
    width: int,
    height: int,
    mode: str = "antialiased",
    background: tuple[float, float, float] = (0.0, 0.0, 0.0),
    near_plane: float = 0.01,
) -> Float[np.ndarray, "H W 3"]:
    """Renders a splat as a viewer does, in one of MODES; sRGB, clipped to [0, 1]."""
    gaussians = jax.tree.map(jnp.asarray, gaussians)
    colors = jnp.concatenate([gaussians.sh_dc, gaussians.sh_rest], axis=1)
    image, _, _ = rasterization(
        means=gaussians.means,
        quats=gaussians.quats,
        scales=jnp.exp(gaussians.log_scales),
        opacities=jax.nn.sigmoid(gaussians.logit_opacities),
        colors=colors,
        viewmats=jnp.asarray(viewmat, jnp.float32)[None],
        Ks=jnp.asarray(K, jnp.float32)[None],
        width=width,
        height=height,
        sh_degree=degree_of(colors.shape[1]),
        backgrounds=jnp.asarray([background], jnp.float32),
        near_plane=near_plane,
        eps2d=MODES[mode],
        rasterize_mode=mode,
    )
    return np.clip(np.asarray(image[0]), 0, 1)


def check_export(run: Run, path: str | pathlib.Path) -> str:
    """Exports a run, reads the file back, renders the first held-out view, and compares it with our own render.

    Renders in both modes that viewers use: antialiased (our own mode), and classic, where the 0.3 px^2 filter of 3DGS
    makes splats smaller than a pixel too opaque. Counts the Gaussians with trimesh, an independent reader.

    Returns:
      One line of text with the number of Gaussians and the PSNR of each mode.
    """
    import trimesh

    exported = export(run.workdir, path, step=int(run.state.step))
    independent = len(cast(Any, trimesh.load(path)).vertices)
    saved, scene, first = read_ply(path), run.scene, run.scene.test_ids[0]
    ours = np.clip(np.asarray(next(render_scene_views(run, [first])).image), 0, 1)
    viewmat = scene.viewmats[first] @ make_rigid(exported.rotation.T, np.zeros(3))
    found = []
    for mode, eps2d in MODES.items():
        image = render_splat(
            saved,
            viewmat,
            scene.Ks[first],
            width=ours.shape[1],
            height=ours.shape[0],
            mode=mode,
            background=scene.background,
            near_plane=run.job.near_plane,
        )
        found.append(f"{mode} (eps2d {eps2d}) {_psnr(image, ours):.1f} dB")
    return (
        f"{path}: {len(saved.means)} Gaussians, {independent} by trimesh; upright; rendered again, against our picture: "
        f"{', '.join(found)}"
    )


def _solid_points(gaussians: Gaussians) -> Float[np.ndarray, "P 3"]:
    """The more opaque half of the Gaussians: floaters are mostly faint."""
    opacities = np.asarray(gaussians.logit_opacities)
    return np.asarray(gaussians.means)[opacities >= np.median(opacities)]


def _psnr(first: Float[np.ndarray, "H W 3"], second: Float[np.ndarray, "H W 3"]) -> float:
    return float(metrics.psnr_of_mse(float(np.mean((first - second) ** 2))))


def _read_capture(workdir: pathlib.Path, settings: Settings) -> _Capture | None:
    """The training cameras: refined if `evaluate` wrote them, else of the capture, else without intrinsics."""
    try:
        poses = json.loads((workdir / "poses.json").read_text()).values()
        return _Capture(*(np.array([pose[name] for pose in poses]) for name in ("cam_from_world", "K")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass  # not evaluated yet
    try:
        scene = load_photographs(settings)
        return _Capture(scene.viewmats[scene.train_ids], scene.Ks[scene.train_ids])
    except UserError:
        pass  # the capture is on another machine
    try:
        return _Capture(np.array(list(json.loads((workdir / CAPTURE_FILE).read_text()).values())), None)
    except (OSError, ValueError, AttributeError):
        return None


def _write(path: pathlib.Path, gaussians: Gaussians, start: StartCamera | None, settings: Settings) -> None:
    match path.suffix.lower():
        case ".ply":
            write_ply(path, gaussians)
        case ".glb":
            write_glb(path, gaussians)
        case suffix:
            with tempfile.TemporaryDirectory() as folder:
                source, options = pathlib.Path(folder, "scene.ply"), None
                write_ply(source, gaussians)
                if suffix == ".html" and start is not None:
                    options = source.with_suffix(".json")
                    options.write_text(_viewer_settings(path, start, settings))
                splat_transform.convert(source, path, viewer_settings=options)


def _viewer_settings(path: pathlib.Path, start: StartCamera, settings: Settings) -> str:
    red, green, blue = settings.data.background
    is_gltf = path.suffix.lower() == ".glb"
    return viewer_settings(start, background=(red, green, blue), is_gltf=is_gltf)
