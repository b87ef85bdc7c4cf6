"""Prepares one scene for training or evaluation: photographs, stages, blur model, first Gaussians.

Training, evaluation and benchmarks all start from a Job. It holds no optimizer and asks for no device.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from bags_jax.blur_model.proposal_network import BlurProposalNetwork
from bags_jax.blur_model.protocol import BlurModel, check_blur_model
from bags_jax.blur_model.published_network import PublishedNetwork, layers_of_heads
from bags_jax.checksums import hash_array
from bags_jax.data import load_scene
from bags_jax.data.scene import Scene, train_on_sharp
from bags_jax.errors import UserError
from bags_jax.first_scene import read_gaussians
from bags_jax.growth import growth_on
from bags_jax.ops.backends import choose
from bags_jax.platforms import current_platform, find_host_memory
from bags_jax.rendering import View
from bags_jax.scene.initialize import init_gaussians, init_state, near_plane, random_points, scene_extent
from bags_jax.scene.pose_refinement import follow_shutter_anchor, make_pose_frame
from bags_jax.schedule import Stage, check_image_size, head_networks, make_stages
from bags_jax.settings import Blur, Settings, in_steps
from bags_jax.structs import Gaussians, PoseFrame, TrainState
from bags_jax.synthetic.auto_exposure import vary_exposures
from bags_jax.synthetic.mixed import mix_resolutions
from bags_jax.synthetic.procedural import make_scene

# Makes the blur model from the settings (with numbers of steps) and the number of training views.
MakeModel = Callable[[Settings, int], BlurModel]


SHARE_OF_HOST = 0.5  # of the available memory that photographs may take; larger captures are kept in a file


@dataclasses.dataclass(frozen=True)
class Job:
    """The settings, worked out for one scene."""

    settings: Settings  # with numbers of steps
    scene: Scene
    stages: tuple[Stage, ...]
    model: BlurModel | None  # None: plain splatting
    extent: float  # of the scene, scene units
    pose_frame: PoseFrame | None  # None: poses are not refined

    @property
    def near_plane(self) -> float:
        """Depth at which rendering begins, scene units."""
        return self.settings.data.near_plane or near_plane(self.extent)

    def view(self, width: int, height: int, *, margin: int = 0, max_intersections: int = 0) -> View:
        """How this scene is rendered at one image size."""
        return View(
            width=width,
            height=height,
            max_intersections=max_intersections,
            background=self.scene.background,
            margin=margin,
            near_plane=self.near_plane,
            backend=self.settings.backend,
            deterministic=self.settings.deterministic,
            ray_depth=self.settings.blur.ray_depth,
        )


def make_job(settings: Settings, *, make_model: MakeModel | None = None) -> Job:
    """Loads the scene that the settings name and works out everything that does not change in training.

    Args:
      settings: as `config.read_config` returns them.
      make_model: makes the blur model; None: make_blur_model.
    Raises:
      UserError: settings that do not fit each other or the scene, a scene that cannot be loaded, or no blur model.
    """
    settings = follow_shutter_anchor(in_steps(settings, settings.num_steps))
    _check_settings(settings)
    stages = make_stages(settings)
    scene = load_photographs(settings)
    if len(scene.points) == 0:
        note = f"the capture has no points: {num_random_points(settings)} random ones are used"
        scene = dataclasses.replace(scene, notes=(*scene.notes, note))
    if (anchor := settings.data.shutter_anchor) != "mid":
        note = f"poses are those of the {anchor} of the exposures: they are kept, and kernels are not centred"
        scene = dataclasses.replace(scene, notes=(*scene.notes, note))
    if len(scene.points) > settings.max_gaussians:
        raise UserError(
            f"{len(scene.points)} points came for at most {settings.max_gaussians} Gaussians: raise config.max_gaussians above the points"
        )
    height, width = np.min([image.shape[:2] for image in scene.images], axis=0)
    check_image_size(stages, int(width), int(height))
    train_ids = scene.train_ids
    extent = scene_extent(scene.viewmats[train_ids])
    frame = None
    if settings.optim.poses:
        frame = make_pose_frame(scene.viewmats[train_ids], scene.Ks[train_ids], scene.points, depth=extent)
    model = (make_model or make_blur_model)(settings, len(train_ids)) if settings.blur.enabled else None
    if settings.blur.enabled:
        check_blur_model(model)
    return Job(settings, scene, stages, model, extent, frame)


def _check_settings(settings: Settings) -> None:
    if settings.optim.poses and not settings.optim.poses_final:
        raise UserError(
            "config.optim.poses_final is 0, expected more: --config.optim.poses=0 keeps the poses as they are"
        )
    choose("rasterize", settings.backend)  # raises where this machine lacks the backend


def load_photographs(settings: Settings) -> Scene:
    """The scene that the settings name: an embedded world or a capture on disk."""
    data, synthetic = settings.data, settings.synthetic
    if data.format == "procedural":
        options = dict(vars(synthetic))
        blur, spread = options.pop("blur"), options.pop("exposure_spread")
        scene = vary_exposures(make_scene(blur, **options), spread, seed=synthetic.seed)
    elif not data.root:
        raise UserError("config.data.root is empty, expected the folder of a capture: pass --config.data.root=FOLDER")
    else:
        root = str(pathlib.Path(data.root).expanduser())
        background: Any = data.background  # load_scene checks that they are three
        options = {"factor": data.factor, "holdout": data.holdout, "background": background}
        host = find_host_memory()
        most_bytes = None if host is None else int(SHARE_OF_HOST * host)
        scene = load_scene(root, format=data.format, most_bytes=most_bytes, **options)
        scene = mix_resolutions(scene, data.mixed_factors, seed=settings.seed)
    return train_on_sharp(scene) if data.use_sharp else scene


def make_blur_model(settings: Settings, num_views: int) -> BlurModel:
    """The Blur Proposal Network of the settings. docs/extending_blur_model.md puts another model in its place."""
    blur = settings.blur
    _check_inputs(blur)
    shared: dict[str, Any] = {
        "num_views": num_views,
        "kernel_sizes": blur.kernel_sizes,
        "width": blur.width,
        "embedding_width": blur.embedding_width,
        "conv_width": blur.conv_width,
        "feature_width": blur.feature_width,
        "use_rgbd": blur.use_rgbd,
        "backend": settings.backend,
    }
    if blur.published_network:
        return PublishedNetwork(layers=layers_of_heads(head_networks(settings)), **shared)
    return BlurProposalNetwork(
        use_position=blur.use_position,
        use_embedding=blur.use_embedding,
        use_mask=blur.use_mask,
        growing_trunk=blur.growing_trunk,
        use_table=blur.use_table,
        identity_layers=blur.hand_over,
        centre_logit=blur.centre_logit,
        mask_logit=blur.mask_logit,
        logit_bound=blur.logit_bound,
        **shared,
    )


def _check_inputs(blur: Blur) -> None:
    """Raises UserError for a network that sees nothing, and for parts that the published network always has."""
    if not (blur.use_rgbd or blur.use_position or blur.use_embedding):
        raise UserError(
            "config.blur.use_rgbd, use_position and use_embedding are all False, expected one of them: the network sees nothing"
        )
    parts = ("use_position", "use_embedding", "use_mask", "growing_trunk")
    if blur.published_network and (off := [name for name in parts if not getattr(blur, name)]):
        raise UserError(
            f"config.blur.{off[0]} is False, which the published network cannot follow: set it to True, or "
            "config.blur.published_network to False"
        )


def with_blur(job: Job, blur: Blur, *, make_model: MakeModel | None = None) -> Job:
    """The job with other settings of its blur model, with numbers of steps."""
    settings = dataclasses.replace(job.settings, blur=blur)
    model = (make_model or make_blur_model)(settings, len(job.scene.train_ids)) if blur.enabled else None
    return dataclasses.replace(job, settings=settings, stages=make_stages(settings), model=model)


def num_random_points(settings: Settings) -> int:
    """Number of random points for a capture without points."""
    return min(settings.init.num_random, settings.max_gaussians)


def first_capacity(num_points: int, max_gaussians: int) -> int:
    """Number of rows at step 0: as many as may be needed where that is cheap, else twice the points."""
    return min(max_gaussians, max(2 * num_points, growth_on(current_platform()).first_rows))


def first_gaussians(job: Job) -> tuple[Gaussians, Bool[Array, "N"]]:
    """The Gaussians that training starts from, and the rows in use: those of another scene, or on points.

    Raises:
      UserError: the other scene cannot be read, or has more Gaussians than may be.
    """
    settings = job.settings
    if not settings.init.scene:
        return gaussians_on_points(job)
    found = read_gaussians(settings.init.scene, sh_degree=settings.sh_degree)
    num = len(found.means)
    if not 0 < num <= settings.max_gaussians:
        raise UserError(
            f"config.init.scene has {num} Gaussians, expected 1 to {settings.max_gaussians}: change config.max_gaussians"
        )
    capacity = first_capacity(num, settings.max_gaussians)
    padded = jax.tree.map(lambda x: jnp.pad(x, [(0, capacity - num)] + [(0, 0)] * (x.ndim - 1)), found)
    return padded, jnp.arange(capacity) < num


def gaussians_on_points(job: Job) -> tuple[Gaussians, Bool[Array, "N"]]:
    """Gaussians on the points of the capture, or on random ones, and the rows in use."""
    settings, scene = job.settings, job.scene
    points, colors = scene.points, scene.point_colors
    if len(points) == 0:
        points, colors = random_points(scene, num_random_points(settings), settings.seed)
    capacity = first_capacity(len(points), settings.max_gaussians)
    opacity, degree = settings.init.opacity, settings.sh_degree
    gaussians = init_gaussians(points, colors, capacity=capacity, sh_degree=degree, opacity=opacity)
    return gaussians, jnp.arange(capacity) < len(points)


def first_state(job: Job) -> TrainState:
    """The state at step 0, without optimizers."""
    return _state_of(job, *first_gaussians(job))


def _state_of(job: Job, gaussians: Gaussians, alive: Bool[Array, "N"]) -> TrainState:
    return init_state(
        gaussians,
        alive,
        model=job.model,
        num_views=len(job.scene.train_ids),
        num_networks=1 + job.settings.blur.second_network,
        seed=job.settings.seed,
    )


def hash_photographs(scene: Scene, ids: Sequence[int] | np.ndarray) -> dict[str, str]:
    """SHA-256 of the pixels of some photographs of a scene by name, as they are trained on and scored."""
    return {scene.names[i]: hash_array(scene.images[i]) for i in ids}


def training_cameras(scene: Scene) -> dict[str, Float[np.ndarray, "4 4"]]:
    """cam_from_world of each training view by its name."""
    return {scene.names[i]: scene.viewmats[i] for i in scene.train_ids}


def check_views(state: TrainState, scene: Scene) -> None:
    """Raises UserError if a checkpoint has another number of training views than the scene."""
    if state.poses.shape[0] != len(scene.train_ids):
        raise UserError(
            f"the checkpoint has {state.poses.shape[0]} training views, the capture has {len(scene.train_ids)} now: restore the "
            "photographs, or train again in another --workdir"
        )


def state_template(job: Job) -> TrainState:
    """Shapes of the state without optimizers: what a checkpoint is restored into. The number of rows does not matter."""
    return jax.eval_shape(lambda: _state_of(job, *gaussians_on_points(job)))
