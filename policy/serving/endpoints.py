"""What a server says over plain HTTP, on the port of its WebSocket.

    GET /health    200 while the process answers
    GET /ready     200 while plans can be asked for, else 503 and why
    GET /metrics   counts, for Prometheus; with the token as `Authorization: Bearer` if there is one
    GET /          the page, where there is one

A browser must not lead others here: a page from elsewhere is refused by its `Origin`, and a name
that was bent to point to this computer (DNS rebinding) by its `Host`.
"""

import base64
import hashlib
import hmac
import http
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from websockets.datastructures import Headers, MultipleValuesError
from websockets.http11 import Request, Response

MAX_PAGE = 2**20  # bytes
# On which a person watches a robot being controlled.
WATCH_PAGE = Path(__file__).with_name("watch.html")


@dataclass(frozen=True)
class Page:
    """One HTML file and what it may do.

    Args:
        body: of the file.
        policy: its Content-Security-Policy: its own inline scripts and styles, by their digests,
            and connections to this server; nothing else.
    """

    body: bytes
    policy: str

    @classmethod
    def read(cls, path: Path) -> "Page":
        """A page from its file.

        Raises:
            ValueError: the file is too large or no UTF-8.
        """
        body = path.read_bytes()
        if len(body) > MAX_PAGE:
            raise ValueError(f"page {path} has {len(body)} bytes, at most {MAX_PAGE} are served")
        try:
            text = body.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"page {path} is no UTF-8 text: save it as such") from error
        parts = [
            "default-src 'none'",
            f"script-src {_digests(text, 'script')}",
            f"style-src {_digests(text, 'style')}",
            "connect-src 'self'",
            "img-src 'self' data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
        return cls(body, "; ".join(parts))


def _digests(text: str, tag: str) -> str:
    """The inline elements of a kind, as a policy names them."""
    found = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}\s*>", text, re.DOTALL | re.IGNORECASE)
    digests = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in found]
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"


@dataclass(frozen=True)
class Endpoints:
    """Answers HTTP requests.

    Args:
        readiness: why the server is not ready, "" where it is.
        metrics: their text.
        has_room: whether one more WebSocket may be opened.
        token: that guards the metrics, if there is one.
        page: shown at `/`, if there is one.
        names: by which the server may be called; None where any will do.
        is_secure: whether it speaks TLS.
    """

    readiness: Callable[[], str]
    metrics: Callable[[], str]
    has_room: Callable[[], bool]
    token: str | None
    page: Page | None
    names: tuple[str, ...] | None
    is_secure: bool

    def respond(self, request: Request) -> Response | None:
        """The response to a request; None where a WebSocket shall be opened."""
        path = request.path.split("?")[0]
        try:
            host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        except MultipleValuesError:
            return _text(400, "Host and Origin can be given once only")
        name = re.sub(r":\d*$", "", host).lower()
        if self.names is not None and name not in self.names:
            return _text(421, f"this server is called {' or '.join(self.names)}")
        if "Upgrade" in request.headers:
            return self._refuse_upgrade(path, host, origin)
        if request.method != "GET":
            return _text(405, "only GET is answered")
        return self._get(path, request)

    def _refuse_upgrade(self, path: str, host: str, origin: str | None) -> Response | None:
        """Why a WebSocket is not opened; None where it is."""
        own = f"{'https' if self.is_secure else 'http'}://{host}"
        if origin is not None and (self.page is None or origin.lower() != own.lower()):
            return _text(403, "pages from elsewhere cannot connect")
        if path != "/":
            return _text(404, "connect to /")
        return None if self.has_room() else _text(503, "too many connections, try again later")

    def _get(self, path: str, request: Request) -> Response:
        if path == "/health":
            return _text(200, "alive")
        if path == "/ready":
            reason = self.readiness()
            return _text(503, reason) if reason else _text(200, "ready")
        if path == "/metrics":
            if not self._is_authorized(request):
                return _text(401, "give the token as Authorization: Bearer")
            return _text(200, self.metrics().rstrip("\n"))
        if path == "/" and self.page is not None:
            return _response(200, "text/html; charset=utf-8", self.page.body, self.page.policy)
        return _text(404, "there are /health, /ready and /metrics")

    def _is_authorized(self, request: Request) -> bool:
        if self.token is None:
            return True
        given = request.headers.get_all("Authorization")
        return len(given) == 1 and is_same_secret(given[0], f"Bearer {self.token}")


def is_same_secret(given: str, expected: str) -> bool:
    """Whether two texts are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(given.encode(errors="replace"), expected.encode())


def _text(status: int, text: str) -> Response:
    return _response(
        status, "text/plain; charset=utf-8", f"{text}\n".encode(), "default-src 'none'"
    )


def _response(status: int, kind: str, body: bytes, policy: str) -> Response:
    headers = Headers(
        {
            "Connection": "close",
            "Content-Length": str(len(body)),
            "Content-Type": kind,
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
    )
    return Response(status, http.HTTPStatus(status).phrase, headers, body)
