"""The command `bags-jax`: finds the program that the first argument names, imports no other, and runs it."""

import importlib
import sys

import bags_jax
from bags_jax.cli.launch import fail

COMMANDS = {
    "demo": "Train plain splatting and BAGS on a small blurred scene, in minutes on a CPU.",
    "run": "From a video or a folder of photographs to a report and a splat, in one go.",
    "sfm": "Estimate the camera poses of your own photographs or video.",
    "train": "Train a scene, or continue an interrupted training.",
    "sweep": "Train and score a grid of configurations and seeds, here or on a SLURM cluster.",
    "evaluate": "Score a trained scene on its held-out views.",
    "view": "Show a scene in a browser, also while it trains.",
    "render": "Render pictures and a film of a trained scene.",
    "export": "Write a trained scene for splat viewers: .ply, .glb, .spz, .sog, .html.",
}


def usage() -> str:
    """All commands, one line each."""
    lines = [f"  bags-jax {name:<10}{what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "BAGS-JAX: sharp 3D Gaussian scenes from blurry photographs.",
            "",
            *lines,
            "",
            "bags-jax COMMAND --help explains a command; bags-jax --version prints the version.",
            "The benchmarks run in a clone of the repository: python -m experiments.benchmarks.quality --help",
        ]
    )


def main() -> None:
    """Runs the command of the command line."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        print(usage())
    elif name == "--version":
        print(f"bags-jax {bags_jax.__version__}")
    elif name in COMMANDS:
        sys.argv = [f"bags-jax {name}", *arguments]
        importlib.import_module(f"bags_jax.cli.{name}").run()
    else:
        fail(
            f"bags-jax has no command {name!r}: expected {', '.join(COMMANDS)} "
            "(benchmarks run in a clone: python -m experiments.benchmarks.quality)"
        )
