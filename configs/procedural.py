"""The embedded scenes, at 128 x 84: --config=configs/procedural.py:motion, or :defocus,corner,easy,large,smoke.

python -m experiments.train --config=configs/procedural.py:motion --workdir=runs/motion

Words after the colon, in any order, each at most once: motion | defocus | mixed | none; still_life | corner | relief;
hard | easy (half the blur); small | large (192 x 128), of which the first is the default; and published (BAGS as
published, at as many steps: published.at_equal_steps); smoke.
"""

from typing import Any

from bags_jax import published
from bags_jax.config import default_config, smoke, words_of

KINDS = ("motion", "defocus", "mixed", "none")
LAYOUTS = ("still_life", "corner", "relief")
STRENGTHS = {"hard": 1.0, "easy": 0.5}  # blur_scale
SIZES = {"small": (128, 84), "large": (192, 128)}  # px


def get_config(arg: str = "motion") -> Any:
    """One layout, with one kind of blur."""
    words = words_of(arg, *KINDS, *LAYOUTS, *STRENGTHS, *SIZES, "published", "smoke")
    config = default_config()
    config.data.format = "procedural"
    config.synthetic.blur = _pick(words, KINDS)
    config.synthetic.layout = _pick(words, LAYOUTS)
    config.synthetic.blur_scale = STRENGTHS[_pick(words, tuple(STRENGTHS))]
    config.synthetic.width, config.synthetic.height = SIZES[_pick(words, tuple(SIZES))]
    config.num_steps = 2300
    config.max_gaussians = 5000
    config.sh_degree = 0
    config.blur.kernel_sizes = (3, 5, 9)
    if "large" in words:
        config.max_gaussians = 8000
        config.blur.kernel_sizes = (3, 7, 13)  # blur grows with the width
    if "published" in words:
        config = published.at_equal_steps(config)
    if "smoke" in words:
        config = smoke(config)
        config.synthetic.width, config.synthetic.height, config.synthetic.num_train = 32, 24, 4
        config.synthetic.num_test = 2
        config.synthetic.num_points = 200
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
