"""Asymmetric evaluation: a student's queries in a teacher's gallery."""
import os
import pathlib
import re
import sys

import pytest
import torch
import torch.nn.functional as F

import run
import run_distill
from conftest import distil_for, options_for
from dataset import load_resized, load_splits, resized_size
from engine import ranks
from engine.networks import build_network, read_network_file
from metric.retrieval import recall_by_definition
from miniatures import lower_clothes, make_clothes
from processes import call_in_ranks, complete
from results import answer, failure
from tiny import TinyResNet

EVAL = ["--mode", "eval", "--device", "cpu", "--workers", "0"]


@pytest.fixture(scope="module")
def pair(pictures, tmp_path_factory):
    """The --save_dirs of two networks with 4 and 8 dimensions; beside the first one lies a projection."""
    root = tmp_path_factory.mktemp("pair")
    for name, size, seed in (("student", 4, 1), ("teacher", 8, 2)):
        argv = options_for(pictures, "--epochs", "1", "--seed", seed, "--save_dir", root / name)
        argv[argv.index("--embedding_size") + 1] = str(size)
        assert complete("run", argv + ["--l2normalize", str(size == 8).lower()], root / "out") == 0
    torch.save({"weight": torch.randn(8, 4, generator=torch.Generator().manual_seed(0))},
               str(root / "student" / "projection.pth"))
    return root / "student", root / "teacher"


def argv_of(pair, *more):
    return EVAL + ["--load", str(pair[0] / "best.pth"), "--gallery_load", str(pair[1] / "best.pth")] + [
        str(word) for word in more]


def embedded(directory, images):
    """The embeddings of a run's best network, picture by picture."""
    file = read_network_file(str(directory / "best.pth"))
    network, side, rows = build_network(file.options, file).eval(), resized_size(32), []
    first = (side - 32) // 2
    for path, _ in images.samples:
        picture = torch.from_numpy(load_resized(path, side)[first:first + 32, first:first + 32].copy())
        with torch.no_grad():
            rows.append(network(picture.permute(2, 0, 1).unsqueeze(0))[0])
    return torch.stack(rows)


def printed(out):
    """{(K, split): percentage}"""
    return {(int(k), split): value for k, value, split in re.findall(
        r"^\[Epoch 0\] Recall@(\d+): \[(.*)\] (\w+)$", out, re.M)}


def percent(fraction):
    return "{:.4f}".format(100 * fraction)


def test_the_students_queries_search_the_teachers_gallery_without_their_own_picture(pair, pictures, capsys):
    code, out, errors = answer(capsys, run.main, argv_of(pair, "--recall", "1", "3"))
    assert code == 0, errors
    projection = torch.load(str(pair[0] / "projection.pth"))["weight"]
    expected = {}
    for split, images in load_splits("folder", str(pictures)).items():
        labels = torch.tensor(images.targets)
        ours, theirs = (embedded(directory, images) for directory in pair)
        queries, gallery = F.normalize(ours @ projection.t()), F.normalize(theirs)
        found = recall_by_definition(queries, labels, [1, 3], gallery, labels, paired=True)
        expected.update({(k, split): percent(value) for k, value in zip((1, 3), found)})
        for path, embeddings in zip(pair, (ours, theirs)):
            alone = recall_by_definition(embeddings, labels, [1, 3])
            assert ("For comparison, queries and gallery of the {} set by {}/best.pth: Recall@1 {}, Recall@3 {}\n"
                    .format(split, path, *map(percent, alone))) in out
    assert printed(out) == expected and len(set(expected.values())) > 1
    assert "Projection: {}, from 4 dimensions to 8\n".format(pair[0] / "projection.pth") in out
    assert "Warning" not in out


def test_a_student_in_its_teachers_space_is_as_good_as_the_teacher(pair, pictures, tmp_path, capsys):
    """The student's head is the teacher's, followed by a rotation; its inverse is the projection. If a query could find
    its own picture, all would."""
    weights = torch.load(str(pair[1] / "best.pth"))
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]
    for name in ("linear.weight", "linear.bias"):
        weights[name] = turn @ weights[name]
    torch.save(weights, str(tmp_path / "turned.pth"))
    torch.save({"weight": turn.t().contiguous()}, str(tmp_path / "back.pth"))
    argv = EVAL + ["--load", tmp_path / "turned.pth", "--gallery_load", pair[1] / "best.pth", "--dataset", "folder"]
    argv += ["--data", pictures]
    code, out, errors = answer(capsys, run.main, argv + ["--projection_load", tmp_path / "back.pth"])
    assert code == 0, errors
    alone = dict(re.findall(r"^For comparison, .* of the (\w+) set by .*teacher/best.pth: Recall@1 (.*)$", out, re.M))
    assert {split: value for (_, split), value in printed(out).items()} == alone and "100.0000" not in alone.values()
    code, out, _ = answer(capsys, run.main, argv)  # turned away
    assert {split: value for (_, split), value in printed(out).items()} != alone


def test_a_student_by_regression_brings_its_projection(teacher, tmp_path, capsys):
    argv = distil_for(teacher, "--regression_ratio", "1", "--epochs", "1", "--save_dir", tmp_path / "student")
    assert answer(capsys, run_distill.main, argv)[0] == 0
    code, out, errors = answer(capsys, run.main, argv_of((tmp_path / "student", pathlib.Path(teacher))))
    assert code == 0, errors
    assert "Projection: {}, from 4 dimensions to 8\n".format(tmp_path / "student" / "projection.pth") in out
    assert set(printed(out)) == {(1, "train"), (1, "test")}


def test_a_student_that_can_not_search_there_is_told(teacher, tmp_path, capsys):
    def trained(name, *words):
        argv = distil_for(teacher, "--embedding_size", "8", *words, "--epochs", "1", "--save_dir", tmp_path / name)
        assert answer(capsys, run_distill.main, argv)[0] == 0
        return tmp_path / name

    linear = trained("linear", "--csd_ratio", "1", "--projection", "linear")
    os.remove(str(linear / "projection.pth"))
    assert "was trained with --projection linear, and there is no {}".format(linear / "projection.pth") in failure(
        capsys, run.main, argv_of((linear, pathlib.Path(teacher))))
    plain, same = trained("plain", "--dist_ratio", "1"), trained("same", "--csd_ratio", "1")
    for pair, warned in (((plain, teacher), "was distilled without --regression_ratio or --csd_ratio"),
                         ((same, plain), "the teacher of {}/best.pth was {}".format(same, teacher)),
                         ((same, teacher), None)):
        code, out, _ = answer(capsys, run.main, argv_of(tuple(map(pathlib.Path, pair))))
        assert code == 0 and ("Warning" in out) == bool(warned) and (not warned or warned in out)


def test_a_gallery_by_a_teacher_as_it_comes(pictures, tmp_path, capsys):
    torch.manual_seed(0)
    torch.save(TinyResNet(pretrained=False).state_dict(), str(tmp_path / "found.pth"))

    def network(prefix):
        return [word for name, value in (("base", "tiny"), ("pretrained", tmp_path / "found.pth"),
                                         ("embedding_size", "0")) for word in ("--" + prefix + name, str(value))]

    argv = options_for(pictures, *network("teacher_"), "--l2normalize", "false", "--regression_ratio", "1",
                       "--projection", "linear", "--epochs", "1", "--save_dir", tmp_path / "student")
    assert answer(capsys, run_distill.main, argv)[0] == 0
    query = [*EVAL, "--load", tmp_path / "student" / "best.pth"]
    code, out, errors = answer(capsys, run.main, query + network("gallery_"))
    assert code == 0 and "Warning" not in out, errors
    assert set(printed(out)) == {(1, "train"), (1, "test")}
    # The teacher alone is what --mode eval says of it.
    code, alone, _ = answer(capsys, run.main, EVAL + network("") + ["--dataset", "folder", "--data", pictures,
                                                                    "--image_size", "32"])
    assert code == 0 and printed(alone)[1, "test"] in out.split("For comparison")[-1]


def test_projections_that_do_not_fit(pair, tmp_path, capsys):
    def refused(*argv):
        return failure(capsys, run.main, [str(word) for word in argv])

    student, teacher = (str(directory / "best.pth") for directory in pair)
    assert "{} has 8 dimensions, {} has 4: needed is the projection.pth".format(teacher, student) in refused(
        *EVAL, "--load", teacher, "--gallery_load", student)
    for shape, words in (((8, 5), "leads from 5 dimensions to 8"), ((4, 8), "leads from 8 dimensions to 4")):
        torch.save({"weight": torch.zeros(shape)}, str(tmp_path / "other.pth"))
        assert words in refused(*argv_of(pair, "--projection_load", tmp_path / "other.pth"))
    matrix = torch.zeros(8, 4)
    for content in ({"weight": matrix[0]}, matrix, {"weight": matrix, "bias": matrix[0]}, {"weight": matrix.long()}):
        torch.save(content, str(tmp_path / "odd.pth"))
        assert "is no projection" in refused(*argv_of(pair, "--projection_load", tmp_path / "odd.pth"))
    torch.save({"weight": torch.full((8, 4), float("nan"))}, str(tmp_path / "odd.pth"))
    assert "not finite" in refused(*argv_of(pair, "--projection_load", tmp_path / "odd.pth"))
    assert "no such file" in refused(*argv_of(pair, "--projection_load", tmp_path / "nowhere.pth"))


def test_a_projection_beside_the_weights_that_is_another_epochs_or_for_another_gallery(pair, capsys):
    argv = argv_of(pair)
    argv[argv.index("--load") + 1] = str(pair[0] / "last.pth")
    code, out, _ = answer(capsys, run.main, argv)
    assert code == 0 and re.search(
        "Warning: .*projection.pth belongs to the best.pth beside it; .*last.pth may be of another epoch", out)
    code, out, _ = answer(capsys, run.main, argv_of((pair[0], pair[0])))
    assert code == 0 and "from 4 dimensions to 8, and {0} has 4, {0} has 4, so it is not used\n".format(
        pair[0] / "best.pth") in out


@pytest.mark.parametrize("more, expected", [
    (["--mode", "eval", "--gallery_base", "tiny"], "--gallery_base does nothing without --gallery_load"),
    (["--mode", "eval", "--projection_load", "p.pth"], "--projection_load does nothing without --gallery_load"),
    (["--mode", "eval", "--gallery_load", "nowhere.pth"], "need --load, the network of the queries"),
    (["--mode", "eval", "--load", "a.pth", "--gallery_pretrained", "b.pth"], "--gallery_embedding_size 0"),
    (["--mode", "eval", "--load", "a.pth", "--gallery_load", "c.pth", "--gallery_pretrained", "b.pth"],
     "--gallery_load gives all weights"),
    (["--gallery_load", "nowhere.pth"], "--gallery_load does nothing with --mode train"),
])
def test_a_gallery_where_there_is_none(pictures, capsys, more, expected):
    assert expected in failure(capsys, run.main, ["--dataset", "folder", "--data", str(pictures)] + more)


def test_the_gallerys_network_is_checked_like_any_other(pair, capsys):
    line = failure(capsys, run.main, argv_of(pair, "--gallery_embedding_size", "16"))
    assert "holds a TinyResNet with 8 dimensions, L2-normalised; you asked for a TinyResNet with 16 dimensions" in line
    code, out, _ = answer(capsys, run.main, argv_of(pair, "--image_size", "36"))
    assert code == 0 and "Gallery: a TinyResNet with 8 dimensions, L2-normalised\n" in out


def test_two_sets_of_pictures_exclude_nothing(pair, tmp_path, monkeypatch, capsys):
    make_clothes(tmp_path / "In-shop", monkeypatch)
    argv = argv_of(pair, "--dataset", "inshop", "--data", tmp_path, "--no_train_recall", "--recall", "1", "5")
    code, out, errors = answer(capsys, run.main, argv)
    assert code == 0, errors
    queries = load_splits("inshop", str(tmp_path))["test"]
    projection = torch.load(str(pair[0] / "projection.pth"))["weight"]
    expected = recall_by_definition(
        F.normalize(embedded(pair[0], queries) @ projection.t()), torch.tensor(queries.targets), [1, 5],
        F.normalize(embedded(pair[1], queries.gallery)), torch.tensor(queries.gallery.targets))
    assert printed(out) == {(k, "test"): percent(value) for k, value in zip((1, 5), expected)}
    assert "For comparison" not in out


def _measure(argv, out):
    lower_clothes()
    if ranks.is_first():
        sys.stdout = open(out, "w")
    assert run.main(argv) == 0
    sys.stdout.flush()


def test_two_processes_measure_what_one_measures(pair, tmp_path, capsys):
    argv = argv_of(pair, "--recall", "1", "3", "--metrics", "map@r", "r-precision", "mrr")
    _, expected, _ = answer(capsys, run.main, argv)
    assert "[Epoch 0] MAP@R: [" in expected
    call_in_ranks(2, _measure, argv, str(tmp_path / "out"))
    found = (tmp_path / "out").read_text()
    assert [line for line in found.splitlines() if "[Epoch 0]" in line or "For comp" in line] == [
        line for line in expected.splitlines() if "[Epoch 0]" in line or "For comp" in line]
