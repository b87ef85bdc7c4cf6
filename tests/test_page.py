"""The report: what stands on the page, that it needs nothing else, and that it works in a browser."""

import dataclasses
import html.parser
import io
import json
import os
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from bags_jax.report import embed, facts
from bags_jax.report.camera_map import MapView, draw_map
from bags_jax.report.charts import draw_chart, format_number, linear_ticks, log_ticks
from bags_jax.report.contents import RANKED_BY_BLUR, RANKED_BY_PSNR, list_charts, list_held_out, list_photographs
from bags_jax.report.history import Series, read_seconds, read_series
from bags_jax.report.page import Page, describe_kernels, make_held_out_view, make_training_view, render_page, write_page
from bags_jax.report.sheets import draw_blur_sheet
from bags_jax.report.views import HeldOutPictures, KernelGrid, TrainingPictures, ViewBlur, choose_full_weight
from bags_jax.settings import Settings
from tests.chromium import Chromium, find_chromium

NASTY = "<img src=x onerror=alert(1)> & \"q\" 'a' {{ 7 * 7 }}.png"
SIZES = ((40, 60), (60, 40), (33, 50))  # height and width of the photographs


def make_grid(rows=4, columns=6, side=5, seed=0) -> KernelGrid:
    rng = np.random.default_rng(seed)
    kernels = rng.dirichlet(np.ones(side * side), (rows, columns)).reshape(rows, columns, side, side)
    masks, widths, directions = rng.uniform(0.2, 1, (3, rows, columns))
    return KernelGrid(kernels, masks, 3 * widths, 180 * directions, px_per_tap=1.0)


def make_pictures(name: str, size: tuple[int, int], seed: int, *, is_blurred: bool = True) -> TrainingPictures:
    rng = np.random.default_rng(seed)
    photo, sharp, blurred = rng.integers(0, 256, (3, *size, 3), np.uint8)
    reach = rng.uniform(0, 3, (size[0] // 2, size[1] // 2))
    return TrainingPictures(name, photo, sharp, blurred, ViewBlur(make_grid(seed=seed), reach) if is_blurred else None)


def make_page(*, is_blurred=True, num_held_out=2, has_logs=True, names=(NASTY, "b.png", "c.png"), sizes=SIZES) -> Page:
    """A page of random pictures of several sizes."""
    views, scores, blurs = [], {}, {}
    for seed, (name, size) in enumerate(zip(names, sizes, strict=True)):
        pictures = make_pictures(name, size, seed, is_blurred=is_blurred)
        in_place = pictures.photo if is_blurred else None
        views.append(make_training_view(pictures, in_place, limit_px=3.0, num_views=len(names), area=10**6))
        scores[name] = {"reblur_PSNR": 30.0 - seed, "sharpness_gain": None if seed else 1.5}
        blurs[name] = {"rank": seed + 1, "blur_px": 2.0 - seed / 10, "mean_mask": 0.9}
        blurs[name] |= {"name": name, "direction_deg": 12.0}
    pictures = [HeldOutPictures(f"h{i}<", *np.zeros((2, *SIZES[i], 3), np.uint8)) for i in range(num_held_out)]
    shown = [make_held_out_view(view, area=10**6) for view in pictures]
    protocols = {name: {"PSNR": 25.0, "SSIM": 0.9, "LPIPS": None} for name in ("deblur_nerf", "gaussian_splatting")}
    per_view = {view.name: {**protocols, "shift_aligned": {"PSNR": None, "unshifted_PSNR": None}} for view in shown}
    held_out = list_held_out(shown, per_view, {view.name: {"fitted_PSNR": 26.0} for view in shown})
    photographs = list_photographs(views, scores, list(blurs.values()) if is_blurred else [])
    links = {entry.view.name: entry.anchor for entry in photographs}
    viewmats = {name: place_camera(i, 0, 0) for i, name in enumerate(names)}
    cameras = [MapView(name, viewmat, 1.0, links[name]) for name, viewmat in viewmats.items()]
    series = {"psnr": Series("psnr", (10, 20), (20.0, 25.0)), "l1": Series("l1", (10, 20), (0.2, 0.1))}
    return Page(
        title="run <1>",
        subtitle="a & b",
        scores=[["Deblur-NeRF", "25.00", "0.900", "-"], ["After the best sub-pixel shift", "25.50", "", ""]],
        no_truth=[["re-blur PSNR", "30.00 dB", "a > b"]],
        with_truth=[["mask against the truth", "0.987", "c > d"]],
        facts=[("Gaussians", "5,000"), ("Capture", NASTY)],
        settings=facts.list_settings(dataclasses.replace(Settings(), num_steps=20)),
        software=[("jax", "1 <2>")],
        photographs=photographs,
        held_out=held_out,
        ranking=RANKED_BY_BLUR if is_blurred else RANKED_BY_PSNR,
        charts=list_charts(series, num_steps=20, starts=[0, 5]) if has_logs else [],
        stages=["scale 1, kernel 5: steps 0 to 20"],
        cameras=draw_map(cameras, np.zeros((0, 3)), width=300),
        limit_px=3.0,
        has_blur_model=is_blurred,
    )


def place_camera(x: float, y: float, z: float) -> np.ndarray:
    """cam_from_world of a camera that looks along +z, +y down."""
    viewmat = np.eye(4)
    viewmat[:3, 3] = -x, -y, -z
    return viewmat


class Parser(html.parser.HTMLParser):
    """Collects tags with their attributes, and texts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data.strip())

    def all(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.tags if name in attributes]


VARIANTS = {
    "bags": {},
    "plain": {"is_blurred": False},
    "no held-out view": {"num_held_out": 0, "has_logs": False},
    "one held-out view": {"num_held_out": 1},
    "one photograph": {"names": (NASTY,), "sizes": SIZES[:1]},
}


@pytest.fixture(params=VARIANTS)
def page(request) -> Page:
    return make_page(**VARIANTS[request.param])


def test_the_page_needs_nothing_else_and_every_link_resolves(page):
    text = render_page(page)
    parsed = Parser(text)
    ids, links = parsed.all("id"), parsed.all("href")
    assert len(ids) == len(set(ids))
    assert all(link == "data:," or link[1:] in ids for link in links) and len(links) > 6
    sources = parsed.all("src")
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert set(re.findall(r"https?://[\w./]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\((?!\"data:)", text)
    assert all(attributes.get("alt") is not None for tag, attributes in parsed.tags if tag == "img")
    assert [tag for tag, _ in parsed.tags].count("h1") == 1


def test_texts_are_escaped(page):
    parsed = Parser(render_page(page))
    assert parsed.texts.count(NASTY) >= 2  # the capture, and the photograph
    assert "run <1>" in parsed.texts and "a & b" in parsed.texts
    assert [tag for tag, _ in parsed.tags].count("script") == 1
    assert not any("onerror" in attributes for _, attributes in parsed.tags)


def test_photographs_are_ranked_from_worst_to_sharpest():
    page = make_page()
    assert [entry.view.name for entry in page.photographs] == [NASTY, "b.png", "c.png"]
    assert [entry.anchor for entry in page.photographs] == ["photo-1", "photo-2", "photo-3"]
    assert page.photographs[0].bar == 1.0 and page.photographs[1].bar == pytest.approx(0.95)
    assert ("blur", "2.00 px") in page.photographs[0].figures
    plain = make_page(is_blurred=False)
    assert [entry.view.name for entry in plain.photographs] == ["c.png", "b.png", NASTY]  # the lowest PSNR first
    assert {shot.key for shot in plain.photographs[0].view.shots} == {"photo", "blurred", "error"}


def test_every_picture_of_a_view_is_on_the_page():
    (view, *_) = make_page().photographs
    assert [shot.key for shot in view.view.shots] == ["photo", "kernels", "widths", "sharp", "blurred", "error"]
    for shot in view.view.shots:
        picture = Image.open(io.BytesIO(shot.data))
        assert picture.size == ((30, 20) if shot.key == "widths" else (60, 40))


def test_kernels_of_the_page_are_those_of_the_grid():
    grid = make_grid()
    picture = np.asarray(Image.open(io.BytesIO(embed.encode_kernels(grid))))
    assert picture.shape == (4 * 5, 6 * 5)
    wanted = np.sqrt(np.minimum(grid.kernels[2, 3] / grid.full_weight, 1))
    np.testing.assert_allclose(picture[10:15, 15:20] / 255, wanted, atol=0.5 / 255 + 1e-6)
    described = json.loads(json.dumps(describe_kernels(grid)))
    assert (described["rows"], described["columns"], described["side"]) == (4, 6, 5)
    assert described["widths"][2 * 6 + 3] == round(grid.widths_px[2, 3], 2)


def test_one_sharp_kernel_does_not_darken_the_others():
    kernels = np.full((4, 5, 3, 3), 1 / 9)
    kernels[0, 0] = 0
    kernels[0, 0, 1, 1] = 1.0
    assert choose_full_weight(kernels) == pytest.approx(1 / 9)
    assert choose_full_weight(np.zeros((1, 1, 3, 3))) > 0


def test_a_coarser_grid_keeps_evenly_spaced_kernels():
    grid = make_grid(rows=6, columns=9)
    picked = grid.pick(2, 3)
    np.testing.assert_array_equal(picked.kernels, grid.kernels[1::3, 1::3])
    np.testing.assert_array_equal(picked.widths_px, grid.widths_px[1::3, 1::3])
    assert grid.pick(99, 99).masks.shape == (6, 9)


def test_a_large_capture_fits_into_the_limit(tmp_path, monkeypatch):
    page = make_page(names=tuple(f"{i}.png" for i in range(6)), sizes=((160, 240),) * 6)
    whole = len(render_page(page).encode())
    assert write_page(tmp_path / "report" / "index.html", page) == whole < embed.PAGE_BYTES
    monkeypatch.setattr(embed, "PAGE_BYTES", whole // 2)
    size = write_page(tmp_path / "report" / "index.html", page)
    assert size == (tmp_path / "report" / "index.html").stat().st_size <= whole // 2


@pytest.mark.parametrize("num_views, least_px", [(40, 700), (100, 400), (1000, 100)])
def test_pictures_and_kernels_of_many_views_fit_by_their_budget(num_views, least_px):
    area = embed.choose_area(5 * num_views)
    height, width = embed.fit_size(1600, 2400, area)
    assert width >= least_px and abs(width / height - 1.5) < 0.02
    assert 5 * num_views * area * embed.JPEG_BYTES_PER_PX * embed.BASE64 <= embed.PAGE_BYTES
    assert embed.fit_size(84, 128, area) <= (84, 128)


def test_curves_have_round_ticks_that_enclose_them():
    chart = draw_chart(
        Series("x", (0, 50, 100), (3.0, 9.0, 4.0)), title="t", num_steps=100, starts=[0, 25], size=(200, 100)
    )
    assert chart.path.startswith("M0.0,") and chart.end[0] == 200 and chart.stages == (50.0,)
    assert [tick.label for tick in chart.y_ticks] == ["2", "4", "6", "8", "10"]
    for low, high in ((0.94, 0.95), (1e-7, 0.05), (1.0, 1.0), (1e-12, 1.0)):
        ticks = log_ticks(low, high)
        assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 5
    for low, high in ((20, 31), (0, 0), (5000, 5000), (-1, 1), (-3, -3)):
        ticks = linear_ticks(low, high)
        assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 6
    assert [format_number(x) for x in (0, 1234, 2.3e6, 1e-7)] == ["0", "1.23k", "2.3M", "1e-7"]
    constant = draw_chart(Series("x", (5,), (0.0,)), title="t", num_steps=5, starts=[0], size=(200, 100), log=True)
    assert "nan" not in constant.path


def test_cameras_that_look_one_way_look_to_the_top_of_the_map():
    views = [MapView(f"v{x}", place_camera(x, 0.1 * x, z), 1.0 + x, "a") for x, z in ((-1, 0), (0, 0.5), (1, 0))]
    found = draw_map(views, np.array([[0.0, 0, 2], [0, 0, 100]]), width=400)
    dots = {dot.label.partition(":")[0]: dot for dot in found.cameras}
    assert dots["v-1"].x < dots["v0"].x < dots["v1"].x  # +x is to the right of a camera that looks along +z
    assert dots["v0"].y < dots["v1"].y  # farther ahead is higher
    assert all(dot.look_y < dot.y and dot.look_x == pytest.approx(dot.x, abs=0.2) for dot in found.cameras)
    assert dots["v-1"].radius < dots["v1"].radius and dots["v1"].label == "v1: blur 2.00 px"
    assert len(found.dots) == 1 and all(0 <= dot.x <= 400 and 0 <= dot.y <= found.height for dot in found.cameras)


@pytest.mark.parametrize("places", [[(0, 0, 0)], [(0, 0, 0)] * 3, [(0, 0, 0), (0, 0, 5)]])
def test_a_map_of_few_cameras(places):
    found = draw_map([MapView("v", place_camera(*place), None, "a") for place in places], np.zeros((0, 3)), width=300)
    assert len(found.cameras) == len(places) and np.isfinite([dot.x + dot.y for dot in found.cameras]).all()


def test_logs_are_read_and_broken_lines_skipped(tmp_path):
    lines = [
        '{"step": 10, "train/l1": 0.5, "num_gaussians": 7}',
        "broken",
        '{"no": 1}',
        '{"step": 20, "train/l1": NaN}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 30, "train/l1": 0.25}', '{"step": 4']))
    series = read_series(tmp_path)
    assert series["l1"] == Series("l1", (10, 30), (0.5, 0.25)) and series["num_gaussians"].values == (7.0,)
    assert read_series(tmp_path / "none") == {} and read_seconds(tmp_path) is None


def test_pauses_of_an_interrupted_run_do_not_count(tmp_path):
    import tensorboardX

    (tmp_path / "config.json").write_text("{}")
    os.utime(tmp_path / "config.json", (990, 990))
    for start, times in ((1000, (1000, 1060)), (5000, (5000, 5030))):
        board = tensorboardX.SummaryWriter(str(tmp_path / "tensorboard"), filename_suffix=f".{start}")
        for time in times:
            board.add_scalar("x", 1.0, time, walltime=time)
        board.close()
    assert read_seconds(tmp_path) == 10 + 60 + 30
    assert [facts.format_seconds(x) for x in (None, 41, 738, 12_240)] == ["unknown", "41 s", "12.3 min", "3.4 h"]


def test_settings_that_differ_from_the_default():
    settings = dataclasses.replace(
        Settings(), num_steps=5, blur=dataclasses.replace(Settings().blur, kernel_sizes=(3,))
    )
    rows = {row["name"]: row for row in facts.list_settings(settings)}
    assert {name for name, row in rows.items() if row["changed"]} == {"num_steps", "blur.kernel_sizes"}
    assert rows["blur.kernel_sizes"]["value"] == "3" and rows["blur.kernel_sizes"]["default"] == "5,9,17"
    assert "stage" in rows["blur.kernel_sizes"]["meaning"] and len(rows) > 80


def test_software_names_the_package():
    software = dict(facts.list_software())
    assert software["jax"][0].isdigit() and software["Python"]
    commit = facts.find_commit()
    assert commit is None or re.fullmatch(r"[0-9a-f]{7,40}\+?", commit)


def test_the_sheet_shows_all_panels_with_their_scales():
    pictures = make_pictures("a.png", (40, 60), 0)
    assert pictures.blur is not None
    sheet = draw_blur_sheet(pictures, pictures.blur, pictures.photo, limit_px=3.0, title="a.png")
    assert sheet.shape[1] > 3 * 480 and np.all(sheet[:20] == 255)
    enlarged = pictures.photo.repeat(8, axis=0).repeat(8, axis=1)
    corner = np.argwhere(np.all(sheet[:100, :100] != 255, axis=-1))
    top, left = next((y, x) for y, x in corner if np.array_equal(sheet[y : y + 320, x : x + 480], enlarged))
    assert (top, left) == (48, 24)


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    if not find_chromium():
        pytest.skip("no Chromium on this machine")
    with Chromium() as opened:
        yield opened


@pytest.fixture
def opened(browser, tmp_path) -> Chromium:
    path = pathlib.Path(tmp_path / "a b#c" / "index.html")
    write_page(path, make_page())
    browser.problems.clear()
    browser.open(path)
    browser.run("document.documentElement.style.scrollBehavior = 'auto'")
    return browser


def find(browser: Chromium, selector: str) -> dict:
    """Scrolls to an element; its place in the window."""
    browser.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
    browser.wait(f"document.querySelector('.view .stage input') && document.querySelector({selector!r})")
    return browser.run(f"document.querySelector({selector!r}).getBoundingClientRect().toJSON()")


def test_the_page_opens_without_errors_and_pictures_load(opened):
    opened.run("for (const shot of document.images) shot.loading = 'eager'")
    opened.wait("[...document.images].every((picture) => picture.complete && picture.naturalWidth > 0)")
    links = opened.run(
        "[...document.querySelectorAll('a')].filter((a) => !document.getElementById(a.hash?.slice(1) || a.href.baseVal.slice(1))).length"
    )
    assert links == 0 and opened.problems == []
    assert all(url.startswith("file:") for url in opened.requests() if not url.startswith("chrome:"))
    assert opened.run("document.documentElement.scrollWidth <= innerWidth")


def test_the_handle_wipes_between_two_pictures(opened):
    stage = find(opened, "#photo-1 .stage")
    cut = "getComputedStyle(document.querySelector('#photo-1 .edge')).left"
    middle = stage["top"] + stage["height"] / 2
    before = float(opened.run(cut)[:-2])
    assert abs(before - stage["width"] / 2) < 2
    centre = stage["left"] + stage["width"] / 2
    opened.drag((centre, middle), (centre - stage["width"] / 4, middle))
    assert abs(float(opened.run(cut)[:-2]) - stage["width"] / 4) < 4
    opened.run("document.querySelector('#photo-1 .stage input').focus()")
    for _ in range(4):
        opened.press("ArrowRight")
    assert opened.run("document.querySelector('#photo-1 .stage input').value") == "27"
    same = "document.querySelector('#photo-1 .over').src === document.querySelector('#photo-1 [data-key={}]').src"
    assert opened.run(same.format("photo"))
    opened.run(
        "(() => { const side = document.querySelector('#photo-1 select.left'); side.value = 'error';"
        "side.dispatchEvent(new Event('change')); })()"
    )
    assert opened.run(same.format("error")) and opened.problems == []


def test_a_click_on_a_photograph_shows_the_kernel_there(opened):
    kernel = "document.querySelector('#photo-1 canvas').dataset.kernel"
    drawn = "document.querySelector('#photo-1 canvas').toDataURL()"
    empty = opened.run(
        "(() => { const c = document.createElement('canvas'); c.width = c.height = 440; return c.toDataURL() })()"
    )
    stage = find(opened, "#photo-1 .stage")
    opened.click(stage["left"] + 0.92 * stage["width"], stage["top"] + 0.1 * stage["height"])
    assert opened.run(kernel) == "0,5"
    opened.wait(f"{drawn} !== '{empty}'")
    grid = make_grid(seed=0)
    read = "document.querySelector('#photo-1 [data-of={}]').textContent"
    assert opened.run(read.format("width")) == f"{grid.widths_px[0, 5]:.2f} px"
    assert opened.run(read.format("mask")) == f"{grid.masks[0, 5]:.2f}"
    assert opened.run(read.format("pixel")) == "55, 5"
    first = opened.run(drawn)
    opened.run("document.querySelector('#photo-1 .stage').focus()")
    opened.press("ArrowDown")
    assert opened.run(kernel) == "1,5"
    opened.wait(f"{drawn} !== '{first}'")
    shot = find(opened, "#photo-1 [data-key=photo]")
    opened.click(shot["left"] + 2, shot["top"] + shot["height"] - 2)
    assert opened.run(kernel) == "3,0" and opened.problems == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_page_opens_without_errors(browser, tmp_path, variant):
    write_page(tmp_path / "index.html", make_page(**VARIANTS[variant]))
    browser.problems.clear()
    browser.open(tmp_path / "index.html")
    browser.wait("document.querySelector('.stage img')?.complete")
    assert browser.problems == []
