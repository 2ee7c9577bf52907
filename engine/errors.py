"""Errors that a user can mend: one line on the terminal, never a traceback."""
import sys

from dataset import BrokenPicturesError, DatasetError
from engine.interruption import handled_interruptions, interrupted
from model import WeightsError

__all__ = ["UsageError", "TrainingError", "run_script", "EXIT_USAGE"]

EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
INTERRUPTED = "interrupted; the weights of the last whole epoch stay in --save_dir, if one was given"


class UsageError(Exception):
    """The command asks for something that can't be done; exit code 2."""


class TrainingError(Exception):
    """The run went wrong through no fault of the command line; exit code 1."""


def run_script(program, body):
    """Call ``body()`` and return the exit code of the process, with one line on stderr where it is not 0."""
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
    except KeyboardInterrupt:
        message, code = INTERRUPTED, EXIT_INTERRUPTED
    except OSError as error:
        message, code = str(error), EXIT_FAILURE
    except (MemoryError, RuntimeError) as error:
        code = EXIT_FAILURE
        if interrupted():  # a worker that was just starting died of the same Ctrl-C
            message, code = INTERRUPTED, EXIT_INTERRUPTED
        elif _is_out_of_memory(error):
            message = "out of memory: lower --batch, --image_size or --embedding_size ({})".format(
                str(error).splitlines()[0])
        elif "DataLoader worker" in str(error):
            message = "a loading process was killed, perhaps for want of memory; try fewer --workers"
        else:
            raise
    print("{}: error: {}".format(program, " ".join(message.split())), file=sys.stderr)
    return code


def _is_out_of_memory(error):
    """Whether Python, the CPU's allocator or an accelerator's has run out; torch has no one class for it."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text
