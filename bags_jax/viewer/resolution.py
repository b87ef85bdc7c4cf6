"""How large a picture is drawn: as large as this machine draws in the time that the user may wait.

Heights come from a fixed ladder: each size is one compiled program.
"""

import dataclasses
from collections.abc import Sequence

LADDER = (96, 144, 192, 240, 300, 384, 480, 600, 768, 960, 1200, 1440)  # heights of pictures, px
WIDTH_STEP = 16  # widths are multiples of this, px
MOVING_S = 0.1  # time for one picture while the camera moves
RESTING_S = 1.0  # the same, once it rests
FIRST_GUESS = 1e-6  # seconds per pixel, before anything was measured
SHARE_OF_NEW = 0.4  # weight of the newest measurement


@dataclasses.dataclass(frozen=True)
class Speed:
    """Seconds that pictures of each height took, smoothed. Immutable: `add` returns a new one."""

    seconds_per_pixel: dict[int, float] = dataclasses.field(default_factory=dict)  # by height

    def add(self, height: int, num_pixels: int, seconds: float) -> "Speed":
        """Adds the time of one picture that needed no compilation."""
        new = seconds / num_pixels
        old = self.seconds_per_pixel.get(height, new)
        return Speed({**self.seconds_per_pixel, height: old + SHARE_OF_NEW * (new - old)})

    def predict(self, height: int, aspect: float) -> float:
        """Seconds for a picture of this height: by the pixels of the nearest height that was measured."""
        known = self.seconds_per_pixel
        rate = known[min(known, key=lambda other: abs(other - height))] if known else FIRST_GUESS
        return rate * height * picture_width(height, aspect)

    def choose_height(self, heights: Sequence[int], aspect: float, *, seconds: float) -> int:
        """The largest of some heights within a time; the smallest of them where none is."""
        return max((h for h in heights if self.predict(h, aspect) <= seconds), default=min(heights))


def useful_heights(window_height: int) -> list[int]:
    """Heights of the ladder up to the first that is at least that of the window."""
    return [h for i, h in enumerate(LADDER) if i == 0 or LADDER[i - 1] < window_height]


def picture_width(height: int, aspect: float) -> int:
    """Width of a picture for a window of this aspect, px."""
    return max(WIDTH_STEP, round(height * aspect / WIDTH_STEP) * WIDTH_STEP)
