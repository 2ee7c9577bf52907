"""Ctrl-C that is never lost.

Python drops a KeyboardInterrupt that happens to come up inside a destructor, and those of a DataLoader wait for its
worker processes; training would then go on. So the handler also leaves a mark, which the loops look at after each batch.
"""
import contextlib
import signal
import threading

__all__ = ["noticed_interruptions", "interrupted", "stop_if_interrupted"]

_mark = threading.Event()


def _handle(signal_number, frame):
    _mark.set()
    raise KeyboardInterrupt


@contextlib.contextmanager
def noticed_interruptions():
    """Within the block a SIGINT leaves a mark; where it is ignored (a shell's background job), it stays ignored."""
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


def interrupted():
    """Return whether a SIGINT has come."""
    return _mark.is_set()


def stop_if_interrupted():
    """Raise KeyboardInterrupt if a SIGINT has come, even if Python has dropped the first exception."""
    if _mark.is_set():
        raise KeyboardInterrupt
