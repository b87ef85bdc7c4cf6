"""The directive {settings}: a section with a table for each group of bags_jax/settings.py."""

import dataclasses
import inspect
import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from bags_jax.settings import Settings, rows


class SettingsDirective(SphinxDirective):
    """Lists every setting with default, unit, range and meaning."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(inspect.getsourcefile(Settings) or "")
        return self.parse_text_to_nodes(settings_page(), allow_section_headings=True)


def settings_page() -> str:
    """Markdown of all groups."""
    groups = {"": Settings}
    groups |= {f.name: type(f.default) for f in dataclasses.fields(Settings) if dataclasses.is_dataclass(f.default)}
    return "\n\n".join(_section(name, group) for name, group in groups.items())


def _section(name: str, group: type) -> str:
    first, *rest = re.split(r"[.;](?:\s+|$)", inspect.cleandoc(group.__doc__ or ""), maxsplit=1)
    heading = f"## {first}" if not name else f"## `{name}`: {first[0].lower()}{first[1:]}"
    table = [":::{list-table}", ":header-rows: 1", ":class: settings", ":widths: 30 17 17 36", ""]
    lines = [heading, "", *rest, "", *table, "* - Setting", "  - Default", "  - Range", "  - Meaning"]
    for dotted, default, rule in rows():
        if dotted.rpartition(".")[0] == name:
            default = " ".join([f"`{_show(default)}`", *rule.unit.split()])
            lines += [f"* - `{dotted}`", f"  - {default}", f"  - {rule.expected}", f"  - {_escape(rule.meaning)}"]
    return "\n".join([*lines, ":::"])


def _show(value) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{x:g}" for x in value) or "()"
    return '""' if value == "" else str(value)


def _escape(text: str) -> str:
    return text.replace("*", r"\*").replace("$", r"\$").replace("<", r"\<")


def setup(app: Sphinx) -> dict:
    app.add_directive("settings", SettingsDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
