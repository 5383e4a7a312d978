# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium for tests, driven over its debugging protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def browser() -> str | None:
    """The program, where one is installed; FASTFER_TEST_BROWSER names another."""
    found = (shutil.which(name) for name in _NAMES)
    return os.environ.get("FASTFER_TEST_BROWSER") or next((path for path in found if path), None)


class Tab:
    """One page of the browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._numbers = socket, count(1)
        self.problems: list[str] = []
        """What its console said."""

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json(timeout=60)
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.problems.append(json.dumps(message["params"])[:500])
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                result: dict[str, Any] = message["result"]
                return result

    async def run(self, code: str) -> Any:
        """The value of an expression in the page."""
        answer = await self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def wait(self, code: str, seconds: float = 60.0) -> Any:
        """The value of an expression when it is true."""
        end = time.monotonic() + seconds
        while not (value := await self.run(code)):
            said = await self.run("document.getElementById('message')?.textContent")
            assert time.monotonic() < end, f"{code}: not within {seconds} seconds; {said!r}, {self.problems}"
            await asyncio.sleep(0.1)
        return value

    async def size(self, width: int, height: int, *, dark: bool = False) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        await asyncio.sleep(0.3)

    async def screenshot(self, path: Path) -> None:
        answer = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))


@asynccontextmanager
async def opened(url: str, folder: Path, *options: str) -> AsyncIterator[Tab]:
    """The page ``url`` in a browser of its own, whose files lie in ``folder``."""
    program = browser()
    assert program is not None
    command = [
        program, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
        "--disable-dev-shm-usage", "--remote-debugging-port=0", f"--user-data-dir={folder / 'profile'}",
        "--window-size=1280,900", *options, "about:blank",
    ]  # fmt: skip
    with (folder / "browser.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            async with aiohttp.ClientSession() as session:
                address = await _tab(session, folder / "profile" / "DevToolsActivePort")
                async with session.ws_connect(address, max_msg_size=0) as socket:
                    tab = Tab(socket)
                    for domain in ("Page", "Runtime", "Log"):
                        await tab.call(f"{domain}.enable")
                    await tab.call("Page.navigate", url=url)
                    yield tab
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


async def _tab(session: aiohttp.ClientSession, file: Path) -> str:
    """The debugging address of the first tab, when the browser has started."""
    for _ in range(600):
        if file.exists() and "\n" in (text := file.read_text()):
            async with session.get(f"http://127.0.0.1:{text.splitlines()[0]}/json/list") as answer:
                pages = [page for page in await answer.json(content_type=None) if page["type"] == "page"]
            if pages:
                return str(pages[0]["webSocketDebuggerUrl"])
        await asyncio.sleep(0.1)
    raise AssertionError("the browser did not start within a minute")
