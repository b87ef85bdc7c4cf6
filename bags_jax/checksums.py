"""SHA-256 of named arrays, in a file beside them: a flipped bit on a disk or on the way there does not pass for a number."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

FILE = "sha256.json"


def hash_array(array: Shaped[np.ndarray, "*_shape"]) -> str:
    """Returns the SHA-256 of dtype, shape and bytes, in hexadecimal digits. Releases the GIL while it works."""
    digest = hashlib.sha256(f"{array.dtype.name} {array.shape}\n".encode())
    if array.size:
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write_checksums(folder: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Writes shape, dtype and SHA-256 of every array into a folder. The file is on the disk when this returns."""
    rows = {
        name: {"shape": list(x.shape), "dtype": x.dtype.name, "sha256": hash_array(np.asarray(x))}
        for name, x in arrays.items()
    }
    with (folder / FILE).open("w", encoding="utf-8") as file:
        json.dump(rows, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def read_checksums(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Reads what `write_checksums` wrote.

    Raises:
      ValueError: the file is missing or damaged; the message says what is wrong.
    """
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"it has no {FILE}")
    try:
        rows: Any = json.loads(path.read_text(encoding="utf-8"))
        return {
            name: {
                "shape": [int(num) for num in row["shape"]],
                "dtype": np.dtype(row["dtype"]).name,
                "sha256": str(row["sha256"]),
            }
            for name, row in rows.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{FILE} is damaged") from error


def check_arrays(arrays: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ValueError with the name of the first array that is not the one whose SHA-256 was written, or is missing."""
    if lost := sorted(arrays.keys() ^ rows.keys()):
        raise ValueError(f"{lost[0]} is in one of {FILE} and the arrays alone")
    for name, x in arrays.items():
        if hash_array(np.asarray(x)) != rows[name]["sha256"]:
            raise ValueError(f"the SHA-256 of {name} is not the one in {FILE}")
