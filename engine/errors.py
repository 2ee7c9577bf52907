"""Errors that a user can mend: one line on the terminal, never a traceback."""
import contextlib
import os
import re
import signal
import sys
import time

from dataset import BrokenPicturesError, DatasetError
from engine.interruption import Stopped, ToldElsewhere, handled_interruptions, interrupted
from model import WeightsError

__all__ = ["UsageError", "TrainingError", "LostCompanions", "run_script", "EXIT_USAGE"]

EXIT_FAILURE, EXIT_USAGE, EXIT_SIGNAL = 1, 2, 128
SECONDS_TO_TELL = 1  # for a message of another process, before the end of this one ends it
SECONDS_FOR_THE_FIRST = 8  # torchrun of torch 1.10 looks every 5 s whether a process has ended


class UsageError(Exception):
    """The command asks for something that can't be done; exit code 2."""


class TrainingError(Exception):
    """The run went wrong through no fault of the command line; exit code 1."""


class LostCompanions(Exception):
    """Another process of this run has ended or can't be reached; exit code 1."""


def run_script(program, body):
    """Call ``body()`` and return the exit code of the process, with one line on stderr where it is not 0.

    Of several processes, all of which know of the same failure, the first one tells it.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this
            setattr(sys, name, open(os.devnull, "w"))
        elif hasattr(stream, "reconfigure"):  # a file's name may hold letters that the terminal doesn't know
            stream.reconfigure(errors="backslashreplace")
    rank = os.environ.get("RANK", "0")
    try:
        with handled_interruptions():
            body()
        return 0
    except ToldElsewhere:
        _wait(SECONDS_TO_TELL)
        return EXIT_USAGE
    except BrokenPipeError:  # whoever read the output has left; there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python's own last flush would fail, too
        return EXIT_FAILURE
    except (UsageError, DatasetError, WeightsError, TrainingError) as error:
        lines, code = [str(error)], EXIT_FAILURE if isinstance(error, TrainingError) else EXIT_USAGE
        if isinstance(error, BrokenPicturesError):
            lines = str(error).splitlines()
        told_by = getattr(error, "is_told_by", None if rank != "0" else "this process")
        if told_by != "this process":
            # Another process tells it, or the first one most likely does; then the launcher ends us meanwhile.
            _wait(SECONDS_TO_TELL if told_by else SECONDS_FOR_THE_FIRST)
            if told_by:
                return code
    except KeyboardInterrupt as error:
        lines, code = _of_signal(error)
        if rank != "0":
            return code
    except (MemoryError, RuntimeError, LostCompanions, OSError) as error:
        lines, code = _of_failure(error)
        if lines is None:
            raise
    if rank != "0":
        program += " [rank {}]".format(rank)
    lines = [" ".join(line.split()) for line in lines]
    print("\n  ".join(["{}: error: {}".format(program, lines[0])] + lines[1:]), file=sys.stderr, flush=True)
    return code


def _wait(seconds):
    with contextlib.suppress(KeyboardInterrupt):
        time.sleep(seconds)


def _of_signal(error):
    """Return ([message], exit code) of a run that a signal ended."""
    number = getattr(error, "number", signal.SIGINT)
    advice = getattr(error, "advice", None) or ("what --save_dir held before, if one was given, is whole, and --resume "
                                                "goes on with it")
    return ["interrupted by {}; {}".format(signal.Signals(number).name, advice)], EXIT_SIGNAL + number


def _of_failure(error):
    """Return ([message], exit code) of what the system or torch raises; (None, ...) where it is a mistake of ours."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    if _is_out_of_memory(error):
        return ["out of memory: lower --batch, --image_size or --embedding_size ({})".format(first)], EXIT_FAILURE
    if isinstance(error, LostCompanions):
        return ["another process of this run has ended or can't be reached; the last checkpoint.pth, if a --save_dir "
                "was given, is whole: --resume goes on from it ({})".format(_without_place(first))], EXIT_FAILURE
    if isinstance(error, OSError):
        return [text], EXIT_FAILURE
    if interrupted():  # a process that was just starting died of the same signal
        return _of_signal(Stopped(interrupted(), between_steps=False))
    if "DataLoader worker" in text:
        return ["a loading process was killed, perhaps for want of memory; try fewer --workers"], EXIT_FAILURE
    return None, EXIT_FAILURE


def _is_out_of_memory(error):
    """Whether Python, the CPU's allocator or an accelerator's has run out; torch has no one class for it."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in (
        "out of memory", "can't allocate memory", "cannot allocate memory"))


def _without_place(text):
    """Return the first sentence of an error of torch.distributed, without the line of C++ that it comes from."""
    return re.sub(r"\[[^]]*\.(cc|cpp|h):\d+\]\s*", "", text).split(". ")[0]
