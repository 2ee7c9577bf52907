"""Files that several processes share: locked, told apart by their content, and written aside until they are whole."""
import contextlib
import hashlib
import os

try:
    import fcntl
except ImportError:  # not on Windows; there nothing holds processes off each other
    fcntl = None

__all__ = ["locked", "replaced_file", "remove_remains", "digest_of"]

ASIDE = "{}.{}.tmp"
CHUNK_BYTES = 1 << 20


@contextlib.contextmanager
def locked(path, wait=True):
    """Hold the file ``path``, which is there for this alone, locked; where the disk knows no locks, do without.

    The lock is this process's own: what it forks does not hold it. The end of the process, however it comes, gives the
    lock back, and so would closing any other handle of the file. Threads of one process are not kept apart.

    Args:
        wait: for another process that holds it; then a line is printed.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is False.
    """
    while True:
        file = open(path, "w")
        try:
            _lock(file, path, wait)
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


def _lock(file, path, wait):
    if fcntl is None:
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # systems differ in how they say it
        if not wait:
            raise BlockingIOError(path) from None
        print("Waiting for another process, which holds {}".format(path), flush=True)
        fcntl.lockf(file, fcntl.LOCK_EX)


def _is_still_there(path, file):
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def replaced_file(path, before=None):
    """Open a file aside of ``path`` for writing bytes; at the end of the block it is flushed and takes the place of
    ``path``. If that fails, ``path`` is as it was before.

    Args:
        before: called when the new file is whole on the disk, just before it takes the place.
    """
    aside = ASIDE.format(path, os.getpid())
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if before is not None:
            before()
        os.replace(aside, path)
        _flush_folder(os.path.dirname(path))
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(aside)
        raise


def _flush_folder(path):
    """Put the names in a folder on the disk, too; not every system and file system can."""
    with contextlib.suppress(OSError):
        number = os.open(path or ".", os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def remove_remains(path):
    """Remove what killed processes have left aside of ``path``. Nobody else may be writing it."""
    folder, name = os.path.split(path)
    start, end = ASIDE.split("{}.{}")[0] + name + ".", ASIDE.rsplit("{}", 1)[1]
    for other in os.listdir(folder or "."):
        number = other[len(start):-len(end)]
        if other.startswith(start) and other.endswith(end) and number.isdigit():
            with contextlib.suppress(OSError):
                os.remove(os.path.join(folder, other))


def digest_of(path, algorithm="sha256"):
    """Return the digest of a file, in hexadecimal; ``algorithm`` as hashlib calls it."""
    digest = hashlib.new(algorithm)
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(CHUNK_BYTES), b""):
            digest.update(chunk)
    return digest.hexdigest()
