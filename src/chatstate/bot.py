"""What a bot sees: a turn, with the state, the message that has come, and a way to reply. It knows nothing of channels.

    async def bot(turn: Turn) -> None:
        turn.state["visits"] = turn.state.get("visits", 0) + 1
        await turn.reply(f"Hello for the {turn.state['visits']}th time. Again?", choices=["Yes", "No"])

A turn is applied to the state once: the state that the bot leaves, its replies, and that the message is done, are one
write. Whatever goes wrong before that makes the turn run again, on the state as it is then; so what a bot does beside
the state (bookings, mails) should bear being done twice, or be told the ids of session and message, which stay.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from importlib import import_module
from inspect import iscoroutinefunction
from typing import Any, Literal, cast

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from chatstate.errors import InvalidSetting
from chatstate.model import format_time, utc_now


class Choice(Struct, frozen=True, omit_defaults=True):
    """An answer that is offered, or was chosen. `description` says more, where there is room for it."""

    id: str
    title: str
    description: str = ""


class Attachment(Struct, frozen=True, omit_defaults=True):
    """What came with a message; its caption is the message's text.

    id          the channel's reference to the file, for its `download`; empty where there is none
    media_type  of the file, such as image/jpeg
    details     what the channel says of a location, of contacts, or of an order
    """

    kind: Literal["image", "video", "audio", "document", "sticker", "location", "contacts", "order"]
    id: str = ""
    media_type: str = ""
    filename: str = ""
    details: Mapping[str, Any] = {}


class Message(Struct, frozen=True, omit_defaults=True):
    """What a person has said: a text, a choice, whose title is the text then, or an attachment.

    id  the same when the turn runs again; no two messages of a session have the same within eight days. On web pages
        it is the page's own, so it says nothing outside of its session
    at  when it was sent, in UTC
    """

    id: str
    at: datetime
    text: str = ""
    choice: Choice | None = None
    attachment: Attachment | None = None


class Media(Struct, frozen=True, omit_defaults=True):
    """A file that is sent with a reply. `url` is where channels and browsers fetch it, by https."""

    url: str
    kind: Literal["image", "video", "audio", "document"] = "image"
    filename: str = ""


class Reply(Struct, frozen=True, omit_defaults=True):
    """What a bot has said: a text, with choices perhaps, or with a file whose caption it is."""

    id: str
    text: str = ""
    choices: tuple[Choice, ...] = ()
    media: Media | None = None


class StateNotReadable(ValueError):
    """The state is not the text of a JSON object, so a bot cannot work with it."""


class StateNotWritable(ValueError):
    """The state that a bot has left cannot be saved; the message says why, and nothing of what is in it."""


class Turn:
    """What a bot is given for each message.

    user_session_id  the session's id
    state            the state, a JSON object: read it, change it, or put another one in its place. Its member
                     `messages` is what was said so far, the message of this turn included; replies are added to it
    message          what the person has said
    tries            how often the turn has failed before
    """

    def __init__(
        self,
        user_session_id: str,
        state: dict[str, Any],
        message: Message,
        tries: int = 0,
        tell: Callable[[Reply], None] = lambda _: None,
        clock: Callable[[], datetime] = utc_now,
        fetch: Callable[[str], Awaitable[tuple[bytes, str]]] | None = None,
    ) -> None:
        self.user_session_id = user_session_id
        self.state = state
        self.message = _recognised(message, state)
        self.tries = tries
        self.replies: list[Reply] = []
        self._begun = 0
        self._tell = tell
        self._clock = clock
        self._fetch = fetch
        self._say(_said(self.message))

    async def reply(
        self,
        text: str | AsyncIterable[str] = "",
        *,
        choices: Iterable[str | Choice] | Mapping[str, str] = (),
        media: Media | None = None,
    ) -> Reply:
        """Say something. It leaves when the bot has returned.

        text     or pieces of it as they come, such as a model's tokens: who watches the session sees it grow
        choices  answers to offer: titles, `Choice`s, or titles by ids. Typing one is as good as choosing it
        media    a file, whose caption is the text

        Raises ValueError for what is no reply.
        """
        self._begun += 1  # at once: another reply may be said while this one is still growing
        reply = Reply(f"{self.message.id}.{self._begun}", "", _choices(choices), media)
        if isinstance(text, str):
            reply = replace(reply, text=text)
        else:
            async for piece in text:
                reply = replace(reply, text=reply.text + piece)
                self._tell(reply)
        if not (reply.text.strip() or media):
            raise ValueError("a reply needs a text, or a file")
        self.replies.append(reply)
        self._say(_answered(reply, self._clock()))
        return reply

    async def download(self) -> bytes:
        """The file that came with the message, of at most 16 MiB.

        Raises ValueError when there is none, and `chatstate.errors.SendFailed` when the channel does not give it. Let
        that out, and the turn is run again later.
        """
        attachment = self.message.attachment
        if attachment is None or not attachment.id or self._fetch is None:
            raise ValueError("no file came with this message")
        content, _ = await self._fetch(attachment.id)
        return content

    def _say(self, entry: dict[str, Any]) -> None:
        """Add it to what was said, if the state has room for that."""
        said = self.state.setdefault("messages", [])
        if isinstance(said, list):
            said.append(entry)


Bot = Callable[[Turn], Awaitable[None]]
"""What developers write."""


def _choices(given: Iterable[str | Choice] | Mapping[str, str]) -> tuple[Choice, ...]:
    if isinstance(given, Mapping):
        given = [Choice(name, title) for name, title in given.items()]
    choices = tuple(Choice(choice, choice) if isinstance(choice, str) else choice for choice in given)
    if not all(isinstance(text, str) for choice in choices for text in (choice.id, choice.title, choice.description)):
        raise ValueError("ids and titles of choices are texts")
    if not all(choice.id and choice.title for choice in choices):
        raise ValueError("each choice needs an id and a title")
    if len({choice.id for choice in choices}) < len(choices):
        raise ValueError("no two choices may have the same id")
    return choices


# --- What was said, in the state --------------------------------------------------------------------------------------


def _said(message: Message) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": message.id, "role": "user", "text": message.text, "at": format_time(message.at)}
    if message.choice:
        entry["choice"] = message.choice.id
    if message.attachment:
        entry["attachment"] = _as_json(message.attachment)
    return entry


def _answered(reply: Reply, at: datetime) -> dict[str, Any]:
    return {**_as_json(reply), "role": "bot", "text": reply.text, "at": format_time(at)}


def _as_json(value: Struct) -> dict[str, Any]:
    """The value as it will stand in the state when that is read again."""
    return cast(dict[str, Any], msgspec.json.decode(msgspec.json.encode(value)))


def last_reply(state: Mapping[str, Any]) -> Reply | None:
    """What the bot has said last, as far as the state tells."""
    said = state.get("messages")
    entries: list[Any] = said if isinstance(said, list) else []
    for entry in reversed(entries):
        if isinstance(entry, dict) and entry.get("role") == "bot":
            try:
                return msgspec.convert(entry, Reply)
            except msgspec.ValidationError:
                return None
    return None


def _recognised(message: Message, state: Mapping[str, Any]) -> Message:
    """The message, with the choice that it names, of those that were offered last: a channel may have shortened it, and
    people type what they could tap."""
    offered = last_reply(state)
    wanted = message.text.strip().casefold()
    for choice in offered.choices if offered else ():
        if message.choice and message.choice.id == choice.id:
            return replace(message, choice=choice, text=choice.title)
        if message.choice is None and wanted in (choice.title.strip().casefold(), choice.id.casefold()):
            return replace(message, choice=choice)
    return message


# --- The state, and its text ------------------------------------------------------------------------------------------


def read_state(text: str) -> dict[str, Any]:
    """The state in this text. Raises `StateNotReadable` for everything but a JSON object."""
    try:
        state = json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError):
        raise StateNotReadable from None
    if not isinstance(state, dict):
        raise StateNotReadable
    return state


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def write_state(state: Mapping[str, Any], most_bytes: int) -> str:
    """The text of the state: of at most so many bytes of UTF-8, for which the oldest messages are left out.

    Raises `StateNotWritable` for what is no JSON object, and when there is no room even so.
    """
    if not isinstance(state, dict):
        raise StateNotWritable("turn.state is no dict any more; a state is a JSON object")
    try:
        text = _text(state)
    except (TypeError, ValueError, RecursionError) as error:
        raise StateNotWritable(
            f"there is something in turn.state that JSON does not have ({type(error).__name__})"
        ) from None
    said = state.get("messages")
    while len(text.encode()) > most_bytes:
        if not (isinstance(said, list) and len(said) > 1):
            raise StateNotWritable(f"the state is larger than {most_bytes} bytes (CHATSTATE_MAX_STATE_BYTES)")
        said = said[(len(said) + 3) // 4 :]
        text = _text({**state, "messages": said})
    return text


def _text(state: Mapping[str, Any]) -> str:
    text = json.dumps(state, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON has as an escape
        return json.dumps(state, allow_nan=False, separators=(",", ":"))
    return text


# --- Finding the bot --------------------------------------------------------------------------------------------------


def load_bot(place: str) -> Bot:
    """The bot of this place, `package.module:function`. Raises `InvalidSetting`, which says what mends it."""
    module_name, separator, name = place.partition(":")
    if not (separator and module_name and name):
        raise InvalidSetting(f"--bot {place}: name the module and the function, as in --bot package.module:bot")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # something that the bot's own module imports
        raise InvalidSetting(
            f"--bot {place}: there is no module {error.name}. It is looked for in the current folder, and among what "
            "is installed."
        ) from None
    bot = getattr(module, name, None)
    if not (iscoroutinefunction(bot) or iscoroutinefunction(getattr(bot, "__call__", None))):  # noqa: B004
        found = "is none" if bot is None else "is not `async def`"
        raise InvalidSetting(f"--bot {place}: {name} {found}; a bot is `async def {name}(turn)` in {module_name}.")
    return cast(Bot, bot)
