"""Tables in Markdown (aligned, for the terminal too) and in LaTeX."""

import re
from collections.abc import Mapping, Sequence

from bags_jax.errors import UserError

SCORES = ("PSNR", "SSIM", "LPIPS")
_NUMBER = re.compile(r"[-+±]?([0-9.,]+|inf|nan)( ± [0-9.,]+)?( ?[a-zA-Z%/°]+)?|-|missing|")
_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "±": r"$\pm$"}


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a Markdown table with aligned columns; numeric columns are right-aligned. No newline at the end.

    Raises:
      UserError: a row and the header differ in length.
    """
    _check_lengths(header, rows)
    header, rows = [_cell(text) for text in header], [[_cell(text) for text in row] for row in rows]
    columns = list(zip(header, *rows))
    widths = [max(3, *map(len, column)) for column in columns]
    right = [_is_numeric(column[1:]) for column in columns]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(cells, widths, right)]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * (width - 1) + ":" if r else "-" * width for width, r in zip(widths, right)]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def latex_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""Formats a LaTeX tabular with the rules of the booktabs package (\usepackage{booktabs}). No newline at the end.

    Adds a small vertical space between two rows whose first cells differ: rows of one case form a group.

    Raises:
      UserError: a row and the header differ in length.
    """
    _check_lengths(header, rows)
    columns = "".join("r" if _is_numeric([row[i] for row in rows]) else "l" for i in range(len(header)))
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _latex_line(header), r"\midrule"]
    for above, row in zip([None, *rows], rows):
        if above is not None and above[0] != row[0]:
            lines.append(r"\addlinespace")
        lines.append(_latex_line(row))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(map(latex_cell, cells)) + r" \\"


def latex_cell(text: str) -> str:
    """Escapes a text for LaTeX."""
    text = " ".join(str(text).split())
    if _NUMBER.fullmatch(text) and text.startswith("-") and text != "-":
        return "$-$" + latex_cell(text[1:])  # a minus sign, not a hyphen
    return "".join(_LATEX.get(c, c) for c in text)


def _check_lengths(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in rows:
        if len(row) != len(header):
            raise UserError(f"a table row has {len(row)} cells; expected {len(header)}, as many as the header: {row}")


def _is_numeric(column: Sequence[str]) -> bool:
    return len(column) > 0 and all(_NUMBER.fullmatch(cell) for cell in column)


def format_scores(scores: Mapping[str, float | None]) -> list[str]:
    """Formats the cells of SCORES: PSNR with 2 decimals, SSIM and LPIPS with 3; "-" for None."""
    digits = dict(zip(SCORES, (2, 3, 3), strict=True))
    return ["-" if scores[name] is None else f"{scores[name]:.{places}f}" for name, places in digits.items()]


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", r"\|")  # a bar or a newline would end the cell
