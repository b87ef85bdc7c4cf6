"""How the arrays of training grow: rows for Gaussians, buffers for intersections.

Their sizes are shapes of the compiled steps. A larger array costs a little time at every step; each new size costs the compilation
of another program. A CPU compiles quickly and steps slowly: arrays grow in small steps there. On an H200 a step takes 2 ms, and its
compilation 11 s: arrays grow in large ones.
"""

from typing import NamedTuple

from bags_jax.ops.rasterize import buffer_size

HEADROOM = 1.25  # size of an intersection buffer, relative to what one image needs
NEARLY_FULL = 0.9  # share of an intersection buffer in use from which the program of the next size is compiled


class Growth(NamedTuple):
    """The sizes that arrays get, and when."""

    first_rows: int  # a state of so many rows costs little, whatever the number of points
    rows: float  # factor by which the number of rows grows
    grow_at: float  # share of the rows in use from which the state grows
    compile_at: float  # share of the rows in use from which the steps of the grown state are compiled
    headroom: float  # size of an intersection buffer, relative to what the scene needs
    headroom_ahead: float  # the same for a program that is compiled long before it runs
    stages_ahead: int  # number of stages after the first that are compiled from the start on

    def next_rows(self, rows: int, num_gaussians: int, max_gaussians: int, *, full: float) -> int:
        """Number of rows for the steps to come: `self.rows` times as many once a share `full` of the rows is in use."""
        return min(max_gaussians, round_up(self.rows * rows)) if num_gaussians > full * rows else rows

    def next_buffer(self, size: int, num_intersections: int = 0) -> int:
        """The next larger buffer size that holds at least `num_intersections`.

        Raises:
          UserError: there is none: see `buffer_size`.
        """
        while (size := buffer_size(int(self.headroom * size) + 1)) < num_intersections:
            pass
        return size


CPU = Growth(
    first_rows=16_384, rows=1.5, grow_at=0.8, compile_at=0.6, headroom=HEADROOM, headroom_ahead=2.0, stages_ahead=99
)
ACCELERATOR = Growth(
    first_rows=65_536, rows=4.0, grow_at=0.5, compile_at=0.0, headroom=2.0, headroom_ahead=4.0, stages_ahead=1
)


def growth_on(platform: str) -> Growth:
    """How arrays grow on a platform: "cpu", "gpu" or "tpu"."""
    return CPU if platform == "cpu" else ACCELERATOR


def round_up(number: float) -> int:
    """The smallest whole number that is not smaller."""
    return -int(-number // 1)
