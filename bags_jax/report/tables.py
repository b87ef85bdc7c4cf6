"""Tables in Markdown that read as well in a terminal."""

import re
from collections.abc import Sequence

from bags_jax.errors import UserError
from bags_jax.metrics import Scores

_NUMBER = re.compile(r"[-+±]?([0-9.,]+|inf|nan)( ?[a-zA-Z%/°]+)?|-|")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; columns of numbers alone are flush right. No newline at the end.

    Raises:
      UserError: a row of another length than the header.
    """
    header, rows = [_cell(text) for text in header], [[_cell(text) for text in row] for row in rows]
    for row in rows:
        if len(row) != len(header):
            raise UserError(f"a table row has {len(row)} cells; expected {len(header)}, as many as the header: {row}")
    columns = list(zip(header, *rows))
    widths = [max(3, *map(len, column)) for column in columns]
    right = [len(column) > 1 and all(_NUMBER.fullmatch(cell) for cell in column[1:]) for column in columns]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(cells, widths, right)]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * (width - 1) + ":" if r else "-" * width for width, r in zip(widths, right)]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def format_scores(scores: Scores) -> tuple[str, str, str]:
    """PSNR with 2 decimals, SSIM and LPIPS with 3; "-" for a score that there is not."""
    return f"{scores.psnr:.2f}", f"{scores.ssim:.3f}", "-" if scores.lpips is None else f"{scores.lpips:.3f}"


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", r"\|")  # a bar or a newline would break the table
