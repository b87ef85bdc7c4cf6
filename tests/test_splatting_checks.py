"""Tests that wrong arguments of `rasterization`, and derivatives that it does not have, raise one line."""

import inspect
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from splats import HEIGHT, WIDTH, Splats, make_splats

from bags_jax.splatting import rasterization

# Arguments of gsplat.rendering.rasterization, version 1.5.3, after height.
GSPLAT_ARGUMENTS = (  # noqa: SIM905
    "near_plane far_plane radius_clip eps2d sh_degree packed tile_size backgrounds render_mode sparse_grad absgrad"
    " rasterize_mode channel_chunk distributed camera_model segmented covars with_ut with_eval3d radial_coeffs"
    " tangential_coeffs thin_prism_coeffs ftheta_coeffs rolling_shutter viewmats_rs"
).split()
unchecked = inspect.unwrap(rasterization)  # without beartype, which only tests have and which would raise first


def test_each_argument_of_gsplat_is_supported_or_refused_in_one_line():
    own = inspect.signature(rasterization).parameters
    off = {"packed": False, "sparse_grad": False, "absgrad": False, "distributed": False, "segmented": False}
    off |= {"with_ut": False, "with_eval3d": False, "radial_coeffs": None, "viewmats_rs": None}
    for name in GSPLAT_ARGUMENTS:
        if name not in own:
            with pytest.raises(ValueError, match=f"^{name} is an argument of gsplat that is not supported") as caught:
                rasterization(*make_splats(), WIDTH, HEIGHT, **{name: True})
            assert "\n" not in str(caught.value)
    colors, _, _ = rasterization(*make_splats(), WIDTH, HEIGHT, **off)
    np.testing.assert_array_equal(colors, rasterization(*make_splats(), WIDTH, HEIGHT)[0])
    with pytest.raises(TypeError, match="unexpected keyword argument 'near_plan'"):
        rasterization(*make_splats(), WIDTH, HEIGHT, near_plan=0.1)


def test_documentation_lists_each_argument_and_meta_entry():
    page = (pathlib.Path(__file__).parents[1] / "docs" / "splatting_api.md").read_text()
    arguments = [name for name in inspect.signature(rasterization).parameters if name != "unsupported"]
    meta = rasterization(*make_splats(), WIDTH, HEIGHT)[2]
    missing = [name for name in (*GSPLAT_ARGUMENTS, *arguments, *meta) if f"`{name}`" not in page]
    assert not missing, f"docs/splatting_api.md does not list {missing}"


def test_traced_sizes_raise_one_line():
    splats = make_splats()
    with pytest.raises(
        ValueError, match=r"^width, height came as JAX arrays, .*static_argnames=\('width', 'height', 'max_"
    ):
        jax.jit(unchecked)(*splats, WIDTH, HEIGHT)
    static = jax.jit(unchecked, static_argnames=("width", "height"))
    with pytest.raises(ValueError, match="^eps2d, max_intersections came as JAX arrays"):
        static(*splats, WIDTH, HEIGHT, eps2d=0.1, max_intersections=2048)
    static = jax.jit(unchecked, static_argnames=("width", "height", "max_intersections"))
    colors, _, meta = static(*splats, WIDTH, HEIGHT, max_intersections=2048)
    np.testing.assert_allclose(colors, rasterization(*splats, WIDTH, HEIGHT)[0], atol=1e-6)
    assert meta["tile_width"] * meta["tile_size"] >= WIDTH


@pytest.mark.parametrize("derivative", [lambda f, x: jax.jvp(f, (x,), (x,)), lambda f, x: jax.jacfwd(f)(x)])
def test_forward_mode_raises_one_line(derivative, backend):
    splats = make_splats()
    options = {"max_intersections": 2048, "backend": backend}
    draw = lambda means: rasterization(means, *splats[1:], WIDTH, HEIGHT, **options)[0].sum()
    with pytest.raises(TypeError, match=r"^rasterization has no forward-mode derivative: take jax\.grad"):
        derivative(draw, splats.means)


def wrong(**changes) -> Splats:
    return make_splats()._replace(**changes)


@pytest.mark.parametrize(
    "splats, options, message",
    [
        ({}, {"render_mode": "depth"}, "render_mode='depth' came, expected one of RGB"),
        ({}, {"rasterize_mode": "mip"}, "rasterize_mode='mip' came, expected one of classic"),
        ({}, {"camera_model": "fisheye"}, "camera_model='fisheye' came, expected one of pinhole, ortho: undistort"),
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
def test_wrong_options_raise(splats, options, message):
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
        ({"quats": None}, "pass quats and scales, or covars"),
        ({"covars": jnp.zeros((32, 6))}, r"covars has shape \(32, 6\), expected \(32, 3, 3\)"),
        ({"probe_px": jnp.zeros((32, 2))}, r"probe_px has shape \(32, 2\), expected \(2, 32, 2\)"),
        ({"means": jnp.zeros((4, 32, 3))}, r"quats has shape \(32, 4\), expected \(4, 32, 4\)"),
        ({"colors": jnp.zeros((3, 32, 3))}, r"expected \(32, 'D'\) or \(2, 32, 'D'\): pass sh_degree"),
        ({"colors": jnp.zeros(32)}, "without sh_degree"),
    ],
)
def test_wrong_shapes_raise(changes, message):
    optional = {name: changes[name] for name in ("backgrounds", "covars", "probe_px") if name in changes}
    changes = {name: x for name, x in changes.items() if name not in optional}
    with pytest.raises(ValueError, match=message):
        unchecked(*wrong(**changes), WIDTH, HEIGHT, **optional)
