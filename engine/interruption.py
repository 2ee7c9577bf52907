"""Signals that end a run between two steps: Ctrl-C, a scheduler's SIGTERM, and SIGUSR1, its warning (SLURM --signal).

Python drops an exception that a handler happens to raise inside a destructor, and those of a DataLoader wait for its
worker processes; training would then go on. And an exception in the middle of a step leaves weights that belong to no
moment of the run. So in the loops a signal only leaves a mark, which they look at between batches. A second SIGINT, or
any of these signals outside the loops, ends the run at once.
"""
import contextlib
import signal
import threading
import time

__all__ = ["Stopped", "ToldElsewhere", "handled_interruptions", "deferred_interruptions", "interrupted",
           "default_interruptions", "stop_if_interrupted", "agree_with"]

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
_OF_PYTHON = {signal.SIGINT: signal.default_int_handler}

# A launcher passes on the Ctrl-C that the terminal has sent to all; the two come together, and are one.
# Handled when a step's call into C++ is over, they can lie further apart than they came.
TOGETHER_SECONDS = 2
# Beyond the numbers of signals: a failure of one process, which gives its place among them.
FAILURE = 1000

_loops = []
_marks = []
_agreement = None
_first_sigint = None
_place = FAILURE


class Stopped(KeyboardInterrupt):
    """A signal ends the run.

    Args:
        number: of the signal.
        between_steps: the loops were left between two steps: weights and counters belong together.
    """

    def __init__(self, number, between_steps):
        super().__init__(number)
        self.number = number
        self.between_steps = between_steps
        self.advice = None  # how to go on, where somebody knows


class ToldElsewhere(Exception):
    """Another process of this run has failed, and it is the one that says why.

    Args:
        between_steps: all of them have left the loops between two steps.
    """

    def __init__(self, between_steps=False):
        super().__init__()
        self.between_steps = between_steps


def _handle(number, frame):
    global _first_sigint
    if number == signal.SIGINT:
        now = time.monotonic()
        if number not in _marks:
            _first_sigint = now
        elif _agreement is not None and now - _first_sigint < TOGETHER_SECONDS:
            return
    _marks.append(number)
    if not _loops or _marks.count(signal.SIGINT) > 1:
        raise Stopped(number, between_steps=False)


@contextlib.contextmanager
def handled_interruptions():
    """Handle the signals as this module says; one that is ignored (a shell's background job) stays ignored."""
    del _marks[:]
    ours = []
    if threading.current_thread() is threading.main_thread():
        ours = [number for number in SIGNALS if signal.getsignal(number) is _OF_PYTHON.get(number, signal.SIG_DFL)]
    for number in ours:
        signal.signal(number, _handle)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, _OF_PYTHON.get(number, signal.SIG_DFL))


@contextlib.contextmanager
def default_interruptions():
    """Within the block our signals do what the system lets them do: end the process, also in the middle of C++."""
    ours = [number for number in SIGNALS if signal.getsignal(number) is _handle]
    for number in ours:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, _handle)


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
    return _marks[0] if _marks else None


def stop_if_interrupted(failure=None):
    """Raise ``Stopped`` if a signal has come to this process or, see ``agree_with``, to one of its companions.

    To be called between two steps; with companions, by all of them equally often.

    Args:
        failure: an exception that keeps this process from the next step. It is raised here, and ``ToldElsewhere`` in
            its companions; of several with a failure the first one tells its own.
    """
    number = int(interrupted() or 0)
    if _agreement is not None:
        number = _agreement(number if failure is None else _place)
    if failure is not None:
        failure.is_told_by = "this process" if _agreement is None or number == _place else "another"
        raise failure
    if number >= FAILURE:
        raise ToldElsewhere(between_steps=True)
    if number:
        raise Stopped(number, between_steps=True)


def agree_with(agreement, number=0, count=1):
    """From now on ``stop_if_interrupted`` follows ``agreement``: (a number) -> the largest of those of all companions.

    Args:
        number, count: of this process, among how many.
    """
    global _agreement, _place
    _agreement, _place = agreement, FAILURE + count - number
