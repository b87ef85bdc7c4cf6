"""Shows a trained scene in a browser, or one that trains right now: new checkpoints appear by themselves.

  bags-jax view --workdir=runs/motion

Open the address that is printed. On another machine: ssh -L 8080:localhost:8080 MACHINE, then the
same address here. Ctrl-C ends the viewer. Needs viser: pip install 'bags-jax[viewer]'.
"""

from absl import flags

from bags_jax.cli.launch import launch, use_compilation_cache
from bags_jax.viewer.port import HOST, PORT, check_viewer
from bags_jax.viewer.server import open_history, serve

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_PORT = flags.DEFINE_integer("port", PORT, "Port of the viewer.", lower_bound=1, upper_bound=65535)
_HOST = flags.DEFINE_string("host", HOST, "Address to listen at; 0.0.0.0: the whole network can see the scene.")
_STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; by default the last, and then each new one.")
_DATA = flags.DEFINE_string("data_root", None, "Folder of the capture, if it has moved since training.")
_CACHE = flags.DEFINE_string("compilation_cache", "auto", "Folder of compiled programs; empty: none.")


def main() -> None:
    """Serves the run of the flags."""
    check_viewer(_HOST.value, _PORT.value)
    use_compilation_cache(_CACHE.value)
    history = open_history(_WORKDIR.value, step=_STEP.value, data_root=_DATA.value)

    def announce(address: str) -> None:
        print(f"The viewer is at {address} (Ctrl-C ends it).", flush=True)

    serve(history, host=_HOST.value, port=_PORT.value, step=_STEP.value, announce=announce)


def run() -> None:
    """The command `bags-jax view`."""
    launch(main)
