"""Compiles `rasterization` with backend="cuda", forward and backward, for an H200 that is not there; prints a JSON row.

  python tests/compile_for_h200.py CAMERAS DETERMINISTIC

Needs the CUDA wheels of `make gpu-check` but neither a GPU nor a driver: XLA takes the GPU from golden/h200.txtpb.
"""

import collections
import json
import os
import pathlib
import re
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"

import jax
import jax.numpy as jnp
from jax.experimental import topologies

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from bags_jax.rasterize import rasterization
from bags_jax.rasterize.cuda import launch

H200 = pathlib.Path(__file__).parent / "golden" / "h200.txtpb"
NUM, WIDTH, HEIGHT, ROOM = 1_000_000, 1296, 840, 4_000_000


def loss(means, quats, scales, opacities, colors, viewmats, Ks, deterministic):
    image, alphas, meta = rasterization(
        *(means, quats, scales, opacities, colors, viewmats, Ks, WIDTH, HEIGHT),
        render_mode="RGB+D",
        max_intersections=ROOM,
        backend="cuda",
        deterministic=deterministic,
    )
    return jnp.sum(image) + jnp.sum(alphas), meta["num_dropped"]


def compile_for_h200(cameras: int, deterministic: bool) -> dict:
    """Compiles value and gradient for `cameras` cameras; how long it took, what it calls, and the memory it needs."""
    topology = topologies.get_topology_desc(platform="cuda", target_config=H200.read_text(), topology="1x1x1")
    mesh = topologies.make_mesh(topology, (1,), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shapes = [(NUM, 3), (NUM, 4), (NUM, 3), (NUM,), (NUM, 3), (cameras, 4, 4), (cameras, 3, 3)]
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding) for shape in shapes]
    step = jax.jit(jax.value_and_grad(loss, tuple(range(7)), has_aux=True), static_argnums=7)
    start = time.perf_counter()
    with launch.forced_route(launch.XLA):
        compiled = step.trace(*inputs, deterministic).lower(lowering_platforms=("cuda",)).compile()
    calls = collections.Counter(re.findall(r'custom_call_target="([^"]*)"', compiled.as_text()))
    temporary = compiled.memory_analysis().temp_size_in_bytes
    return {
        "jax": jax.__version__,
        "cameras": cameras,
        "deterministic": deterministic,
        "seconds": round(time.perf_counter() - start, 1),
        "calls": calls,
        "temporary_bytes": temporary,
    }


if __name__ == "__main__":
    print(json.dumps(compile_for_h200(int(sys.argv[1]), bool(int(sys.argv[2])))))
