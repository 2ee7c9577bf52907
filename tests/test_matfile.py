"""The reader of MATLAB files: what scipy writes and what MATLAB writes; a damaged file is one line."""
import base64
import random
import struct
import zlib

import pytest

from dataset import DatasetError, matfile
from matfiles import element, matrix, write_matfile

WANTED = ("fname", "class", "relative_im_path", "test")
# {"annotations": three structs, "class_names": three names}, as scipy.io.savemat 1.17 writes it, compressed.
BY_SCIPY = base64.b64decode(
    "TUFUTEFCIDUuMCBNQVQtZmlsZSBQbGF0Zm9ybTogcG9zaXgsIENyZWF0ZWQgb246IFdlZCBOb3YgMjUgMjI6MDk6MjUgMjAyNgAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABSU0PAAAAmQAAAHic42NgYFjAxMDABqQ5gBjIBANW"
    "KJ8RiJmhNDcQJ+bl5ZcklmTm5xVD1bHA1UkAcVJSfkV8hSFDck5iMUhFWl5ibiqQ5gNiCwaEPWxY7IFhEOCEisMASL8Bkn5OAvqZgCxG"
    "qD4HJH0sWPRxIukTgPINgMBQL6sgHcl+st2vEONAjvuZKHS/EdXcn0OW+5kpdL8xkvsBC/kZkw8AAAB/AAAAeJzjY2BgkGBkYGAD0hxA"
    "DGSCASsSnxlKcwNxck5icXF8XmJuajFYHR8QBzAg9LNg0S+FZK4AlO/oq+CempdalJij4FGam5tapBAcGqZgZGBgwAA314KAuaxo5oL4"
    "xbmJRSVQ/Q4E9HOh6Qf5zzmzpCj/8Oo8BWdjsDgANCkVSQ==")
NAMES = ["AM General Hummer SUV 2000", "smart", "Citro\u00ebn C3"]


def annotations(count):
    return [{"relative_im_path": "car_ims/{:06d}.jpg".format(number), "bbox_x1": number % 200, "class": number % 7 + 1,
             "test": number % 2} for number in range(count)]


def test_what_scipy_wrote_is_read(tmp_path):
    (tmp_path / "cars.mat").write_bytes(BY_SCIPY)
    assert matfile.read_matfile(str(tmp_path / "cars.mat"), WANTED) == {
        "annotations": [{"class": [number], "fname": "{:05d}.jpg".format(number)} for number in (1, 2, 3)],
        "class_names": NAMES}


@pytest.mark.parametrize("compressed", [False, True])
def test_whatever_scipy_writes_is_read(tmp_path, compressed):
    io, np = pytest.importorskip("scipy.io"), pytest.importorskip("numpy")
    rows = annotations(300)
    structs = np.zeros((1, 300), dtype=[(name, object) for name in rows[0]])
    structs[0] = [tuple(row.values()) for row in rows]
    names = np.empty((1, 3), object)
    names[0] = NAMES
    io.savemat(str(tmp_path / "cars.mat"), {"annotations": structs, "class_names": names, "empty": np.zeros((0, 0)),
                                            "numbers": np.array([[1.5, -2.0], [3.25, 1e300]])},
               do_compression=compressed)
    found = matfile.read_matfile(str(tmp_path / "cars.mat"), WANTED)
    assert found.pop("annotations") == [{name: value if isinstance(value, str) else [value] for name, value in
                                         row.items() if name in WANTED} for row in rows]
    assert found == {"class_names": NAMES, "empty": [], "numbers": [1.5, 3.25, -2.0, 1e300]}  # column by column


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_both_orders_of_bytes_are_read(tmp_path, compressed, order):
    rows = annotations(20)
    write_matfile(tmp_path / "cars.mat", {"annotations": rows, "class_names": NAMES, "n": 3}, compressed, order)
    assert matfile.read_matfile(str(tmp_path / "cars.mat"), WANTED) == {
        "annotations": [{name: value if isinstance(value, str) else [value] for name, value in row.items()
                         if name in WANTED} for row in rows], "class_names": NAMES, "n": [3]}


def refused(path, expected):
    with pytest.raises(DatasetError, match=expected) as error:
        matfile.read_matfile(str(path), WANTED)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


HEADER = BY_SCIPY[:128]
NESTED = matrix("<", "x")
for _ in range(50):
    NESTED = element("<", 14, element("<", 6, struct.pack("<II", 1, 0)) + element("<", 5, struct.pack("<ii", 1, 1))
                     + element("<", 1, b"") + NESTED)


def a_struct(count, fields, width=32):
    """A struct array that says that it has ``count`` elements, and ends there."""
    return element("<", 14, element("<", 6, struct.pack("<II", 2, 0)) + element("<", 5, struct.pack("<ii", 1, count))
                   + element("<", 1, b"annotations") + element("<", 5, struct.pack("<i", width))
                   + element("<", 1, b"".join(field.ljust(32, b"\0") for field in fields)))


@pytest.mark.parametrize("content, expected", [
    (b"", "another beginning"), (b"<html>" * 100, "another beginning"), (b"MATLAB 7.3 HDF5".ljust(512), "beginning"),
    (BY_SCIPY[:200], "cut off"), (BY_SCIPY[:300], "cut off"), (HEADER + b"\1", "unpack"),
    (HEADER + struct.pack("<II", 14, 2 ** 32 - 1), "cut off"),
    (HEADER + struct.pack("<II", 15, 8) + b"no zlib!", "Error"),
    (HEADER + element("<", 9, b"12345678"), "type 9 where a variable begins"),
    (HEADER + NESTED, "at depth 9"),
    (HEADER + a_struct(2 ** 31 - 1, []), "2147483647 elements in 0 bytes"), (HEADER + a_struct(-1, [b"a"]), "sizes"),
    (HEADER + a_struct(1, [b"a"], 0), "1 elements in 0 bytes"),
], ids=range(13))
def test_a_damaged_file_is_one_line(tmp_path, content, expected):
    (tmp_path / "cars.mat").write_bytes(content)
    refused(tmp_path / "cars.mat", expected)


def test_a_small_file_that_unpacks_to_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(matfile, "MOST_BYTES", 10 ** 6)
    for size, count in ((10 ** 7, 1), (4 * 10 ** 5, 3)):  # one variable, and several together
        variable = zlib.compress(element("<", 14, b"") + bytes(size))
        variable = struct.pack("<II", 15, len(variable)) + variable
        (tmp_path / "bomb.mat").write_bytes(HEADER + count * variable)
        refused(tmp_path / "bomb.mat", "more than 1000000 bytes")


def test_a_missing_file_is_one_line(tmp_path):
    refused(tmp_path / "cars.mat", "can't be read")


@pytest.mark.parametrize("compressed", [False, True])
def test_no_byte_can_make_it_fail_otherwise(tmp_path, compressed):
    write_matfile(tmp_path / "cars.mat", {"annotations": annotations(3), "class_names": NAMES}, compressed)
    content, rng, refusals = (tmp_path / "cars.mat").read_bytes(), random.Random(0), 0
    for _ in range(400):
        spoilt = bytearray(content)
        for _ in range(rng.choice([1, 1, 4])):
            spoilt[rng.randrange(124, len(spoilt))] = rng.randrange(256)
        (tmp_path / "cars.mat").write_bytes(spoilt)
        try:
            matfile.read_matfile(str(tmp_path / "cars.mat"), WANTED)
        except DatasetError:
            refusals += 1
    assert 100 < refusals
