"""Lets autodoc show signatures and fields as they are written in the source, and docstrings as plain text."""

import ast
import dataclasses
import inspect
import io
import pathlib
import re
import textwrap
import tokenize
from typing import Any

from find_lines import ROOT
from source_lines import page_name, remember
from sphinx.application import Sphinx

import bags_jax


class _NumbersAsWritten(ast.NodeTransformer):
    """Keeps 1e10 from becoming 10000000000.0."""

    def __init__(self, source: str):
        self.source = source

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        written = ast.get_source_segment(self.source, node)
        return ast.Name(id=written) if isinstance(node.value, float) and written else node


def write_signature(app, what: str, name: str, obj: Any, options, signature, returns):
    """Arguments and result as they stand in the source: jaxtyping's shapes, not what Python makes of them."""
    del app, name, options, signature, returns
    if what == "exception":
        return None
    if what == "class":
        return "", None
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(obj)))
    function = _NumbersAsWritten(source).visit(ast.parse(source).body[0])
    if what == "method":
        function.args.args = function.args.args[1:]
    result = ast.unparse(function.returns) if function.returns else None
    return f"({ast.unparse(function.args)})", result


def read_docstring(app, what: str, name: str, obj: Any, options, lines: list[str]) -> None:
    """Turns a docstring, which is plain text with `code`, into reStructuredText for napoleon."""
    del app, what, name, obj, options
    lines[:] = [_escape(line) for line in _returns_as_field(lines)]


def _returns_as_field(lines: list[str]) -> list[str]:
    """Writes the section Returns as a field, because napoleon takes words before a colon in it for a type."""
    if "Returns:" not in lines:
        return lines
    start = lines.index("Returns:")
    stop = next((i for i in range(start + 1, len(lines)) if lines[i][:1] != " "), len(lines))
    text = " ".join(line.strip() for line in lines[start + 1 : stop])
    return [*lines[:start], "", f":returns: {text}", *lines[stop:]]


def _escape(line: str) -> str:
    """Takes asterisks, bars and underscores as text, and links `name` if it is public."""
    text = line.lstrip(" *")
    start = line[: len(line) - len(text)]  # with the asterisks of *args and **kwargs, which napoleon knows
    text = re.sub(r"(?<!`)\b(\w+=--\w[\w=]*)", r"`\1`", text)  # no dash is made of the hyphens of an option
    parts = text.split("`")
    for i, part in enumerate(parts):
        code = f":py:obj:`~bags_jax.{part}`" if part in bags_jax.__all__ else f"``{part}``"
        parts[i] = code if i % 2 else re.sub(r"([*|]|_(?=\W|$))", r"\\\1", part)
    return start + "".join(parts)


def list_fields(app, what: str, name: str, obj: Any, options, lines: list[str]) -> None:
    """Adds a table of the fields of a struct, with the comment beside each."""
    del app, name, options
    if what != "class" or not dataclasses.is_dataclass(obj):
        return
    fields = [field for field in read_fields(obj) if not field[0].startswith("_")]
    if fields:
        lines += ["", ".. list-table::", "   :class: fields", "   :widths: 22 36 42", ""]
    for field, kind, comment in fields:
        lines += [f"   * - ``{field}``", f"     - ``{kind}``", f"     - {comment}".rstrip()]
    lines += [""]


def read_fields(cls: Any) -> list[tuple[str, str, str]]:
    """Name, type and comment of each field, from the source of a class."""
    source = textwrap.dedent(inspect.getsource(cls))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    rows = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            comment = " ".join(comments[line] for line in lines if line in comments)
            rows.append((node.target.id, ast.unparse(node.annotation), comment.replace("*", r"\*")))
    return rows


def find_source(app: Sphinx, domain: str, info: dict) -> str | None:
    """Address of the line where a public name is defined."""
    if domain != "py" or not info["module"]:
        return None
    obj: Any = __import__(info["module"])
    for part in info["fullname"].split("."):
        obj = inspect.unwrap(getattr(obj, part))
    path = pathlib.Path(inspect.getfile(obj)).relative_to(ROOT).as_posix()
    remember(app.env, path)
    return f"{page_name(path)}.html#line-{inspect.getsourcelines(obj)[1]}"


def setup(app: Sphinx) -> dict:
    app.config.linkcode_resolve = lambda domain, info: find_source(app, domain, info)
    app.connect("autodoc-process-signature", write_signature)
    app.connect("autodoc-process-docstring", read_docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", list_fields, priority=600)  # after it
    return {"parallel_read_safe": False, "parallel_write_safe": True}
