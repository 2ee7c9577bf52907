"""Files that several processes use: locks, replacing a file only when the new one is whole, digests."""
import contextlib
import hashlib
import os

try:
    import fcntl
except ImportError:  # Windows: no locks
    fcntl = None

__all__ = ["locked", "replaced_file", "remove_remains", "digest_of", "chunks_of"]

ASIDE = "{}.{}.tmp"
CHUNK_BYTES = 1 << 20


@contextlib.contextmanager
def locked(path, wait=True):
    """Hold a lock on ``path``, a file used only as a lock; no-op on a file system without locks.

    The lock belongs to this process, not to those that it forks. It ends with the process, however that ends, and also
    when any other handle of the file is closed. It does not exclude other threads of this process.

    Args:
        wait: if another process holds the lock, print a line and wait for it.

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
        file.close()  # the holder before us has removed it: our lock is on a file that nobody else can open
    try:
        yield
    finally:
        if fcntl is None:
            file.close()  # Windows removes no file that is open
        with contextlib.suppress(OSError):
            os.remove(path)
        file.close()


def _lock(file, path, wait):
    if fcntl is None:
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # which of them depends on the system
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
    """Open a temporary file beside ``path`` for writing bytes; at the end of the block it is flushed and renamed to
    ``path``. If the block or that fails, ``path`` is as it was before.

    Args:
        before: called when the new file is whole on the disk, just before it is renamed.

    Raises:
        OSError: it can't be written; names ``path``.
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
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(aside)
        if isinstance(error, OSError) and error.errno and error.filename in (None, aside):  # a full disk names none
            error.filename = path
        raise


def _flush_folder(path):
    """Flush a folder's list of names to the disk, where the system can."""
    with contextlib.suppress(OSError):
        number = os.open(path or ".", os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def remove_remains(path):
    """Remove the temporary files of ``path`` that killed processes left. Nobody else may be writing to it."""
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
        for chunk in chunks_of(file):
            digest.update(chunk)
    return digest.hexdigest()


def chunks_of(file):
    """Yield the rest of a binary file, a MiB at a time."""
    return iter(lambda: file.read(CHUNK_BYTES), b"")
