"""The public API is a contract: tests/golden/api.txt has every name of bags_jax.__all__ with its signature.

After a wanted change: `.venv/bin/python tests/test_api.py --write`, and a line in CHANGELOG.md.
"""

import ast
import inspect
import pathlib
import sys
import textwrap

import pytest

GOLDEN = pathlib.Path(__file__).parent / "golden" / "api.txt"


def source_tree(value) -> ast.FunctionDef | ast.ClassDef:
    """The definition as it is written, whatever decorators made of it: jit, custom_vjp, beartype in these tests."""
    node = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(value)))).body[0]
    assert isinstance(node, ast.FunctionDef | ast.ClassDef), f"{value} is neither a function nor a class"
    return node


def signature(function: ast.FunctionDef) -> str:
    result = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"{function.name}({ast.unparse(function.args)}){result}"


def describe(name: str, value) -> list[str]:
    """One line for a function, one for a class and each of its public fields and methods, type for anything else."""
    if inspect.ismodule(value):
        return [f"{name}: module"]
    if not callable(value):
        return [f"{name}: {type(value).__name__}"]
    tree = source_tree(value)
    if isinstance(tree, ast.FunctionDef):
        return [signature(tree)]
    fields = [ast.unparse(n) for n in tree.body if isinstance(n, ast.AnnAssign)]
    methods = [signature(n) for n in tree.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
    bases = f"({', '.join(map(ast.unparse, tree.bases))})" if tree.bases else ""
    return [f"class {name}{bases}", *(f"  {line}" for line in fields + methods)]


def public_api() -> dict[str, object]:
    import bags_jax

    return {name: getattr(bags_jax, name) for name in bags_jax.__all__}


def written(api: dict[str, object]) -> str:
    return "".join(f"{line}\n" for name in sorted(api) for line in describe(name, api[name]))


def test_signatures_are_those_agreed_on():
    assert GOLDEN.is_file(), "no tests/golden/api.txt: write it with `python tests/test_api.py --write`"
    assert written(public_api()) == GOLDEN.read_text(), "the API changed: see the first lines of tests/test_api.py"


def test_every_name_is_documented():
    assert not [name for name, value in public_api().items() if callable(value) and not inspect.getdoc(value)]


def test_every_argument_and_result_is_annotated():
    for name, value in public_api().items():
        tree = source_tree(value) if callable(value) else None
        if isinstance(tree, ast.FunctionDef):
            args = [*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs]
            missing = [arg.arg for arg in args if arg.annotation is None] + ["result"] * (tree.returns is None)
            assert not missing, f"{name} has no annotation for {missing}"


def test_describes_functions_and_classes():
    lines = describe("ast_signature", signature) + describe("Camera", _camera())
    assert lines[0] == "signature(function: ast.FunctionDef) -> str"
    assert lines[1] == "class Camera"
    assert lines[2] == "  viewmat: Float[Array, '*V 4 4']"


def _camera():
    from bags_jax.structs import Camera

    return Camera


@pytest.mark.parametrize(
    "viewmats, Ks",
    [((3, 3), (3, 3)), ((4, 4), (4, 4)), ((2, 4, 4), (3, 3, 3)), ((2, 4, 4), (3, 3))],
)
def test_shapes_of_structs_are_executed(viewmats, Ks):
    import jax.numpy as jnp

    _camera()(viewmat=jnp.zeros((2, 4, 4)), K=jnp.zeros((2, 3, 3)))
    with pytest.raises(TypeError, match="Camera"):
        _camera()(viewmat=jnp.zeros(viewmats), K=jnp.zeros(Ks))


def test_shapes_of_functions_are_executed():
    import jax.numpy as jnp
    import jaxtyping

    from bags_jax.spherical_harmonics import sh_basis

    assert sh_basis(jnp.ones((2, 3)), degree=0).shape == (2, 1)
    with pytest.raises(jaxtyping.TypeCheckError):
        sh_basis(jnp.ones((2, 2)), degree=0)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_api.py --write")
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(written(public_api()))
    print(f"wrote {GOLDEN}")
