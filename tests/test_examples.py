"""The scripts in examples/: the environment and the summary."""
import json
import os
import signal
import subprocess
import sys

import pytest

import run
from processes import ROOT

sys.path.insert(0, os.path.join(ROOT, "examples"))

import environment  # noqa: E402
import summary  # noqa: E402


def test_a_python_that_has_everything_is_used_as_it_is():
    """These tests run in such a Python."""
    command = [sys.executable, os.path.join(ROOT, "examples", "environment.py"),
               os.path.join(ROOT, "tests", "requirements.txt")]
    answer = subprocess.run(command, stdout=subprocess.PIPE, universal_newlines=True)
    assert answer.returncode == 0 and answer.stdout.strip() == sys.executable


def test_missing_and_old_packages_are_seen():
    wanted = environment.read_requirements([os.path.join(ROOT, "requirements.txt")])
    assert set(wanted) == {"torch", "torchvision", "numpy", "tqdm", "pillow"}
    found = dict.fromkeys(wanted, "99.0")
    assert environment.missing(found, wanted) == []
    # The BI-V100's build satisfies the ranges, and an older one does not.
    assert environment.missing(dict(found, torch="1.10.2+corex.3.0.0", torchvision="0.11.0"), wanted) == []
    assert environment.missing(dict(found, torch="1.9.1"), wanted) == ["torch"]
    del found["tqdm"]
    assert environment.missing(found, wanted) == ["tqdm"]
    assert environment.installed(sys.executable, ["numpy", "no_such_package"]).keys() == {"numpy"}


def _program(path, *lines):
    path.write_text("\n".join(("#!/usr/bin/env bash",) + lines) + "\n")
    path.chmod(0o755)


@pytest.mark.parametrize("code, requeued", [(0, False), (1, False), (2, False), (128 + signal.SIGUSR1, True)])
def test_slurm_queues_the_job_again_only_after_its_warning(tmp_path, code, requeued):
    """On a stand-in for SLURM with a single task."""
    log = tmp_path / "log"
    _program(tmp_path / "scontrol", '[ "$1" = show ] && echo first || echo "$@" >> {}'.format(log))
    _program(tmp_path / "srun", 'while [[ $1 == --* ]]; do shift; done; SLURM_PROCID=0 SLURM_LOCALID=0 "$@"')
    _program(tmp_path / "python3", 'printf "%s\\n" "$RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $MASTER_ADDR '
             '$((MASTER_PORT > 1023))" "$@" > {}; exit {}'.format(tmp_path / "words", code))
    environment = dict(os.environ, PATH="{}:{}".format(tmp_path, os.environ["PATH"]), SLURM_JOB_ID="7",
                       SLURM_NTASKS="1", SLURM_NTASKS_PER_NODE="1", SLURM_JOB_NODELIST="x", SLURM_CPUS_PER_TASK="1")
    script = os.path.join(ROOT, "examples", "slurm.sh")
    assert subprocess.run(["bash", script, "out put"], env=environment).returncode == code
    ranks, file, *words = (tmp_path / "words").read_text().splitlines()
    assert (ranks, file) == ("0 1 0 1 first 1", "run.py")
    args = run.build_parser().parse_args(words)
    assert args.save_dir == "out put" and args.resume and args.dataset == "cub200"
    assert args.batch <= 100 * args.num_image_per_class  # CUB-200 trains on 100 classes
    assert log.exists() == requeued and (not requeued or log.read_text() == "requeue 7\n")


def _run_directory(path, script, options, recalls):
    path.mkdir()
    options = dict({"base": "resnet18", "embedding_size": 16, "l2normalize": False, "recall": [2],
                    "teacher_load": None}, **options)
    (path / "config.json").write_text(json.dumps({"script": script, "options": options}))
    lines = [{"recall": {"test": {"2": recall}}} for recall in recalls]
    lines.insert(1, {"loss": 1.0})  # an epoch that was not measured
    (path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "speed.jsonl").write_text("".join('{"seconds": 1.5}\n' for _ in recalls[1:]))
    (path / "best.pth").write_bytes(b"0" * 1500000)
    return str(path)


def test_summary_shows_before_best_and_final(tmp_path, capsys):
    ratios = {"dist_ratio": 1, "angle_ratio": 2, "dark_ratio": 0, "at_ratio": 0, "triplet_ratio": 0}
    student = _run_directory(tmp_path / "student", "run_distill.py", ratios, [0.1, 0.5, 0.4])
    teacher = _run_directory(tmp_path / "teacher", "run.py", {"loss": "l2_triplet", "sample": "all"}, [0.2, 0.3])
    assert summary.main([teacher, student]) == 0
    rows = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines()]
    assert rows[3] == ["student", "resnet18 d=16 not normalised", "2 angle + 1 dist", "3", "0.1000", "0.5000",
                       "0.4000", "1.5", "3"]
    assert rows[2][2] == "l2_triplet, all negatives"


def test_summary_says_what_selected_the_best_epoch(tmp_path, capsys):
    directory = _run_directory(tmp_path / "run", "run.py", {"loss": "l2_triplet", "sample": "all"}, [0.2, 0.5, 0.3])
    path = tmp_path / "run" / "log.jsonl"
    for select, best, cell in (("test", 2, "0.5000"), ("val", 3, "0.3000 by val"), ("last", 3, "0.3000 by last")):
        log = [json.loads(line) for line in path.read_text().splitlines()]
        for epoch, line in enumerate(log):
            line["epoch"] = epoch
            line.update({"select": select, "best_epoch": best} if "recall" in line else {})
        path.write_text("".join(json.dumps(line) + "\n" for line in log))
        assert summary.main([directory]) == 0
        assert capsys.readouterr().out.splitlines()[2].split("|")[5].strip() == cell


def test_summary_says_what_was_gained_by_distilling(tmp_path, capsys):
    loss = {"loss": "l2_triplet", "sample": "all"}
    teacher = _run_directory(tmp_path / "teacher", "run.py", dict(loss, embedding_size=512), [0.2, 0.8])
    alone = _run_directory(tmp_path / "alone", "run.py", loss, [0.1, 0.4])
    student = _run_directory(tmp_path / "student", "run_distill.py", {
        "dist_ratio": 1, "teacher_load": os.path.join(teacher, "best.pth")}, [0.1, 0.6])
    said = {(teacher, student): ["student: 75% of its teacher's"], (alone,): [], (alone, student): [
        "student: +20.0 points of Recall@1 to the same network without a teacher (alone)"],
        (teacher, alone, student): ["student: +20.0 points of Recall@1 to the same network without a teacher (alone), "
                                    "75% of its teacher's"]}
    for runs, lines in said.items():
        assert summary.main(list(runs)) == 0
        assert capsys.readouterr().out.splitlines()[2 + len(runs):] == lines


@pytest.mark.parametrize("arguments", [[], ["nowhere"]])
def test_summary_of_nothing(arguments, capsys):
    assert summary.main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err
