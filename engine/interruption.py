"""Signals that end a run between two steps: Ctrl-C, a scheduler's SIGTERM, SIGUSR1, its warning (SLURM --signal), and
SIGHUP, when the terminal has gone.

An exception that a handler raises can be lost: Python drops it inside a destructor, and a DataLoader's destructor waits
for its processes. In the middle of a step it would leave weights that are half updated. So inside the loops the handler
only stores the signal, and the loops check for it between batches. A second SIGINT, or any of these signals outside the
loops, ends the run at once.
"""
import contextlib
import os
import signal
import stat
import threading
import time

from dataset import STOP_SIGNALS

# torchrun forwards the terminal's Ctrl-C, which reaches this process anyway: two within 2 s count once. A handler runs
# only when a step's call into C++ is over, so they can be handled further apart than they came.
TOGETHER_SECONDS = 2
# A rank that waits for pictures when a signal comes keeps the others waiting, too; after this time it leaves them.
GRACE_SECONDS = 10

_loops = []  # one entry for each `deferred_interruptions` that is entered
_noted = []  # numbers of the signals that have come
_first_noted = None  # when the first one came
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
    global _first_noted, _first_sigint
    if number == getattr(signal, "SIGHUP", None):
        _forget_lost_terminal()
    if number == signal.SIGINT:
        now = time.monotonic()
        if number not in _noted:
            _first_sigint = now
        elif _agreement is not None and now - _first_sigint < TOGETHER_SECONDS:
            return
    if not _noted:
        _first_noted = time.monotonic()
    _noted.append(number)
    if not _loops or _noted.count(signal.SIGINT) > 1:
        raise Stopped(number, between_steps=False)


def _forget_lost_terminal():
    """Where output goes to a terminal that has gone, each print would fail; from now on it goes nowhere."""
    for number in (1, 2):
        with contextlib.suppress(OSError):  # closed
            if stat.S_ISCHR(os.fstat(number).st_mode) and not os.isatty(number):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)


@contextlib.contextmanager
def _handled_by(handler):
    """Within the block ``handler`` handles the signals; one that is ignored (in a shell's background job) stays
    ignored."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in STOP_SIGNALS if signal.getsignal(number) in (
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


def stop_while_waiting(seconds):
    """Raise ``Stopped`` if a signal has come. To be called between two steps when pictures have not come for so many
    seconds; of several ranks by one alone."""
    if not _noted:
        return
    if _agreement is None:
        raise Stopped(_noted[0], between_steps=True)
    if min(seconds, time.monotonic() - _first_noted) > GRACE_SECONDS:
        raise Stopped(_noted[0], between_steps=False)


def agree_with(agreement):
    """From now on ``stop_if_interrupted`` follows ``agreement``: a number -> the largest of all ranks' numbers."""
    global _agreement
    _agreement = agreement
