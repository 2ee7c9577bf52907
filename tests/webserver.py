"""An HTTP server on this machine for the tests of downloads, and the unkind things that it can answer."""
import hashlib
import http.server
import os
import re
import socket
import struct
import threading


class Server:
    """An HTTP server on loopback. ``answers`` says what it does with each request in turn; then it behaves well."""

    def __init__(self, content):
        self.set_content(content)
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

    def set_content(self, content):
        self.content, self.md5 = content, hashlib.md5(content).hexdigest()

    def stop(self):
        self.http.shutdown()
        self.http.server_close()


def send(handler, server, most=None, ranges=True, content=None, between=lambda: None):
    """Answer with the content, from where it is asked for; cut the connection after ``most`` bytes.

    Args:
        ranges: whether this server can start in the middle. between: called in the middle of the content.
    """
    content = server.content if content is None else content
    found = re.match(r"bytes=(\d+)-", handler.headers.get("Range") or "") if ranges else None
    start = int(found.group(1)) if found else 0
    if found and start >= len(content):
        handler.send_error(416)
        return
    handler.send_response(206 if found else 200)
    if found:
        handler.send_header("Content-Range", "bytes {}-{}/{}".format(start, len(content) - 1, len(content)))
    handler.send_header("Content-Length", str(len(content) - start))
    handler.end_headers()
    body = content[start:] if most is None else content[start:start + most]
    handler.wfile.write(body[:len(body) // 2])
    between()
    handler.wfile.write(body[len(body) // 2:])
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
