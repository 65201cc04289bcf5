"""A reply as messages that WhatsApp takes (Cloud API, `POST /{phone_number_id}/messages`), within its limits.

Lengths are counted in UTF-16 code units: WhatsApp does not say in what it counts, and there is no text that has more
characters than units.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from chatstate.bot import Choice, Media, Reply
from chatstate.channels import Contact
from chatstate.errors import SendFailed

LONGEST_TEXT = 4096
LONGEST_BODY = 1024
"""Of a message with choices. Some pages of Meta's allow more for lists; this is what all of them allow."""

LONGEST_CAPTION = 1024

MOST_BUTTONS = 3
LONGEST_BUTTON_TITLE = 20
LONGEST_BUTTON_ID = 256

MOST_ROWS = 10
LONGEST_ROW_TITLE = 24
LONGEST_ROW_DESCRIPTION = 72
LONGEST_ROW_ID = 200

LIST_LABEL = "Options"
"""What the button says that opens a list; at most 20 characters."""

WITHOUT_TEXT = "👇"
"""What choices are offered with when the bot has said nothing else: WhatsApp wants a text there."""

_SEPARATORS = ("\n\n", "\n", " ")
_MORE = "…"
_LONGEST_CHARACTER = 64  # code points; nobody's character has more, only a text that is made to hurt


def split(reply: Reply) -> tuple[Reply, ...]:
    """The reply as replies of which each is one message. The first keeps its id, the others have `<id>.2`, `<id>.3` …

    A file comes first, with the text as its caption where that fits and nothing is to be chosen. Long texts are cut
    between paragraphs, lines or words. Choices stand under the last part of the text: as buttons, if there are up to 3
    with short titles, else as a list of up to 10. Else they are lines of the text, and people answer in their own
    words. The same is done with ids that WhatsApp would not give back as they are: empty, doubled, longer than 200
    characters (256 for buttons), or with a space at an end.

    A reply without any text, choice or file is no message: the result is empty. Splitting a part again gives the part.
    """
    choices = reply.choices if _is_choosable(reply.choices) else ()
    text = reply.text.strip() if choices else _listed(reply.text, reply.choices)
    parts = []
    if reply.media:
        caption = "" if choices else _caption(reply.media, text)
        parts.append(Reply("", caption, (), reply.media))
        text = "" if caption else text
    if choices:
        *before, last = _cut_for_choices(text)
        parts += [Reply("", piece) for piece in before]
        parts.append(Reply("", last, choices))
    else:
        parts += [Reply("", piece) for piece in _cut(text, LONGEST_TEXT)]
    return tuple(replace(part, id=f"{reply.id}.{n}" if n > 1 else reply.id) for n, part in enumerate(parts, 1))


def payload(recipient: Contact, reply: Reply) -> dict[str, Any]:
    """The body of the request that sends this one message, which `split` has given.

    Raises `SendFailed` when the person has no name that WhatsApp can send to.
    """
    message: dict[str, Any] = {"messaging_product": "whatsapp", **_address(recipient)}
    if reply.media:
        return message | _file(reply.media, reply.text)
    if reply.choices:
        return message | {"type": "interactive", "interactive": _interactive(reply.text, reply.choices)}
    return message | {"type": "text", "text": {"body": reply.text}}


def _address(recipient: Contact) -> dict[str, str]:
    """The number where it is known, else the BSUID. WhatsApp takes both in one request, and then goes by the number
    alone; so one is sent, and it is clear which. A number is only known while WhatsApp tells it with each message.
    """
    names = {name.kind: name.value for name in reversed(recipient.ids)}
    if "wa_id" in names:
        return {"to": names["wa_id"]}
    for kind in ("bsuid", "parent"):
        if kind in names:
            return {"recipient": names[kind]}
    raise SendFailed("WhatsApp can send to a number (wa_id) or a user id (BSUID); of this person neither is known.")


def _file(media: Media, caption: str) -> dict[str, Any]:
    file = {"link": media.url}
    if caption:
        file["caption"] = caption
    if media.filename and media.kind == "document":
        file["filename"] = media.filename
    return {"type": media.kind, media.kind: file}


def _caption(media: Media, text: str) -> str:
    """The text, if it can be this file's caption: sounds have none."""
    return text if media.kind != "audio" and _size(text) <= LONGEST_CAPTION else ""


# Choices


def _interactive(text: str, choices: tuple[Choice, ...]) -> dict[str, Any]:
    body = {"text": text or WITHOUT_TEXT}
    if _are_buttons(choices):
        buttons = [{"type": "reply", "reply": {"id": choice.id, "title": _line(choice.title)}} for choice in choices]
        return {"type": "button", "body": body, "action": {"buttons": buttons}}
    rows = [_row(choice) for choice in choices]
    return {"type": "list", "body": body, "action": {"button": LIST_LABEL, "sections": [{"rows": rows}]}}


def _is_choosable(choices: tuple[Choice, ...]) -> bool:
    return bool(choices) and (_are_buttons(choices) or _are_rows(choices))


def _are_buttons(choices: tuple[Choice, ...]) -> bool:
    titles = [_line(choice.title) for choice in choices]
    return (
        len(choices) <= MOST_BUTTONS
        and len(set(titles)) == len(titles)
        and all(0 < _size(title) <= LONGEST_BUTTON_TITLE for title in titles)
        and _come_back((choice.id for choice in choices), LONGEST_BUTTON_ID)
    )


def _are_rows(choices: tuple[Choice, ...]) -> bool:
    return (
        len(choices) <= MOST_ROWS
        and all(_line(choice.title) for choice in choices)
        and _come_back((choice.id for choice in choices), LONGEST_ROW_ID)
    )


def _come_back(ids: Iterable[str], longest: int) -> bool:
    """Whether WhatsApp gives each of these ids back as it is."""
    given = list(ids)
    return len(set(given)) == len(given) and all(
        0 < _size(choice_id) <= longest and choice_id == choice_id.strip() for choice_id in given
    )


def _row(choice: Choice) -> dict[str, str]:
    title, description = _line(choice.title), _line(choice.description)
    short = _shortened(title, LONGEST_ROW_TITLE)
    if short != title:  # then the whole of it stands below
        description = f"{title} – {description}" if description else title
    row = {"id": choice.id, "title": short}
    return row | {"description": _shortened(description, LONGEST_ROW_DESCRIPTION)} if description else row


def _listed(text: str, choices: tuple[Choice, ...]) -> str:
    """The text, and below it the choices, a line each."""
    lines = [
        f"• {': '.join(filter(None, (_line(choice.title) or choice.id, _line(choice.description))))}"
        for choice in choices
    ]
    return "\n\n".join(filter(None, (text.strip(), "\n".join(lines)))).strip()


def _line(text: str) -> str:
    """The text in one line, as titles are."""
    return " ".join(text.split())


# Lengths


def _size(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def _shortened(text: str, longest: int) -> str:
    if _size(text) <= longest:
        return text
    return text[: _whole_character(text, 0, _reach(text, 0, longest - 1))].rstrip() + _MORE


def _cut_for_choices(text: str) -> list[str]:
    """The text in pieces, of which the last has room for choices."""
    last = _cut(text, LONGEST_BODY)[-1:] or [""]
    before = text.strip().removesuffix(last[0])
    return [*_cut(before, LONGEST_TEXT), *last]


def _cut(text: str, longest: int) -> list[str]:
    """The text in pieces that are at most so long, without the white space between them; no piece is empty."""
    text, start, pieces = text.strip(), 0, []
    while (end := _reach(text, start, longest)) < len(text):
        end = _end(text, start, end)
        pieces.append(text[start:end].rstrip())
        start = end
        while text[start].isspace():
            start += 1
    return [*pieces, text[start:]] if text else []


def _reach(text: str, start: int, longest: int) -> int:
    """Up to where the text from `start` on is at most so long."""
    window = text[start : start + longest]
    while (over := _size(window) - longest) > 0:
        window = window[: -((over + 1) // 2)]
    return start + len(window)


def _end(text: str, start: int, end: int) -> int:
    """The best place for a cut in the second half of this stretch."""
    middle = start + (end - start) // 2
    for separator in _SEPARATORS:
        found = text.rfind(separator, middle, end + len(separator))
        if found > start:
            return found
    return _whole_character(text, start, end)


def _whole_character(text: str, start: int, end: int) -> int:
    """`end`, or a little before it, where a cut tears no character that people see as one."""
    for place in range(end, max(start, end - _LONGEST_CHARACTER), -1):
        if not _belongs_together(text, start, place):
            return place
    return end


def _belongs_together(text: str, start: int, place: int) -> bool:
    """Whether a cut before this code point tears a character (roughly Unicode UAX #29); there was a cut at `start`."""
    after, before = text[place], text[place - 1]
    if before == "\u200d" or after == "\u200d" or unicodedata.category(after) in ("Mn", "Mc", "Me"):
        return True
    if "\U0001f3fb" <= after <= "\U0001f3ff" or "\U000e0020" <= after <= "\U000e007f":  # skin tones, flags of regions
        return True
    if "\u1160" <= after <= "\u11ff":  # what follows the first letter of a Korean syllable
        return True
    return _is_flag_letter(after) and _flag_letters_before(text, start, place) % 2 == 1


def _is_flag_letter(letter: str) -> bool:
    return "\U0001f1e6" <= letter <= "\U0001f1ff"


def _flag_letters_before(text: str, start: int, place: int) -> int:
    """How many there are in a row; two make a flag."""
    first = place
    while first > start and _is_flag_letter(text[first - 1]):
        first -= 1
    return place - first
