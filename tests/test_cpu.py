"""The C++ for CPUs: how it is built, what happens if not, and that threads and transforms change no result."""

import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from splats import HEIGHT, KINDS, WIDTH, make_splats, project_splats

from bags_jax.errors import UserError
from bags_jax.ops import backends
from bags_jax.ops.backends import choose
from bags_jax.ops.rasterize import rasterize
from bags_jax.ops.rasterize.cpu.binding import bin_intersections
from bags_jax.ops.rasterize.tiles import bin_tiles, count_intersections
from bags_jax.ops.toolchain import cpp_build

ROOT = pathlib.Path(__file__).parents[1]
SIZE = {"width": WIDTH, "height": HEIGHT}
CAPACITY = 2048
CAPACITY_OF_ALL = 32 * WIDTH * HEIGHT  # tiles of one pixel, each Gaussian in all of them
needs_cpp = pytest.mark.skipif(bool(cpp_build.find_problem()), reason="the C++ cannot be built on this machine")


def features_of(num: int, channels: int = 4):
    return jnp.asarray(np.random.default_rng(0).uniform(size=(num, channels)), jnp.float32)


def image_and_gradients(backend: str, projected, features, tile_size: int = 8, capacity: int = CAPACITY):
    def draw(projected, features):
        output = rasterize(
            projected, features, **SIZE, tile_size=tile_size, max_intersections=capacity, backend=backend
        )
        return output.colors, output.alphas

    image, pull = jax.vjp(draw, projected, features)
    weights = (features_of(HEIGHT * WIDTH, x.size // (HEIGHT * WIDTH)).reshape(x.shape) - 0.5 for x in image)
    return image, pull(tuple(weights))


native = jax.jit(lambda p, f: image_and_gradients("cpu", p, f))


def assert_equal(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_close(actual, expected, rtol: float = 1e-4):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(float(np.sqrt(np.mean(np.square(b)))), 0.1))


@needs_cpp
@pytest.mark.parametrize("kind", KINDS)
def test_intersections_equal_those_of_xla(kind):
    for camera, tile_size in ((0, 8), (1, 5)):
        projected = project_splats(make_splats(kind), camera)
        ours = bin_intersections(projected, **SIZE, tile_size=tile_size, max_intersections=CAPACITY)
        theirs = jax.jit(lambda p, t=tile_size: bin_tiles(p, **SIZE, tile_size=t, max_intersections=CAPACITY))(
            projected
        )
        total = int(theirs.num_intersections)
        assert ours.totals.tolist() == [total, 0]
        assert total == int(count_intersections(projected, **SIZE, tile_size=tile_size))
        np.testing.assert_array_equal(ours.starts, theirs.starts)
        np.testing.assert_array_equal(ours.gaussian_ids[:total], theirs.gaussian_ids[:total])
        assert sorted(ours.slots[:total].tolist()) == list(range(total))
        assert (ours.spans[:, 1] - ours.spans[:, 0]).sum() == total


@needs_cpp
@pytest.mark.parametrize("capacity", [1, 3, 50])
def test_small_buffer_keeps_the_nearest_and_counts_the_rest(capacity):
    projected = project_splats(make_splats("giants"), 0)
    everything = bin_intersections(projected, **SIZE, tile_size=8, max_intersections=CAPACITY)
    cut = bin_intersections(projected, **SIZE, tile_size=8, max_intersections=capacity)
    assert cut.totals.tolist() == [int(everything.totals[0]), int(everything.totals[0]) - capacity]
    assert cut.starts[-1] == capacity and cut.spans.max() == capacity
    visible = np.flatnonzero(np.diff(cut.spans).ravel())
    depths = np.asarray(projected.depths)
    behind = np.setdiff1d(np.flatnonzero(np.diff(everything.spans).ravel()), visible)
    assert depths[visible].max() <= depths[behind].min()


@needs_cpp
@pytest.mark.parametrize("channels", [1, 2, 3, 5, 8, 11])
def test_any_number_of_channels_equals_xla(channels):
    projected = project_splats(make_splats(), 0)
    features = features_of(len(projected.depths), channels)
    both = [jax.jit(image_and_gradients, static_argnums=0)(b, projected, features) for b in ("cpu", "xla")]
    assert_close(*both)


@needs_cpp
@pytest.mark.parametrize("tile_size", [1, 3, 8, 12, 16, 64])
def test_any_tile_size_equals_xla(tile_size):
    projected = project_splats(make_splats("opaque"), 1)
    features = features_of(len(projected.depths))
    default = native(projected, features)
    sized = jax.jit(image_and_gradients, static_argnums=(0, 3, 4))(
        "cpu", projected, features, tile_size, CAPACITY_OF_ALL
    )
    assert_close(sized, default)


@needs_cpp
def test_repeat_and_number_of_threads_change_no_bit(monkeypatch):
    projected, features = project_splats(make_splats("giants"), 0), features_of(32)
    first = native(projected, features)
    for threads in ("1", "2", "2", "1"):
        monkeypatch.setenv("BAGS_JAX_NUM_THREADS", threads)
        assert_equal(native(projected, features), first)


@needs_cpp
def test_vmap_map_scan_and_while_equal_one_call_after_the_other():
    views = [project_splats(make_splats("typical", seed=s), 0) for s in range(3)]
    stacked, features = jax.tree.map(lambda *x: jnp.stack(x), *views), features_of(32)
    expected = jax.tree.map(lambda *x: jnp.stack(x), *(native(view, features) for view in views))
    one = lambda p: image_and_gradients("cpu", p, features)

    def with_while(i_and_total):
        i, total = i_and_total
        return i + 1, total + one(jax.tree.map(lambda x: x[i], stacked))[0][1].sum()

    assert_equal(jax.jit(jax.vmap(one))(stacked), expected)
    assert_equal(jax.jit(lambda s: jax.lax.map(one, s))(stacked), expected)
    assert_equal(jax.jit(lambda s: jax.lax.scan(lambda c, p: (c, one(p)), 0, s)[1])(stacked), expected)
    total = jax.jit(lambda: jax.lax.while_loop(lambda c: c[0] < 3, with_while, (0, jnp.float32(0.0))))()[1]
    np.testing.assert_allclose(total, expected[0][1].sum(), rtol=1e-5)


@needs_cpp
def test_two_devices_equal_one():
    if jax.local_device_count() < 2:
        pytest.skip("needs two devices: XLA_FLAGS=--xla_force_host_platform_device_count=2")
    views = [project_splats(make_splats("typical", seed=s), 0) for s in range(2)]
    features = features_of(32)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *views)
    mapped = jax.pmap(lambda p: image_and_gradients("cpu", p, features))(stacked)
    assert_equal(mapped, jax.tree.map(lambda *x: jnp.stack(x), *(native(view, features) for view in views)))


@pytest.fixture
def fresh_build():
    """Forgets before and after the test which library is loaded and which warnings were given."""
    cpp_build._register.cache_clear()
    backends._warn_once.cache_clear()
    yield
    cpp_build._register.cache_clear()
    backends._warn_once.cache_clear()


@pytest.mark.usefixtures("fresh_build")
def test_without_a_compiler_auto_is_xla_and_says_so_once(monkeypatch, recwarn):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert [choose("rasterize") for _ in range(3)] == ["xla"] * 3
    (warning,) = recwarn.list
    assert "no C++ compiler" in str(warning.message) and "install one" in str(warning.message)
    with pytest.raises(UserError, match=r"backend='cpu' cannot be used: no C\+\+ compiler"):
        choose("rasterize", "cpu")


@pytest.mark.usefixtures("fresh_build")
def test_a_compiler_that_fails_is_reported(monkeypatch, tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'error: out of luck' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="failed: error: out of luck"):
        choose("rasterize", "cpu")
    assert not list((tmp_path / "cache").rglob("*.so"))


@pytest.mark.usefixtures("fresh_build")
def test_a_missing_compiler_is_reported(monkeypatch):
    monkeypatch.setenv("CXX", "no_such_cache g++")
    with pytest.raises(UserError, match="CXX is 'no_such_cache g\\+\\+', and no_such_cache is not in PATH"):
        choose("rasterize", "cpu")


@pytest.fixture
def quick_compiler(tmp_path) -> pathlib.Path:
    """A compiler that copies the library of this machine and logs its arguments."""
    program = tmp_path / "cache"
    calls = tmp_path / "calls"
    copy = f'case "$last" in *.so) cp {cpp_build.build()} "$last";; esac'
    program.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nfor last; do :; done\n{copy}\n')
    program.chmod(0o755)
    return program


@needs_cpp
def test_compiler_may_have_words_before_and_after_it(quick_compiler, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", f"{quick_compiler} {shutil.which('c++') or 'g++'} -DWORD")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cpp_build.build().is_file()
    assert "-DWORD -O3" in (tmp_path / "calls").read_text()


@needs_cpp
def test_the_first_build_says_so_on_stderr(quick_compiler, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("CXX", str(quick_compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = cpp_build.build()
    printed = capfd.readouterr()
    assert re.fullmatch(r"bags_jax: compiling the C\+\+ .*\nbags_jax: compiled in \d+\.\d s\n", printed.err)
    assert cpp_build.build() == first  # from the cache, silently
    assert printed.out == "" and capfd.readouterr() == ("", "")


@needs_cpp
@pytest.mark.usefixtures("fresh_build")
def test_a_cache_that_cannot_be_written_is_reported(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")  # not a read-only folder: root can write there
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot write .*: set XDG_CACHE_HOME"):
        choose("rasterize", "cpu")
    with pytest.warns(UserWarning, match="cannot write"):
        assert choose("rasterize") == "xla"


def test_the_environment_switches_it_off_silently(monkeypatch, recwarn):
    monkeypatch.setenv("BAGS_JAX_NATIVE", "0")
    assert choose("rasterize") == "xla" and not recwarn.list
    with pytest.raises(UserError, match="BAGS_JAX_NATIVE=0"):
        choose("rasterize", "cpu")


@needs_cpp
def test_of_builds_at_the_same_time_one_compiles(quick_compiler, tmp_path):
    code = "from bags_jax.ops.toolchain import cpp_build; print(cpp_build.build()); assert not cpp_build.find_problem()"
    settings = {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment = {**os.environ, **settings, "CXX": str(quick_compiler)}

    def run(_):
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        results = list(pool.map(run, range(3)))
    assert not [r.stderr for r in results if r.returncode]
    assert len({r.stdout for r in results}) == 1
    (library,) = (tmp_path / "bags_jax" / "native").iterdir()  # no temporary file is left
    assert library.suffix == ".so" and (tmp_path / "calls").read_text().count("-O3") == 1
