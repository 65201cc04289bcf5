"""What the page can have the emulator do: one JSON object each, whose `action` names it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta, Struct, json

from chatstate.emulator import payloads
from chatstate.emulator.delivery import Order
from chatstate.emulator.graph import ERROR_CODES
from chatstate.emulator.media import Kind
from chatstate.emulator.payloads import Content, Identities
from chatstate.errors import InvalidRequest, UnsupportedMediaType
from chatstate.http.messages import Request

if TYPE_CHECKING:
    from chatstate.emulator.app import Emulator

MOST_BYTES = 64 << 10

Text = Annotated[str, Meta(min_length=1, max_length=4096)]
Few = Annotated[int, Meta(ge=1, le=100)]


class _Action(Struct, frozen=True, forbid_unknown_fields=True, tag_field="action"):
    """Something to do. `run` raises KeyError when there is no such person, message or choice."""


class Write(_Action, frozen=True, tag="write"):
    person: str
    text: Text
    reply_to: str = ""

    async def run(self, emulator: Emulator) -> None:
        await emulator.write(emulator.person(self.person), self.text, reply_to=self.reply_to)


class Choose(_Action, frozen=True, tag="choose"):
    person: str
    message: str
    choice: str

    async def run(self, emulator: Emulator) -> None:
        await emulator.choose(emulator.person(self.person), self.message, self.choice)


class Attach(_Action, frozen=True, tag="attach"):
    person: str
    kind: Kind
    caption: Annotated[str, Meta(max_length=1024)] = ""

    async def run(self, emulator: Emulator) -> None:
        await emulator.attach(emulator.person(self.person), self.kind, self.caption)


class Post(_Action, frozen=True, tag="post"):
    person: str
    content: Literal["location", "contacts", "order", "button", "unsupported", "unknown"]

    async def run(self, emulator: Emulator) -> None:
        content, shown = _CONTENTS[self.content]
        await emulator.post(emulator.person(self.person), content, shown)


class React(_Action, frozen=True, tag="react"):
    person: str
    message: str
    emoji: Annotated[str, Meta(max_length=16)]

    async def run(self, emulator: Emulator) -> None:
        await emulator.react(emulator.person(self.person), self.message, self.emoji)


class Edit(_Action, frozen=True, tag="edit"):
    person: str
    message: str
    text: Text

    async def run(self, emulator: Emulator) -> None:
        await emulator.edit(emulator.person(self.person), self.message, self.text)


class Revoke(_Action, frozen=True, tag="revoke"):
    person: str
    message: str

    async def run(self, emulator: Emulator) -> None:
        await emulator.revoke(emulator.person(self.person), self.message)


class Change(_Action, frozen=True, tag="change"):
    person: str
    what: Literal["number", "user_id"]

    async def run(self, emulator: Emulator) -> None:
        change = emulator.change_number if self.what == "number" else emulator.change_user_id
        await change(emulator.person(self.person))


class Add(_Action, frozen=True, tag="add"):
    name: Annotated[str, Meta(min_length=1, max_length=60)]

    async def run(self, emulator: Emulator) -> None:
        emulator.add_person(self.name)


class Block(_Action, frozen=True, tag="block"):
    person: str
    blocked: bool

    async def run(self, emulator: Emulator) -> None:
        key = emulator.person(self.person).key
        (emulator.blocked.add if self.blocked else emulator.blocked.discard)(key)
        emulator.feed.changed("state")


class Set(_Action, frozen=True, tag="set"):
    """Changes those settings that are given."""

    identities: Identities | None = None
    reads: bool | None = None
    duplicates: Few | None = None
    window: Literal["refuse", "fail", "off"] | None = None
    pair: bool | None = None
    throughput: Annotated[int, Meta(ge=0, le=10_000)] | None = None

    async def run(self, emulator: Emulator) -> None:
        owners = {"identities": emulator, "reads": emulator, "duplicates": emulator.network}
        for name in self.__struct_fields__:
            if (value := getattr(self, name)) is not None:
                setattr(owners.get(name, emulator.limits), name, value)
        emulator.feed.changed("state")


class Hold(_Action, frozen=True, tag="hold"):
    async def run(self, emulator: Emulator) -> None:
        emulator.hold()


class Release(_Action, frozen=True, tag="release"):
    order: Order = "kept"
    batch: bool = False

    async def run(self, emulator: Emulator) -> None:
        await emulator.release(self.order, batch=self.batch)


class Retry(_Action, frozen=True, tag="retry"):
    """Ask the webhook for its consent, and deliver what waits to be tried again."""

    async def run(self, emulator: Emulator) -> None:
        emulator.network.retry_now()
        if emulator.network.webhook.state != "ready":
            await emulator.network.verify()


class Fail(_Action, frozen=True, tag="fail"):
    """Refuse the next sends; 0 times: no more."""

    code: int
    times: Annotated[int, Meta(ge=0, le=100)] = 1
    retry_after: Annotated[int, Meta(ge=0, le=86_400)] | None = None

    async def run(self, emulator: Emulator) -> None:
        if self.code not in ERROR_CODES:
            raise KeyError(self.code)
        emulator.stop_failing()
        emulator.fail_sends(self.code, self.times, retry_after=self.retry_after)


Action = (
    Write | Choose | Attach | Post | React | Edit | Revoke | Change | Add | Block | Set | Hold | Release | Retry | Fail
)
_ACTIONS = json.Decoder(Action)

_CONTENTS: dict[str, tuple[Content, str]] = {
    "location": (payloads.location(), "Brandenburg Gate"),
    "contacts": (payloads.contacts(), "Ana Núñez"),
    "order": (payloads.order(), "An order of two products"),
    "button": (payloads.template_button("confirm-appointment", "Confirm"), "Confirm (button of a template)"),
    "unsupported": (payloads.unsupported(), "A poll"),
    "unknown": (payloads.unknown(), "Something that is yet to be invented"),
}


async def carry_out(emulator: Emulator, request: Request) -> None:
    """What the request asks for. Raises `InvalidRequest` when it cannot be done."""
    # A page of another origin cannot send this media type without asking first, and nobody would answer.
    if request.headers.get("content-type").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType
    try:
        action = _ACTIONS.decode(await request.read(MOST_BYTES))
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"The action cannot be read: {error}.") from None
    try:
        await action.run(emulator)
    except KeyError:
        raise InvalidRequest("There is no such person, message or choice.") from None
