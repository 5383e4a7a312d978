# SPDX-License-Identifier: Apache-2.0
"""Who may talk to the server: pages of its own alone.

A page from elsewhere that is open in the same browser reaches 127.0.0.1, too. Its requests carry its own Origin; and
where its name was made to point here (DNS rebinding), the Host is that name and not one of ours.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from aiohttp import web
from aiohttp.typedefs import Handler

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{1,5})?")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=(), display-capture=()",
    "Referrer-Policy": "no-referrer",
    "Server": "fastfer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""On every answer."""


class Guard:
    """For a server at ``host``; ``names`` are further ones by which it is called."""

    def __init__(self, host: str, names: Iterable[str] = ()) -> None:
        self._any_address = _unspecified(host)
        self._names = {name.lower() for name in (host, *names)}
        if self._any_address or is_loopback(host):
            self._names |= _LOOPBACK

    def refusal(self, request: web.BaseRequest) -> str | None:
        """Why a request is refused; None where it is not."""
        hosts = request.headers.getall("Host", [])
        name = _name(hosts[0]) if len(hosts) == 1 else None
        if name is None or not self._is_ours(name):
            return "this server answers to its own name alone; start it with --name for another one"
        origins = request.headers.getall("Origin", [])
        if not origins:
            # Browsers send it with every WebSocket.
            return "WebSockets are for the server's own page" if "Upgrade" in request.headers else None
        if len(origins) > 1 or not _same(origins[0], hosts[0]):
            return "pages of other origins are refused"
        return None

    def _is_ours(self, name: str) -> bool:
        if name in self._names:
            return True
        # A number cannot be made to point elsewhere.
        return self._any_address and _address(name) is not None


@web.middleware
async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers 403 where the application's guard refuses."""
    request.app[SILENT].discard(request.protocol)
    why = request.app[GUARD].refusal(request)
    if why is not None:
        raise web.HTTPForbidden(text=f"403: {why}\n")
    return await handler(request)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """HEADERS, on their way out."""
    response.headers.update(HEADERS)


GUARD = web.AppKey("guard", Guard)
SILENT: web.AppKey[set[web.RequestHandler]] = web.AppKey("silent", set)
"""Connections without a whole request yet."""


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach it."""
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def _unspecified(host: str) -> bool:
    address = _address(host)
    return address is not None and address.is_unspecified


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _name(host: str) -> str | None:
    """Of a Host header, without the port: it is another one where it is forwarded."""
    match = _HOST.fullmatch(host)
    return None if match is None else (match[1] or match[2]).lower()


def _same(origin: str, host: str) -> bool:
    return origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")
