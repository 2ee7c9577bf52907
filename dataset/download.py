"""Fetch a data set's archive: over verified TLS, checked by md5, unpacked aside and renamed when whole."""
import hashlib
import http.client
import os
import shutil
import ssl
import tarfile
import tempfile
import urllib.error
import urllib.request

from tqdm import tqdm

from dataset.base import DatasetError

__all__ = ["fetch_archive", "unpack_tar"]

CHUNK_BYTES = 1 << 20
PATIENCE_SECONDS = 60


def fetch_archive(url, md5, root, folder):
    """Fetch the tar archive at ``url`` and leave its top folder ``folder`` in ``root``, whole or not at all.

    Raises:
        DatasetError: the address can't be reached, the file is not the right one, or the disk refuses it.
    """
    archive = os.path.join(root, url.rsplit("/", 1)[-1])
    try:
        os.makedirs(root, exist_ok=True)
        if not (os.path.isfile(archive) and md5_of(archive) == md5):
            _fetch(url, archive, md5)
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=root) as aside:
            unpack_tar(archive, aside)
            unpacked = os.path.join(aside, folder)
            if not os.path.isdir(unpacked):
                raise DatasetError("{}: no folder {} in it".format(archive, folder))
            os.rename(unpacked, os.path.join(root, folder))
    except (urllib.error.URLError, ssl.SSLError, http.client.HTTPException) as error:
        raise DatasetError("{} can't be fetched: {}".format(url, getattr(error, "reason", error))) from None
    except tarfile.TarError as error:
        raise DatasetError("{} can't be unpacked: {}".format(archive, error)) from None
    except OSError as error:
        raise DatasetError("{} can't be fetched into {}: {}".format(url, root, error)) from None


def md5_of(path):
    """Return the md5 of a file, in hexadecimal."""
    digest = hashlib.md5()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(CHUNK_BYTES), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _fetch(url, path, md5):
    """Fetch ``url`` to ``path`` by way of ``path.part``, and check it."""
    part = path + ".part"
    request = urllib.request.Request(url, headers={"User-Agent": "python-urllib"})
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS, context=ssl.create_default_context()) as answer, \
            open(part, "wb") as file, \
            tqdm(total=int(answer.headers.get("Content-Length") or 0) or None, unit="B", unit_scale=True,
                 desc="Fetching " + os.path.basename(path), disable=None) as bar:
        for chunk in iter(lambda: answer.read(CHUNK_BYTES), b""):
            file.write(chunk)
            bar.update(len(chunk))
    found = md5_of(part)
    if found != md5:
        os.remove(part)
        raise DatasetError("{}: the file that came has md5 {} instead of {}; try again".format(url, found, md5))
    os.replace(part, path)


def unpack_tar(archive, directory):
    """Unpack the regular files and folders of a tar archive below ``directory``.

    Raises:
        DatasetError: a member would land outside, or is a link or a device; nothing of the archive is then kept.
    """
    base = os.path.realpath(directory)
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
            with tar.extractfile(member) as source, open(target, "wb") as file:
                shutil.copyfileobj(source, file)
