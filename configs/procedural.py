"""The embedded scenes: ray-cast, blurred, with sharp truth, 128 x 84 px. Nothing is downloaded.

  bags-jax train --config=procedural:motion --workdir=runs/motion

`bags-jax demo` trains this and plain splatting: 1.1 minutes on 2 cores of an AMD EPYC, 28.9 and 23.5 dB on held-out views.
Words after the colon, in any order, at most one of each choice; the first of a choice is the default:
  motion | defocus | mixed | reduced | both | varied | none
  still_life | corner | relief | flight
  hard | easy       easy: half the blur; of the reduced views, half
  small | large     large: 192 x 128 px
  published         the published variant of BAGS at as many steps: see published.at_equal_steps
  smoke             a dozen steps, seconds on a CPU
"""

from typing import Any

from bags_jax import published
from bags_jax.config import default_config, smoke, words_of

KINDS = ("motion", "defocus", "mixed", "reduced", "both", "varied", "none")
LAYOUTS = ("still_life", "corner", "relief", "flight")
STRENGTHS = {"hard": 1.0, "easy": 0.5}  # blur_scale
SIZES = {"small": (128, 84), "large": (192, 128)}  # px


def get_config(arg: str = "motion") -> Any:
    """One layout with one kind of blur."""
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
        config.blur.kernel_sizes = (3, 7, 13)  # the width of the blur in px grows with the image
    if config.synthetic.blur in ("mixed", "reduced"):
        config.blur.linear_light = False  # a program that resizes a photograph averages the values of the file
    if config.synthetic.layout == "flight":  # long trails near the drone, lamps brighter than white
        config.blur.kernel_sizes = (3, 7, 19) if "large" in words else (3, 5, 13)
        config.blur.clips_white = True
    if "published" in words:
        config = published.at_equal_steps(config)
    if "smoke" in words:
        config = smoke(config)
        config.synthetic.width, config.synthetic.height, config.synthetic.num_train = 32, 24, 4
        config.synthetic.num_test = 2
        config.synthetic.num_points = 200
    return config


def _pick(words: list[str], choices: tuple[str, ...]) -> str:
    """The word of one choice; its first word if none came.

    Raises:
      ValueError: two words for one choice.
    """
    found = [word for word in words if word in choices]
    if len(set(found)) > 1:
        raise ValueError(f"the words {' and '.join(found)} came after the configuration file, expected one of them")
    return (found or choices)[0]
