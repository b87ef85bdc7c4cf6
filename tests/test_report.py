import csv
import json

import numpy as np
import pytest
from PIL import Image

from bags_jax.errors import UserError
from bags_jax.report.blur_pictures import draw_kernels, draw_mask, rank_views, write_blur_files
from bags_jax.report.colors import colorize
from bags_jax.report.pictures import enlarge, make_contact_sheet, to_uint8, write_png, zoom
from bags_jax.report.tables import SCORES, format_scores, markdown_table


def flat(color, height=20, width=30) -> np.ndarray:
    return np.full((height, width, 3), color, np.uint8)


def test_png_stores_rounded_pixels_and_replaces_the_old_file(tmp_path):
    path = tmp_path / "new" / "a.png"
    write_png(path, flat(7))
    picture = np.random.default_rng(0).uniform(-0.2, 1.2, (5, 6, 3))
    write_png(path, picture)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), np.round(np.clip(picture, 0, 1) * 255))
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    "picture, says",
    [
        (np.full((4, 4, 3), np.nan), "48 NaN"),
        (np.zeros((4, 4)), r"expected \(H, W, 3\)"),
        (np.zeros((0, 4, 3)), "at least one pixel"),
        (np.zeros((4, 4, 3), np.int32), "dtype int32"),
    ],
)
def test_invalid_pictures_raise_errors(tmp_path, picture, says):
    convert = getattr(to_uint8, "__wrapped__", to_uint8)  # without the shape checks that only tests install
    with pytest.raises(UserError, match=says):
        convert(picture)


def test_png_paths_are_checked(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="ends in .png"):
        write_png(tmp_path / "a.jpg", flat(0))
    with pytest.raises(UserError, match="expected a folder that can be written"):
        write_png(tmp_path / "file" / "a.png", flat(0))


def test_enlarge_and_zoom():
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    np.testing.assert_array_equal(enlarge(picture, 3, smooth=False), picture.repeat(3, axis=0).repeat(3, axis=1))
    assert enlarge(picture, 2).shape == (12, 16, 3)
    np.testing.assert_array_equal(enlarge(picture, 1), picture)
    np.testing.assert_array_equal(zoom(picture, box_px=(5, 1, 3, 2), scale=2)[::2, ::2], picture[1:3, 5:8])
    with pytest.raises(UserError, match="leaves a picture"):
        zoom(picture, box_px=(6, 1, 3, 2))
    with pytest.raises(UserError, match="scale is 0"):
        enlarge(picture, 0)


def test_sheet_shows_every_picture_complete_and_at_its_place():
    colors = [[(255, 0, 0), (0, 255, 0), (0, 0, 255)], [(255, 255, 0), (0, 255, 255), (255, 0, 255)]]
    rows = [[flat(color) for color in row] for row in colors]
    titles = {
        "column_titles": ["photo", "BAGS", "sharp"],
        "row_titles": ["a", "b"],
        "captions": [["1 dB", "", "x"]] * 2,
    }
    for sheet in (make_contact_sheet(rows, scale=2), make_contact_sheet(rows, scale=2, smooth=False, **titles)):
        assert sheet.dtype == np.uint8 and np.all(sheet[:5] == 255) and np.all(sheet[:, -5:] == 255)
        centres = {}
        for row in range(2):
            for column in range(3):
                where = np.argwhere(np.all(sheet == colors[row][column], axis=-1))
                assert len(where) == 40 * 60  # all pixels, enlarged
                centres[row, column] = where.mean(axis=0)
        assert centres[0, 0][0] == centres[0, 2][0] < centres[1, 0][0]
        assert centres[0, 0][1] == centres[1, 0][1] < centres[0, 1][1] < centres[0, 2][1]


def test_sheet_draws_titles_and_shortens_long_ones():
    rows = [[flat(250), flat(250)]]
    bare, titled = (
        make_contact_sheet(rows),
        make_contact_sheet(rows, column_titles=["photo", "w" * 300], row_titles=["v"]),
    )
    assert bare.min() == 250 and titled.min() < 60
    # A long title does not reach the edges or the gap between the columns.
    ink = np.argwhere(titled.min(axis=-1) < 200)
    assert ink.min() >= 20 and np.all(ink.max(axis=0) < np.asarray(titled.shape[:2]) - 20)


def test_sheet_accepts_pictures_of_different_sizes_and_rejects_bad_grids():
    sheet = make_contact_sheet([[flat((255, 0, 0), 10, 10), flat((0, 0, 255), 30, 40)]])
    assert np.sum(np.all(sheet == (255, 0, 0), axis=-1)) == 100
    with pytest.raises(UserError, match=r"rows of \[2, 1\]"):
        make_contact_sheet([[flat(0), flat(0)], [flat(0)]])
    with pytest.raises(UserError, match="rows of"):
        make_contact_sheet([])
    with pytest.raises(UserError, match="column_titles"):
        make_contact_sheet([[flat(0)]], column_titles=["a", "b"])
    with pytest.raises(UserError, match="captions"):
        make_contact_sheet([[flat(0), flat(0)]], captions=[["a"]])


def test_table_aligns_and_escapes():
    scores = [(26.704, 0.8237, 0.0964), (float("inf"), 1.0, None)]
    table = markdown_table(
        ["scene", "PSNR", "SSIM", "LPIPS"],
        [[n, *format_scores(dict(zip(SCORES, s)))] for n, s in zip(["blur|ball", "b"], scores)],
    )
    assert table.splitlines() == [
        "| scene      |  PSNR |  SSIM | LPIPS |",
        "| ---------- | ----: | ----: | ----: |",
        r"| blur\|ball | 26.70 | 0.824 | 0.096 |",
        "| b          |   inf | 1.000 |     - |",
    ]
    assert markdown_table(["a"], []).splitlines() == ["| a   |", "| --- |"]
    with pytest.raises(UserError, match="2 cells"):
        markdown_table(["a"], [["b", "c"]])


def test_kernels_are_drawn_unflipped_and_share_one_scale():
    """The square root of the heaviest tap of all: faint far taps show, and a faint kernel looks faint."""
    kernels = np.zeros((2, 3, 5, 5))
    kernels[0, 0, 2, 2] = 1.0
    kernels[1, 2, 0, 4] = 0.25  # top right
    kernels[1, 2, 4, 0] = 0.01
    sheet = draw_kernels(kernels, cell_px=50, gap_px=2).astype(int).sum(axis=-1)
    assert sheet.shape == (2 * 52 + 2, 3 * 52 + 2)
    assert np.all(sheet[:2] == 765) and np.all(sheet[:, 52:54] == 765)
    cells = {(r, c): sheet[2 + 52 * r : 52 + 52 * r, 2 + 52 * c : 52 + 52 * c] for r in range(2) for c in range(3)}
    assert cells[0, 0][24, 24] == cells[0, 0].max() > 650
    half, tenth = (colorize(np.array([x])).astype(int).sum() for x in (0.5, 0.1))
    assert abs(cells[1, 2][4, 45] - half) < 40 and abs(cells[1, 2][45, 4] - tenth) < 40
    assert cells[1, 2][24, 24] < 60
    assert cells[0, 1].max() < 60  # an all-zero kernel is dark
    assert draw_kernels(np.zeros((1, 1, 3, 3))).max() == 255  # no division by zero
    for bad, says in ((-kernels, "at least 0"), (kernels * np.nan, "NaN"), (np.zeros((0, 1, 3, 3)), "none of them 0")):
        with pytest.raises(UserError, match=says):
            draw_kernels(bad)


def test_mask_colours_have_even_steps_in_lightness():
    picture = draw_mask(np.linspace(0, 1, 101)[None])
    assert picture.shape == (1, 101, 3)
    lightness = np.cbrt((picture[0] / 255.0) ** 2.2 @ [0.2126, 0.7152, 0.0722])
    steps = np.diff(lightness)
    assert np.all(steps > 0) and steps.max() < 3 * steps.min() + 0.01
    with pytest.raises(UserError, match="after the sigmoid"):
        draw_mask(np.full((2, 2), 1.5))


def test_views_are_ranked_from_the_blurriest_and_written(tmp_path):
    stats = {
        "sharp.png": {"blur_px": 0.5, "mean_mask": 0.1, "direction_deg": 0.0},
        "worst.png": {"blur_px": np.float32(2.0), "mean_mask": 0.5, "direction_deg": 30.0},
        "also.png": {"blur_px": 0.5, "mean_mask": 0.25, "direction_deg": -90.0},
    }
    ranked = rank_views(stats)
    assert [(view["rank"], view["name"]) for view in ranked] == [(1, "worst.png"), (2, "also.png"), (3, "sharp.png")]
    assert ranked[0]["blur_px"] == 2.0 and ranked[0]["direction_deg"] == 30.0
    write_blur_files(tmp_path / "new", stats)
    assert json.loads((tmp_path / "new" / "blur.json").read_text())["views"] == ranked
    with open(tmp_path / "new" / "blur.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["worst.png", "also.png", "sharp.png"]
    assert [float(row["blur_px"]) for row in rows] == [view["blur_px"] for view in ranked]
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["blur.csv", "blur.json"]
    with pytest.raises(UserError, match="'a' lack a finite blur_px"):
        rank_views({"a": {"mean_mask": 0.1, "blur_px": float("nan"), "direction_deg": 0.0}})
