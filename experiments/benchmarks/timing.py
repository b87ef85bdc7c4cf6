"""Median times of functions that return when their result is ready."""

import time
from collections.abc import Callable, Mapping

import numpy as np


def time_in_turn(runs: Mapping[str, Callable], *, warm_up: int, timed: int) -> dict[str, tuple[float, float]]:
    """Median wall and CPU seconds (all threads) by name. Calls alternate, so other load on the machine affects all."""
    times = {name: [] for name in runs}
    for _ in range(warm_up + timed):
        for name, run in runs.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            wall = time.perf_counter() - wall
            times[name].append((wall, time.process_time() - cpu))
    return {name: tuple(np.median(taken[warm_up:], axis=0).tolist()) for name, taken in times.items()}


def median_ms(run: Callable, *, warm_up: int, timed: int) -> float:
    """Median wall time of one call, ms."""
    return 1e3 * time_in_turn({"": run}, warm_up=warm_up, timed=timed)[""][0]
