"""chatstate that kills itself: `python -m tests.crash.killed_at POINT COUNT serve …` is `chatstate serve …`, and ends
by SIGKILL when it has passed this point in the way of a message for so many times.

The points are between two steps, of which the first one is done and nobody knows it yet. Nothing of this is part of
chatstate: its methods are wrapped here.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from chatstate.channels.whatsapp.cloud import WhatsAppCloud
from chatstate.cli import main
from chatstate.inbox import Inbox
from chatstate.leases import Leases
from chatstate.sessions import Sessions
from chatstate.turns import Turns

POINTS: dict[str, tuple[type, str]] = {
    "after store": (Inbox, "_commit"),
    "after lease": (Leases, "take"),
    "after bot": (Turns, "_played"),
    "after commit": (Sessions, "take_turn"),
    "after send": (WhatsAppCloud, "send"),
}


def kill_at(point: str, count: int) -> None:
    """From now on the process is killed when it passes the point for the `count`th time."""
    owner, name = POINTS[point]
    method: Callable[..., Awaitable[Any]] = getattr(owner, name)
    left = count

    @wraps(method)
    async def passing(*given: Any, **more: Any) -> Any:
        nonlocal left
        result = await method(*given, **more)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, passing)


if __name__ == "__main__":
    kill_at(sys.argv[1], int(sys.argv[2]))
    main(sys.argv[3:])
