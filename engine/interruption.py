"""Signals that end a run between two steps: Ctrl-C, a scheduler's SIGTERM, and SIGUSR1, its warning (SLURM --signal).

An exception that a handler raises can be lost: Python drops it inside a destructor, and a DataLoader's destructor waits
for its processes. In the middle of a step it would leave weights that are half updated. So inside the loops the handler
only stores the signal, and the loops check for it between batches. A second SIGINT, or any of these signals outside the
loops, ends the run at once.
"""
import contextlib
import signal
import threading
import time

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
# torchrun forwards the terminal's Ctrl-C, which reaches this process anyway: two within 2 s count once. A handler runs
# only when a step's call into C++ is over, so they can be handled further apart than they came.
TOGETHER_SECONDS = 2

_loops = []  # one entry for each `deferred_interruptions` that is entered
_noted = []  # numbers of the signals that have come
_agreement = None
_first_sigint = None


class Stopped(KeyboardInterrupt):
    """A signal ends the run.

    Args:
        number: of the signal.
        between_steps: whether the loops were left between two steps, where weights and counters belong together.
    """

    def __init__(self, number, between_steps):
        super().__init__(number)
        self.number = number
        self.between_steps = between_steps
        self.advice = None  # how to go on; set by `fit`


def _handle(number, frame):
    global _first_sigint
    if number == signal.SIGINT:
        now = time.monotonic()
        if number not in _noted:
            _first_sigint = now
        elif _agreement is not None and now - _first_sigint < TOGETHER_SECONDS:
            return
    _noted.append(number)
    if not _loops or _noted.count(signal.SIGINT) > 1:
        raise Stopped(number, between_steps=False)


@contextlib.contextmanager
def _handled_by(handler):
    """Within the block ``handler`` handles the signals; one that is ignored (in a shell's background job) stays
    ignored."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS if signal.getsignal(number) in (
            signal.SIG_DFL, signal.default_int_handler, _handle)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def handled_interruptions():
    """Within the block the signals are handled as this module says."""
    del _noted[:]
    return _handled_by(_handle)


def default_interruptions():
    """Within the block the signals end the process at once, also while it waits in C++, where no handler runs."""
    return _handled_by(signal.SIG_DFL)


@contextlib.contextmanager
def deferred_interruptions():
    """Within the block a signal waits for ``stop_if_interrupted``."""
    _loops.append(None)
    try:
        yield
    finally:
        _loops.pop()


def interrupted():
    """Return the number of the first signal that has come, or None."""
    return _noted[0] if _noted else None


def stop_if_interrupted():
    """Raise ``Stopped`` if a signal has come to this process or (see ``agree_with``) to another rank.

    To be called between two steps; with several ranks, by all of them equally often.
    """
    number = int(interrupted() or 0)
    if _agreement is not None:
        number = _agreement(number)
    if number:
        raise Stopped(number, between_steps=True)


def agree_with(agreement):
    """From now on ``stop_if_interrupted`` follows ``agreement``: a number -> the largest of all ranks' numbers."""
    global _agreement
    _agreement = agreement
