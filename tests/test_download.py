"""Data sets from a server that is unkind: what arrives is whole or isn't there, and nothing lands outside."""
import hashlib
import http.server
import io
import multiprocessing
import os
import re
import signal
import tarfile
import threading
import time

import pytest

from dataset import CUB2011Metric, DatasetError, download


def make_archive(path, members, mode="w:gz"):
    with tarfile.open(str(path), mode) as tar:
        for member, content in members:
            if isinstance(member, str):
                member = tarfile.TarInfo(member)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


class Server:
    """An HTTP server on loopback. ``answers`` says what it does with each request in turn; then it behaves well."""

    def __init__(self, content):
        self.content = content
        self.answers = []
        self.ranges = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.ranges.append(self.headers.get("Range"))
                (server.answers.pop(0) if server.answers else send)(self, server)

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = "http://127.0.0.1:{}/set.tgz".format(self.http.server_port)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


def send(handler, server, most=None, ranges=True, content=None, length=True, pause=0.0):
    """Answer with the content, from where it is asked for; cut the connection after ``most`` bytes."""
    content = server.content if content is None else content
    found = re.match(r"bytes=(\d+)-", handler.headers.get("Range") or "") if ranges else None
    start = int(found.group(1)) if found else 0
    if found and start >= len(content):
        handler.send_error(416)
        return
    handler.send_response(206 if found else 200)
    if found:
        handler.send_header("Content-Range", "bytes {}-{}/{}".format(start, len(content) - 1, len(content)))
    if length:
        handler.send_header("Content-Length", str(len(content) - start))
    handler.end_headers()
    body = content[start:] if most is None else content[start:start + most]
    for position in range(0, len(body), 4096):
        handler.wfile.write(body[position:position + 4096])
        time.sleep(pause)
    handler.close_connection = True


def cut(most):
    return lambda handler, server: send(handler, server, most)


def code(number):
    return lambda handler, server: handler.send_error(number)


def wrong_bytes(handler, server):
    send(handler, server, content=b"x" * len(server.content))


def hang_up(handler, server):
    handler.connection.close()


def whole_thing(handler, server):
    send(handler, server, ranges=False)


@pytest.fixture
def server(tmp_path):
    noise = os.urandom(40000)  # so that the archive is long enough to be cut anywhere
    archive = make_archive(tmp_path / "source.tgz", [("SET/a/1.jpg", b"one"), ("SET/noise", noise), ("other/2", b"2")])
    server = Server(archive.read_bytes())
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PAUSES", (0, 0, 0))
    monkeypatch.setattr(download, "CHUNK_BYTES", 4096)
    return tmp_path / "data"


def fetch(server, root):
    download.fetch_archive(server.url, hashlib.md5(server.content).hexdigest(), str(root), "SET")


def names(root):
    return sorted(entry.name for entry in root.iterdir())


def assert_whole(server, root):
    assert names(root) == ["SET", "set.tgz"]
    assert (root / "set.tgz").read_bytes() == server.content
    assert (root / "SET" / "a" / "1.jpg").read_bytes() == b"one" and len((root / "SET" / "noise").read_bytes()) == 40000


@pytest.mark.parametrize("answers, ranges", [
    ([], [None]),
    ([cut(10000), cut(5000)], [None, "bytes=10000-", "bytes=15000-"]),
    ([cut(10000), whole_thing], [None, "bytes=10000-"]),  # a server that knows no ranges
    ([cut(10000), code(503), code(429)], [None, "bytes=10000-", "bytes=10000-", "bytes=10000-"]),
    ([hang_up, cut(0)], [None, None, None]),
    ([cut(10)] * 8, [None] + ["bytes={}-".format(10 * number) for number in range(1, 9)]),  # a little each time
], ids=["kind", "cut", "no ranges", "503", "hangs up", "cut often"])
def test_broken_connection_is_taken_up(server, root, answers, ranges):
    server.answers = list(answers)
    fetch(server, root)
    assert server.ranges == ranges
    assert_whole(server, root)


def test_what_came_is_kept_for_the_next_call(server, root):
    server.answers = [cut(10000)] + [code(503)] * 3
    with pytest.raises(DatasetError, match="503.*what has come so far is kept"):
        fetch(server, root)
    assert names(root) == ["set.tgz.part"]
    fetch(server, root)
    assert server.ranges[-1] == "bytes=10000-"
    assert_whole(server, root)


@pytest.mark.parametrize("number", [403, 404, 410])
def test_an_answer_that_will_not_change_is_told_at_once(server, root, number):
    server.answers = [code(number)] * 2
    with pytest.raises(DatasetError, match="the server answers {}".format(number)):
        fetch(server, root)
    assert len(server.ranges) == 1 and names(root) == []


def test_wrong_bytes_are_refused(server, root):
    server.answers = [wrong_bytes]
    with pytest.raises(DatasetError, match="has md5 .* instead of"):
        fetch(server, root)
    assert names(root) == []


@pytest.mark.parametrize("part", [b"of another file", b"x" * 1000000], ids=["shorter", "longer"])
def test_a_part_of_another_file_is_fetched_anew(server, root, part):
    root.mkdir()
    (root / "set.tgz.part").write_bytes(part)
    fetch(server, root)
    assert_whole(server, root)


def test_a_part_that_is_whole_is_taken(server, root):
    root.mkdir()
    (root / "set.tgz.part").write_bytes(server.content)
    fetch(server, root)
    assert server.ranges == ["bytes={}-".format(len(server.content))]
    assert_whole(server, root)


def test_another_file_of_that_name_is_put_aside(server, root):
    root.mkdir()
    (root / "set.tgz").write_bytes(b"mine")
    fetch(server, root)
    assert (root / "set.tgz.wrong").read_bytes() == b"mine" and (root / "SET").is_dir()


def test_no_server_is_one_line(server, root):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(DatasetError, match="can't be fetched: .*refused"):
        fetch(server, root)


def test_certificates_are_verified(server, root, monkeypatch):
    contexts = []
    urlopen = download.urllib.request.urlopen
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda request, timeout, context: (
        contexts.append(context), urlopen(request, timeout=timeout))[1])
    fetch(server, root)
    assert contexts[0].check_hostname and contexts[0].verify_mode == download.ssl.CERT_REQUIRED
    untrusted = download.urllib.error.URLError(download.ssl.SSLCertVerificationError("self-signed certificate"))
    assert download._is_final(untrusted)


def _fetch_slowly(url, md5, root):
    download.CHUNK_BYTES = 4096
    download.fetch_archive(url, md5, root, "SET")


def test_killed_at_any_moment_it_ends_whole(server, root):
    context = multiprocessing.get_context("fork")
    arguments = (server.url, hashlib.md5(server.content).hexdigest(), str(root))
    for number in range(12):
        server.answers = [lambda handler, server: send(handler, server, pause=0.01)]
        process = context.Process(target=_fetch_slowly, args=arguments)
        process.start()
        time.sleep(0.03 * (number % 4 + 1) + 0.007 * number)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        if (root / "SET").exists():
            assert len((root / "SET" / "noise").read_bytes()) == 40000
    server.answers = []
    fetch(server, root)
    (root / "set.tgz.lock").unlink() if (root / "set.tgz.lock").exists() else None
    assert_whole(server, root)


def test_two_at_once_fetch_once(server, root):
    context = multiprocessing.get_context("fork")
    server.answers = [lambda handler, server: send(handler, server, pause=0.02)]
    arguments = (server.url, hashlib.md5(server.content).hexdigest(), str(root))
    processes = [context.Process(target=_fetch_slowly, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert server.ranges == [None]
    assert_whole(server, root)


def test_the_data_set_is_fetched_by_the_command(server, root, monkeypatch, capsys):
    import run
    monkeypatch.setattr(CUB2011Metric, "URL", server.url)
    server.answers = [code(404)]
    argv = ["--download", "--data", str(root), "--pretrained", "none", "--device", "cpu"]
    assert run.main(argv) == 2
    assert "the server answers 404" in capsys.readouterr().err
    monkeypatch.setattr(CUB2011Metric, "MD5", hashlib.md5(server.content).hexdigest())
    assert run.main(argv) == 2
    assert "no folder CUB_200_2011 in it" in capsys.readouterr().err


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
    assert names(tmp_path) == ["hostile.tgz", "in"]


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
def test_broken_archive_leaves_no_half_data_set(server, root, spoil, expected):
    root.mkdir()
    path = root / "set.tgz"
    spoil(path, server.content)
    content = path.read_bytes()
    with pytest.raises(DatasetError, match=expected):
        download.fetch_archive(server.url, hashlib.md5(content).hexdigest(), str(root), "SET")
    assert names(root) == ["set.tgz"] and path.read_bytes() == content and not server.ranges
