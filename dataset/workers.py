"""Loading processes: how many fit into shared memory, what they do with signals, and waiting for what they deliver.

A DataLoader hands its batches over in shared memory (on Linux /dev/shm) and open files. Where either runs short, or a
process is stopped, torch waits for ever, in places where no signal is noticed. So batches are taken in a thread here,
and the main thread looks up every second.
"""
import errno
import functools
import multiprocessing
import multiprocessing.resource_tracker
import os
import queue
import signal
import threading

import torch

__all__ = ["LOADING_PATIENCE", "STOP_SIGNALS", "LoadingError", "batches_of", "end_loading", "in_shared_memory",
           "leave_signals_to_the_main_process", "processes_here", "workers_that_fit"]

# A run ends when a batch has not come for so many seconds.
LOADING_PATIENCE = 300
# Between two looks of the main thread while it waits, and of a loading process whether its parent is still there.
SECONDS_TO_LOOK, SECONDS_TO_LOOK_FOR_PARENT = 1, 5
SHARED_MEMORY, FILES_NEEDED = "/dev/shm", 64
# Batches in shared memory: those that torch asks of each process ahead of time, and those that the main process holds.
BATCHES_AHEAD, BATCHES_HELD = 2, 2
# Files that a loading process opens while it hands over a batch; those that the main process opens for each loading
# process of two DataLoaders, and for all else.
FILES_FOR_A_BATCH, FILES_FOR_A_WORKER, OTHER_FILES = 8, 12, 24
# Signals that end a run; the main process alone takes them.
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]


class LoadingError(Exception):
    """Batches don't come, through no fault of the pictures; the message is one line for the user."""


def processes_here():
    """Return how many ranks this machine has. A LOCAL_WORLD_SIZE that is not a number from 1 on counts as 1 here;
    ``engine.ranks`` refuses it."""
    try:
        return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    except ValueError:
        return 1


def _room():
    """Return the free bytes of shared memory, or None where the system doesn't tell."""
    if not hasattr(os, "statvfs") or not os.path.isdir(SHARED_MEMORY):
        return None
    status = os.statvfs(SHARED_MEMORY)
    if status.f_blocks == 0:  # no limit
        return None
    if not os.access(SHARED_MEMORY, os.W_OK) or 0 < status.f_files and status.f_favail < FILES_NEEDED:
        return 0
    return status.f_bavail * status.f_frsize


def workers_that_fit(workers, size):
    """Return ``workers``, or fewer and print a line, so that batches of ``size`` bytes fit into this rank's part of
    shared memory, and that this process may open the files that it needs. One DataLoader is busy at a time."""
    files = OTHER_FILES + FILES_FOR_A_WORKER * workers
    found = _files_left(files)
    limits = [(workers if found == files else max(0, found - OTHER_FILES) // FILES_FOR_A_WORKER,
               "this process can open only {} more files; ulimit -n {} allows all".format(found, files + 64))]
    room = _room()
    if room is not None:
        limits.append((max(0, (room // processes_here() // size - BATCHES_HELD) // BATCHES_AHEAD),
                       "{} has {:.0f} MB free, and each loads {} batches of {:.1f} MB ahead; docker run --shm-size=2g "
                       "(or --ipc=host) gives more".format(SHARED_MEMORY, room / 1e6, BATCHES_AHEAD, size / 1e6)))
    most, reason = min(limits)
    if most < workers:
        print("Workers: {} instead of {}: {}".format(most, workers, reason), flush=True)
    return min(workers, most)


def _files_left(most):
    """Return how many more files this process can open, at most ``most``."""
    opened = []
    try:
        while len(opened) < most:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    for number in opened:
        os.close(number)
    return len(opened)


def in_shared_memory(tensors):
    """Return ``tensors``; in a loading process their memory is now shared. torch would share them later, in a thread
    whose errors nobody gets.

    Raises:
        LoadingError: there is too little memory, or too many files are open.
    """
    if torch.utils.data.get_worker_info() is None:
        return tensors
    room, size = _room(), sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if room is not None and room < size:  # an older torch dies of a bus error
        raise LoadingError("a batch of {:.1f} MB finds no room in {}, where {:.1f} MB are free; try fewer --workers, "
                           "or docker run --shm-size=2g".format(size / 1e6, SHARED_MEMORY, room / 1e6))
    try:
        for tensor in tensors:
            tensor.share_memory_()
    except RuntimeError as error:
        raise LoadingError("a loading process can't hand over a batch: {}".format(error)) from None
    if _files_left(FILES_FOR_A_BATCH) < FILES_FOR_A_BATCH:
        raise LoadingError("a loading process can't hand over a batch: {}".format(os.strerror(errno.EMFILE)))
    return tensors


def leave_signals_to_the_main_process(worker):
    """Make a worker ignore signals, except a SIGTERM from the main process.

    Ctrl-C reaches every process of a terminal, and a scheduler's signals every process of a job. If one of them ended a
    worker, the main process would take it for a crash. A worker starts with these signals blocked; see ``_call_into``.
    """
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # not on macOS: there a SIGTERM from anywhere ends a worker
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_on_sigterm_from, args=(multiprocessing.parent_process().pid,),
                         daemon=True).start()
    elif hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def _end_on_sigterm_from(process):
    """End when that process asks for it, or has gone. (torch looks, too, but not while a loading process starts.)"""
    while True:
        asked = signal.sigtimedwait([signal.SIGTERM], SECONDS_TO_LOOK_FOR_PARENT)
        if (asked.si_pid == process) if asked else not _is_running(process):
            os._exit(0)


def _is_running(process):
    try:
        os.kill(process, 0)
        return True
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's, or a security module forbids to ask
        return True


def batches_of(loader, while_waiting):
    """Yield the batches of a DataLoader.

    Args:
        while_waiting: called every second while no batch comes, with the seconds so far, and when a loading process has
            died; what it raises is raised.

    Raises:
        LoadingError: a loading process has died, too many files are open, or no batch has come for
            ``LOADING_PATIENCE`` seconds.
    """
    if loader.num_workers == 0:
        yield from loader
        return
    iterator = _watched(functools.partial(iter, loader), while_waiting, loader.pin_memory)
    while True:
        batch = _watched(functools.partial(next, iterator, None), while_waiting, loader.pin_memory)
        if batch is None:
            return
        yield batch


def _watched(function, while_waiting, pin_memory):
    """Return ``function()``, called in a thread: to take a batch from a stopped process can last for ever."""
    results = queue.Queue()  # a SimpleQueue would wait for ever if a signal came just as its time is over
    device = torch.cuda.current_device() if pin_memory and torch.cuda.is_available() else None
    try:
        threading.Thread(target=_call_into, args=(results, function, device), daemon=True).start()
        # Looks are counted, not the time of a clock: the whole job may have been stopped and continued.
        for looks in range(LOADING_PATIENCE // SECONDS_TO_LOOK):
            try:
                value, error = results.get(timeout=SECONDS_TO_LOOK)
                break
            except queue.Empty:
                while_waiting((looks + 1) * SECONDS_TO_LOOK)
        else:
            raise LoadingError("no pictures came for {} s: the loading processes are stopped, or a disk hangs; try "
                               "--workers 0".format(LOADING_PATIENCE))
        if error is None:
            return value
        if _is_of_a_dead_process(error):
            while_waiting(0)
            raise LoadingError("a loading process was killed, perhaps because memory ran out; try fewer --workers")
        # Of what torch does to hand over a batch, not of what is done in a loading process.
        if isinstance(error, (OSError, RuntimeError)) and "in DataLoader worker process" not in str(error):
            raise LoadingError("a batch can't be taken from a loading process: {}".format(error))
        raise error
    except BaseException:
        end_loading()
        raise


def _call_into(results, function, device):
    """Put (what ``function()`` returns, None), or (None, the error), into the queue ``results``."""
    if hasattr(signal, "pthread_sigmask"):
        # For the processes that start here: until they have run ``leave_signals_to_the_main_process``, a signal would
        # end them. Where they are not forked, Python starts its resource tracker first, and that would undo this.
        if multiprocessing.get_start_method() != "fork":
            multiprocessing.resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    if device is not None:  # a thread has a current device of its own
        torch.cuda.set_device(device)
    try:
        results.put((function(), None))
    except BaseException as error:
        results.put((None, error))


def _is_of_a_dead_process(error):
    """Whether ``error`` is torch's of a loading process that died, or a connection that broke in its death."""
    return isinstance(error, (ConnectionError, EOFError)) or str(error).startswith((
        "DataLoader worker (pid", "Pin memory thread exited"))


def end_loading():
    """Kill the loading processes. At its exit Python would ask them to end and wait for them: for ever, if one is
    stopped."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
