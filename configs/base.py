"""Every field once, with its meaning: the default configuration, meant for every scene.

A value of a step schedule (marked S) is a part of num_steps if it is at most 1, else a number of steps. Override any
field on the command line: --config.num_steps=3000 --config.blur.kernel_sizes=3,7,13
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The defaults; `smoke` shrinks them to seconds on a CPU."""
    config = ConfigDict()
    config.seed = 0
    config.num_steps = 20_000
    config.views_per_step = 0  # over all devices; 0: one for each device
    config.num_devices = 0  # 0: all
    config.max_gaussians = 1_000_000  # the scene never has more
    config.sh_degree = 3  # of the colours, 0 to 3
    config.sh_every = 0.05  # S: after so many steps one more degree is in use

    config.data = data = ConfigDict()
    data.format = "auto"  # auto, colmap, llff, blender, nerfstudio, procedural
    data.root = ""  # folder of the capture
    data.factor = 1  # downscale of the photographs
    data.holdout = 0  # every n-th view is held out; 0: what the file hold=n says, else 8
    data.background = (0.0, 0.0, 0.0)  # behind transparent photographs and the scene, sRGB

    config.init = init = ConfigDict()
    init.num_random = 100_000  # random points where the capture has none
    init.opacity = 0.1

    config.stages = stages = ConfigDict()  # the resolution schedule
    stages.scales = (0.25, 0.5, 1.0)  # image scale of each stage
    stages.stops = (0.065, 0.26, 1.0)  # S: end of each stage
    stages.restart = 0.0  # S: rates and thresholds start anew here; 0: never

    config.blur = blur = ConfigDict()
    blur.enabled = True  # False: plain splatting
    blur.kernel_sizes = (5, 9, 17)  # of each stage, px, odd
    blur.strides = (1, 1, 2)  # of each stage: blocks of so many px share a kernel
    blur.warmup = 0.04  # S: no blur model until here
    blur.warmup_at_restart = False  # and none for as long after the restart (the authors do)
    blur.second_network = False  # a network of its own after the restart
    blur.width = 32  # of the trunk
    blur.conv_width = 8  # of the convolutions on the render
    blur.feature_width = 16
    blur.embedding_width = 32  # of a view
    blur.use_rgbd = True  # the network sees render and depth
    blur.use_table = True  # kernel logits of each view beside the network
    blur.hand_over = True  # kernels go on from stage to stage
    blur.centre_logit = 6.0  # how far above the others the centre tap starts (0: uniform kernels)
    blur.mask_logit = 3.0  # where the mask starts (0: one half)

    config.loss = loss = ConfigDict()
    loss.ssim = 0.2
    loss.mask = 1e-4
    loss.centroid = 0.0  # squared mean kernel centroid of a view, per px^2
    loss.depth_tv = 0.0
    loss.rgb_tv = 0.0

    config.optim = optim = ConfigDict()  # Adam's rates
    optim.means = 1.6e-4  # times the scene extent
    optim.means_final = 1.6e-5
    optim.quats = 1e-3
    optim.log_scales = 5e-3
    optim.logit_opacities = 0.05
    optim.sh_dc = 2.5e-3
    optim.sh_rest = 1.25e-4
    optim.network = 5e-3
    optim.network_final = 5e-4
    optim.network_hold = 0.5  # part of the schedule with the full rate
    optim.table_gain = 4.0  # times the network's rate
    optim.mask_gain = 0.1

    config.density = density = ConfigDict()
    density.every = 100  # steps between two turns, and between two updates of the 3D filter
    density.start = 0.087  # S
    density.stop = 0.75  # S
    density.grad_threshold = 2e-4  # NDC
    density.grad_threshold_early = 2e-4  # before the restart, or before the last stage where there is none
    density.min_opacity = 0.03  # prune under it
    density.min_opacity_early = 0.03  # the same, as long as grad_threshold_early holds
    density.clone_max_scale = 0.01  # parts of the scene extent: larger Gaussians are split
    density.max_radius = 0.0  # prune above it, parts of the image; 0: never
    density.max_radius_after = 0.0  # S: from here on
    density.reset_every = 0.0  # S: between two opacity resets; 0: never

    config.log_every = 50  # steps
    config.checkpoint_every = 1000  # steps
    config.keep_checkpoints = 2
    config.compilation_cache = "~/.cache/bags_jax/xla"  # "": none
    return smoke(config) if arg == "smoke" else config


def smoke(config: ConfigDict) -> ConfigDict:
    """Shrinks any configuration to seconds on a CPU: every part is there, nothing is learnt."""
    config.num_steps = 12
    config.max_gaussians = 512
    config.init.num_random = 256
    config.stages.scales = (0.5, 1.0)
    config.stages.stops = (0.5, 1.0)
    config.stages.restart = 0.0
    config.blur.kernel_sizes = (3, 5)
    config.blur.strides = (1, 2)
    config.blur.width, config.blur.conv_width, config.blur.feature_width = 8, 4, 4
    config.blur.embedding_width = 4
    config.density.every = 4
    config.log_every = 2
    config.checkpoint_every = 6
    return config
