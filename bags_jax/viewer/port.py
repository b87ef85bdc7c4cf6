"""The address of the viewer, and viser itself: checked before anything slow begins."""

import importlib.util
import socket

from bags_jax.errors import UserError

PORT = 8080
HOST = "127.0.0.1"


def check_viewer(host: str, port: int) -> None:
    """Raises UserError if viser is not installed, or a server cannot listen at this address."""
    if importlib.util.find_spec("viser") is None:
        raise UserError("the viewer needs viser, which is not installed: pip install 'bags-jax[viewer]' (or viser)")
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        raise UserError(
            f"the viewer cannot listen at {host}:{port} ({error.strerror}): choose another port, such as {port + 1}, "
            "or end the program that uses this one"
        ) from error


def describe_address(host: str, port: int) -> str:
    """The address to open in a browser."""
    name = "localhost" if host in ("0.0.0.0", "::", "127.0.0.1") else host
    return f"http://{f'[{name}]' if ':' in name else name}:{port}"
