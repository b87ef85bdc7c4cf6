"""Finds the line on which a name of the source code is defined."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]


def find_line(target: str) -> tuple[pathlib.Path, int]:
    """The file and line of "path:name", for example "bags_jax/settings.py:Loss.ssim".

    In Python files the name is a function, class, field or constant; in other files the first line with this word counts.

    Raises:
      LookupError: the file or the name does not exist.
    """
    path, _, name = target.partition(":")
    file = ROOT / path
    if not file.is_file():
        raise LookupError(f"{target}: there is no file {path}")
    text = file.read_text(encoding="utf-8")
    if not name:
        return file, 1
    line = _line_in_python(ast.parse(text), name) if file.suffix == ".py" else _line_with_word(text, name)
    if not line:
        raise LookupError(f"{target}: {path} has no {name}")
    return file, line


def _line_in_python(tree: ast.AST, name: str) -> int:
    """Follows a dotted name into classes and functions; 0: not found."""
    scope = tree
    for part in name.split("."):
        found = next((node for node in getattr(scope, "body", ()) if part in _names(node)), None)
        if found is None:
            return 0
        scope = found
    return getattr(scope, "lineno", 0)


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.AnnAssign):
        return [node.target.id] if isinstance(node.target, ast.Name) else []
    if isinstance(node, ast.Assign):
        return [n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)]
    return []


def _line_with_word(text: str, word: str) -> int:
    lines = enumerate(text.splitlines(), start=1)
    return next((number for number, line in lines if re.search(rf"\b{re.escape(word)}\b", line)), 0)
