"""Fetch an archive: verified TLS, continued where the connection broke, checked by its MD5, unpacked under another name
and renamed when whole."""
import http.client
import os
import re
import shutil
import ssl
import sys
import tempfile
import time
import urllib.error
import urllib.request

from tqdm import tqdm

from dataset.archive import unpack
from dataset.base import DatasetError
from dataset.files import digest_of, locked

__all__ = ["fetch_archive"]

CHUNK_BYTES = 1 << 16
# Longest silence of a server in the middle of an answer.
PATIENCE_SECONDS = 60
# A server that has never answered is given up after this time.
REACH_SECONDS = 20
# Back-off: seconds to wait before each retry; after a try that brought bytes it starts from the first again.
PAUSES = (1, 4, 15, 60)
# HTTP codes below 500 that are worth a retry; any other redirection or 4xx would come again.
RETRYABLE = (408, 425, 429)
UNPACKING = ".unpacking-"


def fetch_archive(url, md5, root, folder):
    """Fetch the tar or zip archive at ``url`` and leave its top folder ``folder`` in ``root``, whole or not at all.

    No-op if something of that name is there already. Of several processes one fetches, the others wait.

    Args:
        md5: digest of the archive, in hexadecimal.

    Raises:
        DatasetError: the address can't be reached, the file is not the right one, or the disk refuses it.
    """
    archive, target = os.path.join(root, url.rsplit("/", 1)[-1]), os.path.join(root, folder)
    try:
        os.makedirs(root, exist_ok=True)
        with locked(target + ".lock"):
            _remove_remains(root)
            if os.path.lexists(target):  # another process was first
                return
            if not _is_there(archive, md5):
                _fetch(url, archive, md5)
            with tempfile.TemporaryDirectory(prefix=UNPACKING, dir=root) as aside:
                unpack(archive, aside)
                unpacked = os.path.join(aside, folder)
                if not os.path.isdir(unpacked):
                    raise DatasetError("{}: no folder {} in it".format(archive, folder))
                if hasattr(os, "sync"):
                    os.sync()  # flush all pictures to the disk before the folder gets its final name
                os.rename(unpacked, target)
    except OSError as error:
        raise DatasetError("{} can't be fetched into {}: {}".format(url, root, error.strerror or error)) from None


def _is_there(path, md5):
    """Whether the right file is at ``path``; another file of that name is renamed."""
    if not os.path.exists(path):
        return False
    if digest_of(path, "md5") == md5:
        return True
    os.replace(path, path + ".wrong")
    print("{} has another md5 than {}; it is now {}.wrong".format(path, md5, path), flush=True)
    return False


def _remove_remains(root):
    """Remove what killed processes had unpacked. The caller holds the lock, so nobody else is unpacking."""
    for name in os.listdir(root):
        if name.startswith(UNPACKING):
            shutil.rmtree(os.path.join(root, name), ignore_errors=True)


def _fetch(url, path, md5):
    """Fetch ``url`` to ``path`` through ``path.part``, with which a later call continues.

    Raises:
        DatasetError
    """
    part = path + ".part"
    continued, reached = os.path.exists(part), False
    began, pauses = time.monotonic(), iter(PAUSES)
    while True:
        before = _size(part)
        try:
            _fetch_rest(url, part, PATIENCE_SECONDS if reached else REACH_SECONDS)
        except (urllib.error.URLError, http.client.HTTPException, _BrokenOff) as error:
            reason = _reason_of(error)
            reached = reached or not _is_out_of_reach(error)
            if _size(part) > before:
                pauses = iter(PAUSES)
            pause = None if _is_final(error) else next(pauses, None)
            if pause is None or not reached and time.monotonic() - began + pause >= REACH_SECONDS:
                raise DatasetError("{} can't be fetched: {}{}".format(
                    url, reason, "; what has come so far is kept, and the same command continues from there"
                    if _size(part) else "")) from None
            print("{}: {}; next try in {} s".format(url, reason, pause), flush=True)
            time.sleep(pause)
            continue
        found = digest_of(part, "md5")
        if found == md5:
            os.replace(part, path)
            return
        os.remove(part)
        if not continued:
            raise DatasetError("{}: the file that came has md5 {} instead of {}; try again".format(url, found, md5))
        continued = False  # the part of an earlier call may be of another file: once more, from the start


class _BrokenOff(Exception):
    """The connection ended before the file did."""


def _fetch_rest(url, part, patience):
    """Fetch what ``part`` lacks of ``url``; all of it if the server can't start in the middle."""
    have = _size(part)
    headers = {"User-Agent": "rkd"}  # some servers refuse Python's own name
    if have:
        headers["Range"] = "bytes={}-".format(have)
    request = urllib.request.Request(url, headers=headers)
    try:
        answer = urllib.request.urlopen(request, timeout=patience, context=ssl.create_default_context())
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # the part is whole, or of another file: the digest shows which
            return
        raise
    except urllib.error.URLError:
        raise
    except OSError as error:
        raise _BrokenOff(str(error)) from None
    except (ValueError, OverflowError) as error:  # a redirection to something that is no address
        raise http.client.InvalidURL(str(error)) from None
    with answer:
        start = _start_of(answer)
        if start != have:
            start = 0  # the server sends all of it
        length = getattr(answer, "length", None)
        total = start + length if length else None
        with open(part, "r+b" if start else "wb") as file, \
                tqdm(total=total, initial=start, unit="B", unit_scale=True,
                     desc="Fetching " + os.path.basename(part[:-len(".part")]), disable=None) as bar:
            file.seek(start)
            file.truncate()
            for piece in _pieces(answer, length):
                file.write(piece)
                bar.update(len(piece))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and _size(part) < total:
        raise _BrokenOff("the connection broke off after {} of {} bytes".format(_size(part), total))


def _pieces(answer, length):
    """Yield the bytes of an answer as they come, so that those before a broken connection are kept."""
    left = length or sys.maxsize
    while left:
        try:
            piece = answer.read1(min(left, CHUNK_BYTES))
        except http.client.IncompleteRead:
            raise _BrokenOff("the connection broke off") from None
        except OSError as error:
            raise _BrokenOff(str(error)) from None
        if not piece:
            return
        yield piece
        left -= len(piece)


def _start_of(answer):
    """Return the position of the first byte in an answer."""
    found = re.match(r"bytes (\d{1,18})-", answer.headers.get("Content-Range") or "")
    return int(found.group(1)) if answer.code == 206 and found else 0


def _reason_of(error):
    """Return why a try failed, in one line."""
    if isinstance(error, urllib.error.HTTPError):
        return "the server answers {} {}".format(error.code, " ".join(str(error.reason).split()))
    if isinstance(error, http.client.InvalidURL):
        return "it leads to an address that can't be used ({})".format(error)
    if isinstance(error, http.client.HTTPException):
        return "the answer is broken ({:.100})".format(repr(error))
    return str(getattr(error, "reason", error)) or type(error).__name__


def _is_out_of_reach(error):
    """Whether there was no connection to the server at all."""
    return isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError)


def _is_final(error):
    """Whether a retry would fail in the same way."""
    if isinstance(error, urllib.error.HTTPError):
        return 300 <= error.code < 500 and error.code not in RETRYABLE
    return isinstance(error, http.client.InvalidURL) or isinstance(
        getattr(error, "reason", None), ssl.SSLCertVerificationError)


def _size(path):
    return os.path.getsize(path) if os.path.exists(path) else 0
