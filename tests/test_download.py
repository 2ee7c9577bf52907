"""Data sets from a server that is unkind: what arrives is whole or isn't there."""
import io
import multiprocessing
import os
import signal
import socket
import sys
import types

import pytest

from dataset import CUB2011Metric, DatasetError, archive, download, files
from test_archive import make_archive, make_zip
from webserver import (Server, code, cut, cut_chunk, hang_up, no_chunk, no_http, odd_length, odd_range, redirect, reset,
                       send, whole_thing, wrong_bytes)

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def server(tmp_path):
    noise = os.urandom(40000)  # so that the archive is long enough to be cut anywhere
    archive = make_archive(tmp_path / "source.tgz", [("SET/a/1.jpg", b"one"), ("SET/noise", noise), ("other/2", b"2")])
    server = Server(archive.read_bytes())
    yield server
    server.stop()


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PAUSES", (0, 0, 0))
    monkeypatch.setattr(download, "CHUNK_BYTES", 4096)
    return tmp_path / "data"


def fetch(server, root):
    download.fetch_archive(server.url, server.md5, str(root), "SET")


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
    ([no_http, no_http], [None, None, None]),
    ([cut_chunk, cut_chunk], [None, "bytes=10000-", "bytes=20000-"]),
    ([odd_length], [None]),
    ([reset], [None, "bytes=10000-"]),
], ids=["kind", "cut", "no ranges", "503", "hangs up", "cut often", "no HTTP", "cut in a chunk", "odd length", "reset"])
def test_broken_connection_is_taken_up(server, root, answers, ranges):
    server.answers = list(answers)
    fetch(server, root)
    assert server.ranges == ranges
    assert_whole(server, root)


@pytest.mark.parametrize("first, then, expected", [
    (cut(10000), code(503), "503"), (cut_chunk, no_chunk, "the connection broke off"),
], ids=["503", "no chunk"])
def test_what_came_is_kept_for_the_next_call(server, root, first, then, expected):
    server.answers = [first] + [then] * 3
    with pytest.raises(DatasetError, match=expected + ".*what has come so far is kept"):
        fetch(server, root)
    assert names(root) == ["set.tgz.part"]
    fetch(server, root)
    assert server.ranges[-1] == "bytes=10000-"
    assert_whole(server, root)


@pytest.mark.parametrize("answer, expected", [
    (code(403), "the server answers 403"), (code(404), "the server answers 404"), (code(410), "the server answers 410"),
    (redirect("file:///etc/passwd"), "the server answers 302 .*not allowed"),
    (redirect("/set.tgz"), "the server answers 302 .*infinite loop"),
    (redirect("http://[bad"), "an address that can't be"),
    (redirect("http://{}/".format("a" * 64)), "an address that can't be"),
    (redirect("http://127.0.0.1:port/"), "an address that can't be"),
], ids=["403", "404", "410", "to a file", "in a circle", "no address", "a long name", "no port"])
def test_an_answer_that_will_not_change_is_told_at_once(server, root, capsys, answer, expected):
    server.answers = [answer] * 10
    with pytest.raises(DatasetError, match=expected) as error:
        fetch(server, root)
    assert "next try" not in capsys.readouterr().out and "\n" not in str(error.value) and names(root) == []


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


def test_an_odd_range_is_not_believed(server, root):
    root.mkdir()
    (root / "set.tgz.part").write_bytes(server.content[:1000])
    server.answers = [odd_range]
    fetch(server, root)
    assert server.ranges == ["bytes=1000-", None]
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
    server.stop()
    with pytest.raises(DatasetError, match="can't be fetched: .*refused"):
        fetch(server, root)


@pytest.mark.parametrize("failure, seconds", [
    (lambda patience: (0, download.urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))), 5),
    (lambda patience: (0, download.urllib.error.URLError(ConnectionRefusedError(111, "Connection refused"))), 5),
    (lambda patience: (patience, download.urllib.error.URLError(socket.timeout("timed out"))), 20),
    (lambda patience: (0, download.urllib.error.HTTPError("", 503, "busy", {}, io.BytesIO())), 80),
    (lambda patience: (0, ConnectionResetError(104, "Connection reset by peer")), 80),
], ids=["no name", "refused", "silent", "503", "reset"])
def test_a_server_out_of_reach_is_told_soon(tmp_path, monkeypatch, failure, seconds):
    now = [0]

    def wait(pause):
        now[0] += pause

    def fail(request, timeout, context):
        pause, error = failure(timeout)
        wait(pause)
        raise error

    monkeypatch.setattr(download, "time", types.SimpleNamespace(monotonic=lambda: now[0], sleep=wait))
    monkeypatch.setattr(download.urllib.request, "urlopen", fail)
    with pytest.raises(DatasetError, match="can't be fetched: "):
        download.fetch_archive("http://127.0.0.1:9/set.tgz", "00", str(tmp_path), "SET")
    assert now == [seconds] and names(tmp_path) == []


def test_certificates_are_verified(server, root, monkeypatch):
    contexts = []
    urlopen = download.urllib.request.urlopen
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda request, timeout, context: (
        contexts.append(context), urlopen(request, timeout=timeout))[1])
    fetch(server, root)
    assert contexts[0].check_hostname and contexts[0].verify_mode == download.ssl.CERT_REQUIRED
    untrusted = download.urllib.error.URLError(download.ssl.SSLCertVerificationError("self-signed certificate"))
    assert download._is_final(untrusted)


def _fetch_killed(server, root, moment, lines):
    """Fetch, and kill this process before it runs line number ``moment`` of archive.py, download.py and files.py.

    Args:
        lines: a shared number, counts the lines.
    """
    def trace(frame, event, argument):
        if frame.f_code.co_filename not in (archive.__file__, download.__file__, files.__file__):
            return None
        lines.value += event == "line"
        if lines.value == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    fetch(server, root)


def test_a_zip_is_fetched_like_a_tar(server, root):
    archive = make_zip(root.parent / "source.zip", [("SET/a/1.jpg", b"one"), ("SET/noise", os.urandom(40000)),
                                                    ("__MACOSX/SET", b"2")])
    server.set_content(archive.read_bytes())
    server.url = server.url.replace(".tgz", ".zip")
    server.answers = [cut(10000), hang_up]
    fetch(server, root)
    assert server.ranges == [None, "bytes=10000-", "bytes=10000-"] and names(root) == ["SET", "set.zip"]
    assert (root / "SET" / "a" / "1.jpg").read_bytes() == b"one" and len((root / "SET" / "noise").read_bytes()) == 40000


def test_killed_at_any_moment_it_ends_whole(server, root):
    codes, last, lines = [], None, FORK.Value("i")
    for number in range(13):  # the first counts the lines of a fetch; the others are killed, spread evenly over these
        folder = root / str(number)
        process = FORK.Process(target=_fetch_killed, args=(server, folder, last and last * number // 13, lines))
        process.start()
        process.join(60)
        codes.append(process.exitcode)
        last, lines.value = last or lines.value, 0
        if (folder / "SET").exists():
            assert len((folder / "SET" / "noise").read_bytes()) == 40000
        fetch(server, folder)
        assert_whole(server, folder)
    # Pieces come in other sizes each time, so that one of the last may end before its line.
    assert codes[0] == 0 and codes.count(-signal.SIGKILL) >= 9


def test_two_at_once_fetch_once(server, root, monkeypatch):
    waiting = FORK.Event()
    monkeypatch.setattr(files, "print", lambda *args, **options: waiting.set(), raising=False)

    def halt_half_way(handler, server):
        send(handler, server, between=lambda: waiting.wait(30))

    server.answers = [halt_half_way]
    processes = [FORK.Process(target=fetch, args=(server, root)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0] and waiting.is_set()
    assert server.ranges == [None]
    assert_whole(server, root)


def test_the_data_set_is_fetched_by_the_command(server, root, monkeypatch, capsys):
    import run
    monkeypatch.setattr(CUB2011Metric, "URL", server.url)
    server.answers = [code(404)]
    argv = ["--download", "--data", str(root), "--pretrained", "none", "--device", "cpu"]
    assert run.main(argv) == 2
    assert "the server answers 404" in capsys.readouterr().err
    monkeypatch.setattr(CUB2011Metric, "MD5", server.md5)
    assert run.main(argv) == 2
    assert "no folder CUB_200_2011 in it" in capsys.readouterr().err


def test_half_a_data_set_is_told(server, root, monkeypatch):
    (root / "CUB_200_2011" / "attributes").mkdir(parents=True)
    archive = make_archive(root / "whole.tgz", [("CUB_200_2011/images/1/1.jpg", b"1")])
    server.set_content(archive.read_bytes())
    monkeypatch.setattr(CUB2011Metric, "URL", server.url)
    monkeypatch.setattr(CUB2011Metric, "MD5", server.md5)
    for fetched in True, False:
        with pytest.raises(DatasetError, match="CUB_200_2011 is incomplete.* move it away, then --download fetches it"):
            CUB2011Metric(str(root), download=fetched)
    assert not server.ranges
    (root / "CUB_200_2011").rename(root / "away")
    with pytest.raises(DatasetError, match="1 class folders instead of 200"):
        CUB2011Metric(str(root), download=True)
    assert server.ranges == [None]
