"""Seeded damage to captures, pictures, PLY files, masks, configurations, runs and checkpoints: see fuzz.py."""

import json
import math
import os
import pathlib
import random
import re
import shutil
import struct
import zlib
from collections.abc import Callable

import numpy as np
from captures import (
    COLORS,
    NAMES,
    POINTS,
    H,
    W,
    make_frame,
    to_binary,
    write_blender,
    write_colmap,
    write_llff,
    write_nerfstudio,
    write_photos,
)
from PIL import Image

FLOATS = (0.0, -0.0, -1.0, 1e39, -1e39, 1e-320, 1e308, 1e12, 1e19, math.nan, math.inf, -math.inf, 1e-46)
WHOLE = (0, -1, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 10**400, -(10**400))
WORDS = ("", "x", "1e999", "\x00", "a\nb", "\u202e", "/dev/zero", "../" * 40, "nul", "é" * 90, "NaN")
ODD_NAMES = (
    "a b.png",
    "ä.png",
    "a\u0308.png",
    "new\nline.png",
    "-rf.png",
    "%s.png",
    "x" * 240 + ".png",
    ".png",
    "A.PNG",
)
ODD_NAMES += ("\x1b[31m.png", "v0.png.png", "v0.jpg", "v1 .png", "\udcff\udcfe.png", "🙂.png", "*.png", "'.png")


# --- whole things, to be damaged


def write_ply(path: pathlib.Path, *, ascii: bool) -> None:
    names = [f"property float {axis}" for axis in "xyz"] + [f"property uchar {c}" for c in ("red", "green", "blue")]
    kind = "ascii" if ascii else "binary_little_endian"
    header = "\n".join(["ply", f"format {kind} 1.0", f"element vertex {len(POINTS)}", *names, "end_header\n"])
    rows = [(*xyz, *rgb) for xyz, rgb in zip(POINTS.tolist(), COLORS.tolist())]
    body = "".join(" ".join(map(str, row)) + "\n" for row in rows).encode()
    path.write_bytes(header.encode() + (body if ascii else b"".join(struct.pack("<3f3B", *row) for row in rows)))


def write_splat(path: pathlib.Path) -> None:
    names = ["x", "y", "z", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3)), *(f"f_rest_{i}" for i in range(9))]
    names += ["opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    lines = [f"property float {name}" for name in names]
    header = "\n".join(["ply", "format binary_little_endian 1.0", "element vertex 5", *lines, "end_header\n"])
    values = np.random.default_rng(0).normal(size=(5, len(names))).astype("<f4")
    path.write_bytes(header.encode() + values.tobytes())


def write_images(root: pathlib.Path) -> None:
    """A capture whose photographs have as many kinds as there are."""
    write_photos(root / "images")
    write_nerfstudio(root, names=[f"v{i}" for i in range(6)])
    pictures = [Image.open(root / "images" / name).convert("RGB") for name in NAMES]
    for name in NAMES:
        (root / "images" / name).unlink()
    pictures[0].save(root / "images" / "v0.png")
    pictures[1].save(root / "images" / "v1.jpg", exif=Image.Exif())
    pictures[2].save(root / "images" / "v2.tif", compression="tiff_deflate")
    pictures[3].save(root / "images" / "v3.webp")
    pictures[4].save(root / "images" / "v4.bmp")
    pictures[5].convert("RGBA").quantize(16).save(root / "images" / "v5.png")


def write_masks(root: pathlib.Path) -> None:
    write_photos(root / "images")
    write_nerfstudio(root)
    (root / "masks").mkdir()
    for i, name in enumerate(NAMES):
        mask = np.full((H, W), 255, np.uint8)
        mask[: 8 + i] = 0
        Image.fromarray(mask).save(root / "masks" / (name if i % 2 else f"{name}.png"))


def write_lenses(root: pathlib.Path) -> None:
    """A capture of nerfstudio with a lens and a mask for each frame, points and lists."""
    write_photos(root / "images")
    frames = [{**make_frame(i, f"images/{name}"), "fl_x": 80.0 + i, "k1": 0.0} for i, name in enumerate(NAMES)]
    write_ply(root / "points.ply", ascii=False)
    values = {"train_filenames": [f"images/{name}" for name in NAMES[1:]], "test_filenames": ["images/v0.png"]}
    write_nerfstudio(root, frames=frames, ply_file_path="points.ply", applied_scale=1.0, **values)


def write_distorting(root: pathlib.Path) -> None:
    write_photos(root / "images")
    write_colmap(root, camera=f"OPENCV {W} {H} 80 80 48 32 0.01 0 0 0")


def with_photos(write: Callable[[pathlib.Path], object]) -> Callable[[pathlib.Path], None]:
    def whole(root: pathlib.Path) -> None:
        write_photos(root / "images")
        write(root)

    return whole


def write_points(root: pathlib.Path) -> None:
    write_photos(root / "images")
    write_ply(root / "points.ply", ascii=True)
    write_nerfstudio(root, ply_file_path="points.ply")
    write_splat(root / "splat.ply")


CAPTURES = {
    "colmap binary": with_photos(lambda root: to_binary(write_colmap(root))),
    "colmap text": with_photos(write_colmap),
    "colmap lens": write_distorting,
    "llff": with_photos(write_llff),
    "blender": with_photos(write_blender),
    "nerfstudio": write_lenses,
    "images": write_images,
    "masks": write_masks,
    "ply": write_points,
}
TARGETS = {  # the files that are damaged most often
    "colmap binary": "sparse/0/*.bin",
    "colmap text": "sparse/0/*.txt",
    "colmap lens": "sparse/0/cameras.txt",
    "llff": "*.npy",
    "blender": "*.json",
    "nerfstudio": "*.[jp][sl]*",
    "images": "images/*",
    "masks": "masks/*",
    "ply": "*.ply",
    "workdir": "*.json*",
    "checkpoint": "checkpoints/4/**/*",
}


# --- damage


def damage(root: pathlib.Path, kind: str, rng: random.Random) -> str:
    """Damages a capture or a run. Returns what was done, in words."""
    done = [_damage_once(root, kind, rng)]
    while rng.random() < 0.3:
        done.append(_damage_once(root, kind, rng))
    return "; ".join(done)


def _damage_once(root: pathlib.Path, kind: str, rng: random.Random) -> str:
    files = sorted(path for path in root.glob(TARGETS[kind]) if path.is_file() and not path.is_symlink())
    if not files or rng.random() < 0.1:
        files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    if not files:
        return "nothing left"
    path = rng.choice(files)
    name = path.relative_to(root).as_posix()
    ways = [flip_bits, cut, change_bytes, write_number_bytes, write_number_bytes, replace_by_odd_file]
    if path.suffix in (".json", ".jsonl"):
        ways += [change_json] * 8
    elif path.suffix == ".npy":
        ways += [change_rows] * 6
    elif path.suffix in (".txt", ".ply"):
        ways += [change_words] * 6
    elif path.parent.name in ("images", "masks"):
        ways += [change_picture] * 6
    ways += [rename, link_in_a_loop, add_folder_thing]
    way = rng.choice(ways)
    return f"{way.__name__} {name}: {way(path, root, rng)}"


def flip_bits(path, root, rng):
    data = bytearray(path.read_bytes())
    bits = [rng.randrange(8 * len(data)) for _ in range(rng.choice((1, 1, 2, 8)))] if data else []
    for bit in bits:
        data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return bits


def cut(path, root, rng):
    data = path.read_bytes()
    size = rng.choice((0, 1, 8, len(data) // 2, max(len(data) - 1, 0), rng.randrange(len(data) + 1)))
    path.write_bytes(data[:size])
    return size


def change_bytes(path, root, rng):
    """Repeats, removes or replaces a piece."""
    data = path.read_bytes()
    start, size = rng.randrange(len(data) + 1), rng.randrange(1, 200)
    piece = rng.choice((b"", data[start : start + size] * 2, rng.randbytes(size), bytes(size), b"\xff" * size))
    path.write_bytes(data[:start] + piece + data[start + size :])
    return start, size


def write_number_bytes(path, root, rng):
    data = bytearray(path.read_bytes())
    if len(data) < 16:
        return "too short"
    start = rng.randrange(len(data) - 8)
    value = rng.choice([struct.pack("<d", x) for x in FLOATS] + [struct.pack("<Q", x) for x in WHOLE if 0 <= x < 2**64])
    data[start : start + 8] = value
    path.write_bytes(data)
    return start, value.hex()


def pick_value(rng):
    deep = []
    for _ in range(rng.choice((1, 50, 900))):
        deep = [deep]
    number = rng.choice((rng.choice(FLOATS), rng.choice(WHOLE), rng.uniform(-1e3, 1e3)))
    return rng.choice((number, number, number, rng.choice(WORDS), None, True, [], {}, deep, [number] * 3))


def change_json(path, root, rng):
    """Replaces, removes or adds values anywhere in the tree."""
    lines = (
        path.read_text(errors="replace").splitlines() if path.suffix == ".jsonl" else [path.read_text(errors="replace")]
    )
    at = rng.randrange(len(lines)) if lines else 0
    try:
        tree = json.loads(lines[at])
    except (ValueError, IndexError, RecursionError):
        return "no json"
    places = []

    def walk(node):
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            places.append((node, key))
            walk(value)

    try:
        walk(tree)
    except RecursionError:
        return "too deep"
    if not places:
        return "empty"
    shallow = [(node, key) for node, key in places if node is tree]
    node, key = rng.choice(shallow if shallow and rng.random() < 0.5 else places)
    if rng.random() < 0.1:
        del node[key]
        value = "deleted"
    else:
        node[key] = value = pick_value(rng)
    lines[at] = json.dumps(tree)
    path.write_text("\n".join(lines))
    return f"{key} = {repr(value)[:60]}"


def change_rows(path, root, rng):
    try:
        rows = np.load(path, allow_pickle=False)
    except Exception:  # noqa: BLE001  damaged before
        return "no array"
    if rows.ndim == 2 and rows.size and rng.random() < 0.8:
        rows = rows.astype(np.float64)
        rows[rng.randrange(rows.shape[0]), rng.randrange(rows.shape[1])] = rng.choice(FLOATS)
    else:
        rows = rng.choice(
            (rows[:, :5], rows[:0], rows.astype("U4"), rows.astype(complex), rows[None], rows.astype("f2"))
        )
    np.save(path, rows)
    return "row"


def change_words(path, root, rng):
    """Replaces a word of a text, such as a number."""
    data = path.read_bytes()
    words = [match.span() for match in re.finditer(rb"\S+", data[:20_000])]
    if not words:
        return "empty"
    start, stop = rng.choice(words)
    value = rng.choice((rng.choice(FLOATS), rng.choice(WHOLE), rng.choice(FLOATS), rng.choice(WORDS)))
    path.write_bytes(data[:start] + str(value).encode("utf-8", "surrogateescape") + data[stop:])
    return f"{data[start:stop][:20]} -> {str(value)[:20]!r}"


def make_bomb(width: int, height: int) -> bytes:
    """A PNG of many pixels in few bytes."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def change_picture(path, root, rng):
    """Another size, mode or format under the same name."""
    way = rng.choice(("size", "mode", "bomb", "eps", "gif", "svg", "gray 16", "float", "palette", "orientation"))
    picture = Image.fromarray(np.full((H, W, 3), 90, np.uint8))
    format = {".png": "PNG", ".jpg": "JPEG", ".tif": "TIFF", ".webp": "WEBP", ".bmp": "BMP"}.get(path.suffix, "PNG")
    if way == "bomb":
        side = rng.choice((2_000, 30_000, 200_000, 2**31 - 1))
        path.write_bytes(make_bomb(side, rng.choice((side, side * 2 // 3, 1)) or 1))
    elif way == "eps":
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 64\n%%EndComments\nshowpage\n")
    elif way == "svg":
        path.write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    elif way == "size":
        picture.resize(rng.choice(((1, 1), (W, H + 30), (H, W), (2 * W, 2 * H), (W // 2, H // 2)))).save(path, format)
    elif way in ("gray 16", "float"):
        values = np.full((H, W), 300, np.uint16) if way == "gray 16" else np.full((H, W), 0.5, np.float32)
        Image.fromarray(values).save(path, "TIFF")
    elif way == "orientation":
        exif = Image.Exif()
        exif[0x0112] = rng.choice((0, 3, 6, 8, 99))
        picture.save(path, "JPEG", exif=exif)
    else:
        picture = picture.convert(rng.choice(("L", "1", "P"))) if way in ("mode", "palette") else picture
        picture.save(path, "GIF" if way == "gif" else format if format != "JPEG" or picture.mode == "L" else "PNG")
    return way


def replace_by_odd_file(path, root, rng):
    """A pipe, a device, a folder, a link to nothing or to itself."""
    path.unlink()
    way = rng.choice(("fifo", "folder", "nothing", "itself", "device", "gone", "outside"))
    if way == "fifo":
        os.mkfifo(path)
    elif way == "folder":
        path.mkdir()
    elif way != "gone":
        path.symlink_to(
            {"nothing": "nowhere", "itself": path.name, "device": "/dev/zero", "outside": "/etc/passwd"}[way]
        )
    return way


def rename(path, root, rng):
    name = rng.choice(ODD_NAMES)
    if path.parent.joinpath(name).exists():
        return "taken"
    os.rename(path, path.with_name(name))
    return ascii(name)[:40]


def link_in_a_loop(path, root, rng):
    for name in ("loop", "loop2", "sub", "sub2")[: rng.randrange(1, 5)]:
        place = path.parent / name
        if not os.path.lexists(place):
            place.symlink_to(rng.choice((".", "..", str(root))))
    return "loops"


def add_folder_thing(path, root, rng):
    """Things beside the expected ones."""
    names = (
        f"hold={'9' * 240}",
        "hold=0",
        "hold=x",
        "hold=2",
        "images_2",
        "sparse",
        "masks",
        "poses_bounds.npy",
        "images/sub",
    )
    place = root / rng.choice(names)
    if not os.path.lexists(place) and place.parent.is_dir():
        place.mkdir() if rng.random() < 0.4 else place.touch() if rng.random() < 0.7 else os.mkfifo(place)
    return place.name[:20]


def copy_tree(source: pathlib.Path, target: pathlib.Path) -> None:
    shutil.copytree(source, target, symlinks=True)
