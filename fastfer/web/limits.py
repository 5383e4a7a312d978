# SPDX-License-Identifier: Apache-2.0
"""How much a server takes from those who connect to it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Of one server, and of each session, which is the WebSocket of one open page.

    message_bytes   of a message: an encoded picture
    pixels          of a picture, known from its header before any is decoded
    faces           of a picture that are classified, the best detections
    connections     open at a time, of any kind
    sessions        open at a time
    rate            messages a second of a session; faster ones wait
    first_seconds   until the first request of a connection is whole
    idle_seconds    after which a session without messages ends
    send_seconds    until an answer is taken
    """

    message_bytes: int = 32 << 20
    pixels: int = 50_000_000
    faces: int = 256
    connections: int = 64
    sessions: int = 16
    rate: float = 120.0
    first_seconds: float = 10.0
    idle_seconds: float = 900.0
    send_seconds: float = 20.0
