"""Errors that a user can mend: one line on the terminal, never a traceback."""
import os
import re
import signal
import sys

from dataset import BrokenPicturesError, DatasetError, LoadingError, end_loading
from engine.interruption import Stopped, handled_interruptions, interrupted
from metric.loss import LossError
from model import WeightsError, first_line

EXIT_FAILURE, EXIT_USAGE, EXIT_SIGNAL = 1, 2, 128
# torch has no exception class of its own for too little memory.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")
# Nor for too many open files; Python's message has "ancdata" when it can't receive a file from another process.
OUT_OF_FILES = ("too many open files", "items of ancdata")


class UsageError(Exception):
    """The command asks for something that can't be done; exit code 2."""


class TrainingError(Exception):
    """The run went wrong through no fault of the command line; exit code 1."""


class LostRank(Exception):
    """Another process of this run has ended or can't be reached; exit code 1."""


def run_script(program, body):
    """Call ``body()`` and return the exit code of the process, with one line on stderr where it is not 0.

    Of several processes each prints its own error; a signal is printed by the first one only.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this
            setattr(sys, name, open(os.devnull, "w", errors="backslashreplace"))
        elif hasattr(stream, "reconfigure"):  # a file's name may hold letters that the terminal doesn't know
            stream.reconfigure(errors="backslashreplace")
    rank = os.environ.get("RANK", "0")
    teller = program if os.environ.get("WORLD_SIZE", "1") == "1" else "{} [rank {}]".format(program, rank)
    try:
        with handled_interruptions():
            try:
                body()
            finally:
                end_loading()
        return 0
    except BrokenPipeError:  # whoever read the output has left; there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python's own last flush would fail, too
        return EXIT_FAILURE
    except BrokenPicturesError as error:
        lines, code = str(error).splitlines(), EXIT_USAGE
    except (UsageError, DatasetError, WeightsError, LossError) as error:
        lines, code = [str(error)], EXIT_USAGE
    except KeyboardInterrupt as error:
        message, code = _of_signal(error)
        if rank != "0":
            return code
        lines, teller = [message], program
    except (TrainingError, MemoryError, RuntimeError, LoadingError, LostRank, OSError) as error:
        message, code = _of_failure(error)
        if message is None:  # a bug: show the traceback
            raise
        lines = [message]
    lines = [" ".join(line.split()) for line in lines]
    # One write: lines of several processes must not run into each other.
    sys.stderr.write("\n  ".join(["{}: error: {}".format(teller, lines[0])] + lines[1:]) + "\n")
    sys.stderr.flush()
    return code


def _of_signal(error):
    """Return (message, exit code) of a run that a signal ended."""
    number = getattr(error, "number", signal.SIGINT)
    advice = getattr(error, "advice", None) or "all files that were there are whole"
    return "interrupted by {}; {}".format(signal.Signals(number).name, advice), EXIT_SIGNAL + number


def _of_failure(error):
    """Return (message, exit code) of what went wrong through no fault of the command line; None for what we don't
    know."""
    text, message = str(error), None
    if isinstance(error, MemoryError) or any(words in text.lower() for words in OUT_OF_MEMORY):
        message = "out of memory: lower --batch, --image_size or --embedding_size ({})".format(first_line(error))
    elif any(words in text.lower() for words in OUT_OF_FILES):
        message = ("too many open files: raise the limit (ulimit -n), or try fewer --workers ({})".format(
            first_line(error)))
    elif isinstance(error, TrainingError):
        message = text
    elif interrupted():  # a process that was just starting, or another rank, died of the same signal
        return _of_signal(Stopped(interrupted(), between_steps=False))
    elif isinstance(error, LostRank):
        # Without the line of C++ that torch.distributed's errors come from.
        reason = re.sub(r"\[[^]]*\.(cc|cpp|h):\d+\]\s*", "", first_line(error)).split(". ")[0]
        message = ("another process of this run has ended or can't be reached ({}); it prints why, if it can. A "
                   "checkpoint.pth that was there is whole: --resume goes on from it".format(reason))
    elif isinstance(error, OSError) and error.strerror:
        message = "{}{}".format("" if error.filename is None else "{}: ".format(error.filename), error.strerror)
    elif isinstance(error, (LoadingError, OSError)):
        message = text
    return message, EXIT_FAILURE
