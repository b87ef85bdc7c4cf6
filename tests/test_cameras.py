"""`rasterization`: gsplat's rules and options, buffers, and what wrong arguments are told."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from splats import HEIGHT, WIDTH, Splats, make_splats, project_splats

from bags_jax.geometry import camera_center
from bags_jax.ops.rasterize import rasterize
from bags_jax.ops.rasterize.reference import rasterize_reference
from bags_jax.splatting import rasterization
from bags_jax.structs import Projected

BACKGROUNDS = jnp.array([[0.1, 0.5, 0.9], [1.0, 0.0, 0.3]])


@functools.cache
def rendered(backend: str, render_mode: str, background: bool = False):
    backgrounds = BACKGROUNDS if background else None
    options = {"render_mode": render_mode, "backgrounds": backgrounds, "backend": backend}
    return rasterization(*make_splats(), WIDTH, HEIGHT, **options)


def test_render_modes_are_parts_of_one_image(backend):
    both, alphas, _ = rendered(backend, "RGB+D")
    expected = np.where(alphas > 0, both[..., 3:] / np.maximum(alphas, 1e-10), 0.0)
    np.testing.assert_allclose(rendered(backend, "RGB")[0], both[..., :3], atol=1e-6)
    np.testing.assert_allclose(rendered(backend, "D")[0], both[..., 3:], atol=1e-5)
    np.testing.assert_allclose(rendered(backend, "ED")[0], expected, rtol=1e-5)
    behind = np.broadcast_to((1 - alphas) * BACKGROUNDS[:, None, None], (2, HEIGHT, WIDTH, 3))
    composed, alphas_2, _ = rendered(backend, "RGB+ED", background=True)
    np.testing.assert_allclose(composed[..., :3], both[..., :3] + behind, atol=1e-6)
    np.testing.assert_allclose(composed[..., 3:], expected, rtol=1e-5)  # no background in depth
    np.testing.assert_array_equal(alphas, alphas_2)
    covered = np.asarray(alphas) > 0.01  # expected depth is a mean of depths
    assert 0.01 < expected[covered].min() and expected[covered].max() < 10


def test_meta_is_complete(backend):
    splats = make_splats()
    _, _, meta = rendered(backend, "RGB+D")
    for camera in range(2):
        one = project_splats(splats, camera)
        np.testing.assert_allclose(meta["means2d"][camera], one.means_px, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(meta["conics"][camera], one.conics, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(meta["depths"][camera], one.depths, rtol=1e-5)
        np.testing.assert_allclose(meta["opacities"][camera], one.opacities, rtol=1e-5)
        np.testing.assert_allclose(meta["radii"][camera], np.ceil(one.radii_px), atol=1)
    assert meta["radii"].dtype == jnp.int32
    assert meta["num_intersections"].shape == meta["num_dropped"].shape == (2,)
    assert (meta["num_intersections"] > 0).all() and not meta["num_dropped"].any()


def test_two_cameras_are_each_alone(backend):
    splats = make_splats()
    colors, alphas, meta = rendered(backend, "RGB+D")
    for camera in range(2):
        alone = splats._replace(viewmats=splats.viewmats[camera][None], Ks=splats.Ks[camera][None])
        colors_1, alphas_1, meta_1 = rasterization(*alone, WIDTH, HEIGHT, render_mode="RGB+D", backend=backend)
        np.testing.assert_allclose(colors[camera], colors_1[0], atol=1e-6)
        np.testing.assert_allclose(alphas[camera], alphas_1[0], atol=1e-6)
        assert meta["num_intersections"][camera] == meta_1["num_intersections"][0]


def test_full_buffer_is_never_silent(backend):
    splats = make_splats("giants")

    @functools.partial(jax.jit, static_argnums=1)
    def under_jit(splats, room):
        return rasterization(*splats, WIDTH, HEIGHT, render_mode="RGB+D", max_intersections=room, backend=backend)

    colors, alphas, meta = rasterization(*splats, WIDTH, HEIGHT, render_mode="RGB+D", backend=backend)
    need = int(meta["num_intersections"].max())
    assert need > 100 and not meta["num_dropped"].any()
    with pytest.warns(UserWarning, match="pass max_intersections, and look at num_dropped"):
        guess = under_jit(splats, None)
    np.testing.assert_allclose(guess[0], colors, atol=1e-6)
    np.testing.assert_allclose(guess[1], alphas, atol=1e-6)
    assert not guess[2]["num_dropped"].any()
    short = under_jit(splats, need - 1)[2]
    assert short["num_intersections"].max() == need and short["num_dropped"].max() == 1


@pytest.mark.parametrize("degree", range(4))
def test_spherical_harmonics_colour_by_direction(degree, backend):
    splats = make_splats()
    coefficients = jnp.asarray(np.random.default_rng(1).normal(size=(len(splats.means), 16, 3)) * 0.4, jnp.float32)
    colors, alphas, _ = rasterization(
        *splats._replace(colors=coefficients), WIDTH, HEIGHT, sh_degree=degree, backend=backend
    )
    for camera in range(2):
        toward = np.asarray(splats.means - camera_center(splats.viewmats[camera])[None], float)
        x, y, z = (toward / np.linalg.norm(toward, axis=1, keepdims=True)).T
        # Degrees 0 and 1 are written out here; test_spherical_harmonics.py has the higher ones from their integrals.
        c = np.asarray(coefficients[:, : (degree + 1) ** 2], float)
        rgb = 0.5 + 0.28209479 * c[:, 0]
        if degree >= 1:
            rgb += 0.48860251 * (-y[:, None] * c[:, 1] + z[:, None] * c[:, 2] - x[:, None] * c[:, 3])
        if degree >= 2:
            from bags_jax.spherical_harmonics import sh_basis

            basis = np.asarray(sh_basis(jnp.stack([x, y, z], -1), degree=degree))[:, 4:]
            rgb += np.einsum("nl,nlc->nc", basis, c[:, 4:])
        features = jnp.asarray(np.maximum(rgb, 0), jnp.float32)
        expected = rasterize_reference(project_splats(splats, camera), features, width=WIDTH, height=HEIGHT)
        close = np.isclose(colors[camera], expected.colors, atol=2e-5).all(-1)
        assert close.mean() > 0.995  # the rest sits on a cutoff of alpha
    assert float(alphas.max()) > 0.5


def test_broken_gaussian_with_harmonics_leaves_gradients_finite(backend):
    splats = make_splats()
    coefficients = jnp.ones((len(splats.means), 4, 3)) * 0.2

    def total(splats):
        return jnp.sum(rasterization(*splats, WIDTH, HEIGHT, sh_degree=1, backend=backend)[0])

    for index in ((3, 0), (3, 1)):
        broken = splats._replace(colors=coefficients, means=splats.means.at[index].set(np.nan))
        assert all(bool(jnp.isfinite(g).all()) for g in jax.grad(total)(broken))
    broken = splats._replace(colors=coefficients.at[3, 2, 1].set(np.inf))
    value, gradients = jax.value_and_grad(total)(broken)
    assert np.isfinite(value) and all(bool(jnp.isfinite(g).all()) for g in gradients)


def layers(alphas, num: int = 8) -> Projected:
    """Flat, wide Gaussians one behind the other, centred on the first pixel of the fourth row; the rest is culled."""
    opacities = jnp.zeros(num).at[: len(alphas)].set(jnp.array(alphas))
    used = opacities > 0
    ones = jnp.ones(num)
    return Projected(
        means_px=jnp.stack([0.5 * ones, 3.5 * ones], -1),
        covs_px=jnp.tile(jnp.array([[4.0, 0.0, 4.0]]), (num, 1)),
        conics=jnp.tile(jnp.array([[0.25, 0.0, 0.25]]), (num, 1)),
        depths=jnp.arange(1.0, num + 1),
        opacities=opacities,
        radii_px=jnp.where(used, 8.0, 0.0)[:, None] * jnp.ones((1, 2)),
    )


@functools.partial(jax.jit, static_argnums=1)
def _blend(projected: Projected, backend: str):
    return rasterize(projected, jnp.eye(8), width=12, height=8, max_intersections=64, backend=backend)


@pytest.mark.parametrize(
    "alphas, weights",
    [
        ([1.0], [0.999]),  # clamped
        ([0.9985], [0.9985]),
        ([1 / 254.9], [1 / 254.9]),  # just over the least alpha
        ([1 / 255.1], [0.0]),  # just under it
        ([0.6, 0.5], [0.6, 0.4 * 0.5]),
        ([1.0, 0.5, 0.5], [0.999, 0.001 * 0.5, 0.0005 * 0.5]),
        ([1.0, 1.0], [0.999, 0.0]),  # the second would take the transmittance to 1e-6
        ([0.95, 0.95, 0.95, 0.95, 0.1], [0.95, 0.0475, 0.002375, 0.0, 0.0]),  # stopped for good, not for one only
    ],
)
def test_rules_of_blending(alphas, weights, backend):
    image = _blend(layers(alphas), backend)
    np.testing.assert_allclose(image.colors[3, 0, : len(alphas)], weights, atol=1e-6)
    np.testing.assert_allclose(image.alphas[3, 0], sum(weights), atol=1e-6)
    oracle = rasterize_reference(layers(alphas), jnp.eye(8), width=12, height=8)
    np.testing.assert_allclose(image.colors, oracle.colors, atol=1e-6)


def test_front_covers_back_whatever_the_order_of_rows(backend):
    front = layers([0.5, 0.5])
    back = jax.tree.map(lambda x: x, front).replace(depths=front.depths[::-1])
    np.testing.assert_allclose(_blend(front, backend).colors[3, 0, :2], [0.5, 0.25], atol=1e-6)
    np.testing.assert_allclose(_blend(back, backend).colors[3, 0, :2], [0.25, 0.5], atol=1e-6)


@pytest.mark.parametrize(
    "dtype, wide",  # wide: jax_enable_x64, without which no array is float64
    [("float16", False), ("bfloat16", False), ("float16", True), ("bfloat16", True), ("float64", True)],
)
def test_other_types_are_taken_as_float32(dtype, wide, backend):
    """Kernels read memory as float32 whatever is in it. Gradients are of the type that came."""
    with jax.enable_x64(wide):
        splats = Splats(*(x.astype(dtype) for x in make_splats()))
        rounded = Splats(*(x.astype(jnp.float32) for x in splats))
        picture = lambda splats: rasterization(*splats, WIDTH, HEIGHT, max_intersections=2048, backend=backend)[0]
        expected, image = picture(rounded), picture(splats)
        assert image.dtype == jnp.float32 and expected.max() > 0.1
        np.testing.assert_array_equal(image, expected)
        gradient = jax.grad(lambda splats: jnp.sum(picture(splats) ** 2))(splats)
        for a, b in zip(gradient, splats, strict=True):
            assert a.dtype == b.dtype and np.isfinite(a).all() and np.any(a)


def wrong(**changes) -> Splats:
    return make_splats()._replace(**changes)


@pytest.mark.parametrize(
    "splats, options, message",
    [
        ({}, {"render_mode": "depth"}, "render_mode='depth' came, expected one of RGB"),
        ({}, {"rasterize_mode": "mip"}, "rasterize_mode='mip' came, expected one of classic"),
        ({}, {"backend": "metal"}, "backend='metal' came, expected one of auto"),
        ({}, {"eps2d": -0.1}, "eps_2d is -0.1"),
        ({}, {"tile_size": 0}, "tiles of 0 px"),
        ({}, {"max_intersections": 0}, "max_intersections=0 came"),
        ({}, {"max_intersections": 2**31}, "max_intersections=2147483648 came, expected 1 to 1879048192"),
        ({}, {"sh_degree": 1}, "sh_degree=1 needs colors"),
        ({"colors": jnp.zeros((32, 4, 3))}, {"sh_degree": 2}, "sh_degree=2 needs colors"),
        ({"colors": jnp.zeros((32, 4, 3))}, {}, "without sh_degree"),
        ({"colors": jnp.zeros((32, 25, 3))}, {"sh_degree": 4}, "sh_degree=4 came, expected 0 to 3"),
        ({"colors": jnp.zeros((32, 4, 3))}, {"sh_degree": -1}, "sh_degree=-1 came"),
    ],
)
def test_wrong_options_are_told(splats, options, message):
    with pytest.raises(ValueError, match=message):
        rasterization(*wrong(**splats), WIDTH, HEIGHT, **options)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"quats": jnp.zeros((32, 3))}, "quats has shape"),
        ({"scales": jnp.zeros((31, 3))}, "scales has shape"),
        ({"opacities": jnp.zeros((32, 1))}, "opacities has shape"),
        ({"viewmats": jnp.eye(4)}, "viewmats has shape"),
        ({"Ks": jnp.zeros((3, 3, 3))}, "Ks has shape"),
        ({"means": jnp.zeros((32, 2))}, "means has shape"),
        ({"backgrounds": jnp.ones(3)}, r"backgrounds has shape \(3,\), expected \(2, 3\)"),
        ({"backgrounds": jnp.ones((1, 1))}, "backgrounds has shape"),
    ],
)
def test_wrong_shapes_are_told(changes, message):
    unchecked = inspect.unwrap(rasterization)  # beartype, in tests alone, would speak first
    backgrounds = changes.get("backgrounds")
    changes = {name: x for name, x in changes.items() if name != "backgrounds"}
    with pytest.raises(ValueError, match=message):
        unchecked(*wrong(**changes), WIDTH, HEIGHT, backgrounds=backgrounds)
