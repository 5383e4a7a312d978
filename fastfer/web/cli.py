# SPDX-License-Identifier: Apache-2.0
"""``python -m fastfer.web``: the arguments, the server's life, the exit code."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from fastfer import weights
from fastfer.data.files import printable

if TYPE_CHECKING:
    from fastfer.web.recognizers import Recognizers

_EPILOG = """\
The page takes a picture or opens the camera, and shows the faces with the probabilities of their expressions. Nothing
is stored. The server answers this machine alone unless --host says otherwise; browsers then open a camera over https
only. Exit code: 0, 1 where the address cannot be had, 2 for wrong arguments.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastfer.web",
        description="A page that shows the expressions of faces.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8321, help="0 takes a free one (default: 8321)")
    parser.add_argument("--name", action="append", default=[], help="a further name of this server; may be repeated")
    parser.add_argument("--weights", default=_usual(), help="engine file (.ffe), weight file, or a shipped network")
    parser.add_argument("--precision", help="float32 or bfloat16 (default: as compiled)")
    parser.add_argument("--faces", choices=("detect", "whole"), default="detect", help="whole: pictures are faces")
    parser.add_argument("--detector", metavar="FILE", help="YuNet's file (default: where it is found)")
    parser.add_argument("--threads", type=int, help="threads of the network")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    return parser


def _usual() -> str:
    """The smallest network, or the first of those that ship."""
    names = weights.list()
    return names[0] if names and "fgw_fer" not in names else "fgw_fer"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    if not 0 <= args.port < 65536:
        return _fail(f"--port: expected 0 to 65535, got {args.port}", 2)
    if args.faces == "whole" and args.detector is not None:
        return _fail("--detector: expected none with --faces whole", 2)
    try:
        from fastfer.web.recognizers import Recognizers
        from fastfer.web.server import serving  # noqa: F401  (says here that aiohttp is missing)

        recognizers = Recognizers(
            args.weights, detector=args.detector, faces=args.faces, threads=args.threads, precision=args.precision
        )
    except ModuleNotFoundError as error:
        hint = ": pip install 'fastfer[web]'" if (error.name or "").partition(".")[0] == "aiohttp" else ""
        return _fail(f"{error}{hint}", 2)
    except (ImportError, OSError, TypeError, ValueError) as error:
        return _fail(str(error), 2)
    try:
        asyncio.run(_serve(recognizers, args))
    except KeyboardInterrupt:
        pass
    except (OSError, UnicodeError) as error:
        return _fail(f"cannot listen at {args.host} port {args.port}: {error}", 1)
    return 0


async def _serve(recognizers: Recognizers, args: argparse.Namespace) -> None:
    """Until a signal ends it."""
    from fastfer.web.guard import is_loopback
    from fastfer.web.server import serving

    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):  # Windows, where Ctrl+C raises KeyboardInterrupt
            loop.add_signal_handler(name, stop.set)
    async with serving(recognizers, host=args.host, port=args.port, names=args.name) as url:
        if recognizers.detector_missing and args.faces == "detect":
            print(f"faces cannot be found, pictures are taken as one: {recognizers.detector_missing}", file=sys.stderr)
        if not is_loopback(args.host):
            print(f"note: whoever reaches {args.host} can use this server, without a password", file=sys.stderr)
        print(f"fastfer: {url}  (Ctrl+C ends)", flush=True)
        if args.open:
            webbrowser.open(url)
        await stop.wait()


def _fail(message: str, code: int) -> int:
    print(f"fastfer.web: {printable(message)}", file=sys.stderr)
    return code
