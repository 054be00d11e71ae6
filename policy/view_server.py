"""Serves the page of `cadence view` to the browser of this computer's user, and to nobody else.

It listens on the loopback address only. Every address begins with a secret that is printed for the
user, so other users of the computer cannot read along; a page from elsewhere cannot either (it does
not know the secret, and a name that was bent to point here, DNS rebinding, is refused by `Host`).

    /SECRET/                            the page
    /SECRET/about.json                  what there is
    /SECRET/episodes.json?first=0&n=200 a part of the list
    /SECRET/findings.json               what the doctor says, as far as it is
    /SECRET/numbers/EPISODE             float32 [L, D], little endian
    /SECRET/chunks/EPISODE              what was planned
    /SECRET/frame/EPISODE/STEP/CAMERA   PNG
    /SECRET/strip/EPISODE/CAMERA        PNG
    /SECRET/media/NUMBER                a video or figure of the run, by its number in the list

No address holds the name of a file, so none can lead out of the folder.
"""

import hmac
import http
import json
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np

from data.store import StoreError
from policy.serving.endpoints import Page
from policy.view_run import MEDIA
from policy.view_source import Source

VIEW_PAGE = Path(__file__).with_name("view.html")
LOOPBACK = "127.0.0.1"
NAMES = ("127.0.0.1", "localhost")
LISTED = 200  # episodes, where the request does not say
LONGEST_PATH = 200
BLOCK = 256 * 1024  # bytes of a video that are sent at once


@dataclass(frozen=True)
class Content:
    """What is answered.

    Args:
        kind: media type.
        body: the bytes, or a file to be sent.
    """

    kind: str
    body: bytes | Path


@dataclass(frozen=True)
class Site:
    """What is served.

    Args:
        source: the episodes; None where there are none.
        about: what there is, as JSON.
        findings: what the doctor says at the moment, as JSON.
        media: videos and figures.
    """

    source: Source | None
    about: Mapping
    findings: Callable[[], Mapping]
    media: tuple[Path, ...] = ()

    def answer(self, path: str, query: Mapping[str, list[str]]) -> Content | None:
        """What is at an address below the secret; None: nothing.

        Raises:
            IndexError: there is no such episode, step or camera.
            StoreError: it cannot be read.
        """
        if path == "about.json":
            return _json(self.about)
        if path == "findings.json":
            return _json(self.findings())
        name, *numbers = path.split("/")
        if not all(re.fullmatch(r"\d{1,9}", number, re.ASCII) for number in numbers):
            return None
        arguments = [int(number) for number in numbers]
        if name == "media" and len(arguments) == 1:
            if arguments[0] >= len(self.media):
                return None
            file = self.media[arguments[0]]
            return Content(MEDIA[file.suffix], file)
        if self.source is None:
            return None
        return _of_source(self.source, name, arguments, query)


def _of_source(
    source: Source, name: str, arguments: list[int], query: Mapping[str, list[str]]
) -> Content | None:
    if name == "episodes.json" and not arguments:
        first, n = _number(query, "first", 0), _number(query, "n", LISTED)
        return _json(source.episodes(first, n))
    if name == "numbers" and len(arguments) == 1:
        values = np.ascontiguousarray(source.numbers(arguments[0]), "<f4")
        return Content("application/octet-stream", values.tobytes())
    if name == "chunks" and len(arguments) == 1:
        return _json(source.chunks(arguments[0]).to_json())
    if name == "frame" and len(arguments) == 3:
        return Content("image/png", source.picture(*arguments))
    if name == "strip" and len(arguments) == 2:
        return Content("image/png", source.strip(*arguments))
    return None


def _number(query: Mapping[str, list[str]], name: str, default: int) -> int:
    given = query.get(name, [""])[0]
    return int(given) if re.fullmatch(r"\d{1,9}", given, re.ASCII) else default


def _json(value: object) -> Content:
    return Content("application/json", json.dumps(value, allow_nan=False).encode())


class ViewServer(ThreadingHTTPServer):
    """Serves a site until `shutdown`; `url` is for its user alone.

    Args:
        site: what is served.
        port: 0 takes a free one.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, site: Site, *, port: int = 0):
        self.site, self.page = site, Page.read(VIEW_PAGE)
        self.secret = secrets.token_urlsafe(24)
        super().__init__((LOOPBACK, port), _Handler)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{LOOPBACK}:{self.server_port}/{self.secret}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that goes away in the middle is nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer  # pyright: ignore[reportIncompatibleVariableOverride]
    server_version, sys_version = "cadence", ""
    protocol_version = "HTTP/1.1"
    timeout = 30  # s that a silent connection is kept

    def do_GET(self) -> None:
        self._respond()

    def do_HEAD(self) -> None:
        self._respond()

    def log_message(self, format: str, *args: object) -> None:
        """The address holds the secret, so it is not printed."""

    def _respond(self) -> None:
        name = re.sub(r":\d*$", "", self.headers.get("Host", "")).lower()
        if name not in NAMES:
            return self._refuse(http.HTTPStatus.MISDIRECTED_REQUEST, "this is 127.0.0.1")
        address = urlsplit(self.path)
        _, _, rest = address.path.partition("/")
        secret, slash, path = rest.partition("/")
        is_known = hmac.compare_digest(secret.encode(errors="replace"), self.server.secret.encode())
        if not (is_known and slash) or len(self.path) > LONGEST_PATH:
            return self._refuse(http.HTTPStatus.NOT_FOUND, "nothing here: use the printed address")
        if path == "":
            page = self.server.page
            return self._send(Content("text/html; charset=utf-8", page.body))
        try:
            content = self.server.site.answer(path, parse_qs(address.query))
        except IndexError as error:
            return self._refuse(http.HTTPStatus.NOT_FOUND, str(error))
        except (StoreError, OSError) as error:
            return self._refuse(http.HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        if content is None:
            return self._refuse(http.HTTPStatus.NOT_FOUND, "nothing here")
        self._send(content)

    def _refuse(self, status: http.HTTPStatus, text: str) -> None:
        self._send(Content("text/plain; charset=utf-8", f"{text}\n".encode()), status)

    def _send(self, content: Content, status: http.HTTPStatus = http.HTTPStatus.OK) -> None:
        body = content.body
        is_file = isinstance(body, Path)
        try:
            size = body.stat().st_size if isinstance(body, Path) else len(body)
        except OSError:
            return self._refuse(http.HTTPStatus.NOT_FOUND, "the file is gone")
        span = self._span(size) if is_file else None
        if span is not None:
            status = http.HTTPStatus.PARTIAL_CONTENT
        first, stop = span or (0, size)
        self.send_response(status)
        if span is not None:
            self.send_header("Content-Range", f"bytes {first}-{stop - 1}/{size}")
        if is_file:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", content.kind)
        self.send_header("Content-Length", str(stop - first))
        for name, value in self._safety().items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._write(body, first, stop)

    def _safety(self) -> dict[str, str]:
        return {
            "Content-Security-Policy": f"{self.server.page.policy}; media-src 'self'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }

    def _span(self, size: int) -> tuple[int, int] | None:
        """What a browser asks for of a video, as (first, stop); None: all of it."""
        asked = re.fullmatch(
            r"bytes=(\d{1,15})-(\d{0,15})", self.headers.get("Range", ""), re.ASCII
        )
        if asked is None:
            return None
        first, last = int(asked[1]), int(asked[2]) if asked[2] else size - 1
        return (first, min(last + 1, size)) if first <= last and first < size else None

    def _write(self, body: bytes | Path, first: int, stop: int) -> None:
        if isinstance(body, bytes):
            self.wfile.write(body)
            return
        with body.open("rb") as file:
            file.seek(first)
            left = stop - first
            while left > 0 and (block := file.read(min(BLOCK, left))):
                self.wfile.write(block)
                left -= len(block)
