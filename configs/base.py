"""Every field once, with its meaning: the default configuration, meant for every scene.

A value of a step schedule (marked S) is a part of num_steps if it is at most 1, else a number of steps. Override any
field on the command line: --config.num_steps=3000 --config.blur.kernel_sizes=3,7,13
"""

from typing import Any

from ml_collections import ConfigDict


def get_config(arg: str = "") -> Any:
    """The defaults; `smoke` shrinks them to seconds on a CPU."""
    config = ConfigDict(
        {
            "seed": 0,
            "num_steps": 20_000,
            "views_per_step": 0,  # over all devices; 0: one for each device
            "num_devices": 0,  # 0: as many as can share the views of a step
            "deterministic": False,  # sum gradients in a fixed order on a GPU too: slower, and the same to the last bit each time
            "max_gaussians": 1_000_000,  # the scene never has more
            "sh_degree": 3,  # of the colours, 0 to 3
            "sh_every": 0.05,  # S: after so many steps one more degree is in use
            "data": data(),
            "init": init(),
            "stages": stages(),
            "blur": blur(),
            "loss": loss(),
            "optim": optim(),
            "density": density(),
            "log_every": 100,  # steps
            "checkpoint_every": 1000,  # steps
            "keep_checkpoints": 2,
            "compilation_cache": "auto",  # folder of compiled programs; auto: in $XDG_CACHE_HOME or ~/.cache; "": none
        }
    )
    return smoke(config) if "smoke" in words_of(arg, "smoke") else config


def words_of(arg: str, *known: str) -> list[str]:
    """The words of a configuration's argument.

    Raises:
      ValueError: one that is not known; ignoring it would train something else than was meant.
    """
    words = [word for word in arg.split(",") if word]
    for word in words:
        if word not in known:
            raise ValueError(f"the word {word!r} came after the configuration file, expected {' or '.join(known)}")
    return words


def data() -> dict:
    """The capture."""
    return {
        "format": "auto",  # auto, colmap, llff, blender, nerfstudio, procedural
        "root": "",  # folder of the capture
        "factor": 1,  # downscale of the photographs
        "holdout": 0,  # every n-th view is held out; 0: what the file hold=n says, else 8
        "use_sharp": False,  # train on the sharp truth where it is known: the oracle
        "mixed_factors": (),  # coarsen training views by these factors, to make a benchmark of mixed resolution
        "near_plane": 0.0,  # depth at which pictures begin, scene units; 0: 0.2, or less in scenes of small units
        "background": (0.0, 0.0, 0.0),  # behind transparent photographs and the scene, sRGB
    }


def init() -> dict:
    """The scene that training starts from."""
    return {
        "num_random": 100_000,  # random points where the capture has none
        "opacity": 0.1,
    }


def stages() -> dict:
    """The resolution schedule."""
    return {
        "scales": (0.25, 0.5, 1.0),  # image scale of each stage
        "stops": (0.06, 0.14, 1.0),  # S: end of each stage
        "restart": 0.0,  # S: rates and thresholds start anew here; 0: never
    }


def blur() -> dict:
    """The blur model."""
    return {
        "enabled": True,  # False: plain splatting
        "kernel_sizes": (5, 9, 17),  # of each stage, px, odd
        "strides": (1, 1, 2),  # of each stage: blocks of so many px share a kernel
        "warmup": 0.04,  # S: no blur model until here
        "warmup_at_restart": False,  # and none for as long after the restart (the authors do)
        "second_network": False,  # a network of its own after the restart
        "width": 32,  # of the trunk
        "conv_width": 8,  # of the convolutions on the render
        "feature_width": 16,
        "embedding_width": 32,  # of a view
        "use_rgbd": True,  # the network sees render and depth
        "use_table": True,  # kernel logits of each view beside the network
        "margin": True,  # the scene is rendered beyond the border as far as kernels reach; False: the last pixel goes on
        "linear_light": True,  # blur light, not sRGB values
        "hand_over": True,  # kernels go on from stage to stage
        "centre_logit": 6.0,  # how far above the others the centre tap starts (0: uniform kernels)
        "mask_logit": 3.0,  # where the mask starts (0: one half)
        "logit_bound": 5.0,  # kernels and masks do not saturate beyond it; 0: none
    }


def loss() -> dict:
    """Weights of the loss."""
    return {
        "ssim": 0.2,  # of 1 - SSIM, against 1 minus this for L1
        "mask": 1e-4,  # mean mask
        "centroid": 0.01,  # mean over the image of mask times squared kernel centroid, per px^2
        "width_tv": 0.02,  # total variation of the kernels' widths, px per px: kernels must not hide edges that splats miss
        "sharp": 2e-3,  # blur of a view (0 to 1), where nearly all are blurred alike and by little, or this one much less than most
        "sharp_start": 0.3,  # S: from here on where nearly all are
        "sharp_view_start": 0.5,  # S: from here on of single views: the scene is to be as sharp as the sharpest photographs, no sharper
        "confidence": 1.0,  # views blurred by this many times the median count half for the scene; 0: all count the same
        "poses": 2e-3,  # squared correction of the view's pose, in units of the view's blur
        "depth_tv": 0.0,
        "rgb_tv": 0.0,
    }


def optim() -> dict:
    """Adam's rates."""
    return {
        "means": 1.6e-4,  # times the scene extent
        "means_final": 1.6e-5,
        "means_steps": 30_000,  # what the Gaussians' rates are for: shorter runs take larger steps (plan.make_rates); 0: never
        "quats": 1e-3,
        "log_scales": 5e-3,
        "logit_opacities": 0.05,
        "sh_dc": 2.5e-3,
        "sh_rest": 1.25e-4,
        "network": 5e-3,
        "network_final": 5e-4,
        "network_hold": 0.5,  # part of the schedule with the full rate
        "table_gain": 4.0,  # times the network's rate
        "mask_gain": 0.1,
        "poses": 0.01,  # of the training poses, px at full image scale; 0: those of the capture are kept
        "poses_final": 1e-3,
        "poses_start": 0.3,  # S: from here on they are refined
    }


def density() -> dict:
    """Density control."""
    return {
        "every": 100,  # steps between two turns, and between two updates of the 3D filter
        "start": 0.087,  # S
        "stop": 0.75,  # S
        "grad_threshold": 2e-4,  # NDC
        "grad_threshold_early": 2e-4,  # before the restart, or before the last stage where there is none
        "min_opacity": 0.03,  # prune under it
        "min_opacity_early": 0.03,  # the same, as long as grad_threshold_early holds
        "clone_max_scale": 0.01,  # parts of the scene extent: larger Gaussians are split
        "max_radius": 0.0,  # prune above it, parts of the image; 0: never
        "max_radius_after": 0.0,  # S: from here on
        "reset_every": 0.0,  # S: between two opacity resets; 0: never
    }


def smoke(config: Any) -> Any:
    """Shrinks any configuration to seconds on a CPU: every part is there, nothing is learnt."""
    config.num_steps = 12
    config.max_gaussians = 4096
    config.init.num_random = 256
    config.stages.scales = (0.5, 1.0)
    config.stages.stops = (0.5, 1.0)
    config.stages.restart = 0.5 if config.stages.restart else 0.0
    config.blur.kernel_sizes = (3, 5)
    config.blur.strides = (1, 2)
    config.blur.width, config.blur.conv_width, config.blur.feature_width = 8, 4, 4
    config.blur.embedding_width = 4
    config.density.every = 4
    config.density.min_opacity = config.density.min_opacity_early = 0.005  # new Gaussians may have no more than 0.1
    config.log_every = 2
    config.checkpoint_every = 6
    return config
