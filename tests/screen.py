"""Scenes of projected Gaussians, and the comparison of kernels with the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
from splats import HEIGHT, WIDTH, alphas_in_order, on_cutoff

from bags_jax.ops.rasterize.reference import rasterize_reference
from bags_jax.structs import Projected

FORWARD, BACKWARD = 1e-5, 1e-4  # tolerances of kernels; float32 rounding is 1e-6


class Scene:
    """Projected Gaussians with features, and cotangents that are 0 where rounding decides what is drawn."""

    def __init__(self, projected: Projected, channels: int, width: int = WIDTH, height: int = HEIGHT):
        rng = np.random.default_rng(channels)
        self.projected, self.size = projected, {"width": width, "height": height}
        self.features = jnp.asarray(rng.normal(size=(len(projected.depths), channels)), jnp.float32)
        self.cut = on_cutoff(alphas_in_order(projected, **self.size))
        weights = rng.normal(size=(height, width, channels + 1)) * ~self.cut[..., None]
        self.cotangent = jnp.asarray(weights[..., :-1], jnp.float32), jnp.asarray(weights[..., -1], jnp.float32)


def with_gradients(function, scene: Scene):
    """Returns colours, alphas, and gradients of means, conics, opacities and features."""

    def draw(means_px, conics, opacities, features):
        output = function(
            scene.projected.replace(means_px=means_px, conics=conics, opacities=opacities), features, **scene.size
        )
        return output.colors, output.alphas

    p = scene.projected

    @jax.jit
    def both(inputs, cotangent):
        image, pull = jax.vjp(draw, *inputs)
        return image, pull(cotangent)

    return both((p.means_px, p.conics, p.opacities, scene.features), scene.cotangent)


def compare_with_oracle(kernels, scene: Scene):
    """Compares image and gradients of kernels with the oracle. Returns colours, alphas and gradients."""
    (colors, alphas), gradients = with_gradients(kernels, scene)
    (colors_dense, alphas_dense), gradients_dense = with_gradients(rasterize_reference, scene)
    keep = ~scene.cut
    assert keep.mean() > 0.98
    np.testing.assert_allclose(colors[keep], colors_dense[keep], atol=FORWARD * max(1.0, abs(colors_dense).max()))
    np.testing.assert_allclose(alphas[keep], alphas_dense[keep], atol=FORWARD)
    for name, a, b in zip(("means", "conics", "opacities", "features"), gradients, gradients_dense, strict=True):
        assert np.linalg.norm(a - b) <= BACKWARD * np.linalg.norm(b), name
        np.testing.assert_allclose(a, b, rtol=BACKWARD, atol=BACKWARD * abs(b).max(), err_msg=name)
    return colors, alphas, gradients


def flat(num: int, *, opacity: float, sigma: float, center=(20.0, 12.0)) -> Projected:
    """Makes round Gaussians of one size, one behind the other, slightly apart."""
    rng = np.random.default_rng(num)
    radius = sigma * np.sqrt(2 * np.log(255 * opacity))
    shape = np.array([1.0, 0.0, 1.0]) * sigma**2
    arrays = {
        "means_px": rng.normal(size=(num, 2)) * 0.3 + center,
        "covs_px": np.tile(shape, (num, 1)),
        "conics": np.tile([1 / shape[0], 0.0, 1 / shape[0]], (num, 1)),
        "depths": rng.permutation(num) + 1.0,
        "opacities": np.full(num, opacity),
        "radii_px": np.full((num, 2), radius),
    }
    return Projected(**{name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()})
