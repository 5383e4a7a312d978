# SPDX-License-Identifier: Apache-2.0
"""The server: five files and a WebSocket.

aiohttp rather than the standard library, which has no WebSocket and no HTTP server that is meant for hostile input.
"""

from __future__ import annotations

import asyncio
import html
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib import resources
from weakref import WeakSet

from aiohttp import WSCloseCode, web
from aiohttp.typedefs import Handler

from fastfer import __version__, _environment
from fastfer._lawful_use import LAWFUL_USE
from fastfer.web.guard import GUARD, SILENT, Guard, add_headers, refuse
from fastfer.web.limits import Limits
from fastfer.web.listener import Listener
from fastfer.web.recognizers import Recognizers
from fastfer.web.session import Session

FILES = {
    "index.html": "text/html",
    "style.css": "text/css",
    "app.js": "text/javascript",
    "draw.js": "text/javascript",
    "link.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
"""All that there is to get; names from outside never meet the file system."""

_CLOSE_SECONDS = 2.0
"""For a page to say goodbye: one that reads nothing never does."""


class _Server:
    """The handlers, and what they share."""

    def __init__(self, recognizers: Recognizers, limits: Limits) -> None:
        self._recognizers, self._limits = recognizers, limits
        self._open: WeakSet[web.WebSocketResponse] = WeakSet()
        self._sessions = 0
        self._workers = ThreadPoolExecutor(max(2, min(8, _environment.cpus())), thread_name_prefix="fastfer-web")
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="fastfer-web-load")

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        """The session of a page, to its end."""
        # No compression: pictures are compressed, and a small message could unpack to a huge one.
        socket = web.WebSocketResponse(
            max_msg_size=self._limits.message_bytes, heartbeat=30.0, compress=False, timeout=_CLOSE_SECONDS
        )
        await socket.prepare(request)
        if self._sessions >= self._limits.sessions:
            await socket.send_json({"type": "error", "message": f"{self._sessions} pages are open, try again later"})
            await socket.close(code=WSCloseCode.TRY_AGAIN_LATER)
            return socket
        self._sessions += 1
        self._open.add(socket)
        try:
            await Session(socket, self._recognizers, self._limits, self._workers, self._loader).run()
        finally:
            self._sessions -= 1
        return socket

    async def close(self, app: web.Application) -> None:
        """Ends all sessions."""
        await asyncio.gather(
            *(socket.close(code=WSCloseCode.GOING_AWAY, message=b"the server stops") for socket in list(self._open)),
            return_exceptions=True,
        )
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._loader.shutdown(wait=False, cancel_futures=True)


def application(recognizers: Recognizers, guard: Guard, limits: Limits | None = None) -> web.Application:
    """For aiohttp's runners; `serving` starts it with limits on connections besides."""
    server = _Server(recognizers, limits or Limits())
    app = web.Application(middlewares=[refuse])
    app[GUARD], app[SILENT] = guard, set()
    for name, kind in FILES.items():
        app.router.add_get("/" if name == "index.html" else f"/{name}", _file(name, kind))
    app.router.add_get("/socket", server.socket)
    app.on_response_prepare.append(add_headers)
    app.on_shutdown.append(server.close)
    return app


@asynccontextmanager
async def serving(
    recognizers: Recognizers,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    names: Iterable[str] = (),
    limits: Limits | None = None,
) -> AsyncIterator[str]:
    """Serve while the context lasts; yields the page's address. ``port`` 0 takes a free one.

    OSError where the address cannot be had.
    """
    limits = limits or Limits()
    app = application(recognizers, Guard(host, names), limits)
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=15.0, lingering_time=2.0, shutdown_timeout=3.0)
    await runner.setup()
    try:
        assert runner.server is not None
        listener = Listener(runner.server, limits, app[SILENT])
        server = await asyncio.get_running_loop().create_server(listener.accept, host, port)
        try:
            chosen = server.sockets[0].getsockname()[1]
            yield f"http://{f'[{host}]' if ':' in host else host}:{chosen}/"
        finally:
            server.close()
    finally:
        await runner.cleanup()


def _file(name: str, kind: str) -> Handler:
    content = resources.files("fastfer.web").joinpath("static", name).read_text("utf-8")
    if kind == "text/html":
        content = content.replace("{{lawful_use}}", html.escape(LAWFUL_USE)).replace("{{version}}", __version__)

    async def get(request: web.Request) -> web.Response:
        return web.Response(text=content, content_type=kind, charset="utf-8")

    return get
