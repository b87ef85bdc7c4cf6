"""Evaluation: scores a trained run on its held-out views and describes the estimated blur of its training views."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Bool, Float, UInt8

from bags_jax import metrics
from bags_jax.atomic import write_atomic
from bags_jax.data.pyramid import resize
from bags_jax.errors import UserError
from bags_jax.job import MakeModel, hash_photographs
from bags_jax.ops.blur.blocks import repeat_blocks
from bags_jax.report import no_truth, psnr_by_blur, with_truth
from bags_jax.report.blur_pictures import choose_drawn, draw_kernels, draw_mask, write_blur_files, write_csv
from bags_jax.report.contents import list_view_rows
from bags_jax.report.page import PageView, make_held_out_view, make_training_view, write_page
from bags_jax.report.pictures import make_contact_sheet, to_uint8, write_png
from bags_jax.report.sheets import draw_blur_sheet
from bags_jax.report.views import HeldOutPictures, choose_full_weight
from bags_jax.run import Run, open_run, refined_viewmats, render_scene_views
from bags_jax.run_report import choose_limit, choose_page_area, draw_in_place, make_page, take_pictures
from bags_jax.training_views import EstimatedBlur, render_training_views
from bags_jax.workdir import read_photographs

FAST = 2  # compression of the many large PNG files of training views
ALIGNMENT_BORDER_PX = 8  # shift_aligned_psnr crops this much; pictures with a side under 4 times as much get no value


@dataclasses.dataclass(frozen=True)
class HeldOutView:
    """One held-out view: its photograph and its sharp render."""

    name: str
    photo: UInt8[np.ndarray, "H W 3"]
    render: Float[np.ndarray, "H W 3"]
    valid: Bool[np.ndarray, "H W"] | None  # pixels to score; None: all


@dataclasses.dataclass(frozen=True)
class TrainingResults:
    """What the evaluation finds in the training views."""

    scores: dict[str, dict]  # by view name, see no_truth.score_training_view
    blurs: dict[str, dict]  # by view name, as in blur.json; empty: no blur model
    pages: list[PageView]  # the views as the report shows them
    beside_truth: list[with_truth.FoundBlur]  # empty: no blur model, or the true blur is not known
    by_blur: list[psnr_by_blur.TrainingView]  # empty: sharp truth or true blur is not known


def evaluate(
    workdir: str | pathlib.Path,
    *,
    step: int | None = None,
    data_root: str | None = None,
    make_model: MakeModel | None = None,
) -> dict:
    """Scores a run on its held-out views and describes the blur of its training views.

    Writes report/index.html, results.json, results.csv, eval/ (pictures of the held-out views), blur/,
    photographs_deblurred/ and poses.json into the working directory.

    Args:
      workdir: folder of the run.
      step: step of the checkpoint; None: the last one.
      data_root: folder of the capture, if it moved since training.
      make_model: as `train` got it.
    Returns:
      {"step", "num_gaussians", "deblur_nerf": {"PSNR", "SSIM", "LPIPS"}, "gaussian_splatting": {...}, "shift_aligned":
      {"PSNR", "unshifted_PSNR"}, "no_truth": {"reblur_PSNR", "sharpness_gain", "held_out_fitted_PSNR", ...} (see report/no_truth.py),
      "true_blur": {"pixel_rank_correlation", "view_rank_correlation", "mask_AUC"} (see report/with_truth.py; None: the true blur is
      not known, or there is no blur model), "PSNR_by_blur": {bin: {"PSNR", "num_views"}} of the training views (see
      report/psnr_by_blur.py; None: their truth is not known), "per_view": {name: scores}}. LPIPS is None if its weights are not installed.
    Raises:
      UserError: see open_run; a held-out photograph was trained on.
    """
    run = open_run(workdir, step=step, data_root=data_root, make_model=make_model)
    check_held_out(run)
    held_out = render_held_out_views(run)
    per_view = {view.name: score_view(view.render, view.photo, view.valid) for view in held_out}
    side = run.job.stages[-1].kernel_size or run.job.settings.blur.kernel_sizes[-1]
    fitted = {view.name: no_truth.score_held_out_view(view.render, hide(view), side=side) for view in held_out}
    training = evaluate_training_views(run)
    results = {
        "step": int(run.state.step),
        **mean_scores(per_view),
        "num_gaussians": int(jnp.sum(run.state.alive)),
        "no_truth": no_truth.summarize(training.scores, fitted, has_blur_model=run.model is not None),
        "true_blur": with_truth.score_blur(training.beside_truth) if training.beside_truth else None,
        "PSNR_by_blur": psnr_by_blur.average_by_blur(training.by_blur) if training.by_blur else None,
        "per_view": per_view,
    }
    write_held_out_views(run.workdir, held_out)
    if run.job.pose_frame is not None:
        write_poses(run)
    write_atomic(run.workdir / "results.json", (json.dumps(results, indent=2) + "\n").encode())
    write_csv(run.workdir / "results.csv", list_view_rows(results))
    write_report(run, results, training, held_out)
    return results


def check_held_out(run: Run) -> None:
    """Raises UserError if training saw the photograph of a held-out view: the score would say nothing."""
    trained = {value: name for name, value in read_photographs(run.workdir).items()}
    for name, value in hash_photographs(run.scene, run.scene.test_ids).items():
        if value in trained:
            same = "" if trained[value] == name else f" as {trained[value]}"
            raise UserError(
                f"the held-out photograph {name} was trained on{same}, so that its score would say nothing: remove it from the "
                "held-out views of the capture, or train again without it in another --workdir"
            )


def render_held_out_views(run: Run) -> list[HeldOutView]:
    """Renders every held-out view, without the blur model."""
    scene = run.scene
    renders = render_scene_views(run, scene.test_ids)
    return [
        HeldOutView(
            scene.names[i], scene.images[i], np.asarray(rendered.image), scene.valid[i] if scene.valid else None
        )
        for i, rendered in show_progress(zip(scene.test_ids, renders, strict=True), "held out", len(scene.test_ids))
    ]


def show_progress(items: Iterable, name: str, total: int) -> Iterable[Any]:
    """Passes items on, with a progress bar where the output is a terminal."""
    return tqdm.tqdm(items, desc=name, total=total, unit="view", dynamic_ncols=True, leave=False, disable=None)


def hide(view: HeldOutView) -> UInt8[np.ndarray, "H W 3"]:
    """The photograph of a held-out view, with the render where the photograph is not valid."""
    if view.valid is None:
        return view.photo
    return np.where(view.valid[..., None], view.photo, to_uint8(view.render))


def score_view(
    picture: Float[np.ndarray, "H W 3"], truth: UInt8[np.ndarray, "H W 3"], valid: Bool[np.ndarray, "H W"] | None = None
) -> dict:
    """Scores the valid pixels of one held-out view in both protocols, and its PSNR after the best sub-pixel shift."""
    picture, truth = np.clip(picture, 0.0, 1.0), truth.astype(np.float32) / 255.0
    return {
        "deblur_nerf": _score_dict(metrics.deblur_nerf(picture, truth, valid)),
        "gaussian_splatting": _score_dict(metrics.gaussian_splatting(picture, truth, valid)),
        "shift_aligned": _align(picture, truth, valid),
    }


def _align(picture: np.ndarray, truth: np.ndarray, valid: np.ndarray | None) -> dict:
    """PSNR after the best shift, and without a shift in the same crop: the border alone may change it by a dB."""
    if min(truth.shape[:2]) < 4 * ALIGNMENT_BORDER_PX:
        return {"PSNR": None, "unshifted_PSNR": None, "shift_px": None}
    crop: dict[str, Any] = {"border": ALIGNMENT_BORDER_PX}
    aligned, shift = metrics.shift_aligned_psnr(picture, truth, valid, **crop)
    unshifted, _ = metrics.shift_aligned_psnr(picture, truth, valid, max_shift_px=0.0, **crop)
    scores = {"PSNR": min(aligned, metrics.PSNR_CAP), "unshifted_PSNR": min(unshifted, metrics.PSNR_CAP)}
    return {**scores, "shift_px": shift}


def _score_dict(scores: metrics.Scores) -> dict:
    return {"PSNR": min(scores.psnr, metrics.PSNR_CAP), "SSIM": scores.ssim, "LPIPS": scores.lpips}


def mean_scores(per_view: dict) -> dict:
    """Means over views, by protocol; None if there is no view or a view has no such score."""
    protocols = {name: _mean(per_view, name) for name in ("deblur_nerf", "gaussian_splatting")}
    return {**protocols, "shift_aligned": _mean(per_view, "shift_aligned", ("PSNR", "unshifted_PSNR"))}


def _mean(per_view: dict, protocol: str, names=("PSNR", "SSIM", "LPIPS")) -> dict:
    values = {name: [view[protocol][name] for view in per_view.values()] for name in names}
    return {name: None if None in v or not v else float(np.mean(v)) for name, v in values.items()}


def evaluate_training_views(run: Run) -> TrainingResults:
    """Scores every training view against its own photograph, and writes its blur and the photograph without blur."""
    scene = run.scene
    found = TrainingResults({}, {}, [], [], [])
    stems = choose_file_stems([scene.names[i] for i in scene.train_ids])
    limit_px, area, num_views = choose_limit(run), choose_page_area(run), len(scene.train_ids)
    views = zip(scene.train_ids, render_training_views(run), strict=True)
    for i, view in show_progress(views, "photographs", num_views):
        name = scene.names[i]
        found.scores[name] = no_truth.score_training_view(
            np.asarray(view.sharp), np.asarray(view.blurred), view.photo, view.valid
        )
        if scene.sharp_images is not None and scene.blur_px is not None:
            truth = resize(scene.sharp_images[i], run.stage.scale)
            blur_px = with_truth.mean_of_blocks(scene.blur_px[i], truth.shape[:2])
            found.by_blur.append(psnr_by_blur.score_render(np.asarray(view.sharp), truth, blur_px, view.valid))
        pictures, in_place = take_pictures(run, name, view), None
        if view.blur is not None and pictures.blur is not None:
            found.blurs[name] = write_blur(run, stems[name], view.blur, *view.photo.shape[:2])
            if scene.blur_px is not None:
                mask, widths = np.asarray(view.blur.mask), np.asarray(view.blur.widths)
                truth = with_truth.mean_of_blocks(scene.blur_px[i], mask.shape)
                found.beside_truth.append(with_truth.FoundBlur(mask, widths, truth))
            in_place = draw_in_place(view.photo, pictures.blur, area=area)
            sheet = draw_blur_sheet(pictures, pictures.blur, in_place, limit_px=limit_px, title=name)
            write_png(run.workdir / "blur" / f"{stems[name]}.png", sheet, compress_level=FAST)
            sharp = run.workdir / "photographs_deblurred" / f"{stems[name]}.png"
            write_png(sharp, pictures.sharp, compress_level=FAST)
        page = make_training_view(pictures, in_place, limit_px=limit_px, num_views=num_views, area=area)
        found.pages.append(page)
    if found.blurs:
        write_blur_files(run.workdir / "blur", found.blurs)
    return found


def write_report(run: Run, results: dict, training: TrainingResults, held_out: Sequence[HeldOutView]) -> None:
    """Writes report/index.html."""
    area = choose_page_area(run)
    pictures = [HeldOutPictures(view.name, view.photo, to_uint8(view.render)) for view in held_out]
    shown = [make_held_out_view(view, area=area) for view in pictures]
    write_page(run.workdir / "report" / "index.html", make_page(run, results, training.pages, shown, training.blurs))


def write_held_out_views(workdir: pathlib.Path, views: Sequence[HeldOutView]) -> None:
    """Writes each render into eval/, alone and beside the photograph."""
    stems = choose_file_stems([view.name for view in views])
    for view in views:
        stem = workdir / "eval" / stems[view.name]
        write_png(f"{stem}.png", view.render)
        titles = ("render", "held-out photograph")
        write_png(f"{stem}_beside.png", make_contact_sheet([[to_uint8(view.render), view.photo]], column_titles=titles))


def choose_file_stems(names: Sequence[str]) -> dict[str, str]:
    """Chooses file stems for the pictures of each view, so that all files differ, also after _beside, _mask, _kernels.

    A stem is the view's name without its suffix if possible, else with its suffix, else also with a number.
    """
    whole = [name.replace("/", "_") for name in names]
    short = [str(pathlib.PurePath(name).with_suffix("")) for name in whole]
    for stems in (short, whole):
        files = {stem + end for stem in stems for end in ("", "_beside", "_mask", "_kernels")}
        if len(files) == 4 * len(names):
            return dict(zip(names, stems, strict=True))
    return {name: f"{i:04d}_{stem}" for i, (name, stem) in enumerate(zip(names, whole, strict=True))}


def write_blur(run: Run, stem: str, blur: EstimatedBlur, height: int, width: int) -> dict[str, float]:
    """Writes mask and kernels of one training view as pictures named by the stem; returns its figures for blur.json."""
    assert run.model is not None
    stride = run.stage.stride
    mask = np.asarray(repeat_blocks(blur.mask, stride, height, width))
    write_png(run.workdir / "blur" / f"{stem}_mask.png", draw_mask(mask))
    kernels = np.asarray(blur.samples.kernels)
    full_weight = choose_full_weight(kernels)
    drawn = np.ix_(*choose_drawn(height, width, kernels.shape[:2]))
    write_png(run.workdir / "blur" / f"{stem}_kernels.png", draw_kernels(kernels[drawn], full_weight=full_weight))
    return {
        "blur_px": float(blur.rms_width),
        "mean_mask": float(blur.mean_mask),
        "direction_deg": float(blur.direction),
    }


def write_poses(run: Run) -> None:
    """Writes poses.json: each training view's refined camera, and by how many px the correction moves the picture."""
    scene, viewmats = run.scene, refined_viewmats(run)
    moved = np.linalg.norm(np.asarray(run.state.poses), axis=-1)
    poses = {
        scene.names[i]: {"cam_from_world": viewmats[i].tolist(), "K": scene.Ks[i].tolist(), "correction_px": float(px)}
        for i, px in zip(scene.train_ids, moved, strict=True)
    }
    write_atomic(run.workdir / "poses.json", (json.dumps(poses, indent=1) + "\n").encode())
