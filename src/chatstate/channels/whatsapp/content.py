"""What a message from WhatsApp says, whatever its shape; and values of JSON that may be of any kind."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from chatstate.bot import Attachment, Choice

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_MOST_NESTING = 16

_NOT_FOR_A_BOT = ("reaction", "edit", "revoke", "request_welcome")


class Said(NamedTuple):
    """The members of a `Message` that come after its id and its time."""

    text: str = ""
    choice: Choice | None = None
    attachment: Attachment | None = None


def said(message: dict[str, Any]) -> Said | str:
    """What it says; or a note: `reaction`, `edit`, `revoke`, `request_welcome`, `unsupported`, `unknown type x`.

    The answers of a form (`nfm_reply`) are the text, as JSON. What was chosen is the choice with its own id; the title
    is the one that was shown, which may be shortened.
    """
    kind = message.get("type")
    if message.get("errors") or kind == "unsupported":
        return "unsupported"
    if kind in _NOT_FOR_A_BOT:
        return str(kind)
    read = _READ.get(kind) if isinstance(kind, str) else None
    return read(message.get(str(kind))) if read else f"unknown type {name_in(kind, '')}".rstrip()


def object_in(value: Any) -> dict[str, Any]:
    """An object; empty when it is something else."""
    return value if isinstance(value, dict) else {}


def text_in(value: Any) -> str:
    """A text that every store can keep, however long it is; empty when it is something else."""
    return _LONE_SURROGATE.sub("\ufffd", value) if isinstance(value, str) else ""


def name_in(value: Any, otherwise: str = "unknown") -> str:
    """A name of Meta's; `otherwise` in place of all else, so that nobody's data gets into a note or a log."""
    return value if isinstance(value, str) and _NAME.fullmatch(value) else otherwise


def _text(content: Any) -> Said | str:
    body = text_in(object_in(content).get("body"))
    return Said(body) if body else "unsupported"


def _interactive(content: Any) -> Said | str:
    kind = object_in(content).get("type")
    if kind not in ("button_reply", "list_reply", "nfm_reply"):
        return "unsupported"
    reply = object_in(content[kind]) if kind in content else {}
    if kind != "nfm_reply":
        return _chosen(reply.get("id"), reply.get("title"), reply.get("description"))
    answers = text_in(reply.get("response_json")) or text_in(reply.get("body")) or text_in(reply.get("name"))
    return Said(answers) if answers else "unsupported"


def _button(content: Any) -> Said | str:
    return _chosen(object_in(content).get("payload"), object_in(content).get("text"), None)


def _chosen(choice_id: Any, title: Any, description: Any) -> Said | str:
    first, second = text_in(choice_id), text_in(title)
    choice = Choice(first or second, second or first, text_in(description))
    return Said(choice.title, choice) if choice.id else "unsupported"


def _file(kind: Any) -> Callable[[Any], Said | str]:
    def read(content: Any) -> Said | str:
        member = object_in(content).get
        if not member("id"):
            return "unsupported"
        file = Attachment(kind, text_in(member("id")), text_in(member("mime_type")), text_in(member("filename")))
        return Said(text_in(member("caption")), None, file)

    return read


def _location(content: Any) -> Said | str:
    return Said(attachment=Attachment("location", details=_plain(content))) if object_in(content) else "unsupported"


def _contacts(content: Any) -> Said | str:
    if not isinstance(content, list):
        return "unsupported"
    return Said(attachment=Attachment("contacts", details={"contacts": _plain(content)}))


def _order(content: Any) -> Said | str:
    if not object_in(content):
        return "unsupported"
    return Said(text_in(content.get("text")), None, Attachment("order", details=_plain(content)))


_READ: Mapping[str, Callable[[Any], Said | str]] = {
    "text": _text,
    "interactive": _interactive,
    "button": _button,
    **{kind: _file(kind) for kind in ("image", "video", "audio", "document", "sticker")},
    "voice": _file("audio"),
    "location": _location,
    "contacts": _contacts,
    "order": _order,
}
"""How messages of each type that a bot is shown are read."""


def _plain(value: Any, nesting: int = 0) -> Any:
    """What JSON can say and every store can keep; what is nested too deeply is left out."""
    if nesting > _MOST_NESTING:
        return None
    if isinstance(value, dict):
        return {text_in(name): _plain(item, nesting + 1) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, nesting + 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return text_in(value) if isinstance(value, str) else value
