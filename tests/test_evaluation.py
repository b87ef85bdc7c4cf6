"""Evaluates, renders and exports a trained run."""

import csv
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bags_jax import rasterization
from bags_jax.checksums import hash_array
from bags_jax.data.poses import make_rigid
from bags_jax.data.pyramid import scale_size
from bags_jax.errors import UserError
from bags_jax.evaluation import (
    check_held_out,
    choose_file_stems,
    evaluate,
    evaluate_training_views,
    mean_scores,
    score_view,
    write_report,
)
from bags_jax.export.ply import read_ply
from bags_jax.export.splat import export
from bags_jax.report import no_truth
from bags_jax.report.tables import format_scores
from bags_jax.run import open_run, render_path, render_scene_views
from bags_jax.training import train
from bags_jax.training_views import choose_grid, render_training_views
from configs import procedural

PROTOCOLS = ("deblur_nerf", "gaussian_splatting")


def make_config(**changes):
    config = procedural.get_config("motion,smoke")
    config.num_devices, config.num_steps, config.max_gaussians, config.sh_degree = 1, 4, 512, 1
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(make_config(checkpoint_every=2), folder)
    return folder


@pytest.fixture(scope="module")
def results(workdir):
    return evaluate(workdir)


@pytest.fixture(scope="module")
def run(workdir):
    return open_run(workdir)


def psnr(a, b):
    return -10 * np.log10(np.mean((np.clip(a, 0, 1) - np.clip(b, 0, 1)) ** 2) + 1e-12)


def test_a_run_of_another_format_is_refused(workdir, tmp_path):
    older = shutil.copytree(workdir, tmp_path / "older")
    settings = json.loads((older / "config.json").read_text())
    (older / "config.json").write_text(json.dumps({**settings, "format_version": 1}))
    with pytest.raises(UserError, match="has format 1, this version of bags-jax reads format 3: train again"):
        open_run(older)


def test_a_smaller_photograph_is_padded_as_in_training(run):
    """To the size of the largest photograph: the network was trained with its pixel positions and depths."""
    views, index = list(render_training_views(run)), 1
    scene, view = run.scene, run.scene.train_ids[index]
    images = list(scene.images)
    images[view] = images[view][:15, :21]
    smaller = dataclasses.replace(scene, images=tuple(images))
    cropped = dataclasses.replace(run, job=dataclasses.replace(run.job, scene=smaller))
    found, whole = list(render_training_views(cropped))[index], views[index]
    np.testing.assert_array_equal(found.blurred, whole.blurred[:15, :21])
    np.testing.assert_array_equal(found.blur.mask, whole.blur.mask[:8, :11])
    assert found.blur.mean_mask != whole.blur.mean_mask
    # Blocks that the border cuts are weighted by their share inside the photograph.
    np.testing.assert_allclose(found.blur.mean_mask, found.blur.mask.mean(), atol=0.05)


def test_kernels_are_rendered_at_the_scale_of_their_training(tmp_path):
    """Their widths are in px of the full-size photographs."""
    changes = {"stages.scales": (0.5,), "stages.stops": (1.0,), "blur.kernel_sizes": (3,), "blur.strides": (1,)}
    train(make_config(**changes, **{"blur.warmup": 0.0, "blur.centre_logit": 0.0}), tmp_path)
    view = next(render_training_views(open_run(tmp_path)))
    assert view.photo.shape == view.blurred.shape == (12, 16, 3) and view.blur.mask.shape == (12, 16)
    uniform = np.sqrt(2 * 2 / 3)  # 3 x 3 equal taps, in px at half scale; four training steps change them slightly
    np.testing.assert_allclose(view.blur.rms_width, 2 * uniform, rtol=0.2)


def test_a_capture_without_held_out_views(run):
    """Tables show "-" for all scores; rendering the held-out views raises an error."""
    scene = dataclasses.replace(run.scene, test_ids=run.scene.test_ids[:0])
    alone = dataclasses.replace(run, job=dataclasses.replace(run.job, scene=scene))
    assert all(format_scores(mean_scores({})[name]) == ["-", "-", "-"] for name in PROTOCOLS)
    with pytest.raises(UserError, match="no held-out views: expected --path=train"):
        render_path(alone, "test", num_frames=3)


def test_evaluation_restores_no_optimizer_state(run):
    assert run.state.gaussians_opt == run.state.network_opt == run.state.poses_opt == ()
    assert len(jax.tree.leaves(run.state.gaussians)) == 6 and run.state.network


# --- scores ----------------------------------------------------------------------------------------------------------


def test_results_have_the_documented_keys(workdir, results, run):
    assert json.loads((workdir / "results.json").read_text()) == results
    assert {"step", "deblur_nerf", "gaussian_splatting", "per_view"} <= results.keys() and results["step"] == 4
    no_truth = results["no_truth"]
    assert no_truth["has_blur_model"] and no_truth["reblur_PSNR"] > 3 and no_truth["held_out_fitted_PSNR"] > 3
    assert no_truth["sharpness_gain"] > 0
    assert set(no_truth["per_view"]["training"]) == {run.scene.names[i] for i in run.scene.train_ids}
    assert set(no_truth["per_view"]["held_out"]) == {run.scene.names[i] for i in run.scene.test_ids}
    assert set(results["per_view"]) == {run.scene.names[i] for i in run.scene.test_ids}
    for scores in (results, *results["per_view"].values()):
        for protocol in PROTOCOLS:
            assert set(scores[protocol]) == {"PSNR", "SSIM", "LPIPS"}
            assert 3 < scores[protocol]["PSNR"] < 60 and -1 <= scores[protocol]["SSIM"] <= 1
            assert scores[protocol]["LPIPS"] is None or scores[protocol]["LPIPS"] >= 0


def test_scores_are_means_over_the_held_out_views(results):
    for protocol in PROTOCOLS:
        for score in ("PSNR", "SSIM"):
            values = [view[protocol][score] for view in results["per_view"].values()]
            np.testing.assert_allclose(results[protocol][score], np.mean(values))


def test_scores_are_those_of_the_sharp_render(results, run):
    """The blur model is not applied to held-out views."""
    for i, rendered in zip(run.scene.test_ids, render_scene_views(run, run.scene.test_ids), strict=True):
        truth = run.scene.images[i] / 255.0
        scores = results["per_view"][run.scene.names[i]]
        assert abs(scores["gaussian_splatting"]["PSNR"] - psnr(np.asarray(rendered.image), truth)) < 1e-2


def test_aligned_psnr_is_compared_with_the_same_crop():
    """A border of noise lowers PSNR alone; a shift lowers the unshifted PSNR of the crop too."""
    key = np.random.default_rng(0)
    truth = np.asarray(Image.fromarray(key.integers(0, 256, (12, 16, 3), np.uint8)).resize((64, 48)))
    noisy = key.integers(0, 256, truth.shape, np.uint8)
    noisy[8:-8, 8:-8] = truth[8:-8, 8:-8]
    shifted = np.roll(truth, 1, axis=1)
    for picture, is_shifted in ((noisy, False), (shifted, True)):
        scores = score_view(picture.astype(np.float32) / 255, truth)
        aligned, unshifted = (scores["shift_aligned"][name] for name in ("PSNR", "unshifted_PSNR"))
        assert scores["deblur_nerf"]["PSNR"] < 30 and aligned > 60 and (unshifted < 30) is is_shifted
    small = score_view(truth[:20].astype(np.float32) / 255, truth[:20])["shift_aligned"]
    assert small == {"PSNR": None, "unshifted_PSNR": None, "shift_px": None}


def test_a_photograph_that_was_trained_on_is_not_scored(run, workdir, tmp_path):
    """Under another name, too; a run from before photographs were noted is scored."""
    copy = shutil.copytree(workdir, tmp_path / "copy")
    held_out, trained = run.scene.names[run.scene.test_ids[1]], run.scene.names[run.scene.train_ids[0]]
    noted = json.loads((copy / "photographs.json").read_text())
    assert list(noted) == [run.scene.names[i] for i in run.scene.train_ids]
    check_held_out(dataclasses.replace(run, workdir=copy))
    noted[trained] = hash_array(run.scene.images[run.scene.test_ids[1]])
    (copy / "photographs.json").write_text(json.dumps(noted))
    with pytest.raises(UserError, match=f"held-out photograph {held_out} was trained on as {trained}, .*: remove it"):
        evaluate(copy)
    assert (
        not (copy / "results.json").exists()
        or (copy / "results.json").read_bytes() == (workdir / "results.json").read_bytes()
    )
    (copy / "photographs.json").write_text("[]")
    with pytest.raises(UserError, match="photographs.json cannot be read"):
        check_held_out(dataclasses.replace(run, workdir=copy))
    (copy / "photographs.json").unlink()
    check_held_out(dataclasses.replace(run, workdir=copy))


def test_the_photograph_itself_scores_perfectly(run):
    truth = run.scene.images[run.scene.test_ids[0]]
    scores = score_view(truth.astype(np.float32) / 255.0, truth)
    assert all(scores[protocol]["SSIM"] > 0.9999 and scores[protocol]["PSNR"] > 60 for protocol in PROTOCOLS)


def test_chosen_step(workdir):
    assert int(open_run(workdir, step=2).state.step) == 2
    with pytest.raises(UserError, match="no checkpoint of step 3"):
        open_run(workdir, step=3)


def test_blur_is_estimated_by_the_head_of_the_last_trained_stage(workdir, run):
    """The heads of later stages still have their initial parameters."""
    early = open_run(workdir, step=2)
    first, last = early.job.stages[0], early.job.stages[-1]
    assert early.stage == first != last and run.stage == last and first.kernel_size < last.kernel_size
    for opened in (early, run):
        view = next(render_training_views(opened))
        height, width = opened.scene.images[opened.scene.train_ids[0]].shape[:2]
        assert view.photo.shape[:2] == scale_size(height, width, opened.stage.scale)
        assert view.blur.samples.kernels.shape[-1] == opened.stage.kernel_size


def test_scores_of_a_perfect_picture_are_finite(run):
    truth = run.scene.images[run.scene.test_ids[0]]
    scores = score_view((truth / 255.0).astype(np.float32), truth)
    assert np.isfinite([scores[protocol]["PSNR"] for protocol in PROTOCOLS]).all()


def test_opening_a_run_changes_no_file(workdir):
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    open_run(workdir)
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()} == before


# --- pictures --------------------------------------------------------------------------------------------------------


def test_blur_of_every_training_view_is_described(workdir, results, run):
    names = {run.scene.names[i] for i in run.scene.train_ids}
    text = (workdir / "blur" / "blur.json").read_text()
    for name in names:
        assert name in text
        stem = name.rsplit(".", 1)[0]
        for kind in ("mask", "kernels"):
            picture = np.asarray(Image.open(workdir / "blur" / f"{stem}_{kind}.png"))
            assert picture.min() < picture.max()
    for key in ("blur_px", "mean_mask", "direction_deg"):
        assert text.count(key) >= len(names)


def test_masks_are_small_at_the_start(workdir, results):
    found = []

    def walk(node):
        if isinstance(node, dict):
            found.extend([node["mean_mask"]] if "mean_mask" in node else [])
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else []:
            walk(child)

    walk(json.loads((workdir / "blur" / "blur.json").read_text()))
    assert len(found) == 4 and all(0.0 < mask < 0.5 for mask in found)  # kernels start as deltas


def test_pictures_of_held_out_views(workdir, results, run):
    for i in run.scene.test_ids:
        stem = run.scene.names[i].rsplit(".", 1)[0]
        assert np.asarray(Image.open(workdir / "eval" / f"{stem}.png")).shape == run.scene.images[i].shape
        assert (workdir / "eval" / f"{stem}_beside.png").is_file()


def test_plain_splatting_has_no_blur_to_describe(tmp_path):
    train(make_config(**{"blur.enabled": False}), tmp_path)
    results = evaluate(tmp_path)
    assert results["step"] == 4 and not results["no_truth"]["has_blur_model"]
    assert not (tmp_path / "blur").exists() and (tmp_path / "results.json").is_file()
    assert not (tmp_path / "photographs_deblurred").exists()
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Plain splatting" in page and page.count('class="view"') == 6 and "<canvas" not in page


# --- the report ------------------------------------------------------------------------------------------------------


def test_the_report_shows_every_view(workdir, results, run):
    page = (workdir / "report" / "index.html").read_text()
    assert page.count('class="view"') == len(run.scene.names) and page.count("<canvas") == len(run.scene.train_ids)
    assert all(name in page for name in run.scene.names)
    psnr = f"{results['deblur_nerf']['PSNR']:.2f}"
    assert psnr in page and f"{results['num_gaussians']:,}" in page and "num_steps" in page


def test_files_beside_the_report(workdir, results, run):
    for i in run.scene.train_ids:
        stem = run.scene.names[i].rsplit(".", 1)[0]
        sharp = np.asarray(Image.open(workdir / "photographs_deblurred" / f"{stem}.png"))
        assert sharp.shape == run.scene.images[i].shape
        assert Image.open(workdir / "blur" / f"{stem}.png").width > 3 * 480
    with open(workdir / "blur" / "blur.csv", newline="") as file:
        views = json.loads((workdir / "blur" / "blur.json").read_text())["views"]
        assert list(csv.DictReader(file)) == [{key: str(value) for key, value in view.items()} for view in views]
    with open(workdir / "results.csv", newline="") as file:
        rows = {row["view"]: row for row in csv.DictReader(file)}
    assert set(rows) == set(run.scene.names)
    for name, scores in results["per_view"].items():
        assert rows[name]["part"] == "held out" and rows[name]["reblur_PSNR"] == ""
        assert float(rows[name]["deblur_nerf_PSNR"]) == scores["deblur_nerf"]["PSNR"]
    for name, scores in results["no_truth"]["per_view"]["training"].items():
        assert rows[name]["part"] == "training" and float(rows[name]["reblur_PSNR"]) == scores["reblur_PSNR"]


def test_the_report_of_an_unusual_capture(run, workdir, results, tmp_path):
    """Photographs of several sizes, one of them upright, with markup in a name; no held-out view."""
    shutil.copy(workdir / "config.json", tmp_path)
    scene, first = run.scene, run.scene.train_ids[0]
    images, names = list(scene.images), list(scene.names)
    images[first], names[first] = images[first][:, :17], "<b>&\"'.png"
    unknown = {"test_ids": scene.test_ids[:0], "sharp_images": None, "blur_px": None}
    scene = dataclasses.replace(scene, images=tuple(images), names=tuple(names), **unknown)
    odd = dataclasses.replace(run, workdir=tmp_path, job=dataclasses.replace(run.job, scene=scene))
    training = evaluate_training_views(odd)
    summary = no_truth.summarize(training.scores, {}, has_blur_model=True)
    write_report(odd, {**results, **mean_scores({}), "no_truth": summary, "per_view": {}}, training, [])
    page = (tmp_path / "report" / "index.html").read_text()
    assert "no held-out views" in page and "aspect-ratio: 17 / 24" in page and "2 sizes" in page
    assert "&lt;b&gt;&amp;" in page and "<b>&" not in page
    assert (tmp_path / "blur" / "<b>&\"'.png").is_file()


@pytest.mark.parametrize(
    "height, width, side", [(84, 128, 9), (200, 300, 17), (300, 200, 17), (12, 16, 5), (84, 800, 5)]
)
def test_the_grid_of_kernels_has_nearly_square_cells(height, width, side):
    rows, columns = choose_grid(height, width, side=side)
    assert rows <= height and columns <= width and rows * columns * side**2 <= 150_000
    if rows < height and columns < width:
        assert 0.8 < (width / columns) / (height / rows) < 1.25


# --- the splat -------------------------------------------------------------------------------------------------------


def test_exported_splat_is_the_scene(run, tmp_path):
    """With the 3D filter baked in, a renderer without that filter draws the same picture."""
    path = tmp_path / "scene.ply"
    exported = export(run.workdir, path)
    count, saved = len(exported.gaussians.means), read_ply(path)
    assert count == len(saved.means) == int(jnp.sum(run.state.alive)) < run.state.alive.shape[0]
    first = run.scene.train_ids[0]
    ours = np.asarray(next(render_scene_views(run, [first])).image)
    height, width = ours.shape[:2]
    images, _, _ = rasterization(
        saved.means,
        saved.quats,
        jnp.exp(saved.log_scales),
        jax.nn.sigmoid(saved.logit_opacities),
        jnp.concatenate([saved.sh_dc, saved.sh_rest], axis=1),
        jnp.asarray(run.scene.viewmats[[first]] @ make_rigid(exported.rotation.T, np.zeros(3)), jnp.float32),
        jnp.asarray(run.scene.Ks[[first]]),
        width,
        height,
        sh_degree=1,
        backgrounds=jnp.asarray([run.scene.background]),
        near_plane=0.2,
        eps2d=0.1,
        rasterize_mode="antialiased",
    )
    assert ours.std() > 0.02  # the picture is not uniform
    assert psnr(np.asarray(images[0]), ours) > 40


@pytest.mark.parametrize(
    "names, stems",
    [
        (["a/b.jpg", "c.png"], ["a_b", "c"]),
        (["d.jpg", "d.png"], ["d.jpg", "d.png"]),
        (["e/f.png", "e_f.png"], ["0000_e_f.png", "0001_e_f.png"]),
        (["a.png", "a_beside.png"], ["a.png", "a_beside.png"]),
    ],
)
def test_pictures_of_different_views_have_different_names(names, stems):
    assert choose_file_stems(names) == dict(zip(names, stems, strict=True))


@pytest.mark.parametrize("path,count", [("test", 2), ("train", 4), ("spiral", 3), ("orbit", 3), ("interpolate", 3)])
def test_render_path(run, path, count):
    frames = [rendered.image for rendered in render_path(run, path, num_frames=3)]
    assert len(frames) == count
    assert all(frame.shape == (24, 32, 3) and np.isfinite(frame).all() for frame in frames)
