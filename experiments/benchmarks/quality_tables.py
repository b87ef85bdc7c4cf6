"""The quality benchmark's tables: from the rows of single runs to means, spreads, and the share of the gap that is closed.

Nothing is made up: a mean says over how many seeds it is, and what was not run yet is `missing`.
"""

import csv
import dataclasses
import io
import math
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence

from bags_jax.atomic import write_atomic
from bags_jax.report.tables import latex_table, markdown_table
from experiments.benchmarks.suites import METHODS, Case

Rows = Mapping[tuple[str, str, int], dict]  # (case, method, seed) -> what quality_run.py wrote; runs to come are absent

PROTOCOLS = ("deblur_nerf", "gaussian_splatting")
MISSING, NO_GAP = "missing", "no gap"
SMALLEST_GAP_DB = 0.2  # between plain splatting and oracle: under it there is no gap of which to close a share


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; no deviation of fewer than two."""

    mean: float
    std: float | None
    count: int


@dataclasses.dataclass(frozen=True)
class Table:
    """One table with what its reader must know."""

    title: str
    header: tuple[str, ...]
    rows: list[list[str]]


def spread(values: Sequence[float | None]) -> Spread | None:
    """Mean and spread of what is there; None: nothing."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    return Spread(statistics.fmean(there), statistics.stdev(there) if len(there) > 1 else None, len(there))


def share_closed(method: float | None, plain: float | None, oracle: float | None) -> float | None:
    """Share of the gap in PSNR between plain splatting (0) and the oracle (1) of the same seed that a method closes.

    None where one of the three is missing, or the gap is under SMALLEST_GAP_DB.
    """
    if method is None or plain is None or oracle is None or oracle - plain < SMALLEST_GAP_DB:
        return None
    return (method - plain) / (oracle - plain)


def ahead(method: float | None, other: float | None) -> float | None:
    """By how much a method is ahead of another on the same seed; None where one is missing."""
    return None if method is None or other is None else method - other


def shown(value: Spread | None, digits: int, *, factor: float = 1.0, sign: bool = False) -> str:
    """A mean with its spread; `missing` for nothing."""
    if value is None:
        return MISSING
    text = f"{factor * value.mean:{'+' if sign else ''}.{digits}f}"
    return text if value.std is None else f"{text} ± {factor * value.std:.{digits}f}"


@dataclasses.dataclass(frozen=True)
class Results:
    """What there is of a benchmark."""

    cases: Sequence[Case]
    methods: Sequence[str]
    seeds: Sequence[int]
    rows: Rows

    def value(self, case: str, method: str, seed: int, *path: str) -> float | None:
        """One figure of one run; None: the run is not done, or has no such figure (LPIPS without its weights)."""
        node = self.rows.get((case, method, seed))
        for name in path:
            node = node.get(name) if isinstance(node, dict) else None
        return float(node) if isinstance(node, int | float) else None

    def psnr(self, case: str, method: str, seed: int) -> float | None:
        """PSNR is one number in both protocols."""
        return self.value(case, method, seed, "deblur_nerf", "PSNR")

    def over_seeds(self, case: str, method: str, *path: str) -> Spread | None:
        """One figure over all seeds that are done."""
        return spread([self.value(case, method, seed, *path) for seed in self.seeds])

    def num_done(self, case: str, method: str) -> str:
        done = sum((case, method, seed) in self.rows for seed in self.seeds)
        return f"{done} of {len(self.seeds)}"


def protocol_table(results: Results, protocol: str) -> Table:
    """PSNR, SSIM and LPIPS in one protocol."""
    lines = []
    for case in results.cases:
        for method in results.methods:
            scores = [results.over_seeds(case.name, method, protocol, s) for s in ("PSNR", "SSIM", "LPIPS")]
            is_there = scores[0] is not None
            cells = [
                shown(scores[0], 2),
                shown(scores[1], 3),
                shown(scores[2], 3) if scores[2] or not is_there else "-",
            ]
            lines.append([case.name, method, results.num_done(case.name, method), *cells])
    title = f"Held-out sharp views, protocol {protocol} (not comparable with the other one)"
    return Table(title, ("case", "method", "seeds", "PSNR, dB", "SSIM", "LPIPS"), lines)


def differences(results: Results, case: str, method: str, seed: int) -> dict[str, float | None]:
    """A run against the other methods on the same case and seed, dB and a share."""
    psnr, plain, oracle = (results.psnr(case, name, seed) for name in (method, "plain", "oracle"))
    return {
        "over plain": ahead(psnr, plain),
        "over published": ahead(psnr, results.psnr(case, "published", seed)),
        "share closed": share_closed(psnr, plain, oracle),
        "gap": ahead(oracle, plain) if psnr is not None else None,
    }


def _difference_cells(
    results: Results, method: str, per_seed: Sequence[Mapping[str, float | None]], *, has_gap: bool
) -> list[str]:
    """Ahead of plain and of published, and the share closed; "-": compared with itself, or with what was not asked for."""
    found = {name: spread([d[name] for d in per_seed]) for name in per_seed[0]}
    others = [other if other in results.methods and other != method else None for other in ("plain", "published")]
    cells = [shown(found[f"over {other}"], 2, sign=True) if other else "-" for other in others]
    share = shown(found["share closed"], 0, factor=100.0)
    if share == MISSING and found["gap"] is not None:
        share = NO_GAP
    return [*cells, share if has_gap and method not in ("plain", "oracle") else "-"]


def detail_table(results: Results) -> Table:
    """What does not depend on the protocol: aligned PSNR, differences by seed, size and time."""
    lines = []
    for case in results.cases:
        for method in results.methods:
            per_seed = [differences(results, case.name, method, seed) for seed in results.seeds]
            has_gap = {"plain", "oracle"} <= set(results.methods) and case.name != case.sharp
            aligned = results.over_seeds(case.name, method, "shift_aligned", "PSNR")
            count = results.over_seeds(case.name, method, "num_gaussians")
            minutes = spread([_minutes(results, case.name, method, seed) for seed in results.seeds])
            is_small = aligned is None and count is not None  # a picture too small to be shifted
            lines.append(
                [case.name, method, results.num_done(case.name, method)]
                + [
                    "-" if is_small else shown(aligned, 2),
                    *_difference_cells(results, method, per_seed, has_gap=has_gap),
                ]
                + [shown(count, 0), shown(minutes, 1)]
            )
    header = ("case", "method", "seeds", "aligned PSNR, dB", "over plain, dB", "over published, dB", "share closed, %")
    return Table("Differences, size and time", (*header, "Gaussians", "training, min"), lines)


def _minutes(results: Results, case: str, method: str, seed: int) -> float | None:
    seconds = results.value(case, method, seed, "train_seconds")
    return None if seconds is None else seconds / 60


def summary_table(results: Results) -> Table:
    """By kind of blur: for each seed the mean over the group's cases, then mean and spread over seeds."""
    lines = []
    groups = dict.fromkeys(case.group for case in results.cases)
    for group in groups:
        cases = [case for case in results.cases if case.group == group]
        has_gap = {"plain", "oracle"} <= set(results.methods) and any(case.name != case.sharp for case in cases)
        for method in [m for m in results.methods if m != "plain"]:
            per_seed = [
                _mean_of([differences(results, case.name, method, seed) for case in cases]) for seed in results.seeds
            ]
            whole = sum(all((case.name, method, s) in results.rows for case in cases) for s in results.seeds)
            counts = [str(len(cases)), f"{whole} of {len(results.seeds)}"]
            lines.append([group, method, *counts, *_difference_cells(results, method, per_seed, has_gap=has_gap)])
    header = ("blur", "method", "cases", "whole seeds", "over plain, dB", "over published, dB", "share closed, %")
    return Table("By kind of blur, PSNR", header, lines)


def _mean_of(cases: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Means over cases; None unless every case has the figure: a mean over other cases would compare with nothing."""
    columns = {name: [case[name] for case in cases] for name in cases[0]}
    return {
        name: None if None in v else math.fsum(x for x in v if x is not None) / len(v) for name, v in columns.items()
    }


def all_tables(results: Results) -> list[Table]:
    """The summary (where there is more than plain splatting), one table a protocol, and the details."""
    tables = [summary_table(results), *(protocol_table(results, p) for p in PROTOCOLS), detail_table(results)]
    return [table for table in tables if table.rows]


CSV_FIELDS: tuple[tuple[str, ...], ...] = (
    *((protocol, score) for protocol in PROTOCOLS for score in ("PSNR", "SSIM", "LPIPS")),
    ("shift_aligned", "PSNR"),
    *(("no_truth", name) for name in ("reblur_PSNR", "sharpness_gain", "held_out_fitted_PSNR")),
    *((name,) for name in ("num_gaussians", "step", "train_seconds", "evaluate_seconds", "cpu_seconds", "sessions")),
    *((name,) for name in ("commit", "cpu", "cores", "device", "jax", "date")),
)


def csv_text(results: Results) -> str:
    """One line a run: what it found and on what; runs to come have `missing` as their status and no figures."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["suite", "case", "method", "seed", "status", *("_".join(path) for path in CSV_FIELDS), "share_closed"]
    )
    for case in results.cases:
        for method in results.methods:
            for seed in results.seeds:
                row = results.rows.get((case.name, method, seed))
                share = differences(results, case.name, method, seed)["share closed"]
                cells = [_dig(row, path) for path in CSV_FIELDS] + [share]
                status = MISSING if row is None else "done"
                writer.writerow([case.suite, case.name, method, seed, status, *("" if c is None else c for c in cells)])
    return out.getvalue()


def _dig(row, path: Sequence[str]):
    for name in path:
        row = row.get(name) if isinstance(row, dict) else None
    return row


def provenance(results: Results) -> list[str]:
    """What the figures are from, one line each: every commit, machine and version that took part."""
    rows = list(results.rows.values())
    wanted = len(results.cases) * len(results.methods) * len(results.seeds)

    def said(describe: Callable[[dict], str]) -> str:
        return "; ".join(sorted({describe(row) for row in rows})) or "-"

    dates = sorted(str(row.get("date")) for row in rows)
    methods = "; ".join(f"{name}: {METHODS[name]}" for name in results.methods)
    return [
        f"Commit: {said(lambda r: str(r.get('commit')))}",
        f"Hardware: {said(_machine)}",
        f"jax {said(lambda r: str(r.get('jax')))}; {f'{dates[0]} to {dates[-1]}' if dates else 'nothing is done yet'}",
        f"Seeds {', '.join(map(str, results.seeds))}, of scene and training; {len(rows)} of {wanted} figures are there",
        f"Methods: {methods}",
        "Mean ± sample standard deviation over seeds; differences and shares are taken on each seed, then averaged",
        "Share closed: (method - plain) / (oracle - plain), PSNR",
        "Aligned PSNR: after the best sub-pixel shift of each view, borders cropped",
    ]


def _machine(row: dict) -> str:
    return f"{row.get('cores')} of the cores of {row.get('cpu')}, device {row.get('device')}"


def write_tables(folder: pathlib.Path, results: Results) -> list[Table]:
    """Writes results.csv, results.md and results.tex from what is there so far.

    Raises:
      UserError: the folder cannot be written.
    """
    tables, notes = all_tables(results), provenance(results)
    markdown = ["# Quality benchmark", "", *(f"- {note}" for note in notes)]
    latex = ["% needs \\usepackage{booktabs}", *(f"% {note}" for note in notes)]
    for table in tables:
        markdown += ["", f"## {table.title}", "", markdown_table(table.header, table.rows)]
        latex += ["", f"% {table.title}", latex_table(table.header, table.rows)]
    write_atomic(folder / "results.csv", csv_text(results).encode())
    write_atomic(folder / "results.md", ("\n".join(markdown) + "\n").encode())
    write_atomic(folder / "results.tex", ("\n".join(latex) + "\n").encode())
    return tables
