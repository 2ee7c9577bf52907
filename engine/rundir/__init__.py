"""What a run leaves on disk. The modules of this package:

    files    the names of the files, how they are written, and who may write to a --save_dir
    paths    paths among the options: kept so that they hold from anywhere, and after a move
    state    checkpoint.pth: read, checked, restored
    resume   which run a --save_dir holds: continue it, or refuse to touch it
    card     README.md, the model card; its words are in cardtext
    record   the run as it grows: bests, the log, weights, result.txt, the card
"""
from engine.rundir.files import (BEST, CONFIG, PROJECTION, held_directory, read_config, read_json, write_bytes,
                                 write_json)
from engine.rundir.paths import equal, found_again
from engine.rundir.record import RunRecord
from engine.rundir.resume import NOT_PART_OF_THE_RUN, saved_run

__all__ = ["BEST", "CONFIG", "NOT_PART_OF_THE_RUN", "PROJECTION", "RunRecord", "equal", "found_again",
           "held_directory", "read_config", "read_json", "saved_run", "write_bytes", "write_json"]
