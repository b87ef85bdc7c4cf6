"""Turns Ctrl-C and a cluster's SIGTERM into a request that the training loop handles once its state is complete."""

import signal
import threading

import tqdm

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class AgreedInterruption(KeyboardInterrupt):
    """Training has stopped on request, at the same step in all processes, with its state saved."""


class Interruption:
    """Context manager. The first signal only sets `is_requested`; the second one raises KeyboardInterrupt at once."""

    def __init__(self):
        self.is_requested = False
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # Python handles signals in the main thread only
            self._before = {number: signal.signal(number, self._request) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python

    def _request(self, *_):
        if self.is_requested:
            raise KeyboardInterrupt
        self.is_requested = True
        tqdm.tqdm.write(
            "interrupted: the state is saved when the running steps are done; interrupt again to stop at once"
        )
