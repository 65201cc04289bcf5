"""Channels: ways on which people write beside the web. Each makes of its protocol the values here, and knows no rules.

whatsapp   the WhatsApp Cloud API
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import ClassVar, Literal, NamedTuple

from msgspec import Struct

from chatstate.bot import Message, Reply


class ExternalId(NamedTuple):
    """One of the names under which a channel knows a person, such as ("wa_id", "16505551234")."""

    kind: str
    value: str


class Contact(Struct, frozen=True):
    """Who has written: all names under which the channel knows the person now, the surest one first."""

    ids: tuple[ExternalId, ...]


class Arrived(Struct, frozen=True, kw_only=True):
    """A message of a channel, as it has come.

    id       the channel's own; the same when it is delivered again
    sender   who has sent it
    sent_at  by the channel's clock, in UTC
    message  what a bot shall see, with `id` as its id; None: nothing for a bot
    note     what it is, if it is nothing for a bot: `reaction`, `user_changed_number`, `unsupported` …
    former   names that are this person's no more, or perhaps another one's from now on
    """

    id: str
    sender: Contact
    sent_at: datetime
    message: Message | None = None
    note: str = ""
    former: tuple[ExternalId, ...] = ()


Status = Literal["sent", "delivered", "read", "failed"]


class Report(Struct, frozen=True):
    """What became of a message that we have sent. `id` is what `Channel.send` gave; `error` says why it failed."""

    id: str
    status: Status
    at: datetime
    error: str = ""


class Channel(ABC):
    """A way to reply, and to get attached files. Implementations raise `SendFailed` and no other error.

    name    of the channel, in the database and in logs
    window  for how long after a person's last message they may be sent something; None: always
    """

    name: ClassVar[str]
    window: ClassVar[timedelta | None]

    @abstractmethod
    def split(self, reply: Reply) -> Sequence[Reply]:
        """The reply as replies that are one message of the channel each, with ids of their own; the first keeps its."""

    @abstractmethod
    async def send(self, recipient: Contact, reply: Reply) -> str:
        """Send what `split` has given, once; the channel's id of the message. Raises `SendFailed`."""

    @abstractmethod
    async def show_typing(self, message_id: str) -> None:
        """Show the sender of this message that it was read and is being answered. Never raises; it may do nothing."""

    @abstractmethod
    async def download(self, media_id: str) -> tuple[bytes, str]:
        """The file of an attachment, and its media type. Raises `SendFailed`."""

    async def open(self) -> None:  # noqa: B027 (nothing to do is fine)
        """Get ready to send."""

    async def close(self) -> None:  # noqa: B027
        """Give back all connections."""
