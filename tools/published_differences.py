"""Undoes the differences between the authors' network and ours, one at a time, in "BAGS as published".

  python -m tools.published_differences --workdir=runs/differences --case=still_life-motion-hard --seed=150

Trains one run for each and prints its PSNR. A run that is done is not trained again.
"""

import json
import pathlib
from unittest import mock

import flax.linen as nn
from absl import flags

from bags_jax.atomic import write_atomic
from bags_jax.blur_model import published_network as published
from bags_jax.blur_model.proposal_network import RenderFeatures, Weights, lecun_layer, position_waves
from bags_jax.blur_model.published_network import PublishedNetwork, layers_of_heads
from bags_jax.cli.launch import launch, use_compilation_cache
from bags_jax.evaluation import evaluate
from bags_jax.schedule import head_networks
from bags_jax.training import train
from experiments.benchmarks.quality import suites

_WORKDIR = flags.DEFINE_string("workdir", "runs/differences", "Folder of the runs.")
_CASE = flags.DEFINE_string("case", "still_life-motion-hard", "Case of the quality benchmark.")
_SEED = flags.DEFINE_integer("seed", 150, "Seed of the scene and of the training.")
HE, SMALL = nn.initializers.he_normal(), nn.initializers.variance_scaling(0.01, "fan_in", "normal")
DIFFERENCES = {
    "none": "as published",
    "position": "our position code: 4 octaves",
    "layers": "one layer more below each head",
    "biases": "kernel heads with biases",
    "weights": "our first weights: normal, heads 0.1 times as large, convolutions without first biases",
    "embedding": "embeddings of views with the first variance of flax, 1 / 32",
    "border": "the last pixel goes on beyond the border",
    "depth": "depth is camera z",
}
_ONLY = flags.DEFINE_multi_enum("only", [], list(DIFFERENCES), "Differences to undo; all by default.")


def make_network(difference: str, **sizes) -> PublishedNetwork:
    """The authors' network with one difference undone."""
    ours, zeros = difference == "weights", nn.initializers.zeros
    first = published.UNIFORM

    class Network(PublishedNetwork):
        def setup(self):
            of_flax = nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)
            spread = of_flax if difference == "embedding" else nn.initializers.normal(1.0)
            self.embedding = nn.Embed(self.num_views, self.embedding_width, embedding_init=spread)
            layer = lecun_layer if ours else published.uniform_layer
            self.render_features = RenderFeatures(self.conv_width, self.feature_width, self.backend, layer)
            inputs = self.embedding_width + 2 * published.POSITION_WIDTH + self.feature_width
            widths = [inputs] + [self.width] * max(self.layers)
            self.trunk = [Weights((width, self.width), HE if ours else first) for width in widths[:-1]]
            heads = [(self.width, k * k) for k in self.kernel_sizes]
            bias = zeros if difference == "biases" else None
            self.kernel_heads = [Weights(shape, SMALL if ours else first, bias) for shape in heads]
            self.mask_heads = [Weights((self.width, 1), SMALL if ours else first) for _ in heads]

    return Network(**sizes)


def train_without(difference: str) -> float:
    """Trains and scores one run; returns its PSNR, dB."""
    folder = pathlib.Path(_WORKDIR.value) / f"{_CASE.value}-{_SEED.value}" / difference
    result = folder / "psnr.json"
    if result.exists():
        return json.loads(result.read_text())
    (case,) = suites.find_cases("procedural", [_CASE.value])
    config = suites.make_config(case, "published", _SEED.value)
    config.blur.zero_border &= difference != "border"
    config.blur.ray_depth &= difference != "depth"

    def make_model(settings, num_views):
        blur, more = settings.blur, difference == "layers"
        layers = tuple(n + more for n in layers_of_heads(head_networks(settings)))
        names = ("kernel_sizes", "width", "embedding_width", "conv_width", "feature_width")
        sizes = {name: getattr(blur, name) for name in names}
        return make_network(difference, num_views=num_views, layers=layers, backend=settings.backend, **sizes)

    use_compilation_cache(config.compilation_cache)
    code = position_waves if difference == "position" else published.position_code
    with mock.patch.object(published, "position_code", code):
        train(config, folder / "run", make_model=make_model)
        psnr = evaluate(folder / "run", make_model=make_model)["deblur_nerf"]["PSNR"]
    write_atomic(result, json.dumps(psnr).encode())
    return psnr


def main() -> None:
    """Trains all runs in turn."""
    for difference in _ONLY.value or DIFFERENCES:
        print(f"{train_without(difference):.2f} dB  {difference}: {DIFFERENCES[difference]}", flush=True)


if __name__ == "__main__":
    launch(main)
