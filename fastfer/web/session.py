# SPDX-License-Identifier: Apache-2.0
"""The WebSocket of one open page: a message, an answer, one after the other.

The server says hello first. A text message changes settings, a binary one is an encoded picture; each gets one answer,
an object with "type": "settings", "faces" or "error". The next message is read when the answer is out, so a page that
sends too much waits, and no queue grows.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import asdict
from typing import Any, TypeVar

from aiohttp import WSCloseCode, WSMsgType, web

from fastfer.data.split import DataError
from fastfer.predict.recognizer import Recognizer
from fastfer.predict.track import Tracker
from fastfer.web.limits import Limits
from fastfer.web.look import look
from fastfer.web.recognizers import Recognizers
from fastfer.web.settings import Settings, parsed

_T = TypeVar("_T")
_LOG = logging.getLogger("fastfer.web")


class Session:
    """One page. ``workers`` look at pictures, ``loader`` loads networks, so that no one waits for another's."""

    def __init__(
        self,
        socket: web.WebSocketResponse,
        recognizers: Recognizers,
        limits: Limits,
        workers: Executor,
        loader: Executor,
    ) -> None:
        self._socket, self._recognizers, self._limits = socket, recognizers, limits
        self._workers, self._loader = workers, loader
        self._settings = recognizers.start
        self._tracker: Tracker | None = None
        self._next = time.monotonic()

    async def run(self) -> None:
        """Until the page goes away, is idle, or does not take its answers."""
        try:
            await self._send(hello(self._recognizers, self._limits))
            while True:
                async with asyncio.timeout(self._limits.idle_seconds):
                    message = await self._socket.receive()
                if message.type is WSMsgType.TEXT:
                    answer = await self._answer(self._change, message.data)
                elif message.type is WSMsgType.BINARY:
                    answer = await self._answer(self._look, message.data)
                else:  # closed, by the page or for a message that is too large or malformed
                    return
                await self._send(answer)
                await self._pace()
        except TimeoutError:
            await self._socket.close(code=WSCloseCode.GOING_AWAY, message=b"idle", drain=False)
        except ConnectionError:
            return

    async def _answer(self, task: Callable[[Any], Any], data: Any) -> dict[str, Any]:
        """What ``task`` gives, or the error that it raised."""
        try:
            answer: dict[str, Any] = await task(data)
            return answer
        except (DataError, ImportError, OSError, TypeError, ValueError) as error:
            return {"type": "error", "message": str(error)[:500]}
        except Exception:
            _LOG.exception("a page's message could not be answered")
            return {"type": "error", "message": "the server failed on this; its log says why"}

    async def _change(self, text: str) -> dict[str, Any]:
        start = time.perf_counter()
        offers, detector = self._recognizers.offers, self._recognizers.detector_missing is None
        settings = parsed(text, self._settings, offers, detector)
        recognizer = await self._recognizer(settings)
        self._settings = settings
        self._tracker = Tracker(smooth=settings.smooth) if settings.live else None
        return {
            "type": "settings",
            "settings": asdict(settings),
            "classes": list(recognizer.classes),
            "input": list(recognizer.engine.input_shape),
            "precision": recognizer.engine.dtype,
            "milliseconds": round(1e3 * (time.perf_counter() - start), 3),
        }

    async def _look(self, data: bytes) -> dict[str, Any]:
        recognizer = await self._recognizer(self._settings)
        return await self._in(self._workers, lambda: look(recognizer, data, self._tracker, self._limits))

    async def _recognizer(self, settings: Settings) -> Recognizer:
        if self._recognizers.is_loaded(settings):
            return self._recognizers.get(settings)
        return await self._in(self._loader, lambda: self._recognizers.get(settings))

    async def _in(self, executor: Executor, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(executor, work)

    async def _send(self, answer: dict[str, Any]) -> None:
        async with asyncio.timeout(self._limits.send_seconds):
            await self._socket.send_str(json.dumps(answer, allow_nan=False))

    async def _pace(self) -> None:
        """Wait so long that messages come no faster than the limit."""
        now = time.monotonic()
        self._next = max(self._next + 1 / self._limits.rate, now - 1)  # what was saved in a second may come at once
        if self._next > now:
            await asyncio.sleep(self._next - now)


def hello(recognizers: Recognizers, limits: Limits) -> dict[str, Any]:
    """What a page has to know first."""
    return {
        "type": "hello",
        "weights": [{"name": name, "precisions": list(offer)} for name, offer in recognizers.offers.items()],
        "settings": asdict(recognizers.start),
        "detector_missing": recognizers.detector_missing,
        "limits": {"bytes": limits.message_bytes, "pixels": limits.pixels},
    }
