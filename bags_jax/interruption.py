"""Ctrl-C and a cluster's SIGTERM as a wish that the training loop can grant when its state is whole."""

import signal
import threading

import tqdm

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Within this context the first signal is noted and no more; the second one is a KeyboardInterrupt at once."""

    def __init__(self):
        self.is_wanted = False
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread handle signals
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it was no handler of Python's

    def _note(self, *_):
        if self.is_wanted:
            raise KeyboardInterrupt
        self.is_wanted = True
        tqdm.tqdm.write(
            "interrupted: the state is saved as soon as the steps under way are done; once more to stop at once"
        )
