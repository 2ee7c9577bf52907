"""Archives from a server that is unkind: nothing lands outside, and no half data set stays."""
import hashlib
import io
import stat
import tarfile
import types
import zipfile

import pytest

from dataset import DatasetError, archive, download


CENTRAL = b"PK\1\2\x14\x03\x14\0"  # a zip says twice what its members are; this begins the second time


def make_archive(path, members, mode="w:gz"):
    with tarfile.open(str(path), mode) as tar:
        for member, content in members:
            if isinstance(member, str):
                member = tarfile.TarInfo(member)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def make_zip(path, members):
    with zipfile.ZipFile(str(path), "w", zipfile.ZIP_DEFLATED) as file:
        for member, content in members:
            file.writestr(member, content)
    return path


def zip_member(name, kind):
    member = zipfile.ZipInfo(name)
    member.create_system, member.external_attr = 3, (kind | 0o644) << 16
    return member


def special(name, kind, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize("member", [
    "../outside", "/tmp/outside-of-it", "SET/../../outside", special("SET/link", tarfile.SYMTYPE, "/etc"),
    special("SET/hard", tarfile.LNKTYPE, "SET/fine"), special("SET/device", tarfile.CHRTYPE),
], ids=["parent", "absolute", "parent inside", "symbolic link", "hard link", "device"])
def test_hostile_archive_is_refused(tmp_path, member):
    path = make_archive(tmp_path / "hostile.tgz", [("SET/fine", b"x"), (member, b"")])
    (tmp_path / "in").mkdir()
    with pytest.raises(DatasetError, match="refused"):
        archive.unpack(str(path), str(tmp_path / "in"))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["hostile.tgz", "in"]


def _truncated(path, archive):
    path.write_bytes(archive[:len(archive) // 2])


@pytest.mark.parametrize("spoil, expected", [
    (_truncated, "damaged"),
    (lambda path, archive: path.write_bytes(b"<html>no</html>"), "damaged"),
    (lambda path, archive: path.write_bytes(b""), "damaged"),
    (lambda path, archive: make_archive(path, [("ELSE/a", b"1")]), "no folder SET"),
    (lambda path, archive: make_archive(path, [("SET", b"1")]), "no folder SET"),
    (lambda path, archive: make_archive(path, [("SET/a", b"1"), ("SET/a/b", b"2")]), "can't be fetched into"),
], ids=["truncated", "web page", "empty", "another folder", "file for folder", "file as folder"])
def test_broken_archive_leaves_no_half_data_set(tmp_path, spoil, expected):
    path = tmp_path / "set.tgz"
    spoil(path, make_archive(tmp_path / "whole.tgz", [("SET/a", b"x" * 5000)]).read_bytes())
    (tmp_path / "whole.tgz").unlink()
    content = path.read_bytes()
    with pytest.raises(DatasetError, match=expected):
        download.fetch_archive("http://127.0.0.1:9/set.tgz", hashlib.md5(content).hexdigest(), str(tmp_path), "SET")
    assert [entry.name for entry in tmp_path.iterdir()] == ["set.tgz"] and path.read_bytes() == content


@pytest.mark.parametrize("member", [
    "../outside", "/tmp/outside-of-it", "SET/../../outside", zip_member("SET/link", stat.S_IFLNK),
    zip_member("SET/device", stat.S_IFCHR), zip_member("SET/pipe", stat.S_IFIFO),
], ids=["parent", "absolute", "parent inside", "symbolic link", "device", "pipe"])
def test_hostile_zip_is_refused(tmp_path, member):
    path = make_zip(tmp_path / "hostile.zip", [("SET/fine", b"x"), (member, b"/etc")])
    (tmp_path / "in").mkdir()
    with pytest.raises(DatasetError, match="link or would land outside; the archive is refused"):
        archive.unpack(str(path), str(tmp_path / "in"))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["hostile.zip", "in"]


def _fetched(path, expected):
    """See that a damaged set.zip leaves no data set and nothing beside it."""
    content = path.read_bytes()
    with pytest.raises(DatasetError, match=expected) as error:
        download.fetch_archive("http://127.0.0.1:9/set.zip", hashlib.md5(content).hexdigest(), str(path.parent), "SET")
    assert "\n" not in str(error.value)
    assert [entry.name for entry in path.parent.iterdir()] == ["set.zip"] and path.read_bytes() == content


@pytest.mark.parametrize("spoil, expected", [
    (lambda content: content[:len(content) // 2], "damaged"),
    (lambda content: b"<html>no</html>", "damaged"),
    (lambda content: b"", "damaged"),
    (lambda content: content[:60] + b"?" + content[61:], "damaged"),  # one byte of a file
    (lambda content: content.replace(CENTRAL + b"\0\0", CENTRAL + b"\1\0"), "encrypted"),
    (lambda content: content.replace(CENTRAL + b"\0\0\x08", CENTRAL + b"\0\0\x63"), "damaged"),
], ids=["truncated", "web page", "empty", "a byte", "encrypted", "unknown compression"])
def test_broken_zip_leaves_no_half_data_set(tmp_path, spoil, expected):
    path = make_zip(tmp_path / "set.zip", [("SET/a", bytes(range(256))), ("SET/b", b"b")])
    whole = path.read_bytes()
    path.write_bytes(spoil(whole))
    assert path.read_bytes() != whole
    _fetched(path, expected)


def test_a_zip_that_would_fill_the_disk_is_refused(tmp_path, monkeypatch):
    path = make_zip(tmp_path / "set.zip", [("SET/zeros", bytes(10 ** 6))])
    _fetched(path, r"would be \d{3} times as large when unpacked")
    make_zip(path, [("SET/a", bytes(range(256)))])
    with monkeypatch.context() as full:
        full.setattr(archive.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=10))
        _fetched(path, "needs 0.00 GB to be unpacked")
    archive.unpack(str(path), str(tmp_path))
    assert (tmp_path / "SET" / "a").read_bytes() == bytes(range(256))
