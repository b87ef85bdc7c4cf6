"""The rasterizer against the oracle: images and gradients of random scenes, and invariances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from splats import (
    HEIGHT,
    KINDS,
    WIDTH,
    Splats,
    alphas_in_order,
    make_splats,
    on_cutoff,
    project_splats,
    rasterize_dense,
    rotation,
)

from bags_jax.errors import UserError
from bags_jax.ops.rasterize import buffer_size
from bags_jax.splatting import rasterization

MODES = ("classic", "antialiased")


def rasterize_tiled(splats: Splats, *, backend: str, mode: str = "classic", render_mode: str = "RGB+D"):
    options = {"rasterize_mode": mode, "render_mode": render_mode, "backend": backend}
    colors, alphas, _ = rasterization(*splats, WIDTH, HEIGHT, **options)
    return colors, alphas


def with_gradients(function, splats: Splats, cotangents):
    output, pull = jax.vjp(function, splats)
    return output, pull(cotangents)[0]


_dense = jax.jit(
    lambda splats, cotangents, antialiased: with_gradients(
        lambda s: rasterize_dense(s, antialiased=antialiased), splats, cotangents
    ),
    static_argnums=2,
)


def cutoff_pixels(splats: Splats, mode: str) -> np.ndarray:
    views = [project_splats(splats, c, antialiased=mode == "antialiased") for c in range(len(splats.viewmats))]
    return np.stack([on_cutoff(alphas_in_order(view, width=WIDTH, height=HEIGHT)) for view in views])


def random_cotangents(cut: np.ndarray, seed: int = 7):
    """Draws random weights for colours, depth and alphas; 0 where rounding decides what is drawn."""
    rng = np.random.default_rng(seed)
    shape = cut.shape
    return tuple(jnp.asarray(rng.normal(size=(*shape, d)) * ~cut[..., None], jnp.float32) for d in (4, 1))


def assert_gradients_agree(actual: Splats, expected: Splats, rtol: float = 1e-3):
    for name, a, b in zip(Splats._fields, actual, expected, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.isfinite(a).all(), name
        assert np.linalg.norm(a - b) <= rtol * np.linalg.norm(b), name
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.sqrt(np.mean(b**2)), err_msg=name)


def compare_with_oracle(splats: Splats, mode: str, backend: str):
    cut = cutoff_pixels(splats, mode)
    assert cut.mean() < 0.01  # a scene with many pixels on a cutoff would test nothing
    cotangents = random_cotangents(cut)
    tiled = functools.partial(rasterize_tiled, mode=mode, backend=backend)
    (colors, alphas), gradients = with_gradients(tiled, splats, cotangents)
    (colors_dense, alphas_dense), gradients_dense = _dense(splats, cotangents, mode == "antialiased")
    np.testing.assert_allclose(alphas[~cut], alphas_dense[~cut], atol=2e-5)
    np.testing.assert_allclose(colors[..., :3][~cut], colors_dense[..., :3][~cut], atol=2e-5)
    far = max(1.0, float(jnp.max(colors_dense[..., 3])))  # depth is not in [0, 1]: 2e-5 relative to the largest
    np.testing.assert_allclose(colors[..., 3][~cut], colors_dense[..., 3][~cut], atol=2e-5 * far)
    assert_gradients_agree(gradients, gradients_dense)
    return alphas


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_oracle(kind, mode, backend):
    alphas = compare_with_oracle(make_splats(kind), mode, backend)
    assert float(alphas.max()) > 0.5  # something is visible


def test_one_gaussian_equals_oracle(backend):
    compare_with_oracle(make_splats(num=1), "classic", backend)


def test_no_gaussian_is_background(backend):
    splats = make_splats()
    empty = Splats(*(x[:0] for x in splats[:5]), *splats[5:])
    backgrounds = jnp.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])

    def total(splats):
        colors, alphas, meta = rasterization(*splats, WIDTH, HEIGHT, backgrounds=backgrounds, backend=backend)
        return jnp.sum(colors) + jnp.sum(alphas), (colors, alphas, meta)

    gradients, (colors, alphas, meta) = jax.grad(total, has_aux=True)(empty)
    np.testing.assert_array_equal(colors, np.broadcast_to(backgrounds[:, None, None], (2, HEIGHT, WIDTH, 3)))
    assert not alphas.any() and not meta["num_intersections"].any() and meta["means2d"].shape == (2, 0, 2)
    assert not gradients.viewmats.any()


def test_gradients_are_finite_differences(backend):
    # Three wide Gaussians whose alpha is far above 1/255 at every pixel. The others are behind the camera.
    tiled = functools.partial(rasterize_tiled, backend=backend)
    splats = make_splats("typical", seed=3)
    behind = jnp.arange(len(splats.means))[:, None] >= 3
    means = jnp.where(behind, jnp.array([[0.0, 0.0, -3.0]]), splats.means * jnp.array([[0.3, 0.3, 1.0]]))
    opacities = jnp.full_like(splats.opacities, 0.4)
    splats = splats._replace(means=means, scales=jnp.abs(splats.scales) * 0.5 + 2.0, opacities=opacities)
    alphas = alphas_in_order(project_splats(splats, 0), width=WIDTH, height=HEIGHT)
    assert np.sort(alphas, axis=-1)[..., -3].min() > 0.02  # each pixel draws three
    cotangents = random_cotangents(np.zeros((2, HEIGHT, WIDTH), bool))
    cotangents = tuple(c + 1.0 for c in cotangents)
    _, gradients = with_gradients(tiled, splats, cotangents)

    def loss(splats) -> float:
        out = tiled(splats)
        return float(sum(np.sum(np.asarray(o, np.float64) * np.asarray(c)) for o, c in zip(out, cotangents)))

    places = {
        "means": (1, 0), "quats": (0, 2), "scales": (2, 1), "opacities": (1,), "colors": (0, 1),
        "viewmats": (1, 0, 3), "Ks": (1, 0, 2),
    }  # fmt: skip
    steps = {"Ks": 0.05, "quats": 0.02, "opacities": 0.02}
    for name, place in places.items():
        array, step = getattr(splats, name), steps.get(name, 0.01)
        high, low = (loss(splats._replace(**{name: array.at[place].add(s)})) for s in (step, -step))
        slope, scale = (high - low) / (2 * step), float(jnp.max(jnp.abs(getattr(gradients, name))))
        # The error of central differences is quadratic in the step; rounding of 4292 summed pixels is under 1e-2.
        np.testing.assert_allclose(getattr(gradients, name)[place], slope, rtol=0.01, atol=0.01 * scale, err_msg=name)


def test_order_of_gaussians_does_not_matter(backend):
    tiled = functools.partial(rasterize_tiled, backend=backend)
    splats = make_splats("opaque")
    order = np.random.default_rng(0).permutation(len(splats.means))
    cotangents = random_cotangents(cutoff_pixels(splats, "classic"))
    shuffled = Splats(*(x[order] for x in splats[:5]), *splats[5:])
    (colors, alphas), gradients = with_gradients(tiled, splats, cotangents)
    (colors_2, alphas_2), gradients_2 = with_gradients(tiled, shuffled, cotangents)
    np.testing.assert_allclose(colors, colors_2, atol=1e-6)
    np.testing.assert_allclose(alphas, alphas_2, atol=1e-6)
    assert_gradients_agree(gradients_2, Splats(*(x[order] for x in gradients[:5]), *gradients[5:]), rtol=1e-4)


def test_rotating_world_and_cameras_changes_nothing(backend):
    tiled = functools.partial(rasterize_tiled, backend=backend)
    splats = make_splats("typical")
    turn, shift = rotation([1, -2, 0.5], 1.1), np.array([0.5, -0.2, 0.3])
    half = np.array([np.cos(0.55), *(np.array([1, -2, 0.5]) / np.linalg.norm([1, -2, 0.5]) * np.sin(0.55))])
    w, x, y, z = half
    left = np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])
    move = np.eye(4)
    move[:3, :3], move[:3, 3] = turn, shift
    moved = splats._replace(
        means=jnp.asarray(np.asarray(splats.means) @ turn.T + shift, jnp.float32),
        quats=jnp.asarray(np.asarray(splats.quats) @ left.T, jnp.float32),
        viewmats=jnp.asarray(np.asarray(splats.viewmats, np.float64) @ np.linalg.inv(move), jnp.float32),
    )
    keep = ~(cutoff_pixels(splats, "classic") | cutoff_pixels(moved, "classic"))
    # Moving the scene rounds more than blending: 1e-4 instead of 2e-5. One alpha at 1/255 may change sides.
    close = np.isclose(*(tiled(s)[0] for s in (splats, moved)), atol=1e-4).all(-1)
    assert close[keep].mean() > 0.999


def test_size_of_the_world_does_not_matter(backend):
    tiled = functools.partial(rasterize_tiled, backend=backend)
    splats = make_splats("typical")
    bigger = splats._replace(
        means=splats.means * 8, scales=splats.scales * 8, viewmats=splats.viewmats.at[:, :3, 3].multiply(8)
    )
    (colors, alphas), (colors_8, alphas_8) = tiled(splats), tiled(bigger)
    np.testing.assert_allclose(colors, colors_8 / jnp.array([1, 1, 1, 8.0]).reshape(1, 1, 1, 4), atol=1e-5)
    np.testing.assert_allclose(alphas, alphas_8, atol=1e-5)


@pytest.mark.parametrize("name", Splats._fields[:5])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_broken_gaussian_is_culled(name, value, backend):
    tiled = functools.partial(rasterize_tiled, backend=backend)
    splats, cotangents = make_splats("typical"), random_cotangents(np.zeros((2, HEIGHT, WIDTH), bool))
    healthy = splats._replace(opacities=splats.opacities.at[5].set(0.0))
    array = getattr(splats, name)
    broken = splats._replace(**{name: array.at[(5,) + (1,) * (array.ndim - 1)].set(value)})
    (colors, alphas), gradients = with_gradients(tiled, broken, cotangents)
    (colors_2, alphas_2), gradients_2 = with_gradients(tiled, healthy, cotangents)
    np.testing.assert_array_equal(colors, colors_2)
    np.testing.assert_array_equal(alphas, alphas_2)
    assert_gradients_agree(gradients, gradients_2)
    assert not any(g[5].any() for g in gradients[:5])


@pytest.mark.parametrize("name, value", [("scales", 1e12), ("scales", 1e30), ("scales", 0.0), ("means", 1e30)])
def test_extreme_values_leave_gradients_finite(name, value, backend):
    splats, cotangents = make_splats("typical"), random_cotangents(np.zeros((2, HEIGHT, WIDTH), bool))
    extreme = splats._replace(**{name: getattr(splats, name).at[5].set(value)})
    for mode in MODES:
        output, gradients = with_gradients(
            functools.partial(rasterize_tiled, mode=mode, backend=backend), extreme, cotangents
        )
        assert all(bool(jnp.isfinite(x).all()) for x in (*output, *gradients))


@pytest.mark.parametrize(
    "count, capacity",
    [(0, 1024), (1, 1024), (1024, 1024), (1025, 2048), (9000, 10240), (2**20, 2**20), (7 * 2**28, 7 * 2**28)],
)
def test_buffers_hold_the_count(count, capacity):
    assert buffer_size(count) == capacity


@pytest.mark.parametrize("count", [7 * 2**28 + 1, 2**31 - 1, 2**40])
def test_buffers_beyond_int32_are_refused(count):
    with pytest.raises(UserError, match=f"{count} intersections of tiles and Gaussians .* expected at most 1879048192"):
        buffer_size(count)
