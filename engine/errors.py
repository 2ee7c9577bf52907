"""Errors that a user can mend: one line on the terminal, never a traceback."""
import os
import signal
import sys
import time

import torch.distributed as dist

from dataset import BrokenPicturesError, DatasetError
from engine.interruption import Stopped, handled_interruptions, interrupted
from model import WeightsError

__all__ = ["UsageError", "TrainingError", "run_script", "EXIT_USAGE"]

EXIT_FAILURE, EXIT_USAGE, EXIT_SIGNAL = 1, 2, 128
SECONDS_FOR_THE_FIRST = 8  # torchrun of torch 1.10 looks every 5 s whether a process has ended
LOST = ("gloo", "nccl", "peer", "socket", "timed out", "process group", "collective")


class UsageError(Exception):
    """The command asks for something that can't be done; exit code 2."""


class TrainingError(Exception):
    """The run went wrong through no fault of the command line; exit code 1."""


def run_script(program, body):
    """Call ``body()`` and return the exit code of the process, with one line on stderr where it is not 0."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file's name may hold letters that the terminal doesn't know
            stream.reconfigure(errors="backslashreplace")
    try:
        with handled_interruptions():
            body()
        return 0
    except BrokenPicturesError as error:
        summary, *pictures = str(error).splitlines()
        print("\n  ".join(["{}: error: {}".format(program, summary)] + pictures), file=sys.stderr)
        return EXIT_USAGE
    except (UsageError, DatasetError, WeightsError) as error:
        message, code = str(error), EXIT_USAGE
    except TrainingError as error:
        message, code = str(error), EXIT_FAILURE
    except KeyboardInterrupt as error:
        message, code = _of_signal(error)
    except BrokenPipeError:  # whoever read the output has left; there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python's own last flush would fail, too
        return EXIT_FAILURE
    except OSError as error:
        message, code = str(error), EXIT_FAILURE
    except (MemoryError, RuntimeError) as error:
        code = EXIT_FAILURE
        if _has_lost_companions(error):
            message = ("another process of this run has ended or can't be reached; the last checkpoint.pth, if a "
                       "--save_dir was given, is whole: --resume goes on from it ({})".format(
                           str(error).strip().splitlines()[0]))
        elif interrupted():  # a process that was just starting died of the same signal
            message, code = _of_signal(Stopped(interrupted(), between_steps=False))
        elif _is_out_of_memory(error):
            message = "out of memory: lower --batch, --image_size or --embedding_size ({})".format(
                str(error).splitlines()[0] if str(error) else "the system refuses more")
        elif "DataLoader worker" in str(error):
            message = "a loading process was killed, perhaps for want of memory; try fewer --workers"
        else:
            raise
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        if code != EXIT_FAILURE:  # most likely the first process says the same, and the launcher ends us meanwhile
            time.sleep(SECONDS_FOR_THE_FIRST)
        program += " [rank {}]".format(rank)
    print("{}: error: {}".format(program, " ".join(message.split())), file=sys.stderr, flush=True)
    return code


def _has_lost_companions(error):
    """Whether an error of torch.distributed says that another process is gone; it has no one class for that."""
    text = str(error).lower()
    return dist.is_available() and dist.is_initialized() and any(word in text for word in LOST)


def _of_signal(error):
    """Return (message, exit code) of a run that a signal ended."""
    number = getattr(error, "number", signal.SIGINT)
    name = signal.Signals(number).name
    advice = getattr(error, "advice", None) or "what --save_dir held before, if one was given, is whole"
    return "interrupted by {}; {}".format(name, advice), EXIT_SIGNAL + number


def _is_out_of_memory(error):
    """Whether Python, the CPU's allocator or an accelerator's has run out; torch has no one class for it."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text
