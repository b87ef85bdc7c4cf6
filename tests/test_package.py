"""The metadata of the package: every import is declared, and the citation can be read."""

import ast
import pathlib
import re
import sys
import tomllib

import yaml

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("bags_jax", "configs", "experiments")
SOURCES = [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))]

# Packages whose import has another name than on the index.
DISTRIBUTIONS = {"PIL": "pillow", "cv2": "opencv-python-headless", "absl": "absl-py", "orbax": "orbax-checkpoint"}


def canonical(requirement: str) -> str:
    """The package name of a requirement as the index writes it (PEP 503)."""
    name = re.match(r"[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", name[0]).lower() if name else ""


def third_party(nodes) -> set[str]:
    """Names on the package index of the absolute imports among some syntax nodes."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
    tops = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {*PACKAGES}
    return {canonical(DISTRIBUTIONS.get(top, top)) for top in tops}


def test_every_import_is_declared():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    required = {canonical(line) for line in (ROOT / "requirements.txt").read_text().splitlines()}
    optional = {canonical(line) for name in extras if name not in ("dev", "docs") for line in extras[name]}
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        missing = third_party(tree.body) - required
        assert not missing, f"{path} imports {missing}: not in requirements.txt"
        missing = third_party(ast.walk(tree)) - required - optional
        assert not missing, f"{path} imports {missing}: in no requirement and no extra"


def test_configurations_import_the_package_alone():
    """They load from anywhere, so they cannot import each other."""
    for path in (ROOT / "configs").glob("*.py"):
        tops = {
            (node.module or "").partition(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom)
        }
        assert tops <= {"bags_jax", "typing"}, path


def test_citation_names_the_paper_and_its_authors():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    paper = cited["preferred-citation"]
    assert cited["cff-version"] == "1.2.0" and cited["type"] == "software" and cited["authors"]
    assert paper["title"].startswith("BAGS") and len(paper["authors"]) == 7 and paper["year"] == 2024
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert paper["url"] == urls["Paper"]
