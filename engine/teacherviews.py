"""--teacher_views: a teacher's embeddings of a few fixed crops of each picture, computed once, then drawn from.

They lie beside the decoded pictures, under a name that depends on these, on the teacher's weights and options, and on
how the crops are drawn; see ``dataset/croptable.py``. Where they can't be kept there, they are held in memory.
"""
import contextlib
import os

import numpy as np

from dataset import FixedCrops, shown
from dataset.cache import gigabytes, lack_of_room
from dataset.croptable import CropTable, open_table, table_path, write_table
from dataset.files import locked
from engine import ranks
from engine.errors import TrainingError
from engine.evaluation import embed
from engine.interruption import deferred_interruptions
from engine.networks import NETWORK_OPTIONS, describe
from model import digest_of_weights


@deferred_interruptions()
def draw_from_teacher_views(run, teacher, data):
    """Let ``data.batches`` draw from ``--teacher_views`` fixed crops of each picture, and hold the embeddings that the
    frozen ``teacher`` gives of them, as the third part of a batch. The teacher is not needed after that.

    All ranks compute the embeddings together, unless each has them on its disk. Until they are written there, each
    holds all of them in memory.

    Raises:
        TrainingError: an embedding is not finite. Others: see ``embed``.
    """
    args = run.args
    crops = crops_of_teacher_views(args)
    options = {name: getattr(args, "teacher_" + name) for name in NETWORK_OPTIONS}
    path = table_path(data.batches.pictures, {
        "teacher": digest_of_weights(teacher), "options": options, "image_size": args.image_size, "crop": args.crop,
        "seed": args.seed, "views": args.teacher_views, "precision": run.precision.name})
    with contextlib.ExitStack() as held:
        problem = ranks.machine_by_machine(lambda: _hold(held, path))
        table = open_table(path)
        if ranks.any_of(table is None):
            array = _embeddings(run, teacher, data, crops)
            if table is None:
                problem = problem or _problem_with_writing(path, array, data, options, args.cache == "auto")
            ranks.wait_for_all()  # for the first one of this machine
            table = open_table(path) or CropTable(array)
            how = "embedded once: " + (
                "in memory for this run ({})".format(problem or "another process could not write them")
                if table.path is None else "{} in {}".format(gigabytes(array.nbytes), shown(os.path.dirname(path))))
        else:
            how = "embedded before, from {}".format(shown(os.path.dirname(path)))
    print("Teacher views: {} crops of each of {} pictures, {}".format(*table.shape[:2], how), flush=True)
    data.batches.draw_from(crops.with_table(table))


def crops_of_teacher_views(args):
    """Return the fixed crops that ``--teacher_views`` asks for."""
    return FixedCrops(args.crop, args.seed, args.teacher_views, args.views)


def _leads_its_machine():
    return ranks.local()[0] == 0


def _hold(held, path):
    """If this rank is to write the file ``path``, lock it, and wait for a run that is just making it.

    Returns:
        in words why it can't be written; None if it can, or if another rank is to do it.
    """
    if path is None:
        return "the pictures have no cache to keep them beside"
    if not _leads_its_machine() or open_table(path):
        return None
    try:
        # The first rank of another machine may share our disk; if it waited for our lock, we would wait for it.
        held.enter_context(locked(path + ".lock", wait=ranks.is_first()))
        return None
    except BlockingIOError:
        return "another process is just writing them"
    except OSError as error:
        return "{}: {}".format(shown(os.path.dirname(path)), error.strerror)


def _problem_with_writing(path, array, data, options, automatic):
    """Write the table if this rank is to do it; return in words why it can't be done, or None."""
    if not _leads_its_machine():
        return None
    folder = os.path.dirname(path)
    try:
        lack = lack_of_room(folder, array.nbytes, automatic)
        if lack is None:
            write_table(path, array, data.batches.pictures.folder, "embeddings of " + describe(options))
        return lack
    except OSError as error:
        return "{}: {}".format(shown(folder), error.strerror or error)


def _embeddings(run, teacher, data, crops):
    """Return the embeddings of all crops, crops x pictures x d, as float32."""
    array = None
    for view in range(crops.count):
        rows, _ = embed(teacher, data.training(crops.only(view)), run.device,
                        "Teacher views, {} of {}".format(view + 1, crops.count), run.precision)
        if array is None:
            array = np.empty((crops.count,) + tuple(rows.shape), dtype=np.float32)
        array[view] = rows.cpu().numpy()
    broken = int((~np.isfinite(array)).any(2).sum())
    if broken:
        raise TrainingError("{} of {} embeddings of the teacher are not finite; try --precision fp32".format(
            broken, array.shape[0] * array.shape[1]))
    return array
