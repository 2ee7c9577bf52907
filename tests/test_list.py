"""A list of pictures (--dataset list): as spreadsheet programs write it, what it means, what is refused and where."""
import os
import shutil

import pytest

import run
from conftest import options_for
from dataset import DatasetError, FolderMetric, ListMetric, load_splits, passed_over, picturelist
from results import answer, failure

NAMES = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "\u00c4pfel, rot.jpg"]
TRAIN, TEST = [("a.jpg", 0), ("b.jpg", 0), ("\u00c4pfel, rot.jpg", 1)], [("c.jpg", 2), ("d.jpg", 2)]
HEAD = "path,label,split\n"
ROWS = HEAD + "img/a.jpg,x,train\nimg/b.jpg,x,train\nimg/c.jpg,y,test\nimg/d.jpg,y,test\n"


@pytest.fixture
def place(tmp_path):
    """A folder with img/*.jpg, which are not opened here, and without a list."""
    (tmp_path / "img").mkdir()
    for name in NAMES:
        (tmp_path / "img" / name).write_bytes(b"")
    return tmp_path


def written(place, content):
    (place / "list.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(place / "list.csv")


def both(path):
    return ListMetric(path, train=True), ListMetric(path)


def found(images):
    """Return [(path below the folder of the list, label)]."""
    return [(os.path.relpath(path, images.directory).replace(os.sep, "/"), label) for path, label in images.samples]


def in_img(pairs):
    return [("img/" + name, label) for name, label in pairs]


EXCEL = ("Path;Label;Split;note\r\nimg/a.jpg;apple;train;\r\nimg/b.jpg;apple;train;\r\n"
         "img/\u00c4pfel, rot.jpg;b\u00e4r;train;new\r\n;;;\r\nimg/c.jpg;cat;test;\r\nimg/d.jpg;cat;test;\r\n")
PROGRAMS = {
    "Excel, CSV UTF-8": EXCEL.encode("utf-8-sig"),
    "Excel, that names its delimiter": ("sep=;\r\n" + EXCEL).encode("utf-8-sig"),
    "Excel, Unicode text": EXCEL.replace(";", "\t").encode("utf-16"),
    "Excel on a Mac of old": EXCEL.replace("\r\n", "\r").encode("utf-8-sig"),
    "LibreOffice": 'path,label,split\nimg/a.jpg,apple,train\nimg/b.jpg,apple,train\n"img/\u00c4pfel, rot.jpg",'
                   'b\u00e4r,train\nimg/c.jpg,cat,test\nimg/d.jpg,cat,test\n',
    "Google Sheets": 'path,label,split\r\nimg/a.jpg,apple,train\r\nimg/b.jpg,apple,train\r\n"img/\u00c4pfel, rot.jpg",'
                     'b\u00e4r,train\r\nimg/c.jpg,cat,test\r\nimg/d.jpg,cat,test',
    "pandas, with its index": ',label,path,split\n0,apple,img/a.jpg,train\n1,apple,img/b.jpg,train\n2,b\u00e4r,'
                              '"img/\u00c4pfel, rot.jpg",train\n3,cat,img/c.jpg,test\n4,cat,img/d.jpg,test\n',
    "R": '"","path","label","split"\n"1","img/a.jpg","apple","train"\n"2","img/b.jpg","apple","train"\n"3",'
         '"img/\u00c4pfel, rot.jpg","b\u00e4r","train"\n"4","img/c.jpg","cat","test"\n"5","img/d.jpg","cat","test"\n',
    "by hand": '\n\nSPLIT | Label | path\n train | apple | img/a.jpg\n\nTrain|apple|./img/b.jpg  \nTRAIN| b\u00e4r | '
               '"img/\u00c4pfel, rot.jpg"\n  \ntest|cat|img\\c.jpg\ntest|cat|img//d.jpg\n',
}


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_lists_as_programs_write_them(place, program):
    content = PROGRAMS[program]
    train, test = both(written(place, content))
    assert found(train) == in_img(TRAIN) and found(test) == in_img(TEST)
    assert train.class_to_idx == {"apple": 0, "b\u00e4r": 1} and test.class_to_idx == {"cat": 2}
    assert train.layout == str(place / "list.csv") + ": a list of pictures: 3 train, 2 test"
    assert test.gallery is None and all(os.path.isfile(path) for path, _ in train.samples + test.samples)


@pytest.mark.parametrize("named", [True, False], ids=["train and test", "halves"])
def test_the_same_pictures_as_class_folders(pictures, tmp_path, named):
    root = tmp_path / "set"
    if named:
        for split, numbers in (("train", "0123"), ("test", "45")):
            for number in numbers:
                shutil.copytree(str(pictures / ("class0" + number)), str(root / split / number))
    else:
        for number, name in enumerate(["1", "10", "2", "b", "C", "-3", "\u00e4"]):  # the middle one trains, too
            shutil.copytree(str(pictures / "class0{}".format(number % 6)), str(root / name))
    lines = ["path,label,split" if named else "path,label"]
    for path in sorted(root.glob("**/*.png"), reverse=True):
        words = path.relative_to(root).parts
        lines.append(",".join(["/".join(words), words[-2]] + list(words[:1]) * named))
    for of_list, split in zip(both(written(root, "\n".join(lines))), (True, False)):
        folder = FolderMetric(str(root), train=split)
        assert of_list.class_to_idx == folder.class_to_idx and of_list.classes == folder.classes
        assert sorted(of_list.samples) == sorted(folder.samples) and len(folder) > 10
        assert named or "the first 4 of 7 labels train, the others test" in of_list.layout


def test_queries_and_a_gallery(place):
    path = written(place, HEAD + "img/a.jpg,x,query\nimg/b.jpg,x,gallery\nimg/c.jpg,w,gallery\nimg/d.jpg,y,train\n"
                   "img/nowhere.jpg,,val\n")
    train, test = both(path)
    assert found(train) == [("img/d.jpg", 0)] and found(test) == [("img/a.jpg", 2)]
    assert found(test.gallery) == [("img/b.jpg", 2), ("img/c.jpg", 1)]
    assert test.gallery.class_to_idx == test.class_to_idx == {"w": 1, "x": 2} and train.gallery is None
    assert test.layout.endswith("1 train, 1 query, 2 gallery; not used: 1 val")
    assert not passed_over([train, test, test.gallery])
    (place / "list.csv").write_text(HEAD + "img/a.jpg,x,query\nimg/b.jpg,x,gallery\n")
    with pytest.raises(DatasetError, match="rows of query and gallery but none of train, .* --mode eval can measure"):
        load_splits("list", path)
    assert load_splits("list", path, test_alone=True)["test"].gallery.targets == [0]


def test_odd_rows_that_are_meant_well(place):
    where = str(place / "img" / "e.jpg")
    path = written(place, ROWS + "{},z,test\nimg\\a.jpg,x,train\nimg/../img/b.jpg,x,train,,\n".format(where))
    train, test = both(path)
    assert found(train) == in_img([("a.jpg", 0), ("b.jpg", 0)]) and test.samples[-1] == (where, 2)
    assert test.layout.endswith("2 train, 3 test; rows that repeat an earlier one: 2")
    if os.sep == "/":  # a backslash may be part of a name there
        (place / "img\\a.jpg").write_bytes(b"")
        assert found(ListMetric(path, train=True)) == in_img([("a.jpg", 0), ("b.jpg", 0)]) + [("img\\a.jpg", 0)]


@pytest.mark.parametrize("content, expected", [
    ("", r"line 1: there is no column path and no column label; .* it has none$"),
    ("\n\nimg/a.jpg,x,train\n", r"line 3: there is no column path .* it has img/a.jpg, x, train$"),
    ("image;label;split\n", r"line 1: there is no column path; .* it has image, label, split$"),
    ("path,label,Label\n", "line 1: there are two columns label"),
    (HEAD, "list.csv: it names no pictures"),
    (HEAD + "img/a.jpg,x,val\n", "it names no pictures; not used: 1 val"),
    (ROWS + "\n\nimg/e.jpg,x,holdout\n", "line 8: the split 'holdout' is not known; known are train, test, query, gal"),
    (ROWS + "img/e.jpg,x\n", "line 6: it has no split"),
    (ROWS + "img/e.jpg, ,train\n", "line 6: it has no label"),
    (ROWS.replace("\n", "\r\n") + '"",x,train\r\n', "line 6: it has no path"),
    (ROWS + ".//img/a.jpg,x,test\n", "line 6: the picture .//img/a.jpg is in line 2 already, with the split train"),
    (ROWS + "img\\c.jpg,x,test\n", r"line 6: the picture img\\c.jpg is in line 4 already, with the label y;"),
    (ROWS + "img/q.jpg,x,train\nimg/e.jpg,y,test\nno/a.jpg,x,test\n",
     "line 6: there is no picture img/q.jpg; 2 of 7 pictures of the list are not there"),
    (ROWS + "img/\u00c4pfel, rot.jpg,x,train\n", "line 6: it has 4 values, but the first line names 3 columns"),
    ('"path","label","split"\n"1","img/a.jpg","x","train"\n', "line 2: it has 4 values"),
    (ROWS + '"img/e".jpg,x,train\n', "line 6: its quotes can't be read"),
    (HEAD + '"img/a\n.jpg",x,val\n"img/e.jpg,x,train\n' + "img/e.jpg,y,train\n", "line 4: its quotes can't be read"),
    (ROWS.replace(",train", ",val"), None),
    (ROWS.replace(",test", ",validation"), "it has rows of train; what is measured .* not used: 2 validation"),
    (ROWS.replace(",test", ",query"), "it has rows of query and train; what is measured must be either the rows of te"),
    (ROWS + "img/e.jpg,y,gallery\n", "it has rows of gallery, test and train; what is measured"),
    (ROWS + "img/e.jpg,y,gallery\nimg/\u00c4pfel.jpg,y,query\n", "there is no picture img/\u00c4pfel.jpg; 1 of 6"),
    ("path,label\nimg/a.jpg,x\nimg/b.jpg,x\n", r"all its pictures have one label \(x\), and there is no column split"),
    ("path,label,split\nimg/a.jpg,x,train\nimg/\u00c4pfel, rot.jpg,x,train\n".encode("cp1252"),
     "line 3: no text in UTF-8; let the spreadsheet program save the list as CSV"),
    (ROWS.encode("utf-16-le"), "line 1: no text in UTF-8"),
    (b"PK\x03\x04\x14\x00\x06\x00\x08\x00\x00\x00!\x00\xdf\xa4", "line 1: no text in UTF-8"),
])
def test_what_is_refused_is_one_line(place, content, expected):
    path = written(place, content)
    if expected is None:  # its rows of test are measured
        assert found(ListMetric(path)) == in_img([("c.jpg", 0), ("d.jpg", 0)])
        return
    for train in (True, False):
        with pytest.raises(DatasetError, match=expected) as error:
            ListMetric(path, train=train)
        assert str(error.value).startswith(path + ": ") and "\n" not in str(error.value)


def test_folders_are_listed_once_and_files_not_one_by_one(place, monkeypatch):
    listed, listdir = [], os.listdir
    monkeypatch.setattr(picturelist.os, "listdir", lambda path: listed.append(path) or listdir(path))
    monkeypatch.setattr(picturelist.os.path, "isfile", lambda path: path.endswith("list.csv"))
    assert len(ListMetric(written(place, ROWS), train=True)) == 2
    assert listed == [os.path.join(str(place), "img", "")]


@pytest.mark.parametrize("path, expected", [
    ("", "this is a directory; --dataset list takes a file, the list of the pictures: --data .*my.csv$"),
    ("img", "this is a directory; .*LIST.csv$"), ("none.csv", "no such file; --data names the list")])
def test_data_that_is_no_list(place, path, expected):
    (place / "my.csv").write_text(ROWS)
    with pytest.raises(DatasetError, match=expected):
        ListMetric(str(place / path))


@pytest.mark.parametrize("dataset", ["folder", "cub200", "synthetic"])
def test_a_list_for_other_data_sets(place, capsys, dataset):
    argv = options_for(written(place, ROWS), "--dataset", dataset)
    line = failure(capsys, run.main, argv)
    assert "this is a file, and --dataset {} takes a directory; for a list".format(dataset) in line


def test_a_run_of_a_list(own_pictures, tmp_path, capsys, monkeypatch):
    """It trains, is measured by its directory alone, goes on from elsewhere, and not with other pictures; nothing
    appears beside the list, and what else is there is not looked at."""
    paths = [path.relative_to(tmp_path).as_posix() for path in sorted(own_pictures.glob("*/*.png"))]
    rows = ["{},{}".format(path, path.split("/")[1]) for path in paths]
    written(tmp_path, "\n".join(["path,label"] + rows))
    (tmp_path / "loose.jpg").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    argv = options_for("list.csv", "--dataset", "list", "--epochs", "1", "--save_dir", "run", "--cache", "decoded")
    code, out, err = answer(capsys, run.main, argv)
    assert code == 0 and "Training Set: 18\nNumber of images in Test set: 18" in out and "Passed over" not in out, err
    assert "Pictures: list.csv: a list of pictures: 18 train, 18 test; it has no column split" in out
    monkeypatch.chdir("/")
    code, _, err = answer(capsys, run.main, ["--mode", "eval", "--load", tmp_path / "run" / "best.pth"])
    assert code == 0, err
    resume = ["--resume", "--save_dir", tmp_path / "run", "--workers", "0", "--epochs", "2"]
    written(tmp_path, "\n".join(["path,label"] + rows[1:]))
    code, _, err = answer(capsys, run.main, resume)
    assert code == 2 and "the pictures of the training set are not those that the run" in err
    written(tmp_path, "label;path\r\n" + "\r\n".join(";".join(row.split(",")[::-1]) for row in rows))
    code, _, err = answer(capsys, run.main, resume + ["--cache", "auto"])
    assert code == 0, err
    assert sorted(os.listdir(str(tmp_path))) == ["decoded", "list.csv", "loose.jpg", "own", "run"]
