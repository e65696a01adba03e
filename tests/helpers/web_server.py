"""A local web server that misbehaves as a test asks."""

import contextlib
import http.server
import re
import threading
from collections.abc import Callable
from typing import Any

HTML = b"<!doctype html><title>Sign in</title>" + b" " * 999


class Server:
    """What a local web server does with each request: its answers in order, the last one for ever after."""

    def __init__(self) -> None:
        self.requests: list[http.server.BaseHTTPRequestHandler] = []
        self.answers: list[Callable[[Any], None]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.requests.append(self)
                self.close_connection = True
                answer = outer.answers[min(len(outer.requests), len(outer.answers)) - 1]
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client had enough
                    answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/set.zip"

    def ranges(self) -> list[str | None]:
        return [request.headers.get("Range") for request in self.requests]


def serve(
    content: bytes, *, upto: int | None = None, claims: int | None = None, ranges: bool = True, tag: str = "",
    then: Callable[[], None] = lambda: None, kind: str = "application/zip",
) -> Callable[[Any], None]:  # fmt: skip
    """An answer: `content` from the byte asked for, perhaps only `upto` a byte, with a Content-Length of its own."""

    def answer(request: Any) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or "")
        condition = request.headers.get("If-Range")
        start = int(asked[1]) if ranges and asked and condition in (None, tag) else 0
        if start >= len(content):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(content)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        part = content[start:]
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if tag:
            request.send_header("ETag", tag)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(part) if claims is None else claims - start))
        request.end_headers()
        request.wfile.write(part if upto is None else content[start:upto])
        request.wfile.flush()
        then()

    return answer


def status(code: int, location: str = "") -> Callable[[Any], None]:
    def answer(request: Any) -> None:
        request.send_response(code)
        if location:
            request.send_header("Location", location)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


def redirect_to(content: bytes) -> Callable[[Any], None]:
    def answer(request: Any) -> None:
        (serve(content) if request.path == "/there" else status(302, "/there"))(request)

    return answer
