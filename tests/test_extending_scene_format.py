"""docs/extending_scene_format.md: the code of the page works, as it is printed there."""

import importlib.util
import pathlib
import re
import runpy

import captures
import numpy as np
import pytest
from captures import CENTERS, DOWN, FOCAL, FORWARD, NAMES, RIGHT, H, W
from PIL import Image
from scipy.spatial.transform import Rotation

from bags_jax.data import formats, load_scene

PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "extending_scene_format.md").read_text()


def read_block(caption):
    """Returns the text of a code block of the page."""
    (text,) = re.findall(rf"```\{{code-block\}} \w+\n:caption: {re.escape(caption)}\n\n(.*?)```", PAGE, flags=re.DOTALL)
    return text


@pytest.fixture
def csv_format(tmp_path, monkeypatch):
    """Adds the page's format to the table."""
    path = tmp_path / "csv_cameras.py"
    path.write_text(read_block("bags_jax/data/csv_cameras.py"))
    spec = importlib.util.spec_from_file_location("csv_cameras", path)
    csv_cameras = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(csv_cameras)
    lines = eval(f"({read_block('bags_jax/data/formats.py')})", {"Format": formats.Format, "csv_cameras": csv_cameras})
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, *lines))
    return csv_cameras


def test_result_is_the_output_on_the_page(csv_format, tmp_path, monkeypatch, capsys):
    root = tmp_path / "my_capture"
    (root / "images").mkdir(parents=True)
    (root / "cameras.csv").write_text(read_block("cameras.csv"))
    for name in ("left", "middle", "right"):
        Image.new("RGB", (96, 64)).save(root / "images" / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text(read_block("In a script"))
    runpy.run_path("script.py")
    assert capsys.readouterr().out == read_block("Its output")


@pytest.mark.parametrize("format", ["auto", "csv"])
@pytest.mark.parametrize("factor", [1, 2])
def test_rig_is_read_as_the_same_cameras(csv_format, tmp_path, format, factor):
    root = tmp_path / "scene"
    captures.write_photos(root / "images")
    rows = []
    for name, center, *axes in zip(NAMES, CENTERS, RIGHT, DOWN, FORWARD):
        vector = Rotation.from_matrix(np.stack(axes, axis=1)).as_rotvec()
        rows.append((name, W, H, FOCAL, *center, *vector))
    rows = [("file", *csv_format.COLUMNS), *reversed(rows)]  # load_scene sorts the views
    (root / "cameras.csv").write_text("\n".join(",".join(map(str, row)) for row in rows))
    scene = load_scene(root, format=format, factor=factor)
    assert scene.names == NAMES and scene.notes == ()
    np.testing.assert_allclose(captures.project(scene), captures.expect_pixels() / factor, atol=1e-3)


def test_bad_input_is_a_user_error(csv_format, tmp_path):
    root = tmp_path / "scene"
    captures.write_photos(root / "images")
    captures.assert_refused(root, "cameras.csv is missing: expected the columns file, width", format="csv")
    (root / "cameras.csv").write_text("file,width\nv0.png,wide\n")
    captures.assert_refused(root, "cannot read .*cameras.csv")
    (root / "cameras.csv").write_text(read_block("cameras.csv"))
    captures.assert_refused(root, "names no photograph of")
    captures.assert_refused(root, "expected one of auto, .*, csv", format="splat")
