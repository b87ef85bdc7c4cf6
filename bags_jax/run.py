"""A trained run, opened for evaluation: its job, its state, and renders of it. Any device will do."""

import dataclasses
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bags_jax.blur_model.protocol import BlurModel
from bags_jax.camera_file import read_camera_path
from bags_jax.camera_path import CameraPath, interpolate, loop, orbit_subject
from bags_jax.checkpoint import Checkpoints
from bags_jax.data.poses import locate_cameras
from bags_jax.data.scene import Scene
from bags_jax.errors import UserError
from bags_jax.growth import HEADROOM
from bags_jax.job import Job, MakeModel, check_views, make_job, state_template, training_cameras
from bags_jax.ops.rasterize import buffer_size
from bags_jax.programs import largest_count
from bags_jax.rendering import Rendered
from bags_jax.scene.pose_refinement import corrected_camera
from bags_jax.schedule import Stage, stage_at
from bags_jax.step import eval_step
from bags_jax.structs import Camera, Dataset, TrainState
from bags_jax.upright import find_up
from bags_jax.workdir import check_capture, read_settings


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained scene."""

    workdir: pathlib.Path
    job: Job
    state: TrainState  # without optimizers

    @property
    def scene(self) -> Scene:
        return self.job.scene

    @property
    def stage(self) -> Stage:
        """The stage of the last step. Heads of later stages are not trained yet."""
        return stage_at(self.job.stages, max(int(self.state.step) - 1, 0))

    @property
    def model(self) -> BlurModel | None:
        """The blur model; None: there is none, or the last step was before it started."""
        return self.job.model if self.stage.kernel_size else None


def open_run(
    workdir: str | pathlib.Path,
    *,
    step: int | None = None,
    data_root: str | None = None,
    make_model: MakeModel | None = None,
) -> Run:
    """Reads the settings, the scene and a checkpoint of a run. One device is enough, however many trained it.

    Args:
      workdir: folder of the run.
      step: which checkpoint; None: the last.
      data_root: folder of the capture, where it is another than on the machine that trained.
      make_model: as `train` got it.
    Raises:
      UserError: there is no run, no such checkpoint, or it cannot be read.
    """
    path = pathlib.Path(workdir).expanduser()
    settings = dataclasses.replace(
        read_settings(path), backend="auto"
    )  # this machine may lack the backend of the training
    if data_root:
        settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, root=data_root))
    job = make_job(settings, make_model=make_model)
    with Checkpoints(path, create=False) as checkpoints:
        state = checkpoints.restore(state_template(job), step)
    check_views(state, job.scene)
    check_capture(path, training_cameras(job.scene))
    return Run(path, job, jax.tree.map(jnp.asarray, state))


_render = jax.jit(eval_step, static_argnames="view")


def render_views(run: Run, viewmats, Ks, *, width: int, height: int, margin: int = 0) -> Iterator[Rendered]:
    """Sharp renders of cameras that share an image size, one at a time; viewmats cam_from_world, Ks and margin px.

    Raises:
      RuntimeError: an intersection buffer was too small although it was measured: a bug.
    """
    cameras = Camera(jnp.asarray(viewmats, jnp.float32), jnp.asarray(Ks, jnp.float32))
    view = run.job.view(width, height, margin=margin)
    sizes = jnp.tile(jnp.array([[height, width]], jnp.int32), (len(viewmats), 1))
    ones = jnp.float32(1)
    dataset = Dataset(images=None, sizes=sizes, cameras=cameras, extent=ones, near_plane=ones)
    size = buffer_size(int(HEADROOM * largest_count(run.state, dataset, view)))
    view = dataclasses.replace(view, max_intersections=size)
    for i in range(len(viewmats)):
        rendered = _render(run.state, jax.tree.map(lambda x, i=i: x[i], cameras), view=view)
        if rendered.num_dropped > 0:
            raise RuntimeError(f"{rendered.num_dropped} intersections did not fit into the buffer of image {i}")
        yield rendered


def refined_viewmats(run: Run) -> Float[np.ndarray, "V 4 4"]:
    """cam_from_world of all views of the scene; training views with their refined poses."""
    scene, frame = run.scene, run.job.pose_frame
    viewmats = np.array(scene.viewmats)
    if frame is not None:
        cameras = Camera(jnp.asarray(scene.viewmats[scene.train_ids]), jnp.asarray(scene.Ks[scene.train_ids]))
        refined = jax.vmap(corrected_camera, in_axes=(0, 0, None))(cameras, run.state.poses, frame)
        viewmats[scene.train_ids] = np.asarray(refined.viewmat)
    return viewmats


def render_scene_views(run: Run, ids) -> Iterator[Rendered]:
    """Sharp renders of views of the scene, each at the size of its photograph; training views with their refined poses.

    One at a time: a device may not hold all renders of a capture at full resolution.
    """
    return render_cameras(run, view_cameras(run, ids))


def render_cameras(run: Run, cameras: CameraPath) -> Iterator[Rendered]:
    """Sharp renders of the cameras of a path, one at a time."""
    pictures = {}
    for height, width in {(int(h), int(w)) for h, w in cameras.sizes}:
        same = np.all(cameras.sizes == (height, width), axis=1)
        pictures[height, width] = render_views(
            run, cameras.viewmats[same], cameras.Ks[same], width=width, height=height
        )
    return (next(pictures[int(h), int(w)]) for h, w in cameras.sizes)


def view_cameras(run: Run, ids) -> CameraPath:
    """The cameras of views of the scene; those of training views are refined."""
    ids = np.asarray(ids, int)
    sizes = np.array([run.scene.images[i].shape[:2] for i in ids], int).reshape(-1, 2)
    return CameraPath(refined_viewmats(run)[ids], run.scene.Ks[ids], sizes, ids=ids)


def find_path(run: Run, path: str, *, num_frames: int) -> CameraPath:
    """The cameras of a film.

    Args:
      run: a trained scene.
      path: test or train (the cameras of these views); spiral (a loop); orbit (around the subject, about the up
        direction, as far as photographs go); interpolate (smoothly through the training cameras); or a nerfstudio camera path, FILE.json.
      num_frames: number of cameras of spiral, orbit and interpolate.
    Raises:
      UserError: no view is held out, or the file cannot be read.
    """
    scene = run.scene
    if path.endswith(".json"):
        return read_camera_path(path)
    if path in ("test", "train"):
        ids = scene.test_ids if path == "test" else scene.train_ids
        if not len(ids):
            raise UserError("the capture has no held-out views: expected --path=train or --path=spiral")
        return view_cameras(run, ids)
    viewmats = refined_viewmats(run)[scene.train_ids]
    points = np.asarray(run.state.gaussians.means)[np.asarray(run.state.alive)]
    if path == "orbit":
        cameras = orbit_subject(viewmats, points, down=-find_up(viewmats, points).direction, num_frames=num_frames)
    elif path == "interpolate":
        cameras = interpolate(viewmats, num_frames=num_frames)
    else:
        cameras = loop(viewmats, points, num_frames=num_frames)
    first = scene.train_ids[0]
    sizes = np.repeat(np.array([scene.images[first].shape[:2]]), num_frames, axis=0)
    return CameraPath(cameras, np.repeat(scene.Ks[first][None], num_frames, axis=0), sizes)


def render_path(run: Run, path: str, *, num_frames: int) -> Iterator[Rendered]:
    """Sharp renders along a camera path, one at a time; see `find_path`."""
    return render_cameras(run, find_path(run, path, num_frames=num_frames))


def nearest_training_view(scene: Scene, index: int) -> int:
    """Index of the training view whose camera is nearest to that of a view."""
    centers = locate_cameras(scene.viewmats)
    distances = np.linalg.norm(centers[scene.train_ids] - centers[index], axis=-1)
    return int(scene.train_ids[np.argmin(distances)])
