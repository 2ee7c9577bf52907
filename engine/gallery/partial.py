"""Embeddings that are being made: a folder beside the file that they are for, from which the same command goes on.

    state.json            which job it is, and how many pictures of it are done
    embeddings, scales    the rows of these arrays, one after the other, as bytes; see engine/gallery/files.py

Rows are written like any file, not through a memory map: there a full disk kills the process.
"""
import contextlib
import os

import numpy as np

from dataset.files import locked
from engine.errors import TrainingError, UsageError
from engine.gallery.files import STORES
from engine.rundir import read_json, write_json

STATE, LOCK = "state.json", ".lock"
ROWS = 2 ** 14  # read at a time


class Partial:
    """Rows of a job that may be interrupted.

    Args:
        folder: where they are; it is there.
        job: {what: which}, by which a job is known again, "store" and "width" among them.
        prefix: a count -> digest of the first so many pictures of the job; None where there are fewer.
        overwrite: throw away rows of another job.

    Attributes:
        done: how many pictures were done when it was last flushed.

    Raises:
        UsageError: the folder holds rows of another job. TrainingError, also of the methods: the disk refuses.
    """

    def __init__(self, folder, job, prefix, overwrite):
        self.folder, self.job, self.prefix = folder, job, prefix
        self.kinds = {"embeddings": (np.dtype(STORES[job["store"]]), (job["width"],))}
        if job["store"] == "int8":
            self.kinds["scales"] = (np.dtype(np.float32), ())
        state = read_json(self._path(STATE))
        other = state is not None and self._differences(state)
        if other and not overwrite:
            raise UsageError("{} holds a part of another job ({}); --overwrite begins anew".format(folder, other))
        self.done = 0 if state is None or other else state["done"]
        with self._refusals():
            for name in self.kinds:
                if not os.path.exists(self._path(name)) or os.path.getsize(
                        self._path(name)) < self.done * self._bytes(name):
                    self.done = 0
            if not self.done:  # or the rows that come would be taken for those that it speaks of
                with contextlib.suppress(FileNotFoundError):
                    os.remove(self._path(STATE))
            self._files = {name: open(self._path(name), "r+b" if self.done else "wb") for name in self.kinds}

    def _differences(self, state):
        """Return in words what another job the folder is of; "" if it is this one."""
        if not isinstance(state, dict) or not isinstance(state.get("job"), dict) or type(state.get("done")) is not int:
            return "its {} is of another version".format(STATE)
        differing = [what for what in self.job if state["job"].get(what) != self.job[what]]
        if not differing and state.get("pictures") != self.prefix(state["done"]):
            differing = ["pictures"]
        return " and ".join("other " + what for what in differing)

    @contextlib.contextmanager
    def _refusals(self):
        try:
            yield
        except OSError as error:
            raise TrainingError("{} can't be written ({}); what was done before is kept there: make room, and the "
                                "same command goes on".format(self.folder, error.strerror or error)) from None

    def _path(self, name):
        return os.path.join(self.folder, name)

    def _bytes(self, name):
        kind, shape = self.kinds[name]
        return kind.itemsize * int(np.prod(shape, dtype=np.int64))

    def write(self, first, arrays):
        """Put rows, {name: array}, of the pictures from ``first`` on into their places."""
        with self._refusals():
            for name, rows in arrays.items():
                self._files[name].seek(first * self._bytes(name))
                self._files[name].write(rows.tobytes())

    def flush(self, done):
        """Note that the first ``done`` pictures are done, once their rows are on the disk."""
        with self._refusals():
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
        write_json(self._path(STATE), {"job": self.job, "done": done, "pictures": self.prefix(done)})
        self.done = done

    def blocks(self, name, kept):
        """Yield the rows ``kept``, sorted numbers, of an array, block by block."""
        kind, shape = self.kinds[name]
        for start in range(0, len(kept), ROWS):
            which = kept[start:start + ROWS]
            with open(self._path(name), "rb") as file:
                file.seek(int(which[0]) * self._bytes(name))
                rows = np.fromfile(file, kind, (int(which[-1]) + 1 - int(which[0])) * int(np.prod(shape, dtype=int)))
            yield rows.reshape((-1,) + shape)[which - which[0]]

    def close(self):
        for file in self._files.values():
            with contextlib.suppress(OSError):  # no news: a write or flush has failed before
                file.close()

    def remove(self):
        """Remove the rows, which are in the gallery now."""
        self.close()
        for name in list(self.kinds) + [STATE]:
            with contextlib.suppress(FileNotFoundError):
                os.remove(self._path(name))


@contextlib.contextmanager
def opened_partial(folder, *arguments):
    """Within the block nobody else writes to the ``Partial``, which is yielded; its folder is made if need be, and gone
    afterwards if it is empty. Arguments and what is raised: see there."""
    with contextlib.ExitStack() as held:
        try:
            os.makedirs(folder, exist_ok=True)
            held.callback(_remove_if_empty, folder)
            held.enter_context(locked(os.path.join(folder, LOCK), wait=False))
        except BlockingIOError:
            raise UsageError("{}: another command is writing to it; wait for its end".format(folder)) from None
        except OSError as error:
            raise UsageError("{}: can't be made or written to ({})".format(folder, error.strerror or error)) from None
        partial = Partial(folder, *arguments)
        held.callback(partial.close)
        yield partial


def _remove_if_empty(folder):
    with contextlib.suppress(OSError):
        os.rmdir(folder)
