"""Unpack a tar or zip archive that may be damaged or hostile: nothing lands outside, and no link or device is made."""
import contextlib
import os
import shutil
import stat
import tarfile
import zipfile
import zlib

from dataset.base import DatasetError

__all__ = ["unpack"]

# Pictures hardly get smaller in an archive. One that grows more than this many times is made to fill the disk.
MOST_GROWTH = 100


def unpack(archive, directory):
    """Unpack the regular files and folders of an archive, a zip if it is called so and else a tar, below ``directory``.

    Raises:
        DatasetError: a member would land outside, or is a link or a device; the archive is damaged or no archive; a zip
            is larger than the disk, or made to fill it.
    """
    base = os.path.realpath(directory)
    members = _zip_members if archive.lower().endswith(".zip") else _tar_members
    try:
        for name, kind, source in members(archive, base):
            target = os.path.realpath(os.path.join(base, name))
            if kind is None or os.path.commonpath([base, target]) != base:
                raise DatasetError("{}: {!r} in it is a link or would land outside; the archive is refused".format(
                    archive, name))
            if kind == "folder":
                os.makedirs(target, exist_ok=True)
                continue
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with contextlib.closing(source()) as content, open(target, "wb") as file:
                shutil.copyfileobj(content, file)
    except (tarfile.TarError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error,
            ValueError) as error:  # of a zip that is encrypted or of an unknown kind: RuntimeError, NotImplementedError
        raise DatasetError("{} can't be unpacked, it is damaged ({}); remove it and fetch it again".format(
            archive, error)) from None


def _tar_members(archive, directory):
    """Yield (name, "file", "folder" or None for anything else, function that opens it) of the members of a tar."""
    with tarfile.open(archive) as tar:
        for member in tar:
            kind = "file" if member.isfile() else "folder" if member.isdir() else None
            yield member.name, kind, lambda member=member: tar.extractfile(member)


def _zip_members(archive, directory):
    """The same of a zip, which says before how large it will be. Its files can't be longer than it says."""
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        size, free = sum(member.file_size for member in members), shutil.disk_usage(directory).free
        if size > MOST_GROWTH * os.path.getsize(archive):
            raise DatasetError("{} would be {} times as large when unpacked; the archive is refused".format(
                archive, size // os.path.getsize(archive)))
        if size > free:
            raise DatasetError("{} needs {:.2f} GB to be unpacked, and {:.2f} GB are free".format(
                archive, size / 1e9, free / 1e9))
        for member in members:
            # The upper half holds the mode that Unix gave it, and nothing if another system wrote the zip.
            mode = stat.S_IFMT(member.external_attr >> 16)
            kind = "folder" if member.is_dir() else "file"
            yield member.filename, kind if mode in (0, stat.S_IFREG, stat.S_IFDIR) else None, (
                lambda member=member: file.open(member))
