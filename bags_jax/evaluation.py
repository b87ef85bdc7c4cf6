"""Evaluation: from a working directory to scores, pictures and the blur that was found."""

import json
import pathlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from bags_jax import metrics
from bags_jax.atomic import write_atomic
from bags_jax.ops.blur.blocks import repeat_blocks
from bags_jax.report import no_truth
from bags_jax.report.blur_pictures import kernel_grid, mask_picture, write_blur_json
from bags_jax.report.pictures import contact_sheet, to_uint8, write_png
from bags_jax.run import Run, open_run, refined_viewmats, render_scene_views
from bags_jax.training_views import FoundBlur, look_at_training_views


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
