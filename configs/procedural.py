"""The embedded scenes, at 128 x 84: --config=configs/procedural.py:motion, or :defocus,corner,easy,large,smoke.

python -m experiments.train --config=configs/procedural.py:motion --workdir=runs/motion

Words after the colon, in any order, each at most once: motion | defocus | mixed | none; still_life | corner | relief;
hard | easy (half the blur); small | large (192 x 128), of which the first is the default; and published (BAGS as
published, at as many steps: presets.at_equal_steps); smoke.
"""

from typing import Any

from configs import base, presets

KINDS = ("motion", "defocus", "mixed", "none")
LAYOUTS = ("still_life", "corner", "relief")
STRENGTHS = {"hard": 1.0, "easy": 0.5}  # blur_scale
SIZES = {"small": (128, 84), "large": (192, 128)}  # px


def get_config(arg: str = "motion") -> Any:
    """One layout, with one kind of blur."""
    words = base.words_of(arg, *KINDS, *LAYOUTS, *STRENGTHS, *SIZES, "published", "smoke")
    config = base.get_config()
    config.data.format = "procedural"
    config.data.blur = _pick(words, KINDS)
    config.data.layout = _pick(words, LAYOUTS)
    config.data.blur_scale = STRENGTHS[_pick(words, tuple(STRENGTHS))]
    config.data.pose_noise_px = 0.0  # how wrong the training poses are, px
    config.data.width, config.data.height = SIZES[_pick(words, tuple(SIZES))]
    config.data.num_train = 24
    config.data.num_test = 5
    config.data.num_points = 1500
    config.data.seed = 0
    config.num_steps = 2300
    config.max_gaussians = 5000
    config.sh_degree = 0
    config.blur.kernel_sizes = (3, 5, 9)
    if "large" in words:
        config.max_gaussians = 8000
        config.blur.kernel_sizes = (3, 7, 13)  # blur grows with the width
    if "published" in words:
        config = presets.at_equal_steps(config)
    if "smoke" in words:
        config = base.smoke(config)
        config.data.width, config.data.height, config.data.num_train = 32, 24, 4
        config.data.num_test = 2
        config.data.num_points = 200
    return config


def _pick(words: list[str], choices: tuple[str, ...]) -> str:
    """The word that makes a choice, else its first.

    Raises:
      ValueError: two words for it.
    """
    found = [word for word in words if word in choices]
    if len(set(found)) > 1:
        raise ValueError(f"the words {' and '.join(found)} came after the configuration file, expected one of them")
    return (found or choices)[0]
