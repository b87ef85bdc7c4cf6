"""Writes a trained scene as a splat file: upright, for viewers and other programs.

  bags-jax export --workdir=runs/motion --output=scene.ply

The name chooses the format: .ply (every viewer and editor), .glb (glTF, KHR_gaussian_splatting),
.spz and .sog (small, for the web), .html (one page with a viewer, for any browser). The last three
are written by splat-transform, a program for Node.js. docs/export.md says which file suits which
viewer.
"""

from absl import flags

from bags_jax.cli.launch import launch, use_compilation_cache
from bags_jax.export.splat import export, read_back, write_viewer_settings
from bags_jax.upright import read_up

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "The file to write: .ply, .glb, .spz, .sog or .html.", required=True)
_STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; by default the last.")
_UPRIGHT = flags.DEFINE_bool("upright", True, "Rotate the scene to stand upright; otherwise keep the capture's frame.")
_UP = flags.DEFINE_string("up", None, "Up direction of the capture: x,y,z or an axis such as -y; by default estimated.")
_SETTINGS = flags.DEFINE_bool("viewer_settings", False, "Write start camera and field of view beside it, as JSON.")
_CACHE = flags.DEFINE_string("compilation_cache", "auto", "Folder of compiled programs; empty: none.")


def main() -> None:
    """Exports the run of the flags."""
    up = None if _UP.value is None else read_up(_UP.value)
    use_compilation_cache(_CACHE.value)
    exported = export(_WORKDIR.value, _OUTPUT.value, step=_STEP.value, up=up, keep_frame=not _UPRIGHT.value)
    size = exported.path.stat().st_size / 1e6
    print(f"{len(exported.gaussians.means)} Gaussians of step {exported.step} in {_OUTPUT.value} ({size:.1f} MB)")
    if exported.upright is not None:
        x, y, z = exported.upright.direction
        spread = f" (within about {exported.upright.uncertainty_deg:.0f} degrees)" if _UP.value is None else ""
        print(f"upright: up was {x:.3f},{y:.3f},{z:.3f}{spread}, {exported.upright.note}; --up=x,y,z changes it")
    print(f"read back: {read_back(exported)}")
    if _SETTINGS.value:
        print(f"start camera and field of view: {write_viewer_settings(exported, _WORKDIR.value)}")


def run() -> None:
    """The command `bags-jax export`."""
    launch(main)
