"""Keeps everybody out but the browser that was given the link: address, origin, link and cookie are looked at first.

The link holds a random token and works once; the browser then has a cookie that scripts can't read and other sites
can't use. Cookies are not kept apart by port, so that it is bound to a random path as well, which a server on another
port of this machine is never asked for.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "lowcomm_ui"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
"""Of every answer, unless it brings its own."""


def _random() -> str:
    return secrets.token_urlsafe(32)


@dataclass(kw_only=True)
class Keys:
    """Secrets of one server; none is ever written down."""

    port: int
    place: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    """Random part of the path that everything lies below."""
    token: str = field(default_factory=_random)
    """Of the next link."""
    cookie: str = field(default_factory=_random)

    @property
    def base(self) -> str:
        """Path of all pages, with a slash at its end."""
        return f"/{self.place}/"

    @property
    def link(self) -> str:
        """What a browser opens."""
        return f"http://127.0.0.1:{self.port}/?token={self.token}"


@dataclass(frozen=True, kw_only=True)
class Guard:
    """ASGI application in front of the pages."""

    app: ASGIApp
    keys: Keys
    used: Callable[[], None]
    """Called when a link was used, and there is a new one."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        answer = self._refusal(scope) or self._login(scope) or self._stranger(scope)
        await (answer or self.app)(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        """For requests that no browser of ours makes: another host's name, another site's page, a prefetch."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if host not in (f"127.0.0.1:{self.keys.port}", f"localhost:{self.keys.port}"):
            return PlainTextResponse(f"open http://127.0.0.1:{self.keys.port}, by this name and port\n", 421)
        asks = scope["method"] in ("GET", "HEAD")
        if (origin is None and not asks) or origin not in (None, f"http://{host}"):
            return PlainTextResponse("this request comes from another page\n", 403)
        if scope["path"] != "/" and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return PlainTextResponse("this request comes from another page\n", 403)
        if "prefetch" in headers.get("sec-purpose", ""):  # it would use up the link
            return PlainTextResponse("open the link\n", 403)
        return None

    def _login(self, scope: Scope) -> Response | None:
        """A page that goes on to the pages with a cookie, for whoever has the link; the link is used up."""
        if scope["path"] != "/" or scope["method"] != "GET":
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if not hmac.compare_digest(given.encode(), self.keys.token.encode()):
            return None
        self.keys.token = _random()
        self.used()
        # no redirect: after a link of another site it would count as that site's, and go without the cookie
        head = f'<meta http-equiv="refresh" content="0;url={self.keys.base}"><link rel="icon" href="data:,">'
        answer = HTMLResponse(f"<!doctype html>{head}" + f'<a href="{self.keys.base}">lowcomm</a>')
        answer.set_cookie(COOKIE, self.keys.cookie, path=self.keys.base, httponly=True, samesite="strict")
        return answer

    def _stranger(self, scope: Scope) -> Response | None:
        """For a request without the cookie, or beside the path."""
        known = any(
            hmac.compare_digest(value.encode(), self.keys.cookie.encode())
            for name, value in _cookies(Headers(scope=scope).getlist("cookie"))
            if name == COOKIE
        )
        if known and scope["path"].startswith(self.keys.base):
            return None
        return PlainTextResponse("open the link that lowcomm ui has printed last; each works once\n", 401)


def _cookies(headers: list[str]) -> list[tuple[str, str]]:
    pairs = [pair.strip().partition("=") for header in headers for pair in header.split(";")]
    return [(name, value) for name, _, value in pairs]


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sending
