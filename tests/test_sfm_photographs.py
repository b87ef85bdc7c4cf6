"""Photographs as cameras leave them: directly in a folder, rotated by EXIF, HEIC, of several cameras."""

import json
import os
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from bags_jax.data.images import read_photos
from bags_jax.errors import UserError
from bags_jax.sfm import client
from bags_jax.sfm.capture_folder import find_source, make_capture
from bags_jax.sfm.lost import Pair, explain_losses, is_without_parallax
from bags_jax.sfm.photographs import copy_upright, describe_cameras, group_by_camera, list_sources
from bags_jax.sfm.temporary import open_temporary
from bags_jax.synthetic import make_scene

HEIC = pathlib.Path(__file__).parent / "golden" / "upright.heic"
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def images():
    scene = make_scene("none", width=320, height=208, num_train=12, num_test=0, num_points=0)
    return [np.asarray(image) for image in scene.images][:8]


def save(path, image, *, orientation=1, model="Phone", focal=4.2, focal_35=39):
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x0110] = orientation, model
    details = exif.get_ifd(0x8769)
    details[0x920A], details[0xA405] = focal, focal_35
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, exif=exif, quality=95, subsampling=0)


def read(path, size):
    (image,), _ = read_photos([path], root=path.parent, camera_sizes=[size])
    return image


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_rotated_photographs_become_upright(images, tmp_path, suffix):
    """A camera held upright stores turned pixels and says so. Training reads the pixels that the poses belong to."""
    save(tmp_path / "in" / f"tall.{suffix}", np.rot90(images[0], 1), orientation=6)
    save(tmp_path / "in" / f"wide.{suffix}", images[1])
    (note,) = copy_upright(list_sources(tmp_path / "in"), tmp_path / "out")
    assert note == f"1 photographs were turned upright, as their EXIF says: tall.{suffix}"
    upright = read(tmp_path / "out" / f"tall.{suffix}", (320, 208))
    assert upright.shape == images[0].shape and np.abs(upright.astype(int) - images[0]).mean() < 3
    assert (tmp_path / "out" / f"wide.{suffix}").read_bytes() == (tmp_path / "in" / f"wide.{suffix}").read_bytes()
    with Image.open(tmp_path / "out" / f"tall.{suffix}") as photo:
        assert photo.getexif().get(ORIENTATION, 1) == 1 and photo.getexif().get_ifd(0x8769)[0x920A] == 4.2


def test_photographs_directly_in_a_folder(images, tmp_path):
    """Names with a space, focal length by EXIF, two cameras; the folder itself is not changed."""
    folder = tmp_path / "my holiday"
    for number, image in enumerate(images):
        if number == 7:
            save(folder / "b cam" / "last one.jpg", image[::2, ::2], model="Other")
        else:
            save(folder / f"photo {number}.jpg", image, focal_35=39)
    before = sorted(folder.rglob("*"))
    lines = []
    found = make_capture(folder, tmp_path / "capture", report=lines.append)
    assert len(found.posed_names) >= 7 and found.num_known_focals == 8 and found.num_pairs == 28
    assert sorted(folder.rglob("*")) == before
    assert {path.name for path in (tmp_path / "capture").iterdir()} == {"images", "sparse", "sfm.json"}
    assert any(line.startswith("note: the photographs are of 2 cameras") and "Other" in line for line in lines)
    with pytest.raises(UserError, match="camera poses already: nothing was changed"):
        make_capture(folder, tmp_path / "capture")


def test_masks_come_along_and_hide_features(images, tmp_path):
    """Beside photographs that lie directly in the folder; turned as EXIF turns its photograph; none at black."""
    for number, image in enumerate(images):
        save(
            tmp_path / "in" / f"{number}.jpg",
            np.rot90(image) if number == 0 else image,
            orientation=1 + 5 * (number == 0),
        )
    left = np.zeros((208, 320), np.uint8)
    left[:, :160] = 255
    (tmp_path / "in" / "masks").mkdir()
    Image.fromarray(np.rot90(left)).save(tmp_path / "in" / "masks" / "0.png")
    for number in range(1, 7):
        Image.fromarray(left).save(tmp_path / "in" / "masks" / f"{number}.jpg.png")  # as COLMAP names them; 7 has none
    lines, out = [], tmp_path / "out"
    found = make_capture(tmp_path / "in", out, report=lines.append)
    assert any("7 masks" in line for line in lines) and len(found.posed_names) >= 6
    assert {path.name for path in out.iterdir()} == {"images", "masks", "sparse", "sfm.json"}
    assert len(list((out / "images").iterdir())) == 8
    np.testing.assert_array_equal(np.asarray(Image.open(out / "masks" / "0.jpg.png")), left)
    counts = []
    for number, masks in enumerate((str(out / "masks"), "")):
        database = str(tmp_path / f"{number}.db")
        client.call("extract_features", database, str(out / "images"), masks, ["1.jpg"], 800, -1)
        counts.append(client.call("read_photographs", database)["1.jpg"][0])
    assert 0 < counts[0] < 0.75 * counts[1]


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / ".sfm_999999999_x" / "images").mkdir(parents=True)
    (tmp_path / f".sfm_{os.getpid()}_y").mkdir()
    with open_temporary(tmp_path) as folder:
        assert folder.is_dir() and {path.name for path in tmp_path.iterdir()} == {folder.name, f".sfm_{os.getpid()}_y"}
    assert not folder.exists()


def test_cameras_differ_by_size_model_and_zoom(images, tmp_path):
    for name, options in {"a": {}, "b": {}, "c": {"focal": 9.0}, "d": {"model": "Other"}}.items():
        save(tmp_path / f"{name}.jpg", images[0], **options)
    groups = group_by_camera(list_sources(tmp_path))
    assert [group.names for group in groups] == [("a.jpg", "b.jpg"), ("c.jpg",), ("d.jpg",)]
    (note,) = describe_cameras(groups)
    assert "3 cameras or zooms" in note and "2 of 320 x 208 px (Phone 4.2 mm)" in note
    assert not describe_cameras(groups[:1])


def test_heic_becomes_jpeg(tmp_path):
    pytest.importorskip("pi_heif")
    (tmp_path / "IMG_1.HEIC").write_bytes(HEIC.read_bytes())
    (note,) = copy_upright(list_sources(tmp_path), tmp_path / "out")
    assert "1 HEIC photographs were converted to JPEG: IMG_1.HEIC" in note
    image = read(tmp_path / "out" / "IMG_1.jpg", (64, 48))
    assert image.shape == (48, 64, 3)
    assert image[8, 8, 0] > 180 and image[8, 8, 2] < 100 and image[40, 56, 2] > 180  # red top left, blue bottom right


def test_heic_without_its_library(tmp_path, monkeypatch):
    for number in range(3):
        (tmp_path / "in" / f"{number}.heic").parent.mkdir(exist_ok=True)
        (tmp_path / "in" / f"{number}.heic").write_bytes(HEIC.read_bytes())
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with pytest.raises(UserError, match=r"HEIC, which needs pi-heif: pip install 'bags-jax\[heic\]'"):
        make_capture(tmp_path / "in", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    (tmp_path / "images").symlink_to(tmp_path / "in")
    with pytest.raises(UserError, match="3 photographs are HEIC, .* name a folder .* with --output"):
        make_capture(tmp_path)


def test_two_files_of_one_name(images, tmp_path):
    save(tmp_path / "a.jpg", images[0])
    (tmp_path / "a.heic").write_bytes(HEIC.read_bytes())
    with pytest.raises(UserError, match=r"a.heic, a.jpg would get the same name as JPEG"):
        copy_upright(list_sources(tmp_path), tmp_path / "out")


@pytest.mark.parametrize("num,said", [(0, "0 photographs"), (1, "1 photographs"), (2, "expected 3 or more")])
def test_too_few_photographs(images, tmp_path, num, said):
    (tmp_path / "in").mkdir()
    for number in range(num):
        save(tmp_path / "in" / f"{number}.jpg", images[0])
    with pytest.raises(UserError, match=said):
        make_capture(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sources_that_are_none(images, tmp_path):
    save(tmp_path / "one.jpg", images[0])
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "walk.MOV").write_bytes(b"x")
    with pytest.raises(UserError, match="is one photograph: expected a folder"):
        find_source(tmp_path / "one.jpg")
    with pytest.raises(UserError, match="is no video"):
        find_source(tmp_path / "text.txt")
    with pytest.raises(UserError, match=r"1 photographs .*give the path of the video \(.*walk.MOV\)"):
        find_source(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        find_source(tmp_path / "nowhere")


def test_output_must_be_named_and_free(images, tmp_path):
    for number in range(3):
        save(tmp_path / "in" / f"{number}.jpg", images[number])
    with pytest.raises(UserError, match="--output is missing"):
        make_capture(tmp_path / "in")
    save(tmp_path / "out" / "images" / "mine.jpg", images[0])
    with pytest.raises(UserError, match="were not made from"):
        make_capture(tmp_path / "in", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*.*")] == ["mine.jpg"]


def test_interrupted_work_is_cleaned_up_and_goes_on(images, tmp_path, monkeypatch):
    for number, image in enumerate(images):
        save(tmp_path / "in" / f"{number}.jpg", image)
    work = client.call

    def interrupt(operation, *arguments, **options):
        if operation == "match_pairs":
            raise KeyboardInterrupt
        return work(operation, *arguments, **options)

    monkeypatch.setattr(client, "call", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_capture(tmp_path / "in", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"images", "sfm.json"}
    assert json.loads((tmp_path / "out" / "sfm.json").read_text())["photographs"] == len(images)
    monkeypatch.undo()
    lines = []
    assert len(make_capture(tmp_path / "in", tmp_path / "out", report=lines.append).posed_names) >= 7
    assert any("photographs of an earlier call are used" in line for line in lines)


def test_reasons_of_losses():
    usual = dict.fromkeys("abcd", 1000)
    features = {**usual, "blurred": 20, "alone": 900, "apart1": 900, "apart2": 900, "moving": 800}
    pairs = [Pair("a", "b", 400, "UNCALIBRATED"), Pair("alone", "a", 16, "UNCALIBRATED")]
    pairs += [Pair("apart1", "apart2", 300, "UNCALIBRATED"), Pair("moving", "a", 90, "UNCALIBRATED")]
    lost = ["alone", "apart1", "apart2", "blurred", "broken", "moving"]
    reasons = explain_losses(lost, features, pairs, [["apart1", "apart2", "x"]])
    words = {name: reason for reason, names in reasons.items() for name in names}
    assert words["blurred"].startswith("too blurred or too plain") and "about 1000" in words["blurred"]
    assert words["alone"].startswith("too few matches") and words["broken"] == "cannot be read as pictures"
    assert words["apart1"] == words["apart2"] and words["apart1"].startswith("connected with each other only")
    assert words["moving"].startswith("their matches fit no position")


def test_parallax():
    flat, deep = Pair("a", "b", 90, "PLANAR_OR_PANORAMIC"), Pair("a", "c", 90, "UNCALIBRATED")
    assert is_without_parallax([flat] * 40) and not is_without_parallax([flat] * 40 + [deep] * 10)
    assert not is_without_parallax([])
