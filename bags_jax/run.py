"""A trained run, opened: its configuration, its scene and a state, and pictures of it. Needs no device in particular."""

import dataclasses
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bags_jax import plan
from bags_jax.blur_model.proposal_network import BlurProposalNetwork
from bags_jax.camera_path import loop
from bags_jax.checkpoint import Checkpoints
from bags_jax.data.poses import camera_centers
from bags_jax.data.scene import Scene
from bags_jax.dispatch import most_pairs, room_for
from bags_jax.errors import UserError
from bags_jax.rendering import Rendered, View
from bags_jax.scene.pose_refinement import corrected_camera
from bags_jax.schedule import Stage, stage_at
from bags_jax.step import eval_step
from bags_jax.structs import Camera, Dataset, TrainState
from bags_jax.training import Job, check_views, first_state, make_job, training_cameras
from bags_jax.workdir import check_capture, read_config


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained scene."""

    workdir: pathlib.Path
    job: Job
    state: TrainState

    @property
    def scene(self) -> Scene:
        return self.job.scene

    @property
    def stage(self) -> Stage:
        """The one that the last step was in: heads of later ones have not been trained."""
        return stage_at(self.job.stages, max(int(self.state.step) - 1, 0))

    @property
    def network(self) -> BlurProposalNetwork | None:
        """The blur model; None: there is none, or not yet."""
        return self.job.network if self.stage.kernel_size else None


def open_run(workdir: str | pathlib.Path, *, step: int | None = None, data_root: str | None = None) -> Run:
    """Reads configuration, scene and checkpoint of a run; on whatever devices it was trained, one is enough here.

    Args:
      workdir: folder of the run.
      step: which checkpoint; None: the last.
      data_root: folder of the capture, where it is another than on the machine that trained.
    Raises:
      UserError: there is no run, no such checkpoint, or it cannot be read.
    """
    config = plan.switch_off_later(read_config(workdir))
    config.num_devices, config.views_per_step = 1, 1
    config.data.root = data_root or config.data.root
    job = make_job(config)
    template = jax.eval_shape(lambda: first_state(job))
    # What Adam remembers is most of a checkpoint, and of no use here.
    template = dataclasses.replace(template, gaussians_opt=(), network_opt=(), poses_opt=())
    with Checkpoints(pathlib.Path(workdir).expanduser(), create=False) as checkpoints:
        state = checkpoints.restore(template, step)
    check_views(state, job.scene)
    check_capture(workdir, training_cameras(job.scene))
    return Run(pathlib.Path(workdir).expanduser(), job, jax.tree.map(jnp.asarray, state))


_render = jax.jit(eval_step, static_argnames="view")


def render_views(run: Run, viewmats, Ks, *, width: int, height: int, margin: int = 0) -> Iterator[Rendered]:
    """Sharp pictures of cameras that share an image size, one at a time; viewmats cam_from_world, Ks and margin px."""
    cameras = Camera(jnp.asarray(viewmats, jnp.float32), jnp.asarray(Ks, jnp.float32))
    view = View(width, height, 0, run.scene.background, margin, near_plane=run.job.near_plane)
    sizes = jnp.tile(jnp.array([[height, width]], jnp.int32), (len(viewmats), 1))
    ones = jnp.float32(1)
    dataset = Dataset(images=None, sizes=sizes, cameras=cameras, extent=ones, near_plane=ones)
    view = dataclasses.replace(view, max_intersections=room_for(most_pairs(run.state, dataset, view)))
    for i in range(len(viewmats)):
        rendered = _render(run.state, jax.tree.map(lambda x, i=i: x[i], cameras), view=view)
        if rendered.num_dropped > 0:  # its pairs were counted, with room to spare
            raise RuntimeError(f"{rendered.num_dropped} pairs of tile and Gaussian found no room in picture {i}")
        yield rendered


def refined_viewmats(run: Run) -> Float[np.ndarray, "V 4 4"]:
    """cam_from_world of all views of the scene; the training views as training left them."""
    scene, frame = run.scene, run.job.pose_frame
    viewmats = np.array(scene.viewmats)
    if frame is not None:
        cameras = Camera(jnp.asarray(scene.viewmats[scene.train_ids]), jnp.asarray(scene.Ks[scene.train_ids]))
        refined = jax.vmap(corrected_camera, in_axes=(0, 0, None))(cameras, run.state.poses, frame)
        viewmats[scene.train_ids] = np.asarray(refined.viewmat)
    return viewmats


def render_scene_views(run: Run, ids) -> Iterator[Rendered]:
    """Sharp pictures of views of the scene, each at the size of its photograph and, in training views, its refined pose.

    One at a time: all pictures of a capture at full resolution may be more than a device holds.
    """
    viewmats, sizes = refined_viewmats(run), [run.scene.images[i].shape[:2] for i in ids]
    pictures = {}
    for height, width in set(sizes):
        same = [i for i, size in zip(ids, sizes, strict=True) if size == (height, width)]
        pictures[height, width] = render_views(run, viewmats[same], run.scene.Ks[same], width=width, height=height)
    return (next(pictures[size]) for size in sizes)


def render_path(run: Run, path: str, *, num_frames: int) -> Iterator[Rendered]:
    """Pictures of the cameras of a path, one at a time: test, train or spiral.

    Raises:
      UserError: no view is held out.
    """
    scene = run.scene
    if path in ("test", "train"):
        ids = scene.test_ids if path == "test" else scene.train_ids
        if not len(ids):
            raise UserError("the capture has no held-out views: expected --path=train or --path=spiral")
        return render_scene_views(run, ids)
    viewmats = refined_viewmats(run)[scene.train_ids]
    points = np.asarray(run.state.gaussians.means)[np.asarray(run.state.alive)]
    cameras = loop(viewmats, points, num_frames=num_frames)
    first = scene.train_ids[0]
    height, width = scene.images[first].shape[:2]
    Ks = np.repeat(scene.Ks[first][None], num_frames, axis=0)
    return render_views(run, cameras, Ks, width=width, height=height)


def nearest_training_view(scene: Scene, index: int) -> int:
    """The training view whose camera is nearest to that of a view."""
    centers = camera_centers(scene.viewmats)
    distances = np.linalg.norm(centers[scene.train_ids] - centers[index], axis=-1)
    return int(scene.train_ids[np.argmin(distances)])
