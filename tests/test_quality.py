"""The quality benchmark: its configurations, the arithmetic of its tables, and a complete run in smoke size."""

import csv
import dataclasses
import io
import itertools
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from bags_jax import published
from bags_jax.config import default_config, read_config
from bags_jax.errors import UserError
from bags_jax.job import load_photographs, make_blur_model
from bags_jax.schedule import late_from, make_stages
from bags_jax.settings import Settings, in_steps
from bags_jax.workdir import claim_workdir
from configs import procedural
from experiments.benchmarks.quality import runs, suites, tables

ROOT = pathlib.Path(__file__).parents[1]


def flat(config, prefix=""):
    """Settings of a configuration by dotted name."""
    found = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if hasattr(value, "items") else {f"{prefix}{name}": value}
    return found


def procedural_settings(words: str) -> Settings:
    """Settings of an embedded scene, with numbers of steps."""
    settings = read_config(procedural.get_config(words))
    return in_steps(settings, settings.num_steps)


# --- the published settings, at equal steps --------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["motion", "defocus,relief,easy", "mixed,large"])
def test_published_differs_only_in_the_blur_model_and_its_schedule(words):
    ours, theirs = flat(procedural.get_config(words)), flat(procedural.get_config(f"{words},published"))
    changed = {name for name in ours if ours[name] != theirs[name]}
    assert {name for name in changed if not name.startswith("blur.")} <= {
        *("loss.mask", "optim.network", "optim.network_final", "optim.mask_gain", "stages.restart"),
        *("loss.centroid", "loss.confidence", "loss.poses", "optim.poses"),  # our additions
        *("loss.width_tv", "loss.sharp", "loss.exposures", "optim.exposures"),
    }
    assert theirs["blur.use_rgbd"] and theirs["loss.width_tv"] == theirs["loss.sharp"] == theirs["loss.centroid"] == 0
    assert ours["blur.margin"] and not theirs["blur.margin"]
    assert "blur.kernel_sizes" not in changed and ours.keys() == theirs.keys()
    assert theirs["optim.network"] == theirs["optim.network_final"] == 5e-4
    assert theirs["blur.strides"] == (1, 1, 1) and theirs["blur.conv_width"] == 64


def test_published_switches_the_blur_model_off_at_the_start_and_again_at_full_scale():
    settings, our_settings = procedural_settings("motion,published"), procedural_settings("motion")
    stages, ours = make_stages(settings), make_stages(our_settings)
    without = [(s.start, s.stop, s.scale) for s in stages if not s.kernel_size]
    full = min(s.start for s in ours if s.scale == 1.0)
    assert without == [(0, 12, 0.25), (full, full + 12, 1.0)]
    assert {(s.scale, s.kernel_size) for s in stages if s.kernel_size} == {(0.25, 3), (0.5, 5), (1.0, 9)}
    assert stages[-1].stop == ours[-1].stop
    assert settings.density == our_settings.density
    assert late_from(settings, stages) == late_from(our_settings, ours)


def test_published_changes_any_configuration():
    config = published.at_equal_steps(default_config(), network_rate=2.5e-3)
    assert config.optim.network == config.optim.network_final == 2.5e-3
    assert make_blur_model(read_config(config), 3) is not None
    assert make_stages(procedural_settings("motion,published,smoke"))[-1].stop == 12


# --- cases, methods, runs --------------------------------------------------------------------------------------------


def test_cases_of_the_procedural_suite():
    cases = suites.find_cases("procedural", ["all"])
    assert len(cases) == 3 * (4 * 2 + 1) and not any("large" in case.name for case in cases)
    assert len(suites.find_cases("procedural", ["*"])) == 2 * len(cases)
    (case,) = suites.find_cases("procedural", ["corner-defocus-easy-large"])
    config = suites.make_config(case, "default", 107)
    scene = config.synthetic
    assert (scene.layout, scene.blur, scene.blur_scale) == ("corner", "defocus", 0.5)
    assert (scene.width, scene.height) == (192, 128)
    assert config.seed == scene.seed == 107 and config.blur.enabled
    assert not suites.make_config(case, "plain", 107).blur.enabled


def test_later_cases_are_found_by_name_only():
    """`all` and the patterns of the tables in docs/benchmarks.md stay what they are."""
    names = [case.name for case in suites.find_cases("procedural", ["all", "*-hard", "*-none"])]
    assert not any(word in name for name in names for word in ("flight", "both", "varied"))
    later = {c.name: c for c in suites.find_cases("procedural", ["flight-*-hard", "*-both-hard", "*-varied-hard"])}
    assert len(later) == 6 + 3 + 3 and not any("large" in name for name in later)
    assert later["flight-both-hard"].group == "flight by night, both, 128 x 84"
    assert later["corner-varied-hard"].group == "varied, 128 x 84"
    assert len(suites.find_cases("procedural", ["flight-none"])) == 1


def test_oracle_of_the_flight_trains_on_the_truth(tmp_path):
    """Its photographs without blur have noise, so that plain splatting on them is no oracle."""
    (case,) = suites.find_cases("procedural", ["flight-motion-hard"])
    runs_of = {m: runs.make_run(tmp_path, case, m, 100, smoke=True) for m in ("plain", "oracle")}
    assert runs_of["oracle"].name == "flight-none/oracle/100"
    assert runs_of["oracle"].config.data.use_sharp and not runs_of["oracle"].config.blur.enabled
    assert not runs_of["plain"].config.data.use_sharp


def test_unknown_names_raise_errors():
    with pytest.raises(UserError, match="--cases has 'attic-motion', expected all"):
        suites.find_cases("procedural", ["attic-motion"])
    with pytest.raises(UserError, match="--methods has 'best', expected all"):
        suites.find_methods("procedural", ["best"])
    with pytest.raises(UserError, match="--methods has 'oracle'"):
        suites.find_methods("blurball", ["oracle"])
    with pytest.raises(UserError, match="--data=/nowhere is no folder"):
        suites.check_data("blurball", "/nowhere")
    assert suites.find_methods("blurball", ["all"]) == ("plain", "published", "default")


def test_one_oracle_serves_all_blurs_of_a_layout(tmp_path):
    """The case without blur, on which it is trained, has the cameras, points and sharp photographs of the others."""
    cases = suites.find_cases("procedural", ["still_life-motion-hard", "still_life-defocus-easy"])
    by_figure = runs.list_runs(tmp_path, cases, ["oracle"], [100], smoke=True)
    (run,) = runs.distinct(by_figure)
    assert run.name == "still_life-none/plain/100" and not run.config.blur.enabled
    sharp = load_photographs(read_config(run.config))
    for case in cases:
        config = suites.make_config(case, "plain", 100, smoke=True)
        config.data.use_sharp = True
        scene = load_photographs(read_config(config))
        np.testing.assert_array_equal(scene.viewmats, sharp.viewmats)
        np.testing.assert_array_equal(scene.points, sharp.points)
        for a, b in zip(scene.images, sharp.images, strict=True):
            np.testing.assert_array_equal(a, b)


def test_seeds_come_one_after_the_other(tmp_path):
    cases = suites.find_cases("procedural", ["*-none"])
    by_figure = runs.list_runs(tmp_path, cases, ["plain", "default"], [100, 101])
    assert [seed for _, _, seed in by_figure] == [100] * 6 + [101] * 6


def test_a_folder_of_another_configuration_is_refused(tmp_path):
    (case,) = suites.find_cases("procedural", ["corner-none"])
    run = runs.make_run(tmp_path, case, "plain", 100)
    assert run.status() == "to do" and run.row() is None
    claim_workdir(run.folder, read_config(run.config))
    assert run.status() == "begun"
    (run.folder / "row.json").write_text("{}")
    assert run.status() == "done"
    with pytest.raises(UserError, match="num_steps is 2300 there and 500 here"):
        runs.make_run(tmp_path, case, "plain", 100, num_steps=500).status()
    (run.folder / "row.json").write_text("{")
    with pytest.raises(UserError, match=r"row\.json cannot be read"):
        run.row()


def test_time_of_interrupted_sessions(tmp_path):
    """A session counts up to its last checkpoint, from which the next session continues."""
    for step, saved in ((500, 1050.0), (1000, 2030.0)):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
        os.utime(tmp_path / "checkpoints" / str(step), (saved, saved))
    assert runs.past_seconds(tmp_path, [1000.0]) == 0
    assert runs.past_seconds(tmp_path, [1000.0, 2000.0]) == 50
    assert runs.past_seconds(tmp_path, [1000.0, 2000.0, 3000.0, 4000.0]) == 80


# --- the tables ------------------------------------------------------------------------------------------------------


def invented(case, method, seed, psnr, **more):
    scores = {"PSNR": psnr, "SSIM": psnr / 40, "LPIPS": None}
    row = {"deblur_nerf": scores, "gaussian_splatting": {**scores, "SSIM": psnr / 30}, "num_gaussians": 1000}
    return (case, method, seed), {
        **row,
        "shift_aligned": {"PSNR": psnr + 1, "unshifted_PSNR": psnr - 1},
        "train_seconds": 90.0,
        **more,
    }


PSNRS = {"plain": (20.0, 21.0), "published": (22.0, 22.5), "default": (24.0, 24.0), "oracle": (25.0, 25.0)}


def invented_results(*, without=()):
    cases = suites.find_cases("procedural", ["corner-motion-hard", "corner-motion-easy"])
    rows = dict(
        invented(case.name, method, 100 + i, PSNRS[method][i])
        for case, method, i in itertools.product(cases, PSNRS, range(2))
        if (case.name, method, 100 + i) not in without
    )
    return tables.Results(cases, list(PSNRS), [100, 101], rows)


def cell(table, column, *first):
    (row,) = [row for row in table.rows if row[: len(first)] == list(first)]
    return row[table.header.index(column)]


def test_share_closed():
    assert tables.share_closed(24.0, 20.0, 25.0) == 0.8
    assert tables.share_closed(19.0, 20.0, 25.0) == -0.2
    assert tables.share_closed(24.0, 20.0, 20.1) is None
    assert tables.share_closed(None, 20.0, 25.0) is None


def test_spread():
    assert tables.spread([None]) is None
    assert tables.spread([3.0, None]) == tables.Spread(3.0, None, 1)
    found = tables.spread([20.0, 21.0])
    assert found and found.std
    np.testing.assert_allclose([found.mean, found.std], [20.5, np.std([20, 21], ddof=1)])
    assert tables.format_spread(found, 2) == "20.50 ± 0.71"


def test_tables_of_invented_rows():
    summary, nerf, splatting, detail = tables.all_tables(invented_results())
    assert "deblur_nerf" in nerf.title and "gaussian_splatting" in splatting.title
    assert cell(nerf, "PSNR, dB", "corner-motion-hard", "plain") == "20.50 ± 0.71"
    assert cell(nerf, "SSIM", "corner-motion-hard", "default") == "0.600 ± 0.000"
    assert cell(splatting, "SSIM", "corner-motion-hard", "default") == "0.800 ± 0.000"
    assert cell(nerf, "LPIPS", "corner-motion-hard", "plain") == "-"  # no weights; not a missing run
    assert cell(detail, "over published*, dB", "corner-motion-hard", "default") == "+1.75 ± 0.35"
    assert cell(detail, "share closed, %", "corner-motion-hard", "default") == "78 ± 4"
    assert cell(detail, "share closed, %", "corner-motion-hard", "plain") == "-"
    assert cell(detail, "training, min", "corner-motion-hard", "plain") == "1.5 ± 0.0"
    assert cell(summary, "share closed, %", "motion, 128 x 84", "published*") == "39 ± 2"
    assert cell(summary, "whole seeds", "motion, 128 x 84", "published*") == "2 of 2"


def test_missing_rows_are_marked_as_missing():
    gone = [
        ("corner-motion-hard", "default", 101),
        ("corner-motion-easy", "oracle", 100),
        ("corner-motion-easy", "oracle", 101),
    ]
    results = invented_results(without=gone)
    summary, nerf, _, detail = tables.all_tables(results)
    assert cell(nerf, "seeds", "corner-motion-hard", "default") == "1 of 2"
    assert cell(nerf, "PSNR, dB", "corner-motion-hard", "default") == "24.00"  # one seed has no spread
    assert cell(nerf, "PSNR, dB", "corner-motion-easy", "oracle") == "missing"
    assert cell(nerf, "LPIPS", "corner-motion-easy", "oracle") == "missing"
    assert cell(detail, "share closed, %", "corner-motion-hard", "default") == "80"
    assert cell(detail, "share closed, %", "corner-motion-easy", "default") == "missing"
    assert cell(summary, "share closed, %", "motion, 128 x 84", "default") == "missing"
    assert cell(summary, "over plain, dB", "motion, 128 x 84", "default") == "+4.00"  # of the one complete seed
    assert cell(summary, "whole seeds", "motion, 128 x 84", "default") == "1 of 2"
    lines = list(csv.DictReader(io.StringIO(tables.format_csv(results))))
    assert len(lines) == 2 * 4 * 2 and sum(line["status"] == "missing" for line in lines) == 3
    assert all((line["deblur_nerf_PSNR"] == "") == (line["status"] == "missing") for line in lines)


def test_figures_of_another_commit_are_marked(tmp_path):
    whole = invented_results()
    own = [("corner-motion-hard", "default", seed) for seed in (100, 101)]
    rows = {key: {**row, "commit": "a1" if key in own else "b2"} for key, row in whole.rows.items()}
    rows[own[0]]["commit"] = "a1-dirty"
    results = dataclasses.replace(whole, rows=rows, commit="a1")
    summary, nerf, _, detail = tables.write_tables(tmp_path, results)
    for table in (nerf, detail):
        assert cell(table, "seeds", "corner-motion-hard", "default") == "2 of 2"
        assert cell(table, "seeds", "corner-motion-easy", "default") == "2 of 2, other commit"
    assert cell(summary, "whole seeds", "motion, 128 x 84", "default") == "2 of 2, other commit"
    statuses = [line["status"] for line in csv.DictReader(io.StringIO(tables.format_csv(results)))]
    assert statuses.count("done") == 2 and statuses.count("other commit") == 14
    assert "other commit: not trained by a1," in (tmp_path / "results.md").read_text()
    assert all(not whole.is_other(row) for row in rows.values()), "no commit is known"


def test_aligned_psnr_stands_beside_that_of_the_same_crop():
    detail = tables.detail_table(invented_results())
    assert cell(detail, "aligned PSNR, dB", "corner-motion-hard", "oracle") == "26.00 ± 0.00"
    assert cell(detail, "same crop, not shifted, dB", "corner-motion-hard", "oracle") == "24.00 ± 0.00"


def test_a_gap_that_is_too_small_is_not_a_missing_run():
    (case,) = suites.find_cases("procedural", ["corner-motion-easy"])
    rows = dict(invented(case.name, method, 100, 20.0) for method in PSNRS)
    detail = tables.detail_table(tables.Results([case], list(PSNRS), [100], rows))
    assert cell(detail, "share closed, %", case.name, "default") == "no gap"


def test_methods_outside_the_table_are_not_missing():
    whole = invented_results()
    results = tables.Results(whole.cases, ["plain", "default"], [100, 101], whole.rows)
    detail = tables.detail_table(results)
    assert cell(detail, "over plain, dB", "corner-motion-hard", "default") == "+3.50 ± 0.71"
    assert cell(detail, "over published*, dB", "corner-motion-hard", "default") == "-"
    assert cell(detail, "share closed, %", "corner-motion-hard", "default") == "-"
    alone = tables.Results(whole.cases, ["plain"], [100, 101], whole.rows)
    assert len(tables.all_tables(alone)) == 3


def test_published_has_a_footnote_wherever_a_table_names_it(tmp_path):
    found = tables.write_tables(tmp_path, invented_results())
    note = "published: the authors' network, border, depth and schedule of the blur model"
    assert len(found) == 4 and all(table.footnotes[0].startswith(f"* {note}") for table in found)
    markdown, latex = ((tmp_path / f"results.{kind}").read_text() for kind in ("md", "tex"))
    assert markdown.count(f"\n\\* {note}") == latex.count(rf"\par{{\footnotesize * {note}") == 4
    assert "| published* |" in markdown and "& published* &" in latex
    assert ",published," in (tmp_path / "results.csv").read_text()
    ours = tables.Results(invented_results().cases, ["plain"], [100, 101], invented_results().rows)
    assert tables.protocol_table(ours, "deblur_nerf").footnotes == []


def test_table_of_psnr_by_blur():
    """Rows without such figures make no lines; an empty bin is a dash, never 0."""
    bins = {name: {"PSNR": None, "num_views": 0} for name in tables.name_bins()}
    bins["1 to 2 px"] = {"PSNR": 21.5, "num_views": 3}
    cases = suites.find_cases("procedural", ["corner-motion-hard"])
    rows = dict([invented("corner-motion-hard", "plain", 100, 20.0, PSNR_by_blur=bins)])
    rows |= dict([invented("corner-motion-hard", "default", 100, 24.0, PSNR_by_blur=None)])
    table = tables.blur_table(tables.Results(cases, ["plain", "default"], [100], rows))
    assert table.rows == [["corner-motion-hard", "plain", "1 of 1", "-", "-", "21.50", "-"]]


def test_tables_without_runs_are_all_missing(tmp_path):
    cases = suites.find_cases("procedural", ["corner-none"])
    tables.write_tables(tmp_path, tables.Results(cases, ["plain", "default"], [100], {}))
    assert "nothing is done yet" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "results.tex").read_text().count("missing") > 10


# --- a complete benchmark --------------------------------------------------------------------------------------------


def benchmark(*arguments):
    line = [sys.executable, "-m", "experiments.benchmarks.quality", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_benchmark_trains_scores_and_repeats_nothing(tmp_path):
    """Uses two methods that share their compiled programs."""
    arguments = ["--smoke", "--seeds=1", "--at_once=1", "--cases=still_life-defocus-hard", "--methods=plain,oracle"]
    arguments += [f"--workdir={tmp_path}"]
    first = benchmark(*arguments)
    assert first.returncode == 0, first.stderr + first.stdout
    assert "0 of 2 runs are done" in first.stdout and "[2/2] still_life-none/plain/100: " in first.stdout
    paths = sorted((tmp_path / "runs").glob("*/*/*/row.json"))
    before = [path.read_bytes() for path in paths]
    assert [path.parts[-4] for path in paths] == ["still_life-defocus-hard", "still_life-none"]
    for row in map(json.loads, before):
        assert row["step"] == 12 and row["seed"] == 100 and row["sessions"] == 1 and row["train_seconds"] > 0
        assert row["commit"] and row["cpu"] and row["cores"] >= 1 and row["jax"] and row["date"]
        assert 0 < row["deblur_nerf"]["PSNR"] < 60 and row["no_truth"]["reblur_PSNR"] > 0
    lines = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [(line["method"], line["status"]) for line in lines] == [("plain", "done"), ("oracle", "done")]
    assert [float(line["deblur_nerf_PSNR"]) for line in lines] == [json.loads(b)["deblur_nerf"]["PSNR"] for b in before]
    assert_latex_is_complete((tmp_path / "results.tex").read_text())

    second = benchmark(*arguments)
    assert second.returncode == 0 and "2 of 2 runs are done" in second.stdout, second.stderr
    assert [path.read_bytes() for path in paths] == before

    third = benchmark(*arguments, "--num_steps=99", "--tables_only")  # the runs have another number of steps
    assert third.returncode == 2 and "another configuration" in third.stderr, third.stderr


def assert_latex_is_complete(latex):
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == latex.count(r"\toprule") == 5
    for table in latex.split(r"\begin{tabular}")[1:]:
        columns = table[1 : table.index("}")]
        body = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert {line.count(" & ") for line in body} == {len(columns) - 1}


def test_a_task_fails_with_the_last_line_of_its_log(tmp_path):
    write = f"open({str(tmp_path / 'row.json')!r}, 'w').write('{{}}')"
    assert runs.Task("x", str(tmp_path), ("-c", write))() == ""
    assert (
        runs.Task("x", str(tmp_path), ("-c", "import sys; sys.exit('error: no such luck')"))() == "error: no such luck"
    )
    (tmp_path / "row.json").unlink()
    assert "no such luck" in runs.Task("x", str(tmp_path), ("-c", "pass"))()  # ended well, but left no row
