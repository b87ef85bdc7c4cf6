"""The rules of the house that a parser can check: who may import whom, what stays in one place, how long things get."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("bags_jax", "configs", "experiments", "tests")
FILES = sorted(p.relative_to(ROOT) for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))
PACKAGE = [p for p in FILES if p.parts[0] == "bags_jax"]

# From the lowest up; a folder stands for all its files. errors.py is below everything: whoever meets bad input raises.
LAYERS = (
    ("errors",),
    (
        "atomic",
        "cache_home",
        "structs",
        "numerics",
        "tone",
        "limits",
        "schedules",
        "sharpness",
        "parallel",
        "platforms",
    ),
    ("cuda", "native", "convolution"),
    ("blur_stream", "ssim"),
    ("geometry", "spherical_harmonics", "blur", "losses", "metrics", "data"),
    ("rasterize", "blur_network", "density", "optimizer", "pose_refinement", "camera_path"),
    ("render",),
    ("step",),
    ("checkpoint", "writers", "progress", "interruption", "export", "report", "initialize", "programs"),
    ("plan", "workdir"),
    ("train",),
    ("run",),
    ("look", "splat_file"),
    ("evaluate",),
    ("__init__",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
LOOPS = ("plan", "workdir", "train", "evaluate")


def parse(path: pathlib.Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), str(path))


def noun(path: pathlib.Path) -> str:
    """bags_jax/render.py -> render; bags_jax/data/colmap.py -> data."""
    return path.with_suffix("").parts[1]


def imported(tree: ast.AST, path: pathlib.Path) -> set[str]:
    """Dotted names that a file imports, wherever it does so: `from a import b` counts as a.b, relative ones are resolved."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = ".".join(path.parts[: len(path.parts) - node.level]) if node.level else ""
            module = ".".join(filter(None, (parent, node.module)))
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def wrong_imports(tree: ast.AST, path: pathlib.Path) -> list[str]:
    """Imports of a file of bags_jax that reach its own layer outside its folder, a higher one, or out of the package."""
    wrong = []
    for name in sorted(imported(tree, path)):
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if top in FOLDERS[1:]:
            wrong.append(f"{path} imports {name}: the package must not know {top}/")
        elif top == "bags_jax" and target not in RANK:
            wrong.append(f"{path} imports {name}: from bags_jax itself; name the module that has it")
        elif top == "bags_jax":
            same_folder = target == noun(path) and len(path.parts) > 2
            if not same_folder and RANK[target] >= RANK[noun(path)]:
                wrong.append(f"{path} (layer {RANK[noun(path)]}) imports {name} (layer {RANK[target]})")
    return wrong


def words(tree: ast.AST) -> set[str]:
    """Every identifier of a file, imports included; comments and strings are not looked at."""
    found = {part for node in ast.walk(tree) if isinstance(node, ast.alias) for part in node.name.split(".")}
    found |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return found | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("path", PACKAGE, ids=str)
def test_imports_only_from_lower_layers(path):
    assert noun(path) in RANK, f"{path} has no layer: give it one in LAYERS, tests/test_layers.py"
    assert not wrong_imports(parse(path), path)


@pytest.mark.parametrize(
    "file, line, is_wrong",
    [
        ("render.py", "from bags_jax import geometry", False),
        ("render.py", "from bags_jax.ops.rasterize import rasterize", False),
        ("render.py", "import bags_jax.step", True),
        ("render.py", "def f():\n  from bags_jax.step import train_step", True),
        ("render.py", "from bags_jax import rasterization", True),
        ("render.py", "import configs.base", True),
        ("render.py", "from . import step", True),
        ("losses.py", "from bags_jax.metrics import psnr", True),
        ("losses.py", "from bags_jax.errors import UserError", False),
        ("data/llff.py", "from bags_jax.data.scene import Scene", False),
        ("data/llff.py", "from .scene import Scene", False),
        ("data/llff.py", "from ..step import train_step", True),
        ("data/__init__.py", "from .scene import Scene", False),
        ("__init__.py", "from bags_jax.training import train", False),
    ],
)
def test_wrong_imports_are_seen(file, line, is_wrong):
    assert bool(wrong_imports(ast.parse(line), pathlib.Path("bags_jax", file))) is is_wrong


def test_only_parallel_says_pmap():
    allowed = {pathlib.Path("bags_jax/parallel.py")}
    assert {p for p in FILES if p.parts[0] != "tests" and words(parse(p)) & {"pmap", "shard_map"}} <= allowed


def test_only_the_loops_and_the_loaders_read_configs_and_clocks():
    for path in PACKAGE:
        outside = {name.partition(".")[0] for name in imported(parse(path), path)} & {"ml_collections", "absl", "time"}
        assert not outside or noun(path) in (*LOOPS, "data"), f"{path} imports {outside}"


def test_only_tests_and_benchmarks_import_the_oracle():
    oracle = "bags_jax.ops.rasterize.reference."
    for path in FILES:
        names = sorted(name for name in imported(parse(path), path) if f"{name}.".startswith(oracle))
        assert not names or path.parts[0] == "tests" or path.parts[1] == "benchmarks", f"{path} imports {names}"


def test_every_file_is_named_for_what_it_holds():
    assert not [p for p in FILES if {"utils", "util", "common", "helpers", "misc"} & set(p.with_suffix("").parts)]


@pytest.mark.parametrize("path", [p for p in FILES if p.parts[0] != "tests"], ids=str)
def test_files_and_functions_are_short(path):
    text = (ROOT / path).read_text()
    lengths = {
        f"{path}:{n.lineno} {n.name}": (n.end_lineno or 0) - n.lineno + 1
        for n in ast.walk(ast.parse(text))
        if isinstance(n, ast.FunctionDef)
    }
    num_lines = text.count("\n")
    assert num_lines <= 450, f"{path}: {num_lines} lines; look for the missing noun"
    assert not {name: length for name, length in lengths.items() if length > 80}, "look for the missing noun"
