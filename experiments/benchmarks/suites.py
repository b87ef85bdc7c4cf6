"""What the quality benchmark compares: cases (photographs) and methods, and the configuration of each run."""

import dataclasses
import fnmatch
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

from bags_jax.errors import UserError
from configs import base, deblur_nerf, presets, procedural

METHODS = {
    "plain": "plain splatting",
    "published": "BAGS as published, at equal steps (configs/presets.py:at_equal_steps)",
    "default": "our default configuration",
    "oracle": "plain splatting trained on the sharp photographs",
}
SUITES = ("procedural", "blurball")


@dataclasses.dataclass(frozen=True)
class Case:
    """One set of photographs; with another seed a procedural case has other cameras, other blur and other points."""

    name: str
    suite: str
    group: str  # cases of one group share a row of the summary
    words: str = ""  # of configs/procedural.py
    sharp: str = ""  # the case that has these photographs without their blur


def find_cases(suite: str, names: Sequence[str]) -> tuple[Case, ...]:
    """The cases of a suite by name or pattern (`corner-*`); `all`: those that are not large.

    Raises:
      UserError: a name or pattern that is none of the suite's.
    """
    known = {case.name: case for case in _procedural_cases()} if suite == "procedural" else {"blurball": _BLURBALL}
    chosen: dict[str, Case] = {}
    for name in names:
        hits = [k for k in known if not k.endswith("-large")] if name == "all" else fnmatch.filter(known, name)
        if not hits:
            raise UserError(f"--cases has {name!r}, expected all, or some of (or patterns for): {', '.join(known)}")
        chosen |= {hit: known[hit] for hit in hits}
    return tuple(chosen.values())


def find_methods(suite: str, names: Sequence[str]) -> tuple[str, ...]:
    """Methods by name; `all`: every one that the suite can have.

    Raises:
      UserError: a name that is none, or the oracle where there are no sharp photographs to train it on.
    """
    possible = [m for m in METHODS if suite == "procedural" or m != "oracle"]
    chosen = dict.fromkeys(m for name in names for m in (possible if name == "all" else [name]))
    for name in chosen:
        if name not in possible:
            raise UserError(f"--methods has {name!r}, expected all, or some of {', '.join(possible)} in suite {suite}")
    return tuple(chosen)


_BLURBALL = Case("blurball", "blurball", "blurball, real motion, 300 x 200")


def _procedural_cases() -> list[Case]:
    """Layout x kind x hard or easy, and sharp photographs of each layout; the same at 192 x 128 with `-large` behind."""
    cases = []
    blurs = [*itertools.product([k for k in procedural.KINDS if k != "none"], ("hard", "easy")), ("none", "")]
    for size, layout, (kind, level) in itertools.product(("", "large"), procedural.LAYOUTS, blurs):
        name = "-".join(filter(None, (layout, kind, level, size)))
        words = ",".join(filter(None, (kind, layout, level, size)))
        group = f"{kind}, {'192 x 128' if size else '128 x 84'}"
        cases.append(Case(name, "procedural", group, words, "-".join(filter(None, (layout, "none", size)))))
    return cases


def source(case: Case, method: str) -> tuple[Case, str]:
    """Case and method under which a run is trained and kept.

    All blurs of a layout share cameras, points and truth, so their oracle is one and the same run: plain splatting on
    the layout's sharp photographs (`none`). tests/test_quality.py holds the scenes to that.
    """
    if method != "oracle":
        return case, method
    (sharp,) = find_cases(case.suite, [case.sharp])
    return sharp, "plain"


def make_config(
    case: Case, method: str, seed: int, *, num_steps: int = 0, smoke: bool = False, data_root: str = ""
) -> Any:
    """The configuration of one run; the seed is that of the training and, in a procedural case, of the scene too.

    Args:
      case, method: as `source` gives them.
      seed: under 100 are those that the default was tuned on.
      num_steps: another length than the suite's; 0: the suite's.
      smoke: everything in seconds, learning nothing.
      data_root: folder of the photographs of a suite that has some.
    """
    make = _procedural if case.suite == "procedural" else _blurball
    config = make(case, published=method == "published", smoke=smoke)
    if method == "plain":
        presets.without_additions(config).blur.enabled = False
    config.seed = seed
    if case.suite == "procedural":
        config.data.seed = seed
    config.data.root = data_root or config.data.root
    config.num_steps = num_steps or config.num_steps
    config.num_devices = config.views_per_step = 1  # on every machine, so that its figures compare
    config.checkpoint_every = min(500, config.checkpoint_every)
    return config


def _procedural(case: Case, *, published: bool, smoke: bool) -> Any:
    words = [case.words, "published" if published else "", "smoke" if smoke else ""]
    return procedural.get_config(",".join(filter(None, words)))


def _blurball(case: Case, *, published: bool, smoke: bool) -> Any:
    """blurball as the README's example runs have it."""
    config = deblur_nerf.get_config(case.name)
    config.data.factor = 8
    config.num_steps = 3200
    config.max_gaussians = 16_000
    config.blur.kernel_sizes = (3, 7, 13)
    if published:
        config = presets.at_equal_steps(config)
    return base.smoke(config) if smoke else config


def check_data(suite: str, root: str) -> str:
    """The folder of a suite's photographs, absolute; "" where it needs none.

    Raises:
      UserError: there is no such folder.
    """
    if suite == "procedural":
        return ""
    path = pathlib.Path(root or "data/blurball").expanduser()
    if not path.is_dir():
        raise UserError(f"--data={path} is no folder, expected the photographs of {suite} (images/, poses_bounds.npy)")
    return str(path.resolve())
