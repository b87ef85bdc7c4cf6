"""Opens an exported scene in two viewers of others and compares their pictures with our own render.

  npm install node@22 @playcanvas/splat-transform@3 @mkkellogg/gaussian-splats-3d three
  python -m tools.foreign_viewers --workdir=runs/demo/bags --output=build/viewers

Needs Chromium and the packages above in ./node_modules; writes a screenshot of each viewer, our render, and one picture
of all three. SuperSplat's viewer is the page that `bags-jax export --output=scene.html` writes. Fails below 28 dB.
"""

import argparse
import functools
import http.server
import pathlib
import threading
import time

import numpy as np
from PIL import Image

from bags_jax.export.splat import Exported, export, render_splat
from bags_jax.report.pictures import make_contact_sheet, to_uint8, write_png
from tests.chromium import Chromium

LOWEST_DB = 28.0
SECONDS = 120  # to load a scene and draw it in software

# Draws a PLY from a given camera in antialiased mode, with the 2D filter of our training.
PAGE = """<!doctype html><html><body style="margin:0;background:#000">
<script type="importmap">{"imports": {"three": "/node_modules/three/build/three.module.js",
"splats": "/node_modules/@mkkellogg/gaussian-splats-3d/build/gaussian-splats-3d.module.js"}}</script>
<script type="module">
import * as splats from 'splats';
const viewer = new splats.Viewer({cameraUp: [0, -1, 0], initialCameraPosition: POSITION, initialCameraLookAt: TARGET,
  sharedMemoryForWorkers: false, gpuAcceleratedSort: false, antialiased: true, kernel2DSize: 0.1,
  sphericalHarmonicsDegree: 2, ignoreDevicePixelRatio: true, sceneRevealMode: splats.SceneRevealMode.Instant});
await viewer.addSplatScene('scene.ply', {showLoadingUI: false, progressiveLoad: false, splatAlphaRemovalThreshold: 1});
viewer.start();
viewer.camera.fov = FOV;
viewer.camera.updateProjectionMatrix();
document.title = 'ready ' + viewer.getSplatMesh().getSplatCount();
</script></body></html>
"""


def screenshot(address: str, path: pathlib.Path, *, width: int, height: int) -> np.ndarray:
    """Opens a page and returns its picture when it no longer changes."""
    with Chromium(width=max(width, 640), height=max(height, 480), webgl=True) as browser:
        browser.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        browser.browse(address)
        before, stop = None, time.monotonic() + SECONDS
        while time.monotonic() < stop:
            time.sleep(2)
            browser.screenshot(path)
            now = np.asarray(Image.open(path).convert("RGB"))
            if before is not None and np.array_equal(now, before) and now.std() > 10:
                break
            before = now
    return np.asarray(Image.open(path).convert("RGB"))


def prepare(workdir: str, folder: pathlib.Path, modules: pathlib.Path) -> Exported:
    """Writes scene.html for SuperSplat's viewer, and scene.ply with a page for gaussian-splats-3d."""
    export(workdir, folder / "scene.html")
    exported = export(workdir, folder / "scene.ply")
    assert exported.start is not None
    page = PAGE.replace("POSITION", str(exported.start.position.tolist()))
    page = page.replace("TARGET", str(exported.start.target.tolist())).replace("FOV", str(exported.start.fov_deg[1]))
    (folder / "gaussian_splats_3d.html").write_text(page)
    if not (folder / "node_modules").exists():
        (folder / "node_modules").symlink_to(modules.resolve())
    return exported


def draw_ours(exported: Exported, *, width: int) -> np.ndarray:
    """Our render from the start camera."""
    assert exported.start is not None
    horizontal, vertical = (np.tan(np.radians(fov) / 2) for fov in exported.start.fov_deg)
    height, focal = round(width * vertical / horizontal), width / 2 / horizontal
    K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    return to_uint8(render_splat(exported.gaussians, exported.start.viewmat(), K, width=width, height=height))


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """PSNR of two 8-bit pictures, dB."""
    error = np.mean((first.astype(float) - second.astype(float)) ** 2) / 255**2
    return float(-10 * np.log10(max(error, 1e-10)))


def main() -> None:
    """Compares both viewers with our render at two sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="folder of a run")
    parser.add_argument("--output", default="build/viewers", type=pathlib.Path, help="folder for pictures")
    parser.add_argument("--modules", default="node_modules", type=pathlib.Path, help="folder of the npm packages")
    parser.add_argument("--width", default=640, type=int, help="px")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    exported = prepare(options.workdir, options.output, options.modules)
    ours = draw_ours(exported, width=options.width)
    write_png(options.output / "ours.png", ours)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(options.output))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    size = {"width": ours.shape[1], "height": ours.shape[0]}
    pictures, lowest = [ours], np.inf
    for name, page in (
        ("supersplat", "scene.html?noui&noanim&webgl"),
        ("gaussian_splats_3d", "gaussian_splats_3d.html"),
    ):
        address = f"http://127.0.0.1:{server.server_address[1]}/{page}"
        picture = screenshot(address, options.output / f"{name}.png", **size)
        found = psnr(picture, ours)
        print(f"{name}, {size['width']} x {size['height']}: {found:.2f} dB to our render", flush=True)
        pictures.append(picture)
        lowest = min(lowest, found)
    titles = ("ours", "SuperSplat", "gaussian-splats-3d")
    write_png(options.output / "all.png", make_contact_sheet([pictures], column_titles=titles))
    if lowest < LOWEST_DB:
        raise SystemExit(f"{lowest:.2f} dB is below {LOWEST_DB}")


if __name__ == "__main__":
    main()
