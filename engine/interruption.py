"""Ctrl-C that is neither lost nor in the middle of a step.

Python drops a KeyboardInterrupt that happens to come up inside a destructor, and those of a DataLoader wait for its
worker processes; training would then go on. So in the loops a first SIGINT only leaves a mark, which they look at after
each batch; a second one, or one outside the loops, interrupts at once.
"""
import contextlib
import signal
import threading

__all__ = ["handled_interruptions", "deferred_interruptions", "interrupted", "stop_if_interrupted"]

_mark = threading.Event()
_loops = []


def _handle(signal_number, frame):
    first = not _mark.is_set()
    _mark.set()
    if not (_loops and first):
        raise KeyboardInterrupt


@contextlib.contextmanager
def handled_interruptions():
    """Handle SIGINT as this module says; where it is ignored (a shell's background job), it stays ignored."""
    _mark.clear()
    is_ours = (threading.current_thread() is threading.main_thread()
               and signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    if is_ours:
        signal.signal(signal.SIGINT, _handle)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def deferred_interruptions():
    """Within the block a first SIGINT waits for ``stop_if_interrupted``."""
    _loops.append(None)
    try:
        yield
    finally:
        _loops.pop()


def interrupted():
    """Return whether a SIGINT has come."""
    return _mark.is_set()


def stop_if_interrupted():
    """Raise KeyboardInterrupt if a SIGINT has come."""
    if _mark.is_set():
        raise KeyboardInterrupt
