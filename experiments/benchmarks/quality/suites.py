"""The suites of the quality benchmark: cases (sets of photographs), methods, and the configuration of each run."""

import dataclasses
import fnmatch
import itertools
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from bags_jax import published as published_settings
from bags_jax.config import smoke as shrink
from bags_jax.errors import UserError
from bags_jax.synthetic.procedural import LAYOUTS
from configs import deblur_nerf, procedural
from experiments.benchmarks.quality import ablations

METHODS = {
    "plain": "plain splatting",
    "published": "the authors' blur model at equal steps (bags_jax/published.py:at_equal_steps)",
    "default": "our default configuration",
    **{name: ablation.words for name, ablation in ablations.ABLATIONS.items()},
    "oracle": "plain splatting trained on the sharp photographs",
}
# Tables mark these methods with an asterisk and print the footnote.
FOOTNOTES = {
    "published": "the authors' network, border, depth and schedule of the blur model, with the steps, image scales, kernel "
    "sizes and rates of the Gaussians of our runs.",
}
_BY_NAME = ("flight", "both", "varied")  # layouts and blurs that find_cases finds by name only
SUITES = ("procedural", "blurball", "ablations")
_NOT_IN = {  # methods that a suite does not have
    "procedural": {*ablations.ABLATIONS},
    "blurball": {*ablations.ABLATIONS, "oracle"},  # no sharp training photographs
    "ablations": {"published"},
}


def label(method: str) -> str:
    """Name of a method in tables."""
    return f"{method}*" if method in FOOTNOTES else method


@dataclasses.dataclass(frozen=True)
class Case:
    """One set of photographs. The seed of a procedural case selects its cameras, blur and points."""

    name: str
    suite: str
    group: str  # the summary averages over the cases of a group
    words: str = ""  # argument of configs/procedural.py
    sharp: str = ""  # name of the case with the same photographs without blur
    has_noise: bool = False  # also without blur: its oracle trains on the sharp truth


def find_cases(suite: str, names: Sequence[str]) -> tuple[Case, ...]:
    """Finds the cases of a suite by name or pattern (`corner-*`); `all`: those of the suite, in `procedural` all but the large.

    The flight, and the blurs both and varied, are found only by a pattern that names one of them, such as
    `flight-*-hard,*-both-hard,*-varied-hard`: `all` and `*-hard` stay the cases of the tables in docs/benchmarks.md.

    Raises:
      UserError: a name or pattern matches no case.
    """
    known = {"blurball": _BLURBALL} if suite == "blurball" else {case.name: case for case in _procedural_cases(suite)}
    usual = ablations.CASES if suite == "ablations" else [name for name in _drop_unnamed(known) if "-large" not in name]
    chosen: dict[str, Case] = {}
    for name in names:
        hits = usual if name == "all" else _drop_unnamed(fnmatch.filter(known, name), name)
        if not hits:
            raise UserError(f"--cases has {name!r}, expected all, or some of (or patterns for): {', '.join(known)}")
        chosen |= {hit: known[hit] for hit in hits}
    return tuple(chosen.values())


def _drop_unnamed(cases: Iterable[str], pattern: str = "") -> list[str]:
    """Drops the cases that only a pattern with a word of _BY_NAME finds."""
    return [case for case in cases if not any(word in case for word in _BY_NAME) or any(w in pattern for w in _BY_NAME)]


def find_methods(suite: str, names: Sequence[str]) -> tuple[str, ...]:
    """Finds methods by name; `all`: all methods of the suite.

    Raises:
      UserError: a name that the suite does not have.
    """
    possible = [m for m in METHODS if m not in _NOT_IN[suite]]
    chosen = dict.fromkeys(m for name in names for m in (possible if name == "all" else [name]))
    for name in chosen:
        if name not in possible:
            raise UserError(f"--methods has {name!r}, expected all, or some of {', '.join(possible)} in suite {suite}")
    return tuple(chosen)


_BLURBALL = Case("blurball", "blurball", "blurball, real motion, 300 x 200")


def _procedural_cases(suite: str) -> list[Case]:
    """Layouts x kinds of blur x (hard, easy), and layouts without blur; each at 128 x 84 and 192 x 128 px (-large)."""
    cases = []
    blurs = [*itertools.product([k for k in procedural.KINDS if k != "none"], ("hard", "easy")), ("none", "")]
    for size, layout, (kind, level) in itertools.product(("", "large"), procedural.LAYOUTS, blurs):
        name = "-".join(filter(None, (layout, kind, level, size)))
        words = ",".join(filter(None, (kind, layout, level, size)))
        group = f"{kind}, {'192 x 128' if size else '128 x 84'}"
        has_noise = LAYOUTS[layout].sensor is not None
        group = f"{layout} by night, {group}" if has_noise else group
        cases.append(Case(name, suite, group, words, "-".join(filter(None, (layout, "none", size))), has_noise))
    return cases


def trained_as(case: Case, method: str) -> tuple[Case, str]:
    """Case and method under which a run is trained and stored.

    The oracle of all blurs of a layout is one run, because they share cameras, points and sharp photographs: plain
    splatting on the layout's case without blur. tests/test_quality.py checks that they do. Where those photographs have
    noise, the oracle trains on the sharp truth instead.
    """
    if method != "oracle":
        return case, method
    (sharp,) = find_cases(case.suite, [case.sharp])
    return sharp, "oracle" if case.has_noise else "plain"


def make_config(
    case: Case, method: str, seed: int, *, num_steps: int = 0, smoke: bool = False, data_root: str = ""
) -> Any:
    """Makes the configuration of one run.

    Args:
      case, method: see `trained_as`.
      seed: of the training, and of the scene of a procedural case. The default was tuned on seeds under 100.
      num_steps: number of training steps; 0: the suite's.
      smoke: a test of the benchmark itself: runs in seconds and learns nothing.
      data_root: folder of the photographs, for suites that read some.
    """
    make = _blurball if case.suite == "blurball" else _procedural
    config = ablations.apply_ablation(make(case, published=method == "published", smoke=smoke), method)
    config.data.use_sharp = method == "oracle"
    if method in ("plain", "oracle"):
        published_settings.without_additions(config).blur.enabled = False
    config.seed = seed
    if case.suite != "blurball":
        config.synthetic.seed = seed
    config.data.root = data_root or config.data.root
    config.num_steps = num_steps or config.num_steps
    config.num_devices = config.views_per_step = 1  # the same on every machine: figures must compare
    config.checkpoint_every = min(500, config.checkpoint_every)
    return config


def _procedural(case: Case, *, published: bool, smoke: bool) -> Any:
    words = [case.words, "published" if published else "", "smoke" if smoke else ""]
    return procedural.get_config(",".join(filter(None, words)))


def _blurball(case: Case, *, published: bool, smoke: bool) -> Any:
    """blurball with the settings of the README's example."""
    config = deblur_nerf.get_config(case.name)
    config.data.factor = 8
    config.num_steps = 3200
    config.max_gaussians = 16_000
    config.blur.kernel_sizes = (3, 7, 13)
    if published:
        config = published_settings.at_equal_steps(config)
    return shrink(config) if smoke else config


def check_data(suite: str, root: str) -> str:
    """Returns the absolute folder of a suite's photographs; "" for a suite without any.

    Raises:
      UserError: no such folder.
    """
    if suite != "blurball":
        return ""
    path = pathlib.Path(root or "data/blurball").expanduser()
    if not path.is_dir():
        raise UserError(f"--data={path} is no folder, expected the photographs of {suite} (images/, poses_bounds.npy)")
    return str(path.resolve())
