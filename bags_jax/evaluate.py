"""Evaluation: from a working directory to scores, pictures and the blur that was found. Needs no device in particular."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import trimesh
from flax import struct
from jaxtyping import Array, Float, UInt8

from bags_jax import metrics, plan
from bags_jax.atomic import write_atomic
from bags_jax.blur import kernel_side, kernels_at, mean_over, pixel_statistics, repeat_blocks, shares, view_statistics
from bags_jax.blur_network import BlurProposalNetwork
from bags_jax.camera_path import loop
from bags_jax.checkpoint import Checkpoints
from bags_jax.data.poses import camera_centers
from bags_jax.data.pyramid import make_dataset
from bags_jax.data.scene import Scene
from bags_jax.errors import UserError
from bags_jax.export.ply import read_ply, write_ply
from bags_jax.poses import corrected_camera
from bags_jax.programs import count_pairs, room_for
from bags_jax.rasterize import rasterization
from bags_jax.render import Rendered, View, apply_blur, propose_blur
from bags_jax.report import no_truth
from bags_jax.report.blur_pictures import kernel_grid, mask_picture, write_blur_json
from bags_jax.report.pictures import contact_sheet, to_uint8, write_png
from bags_jax.schedules import Stage, stage_at
from bags_jax.spherical_harmonics import degree_of
from bags_jax.step import eval_step, network_name
from bags_jax.structs import BlurField, Camera, Dataset, TrainState
from bags_jax.train import Job, check_views, first_state, make_job, training_cameras
from bags_jax.workdir import check_capture, read_config

KERNEL_GRID = (6, 9)  # kernels shown of a view, rows and columns


@struct.dataclass
class FoundBlur:
    """The blur of one training view."""

    mask: Float[Array, "h w"]
    mean_mask: Float[Array, ""]
    rms_width: Float[Array, ""]  # mean over pixels, px at full image scale
    direction: Float[Array, ""]  # of the view's mean kernel, degrees
    samples: Float[Array, "gh gw K K"]  # kernels of a regular grid of pixels


@dataclasses.dataclass(frozen=True)
class Look:
    """One training view as the scene and the blur model have it, at the image scale that was trained last."""

    photo: UInt8[np.ndarray, "H W 3"]
    sharp: Float[Array, "H W 3"]
    blurred: Float[Array, "H W 3"]  # what the photograph should look like; without a blur model the sharp picture
    blur: FoundBlur | None


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained scene."""

    workdir: pathlib.Path
    job: Job
    state: TrainState

    @property
    def scene(self) -> Scene:
        return self.job.scene

    @property
    def stage(self) -> Stage:
        """The one that the last step was in: heads of later ones have not been trained."""
        return stage_at(self.job.stages, max(int(self.state.step) - 1, 0))

    @property
    def network(self) -> BlurProposalNetwork | None:
        """The blur model; None: there is none, or not yet."""
        return self.job.network if self.stage.kernel_size else None


def open_run(workdir: str | pathlib.Path, *, step: int | None = None, data_root: str | None = None) -> Run:
    """Reads configuration, scene and checkpoint of a run; on whatever devices it was trained, one is enough here.

    Args:
      workdir: folder of the run.
      step: which checkpoint; None: the last.
      data_root: folder of the capture, where it is another than on the machine that trained.
    Raises:
      UserError: there is no run, no such checkpoint, or it cannot be read.
    """
    config = plan.switch_off_later(read_config(workdir))
    config.num_devices, config.views_per_step = 1, 1
    config.data.root = data_root or config.data.root
    job = make_job(config)
    template = jax.eval_shape(lambda: first_state(job))
    # What Adam remembers is most of a checkpoint, and of no use here.
    template = dataclasses.replace(template, gaussians_opt=(), network_opt=(), poses_opt=())
    with Checkpoints(pathlib.Path(workdir).expanduser(), create=False) as checkpoints:
        state = checkpoints.restore(template, step)
    check_views(state, job.scene)
    check_capture(workdir, training_cameras(job.scene))
    return Run(pathlib.Path(workdir).expanduser(), job, jax.tree.map(jnp.asarray, state))


_render = jax.jit(eval_step, static_argnames="view")


def render_views(run: Run, viewmats, Ks, *, width: int, height: int, margin: int = 0) -> Iterator[Rendered]:
    """Sharp pictures of cameras that share an image size, one at a time; viewmats cam_from_world, Ks and margin px."""
    cameras = Camera(jnp.asarray(viewmats, jnp.float32), jnp.asarray(Ks, jnp.float32))
    view = View(width, height, 0, run.scene.background, margin, near_plane=run.job.near_plane)
    sizes = jnp.tile(jnp.array([[height, width]], jnp.int32), (len(viewmats), 1))
    ones = jnp.float32(1)
    dataset = Dataset(images=None, sizes=sizes, cameras=cameras, extent=ones, near_plane=ones)
    view = dataclasses.replace(view, max_intersections=room_for(count_pairs(run.state, dataset, view)))
    for i in range(len(viewmats)):
        rendered = _render(run.state, jax.tree.map(lambda x, i=i: x[i], cameras), view=view)
        if rendered.num_dropped > 0:  # its pairs were counted, with room to spare
            raise RuntimeError(f"{rendered.num_dropped} pairs of tile and Gaussian found no room in picture {i}")
        yield rendered


def refined_viewmats(run: Run) -> Float[np.ndarray, "V 4 4"]:
    """cam_from_world of all views of the scene; the training views as training left them."""
    scene, frame = run.scene, run.job.pose_frame
    viewmats = np.array(scene.viewmats)
    if frame is not None:
        cameras = Camera(jnp.asarray(scene.viewmats[scene.train_ids]), jnp.asarray(scene.Ks[scene.train_ids]))
        refined = jax.vmap(corrected_camera, in_axes=(0, 0, None))(cameras, run.state.poses, frame)
        viewmats[scene.train_ids] = np.asarray(refined.viewmat)
    return viewmats


def render_scene_views(run: Run, ids) -> Iterator[Rendered]:
    """Sharp pictures of views of the scene, each at the size of its photograph and, in training views, its refined pose.

    One at a time: all pictures of a capture at full resolution may be more than a device holds.
    """
    viewmats, sizes = refined_viewmats(run), [run.scene.images[i].shape[:2] for i in ids]
    pictures = {}
    for height, width in set(sizes):
        same = [i for i, size in zip(ids, sizes, strict=True) if size == (height, width)]
        pictures[height, width] = render_views(run, viewmats[same], run.scene.Ks[same], width=width, height=height)
    return (next(pictures[size]) for size in sizes)


def look_at_training_views(run: Run) -> Iterator[Look]:
    """Every training view, one at a time, as training saw it last.

    At the image scale of its stage, and smaller photographs on the canvas of the largest: there the network knows its way.
    """
    scene, network, stage = run.scene, run.network, run.stage
    photos = make_dataset(scene, stage.scale)
    _, height, width, _ = photos.images.shape
    margin = plan.margin_of(run.job.config, stage)
    viewmats = refined_viewmats(run)[scene.train_ids]
    canvases = render_views(run, viewmats, photos.cameras.K, width=width, height=height, margin=margin)
    for index, (canvas, size) in enumerate(zip(canvases, np.asarray(photos.sizes), strict=True)):
        rows, columns = map(slice, size)
        photo = np.asarray(photos.images[index, rows, columns])
        if network is None:
            picture = canvas.inside().image[rows, columns]
            yield Look(photo, picture, picture, None)
            continue
        params = run.state.network[network_name(stage.network)]
        picture, blurred, blur = _look(params, jnp.int32(index), jnp.array(size), canvas, network=network, stage=stage)
        blocks = [slice(-(-side // network.stride(stage.head))) for side in size]
        blur = dataclasses.replace(blur, mask=blur.mask[*blocks])
        yield Look(photo, picture[rows, columns], blurred[rows, columns], blur)


@functools.partial(jax.jit, static_argnames=("network", "stage"))
def _look(params, index, size, rendered: Rendered, *, network: BlurProposalNetwork, stage: Stage):
    """Sharp picture, blurred picture and the blur of a canvas whose first size[0] rows and size[1] columns are the photograph."""
    field = propose_blur(network, params, index, rendered, head=stage.head)
    blurred, moments = apply_blur(network, field, rendered, head=stage.head)
    rows, columns = (jnp.arange(n) < size[axis] for axis, n in enumerate(blurred.shape[:2]))
    stride = network.stride(stage.head)
    share = shares(rows[:, None] & columns[None, :], stride)
    found = FoundBlur(
        mask=field.mask,
        mean_mask=mean_over(field.mask, share),
        rms_width=mean_over(pixel_statistics(moments).rms_width, share) / stage.scale,
        direction=view_statistics(moments, share).direction,
        samples=sample_kernels(field, size / stride),
    )
    return rendered.inside().image, blurred, found


def score_view(picture: Float[np.ndarray, "H W 3"], truth: UInt8[np.ndarray, "H W 3"]) -> dict:
    """Scores of one held-out view in both protocols, and its PSNR after the best sub-pixel shift."""
    picture, truth = np.clip(picture, 0.0, 1.0), truth.astype(np.float32) / 255.0
    border = min(8, min(truth.shape[:2]) // 4)
    aligned, shift = (None, None)
    if border > 7:
        aligned, shift = metrics.shift_aligned_psnr(picture, truth, border=border)
    return {
        "deblur_nerf": _named(metrics.deblur_nerf(picture, truth)),
        "gaussian_splatting": _named(metrics.gaussian_splatting(picture, truth)),
        "shift_aligned": {"PSNR": None if aligned is None else min(aligned, metrics.PSNR_CAP), "shift_px": shift},
    }


def _named(scores: metrics.Scores) -> dict:
    return {"PSNR": min(scores.psnr, metrics.PSNR_CAP), "SSIM": scores.ssim, "LPIPS": scores.lpips}


def mean_scores(per_view: dict) -> dict:
    """Means over views, by protocol."""
    protocols = {name: _mean(per_view, name) for name in ("deblur_nerf", "gaussian_splatting")}
    return {**protocols, "shift_aligned": _mean(per_view, "shift_aligned", ("PSNR",))}


def _mean(per_view: dict, protocol: str, names=("PSNR", "SSIM", "LPIPS")) -> dict:
    """Mean over views of each score; None where a view has none."""
    values = {name: [view[protocol][name] for view in per_view.values()] for name in names}
    return {name: None if None in v or not v else float(np.mean(v)) for name, v in values.items()}


def evaluate(workdir: str | pathlib.Path, *, step: int | None = None, data_root: str | None = None) -> dict:
    """Scores a run on its held-out views and describes the blur of its training views.

    Writes results.json, eval/ (pictures of the held-out views), blur/ and poses.json into the working directory.

    Returns:
      {"step", "deblur_nerf": {"PSNR", "SSIM", "LPIPS"}, "gaussian_splatting": {...}, "shift_aligned": {"PSNR"},
      "no_truth": {"reblur_PSNR", "sharpness_gain", "held_out_fitted_PSNR", ...} (see report/no_truth.py),
      "per_view": {name: the same}}; LPIPS is None where its weights are not installed.
    Raises:
      UserError: see open_run.
    """
    run = open_run(workdir, step=step, data_root=data_root)
    scene = run.scene
    held_out = {scene.names[i]: scene.images[i] for i in scene.test_ids}
    rendered = render_scene_views(run, scene.test_ids)
    pictures = {name: np.asarray(r.image) for name, r in zip(held_out, rendered, strict=True)}
    per_view = {name: score_view(pictures[name], truth) for name, truth in held_out.items()}
    side = run.job.stages[-1].kernel_size or run.job.config.blur.kernel_sizes[-1]
    fitted = {name: no_truth.held_out_view(pictures[name], truth, side=side) for name, truth in held_out.items()}
    training = report_training_views(run)
    results = {
        "step": int(run.state.step),
        **mean_scores(per_view),
        "num_gaussians": int(jnp.sum(run.state.alive)),
        "no_truth": no_truth.summarize(training, fitted, has_blur_model=run.network is not None),
        "per_view": per_view,
    }
    write_held_out(run.workdir, pictures, held_out)
    if run.job.pose_frame is not None:
        write_poses(run)
    write_atomic(run.workdir / "results.json", (json.dumps(results, indent=2) + "\n").encode())
    return results


def report_training_views(run: Run) -> dict[str, dict]:
    """Writes the blur that was found into blur/, and returns what no_truth.training_view says of each training view."""
    scene = run.scene
    training, blurs = {}, {}
    stems = file_stems([scene.names[i] for i in scene.train_ids])
    for i, look in zip(scene.train_ids, look_at_training_views(run), strict=True):
        name = scene.names[i]
        training[name] = no_truth.training_view(np.asarray(look.sharp), np.asarray(look.blurred), look.photo)
        if look.blur is not None:
            blurs[name] = write_blur(run, stems[name], look.blur, *look.photo.shape[:2])
    if blurs:
        write_blur_json(run.workdir / "blur" / "blur.json", blurs)
    return training


def write_held_out(workdir: pathlib.Path, pictures: dict, truths: dict) -> None:
    """Pictures of the held-out views, alone and beside the photograph."""
    stems = file_stems(list(truths))
    for name, truth in truths.items():
        write_png(workdir / "eval" / f"{stems[name]}.png", pictures[name])
        sheet = contact_sheet([[to_uint8(pictures[name]), truth]], column_titles=("render", "held-out photograph"))
        write_png(workdir / "eval" / f"{stems[name]}_beside.png", sheet)


def file_stems(names: Sequence[str]) -> dict[str, str]:
    """What the pictures of each view are called, before _beside, _mask and _kernels, so that all differ: without suffix if they do."""
    whole = [name.replace("/", "_") for name in names]
    short = [str(pathlib.PurePath(name).with_suffix("")) for name in whole]
    for stems in (short, whole):
        files = {stem + end for stem in stems for end in ("", "_beside", "_mask", "_kernels")}
        if len(files) == 4 * len(names):
            return dict(zip(names, stems, strict=True))
    return {name: f"{i:04d}_{stem}" for i, (name, stem) in enumerate(zip(names, whole, strict=True))}


def write_blur(run: Run, stem: str, found: FoundBlur, height: int, width: int) -> dict[str, float]:
    """Mask and kernels of one training view as pictures, their files named by the stem; returns its figures."""
    assert run.network is not None
    stride = run.network.stride(run.stage.head)
    mask = np.asarray(repeat_blocks(found.mask, stride, height, width))
    write_png(run.workdir / "blur" / f"{stem}_mask.png", mask_picture(mask))
    write_png(run.workdir / "blur" / f"{stem}_kernels.png", kernel_grid(np.asarray(found.samples)))
    return {
        "mean_mask": float(found.mean_mask),
        "rms_width_px": float(found.rms_width),
        "direction_deg": float(found.direction),
    }


def write_poses(run: Run) -> None:
    """poses.json: the refined camera of each training view, and how far its correction moves the picture, px."""
    scene, viewmats = run.scene, refined_viewmats(run)
    moved = np.linalg.norm(np.asarray(run.state.poses), axis=-1)
    poses = {
        scene.names[i]: {"cam_from_world": viewmats[i].tolist(), "K": scene.Ks[i].tolist(), "correction_px": float(px)}
        for i, px in zip(scene.train_ids, moved, strict=True)
    }
    write_atomic(run.workdir / "poses.json", (json.dumps(poses, indent=1) + "\n").encode())


def sample_kernels(field: BlurField, size: Float[Array, "2"]) -> Float[Array, "gh gw K K"]:
    """Kernels of a regular grid over the first size[0] rows and size[1] columns of a field, the only ones that are made."""
    places = [((jnp.arange(n) + 0.5) / n * size[axis]).astype(jnp.int32) for axis, n in enumerate(KERNEL_GRID)]
    picked = kernels_at(field, *jnp.meshgrid(*places, indexing="ij"))
    side = kernel_side(picked.shape[-1])
    return picked.reshape(*KERNEL_GRID, side, side)


def render_path(run: Run, path: str, *, num_frames: int) -> Iterator[Rendered]:
    """Pictures of the cameras of a path, one at a time: test, train or spiral.

    Raises:
      UserError: no view is held out.
    """
    scene = run.scene
    if path in ("test", "train"):
        ids = scene.test_ids if path == "test" else scene.train_ids
        if not len(ids):
            raise UserError("the capture has no held-out views: expected --path=train or --path=spiral")
        return render_scene_views(run, ids)
    viewmats = refined_viewmats(run)[scene.train_ids]
    points = np.asarray(run.state.gaussians.means)[np.asarray(run.state.alive)]
    cameras = loop(viewmats, points, num_frames=num_frames)
    first = scene.train_ids[0]
    height, width = scene.images[first].shape[:2]
    Ks = np.repeat(scene.Ks[first][None], num_frames, axis=0)
    return render_views(run, cameras, Ks, width=width, height=height)


def nearest_training_view(scene: Scene, index: int) -> int:
    """The training view whose camera is nearest to that of a view."""
    centers = camera_centers(scene.viewmats)
    distances = np.linalg.norm(centers[scene.train_ids] - centers[index], axis=-1)
    return int(scene.train_ids[np.argmin(distances)])


def export(workdir: str | pathlib.Path, path: str | pathlib.Path, *, step: int | None = None) -> tuple[int, int]:
    """Writes the living Gaussians of a run as a standard 3DGS PLY with the 3D filter baked in: (their number, the step).

    Raises:
      UserError: there is no checkpoint, or the file cannot be written.
    """
    if pathlib.Path(path).suffix.lower() != ".ply":
        raise UserError(f"the file to export to is {str(path)!r}, expected one that ends in .ply")
    read_config(workdir)  # says best what is wrong with a folder that is no run
    with Checkpoints(pathlib.Path(workdir).expanduser(), create=False) as checkpoints:
        living, filter_3d, step = checkpoints.restore_living(step)
    if not len(filter_3d):
        raise UserError(f"no Gaussian is left in the checkpoint of step {step}: there is nothing to export")
    write_ply(path, living, filter_3d)
    return len(filter_3d), step


def check_export(run: Run, path: str | pathlib.Path) -> str:
    """Exports the scene, reads the file back with another program's reader, renders it, and says how it compares.

    Viewers draw in one of two ways: antialiased as we do, or classic with 3DGS's 0.3 px^2, which makes splats under a
    pixel too heavy. Both are compared with our own picture of the first held-out view.
    """
    count, _ = export(run.workdir, path, step=int(run.state.step))
    independent = len(cast(Any, trimesh.load(path)).vertices)
    saved, scene, first = read_ply(path), run.scene, run.scene.test_ids[0]
    ours = np.asarray(next(render_scene_views(run, [first])).image)
    height, width = ours.shape[:2]
    colors = jnp.concatenate([saved.sh_dc, saved.sh_rest], axis=1)
    found = []
    for mode, eps2d in (("antialiased", 0.1), ("classic", 0.3)):
        image, _, _ = rasterization(
            *(saved.means, saved.quats, jnp.exp(saved.log_scales), jax.nn.sigmoid(saved.logit_opacities), colors),
            *(jnp.asarray(scene.viewmats[[first]]), jnp.asarray(scene.Ks[[first]]), width, height),
            sh_degree=degree_of(colors.shape[1]),
            backgrounds=jnp.asarray([scene.background]),
            near_plane=run.job.near_plane,
            eps2d=eps2d,
            rasterize_mode=mode,
        )
        error = float(np.mean((np.clip(image[0], 0, 1) - np.clip(ours, 0, 1)) ** 2))
        found.append(f"{mode} (eps2d {eps2d}) {metrics.psnr_of_mse(error):.1f} dB")
    return (
        f"{path}: {count} Gaussians, {independent} by trimesh; rendered again, against our picture: {', '.join(found)}"
    )
