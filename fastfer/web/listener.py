# SPDX-License-Identifier: Apache-2.0
"""Accepts connections, so many at a time, and drops those that do not say what they want."""

from __future__ import annotations

import asyncio

from aiohttp import web

from fastfer.web.limits import Limits

_BUSY = b"too many connections\n"


class Listener:
    """Makes the protocols of ``server``, for asyncio's ``create_server``."""

    def __init__(self, server: web.Server, limits: Limits, silent: set[web.RequestHandler]) -> None:
        """``silent``: connections that sent no whole request yet; whoever gets one takes its connection out."""
        self._server, self._limits, self._silent = server, limits, silent

    def accept(self) -> asyncio.BaseProtocol:
        """The protocol of a new connection."""
        if len(self._server.connections) >= self._limits.connections:
            return _Busy()
        protocol = self._server()
        self._silent.add(protocol)
        asyncio.get_running_loop().call_later(self._limits.first_seconds, self._drop, protocol)
        return protocol

    def _drop(self, protocol: web.RequestHandler) -> None:
        """End a connection that is still silent: aiohttp waits for a first request without end."""
        if protocol in self._silent:
            self._silent.discard(protocol)
            if protocol.transport is not None:
                protocol.transport.abort()


class _Busy(asyncio.Protocol):
    """Says so, and hangs up."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: {len(_BUSY)}\r\n"
        transport.write(f"{head}Retry-After: 5\r\nConnection: close\r\n\r\n".encode() + _BUSY)
        transport.close()
