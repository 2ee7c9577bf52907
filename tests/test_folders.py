"""Data sets of class folders: where they are looked for, which files are taken, how the folder is read."""
import io
import os
import shutil

import pytest
from PIL import Image

import run
from conftest import make_pictures, options_for
from dataset import CUB2011Metric, DatasetError, FolderMetric, ImageSet, cache, cub200, load_splits, passed_over
from model.compat import import_torchvision
from results import answer


def names(images):
    return [path.replace("\\", "/").split("/")[-2:] for path, _ in images.samples]


def test_folder_halves(tmp_path):
    make_pictures(tmp_path, classes=5, pictures=2)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "class00" / "notes.txt").write_text("no picture")
    train, test = FolderMetric(str(tmp_path), train=True), FolderMetric(str(tmp_path))
    assert train.classes == ["class00", "class01", "class02"] and test.classes == ["class03", "class04"]
    assert train.class_to_idx == {"class00": 0, "class01": 1, "class02": 2}
    assert test.class_to_idx == {"class03": 3, "class04": 4} and test.targets == [3, 3, 4, 4]
    assert names(train)[:3] == [["class00", "00.png"], ["class00", "01.png"], ["class01", "00.png"]]
    assert train.imgs is train.samples and len(train) == 6


def test_folder_with_named_splits(tmp_path):
    make_pictures(tmp_path / "train", classes=2, pictures=2)
    make_pictures(tmp_path / "test", classes=3, pictures=2)
    train, test = FolderMetric(str(tmp_path), train=True), FolderMetric(str(tmp_path))
    assert len(train) == 4 and len(test) == 6
    assert sorted(set(test.targets)) == [2, 3, 4]


def _file_instead(path):
    path.write_text("")


def _linked(target, *name):
    """Return a function that makes a data set with a link in it; "" stands for the link itself."""
    def make(path):
        make_pictures(path / "train")
        make_pictures(path / "test", seed=1)
        path = path.joinpath(*name)
        path.symlink_to(target or path.name)
    return make


@pytest.mark.parametrize("make, expected", [
    (lambda path: None, "no such folder"),
    (_file_instead, "no such folder"),
    (lambda path: path.mkdir(), "no class folders"),
    (lambda path: make_pictures(path, classes=1), "only one class folder"),
    (lambda path: make_pictures(path / "train"), "there is no train/ and test/"),
    (lambda path: [make_pictures(path), (path / "class99").mkdir()], "class99: the class folder holds no picture"),
    (lambda path: [make_pictures(path), (path / "loop").symlink_to("loop")], "set/loop: this link .*Too many levels"),
    (lambda path: [make_pictures(path), (path / "line\nfeed").symlink_to("gone")], r"set/line\\nfeed: this link"),
    (_linked("", "test", "loop"), "set/test/loop: this link .*Too many levels"),
    (_linked("gone", "test", "class99"), "set/test/class99: this link .*No such file"),
    (_linked("gone", "test", "001.Laysan_Albatross"), "set/test/001.Laysan_Albatross: this link"),
    (_linked("class00/00.png/x", "test", "class99"), "set/test/class99: this link .*Not a directory"),
])
def test_folder_that_does_not_fit(tmp_path, make, expected):
    make(tmp_path / "set")
    with pytest.raises(DatasetError, match=expected):
        FolderMetric(str(tmp_path / "set"), train=False)


def test_links_that_are_no_class_folders_are_left_alone(tmp_path):
    make_pictures(tmp_path / "set", classes=4, pictures=2)
    expected = FolderMetric(str(tmp_path / "set"), train=True).class_to_idx
    for name, target in (("x.jpg", "gone"), ("y.WEBP", "y.WEBP"), ("notes.txt", "gone"), ("old.tar.gz", "old.tar.gz"),
                         (".hidden", "gone"), (".loop", ".loop"), ("README", "x.txt")):
        (tmp_path / "set" / name).symlink_to(target)
    (tmp_path / "set" / "x.txt").write_text("a file that is there")
    assert FolderMetric(str(tmp_path / "set"), train=True).class_to_idx == expected
    make_pictures(tmp_path / "elsewhere", classes=1, pictures=2)
    (tmp_path / "set" / "class99").symlink_to(tmp_path / "elsewhere" / "class00")
    assert FolderMetric(str(tmp_path / "set")).classes == ["class03", "class99"]


def _deepen(root, *names):
    """Move the pictures of a class folder into folders below it."""
    folder = root / "class00"
    for path in sorted(folder.glob("*.png")):
        below = folder.joinpath(*names[int(path.stem) % len(names)].split("/"))
        below.mkdir(parents=True, exist_ok=True)
        path.rename(below / path.name)
    return folder


def test_pictures_at_any_depth_are_those_of_imagefolder(own_pictures, tmp_path):
    folder = _deepen(own_pictures, "b", "a b", "a/x", ".")
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (8, 8)).save(str(tmp_path / "elsewhere" / "linked.JPEG"))
    (folder / "c").symlink_to(tmp_path / "elsewhere")
    everything = import_torchvision().datasets.ImageFolder(str(own_pictures)).samples
    expected = [path for path, label in everything if label < 3]
    found = [path for path, _ in FolderMetric(str(own_pictures), train=True).samples]
    assert found == expected and len(found) == 19
    (folder / "b" / "back").symlink_to(folder)  # ImageFolder would go round for ever
    (folder / "c" / "on").symlink_to(own_pictures / "class05")
    (folder / "c" / "up").symlink_to(own_pictures)  # all classes would be in this one
    deeper = [path for path, _ in FolderMetric(str(own_pictures), train=True).samples]
    assert len(deeper) == 25 and set(expected) < set(deeper)


def test_what_is_passed_over_is_told(own_pictures, capsys):
    folder = _deepen(own_pictures, "deep/deeper")
    for name in ("notes.txt", "more.TXT", ".DS_Store", "deep/Thumbs.db", "deep/README", "../loose.jpg"):
        (folder / name).write_bytes(b"x")
    (folder / ".thumbnails").mkdir()
    Image.new("RGB", (8, 8)).save(str(folder / ".thumbnails" / "00.png"))
    sets = load_splits("folder", str(own_pictures)).values()
    assert passed_over(sets) == {".txt": 2, "hidden": 2, ".db": 1, "without an ending": 1, ".jpg in no class folder": 1}
    code, out, _ = answer(capsys, run.main, options_for(own_pictures, "--epochs", "1"))
    assert code == 0 and "Passed over: 7 files there that are not taken for pictures: 2 hidden, 2 .txt, 1 " in out


def test_folders_that_systems_leave_are_hidden(own_pictures):
    """A zip file from a Mac, a disk of Windows, and a Synology, which lays thumbnails below each folder of pictures."""
    for names in (["__MACOSX", "class00"], ["$RECYCLE.BIN"], ["class00", "@eaDir", "00.png"]):
        junk = own_pictures.joinpath(*names)
        junk.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(str(junk / "SYNOPHOTO_THUMB_M.png"))
        (junk / "._00.png").write_bytes(b"\0\5\26\7")
    for path in (own_pictures, own_pictures / "class00"):
        for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "._00.png"):
            (path / name).write_bytes(b"x")
    splits = load_splits("folder", str(own_pictures))
    assert [len(images) for images in splits.values()] == [18, 18]
    assert splits["train"].layout.endswith("6 class folders; the first 3 train, the others test")
    assert passed_over(splits.values()) == {"hidden": 7, ".db": 2, ".ini": 2}


@pytest.mark.parametrize("ending", [".jfif", ".JPE", ".tga", ".jp2"])
def test_endings_that_pillow_knows_are_pictures(own_pictures, ending):
    kind = Image.registered_extensions()[ending.lower()]
    if kind not in Image.SAVE:
        pytest.skip("this Pillow can't write " + kind)
    Image.new("RGB", (8, 8)).save(str(own_pictures / "class00" / ("x" + ending)), kind)
    assert len(FolderMetric(str(own_pictures), train=True)) == 19


def test_classes_called_train_and_test(own_pictures, capsys):
    (own_pictures / "class05").rename(own_pictures / "train")
    (own_pictures / "class04").rename(own_pictures / "test")
    (own_pictures / "train" / "wagons").mkdir()
    train, test = (FolderMetric(str(own_pictures), train=split) for split in (True, False))
    assert train.classes + test.classes == ["class00", "class01", "class02", "class03", "test", "train"]
    assert "6 class folders; the first 3 train, the others test; among the classes: test, train" in train.layout
    code, out, _ = answer(capsys, run.main, options_for(own_pictures, "--epochs", "1"))
    assert code == 0 and "Pictures: " + train.layout in out


def test_a_class_called_train_with_pictures_deeper(own_pictures):
    _deepen(own_pictures, "day1", "day2").rename(own_pictures / "train")
    assert "train" in FolderMetric(str(own_pictures)).classes
    assert "deeper" not in FolderMetric(str(own_pictures)).layout


def test_parts_of_a_data_set_are_told(tmp_path):
    for number in range(4):
        make_pictures(tmp_path / "part{}".format(number), classes=3, pictures=2)
    assert FolderMetric(str(tmp_path)).layout.endswith("; none of them holds pictures itself, they lie deeper")


@pytest.mark.parametrize("train", [True, False])
def test_a_split_or_a_class_is_not_guessed(own_pictures, train):
    """All pictures lie deeper, and one folder is called train or test."""
    for number in range(5):
        (own_pictures / "class0{}".format(number)).rename(own_pictures / "aside")
        (own_pictures / "class0{}".format(number)).mkdir()
        (own_pictures / "aside").rename(own_pictures / "class0{}".format(number) / "day1")
    (own_pictures / "class05").rename(own_pictures / "aside")
    for name in ("day1", "day2"):
        shutil.copytree(str(own_pictures / "aside"), str(own_pictures / ("train" if train else "test") / name))
    shutil.rmtree(str(own_pictures / "aside"))
    with pytest.raises(DatasetError, match="or, if it is a class, put its pictures right into it"):
        FolderMetric(str(own_pictures))


def test_splits_of_other_names_are_no_classes(tmp_path):
    make_pictures(tmp_path / "train", classes=3, pictures=2)
    make_pictures(tmp_path / "valid", classes=3, pictures=2)
    (tmp_path / "test").mkdir()
    Image.new("RGB", (8, 8)).save(str(tmp_path / "test" / "loose.png"))
    with pytest.raises(DatasetError, match="train/ holds its pictures in folders, as a split holds classes"):
        FolderMetric(str(tmp_path), train=True)
    shutil.rmtree(str(tmp_path / "test"))
    (tmp_path / "train").rename(tmp_path / "Train")
    (tmp_path / "valid").rename(tmp_path / "TEST")
    train = FolderMetric(str(tmp_path), train=True)
    assert train.directory == str(tmp_path / "Train") and "Train/ and TEST/, class folders in each" in train.layout


def test_named_splits_beside_other_folders(tmp_path):
    make_pictures(tmp_path / "train")
    make_pictures(tmp_path / "test", seed=1)
    make_pictures(tmp_path / "val", seed=2)
    for number in range(12):
        Image.new("RGB", (8, 8)).save(str(tmp_path / "train" / "loose{}.png".format(number)))
    train = FolderMetric(str(tmp_path), train=True)
    assert train.layout == "{}: train/ and test/, class folders in each; not used: val/".format(tmp_path)
    assert train.directory == str(tmp_path / "train") and len(train) == 36


def test_a_test_set_alone_can_be_measured(pictures, teacher, tmp_path, capsys):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "test").symlink_to(pictures)
    (tmp_path / "set" / "val").symlink_to(pictures)
    argv = ["--mode", "eval", "--load", teacher + "/best.pth", "--data", str(tmp_path / "set")]
    code, out, _ = answer(capsys, run.main, argv)
    assert code == 0 and "Number of images in Test set: 36" in out and "Training Set: 0" in out
    assert [line.split()[-1] for line in out.splitlines() if "Recall@" in line] == ["test"]
    code, _, err = answer(capsys, run.main, options_for(tmp_path / "set"))
    assert code == 2 and "it has test/ but no train/, so there is nothing to train on" in err


def test_classes_of_one_picture_can_be_left_out(own_pictures, tmp_path, capsys):
    for name in ("class00", "class05"):
        for path in sorted((own_pictures / name).iterdir())[1:]:
            path.unlink()
    (own_pictures / "class01" / "00.png").write_bytes(b"no picture")
    for path in sorted((own_pictures / "class01").iterdir())[2:]:
        path.unlink()
    argv = options_for(own_pictures, "--batch", "4", "--epochs", "1", "--save_dir", tmp_path / "run")
    code, _, err = answer(capsys, run.main, argv)
    assert code == 2 and "leave such classes out with --skip_single" in err
    # One of the two pictures of class01 is broken, so that the other is alone: a single class is left to train on.
    code, _, err = answer(capsys, run.main, argv + ["--skip_single", "--skip_broken"])
    assert code == 2 and "the training set has only one class (class02)" in err
    Image.new("RGB", (8, 8)).save(str(own_pictures / "class01" / "00.png"))
    runs = []
    for name, where in (("a", "auto"), ("b", "off")):
        more = ["--skip_single", "--cache", where, "--save_dir", tmp_path / name]
        code, out, _ = answer(capsys, run.main, argv + more)
        assert code == 0 and "Number of images in Training Set: 8\nNumber of images in Test set: 12" in out
        runs.append([(tmp_path / name / file).read_bytes() for file in ("last.pth", "log.jsonl", "skipped.txt")])
    assert runs[0] == runs[1]
    assert runs[0][2].decode().splitlines() == ["{}: the only picture of its class".format(path) for path in (
        own_pictures / "class00" / "00.png", own_pictures / "class05" / "00.png")]


def test_a_truncated_picture_is_taken_if_asked(own_pictures, tmp_path, capsys):
    path = str(own_pictures / "class00" / "x.jpg")
    Image.new("RGB", (64, 64), (200, 30, 60)).save(path)
    os.truncate(path, os.path.getsize(path) - 2)
    argv = options_for(own_pictures, "--epochs", "1")
    code, _, err = answer(capsys, run.main, argv)
    assert code == 2 and path in err and "--truncated ok" in err and "--skip_broken" in err
    for where in ("auto", "off"):
        argv = options_for(own_pictures, "--epochs", "1", "--workers", "1", "--cache", where, "--truncated", "ok",
                           "--save_dir", tmp_path / where)
        code, out, _ = answer(capsys, run.main, argv)
        assert code == 0 and "Number of images in Training Set: 19" in out
    assert (tmp_path / "auto" / "last.pth").read_bytes() == (tmp_path / "off" / "last.pth").read_bytes()
    argv = ["--mode", "eval", "--load", str(tmp_path / "off" / "best.pth")]
    assert answer(capsys, run.main, argv)[0] == 0  # as it was trained


def test_a_folder_too_high_is_named(pictures, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "inner").symlink_to(pictures)
    with pytest.raises(DatasetError, match="only one class folder.*give --data .*set/inner"):
        FolderMetric(str(tmp_path / "set"))


def test_the_cache_leaves_class_folders_alone(own_pictures, tmp_path, capsys):
    assert answer(capsys, run.main, options_for(own_pictures, "--epochs", "1"))[0] == 0
    assert sorted(os.listdir(str(own_pictures))) == ["class0{}".format(number) for number in range(6)]
    (tmp_path / "splits").mkdir()
    for split in ("train", "test"):
        (tmp_path / "splits" / split).symlink_to(own_pictures)
    code, out, _ = answer(capsys, run.main, options_for(tmp_path / "splits", "--epochs", "1"))
    assert code == 0 and "GB in {}".format(tmp_path / "splits" / cache.FOLDER) in out


def test_fingerprint_tells_pictures_apart(own_pictures, tmp_path):
    def fingerprint(root=own_pictures, checksums=range(18)):
        return FolderMetric(str(root), train=True).fingerprint(checksums)

    images, original = FolderMetric(str(own_pictures), train=True), fingerprint()
    relabelled = ImageSet([(path, label + 1) for path, label in images.samples], {}, directory=images.directory)
    assert relabelled.fingerprint(range(18)) != original
    assert fingerprint(checksums=[1] + list(range(1, 18))) != original
    (own_pictures / "class00" / "00.png").rename(own_pictures / "class00" / "000.png")
    assert fingerprint() != original
    (own_pictures / "class00" / "000.png").rename(own_pictures / "class00" / "00.png")
    os.rename(str(own_pictures), str(tmp_path / "moved"))
    assert fingerprint(tmp_path / "moved") == original


def _fake_cub(root, counts):
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "JPEG")
    for number, count in enumerate(counts, 1):
        name = CUB2011Metric.FIRST_CLASS if number == 1 else "{:03d}.Bird".format(number)
        folder = root / "CUB_200_2011" / "images" / name
        folder.mkdir(parents=True)
        for index in range(count):
            (folder / "{:04d}.jpg".format(index)).write_bytes(picture.getvalue())


def test_cub200_with_other_classes_is_refused(tmp_path):
    _fake_cub(tmp_path, [1] * 224)
    with pytest.raises(DatasetError, match="224 class folders instead of 200"):
        CUB2011Metric(str(tmp_path))


def test_cub200_splits(tmp_path, monkeypatch):
    assert sum(CUB2011Metric.PICTURES.values()) == 11788
    monkeypatch.setattr(CUB2011Metric, "PICTURES", {True: 164, False: 124})
    _fake_cub(tmp_path, [2] * 64 + [1] * 136)
    train = CUB2011Metric(str(tmp_path), train=True)
    assert len(train) == 164 and len(train.classes) == 100 and set(train.targets) == set(range(100))
    with pytest.raises(DatasetError, match="100 test pictures instead of 124"):
        CUB2011Metric(str(tmp_path))


def test_cub200_missing_says_how_to_get_it(tmp_path):
    with pytest.raises(DatasetError, match="--download.*--dataset synthetic"):
        CUB2011Metric(str(tmp_path))


@pytest.mark.parametrize("place, root", [
    ("CUB_200_2011/CUB_200_2011", "."), ("CUB_200_2011", "CUB_200_2011"), ("CUB_200_2011", "CUB_200_2011/images"),
    ("CUB_200_2011", "renamed"), ("CUB_200_2011", "renamed/images")])
def test_cub200_is_found_where_it_was_unpacked(tmp_path, monkeypatch, place, root):
    monkeypatch.setattr(CUB2011Metric, "PICTURES", {True: 100, False: 100})
    monkeypatch.setattr(cub200, "fetch_archive", lambda *args: pytest.fail("it is there"))
    _fake_cub(tmp_path.joinpath(*place.split("/")).parent, [1] * 200)
    if "renamed" in root:
        (tmp_path / place).rename(tmp_path / "renamed")
        place = "renamed"
    images = CUB2011Metric(str(tmp_path / root), train=True, download=True)
    assert len(images) == 100 and os.path.samefile(images.directory, str(tmp_path.joinpath(place, "images")))
    first = place.split("/")[0]
    (tmp_path / "disk").mkdir()
    (tmp_path / first).rename(tmp_path / "disk" / "birds")
    (tmp_path / first).symlink_to(tmp_path / "disk" / "birds")
    assert len(CUB2011Metric(str(tmp_path / root), train=True)) == 100
