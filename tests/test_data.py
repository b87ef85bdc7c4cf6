"""load_scene: one synthetic rig, written in every format, is read as the same cameras and pixels."""

import json
import math
import pathlib
import pickle
import re

import captures
import numpy as np
import pytest
from captures import (
    CENTERS,
    COLORS,
    FOCAL,
    NAMES,
    POINTS,
    WRITERS,
    H,
    W,
    assert_refused,
    draw,
    expect_pixels,
    find_spots,
    make_frame,
    project,
    run_pycolmap,
    to_binary,
    write_blender,
    write_colmap,
    write_json,
    write_llff,
    write_nerfstudio,
    write_photos,
)
from PIL import Image

from bags_jax.data import load_scene

# --- geometry, the same for every format


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("writer", WRITERS)
def test_same_rig_in_every_format(tmp_path, writer, factor):
    write_photos(tmp_path / "images")
    WRITERS[writer](tmp_path)
    scene = load_scene(str(tmp_path), factor=factor)
    assert scene.names == NAMES and scene.notes == ()
    assert {image.shape for image in scene.images} == {(H // factor, W // factor, 3)}
    expected = expect_pixels() / factor
    np.testing.assert_allclose(project(scene), expected, atol=1e-3)  # float32 poses, 96 px
    for image, pixels in zip(scene.images, expected):  # photographs and cameras agree, half pixels included
        np.testing.assert_allclose(find_spots(image), pixels[:3], atol=0.05)
    np.testing.assert_array_equal(scene.test_ids, [0])
    np.testing.assert_array_equal(scene.train_ids, [1, 2, 3, 4, 5])
    if writer.startswith("colmap"):
        np.testing.assert_allclose(scene.points, POINTS, atol=1e-6)
        np.testing.assert_allclose(scene.point_colors, COLORS / 255, atol=1e-6)
    else:
        assert scene.points.shape == scene.point_colors.shape == (0, 3)


@pytest.mark.parametrize("model", ["sparse", "colmap/sparse/0"])
def test_colmap_model_in_other_folders(tmp_path, model):
    write_photos(tmp_path / "images")
    write_colmap(tmp_path, model=model)
    assert len(load_scene(str(tmp_path)).points) == len(POINTS)


def test_colmap_model_with_another_number(tmp_path):
    write_photos(tmp_path / "images")
    for number, names in ((10, NAMES[:3]), (2, NAMES)):
        write_colmap(tmp_path, model=f"sparse/{number}", names=names)
    scene = load_scene(str(tmp_path))
    assert scene.names == NAMES
    assert scene.notes == (f"COLMAP made 2 separate models: only {tmp_path / 'sparse' / '2'} is read",)


@pytest.mark.parametrize("binary", [False, True])
def test_note_names_a_larger_model(tmp_path, binary):
    write_photos(tmp_path / "images")
    for number, names in ((0, NAMES[:3]), (1, NAMES)):
        folder = write_colmap(tmp_path, model=f"sparse/{number}", names=names)
        if binary:
            to_binary(folder)
    (note,) = (note for note in load_scene(str(tmp_path), holdout=3).notes if "separate" in note)
    assert note.endswith(
        "only {} is read; 1 has more images: rename the folders to use it".format(tmp_path / "sparse/0")
    )


def test_auto_prefers_colmap_and_format_overrides_auto(tmp_path):
    write_photos(tmp_path / "images")
    write_colmap(tmp_path)
    write_llff(tmp_path)
    assert len(load_scene(str(tmp_path)).points) == len(POINTS)
    assert len(load_scene(str(tmp_path), format="llff").points) == 0


@pytest.mark.parametrize("bounds", [[2.0, 7.0], [0.0, 7.0], [3.0, 3.0], [2.0, np.inf]])
def test_llff_bounds_are_read_only_if_they_are_depths(tmp_path, bounds):
    write_photos(tmp_path / "images")
    write_llff(tmp_path)
    rows = np.load(tmp_path / "poses_bounds.npy")
    rows[:, 15:] = bounds
    np.save(tmp_path / "poses_bounds.npy", rows)
    depths = load_scene(str(tmp_path)).depths
    if bounds != [2.0, 7.0]:
        assert depths is None
    else:
        assert depths is not None
        np.testing.assert_array_equal(depths, np.tile(np.float32(bounds), (len(NAMES), 1)))


@pytest.mark.parametrize("train", [None, ["images/v0.png", "images/v1.png"]])
def test_views_for_validation_are_left_out(tmp_path, train):
    write_photos(tmp_path / "images")
    write_nerfstudio(tmp_path, val_filenames=["images/v2.png"], **({"train_filenames": train} if train else {}))
    assert "v2.png" not in load_scene(str(tmp_path)).names


def test_relative_root_and_home(tmp_path, monkeypatch):
    write_photos(tmp_path / "scene" / "images")
    write_nerfstudio(tmp_path / "scene")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_scene("scene").names == load_scene("~/scene").names == NAMES


@pytest.mark.parametrize("writer", ["colmap", "nerfstudio", "blender"])
def test_principal_point_and_two_focal_lengths(tmp_path, writer):
    f, c = (80.0, 70.0), (40.0, 36.0)
    write_photos(tmp_path / "images", expect_pixels(f=f, c=c))
    if writer == "colmap":
        write_colmap(tmp_path, camera=f"PINHOLE {W} {H} {f[0]} {f[1]} {c[0]} {c[1]}")
    elif writer == "nerfstudio":
        write_nerfstudio(tmp_path, fl_x=f[0], fl_y=f[1], cx=c[0], cy=c[1])
    else:  # intrinsics of a picture of twice the size
        write_blender(tmp_path, fl_x=2 * f[0], fl_y=2 * f[1], cx=2 * c[0], cy=2 * c[1], w=2 * W, h=2 * H)
    scene = load_scene(str(tmp_path))
    np.testing.assert_allclose(project(scene), expect_pixels(f=f, c=c), atol=1e-3)
    np.testing.assert_allclose(find_spots(scene.images[2]), expect_pixels(f=f, c=c)[2, :3], atol=0.05)


@pytest.mark.parametrize("file_name", ["transforms.json", "transforms_train.json"])
def test_two_camera_angles(tmp_path, file_name):
    f = (80.0, 75.0)
    write_photos(tmp_path / "images", expect_pixels(f=f))
    angles = {"camera_angle_x": 2 * math.atan(0.5 * W / f[0]), "camera_angle_y": 2 * math.atan(0.5 * H / f[1])}
    frames = [make_frame(i, f"images/{name}") for i, name in enumerate(NAMES)]
    write_json(tmp_path / file_name, {**angles, "frames": frames})
    np.testing.assert_allclose(project(load_scene(str(tmp_path))), expect_pixels(f=f), atol=1e-3)
    write_json(tmp_path / file_name, {**angles, "camera_angle_y": 4.0, "frames": frames})
    assert_refused(tmp_path, "camera_angle_y is 4.0")
    write_json(tmp_path / file_name, {**angles, "camera_angle_y": 2 * math.atan(0.5 * H / 53.0), "frames": frames})
    assert_refused(tmp_path, "pixels 1.51 times as high as wide .*remove camera_angle_y")


@pytest.mark.parametrize("writer", ["colmap text", "llff", "blender", "nerfstudio"])
def test_map_coordinates_survive_32_bits(tmp_path, writer, monkeypatch):
    expected, place = expect_pixels(), np.array([500_000.25, -4_000_000.5, 200.0])
    write_photos(tmp_path / "images")
    monkeypatch.setattr(captures, "CENTERS", CENTERS + place)
    monkeypatch.setattr(captures, "POINTS", POINTS + place)
    WRITERS[writer](tmp_path)
    scene = load_scene(str(tmp_path))
    moved = re.search(r"was moved: add \((.*)\) to", scene.notes[0])
    assert len(scene.notes) == 1 and moved
    points = POINTS + place - np.array([float(number) for number in moved.group(1).split(", ")])
    np.testing.assert_allclose(project(scene, points), expected, atol=1e-3)
    if writer.startswith("colmap"):
        np.testing.assert_allclose(scene.points, points, atol=1e-6)


@pytest.mark.parametrize("centers", [CENTERS + [300.0, 0.0, 0.0], np.tile([2.0, -0.3, 1.0], (len(NAMES), 1))])
def test_scene_or_tripod_near_the_origin_stays(tmp_path, centers, monkeypatch):
    write_photos(tmp_path / "images")
    monkeypatch.setattr(captures, "CENTERS", centers)
    frames = [make_frame(i, f"images/{name}") for i, name in enumerate(NAMES)]
    for each in frames:
        # With 6 digits the centres of a tripod's cameras differ by rounding.
        each["transform_matrix"] = np.round(each["transform_matrix"], 6).tolist()
    write_nerfstudio(tmp_path, frames=frames)
    assert load_scene(str(tmp_path)).notes == ()


def test_photographs_larger_than_the_model_with_another_suffix(tmp_path):
    big = expect_pixels() * 3
    names = [name.replace(".png", ".bmp") for name in NAMES]
    write_photos(tmp_path / "images", big, width=3 * W, height=3 * H, names=names)
    write_colmap(tmp_path)
    scene = load_scene(str(tmp_path))
    np.testing.assert_allclose(scene.Ks[0], [[240, 0, 144], [0, 240, 96], [0, 0, 1]])
    np.testing.assert_allclose(find_spots(scene.images[3]), big[3, :3], atol=0.05)
    assert scene.names == tuple(names)


def test_views_of_different_sizes(tmp_path):
    write_photos(tmp_path / "images")
    Image.fromarray(draw(expect_pixels()[1] * 2, width=2 * W, height=2 * H)).save(tmp_path / "images" / NAMES[1])
    write_colmap(tmp_path)
    scene = load_scene(str(tmp_path))
    assert [image.shape[1] for image in scene.images] == [W, 2 * W, W, W, W, W]
    np.testing.assert_allclose(project(scene)[1], expect_pixels()[1] * 2, atol=2e-3)


# --- lenses


def opencv_distortion(k1, k2, p1, p2):
    def distort(xy):
        x, y = xy[..., 0], xy[..., 1]
        r2 = x * x + y * y
        radial = 1 + k1 * r2 + k2 * r2 * r2
        return np.stack(
            [
                x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
                y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
            ],
            axis=-1,
        )

    return distort


def fisheye_distortion(k1):
    def distort(xy):
        r = np.linalg.norm(xy, axis=-1, keepdims=True)
        theta = np.arctan(r)
        return xy / r * theta * (1 + k1 * theta**2)

    return distort


LENSES = {
    "SIMPLE_RADIAL": (f"SIMPLE_RADIAL {W} {H} 80 48 32 0.3", opencv_distortion(0.3, 0, 0, 0)),
    "OPENCV": (f"OPENCV {W} {H} 80 80 48 32 0.2 -0.02 0.01 0.02", opencv_distortion(0.2, -0.02, 0.01, 0.02)),
    "OPENCV_FISHEYE": (f"OPENCV_FISHEYE {W} {H} 80 80 48 32 0.05 0 0 0", fisheye_distortion(0.05)),
}


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("lens", LENSES)
def test_distorting_lens_is_undistorted(tmp_path, lens, factor):
    camera, distort = LENSES[lens]
    write_photos(tmp_path / "images", expect_pixels(distort=distort))
    write_colmap(tmp_path, camera=camera)
    scene = load_scene(str(tmp_path), factor=factor)
    assert any("6 photographs were undistorted" in note for note in scene.notes)
    straight = expect_pixels()
    moved = np.abs(expect_pixels(distort=distort) - straight).max()
    assert moved > 0.3  # large enough for this test to fail if the lens is ignored
    for image, pixels in zip(scene.images, project(scene)):
        # 0.1: distortion stretches the spots, which moves their centres of mass.
        np.testing.assert_allclose(find_spots(image), pixels[:3], atol=0.1)


@pytest.mark.parametrize("writer", [write_nerfstudio, write_blender])
def test_lens_of_transforms_equals_lens_of_colmap(tmp_path, writer):
    camera, distort = LENSES["OPENCV"]
    for name in ("a", "b"):
        write_photos(tmp_path / name / "images", expect_pixels(distort=distort))
    write_colmap(tmp_path / "a", camera=camera)
    lens = {"camera_model": "OPENCV", "fl_x": FOCAL, "k1": 0.2, "k2": -0.02, "p1": 0.01, "p2": 0.02}
    writer(tmp_path / "b", **lens)
    a, b = load_scene(str(tmp_path / "a")), load_scene(str(tmp_path / "b"))
    np.testing.assert_allclose(a.Ks, b.Ks, rtol=1e-6)
    for image_a, image_b in zip(a.images, b.images):
        np.testing.assert_array_equal(image_a, image_b)


@pytest.mark.parametrize("camera", [f"SIMPLE_RADIAL {W} {H} 80 48 32 0", f"OPENCV {W} {H} 80 80 48 32 0 0 0 0"])
def test_zero_coefficients_are_a_pinhole(tmp_path, camera):
    write_photos(tmp_path / "images")
    write_colmap(tmp_path, camera=camera)
    scene = load_scene(str(tmp_path))
    assert scene.notes == () and scene.images[0].shape == (H, W, 3)  # undistortion trims the border
    np.testing.assert_array_equal(scene.images[0], draw(expect_pixels()[0]))


@pytest.mark.parametrize(
    "camera",
    [
        f"SIMPLE_RADIAL {W} {H} 80 48 32 1000",
        f"EQUIRECTANGULAR {W} {H} {W} {H}",
    ],
)
def test_lens_that_cannot_be_undistorted(tmp_path, camera):
    write_photos(tmp_path / "images")
    write_colmap(tmp_path, camera=camera)
    assert_refused(tmp_path, "cannot undistort the lens")


@pytest.mark.parametrize("size", [(H, W), (W, W)])
def test_rotated_or_cropped_photograph(tmp_path, size):
    write_photos(tmp_path / "images")
    Image.new("RGB", size).save(tmp_path / "images" / NAMES[1])
    write_colmap(tmp_path)
    assert_refused(tmp_path, f"{NAMES[1]} is {size[0]} x {size[1]} but its camera {W} x {H}")


# --- pictures


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_images_factor_folder_is_used(tmp_path, suffix):
    write_photos(tmp_path / "images")
    write_colmap(tmp_path)
    (tmp_path / "images_2").mkdir()
    for name in NAMES:
        Image.new("RGB", (W // 2, H // 2), (200, 200, 200)).save(
            tmp_path / "images_2" / name.replace("png", suffix), quality=100
        )
    scene = load_scene(str(tmp_path), factor=2)
    assert scene.names == NAMES and all((image == 200).all() for image in scene.images)
    (tmp_path / "images_2" / NAMES[0].replace("png", suffix)).unlink()
    scene = load_scene(str(tmp_path), factor=2)
    assert "images_2/ does not hold the same pictures" in scene.notes[0]
    assert scene.images[0].shape == (H // 2, W // 2, 3) and not (scene.images[1] == 200).all()


@pytest.mark.parametrize("size", [(W, H), (40, 40)])
def test_images_factor_folder_of_another_size_is_not_used(tmp_path, size):
    write_photos(tmp_path / "images")
    write_colmap(tmp_path)
    write_photos(tmp_path / "images_2", width=W // 2, height=H // 2)
    Image.new("RGB", size).save(tmp_path / "images_2" / NAMES[3])
    scene = load_scene(str(tmp_path), factor=2)
    assert "1 pictures of images_2/ are not 2 times smaller than those of images/: v3.png" in scene.notes[0]
    np.testing.assert_allclose(find_spots(scene.images[3]), expect_pixels()[3, :3] / 2, atol=0.05)


def test_images_factor_folder_may_fit_the_cameras_only(tmp_path):
    for folder in ("images", "images_2"):  # the photographs in images/ are small, too
        write_photos(tmp_path / folder, expect_pixels() / 2, width=W // 2, height=H // 2)
    write_colmap(tmp_path)
    scene = load_scene(str(tmp_path), factor=2)
    assert scene.notes == () and scene.images[0].shape == (H // 2, W // 2, 3)


def test_only_the_small_folder_exists(tmp_path):
    write_photos(tmp_path / "images_2", expect_pixels() / 2, width=W // 2, height=H // 2)
    write_colmap(tmp_path)
    scene = load_scene(str(tmp_path), factor=2)
    np.testing.assert_allclose(find_spots(scene.images[0]), project(scene)[0, :3], atol=0.05)
    assert scene.notes == ()
    assert_refused(tmp_path, "images/ is missing", factor=1)
    (tmp_path / "images_2").rename(tmp_path / "images_4")
    scene = load_scene(str(tmp_path), factor=4)
    assert scene.notes[0].startswith("6 pictures of images_4/ are not 4 times smaller than their cameras")
    np.testing.assert_allclose(find_spots(scene.images[0]), project(scene)[0, :3], atol=0.05)


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_area_average(tmp_path, factor):
    noise = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    write_photos(tmp_path / "images")
    Image.fromarray(noise).save(tmp_path / "images" / NAMES[0])
    write_nerfstudio(tmp_path)
    scene = load_scene(str(tmp_path), factor=factor)
    height, width = round(H / factor), round(W / factor)
    assert scene.images[0].shape == (height, width, 3)
    np.testing.assert_allclose(scene.Ks[0, 0], [FOCAL * width / W, 0, width / 2], rtol=1e-6)
    np.testing.assert_allclose(scene.Ks[0, 1], [0, FOCAL * height / H, height / 2], rtol=1e-6)
    np.testing.assert_allclose(scene.images[0].mean((0, 1)), noise.mean((0, 1)), atol=2.0)
    if H % factor == 0 and W % factor == 0:
        blocks = noise.reshape(height, factor, width, factor, 3).mean((1, 3))
        np.testing.assert_allclose(scene.images[0], blocks, atol=0.51)


def first_image(tmp_path, picture, **options):
    write_photos(tmp_path / "images")
    write_colmap(tmp_path)
    picture.save(tmp_path / "images" / NAMES[0])
    return load_scene(str(tmp_path), **options)


def test_transparent_pixels_show_the_background(tmp_path):
    rgba = np.zeros((H, W, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:, : W // 3, 3], rgba[:, W // 3 : 2 * W // 3, 3] = 255, 51
    scene = first_image(tmp_path, Image.fromarray(rgba), background=(0.0, 1.0, 0.5))
    assert scene.background == (0.0, 1.0, 0.5)
    assert scene.images[0][0, 0].tolist() == [200, 0, 0]
    assert scene.images[0][0, W // 2].tolist() == [40, 204, 102]
    assert scene.images[0][0, -1].tolist() == [0, 255, 128]


def test_sixteen_bit_gray(tmp_path):
    gray = np.linspace(0, 65535, H * W).round().astype(np.uint16).reshape(H, W)
    image = first_image(tmp_path, Image.fromarray(gray)).images[0]
    np.testing.assert_array_equal(image, np.repeat(np.rint(gray / 257)[..., None], 3, axis=-1))


@pytest.mark.parametrize("mode", ["L", "P", "LA", "1"])
def test_other_modes_convert(tmp_path, mode):
    image = first_image(tmp_path, Image.new("RGB", (W, H), (255, 255, 255)).convert(mode)).images[0]
    assert image.dtype == np.uint8 and (image == 255).all()


def test_picture_above_the_limit_of_pillow(tmp_path, monkeypatch, recwarn):
    for limit in (100, H * W - 1):  # Pillow raises above twice the limit and warns above the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert first_image(tmp_path, Image.new("RGB", (W, H), (9, 9, 9))).images[0].max() == 9
        assert limit == Image.MAX_IMAGE_PIXELS and not len(recwarn)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_exif_orientation_is_reported_not_applied(tmp_path, suffix):
    write_photos(tmp_path / "images")
    (tmp_path / "images" / NAMES[0]).unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = draw(expect_pixels()[0])
    Image.fromarray(picture).save(tmp_path / "images" / f"v0.{suffix}", exif=exif)
    write_nerfstudio(tmp_path, names=(f"v0.{suffix}",) + NAMES[1:])
    values = json.loads((tmp_path / "transforms.json").read_text())
    del values["w"], values["h"]  # the reader then takes the size from the file's header
    write_json(tmp_path / "transforms.json", values)
    scene = load_scene(str(tmp_path))
    np.testing.assert_array_equal(scene.images[0], picture)
    assert len(scene.notes) == 1 and "EXIF orientation is ignored" in scene.notes[0] and "v0" in scene.notes[0]
    np.testing.assert_allclose(project(scene)[0], expect_pixels()[0], atol=1e-3)


# --- the real scene


@pytest.fixture(scope="module")
def blurball():
    folder = pathlib.Path(__file__).parents[2] / "shared" / "data" / "blurball"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder


# Writes for each image of a model its name and its points: xyz, then their pixel.
OBSERVATIONS = """
import pathlib, pickle, pycolmap, sys
model = pycolmap.Reconstruction(sys.argv[1])
observations = {
    image.name: [
        (*model.points3D[point.point3D_id].xyz.tolist(), *point.xy.tolist())
        for point in image.points2D if point.has_point3D()
    ]
    for image in model.images.values()
}
pathlib.Path(sys.argv[2]).write_bytes(pickle.dumps(observations))
"""


def test_blurball(blurball, tmp_path):
    scene = load_scene(str(blurball), factor=4)
    assert len(scene.names) == 27 and scene.names[0] == "000.jpg" and scene.notes == ()
    assert scene.test_ids.tolist() == [0, 7, 14, 21] and len(scene.train_ids) == 23
    assert scene.points.shape == (1867, 3) and 0 <= scene.point_colors.min() < scene.point_colors.max() <= 1
    assert {image.shape for image in scene.images} == {(400, 600, 3)}
    # The pictures of images_4/, not a reduction of those of images/.
    np.testing.assert_array_equal(scene.images[5], np.asarray(Image.open(blurball / "images_4" / "005.png")))
    run_pycolmap(OBSERVATIONS, blurball / "sparse" / "0", tmp_path / "observations")
    errors = []
    for name, rows in pickle.loads((tmp_path / "observations").read_bytes()).items():
        view = scene.names.index(name.replace("png", "jpg"))
        rows = np.array(rows)
        errors.append(np.linalg.norm(project(scene, rows[:, :3])[view] - rows[:, 3:], axis=1))
    assert len(errors) == 27
    assert np.median(np.concatenate(errors)) < 2.0


def test_blurball_factor_8_in_both_formats(blurball):
    scene = load_scene(str(blurball), factor=8)
    assert {image.shape for image in scene.images} == {(200, 300, 3)}
    np.testing.assert_allclose(scene.Ks[0], [[210.55, 0, 150], [0, 210.55, 100], [0, 0, 1]], atol=0.01)
    # The scene's poses_bounds.npy was made from its COLMAP model: an independent check of LLFF's axes.
    llff = load_scene(str(blurball), factor=8, format="llff")
    np.testing.assert_allclose(llff.viewmats, scene.viewmats, atol=1e-5)
    np.testing.assert_allclose(llff.Ks, scene.Ks, rtol=1e-5)
