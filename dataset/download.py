"""Fetch a data set's archive: verified TLS, taken up where it broke off, checked by md5, unpacked aside and renamed."""
import contextlib
import hashlib
import http.client
import os
import re
import shutil
import socket
import ssl
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zlib

from tqdm import tqdm

from dataset.base import DatasetError
from dataset.locking import locked

__all__ = ["fetch_archive", "unpack_tar"]

CHUNK_BYTES = 1 << 20
PATIENCE_SECONDS = 60
# Seconds before each further try; one that brings bytes starts the count anew.
PAUSES = (1, 4, 15, 60)
UNPACKING = ".unpacking-"
# Answers after which another try makes sense; after any other 4xx it does not.
PASSING = (408, 425, 429)


def fetch_archive(url, md5, root, folder):
    """Fetch the tar archive at ``url`` and leave its top folder ``folder`` in ``root``, whole or not at all.

    Raises:
        DatasetError: the address can't be reached, the file is not the right one, or the disk refuses it.
    """
    archive = os.path.join(root, url.rsplit("/", 1)[-1])
    try:
        os.makedirs(root, exist_ok=True)
        with locked(archive + ".lock"):
            _remove_remains(root)
            if os.path.isdir(os.path.join(root, folder)):  # another run was first
                return
            if not _is_there(archive, md5):
                _fetch(url, archive, md5)
            with tempfile.TemporaryDirectory(prefix=UNPACKING, dir=root) as aside:
                unpack_tar(archive, aside)
                unpacked = os.path.join(aside, folder)
                if not os.path.isdir(unpacked):
                    raise DatasetError("{}: no folder {} in it".format(archive, folder))
                if hasattr(os, "sync"):
                    os.sync()  # the pictures first, then the name that says they are all there
                os.rename(unpacked, os.path.join(root, folder))
    except OSError as error:
        raise DatasetError("{} can't be fetched into {}: {}".format(url, root, error.strerror or error)) from None


def md5_of(path):
    """Return the md5 of a file, in hexadecimal."""
    digest = hashlib.md5()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(CHUNK_BYTES), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _is_there(archive, md5):
    """Whether the right archive lies there; another file of that name is put aside."""
    if not os.path.isfile(archive):
        return False
    if md5_of(archive) == md5:
        return True
    os.replace(archive, archive + ".wrong")
    print("{} has another md5 than {}; it is now {}.wrong".format(archive, md5, archive), flush=True)
    return False


def _remove_remains(root):
    """Remove what a killed process had unpacked; whoever unpacks holds the lock."""
    for name in os.listdir(root):
        if name.startswith(UNPACKING):
            shutil.rmtree(os.path.join(root, name), ignore_errors=True)


def _fetch(url, path, md5):
    """Fetch ``url`` to ``path`` by way of ``path.part``, which a later call goes on with.

    Raises:
        DatasetError
    """
    part = path + ".part"
    continued = os.path.exists(part)
    pauses = iter(PAUSES)
    while True:
        before = _size(part)
        try:
            _fetch_rest(url, part)
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, socket.timeout, ssl.SSLError,
                _BrokenOff) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            if isinstance(error, urllib.error.HTTPError):
                reason = "the server answers {} {}".format(error.code, error.reason)
            if _size(part) > before:
                pauses = iter(PAUSES)
            pause = None if _is_final(error) else next(pauses, None)
            if pause is None:
                raise DatasetError("{} can't be fetched: {}{}".format(
                    url, reason, "; what has come so far is kept, and the same command goes on from there"
                    if _size(part) else "")) from None
            print("{}: {}; next try in {} s".format(url, reason, pause), flush=True)
            time.sleep(pause)
            continue
        found = md5_of(part)
        if found == md5:
            os.replace(part, path)
            return
        os.remove(part)
        if not continued:
            raise DatasetError("{}: the file that came has md5 {} instead of {}; try again".format(url, found, md5))
        continued = False  # an earlier call's part may be of another file; this time all of it comes at once


class _BrokenOff(Exception):
    """The connection ended before the file did."""


def _fetch_rest(url, part):
    """Fetch what ``part`` lacks of ``url``; all of it, where the server can't start in the middle."""
    have = _size(part)
    headers = {"User-Agent": "python-urllib"}
    if have:
        headers["Range"] = "bytes={}-".format(have)
    request = urllib.request.Request(url, headers=headers)
    try:
        answer = urllib.request.urlopen(request, timeout=PATIENCE_SECONDS, context=ssl.create_default_context())
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing after what is there: it is whole, or of another file; md5 tells
            return
        raise
    with answer:
        start = _start_of(answer)
        if start != have:
            start = 0  # it sends all of it
        length = int(answer.headers.get("Content-Length") or 0)
        total = start + length if length else None
        with open(part, "r+b" if start else "wb") as file, \
                tqdm(total=total, initial=start, unit="B", unit_scale=True,
                     desc="Fetching " + os.path.basename(part[:-len(".part")]), disable=None) as bar:
            file.seek(start)
            file.truncate()
            for chunk in iter(lambda: answer.read(CHUNK_BYTES), b""):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and _size(part) < total:
        raise _BrokenOff("the connection broke off after {} of {} bytes".format(_size(part), total))


def _start_of(answer):
    """Return the position of the first byte in an answer."""
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range") or "")
    return int(found.group(1)) if answer.status == 206 and found else 0


def _is_final(error):
    """Whether another try would bring the same."""
    if isinstance(error, urllib.error.HTTPError):
        return 400 <= error.code < 500 and error.code not in PASSING
    return isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError)


def _size(path):
    return os.path.getsize(path) if os.path.exists(path) else 0


def unpack_tar(archive, directory):
    """Unpack the regular files and folders of a tar archive below ``directory``.

    Raises:
        DatasetError: a member would land outside, or is a link or a device; the archive is damaged or none.
    """
    base = os.path.realpath(directory)
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                target = os.path.realpath(os.path.join(base, member.name))
                if not (member.isfile() or member.isdir()) or os.path.commonpath([base, target]) != base:
                    raise DatasetError("{}: {!r} in it is a link or would land outside; the archive is refused".format(
                        archive, member.name))
                if member.isdir():
                    os.makedirs(target, exist_ok=True)
                    continue
                os.makedirs(os.path.dirname(target), exist_ok=True)
                with contextlib.closing(tar.extractfile(member)) as source, open(target, "wb") as file:
                    shutil.copyfileobj(source, file)
    except (tarfile.TarError, EOFError, zlib.error, ValueError) as error:
        raise DatasetError("{} can't be unpacked, it is damaged ({}); remove it and fetch it again".format(
            archive, error)) from None
