"""The panel of one window: viser's controls in the order in which one uses them. It holds no state of its own."""

import dataclasses
import functools
import html
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import UInt8

from bags_jax.report.colors import palette
from bags_jax.viewer.modes import Mode, Scale

LEAPS = {"Previous": -1, "This one": 0, "Next": 1}
SPLATS_HINT = "The sharp scene, drawn by your graphics card: fluid, but without the filters and view dependent colours."
ONE_PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
KEYS = dict(zip(Mode, "123456", strict=True))
HELP = """
**Mouse**: drag to orbit, right-drag to pan, scroll to come closer.

**Keys**: W A S D to walk, Q E to sink and rise; N and P for the next and previous photograph; 1 to 6 for the picture.

**Cameras**: click one to stand where its photograph was taken.
"""


@dataclasses.dataclass(frozen=True)
class Actions:
    """What the controls do."""

    choose_mode: Callable[[Mode], None]
    choose_photo: Callable[[int], None]  # index; visits it
    choose_step: Callable[[int], None]  # index in the timeline
    follow: Callable[[bool], None]
    show_cameras: Callable[[bool], None]
    scale_cameras: Callable[[float], None]
    show_splats: Callable[[bool], None]
    write_picture: Callable[[], None]


@dataclasses.dataclass(frozen=True)
class Panel:
    """The controls that change later. (Any: viser's handles.)"""

    status: Any
    mode: Any
    scale: Any
    photo: Any
    photo_name: Any
    photo_number: Any
    step: Any
    step_name: Any
    follows: Any
    frame: Any


def make_panel(client: Any, *, title: str, modes: list[Mode], num_photos: int, actions: Actions) -> Panel:
    """Adds the controls of one window. client: viser's ClientHandle."""
    gui = client.gui
    gui.add_html(name_tab(title))
    status = gui.add_markdown("Opening ...")
    mode = gui.add_dropdown("Picture", [m.value for m in modes], hint="What the scene is drawn as. Keys 1 to 6.")
    scale = gui.add_html("", visible=False)
    frame = gui.add_markdown("", visible=False)
    write = gui.add_button("Write PNG", icon="camera", hint="Into viewer/ of the run, and as a download.")
    with gui.add_folder("Photographs"):
        photo = gui.add_image(np.zeros((2, 3, 3), np.uint8), format="jpeg")
        photo_name = gui.add_markdown("")
        photo_number = gui.add_slider("Photograph", 1, max(2, num_photos), 1, 1, visible=num_photos > 1)
        leap = gui.add_button_group("Go to", tuple(LEAPS))
    with gui.add_folder("Checkpoints"):
        step_name = gui.add_markdown("")
        step = gui.add_slider("Checkpoint", 1, 2, 1, 1, visible=False, hint="The scene as it was at an earlier step.")
        follows = gui.add_checkbox("Follow training", True, hint="Show each new checkpoint.")
    with gui.add_folder("Layers"):
        cameras = gui.add_checkbox("Cameras", True, hint="Click a camera to stand where its photograph was taken.")
        size = gui.add_slider("Camera size", 0.2, 4.0, 0.1, 1.0)
        splats = gui.add_checkbox("Browser splats", False, hint=SPLATS_HINT)
    with gui.add_folder("Help", expand_by_default=False):
        gui.add_markdown(HELP)

    mode.on_update(lambda _: actions.choose_mode(Mode(mode.value)))
    photo_number.on_update(lambda _: actions.choose_photo(int(photo_number.value) - 1))
    go = lambda by: actions.choose_photo((int(photo_number.value) - 1 + by) % num_photos)
    leap.on_click(lambda _: go(LEAPS[leap.value]))
    step.on_update(lambda _: actions.choose_step(int(step.value) - 1))
    follows.on_update(lambda _: actions.follow(follows.value))
    cameras.on_update(lambda _: actions.show_cameras(cameras.value))
    size.on_update(lambda _: actions.scale_cameras(float(size.value)))
    splats.on_update(lambda _: actions.show_splats(splats.value))
    write.on_click(lambda _: actions.write_picture())
    for name, key, by in (("Next photograph", "N", 1), ("Previous photograph", "P", -1)):
        gui.add_command(name, hotkey=key).on_trigger(lambda _, by=by: go(by))
    for one in modes:
        choose = functools.partial(setattr, mode, "value", one.value)
        gui.add_command(f"Picture: {one.value}", hotkey=KEYS[one]).on_trigger(lambda _, choose=choose: choose())
    return Panel(status, mode, scale, photo, photo_name, photo_number, step, step_name, follows, frame)


def name_tab(title: str) -> str:
    """HTML that names the tab of the browser: viser has no call for that."""
    script = html.escape(f"document.title={json.dumps(title)}", quote=True)
    return f'<img src="{ONE_PIXEL}" alt="" style="display: none" onload="{script}">'


def draw_scale(scale: Scale) -> str:
    """A colour bar in HTML."""
    colors: UInt8[np.ndarray, "256 3"] = palette()
    stops = ",".join("#{:02x}{:02x}{:02x}".format(*colors[i]) for i in np.linspace(0, 255, 12).astype(int))
    title, low, high = map(html.escape, (scale.title, scale.low, scale.high))
    return (
        '<div style="padding: 0.25em 1.2em 0.5em 0.75em; font-size: 0.8em">'
        f'<div style="height: 0.7em; border-radius: 0.2em; background: linear-gradient(90deg,{stops})"></div>'
        f'<div style="display: flex; justify-content: space-between"><span>{low}</span>'
        f'<span style="opacity: 0.7">{title}</span><span>{high}</span></div></div>'
    )
