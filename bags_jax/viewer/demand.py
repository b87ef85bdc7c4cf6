"""Which picture the worker draws next: outdated demands are dropped, moving windows come first, each window in its turn."""

import dataclasses
from collections.abc import Mapping

REST_S = 0.15  # a camera rests once it has not moved for this time


@dataclasses.dataclass
class Demand:
    """Version of the picture that one window asks for, and of the picture that it shows."""

    version: int = 1  # of the wanted picture: rises with each change of camera, mode, photograph or checkpoint
    moved_at: float = 0.0  # time of the last motion of the camera, s
    drawn_version: int = 0
    drawn_height: int = 0  # px
    drawn_at: float = 0.0  # s

    def change(self, now: float, *, moves: bool) -> None:
        """Notes a change. moves: the camera moved, so that a quick picture comes first."""
        self.version += 1
        if moves:
            self.moved_at = now

    def draw(self, version: int, height: int, now: float) -> None:
        """Notes that a picture of this version and height was sent."""
        self.drawn_version, self.drawn_height, self.drawn_at = version, height, now


@dataclasses.dataclass(frozen=True)
class Order:
    """The next picture."""

    window: int
    version: int
    is_final: bool  # False: quick, while the camera moves


def next_order(
    demands: Mapping[int, Demand], finals: Mapping[int, int], now: float
) -> tuple[Order | None, float | None]:
    """Chooses the next picture.

    Args:
      demands: by window.
      finals: height of the final picture of each window, px.
      now: s, of the clock of the demands.
    Returns:
      The order, None where nothing is to be drawn now; and the time until a camera counts as resting, s: None if no
      picture waits for that.
    """
    waits: list[float] = []
    moving: list[int] = []
    resting: list[int] = []
    for window, demand in demands.items():
        is_outdated = demand.drawn_version != demand.version
        rest = demand.moved_at + REST_S - now
        if rest > 0 and is_outdated:
            moving.append(window)
        elif (is_outdated or demand.drawn_height < finals[window]) and rest > 0:
            waits.append(rest)
        elif is_outdated or demand.drawn_height < finals[window]:
            resting.append(window)
    for windows, is_final in ((moving, False), (resting, True)):
        if windows:
            window = min(windows, key=lambda w: demands[w].drawn_at)
            return Order(window, demands[window].version, is_final), None
    return None, min(waits, default=None)
