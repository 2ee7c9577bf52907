"""Data sets from a server that is unkind: what arrives is whole or isn't there, and nothing lands outside."""
import hashlib
import http.server
import io
import multiprocessing
import os
import re
import signal
import socket
import struct
import tarfile
import threading
import time
import types

import pytest
import torch

import model.weights
from dataset import CUB2011Metric, DatasetError, download
from engine import checkpoint
from model import WeightsError
from model.backbone import ResNet18


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
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


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


def reset(handler, server):
    send(handler, server, 10000)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(handler.connection.detach())


def whole_thing(handler, server):
    send(handler, server, ranges=False)


def raw(head, content=b""):
    return lambda handler, server: handler.wfile.write(head + content)


def no_http(handler, server):
    handler.wfile.write(b"hello\r\n\r\n")


def cut_chunk(handler, server):
    start = int((re.findall(r"\d+", handler.headers.get("Range") or "") or [0])[0])
    head = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {}-/*\r\n".format(start) if start else (
        "HTTP/1.1 200 OK\r\n")
    handler.wfile.write((head + "Transfer-Encoding: chunked\r\n\r\nfffff\r\n").encode()
                        + server.content[start:start + 10000])


def no_chunk(handler, server):
    handler.wfile.write(b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 10000-/*\r\n"
                        b"Transfer-Encoding: chunked\r\n\r\nfffff\r\n")


def odd_length(handler, server):
    raw(b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\n", server.content)(handler, server)


def odd_range(handler, server):
    raw(b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes " + b"9" * 5000 + b"-\r\nContent-Length: 0\r\n\r\n")(
        handler, server)


def redirect(address):
    def answer(handler, server):
        handler.send_response(302)
        handler.send_header("Location", address)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
    return answer


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
    server.http.shutdown()
    server.http.server_close()
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
        download.fetch_file("http://127.0.0.1:9/file", str(tmp_path / "file"), "sha256", "00")
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
    assert_whole(server, root)


def _call_at_once(count, function, *arguments):
    processes = [multiprocessing.get_context("fork").Process(target=function, args=arguments) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def test_two_at_once_fetch_once(server, root):
    server.answers = [lambda handler, server: send(handler, server, pause=0.02)]
    _call_at_once(2, _fetch_slowly, server.url, hashlib.md5(server.content).hexdigest(), str(root))
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


def test_half_a_data_set_is_told(server, root, monkeypatch):
    (root / "CUB_200_2011" / "attributes").mkdir(parents=True)
    archive = make_archive(root / "whole.tgz", [("CUB_200_2011/images/1/1.jpg", b"1")])
    server.content = archive.read_bytes()
    monkeypatch.setattr(CUB2011Metric, "URL", server.url)
    monkeypatch.setattr(CUB2011Metric, "MD5", hashlib.md5(server.content).hexdigest())
    for fetched in True, False:
        with pytest.raises(DatasetError, match="CUB_200_2011 is incomplete.* move it away, then --download fetches it"):
            CUB2011Metric(str(root), download=fetched)
    assert not server.ranges
    (root / "CUB_200_2011").rename(root / "away")
    with pytest.raises(DatasetError, match="1 class folders instead of 200"):
        CUB2011Metric(str(root), download=True)
    assert server.ranges == [None]


@pytest.fixture(scope="module")
def imagenet_file():
    """Weights of a ResNet18, as a file's bytes, and one of them; in half precision, to be short."""
    weights = {name: value.half() if value.is_floating_point() else value
               for name, value in ResNet18(pretrained=False).state_dict().items()}
    file = io.BytesIO()
    torch.save(weights, file)
    return file.getvalue(), weights["conv1.weight"].float()


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """torch.hub's cache, empty; the ImageNet weights that belong into it are what the server has."""
    def url(architecture):
        return server.url.replace("set.tgz", "{}-{:.8}.pth".format(
            architecture, hashlib.sha256(server.content).hexdigest()))

    monkeypatch.setattr(model.weights, "imagenet_weights_url", url)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(download, "PAUSES", (0, 0, 0))
    return tmp_path / "hub" / "checkpoints"


def imagenet_network():
    options = {"base": "resnet18", "embedding_size": 8, "l2normalize": True}
    return checkpoint.build_network(options, pretrained="imagenet")


@pytest.mark.parametrize("answers, ranges", [
    ([], [None]),
    ([cut(100000), cut(50000)], [None, "bytes=100000-", "bytes=150000-"]),
    ([cut_chunk], [None, "bytes=10000-"]),
    ([code(503), no_http, hang_up], [None, None, None, None]),
    ([odd_length], [None]),
], ids=["kind", "cut", "cut in a chunk", "broken answers", "odd length"])
def test_imagenet_weights_are_taken_up(server, hub, imagenet_file, answers, ranges):
    server.content, weight = imagenet_file
    server.answers = list(answers)
    for _ in range(2):
        assert torch.equal(imagenet_network().base.conv1.weight, weight)
        assert server.ranges == ranges
    assert len(names(hub)) == 1


@pytest.mark.parametrize("answers, expected", [
    ([wrong_bytes], "the file that came has sha256 .* instead of"), ([code(404)], "the server answers 404"),
    ([no_http] * 4, "the answer is broken .*hello"), ([redirect("http://[bad")], "an address that can't be"),
], ids=["wrong bytes", "404", "no HTTP", "no address"])
def test_imagenet_weights_that_do_not_come_are_one_line(server, hub, answers, expected):
    server.answers = list(answers)
    with pytest.raises(WeightsError, match=expected) as error:
        imagenet_network()
    url, path, _ = model.weights.imagenet_source("resnet18")
    assert str(error.value).startswith("ImageNet weights of resnet18 are not on this machine and can't be fetched (")
    assert "): put {} at {}, or give --pretrained FILE, or ".format(url, path) in str(error.value)
    assert str(error.value).count(url) == 1 and "\n" not in str(error.value) and names(hub) == []


def test_imagenet_weights_are_fetched_once(server, hub):
    server.answers = [lambda handler, server: send(handler, server, pause=0.05)]
    _call_at_once(3, checkpoint._fetch_imagenet, "resnet18")
    assert server.ranges == [None]
    assert [path.read_bytes() for path in hub.iterdir()] == [server.content]


@pytest.mark.parametrize("answer", [
    no_http, cut_chunk, raw(b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\n"), redirect("http://[bad")],
    ids=["no HTTP", "cut in a chunk", "odd length", "no address"])
def test_from_python_a_broken_answer_is_one_line_too(server, hub, answer):
    server.answers = [answer]
    with pytest.raises(WeightsError, match="are not on this machine and can't be fetched"):
        ResNet18(pretrained=True)
    assert names(hub) == []


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
