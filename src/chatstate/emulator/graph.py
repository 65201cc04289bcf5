"""What the Graph API takes, and how it refuses the rest: the Cloud API's `messages` endpoint.

Limits and error shapes are those of Meta's documentation of August 2026: the pages on each type of message, on error
codes, and on throughput. An error carries a `code`; programs go by that and by its details, not by its text.
"""

from __future__ import annotations

import re
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from msgspec import Struct, json

from chatstate.emulator.payloads import error_object

TEXT_LENGTH = 4096
BUTTONS_BODY_LENGTH = 1024
LIST_BODY_LENGTH = 4096
MEDIA_TYPES = ("image", "video", "audio", "document", "sticker")
_CAPTIONED = ("image", "video", "document")
_TYPES = ("text", "interactive", *MEDIA_TYPES)

PAIR_BURST = 45
PAIR_PAUSE = timedelta(seconds=6)
"""To one person goes one message in so long; a burst borrows from those to come, and lasts no longer than that."""

_NUMBER = re.compile(r"\+?[\d\s().-]{3,24}")
_USER_ID = re.compile(r"[A-Z]{2}\.(?:ENT\.)?[A-Za-z0-9]{1,128}")
_URL = re.compile(r"https?://[^\s]+", re.IGNORECASE)


class GraphError(Exception):
    """A refusal.

    code         Meta's; it says what is wrong
    status       of the HTTP answer
    details      what exactly is wrong, for people
    retry_after  in seconds; becomes the header of that name
    """

    def __init__(
        self, code: int, details: str = "", *, status: int | None = None, retry_after: int | None = None
    ) -> None:
        self.code = code
        self.title, default = _ERRORS.get(code, ("Something went wrong", 400))
        self.status = status or default
        self.details = details or _DETAILS.get(code, self.title)
        self.retry_after = retry_after
        super().__init__(f"(#{code}) {self.title}")

    def body(self) -> bytes:
        """The answer's body."""
        error: dict[str, Any] = {"message": str(self), "type": "OAuthException", "code": self.code}
        if self.code in (100, 104, 190):  # these say it in the message, and have no data
            error["message"] = f"(#{self.code}) {self.details}" if self.code == 100 else self.details
        else:
            error["error_data"] = {"messaging_product": "whatsapp", "details": self.details}
        return json.encode({"error": {**error, "fbtrace_id": "A" + secrets.token_urlsafe(15)}})

    def object(self) -> dict[str, Any]:
        """The same as it stands in webhooks."""
        return error_object(self.code, self.title, self.details)


_ERRORS: Mapping[int, tuple[str, int]] = {
    4: ("Application request limit reached", 429),
    100: ("Invalid parameter", 400),
    104: ("Access token required", 401),
    190: ("Invalid OAuth access token", 401),
    130429: ("Rate limit hit", 429),
    131000: ("Something went wrong", 500),
    131005: ("Access denied", 403),
    131008: ("Required parameter is missing", 400),
    131009: ("Parameter value is not valid", 400),
    131016: ("Service unavailable", 503),
    131026: ("Message undeliverable", 400),
    131047: ("Re-engagement message", 400),
    131048: ("Spam rate limit hit", 429),
    131051: ("Unsupported message type", 400),
    131056: ("(Business Account, Consumer Account) pair rate limit hit", 429),
}

ERROR_CODES = tuple(_ERRORS)
"""The errors that are known here."""

_DETAILS = {
    104: "An access token is required to request this resource.",
    190: "Invalid OAuth access token - Cannot parse access token",
    130429: "Message failed to send because there were too many messages sent from this phone number in a short time.",
    131000: "Message failed to send due to an unknown error.",
    131026: "Message undeliverable.",
    131047: "Message failed to send because more than 24 hours have passed since the customer's last message.",
    131056: "Message failed to send because too many messages went from this number to the same one in a short time.",
}


class Recipient(NamedTuple):
    """Whom a request names: by number or by user id, as written, and as digits or as the id."""

    by: Literal["number", "user_id"]
    given: str
    value: str


class Choice(NamedTuple):
    """What can be tapped."""

    id: str
    title: str
    description: str = ""


class Outgoing(Struct, frozen=True, kw_only=True):
    """A message that the business sends.

    text        its body or caption
    choices     its buttons, or the rows of its list
    button      the label that opens a list; empty for buttons
    link        where its file is
    misdirected  it names a user id where a number belongs: Meta accepts that, and delivers it to nobody
    """

    recipient: Recipient
    type: str
    text: str = ""
    header: str = ""
    footer: str = ""
    choices: tuple[Choice, ...] = ()
    button: str = ""
    link: str = ""
    filename: str = ""
    reply_to: str = ""
    misdirected: bool = False


class ReadMark(Struct, frozen=True):
    """The business has read a message, and perhaps is typing an answer."""

    message_id: str
    typing: bool = False


def parse(body: bytes) -> Outgoing | ReadMark:
    """What a request to `/{phone_number_id}/messages` asks for. Raises `GraphError`."""
    try:
        request = json.decode(body)
    except (ValueError, RecursionError):  # msgspec's errors are of the first kind, and those of bytes that are no UTF-8
        request = None
    if not isinstance(request, dict):
        raise GraphError(100, "The request body is not a JSON object.")
    if request.get("messaging_product") != "whatsapp":
        raise GraphError(100, "The parameter messaging_product is required.")
    if "status" in request:
        return _read_mark(request)
    return _message(request)


def _read_mark(request: dict[str, Any]) -> ReadMark:
    if request["status"] != "read":
        raise GraphError(100, "Param status must be one of {read}.")
    message_id = request.get("message_id")
    if not isinstance(message_id, str) or not message_id:
        raise GraphError(100, "The parameter message_id is required.")
    indicator = request.get("typing_indicator")
    if indicator not in (None, {"type": "text"}):
        raise GraphError(131009, "typing_indicator must be {type: text}.")
    return ReadMark(message_id, indicator is not None)


def _message(request: dict[str, Any]) -> Outgoing:
    if request.get("recipient_type", "individual") not in ("individual", None):
        raise GraphError(100, "Param recipient_type must be one of {individual, group}; the emulator has no groups.")
    recipient, misdirected = _recipient(request)
    kind = request.get("type", "text")
    if kind not in _TYPES:
        raise GraphError(131051, f"The emulator takes messages of the types {', '.join(_TYPES)}.")
    content = request.get(kind)
    if not isinstance(content, dict):
        raise GraphError(131008, f"Parameter '{kind}' is missing.")
    context = request.get("context") or {}
    reply_to = context.get("message_id", "") if isinstance(context, dict) else ""
    parsed = _READERS[kind](content, kind)
    return Outgoing(recipient=recipient, type=kind, reply_to=str(reply_to), misdirected=misdirected, **parsed)


def _recipient(request: dict[str, Any]) -> tuple[Recipient, bool]:
    """`to`, a number, goes before `recipient`, a user id. A user id in `to` is taken for a number."""
    number, user_id = request.get("to"), request.get("recipient")
    if isinstance(number, str) and number:
        misdirected = _USER_ID.fullmatch(number) is not None
        if not misdirected and not _NUMBER.fullmatch(number):
            raise GraphError(131009, "Parameter 'to' is not a phone number.")
        return Recipient("number", number, re.sub(r"\D", "", number)), misdirected
    if isinstance(user_id, str) and user_id:
        if not _USER_ID.fullmatch(user_id):
            raise GraphError(131009, "Parameter 'recipient' is not a business-scoped user id.")
        return Recipient("user_id", user_id, user_id), False
    raise GraphError(100, "The parameter to is required.")


def _text(content: dict[str, Any], _kind: str) -> dict[str, Any]:
    body = content.get("body")
    if not isinstance(body, str) or not body.strip():
        raise GraphError(100, "The parameter text['body'] is required.")
    if len(body) > TEXT_LENGTH:
        raise GraphError(100, f"Param text['body'] must be at most {TEXT_LENGTH} characters long.")
    return {"text": body}


def _media(content: dict[str, Any], kind: str) -> dict[str, Any]:
    link, caption = content.get("link"), content.get("caption", "")
    if (link is None) == (content.get("id") is None):
        raise GraphError(131008, f"Parameter '{kind}' needs either an id or a link.")
    if link is None:
        raise GraphError(131009, "The media id is not one of this account; the emulator takes no uploads: send a link.")
    if not isinstance(link, str) or not _URL.fullmatch(link):
        raise GraphError(131009, f"Parameter '{kind}.link' is not an address of a file.")
    if caption and kind not in _CAPTIONED:
        raise GraphError(131009, f"A message of type {kind} has no caption.")
    _check_length(caption, 1024, f"{kind}.caption", least=0)
    return {"text": caption, "link": link, "filename": str(content.get("filename") or "")}


def _interactive(content: dict[str, Any], _kind: str) -> dict[str, Any]:
    kind, action = content.get("type"), content.get("action")
    if kind not in ("button", "list"):
        raise GraphError(131009, "Parameter 'interactive.type' must be button or list; the emulator has no other.")
    if not isinstance(action, dict):
        raise GraphError(131008, "Parameter 'interactive.action' is missing.")
    body = _text_of(content, "body", LIST_BODY_LENGTH if kind == "list" else BUTTONS_BODY_LENGTH, least=1)
    header, footer = _text_of(content, "header", 60), _text_of(content, "footer", 60)
    found = {"text": body, "header": header, "footer": footer}
    if kind == "button":
        return {**found, "choices": _buttons(action)}
    _check_length(action.get("button"), 20, "interactive.action.button")
    return {**found, "choices": _rows(action), "button": action["button"]}


def _text_of(content: dict[str, Any], part: str, most: int, least: int = 0) -> str:
    given = content.get(part)
    if given is None and not least:
        return ""
    if not isinstance(given, dict) or (part == "header" and given.get("type") != "text"):
        raise GraphError(131009, f"Parameter 'interactive.{part}' must be a text.")
    text: str = given.get("text", "")
    _check_length(text, most, f"interactive.{part}.text", least=max(least, 1))
    return text


def _buttons(action: dict[str, Any]) -> tuple[Choice, ...]:
    buttons = action.get("buttons")
    if not isinstance(buttons, list) or not 1 <= len(buttons) <= 3:
        raise GraphError(131009, "Invalid buttons count. Min allowed buttons: 1, Max allowed buttons: 3")
    replies = [button["reply"] for button in buttons if isinstance(button, dict) and _is_reply(button)]
    if len(replies) < len(buttons):
        raise GraphError(131009, "Each button must be of type reply, with an id and a title.")
    for reply in replies:
        _check_length(reply.get("title"), 20, "Button title")
        _check_length(reply.get("id"), 256, "Button id")
    choices = tuple(Choice(reply["id"], reply["title"]) for reply in replies)
    _check_unique([choice.title for choice in choices], "Button titles")
    _check_unique([choice.id for choice in choices], "Button ids")
    return choices


def _is_reply(button: dict[str, Any]) -> bool:
    return button.get("type") == "reply" and isinstance(button.get("reply"), dict)


def _rows(action: dict[str, Any]) -> tuple[Choice, ...]:
    sections = action.get("sections")
    if not isinstance(sections, list) or not 1 <= len(sections) <= 10:
        raise GraphError(131009, "Invalid sections count. Min allowed: 1, Max allowed: 10")
    rows = list(_rows_of(sections))
    if not 1 <= len(rows) <= 10:
        raise GraphError(131009, "Total row count exceed max allowed count: 10" if rows else "A list needs a row.")
    _check_unique([row.id for row in rows], "Row ids")
    return tuple(rows)


def _rows_of(sections: list[Any]) -> Iterator[Choice]:
    for section in sections:
        rows = section.get("rows") if isinstance(section, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise GraphError(131009, "Each section must have rows.")
        _check_length(section.get("title", ""), 24, "Section title", least=1 if len(sections) > 1 else 0)
        for row in rows:
            _check_length(row.get("id"), 200, "Row id")
            _check_length(row.get("title"), 24, "Row title")
            _check_length(row.get("description", ""), 72, "Row description", least=0)
            yield Choice(row["id"], row["title"], row.get("description", ""))


def _check_length(value: object, most: int, name: str, least: int = 1) -> None:
    if not isinstance(value, str) or not least <= len(value) <= most:
        raise GraphError(131009, f"{name} length invalid. Min length: {least}, Max length: {most}")


def _check_unique(values: list[str], name: str) -> None:
    if len(set(values)) < len(values):
        raise GraphError(131009, f"{name} must be unique within the message.")


_READERS: Mapping[str, Callable[[dict[str, Any], str], dict[str, Any]]] = {
    "text": _text,
    "interactive": _interactive,
    **dict.fromkeys(MEDIA_TYPES, _media),
}


# --- How much may be sent ---------------------------------------------------------------------------------------------


class Limits(Struct):
    """Which limits hold.

    window      how long after a person's last message they may be written to: after that the send is refused at once,
                or accepted and reported as failed, as Meta mostly does; or it does not matter
    pair        whether one person may be sent only so much in a short time (131056)
    throughput  how many messages a second the number may send (130429); 0: any number. Meta has 80
    """

    window: Literal["refuse", "fail", "off"] = "refuse"
    pair: bool = False
    throughput: int = 0


class Meter:
    """Counts what is sent. Times are given by the caller."""

    def __init__(self) -> None:
        self._latest: deque[datetime] = deque()
        self._pairs: dict[str, tuple[datetime, datetime, int]] = {}

    def count(self, person: str, now: datetime, limits: Limits) -> None:
        """One more message. Raises `GraphError` when it is one too many, and then it does not count."""
        while self._latest and now - self._latest[0] >= timedelta(seconds=1):
            self._latest.popleft()
        if limits.throughput and len(self._latest) >= limits.throughput:
            raise GraphError(130429)
        if limits.pair:
            self._count_pair(person, now)
        self._latest.append(now)

    def _count_pair(self, person: str, now: datetime) -> None:
        """Within six seconds of its first message a burst may go on; then all it has borrowed must have passed."""
        began, free_at, sent = self._pairs.get(person, (now, now, 0))
        if now >= free_at:
            began, free_at, sent = now, now, 0
        elif now - began >= PAIR_PAUSE or sent >= PAIR_BURST:
            raise GraphError(131056)
        self._pairs[person] = (began, free_at + PAIR_PAUSE, sent + 1)
