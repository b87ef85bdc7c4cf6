"""The logs of a run: its curves, and how long it trained."""

import dataclasses
import json
import math
import pathlib

HEADER_BYTES, FOOTER_BYTES = 12, 4  # around each record of a TensorBoard file: length and checksums


@dataclasses.dataclass(frozen=True)
class Series:
    """One logged scalar: steps and finite values."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


def read_series(workdir: pathlib.Path) -> dict[str, Series]:
    """Reads metrics.jsonl: every scalar by its name, without the group ("psnr"). Skips lines and values that are broken."""
    points: dict[str, list[tuple[int, float]]] = {}
    path = workdir / "metrics.jsonl"
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
            step = int(row.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        for name, value in row.items():
            if isinstance(value, int | float) and math.isfinite(value):
                points.setdefault(name.rpartition("/")[2], []).append((step, float(value)))
    return {name: Series(name, *map(tuple, zip(*found))) for name, found in points.items()}


def read_seconds(workdir: pathlib.Path) -> float | None:
    """Seconds of training: from the settings to the last log entry; pauses of an interrupted run do not count.

    The time of day of every entry is in the TensorBoard files, one file for each start. None: there are none.
    """
    files = sorted((workdir / "tensorboard").glob("events.out.tfevents.*"))
    spans = [(min(times), max(times)) for times in map(_read_times, files) if times]
    if not spans:
        return None
    settings = workdir / "config.json"
    begun = settings.stat().st_mtime if settings.is_file() else spans[0][0]
    return sum(stop - start for start, stop in spans) + max(0.0, spans[0][0] - begun)


def _read_times(path: pathlib.Path) -> list[float]:
    """Time of each entry of a TensorBoard file, seconds since 1970."""
    from tensorboardX.proto import event_pb2

    data, at, times = path.read_bytes(), 0, []
    while at + HEADER_BYTES <= len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        at += HEADER_BYTES
        if at + length > len(data):  # the record was cut off
            break
        event = event_pb2.Event.FromString(data[at : at + length])  # type: ignore[reportAttributeAccessIssue]
        if event.HasField("summary"):
            times.append(event.wall_time)
        at += length + FOOTER_BYTES
    return times
