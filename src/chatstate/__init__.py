"""chatstate: the session server for chatbots. A bot saves its whole state under one id and finds it again anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chatstate.bot import Attachment, Choice, Media, Message, Reply, Turn
    from chatstate.client import AsyncClient, Client
    from chatstate.http.app import create_app
    from chatstate.stores import create_store

__all__ = [
    "AsyncClient",
    "Attachment",
    "Choice",
    "Client",
    "Media",
    "Message",
    "Reply",
    "Turn",
    "__version__",
    "create_app",
    "create_store",
]
__version__ = "0.6.0"


def __getattr__(name: str) -> Any:
    # The server is imported when it is asked for, and so is the client: `import chatstate` alone stays light.
    if name in ("AsyncClient", "Client"):
        from chatstate import client

        return getattr(client, name)
    if name in ("Attachment", "Choice", "Media", "Message", "Reply", "Turn"):
        from chatstate import bot

        return getattr(bot, name)
    if name == "create_app":
        from chatstate.http.app import create_app

        return create_app
    if name == "create_store":
        from chatstate.stores import create_store

        return create_store
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
