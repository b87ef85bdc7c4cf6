"""The role {line}`path:name`: the file and line where a name is defined, linked to a page with that file.

An unknown name is a warning, and so an error of the build: pages cannot name code that is gone.
"""

import pathlib
from collections.abc import Iterator

from docutils import nodes
from find_lines import ROOT, find_line
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxRole

FOLDER = "_source"


class LineRole(SphinxRole):
    """Text `file.py:12`, with the name beside it."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        try:
            file, number = find_line(self.text)
        except LookupError as error:
            message = self.inliner.reporter.warning(str(error), line=self.lineno)  # type: ignore[attr-defined]
            return [nodes.literal(self.text, self.text)], [message]
        self.env.note_dependency(str(file))  # the page is read again when lines move
        path = file.relative_to(ROOT).as_posix()
        _, _, name = self.text.partition(":")
        depth = self.env.docname.count("/")
        url = f"{'../' * depth}{page_name(path)}.html#line-{number}"
        label = path.removeprefix("bags_jax/") + (f":{number}" if name else "")
        link = nodes.reference("", "", internal=True, refuri=url, classes=["source-line"], reftitle=self.text)
        link += nodes.literal(label, label)
        if name:
            link += nodes.inline(name, f" {name.rpartition('.')[2]}", classes=["source-name"])
        remember(self.env, path)
        return [link], []


def page_name(path: str) -> str:
    """Name of the page with a source file."""
    return f"{FOLDER}/{path}"


def remember(env, path: str) -> None:
    """Adds a source file to the pages that are made."""
    if not hasattr(env, "source_files"):
        env.source_files = set()
    env.source_files.add(path)


def make_pages(app: Sphinx) -> Iterator[tuple[str, dict, str]]:
    """Pages of all source files that other pages link to."""
    for path in sorted(getattr(app.env, "source_files", ())):
        if not (ROOT / path).is_file():  # remembered by an earlier build
            continue
        text = pathlib.Path(ROOT, path).read_text(encoding="utf-8")
        formatter = HtmlFormatter(linenos="inline", lineanchors="line", anchorlinenos=True, cssclass="highlight")
        body = highlight(text, get_lexer_for_filename(path, stripnl=False), formatter)
        yield page_name(path), {"title": path, "body": f'<h1 class="source-file">{path}</h1>{body}'}, "page.html"


def setup(app: Sphinx) -> dict:
    app.add_role("line", LineRole())
    app.connect("html-collect-pages", make_pages)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
