"""The selector of backends: its table, "auto", explicit names, refusals, and shapes without compiled code."""

import re

import jax
import jax.numpy as jnp
import pytest
from splats import HEIGHT, WIDTH, make_splats, project_splats

from bags_jax.errors import UserError
from bags_jax.ops import backends
from bags_jax.ops.backends import BACKENDS, TABLE, choose, describe, explain
from bags_jax.ops.blur import stream_blur
from bags_jax.ops.convolution import convolve
from bags_jax.ops.rasterize import batches_cameras, count_intersections, measure_buffer, rasterize
from bags_jax.ops.ssim import ssim
from bags_jax.ops.toolchain import cpp_build

OPERATORS = tuple(TABLE)


@pytest.fixture
def machine(monkeypatch):
    """Pretends to run on a platform where some backends have a problem; nothing was said before."""

    def pretend(platform: str, **problems: str):
        monkeypatch.setattr(jax, "default_backend", lambda: platform)
        table = {
            operator: {
                name: cell._replace(find_problem=lambda name=name: problems.get(name, "")) for name, cell in row.items()
            }
            for operator, row in TABLE.items()
        }
        monkeypatch.setattr(backends, "TABLE", table)

    backends._warn_once.cache_clear()
    yield pretend
    backends._warn_once.cache_clear()


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_has_a_backend_for_every_platform(operator):
    assert list(TABLE[operator].values())[-1].platform == "" and TABLE[operator]["xla"].platform == ""
    assert set(TABLE[operator]) <= set(BACKENDS)
    platforms = {"cpu": "cpu", "cuda": "gpu", "tpu": "tpu", "xla": ""}
    assert all(cell.platform == platforms.get(name, cell.platform) for name, cell in TABLE[operator].items())


BEST = {
    "cpu": {**dict.fromkeys(OPERATORS, "cpu"), "see": "xla"},
    "gpu": {**dict.fromkeys(OPERATORS, "cuda"), "convolution": "xla"},
    "tpu": {**dict.fromkeys(OPERATORS, "xla"), "rasterize": "tpu"},
    "metal": dict.fromkeys(OPERATORS, "xla"),
}


@pytest.mark.parametrize("platform", BEST)
def test_auto_takes_the_best_of_the_machine(machine, platform, recwarn):
    machine(platform)
    assert {operator: choose(operator) for operator in OPERATORS} == BEST[platform]
    assert not recwarn.list


@pytest.mark.parametrize(
    "platform, broken, better", [("cpu", "cpu", "rasterize"), ("gpu", "cuda", "blur"), ("tpu", "tpu", "rasterize")]
)
def test_auto_says_once_why_a_better_backend_is_not_taken(machine, recwarn, platform, broken, better):
    machine(platform, **{broken: "it is broken"})
    for _ in range(2):
        assert {choose(operator) for operator in OPERATORS} == {"xla"}
    (warning,) = recwarn.list
    assert str(warning.message) == f"bags_jax: backend '{broken}' cannot be used, plain XLA is slower: it is broken"
    assert explain(better, broken) == "it is broken" and explain(better, "xla") == ""


def test_switching_the_cpp_off_needs_no_warning(machine, recwarn):
    machine("cpu", cpu=cpp_build.FORBIDDEN)
    assert choose("rasterize") == "xla" and not recwarn.list


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_explicit_backend_is_taken_or_runs_on_xla(machine, operator, recwarn):
    machine("gpu", cpu="no CPU", tpu="no TPU")
    assert choose(operator, "cuda") == ("cuda" if "cuda" in TABLE[operator] else "xla")
    assert choose(operator, "xla") == "xla" and not recwarn.list
    for name in ("cpu", "tpu"):
        with pytest.raises(UserError, match=f"backend='{name}' cannot be used: no {name.upper()}; backend='auto'"):
            choose(operator, name)
    with pytest.raises(ValueError, match="backend='metal' came, expected one of auto, cpu, cuda, tpu, xla"):
        choose(operator, "metal")


def test_shapes_without_code_run_on_xla_and_say_so_once(machine, recwarn):
    machine("gpu")
    for name in ("auto", "cuda", "auto"):
        assert choose("blur", name, unsupported="too wide") == "xla"
    (warning,) = recwarn.list
    assert str(warning.message) == "bags_jax: blur runs in plain XLA, which is slower: too wide"
    assert choose("blur", "xla", unsupported="another") == "xla" and len(recwarn.list) == 1


def test_the_table_as_text(machine, recwarn):
    machine("gpu", cuda="no driver")
    lines = describe().splitlines()
    assert lines[0].split() == ["operator", "backend", "on", "gpu"]
    assert [tuple(line.split()[:2]) for line in lines[1:]] == [(op, name) for op, row in TABLE.items() for name in row]
    assert re.search(r"^rasterize +cuda +no driver$", describe(), re.MULTILINE)
    assert re.search(r"^rasterize +cpu +JAX runs on gpu, needs cpu$", describe(), re.MULTILINE)
    assert re.search(r"^blur +xla +used$", describe(), re.MULTILINE)
    assert explain("ssim", "tpu") == "not implemented: runs on xla"
    machine("cpu")
    assert explain("ssim", "xla") == "cpu is faster here" and not recwarn.list


def call(operator: str, backend: str):
    """Calls a public operator with a small input."""
    image = jnp.linspace(0.0, 1.0, 8 * 8 * 3).reshape(8, 8, 3)
    if operator == "rasterize":
        projected = project_splats(make_splats(), 0)
        features = jnp.ones((len(projected.depths), 3))
        size = {"width": WIDTH, "height": HEIGHT, "max_intersections": 4096}
        return rasterize(projected, features, **size, backend=backend).colors
    if operator == "blur":
        layer = jnp.ones((8, 8, 2)), jnp.ones((2, 9)), jnp.arange(9.0)
        return stream_blur(jnp.moveaxis(image, -1, 0), *layer, stride=1, bound=2.0, backend=backend)[0]
    if operator == "ssim":
        return ssim(image, image[::-1], jnp.ones((8, 8), bool), backend=backend)
    return convolve(image, jnp.ones((3, 3, 3, 2)), backend=backend)


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_take_a_backend(operator):
    """The machine's best one and XLA agree. What this machine lacks is refused by all alike."""
    assert jnp.allclose(call(operator, "auto"), call(operator, "xla"), atol=1e-5)
    for name in BACKENDS:
        if problem := backends._find(name).find_problem():
            if name in TABLE[operator] and not TABLE[operator][name].find_problem():
                continue  # the convolution for CPUs needs no compiler
            with pytest.raises(UserError, match=f"backend='{name}' cannot be used: {re.escape(problem)}"):
                call(operator, name)
        else:
            assert jnp.isfinite(call(operator, name)).all()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a machine without accelerators")
def test_messages_say_what_is_missing():
    for name, missing in (("cuda", "needs an NVIDIA GPU and pip install"), ("tpu", "needs a TPU and pip install")):
        with pytest.raises(ValueError, match=missing):
            choose("ssim", name)


def test_tile_sizes(backend):
    """None is the size that a backend is best at; others are taken or refused, never ignored."""
    projected = project_splats(make_splats(), 0)
    count = lambda tile_size: int(
        count_intersections(projected, width=WIDTH, height=HEIGHT, tile_size=tile_size, backend=backend)
    )
    own, others = (16, (8, 20)) if backend in ("cuda", "tpu") else (8, (16, 20))
    if backend not in ("xla", "cpu", "cuda", "tpu") and not count(None):
        pytest.skip(f"{backend} has no tiles")  # as the backend of docs/extending_backend.md
    assert count(None) == count(own) > 0
    for tile_size in others:
        if own == 8:
            assert count(tile_size) < count(own)
            continue
        draw = lambda tile_size=tile_size: rasterize(
            projected,
            jnp.ones((len(projected.depths), 1)),
            width=WIDTH,
            height=HEIGHT,
            tile_size=tile_size,
            backend=backend,
        )
        for function in (lambda tile_size=tile_size: count(tile_size), draw):
            with pytest.raises(
                ValueError, match=f"tile_size={tile_size} came with backend='{backend}'.* tiles of 16 px"
            ):
                function()


def test_a_buffer_is_measured_in_the_tiles_of_the_backend(backend):
    projected = project_splats(make_splats(), 0)
    size = {"width": WIDTH, "height": HEIGHT, "backend": backend}
    assert measure_buffer(projected, **size) >= int(count_intersections(projected, **size))
    assert batches_cameras(backend) is (backend == "cuda")


@pytest.mark.parametrize("flags, num_warnings", [("", 1), ("--xla_gpu_deterministic_ops=true", 0)])
def test_deterministic_xla_on_a_gpu_needs_a_flag(machine, monkeypatch, recwarn, flags, num_warnings):
    from bags_jax.ops.rasterize import _check_xla_is_deterministic

    machine("gpu")
    _check_xla_is_deterministic.cache_clear()
    monkeypatch.setenv("XLA_FLAGS", flags)
    projected = project_splats(make_splats(), 0)
    draw = lambda x: rasterize(
        projected, x, width=WIDTH, height=HEIGHT, max_intersections=64, backend="xla", deterministic=True
    )
    for _ in range(2):
        jax.eval_shape(draw, jnp.ones((len(projected.depths), 1)))
    found = [w for w in recwarn.list if "deterministic=True" in str(w.message)]
    assert len(found) == num_warnings
