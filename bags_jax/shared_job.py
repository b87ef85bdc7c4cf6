"""One job in several processes: each reads the capture on its own host, and all must have read the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bags_jax import parallel
from bags_jax.checksums import hash_array
from bags_jax.data.scene import Scene
from bags_jax.job import Job
from bags_jax.processes import check_equal


def share_job(job: Job) -> Job:
    """Checks that all processes have read the same capture, and takes the numbers that process 0 has computed from it."""
    if parallel.is_alone():
        return job
    check_equal("", describe_scene(job.scene))
    pose_frame = jax.tree.map(jnp.asarray, parallel.share_tree(job.pose_frame, like=job.pose_frame))
    return dataclasses.replace(job, extent=float(parallel.share_text(repr(float(job.extent)))), pose_frame=pose_frame)


def describe_scene(scene: Scene) -> dict[str, str]:
    """What a capture holds, for comparison: names, and SHA-256 of arrays."""
    arrays = {
        "poses": scene.viewmats,
        "intrinsics": scene.Ks,
        "points": scene.points,
        "colors of points": scene.point_colors,
    }
    facts = {f"the SHA-256 of the {name}": hash_array(np.asarray(x)) for name, x in arrays.items()}
    facts["the number of photographs"] = str(len(scene.names))
    for name, image in zip(scene.names, scene.images, strict=True):
        facts[f"the SHA-256 of photograph {name}"] = hash_array(np.asarray(image))
    return facts
