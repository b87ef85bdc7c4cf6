"""The tables of the quality benchmark: means and spreads over seeds, and the share of the gap that a method closes.

Every mean is shown with its number of seeds. Figures of unfinished runs are `missing`.
"""

import csv
import dataclasses
import io
import math
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bags_jax.atomic import write_atomic
from bags_jax.report.psnr_by_blur import name_bins
from bags_jax.report.tables import latex_cell, latex_table, markdown_table
from experiments.benchmarks.quality.suites import FOOTNOTES, METHODS, Case, label

Rows = Mapping[tuple[str, str, int], dict]  # (case, method, seed) -> row.json; unfinished runs are absent

PROTOCOLS = ("deblur_nerf", "gaussian_splatting")
MISSING, NO_GAP = "missing", "no gap"
OTHER = "other commit"  # marks figures that another commit than the present one has trained
DIFFERENCES = ("over plain, dB", f"over {label('published')}, dB", "share closed, %")
SMALLEST_GAP_DB = 0.2  # between plain splatting and oracle; shares of a smaller gap are not computed


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; std is None for fewer than two."""

    mean: float
    std: float | None
    count: int


@dataclasses.dataclass(frozen=True)
class Table:
    """One table, ready to be formatted."""

    title: str
    header: tuple[str, ...]
    rows: list[list[str]]

    @property
    def footnotes(self) -> list[str]:
        """Footnotes of the methods that the table names with an asterisk."""
        cells = [*self.header, *(cell for row in self.rows for cell in row)]
        return [f"* {m}: {note}" for m, note in FOOTNOTES.items() if any(label(m) in cell for cell in cells)]


def spread(values: Sequence[float | None]) -> Spread | None:
    """Mean and standard deviation of the values that are not None; None: there are none."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    return Spread(statistics.fmean(there), statistics.stdev(there) if len(there) > 1 else None, len(there))


def share_closed(method: float | None, plain: float | None, oracle: float | None) -> float | None:
    """Share of the gap in PSNR between plain splatting (0) and oracle (1) that a method closes, on one seed.

    None: one of the three is missing, or the gap is smaller than SMALLEST_GAP_DB.
    """
    if method is None or plain is None or oracle is None or oracle - plain < SMALLEST_GAP_DB:
        return None
    return (method - plain) / (oracle - plain)


def subtract(method: float | None, other: float | None) -> float | None:
    """Difference of two figures of the same seed; None: one is missing."""
    return None if method is None or other is None else method - other


def format_spread(value: Spread | None, digits: int, *, factor: float = 1.0, sign: bool = False) -> str:
    """Formats mean ± std; `missing` for None."""
    if value is None:
        return MISSING
    text = f"{factor * value.mean:{'+' if sign else ''}.{digits}f}"
    return text if value.std is None else f"{text} ± {factor * value.std:.{digits}f}"


@dataclasses.dataclass(frozen=True)
class Results:
    """The rows of a benchmark, complete or not."""

    cases: Sequence[Case]
    methods: Sequence[str]
    seeds: Sequence[int]
    rows: Rows
    commit: str = ""  # the present one; "": not known, nothing is marked

    def value(self, case: str, method: str, seed: int, *path: str) -> float | None:
        """One figure of one run; None: the run is unfinished, or has no such figure (LPIPS without its weights)."""
        figure = _look_up(self.rows.get((case, method, seed)), path)
        return float(figure) if isinstance(figure, int | float) else None

    def psnr(self, case: str, method: str, seed: int) -> float | None:
        """PSNR of a run; it is the same in both protocols."""
        return self.value(case, method, seed, "deblur_nerf", "PSNR")

    def over_seeds(self, case: str, method: str, *path: str) -> Spread | None:
        """One figure over all finished seeds."""
        return spread([self.value(case, method, seed, *path) for seed in self.seeds])

    def num_done(self, cases: Sequence[str], method: str) -> str:
        """Number of seeds that are finished in all cases, as text, with a mark where another commit trained some."""
        keys = {seed: [(case, method, seed) for case in cases] for seed in self.seeds}
        done = [seed for seed in self.seeds if all(key in self.rows for key in keys[seed])]
        is_other = any(self.is_other(self.rows[key]) for seed in self.seeds for key in keys[seed] if key in self.rows)
        return f"{len(done)} of {len(self.seeds)}" + (f", {OTHER}" if is_other else "")

    def is_other(self, row: dict) -> bool:
        """True if another commit than the present one has trained a run. Changes that are not committed do not count."""
        return bool(self.commit) and find_base(row.get("commit")) != find_base(self.commit)


def find_base(commit: Any) -> str:
    """A commit without the mark of changes that are not committed."""
    return str(commit).removesuffix("-dirty")


def protocol_table(results: Results, protocol: str) -> Table:
    """PSNR, SSIM and LPIPS in one protocol."""
    lines = []
    for case in results.cases:
        for method in results.methods:
            scores = [results.over_seeds(case.name, method, protocol, s) for s in ("PSNR", "SSIM", "LPIPS")]
            has_lpips = scores[2] is not None or scores[0] is None  # no score at all: missing, not "-"
            cells = [format_spread(score, digits) for score, digits in zip(scores, (2, 3, 3), strict=True)]
            cells = cells if has_lpips else [*cells[:2], "-"]
            lines.append([case.name, label(method), results.num_done([case.name], method), *cells])
    title = f"Held-out sharp views, protocol {protocol} (not comparable with the other one)"
    return Table(title, ("case", "method", "seeds", "PSNR, dB", "SSIM", "LPIPS"), lines)


def compare(results: Results, case: str, method: str, seed: int) -> dict[str, float | None]:
    """Compares a run with the other methods on the same case and seed: differences in dB, and the share closed."""
    psnr, plain, oracle = (results.psnr(case, name, seed) for name in (method, "plain", "oracle"))
    return {
        "over plain": subtract(psnr, plain),
        "over published": subtract(psnr, results.psnr(case, "published", seed)),
        "over default": subtract(psnr, results.psnr(case, "default", seed)),
        "share closed": share_closed(psnr, plain, oracle),
        "gap": subtract(oracle, plain) if psnr is not None else None,
    }


def _difference_cells(
    results: Results, method: str, per_seed: Sequence[Mapping[str, float | None]], *, has_gap: bool
) -> list[str]:
    """Formats the comparison; "-": with itself, or with a method that is not in the table."""
    found = {name: spread([d[name] for d in per_seed]) for name in per_seed[0]}
    others = [other if other in results.methods and other != method else None for other in ("plain", "published")]
    cells = [format_spread(found[f"over {other}"], 2, sign=True) if other else "-" for other in others]
    share = format_spread(found["share closed"], 0, factor=100.0)
    if share == MISSING and found["gap"] is not None:
        share = NO_GAP
    return [*cells, share if has_gap and method not in ("plain", "oracle") else "-"]


def detail_table(results: Results) -> Table:
    """Figures that do not depend on the protocol: aligned PSNR, differences by seed, size and time."""
    lines = []
    for case in results.cases:
        for method in results.methods:
            per_seed = [compare(results, case.name, method, seed) for seed in results.seeds]
            has_gap = {"plain", "oracle"} <= set(results.methods) and case.name != case.sharp
            aligned, unshifted = (
                results.over_seeds(case.name, method, "shift_aligned", name) for name in ("PSNR", "unshifted_PSNR")
            )
            count = results.over_seeds(case.name, method, "num_gaussians")
            minutes = spread([_minutes(results, case.name, method, seed) for seed in results.seeds])
            is_done = count is not None  # no figure all the same: the pictures are too small, or the row is older
            lines.append(
                [case.name, label(method), results.num_done([case.name], method)]
                + ["-" if psnr is None and is_done else format_spread(psnr, 2) for psnr in (aligned, unshifted)]
                + _difference_cells(results, method, per_seed, has_gap=has_gap)
                + [format_spread(count, 0), format_spread(minutes, 1)]
            )
    header = ("case", "method", "seeds", "aligned PSNR, dB", "same crop, not shifted, dB", *DIFFERENCES)
    header += ("Gaussians", "training, min")
    return Table("Differences, size and time", header, lines)


def blur_table(results: Results) -> Table:
    """PSNR of the training views without blur against their sharp truth, by the true blur of the photographs.

    Only cases and methods that have a figure: rows of earlier versions and captures without truth have none.
    """
    lines = []
    for case in results.cases:
        for method in results.methods:
            bins = [results.over_seeds(case.name, method, "PSNR_by_blur", name, "PSNR") for name in name_bins()]
            if any(bins):
                cells = ["-" if psnr is None else format_spread(psnr, 2) for psnr in bins]
                lines.append([case.name, label(method), results.num_done([case.name], method), *cells])
    title = "Training views without blur against sharp truth, PSNR in dB, by the true RMS blur of the photograph"
    return Table(title, ("case", "method", "seeds", *name_bins()), lines)


def _minutes(results: Results, case: str, method: str, seed: int) -> float | None:
    seconds = results.value(case, method, seed, "train_seconds")
    return None if seconds is None else seconds / 60


def summary_table(results: Results) -> Table:
    """Averages over the cases of a group on each seed, then takes mean and spread over seeds."""
    lines = []
    groups = dict.fromkeys(case.group for case in results.cases)
    for group in groups:
        cases = [case for case in results.cases if case.group == group]
        has_gap = {"plain", "oracle"} <= set(results.methods) and any(case.name != case.sharp for case in cases)
        for method in [m for m in results.methods if m != "plain"]:
            per_seed = [
                _mean_of([compare(results, case.name, method, seed) for case in cases]) for seed in results.seeds
            ]
            counts = [str(len(cases)), results.num_done([case.name for case in cases], method)]
            lines.append(
                [group, label(method), *counts, *_difference_cells(results, method, per_seed, has_gap=has_gap)]
            )
    return Table("By kind of blur, PSNR", ("blur", "method", "cases", "whole seeds", *DIFFERENCES), lines)


def _mean_of(cases: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Means over cases; None if a case lacks the figure: means over different cases do not compare."""
    columns = {name: [case[name] for case in cases] for name in cases[0]}
    return {
        name: None if None in v else math.fsum(x for x in v if x is not None) / len(v) for name, v in columns.items()
    }


def ablation_table(results: Results) -> Table:
    """One line for each method: PSNR, difference to the default on the same seeds, and share closed, for each case."""
    header, lines = ["method", "what it is"], []
    for case in results.cases:
        header += [f"{case.name}: PSNR, dB", "over default, dB", "share closed, %"]
    for method in results.methods:
        cells = []
        for case in results.cases:
            found = [compare(results, case.name, method, seed) for seed in results.seeds]
            share = format_spread(spread([d["share closed"] for d in found]), 0, factor=100.0)
            difference = format_spread(spread([d["over default"] for d in found]), 2, sign=True)
            cells.append(format_spread(results.over_seeds(case.name, method, "deblur_nerf", "PSNR"), 2))
            cells.append("-" if method == "default" else difference)
            cells.append("-" if method in ("plain", "oracle") else share)
        lines.append([label(method), METHODS[method], *cells])
    return Table("Ablations: the default with one thing changed", tuple(header), lines)


def all_tables(results: Results) -> list[Table]:
    """The summary (if there is more than plain splatting), one table per protocol, PSNR by blur, and the details."""
    is_ablation = any(case.suite == "ablations" for case in results.cases)
    summary = ablation_table(results) if is_ablation else summary_table(results)
    tables = [summary, *(protocol_table(results, p) for p in PROTOCOLS), blur_table(results), detail_table(results)]
    return [table for table in tables if table.rows]


CSV_FIELDS: tuple[tuple[str, ...], ...] = (
    *((protocol, score) for protocol in PROTOCOLS for score in ("PSNR", "SSIM", "LPIPS")),
    ("shift_aligned", "PSNR"),
    ("shift_aligned", "unshifted_PSNR"),
    *(("PSNR_by_blur", name, "PSNR") for name in name_bins()),
    *(("no_truth", name) for name in ("reblur_PSNR", "sharpness_gain", "held_out_fitted_PSNR")),
    *((name,) for name in ("num_gaussians", "step", "train_seconds", "evaluate_seconds", "cpu_seconds", "sessions")),
    *((name,) for name in ("commit", "cpu", "cores", "device", "jax", "date")),
)


def format_csv(results: Results) -> str:
    """Formats one line per run: status, figures, hardware. Unfinished runs have the status `missing` and no figures."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["suite", "case", "method", "seed", "status", *("_".join(path) for path in CSV_FIELDS), "share_closed"]
    )
    for case in results.cases:
        for method in results.methods:
            for seed in results.seeds:
                row = results.rows.get((case.name, method, seed))
                share = compare(results, case.name, method, seed)["share closed"]
                cells = [_look_up(row, path) for path in CSV_FIELDS] + [share]
                status = MISSING if row is None else OTHER if results.is_other(row) else "done"
                writer.writerow([case.suite, case.name, method, seed, status, *("" if c is None else c for c in cells)])
    return out.getvalue()


def _look_up(row: dict | None, path: Sequence[str]) -> Any:
    node: Any = row
    for name in path:
        node = node.get(name) if isinstance(node, dict) else None
    return node


def provenance(results: Results) -> list[str]:
    """Describes the origin of the figures in a few lines: every commit, machine and version, and the definitions."""
    rows = list(results.rows.values())
    wanted = len(results.cases) * len(results.methods) * len(results.seeds)

    def collect(describe: Callable[[dict], str]) -> str:
        return "; ".join(sorted({describe(row) for row in rows})) or "-"

    dates = sorted(str(row.get("date")) for row in rows)
    period = f"{dates[0]} to {dates[-1]}" if dates else "nothing is done yet"
    methods = "; ".join(f"{label(name)}: {METHODS[name]}" for name in results.methods)
    others = any(map(results.is_other, rows))
    return [
        f"Commit: {collect(lambda r: str(r.get('commit')))}",
        f"Hardware: {collect(_machine)}",
        f"jax {collect(lambda r: str(r.get('jax')))}; {period}",
        f"Seeds {', '.join(map(str, results.seeds))}, of scene and training; {len(rows)} of {wanted} figures are done",
        f"Methods: {methods}",
        "Mean ± sample standard deviation over seeds; differences and shares are computed per seed, then averaged",
        "Share closed: (method - plain) / (oracle - plain), PSNR",
        "Aligned PSNR: after the best sub-pixel shift of each view, borders cropped",
        *([f"{OTHER}: not trained by {results.commit}, with which the tables were written"] if others else []),
    ]


def _machine(row: dict) -> str:
    return f"{row.get('cores')} of the cores of {row.get('cpu')}, device {row.get('device')}"


def write_tables(folder: pathlib.Path, results: Results) -> list[Table]:
    """Writes results.csv, results.md and results.tex from the finished runs.

    Raises:
      UserError: the folder cannot be written.
    """
    tables, notes = all_tables(results), provenance(results)
    markdown = ["# Quality benchmark", "", *(f"- {note}" for note in notes)]
    latex = ["% needs \\usepackage{booktabs}", *(f"% {note}" for note in notes)]
    for table in tables:
        markdown += ["", f"## {table.title}", "", markdown_table(table.header, table.rows)]
        markdown += [f"\n\\{note}" for note in table.footnotes]
        latex += ["", f"% {table.title}", latex_table(table.header, table.rows)]
        latex += [rf"\par{{\footnotesize {latex_cell(note)}}}" for note in table.footnotes]
    write_atomic(folder / "results.csv", format_csv(results).encode())
    write_atomic(folder / "results.md", ("\n".join(markdown) + "\n").encode())
    write_atomic(folder / "results.tex", ("\n".join(latex) + "\n").encode())
    return tables
