"""Archives from a server that is unkind: nothing lands outside, and no half data set stays."""
import hashlib
import io
import tarfile

import pytest

from dataset import DatasetError, download


def make_archive(path, members, mode="w:gz"):
    with tarfile.open(str(path), mode) as tar:
        for member, content in members:
            if isinstance(member, str):
                member = tarfile.TarInfo(member)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def special(name, kind, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize("member", [
    "../outside", "/tmp/outside-of-it", "SET/../../outside", special("SET/link", tarfile.SYMTYPE, "/etc"),
    special("SET/hard", tarfile.LNKTYPE, "SET/fine"), special("SET/device", tarfile.CHRTYPE),
], ids=["parent", "absolute", "parent inside", "symbolic link", "hard link", "device"])
def test_hostile_archive_is_refused(tmp_path, member):
    archive = make_archive(tmp_path / "hostile.tgz", [("SET/fine", b"x"), (member, b"")])
    (tmp_path / "in").mkdir()
    with pytest.raises(DatasetError, match="refused"):
        download.unpack_tar(str(archive), str(tmp_path / "in"))
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
