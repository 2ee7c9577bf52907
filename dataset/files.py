"""Let one process at a time do a piece of work."""
import contextlib
import os

try:
    import fcntl
except ImportError:  # not on Windows; there nothing holds processes off each other
    fcntl = None

__all__ = ["locked"]


@contextlib.contextmanager
def locked(path, wait=True):
    """Hold the file ``path``, which is there for this alone, locked; where the disk knows no locks, do without.

    The end of the process, however it comes, gives the lock back.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is False.
    """
    while True:
        file = open(path, "w")
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            raise
        except OSError:
            pass
        if _is_still_there(path, file):
            break
        file.close()  # the one before has removed it just now
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.remove(path)
        file.close()


def _is_still_there(path, file):
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
