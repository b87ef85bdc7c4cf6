"""Tests `rasterization`: gsplat's rules, arguments and meta, buffers, derivatives, and errors for wrong arguments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from splats import HEIGHT, WIDTH, Splats, make_splats, project_splats

from bags_jax import splatting
from bags_jax.geometry import camera_center, project, rotation_from_quat
from bags_jax.ops.rasterize import rasterize
from bags_jax.ops.rasterize.reference import rasterize_reference
from bags_jax.spherical_harmonics import evaluate_sh
from bags_jax.splatting import rasterization
from bags_jax.structs import Camera, Projected

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


def test_meta_equals_projection(backend):
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
    side = 8 if backend in ("xla", "cpu") else 16
    numbers = WIDTH, HEIGHT, side, -(-WIDTH // side), -(-HEIGHT // side), 2, 1
    names = "width", "height", "tile_size", "tile_width", "tile_height", "n_cameras", "n_batches"
    assert tuple(meta[name] for name in names) == numbers


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
    def under_jit(splats, size):
        return rasterization(*splats, WIDTH, HEIGHT, render_mode="RGB+D", max_intersections=size, backend=backend)

    colors, alphas, meta = rasterization(*splats, WIDTH, HEIGHT, render_mode="RGB+D", backend=backend)
    need = int(meta["num_intersections"].max())
    assert need > 100 and not meta["num_dropped"].any()
    with pytest.warns(UserWarning, match="pass max_intersections and check num_dropped"):
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
        # Degrees 0 and 1 from their formulas; test_spherical_harmonics.py checks the higher ones by integration.
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
        assert close.mean() > 0.995  # the other pixels lie on the cutoff of alpha
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
    """Returns wide Gaussians one behind the other, centred on the first pixel of the fourth row, and culled ones after."""
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
        ([1 / 254.9], [1 / 254.9]),  # just above the smallest alpha
        ([1 / 255.1], [0.0]),  # just below
        ([0.6, 0.5], [0.6, 0.4 * 0.5]),
        ([1.0, 0.5, 0.5], [0.999, 0.001 * 0.5, 0.0005 * 0.5]),
        ([1.0, 1.0], [0.999, 0.0]),  # the second would lower the transmittance to 1e-6
        ([0.95, 0.95, 0.95, 0.95, 0.1], [0.95, 0.0475, 0.002375, 0.0, 0.0]),  # the pixel stops for good
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
    "dtype, wide",  # wide: jax_enable_x64; float64 arrays exist only there
    [("float16", False), ("bfloat16", False), ("float16", True), ("bfloat16", True), ("float64", True)],
)
def test_other_dtypes_are_converted_to_float32(dtype, wide, backend):
    """Kernels read memory as float32. Gradients have the dtype of the arguments."""
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


# --- arguments of gsplat ---------------------------------------------------------------------------------------------


@functools.cache
def _value_and_gradients(**options):
    def total(splats, arrays):
        colors, alphas, _ = rasterization(*splats, WIDTH, HEIGHT, max_intersections=4096, **arrays, **options)
        return jnp.sum(jnp.sin(colors)) + jnp.sum(jnp.cos(3 * alphas)), colors

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))


def images_and_gradients(splats: Splats, arrays: dict[str, Array] | None = None, **options):
    """Returns images, and gradients of a sum that weights pixels differently; `arrays`: optional array arguments."""
    (_, images), gradients = _value_and_gradients(**options)(splats, arrays or {})
    return images, gradients


def one_camera(splats: Splats, camera: int) -> Splats:
    return splats._replace(viewmats=splats.viewmats[camera][None], Ks=splats.Ks[camera][None])


@pytest.mark.parametrize("batches_cameras", [False, True])  # True: the path of CUDA, whose kernels batch cameras
def test_batch_of_scenes_equals_a_loop(batches_cameras, monkeypatch):
    shape = (1, 2)
    scenes = [make_splats("typical", seed=seed) for seed in range(2)]
    splats = Splats(*(jnp.stack(x).reshape(*shape, *x[0].shape) for x in zip(*scenes, strict=True)))
    arrays = {
        "backgrounds": jnp.broadcast_to(BACKGROUNDS, (*shape, 2, 3)),
        "covars": jnp.broadcast_to(jnp.diag(jnp.array([0.04, 0.01, 0.09])), (*shape, 32, 3, 3)),
    }
    monkeypatch.setattr(splatting, "batches_cameras", lambda backend: batches_cameras)
    size = 16 if batches_cameras else None  # other options than before: no compiled program is reused
    images, gradients = images_and_gradients(splats, arrays, render_mode="RGB+ED", tile_size=size)
    assert images.shape == (*shape, 2, HEIGHT, WIDTH, 4)
    monkeypatch.undo()
    for index in np.ndindex(*shape):
        alone, its_arrays = jax.tree.map(lambda x, index=index: x[index], (splats, arrays))
        expected, its_gradients = images_and_gradients(alone, its_arrays, render_mode="RGB+ED")
        np.testing.assert_allclose(images[index], expected, atol=1e-5)
        for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(its_gradients), strict=True):
            np.testing.assert_allclose(a[index], b, atol=1e-4 * float(jnp.abs(b).max()))
    _, alphas, meta = rasterization(*splats, WIDTH, HEIGHT)  # counts the intersections of all images
    assert alphas.shape == (*shape, 2, HEIGHT, WIDTH, 1) and not meta["num_dropped"].any()
    assert meta["radii"].shape == (*shape, 2, 32, 2) and meta["num_dropped"].shape == (*shape, 2)
    assert (meta["n_batches"], meta["n_cameras"]) == (2, 2)


@pytest.mark.parametrize("sh_degree", [None, 1])
def test_colors_per_camera_equal_a_loop(sh_degree):
    shape = (2, 32, 5) if sh_degree is None else (2, 32, 9, 3)
    colors = jnp.asarray(np.random.default_rng(4).uniform(size=shape), jnp.float32)
    splats, options = make_splats(), {"sh_degree": sh_degree, "rasterize_mode": "antialiased"}
    images, (gradients, _) = images_and_gradients(splats._replace(colors=colors), **options)
    found = []
    for camera in range(2):
        alone = one_camera(splats, camera)._replace(colors=colors[camera])
        image, (its_gradients, _) = images_and_gradients(alone, **options)
        found.append(its_gradients)
        np.testing.assert_allclose(images[camera], image[0], atol=1e-6)
        np.testing.assert_allclose(gradients.colors[camera], its_gradients.colors, atol=1e-5)
        np.testing.assert_allclose(gradients.viewmats[camera], its_gradients.viewmats[0], rtol=1e-4, atol=1e-4)
    for name in ("means", "quats", "scales", "opacities"):
        total = getattr(found[0], name) + getattr(found[1], name)
        np.testing.assert_allclose(getattr(gradients, name), total, atol=1e-5 * float(jnp.abs(total).max()))


def test_broken_color_of_one_camera_culls_there_only():
    splats = make_splats()
    colors = jnp.stack([splats.colors, splats.colors]).at[0, 3, 1].set(np.nan)
    images, _, _ = rasterization(*splats._replace(colors=colors), WIDTH, HEIGHT)
    culled = splats._replace(opacities=splats.opacities.at[3].set(0.0))
    np.testing.assert_allclose(images[0], rasterization(*culled, WIDTH, HEIGHT)[0][0], atol=1e-6)
    np.testing.assert_allclose(images[1], rasterization(*splats, WIDTH, HEIGHT)[0][1], atol=1e-6)


def test_covariances_replace_quaternions_and_scales():
    splats = make_splats()
    axes = rotation_from_quat(splats.quats) * splats.scales[:, None, :]
    covars = jnp.einsum("nij,nkj->nik", axes, axes)
    expected, _, _ = rasterization(*splats, WIDTH, HEIGHT)
    images, _, _ = rasterization(*splats._replace(quats=None, scales=None), WIDTH, HEIGHT, covars=covars)
    np.testing.assert_allclose(images, expected, atol=1e-4)
    both, _, _ = rasterization(*splats._replace(scales=9 * splats.scales), WIDTH, HEIGHT, covars=covars)
    np.testing.assert_array_equal(both, images)


def test_orthographic_camera_equals_the_oracle():
    splats = make_splats()
    splats = splats._replace(Ks=splats.Ks.at[:, :2, :2].multiply(0.25))
    coefficients = jnp.asarray(np.random.default_rng(5).normal(size=(32, 4, 3)) * 0.3, jnp.float32)
    images, _, _ = rasterization(
        *splats._replace(colors=coefficients), WIDTH, HEIGHT, sh_degree=1, camera_model="ortho"
    )
    for camera in range(2):
        view = Camera(splats.viewmats[camera], splats.Ks[camera])
        projected = project(*splats[:4], view, width=WIDTH, height=HEIGHT, camera_model="ortho")
        toward = splats.means - camera_center(view.viewmat)[None]  # as in gsplat
        toward = toward / jnp.linalg.norm(toward, axis=1, keepdims=True)
        features = evaluate_sh(coefficients, toward, degree=1)
        expected = rasterize_reference(projected, features, width=WIDTH, height=HEIGHT).colors
        assert expected.max() > 0.3
        assert np.isclose(images[camera], expected, atol=2e-5).all(-1).mean() > 0.995  # the cutoff of alpha


def test_radius_clip_draws_large_gaussians_only():
    splats = make_splats()
    images, _, meta = rasterization(*splats, WIDTH, HEIGHT, radius_clip=6.0)
    radii = np.asarray(rasterization(*splats, WIDTH, HEIGHT)[2]["radii"])
    stays = (radii > 6).any(axis=-1)
    assert 0 < stays.sum() < (radii > 0).any(axis=-1).sum()
    np.testing.assert_array_equal(meta["radii"], np.where(stays[..., None], radii, 0))
    for camera in range(2):
        large = one_camera(splats, camera)._replace(opacities=jnp.where(stays[camera], splats.opacities, 0.0))
        np.testing.assert_allclose(images[camera], rasterization(*large, WIDTH, HEIGHT)[0][0], atol=1e-6)


def test_probe_has_the_gradient_of_the_projected_means():
    splats = make_splats()

    def by_means(means_px, projected):
        projected = projected.replace(means_px=means_px)
        image = rasterize(projected, splats.colors, width=WIDTH, height=HEIGHT, max_intersections=4096)
        return jnp.sum(jnp.sin(image.colors)) + jnp.sum(jnp.cos(3 * image.alphas))

    _, (_, arrays) = images_and_gradients(splats, {"probe_px": jnp.zeros((2, 32, 2))})
    for camera in range(2):
        projected = project_splats(splats, camera)
        expected = jax.jit(jax.grad(by_means))(projected.means_px, projected)
        np.testing.assert_allclose(arrays["probe_px"][camera], expected, atol=1e-4 * float(jnp.abs(expected).max()))
