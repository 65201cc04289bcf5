"""What Meta posts to the webhook of a WhatsApp number (Cloud API, messages webhook, as documented in August 2026).

Meta delivers at least once, in no order, and up to 1,000 updates at a time, which may be of several numbers, people and
kinds. What is odd in one of them must not lose the others: it is left out and counted.
"""

from __future__ import annotations

import hmac
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, get_args
from urllib.parse import parse_qsl

from msgspec import Struct

from chatstate.bot import Message
from chatstate.channels import Arrived, Contact, ExternalId, Report, Status
from chatstate.channels.whatsapp.content import Said, name_in, object_in, said, text_in
from chatstate.errors import InvalidJson
from chatstate.model import EARLIEST

_SIGNATURE = re.compile(r"sha256=[0-9a-f]{64}")
_CHALLENGE = re.compile(r"[A-Za-z0-9._~-]{1,128}")
_NUMBER = re.compile(r"\+?([0-9]{1,32})")
_BSUID = re.compile(r"[A-Za-z]{2}\.(ENT\.)?[A-Za-z0-9]+")
_ID = re.compile(r"[!-~]{1,256}")
_SECONDS = re.compile(r"[0-9]{1,12}")
_MANY_DIGITS = re.compile(r"[0-9]{6,}")

_LONGEST_TITLE = 100
_LAST_SECOND = 253_402_300_799  # of the year 9999
_EXACT_DIGITS = 15  # of an integer that a float can say, too
_MOST_FIELDS = 32

_KINDS = ("bsuid", "wa_id", "parent")
_SYSTEM = ("user_id", "wa_id", "parent_user_id")
_STATUSES: Mapping[str, Status] = {status: status for status in get_args(Status)}

_CHANGED = {
    "user_changed_number": "user_changed_number",
    "customer_changed_number": "user_changed_number",
    "user_changed_user_id": "user_changed_user_id",
}
"""System messages that a person has other names now; with the names that they had in older versions of the API."""

_REGISTERED_ANEW = {
    "customer_identity_changed": "customer_identity_changed",
    "user_identity_changed": "customer_identity_changed",
}
"""System messages that a number was registered on another phone; perhaps it is another person's now."""


class Delivery(Struct, frozen=True):
    """What a webhook has brought, in its order.

    ignored  how often something was left out, by the reason: `another phone number`, `field account_update` … No reason
             has an id, a number or a text in it
    """

    arrived: tuple[Arrived, ...]
    reports: tuple[Report, ...]
    ignored: Mapping[str, int]


def looks_signed(signatures: Sequence[str]) -> bool:
    """Whether the header fields X-Hub-Signature-256 are one of the form in which Meta sends it."""
    return len(signatures) == 1 and _SIGNATURE.fullmatch(signatures[0]) is not None


def is_signed(secret: str, body: bytes, signatures: Sequence[str]) -> bool:
    """Whether Meta has signed the body with the app's secret: HMAC-SHA256 over its very bytes.

    `signatures` are the values of all header fields X-Hub-Signature-256, as Latin-1; there must be exactly one, in the
    form in which Meta sends it. Takes as long for each wrong signature of this form. Never raises.
    """
    if not secret or not looks_signed(signatures):
        return False
    expected = hmac.new(secret.encode("utf-8", "surrogatepass"), body, sha256).hexdigest()
    return hmac.compare_digest(f"sha256={expected}".encode(), signatures[0].encode())


def challenge(query: str, verify_token: str) -> str | None:
    """What to answer when Meta asks whether this is the webhook (GET with `hub.…` in the query); None: not this one.

    `query` is undecoded. The answer has at most 128 letters, digits, and `._~-`, so that it can do no harm in a page.
    """
    try:
        fields = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS)
        shown = [(name, value) for name, value in fields if name.startswith("hub.")]
        once = dict(shown)
        is_token = hmac.compare_digest(once.get("hub.verify_token", "").encode(), verify_token.encode())
    except ValueError:  # not UTF-8, or too much
        return None
    answer = once.get("hub.challenge", "")
    asked = bool(verify_token) and is_token and once.get("hub.mode") == "subscribe" and len(once) == len(shown)
    return answer if asked and _CHALLENGE.fullmatch(answer) else None


def parse(body: bytes, phone_number_id: str, received_at: datetime = EARLIEST) -> Delivery:
    """All messages and statuses of this number in a webhook's body. Raises `InvalidJson`, and nothing else.

    `received_at` stands in where a message does not say when it was sent, and neither does its entry. Without it that
    is long ago: then nobody may be written to because of such a message.

    How messages of each type are read: `content.said`. Those in groups are left out.
    """
    reader = _Reader(phone_number_id)
    reader.read(_decoded(body), received_at)
    return Delivery(tuple(reader.arrived), tuple(reader.reports), dict(reader.ignored))


def _decoded(body: bytes) -> Any:
    try:
        return json.loads(body.decode(), parse_constant=_refuse, parse_int=_number)
    except (ValueError, RecursionError):
        raise InvalidJson from None  # the cause may quote the body


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _number(digits: str) -> int | float:
    return int(digits) if len(digits) <= _EXACT_DIGITS else float(digits)


class _Reader:
    """Goes through a webhook's body."""

    def __init__(self, phone_number_id: str) -> None:
        self._phone_number_id = phone_number_id
        self.arrived: list[Arrived] = []
        self.reports: list[Report] = []
        self.ignored: Counter[str] = Counter()

    def read(self, payload: Any, received_at: datetime) -> None:
        if object_in(payload).get("object") != "whatsapp_business_account":
            self.ignored["another object"] += 1
            return
        for entry in self._objects(payload, "entry"):
            sent_at = _time(entry.get("time")) or received_at
            for change in self._objects(entry, "changes"):
                self._change(change, sent_at)

    def _objects(self, parent: dict[str, Any], name: str) -> list[dict[str, Any]]:
        """The objects in this member, which is a list of them; all else in it is counted."""
        given = parent.get(name)
        items = given if isinstance(given, list) else [] if given is None else [given]
        found = [item for item in items if isinstance(item, dict)]
        if len(found) < len(items):
            self.ignored[f"malformed {name}"] += len(items) - len(found)
        return found

    def _change(self, change: dict[str, Any], sent_at: datetime) -> None:
        field, value = change.get("field"), object_in(change.get("value"))
        if field not in ("messages", "user_id_update"):
            self.ignored[f"field {name_in(field)}"] += 1
            return
        names = ("messages", "statuses") if field == "messages" else ("user_id_update",)
        events = {name: self._objects(value, name) for name in names}
        if object_in(value.get("metadata")).get("phone_number_id") != self._phone_number_id:
            self.ignored["another phone number"] += sum(map(len, events.values())) or 1
            return
        for error in self._objects(value, "errors"):
            self.ignored[f"error {_code(error)}"] += 1
        self._messages(events.get("messages", []), self._objects(value, "contacts"), sent_at)
        for status in events.get("statuses", []):
            self._status(status, sent_at)
        for update in events.get("user_id_update", []):
            self._user_id_update(update, sent_at)

    def _messages(self, messages: list[dict[str, Any]], contacts: list[dict[str, Any]], sent_at: datetime) -> None:
        known = [_names(contact, "user_id", "wa_id", "parent_user_id") for contact in contacts]
        senders = [_names(message, "from_user_id", "from", "from_parent_user_id") for message in messages]
        lone = known[0] if len(known) == 1 and all(sender == senders[0] for sender in senders) else None
        by_name = {name: contact for contact in reversed(known) for name in contact.items()}
        for message, sender in zip(messages, senders, strict=True):
            self._message(message, sender, _completed(sender, by_name, lone), sent_at)

    def _message(
        self, message: dict[str, Any], named: dict[str, str], sender: dict[str, str], sent_at: datetime
    ) -> None:
        """`named`: the names that the message itself gives its sender."""
        message_id, sent_at = _id(message.get("id")), _time(message.get("timestamp")) or sent_at
        if not message_id:
            self.ignored["message without an id"] += 1
        elif message.get("group_id"):
            self.ignored["group message"] += 1
        elif message.get("type") == "system":
            self._system(message_id, object_in(message.get("system")), named, sender, sent_at)
        else:
            content = said(message)
            seen = Message(message_id, sent_at, *content) if isinstance(content, Said) else None
            self._keep(message_id, sender, sent_at, message=seen, note="" if isinstance(content, Said) else content)

    def _system(
        self,
        message_id: str,
        system: dict[str, Any],
        named: dict[str, str],
        sender: dict[str, str],
        sent_at: datetime,
    ) -> None:
        """A person has other names now, or may be another one. The message names them (`from`) as they were before.

        `body` tells of it, too, but repeats the profile's name, which anybody can choose: so it is not looked at.
        """
        kind = name_in(system.get("type"), "system")
        if kind in _CHANGED:
            now = _names({**system, "wa_id": system.get("wa_id") or system.get("new_wa_id")}, *_SYSTEM)
            before = _names(system, "previous_user_id", "customer", "previous_parent_user_id")
            self._keep_change(message_id, _CHANGED[kind], now, [*before.items(), *named.items()], sent_at)
        elif kind in _REGISTERED_ANEW:
            # A user id is another one for whoever takes over a number, so that alone is in doubt, where there is one.
            names = _external(sender)
            former = tuple(name for name in names if name.kind == "wa_id" or "bsuid" not in sender)
            self._keep(message_id, sender, sent_at, note=_REGISTERED_ANEW[kind], former=former)
        else:
            self._keep(message_id, sender, sent_at, note=kind)

    def _user_id_update(self, update: dict[str, Any], sent_at: datetime) -> None:
        """How a change was told until August 2026, and may still be by those who forward webhooks. It has no id of its
        own, so it gets one that is the same when it is delivered again.
        """
        told_at = _time(update.get("timestamp"))
        bsuid, parent = object_in(update.get("user_id")), object_in(update.get("parent_user_id"))
        now = {"user_id": bsuid.get("current"), "wa_id": update.get("wa_id"), "parent_user_id": parent.get("current")}
        before = {"user_id": bsuid.get("previous"), "parent_user_id": parent.get("previous")}
        changed = _names(before, *_SYSTEM), _names(now, *_SYSTEM)
        update_id = f"user_id_update.{sha256(json.dumps([*changed, str(told_at)]).encode()).hexdigest()[:32]}"
        self._keep_change(update_id, "user_id_update", changed[1], [*changed[0].items()], told_at or sent_at)

    def _keep_change(
        self, update_id: str, note: str, now: dict[str, str], before: list[tuple[str, str]], sent_at: datetime
    ) -> None:
        former = {ExternalId(*name): None for name in before if name not in now.items()}
        self._keep(update_id, now or dict(reversed(before)), sent_at, note=note, former=tuple(former))

    def _keep(self, message_id: str, sender: dict[str, str], sent_at: datetime, **more: Any) -> None:
        if not sender:
            self.ignored["message without a sender"] += 1
            return
        self.arrived.append(Arrived(id=message_id, sender=Contact(_external(sender)), sent_at=sent_at, **more))

    def _status(self, status: dict[str, Any], sent_at: datetime) -> None:
        kind, message_id = name_in(status.get("status")), _id(status.get("id"))
        if kind not in _STATUSES:
            self.ignored[f"status {kind}"] += 1
        elif not message_id:
            self.ignored["status without an id"] += 1
        else:
            errors = self._objects(status, "errors")
            at = _time(status.get("timestamp")) or sent_at
            self.reports.append(Report(message_id, _STATUSES[kind], at, _error(errors[0]) if errors else ""))


def _names(source: dict[str, Any], bsuid: str, wa_id: str, parent: str) -> dict[str, str]:
    """The names of a person in these members, by their kind. Where the number belongs there may be a BSUID."""
    found = {kind: _id(source.get(member)) for kind, member in zip(_KINDS, (bsuid, wa_id, parent), strict=True)}
    if form := _BSUID.fullmatch(found["wa_id"]):
        kind = "parent" if form[1] else "bsuid"
        found |= {"wa_id": "", kind: found[kind] or found["wa_id"]}
    elif number := _NUMBER.fullmatch(found["wa_id"]):
        found["wa_id"] = number[1]
    return {kind: name for kind, name in found.items() if name}


def _completed(
    sender: dict[str, str], by_name: Mapping[tuple[str, str], dict[str, str]], lone: dict[str, str] | None
) -> dict[str, str]:
    """The sender with what else their contact says. `lone`: the only contact, where there is one sender of all, too."""
    for contact in (lone, *map(by_name.get, sender.items())):
        if contact is not None and _is_theirs(sender, contact, is_lone=contact is lone):
            return {**sender, **contact}
    return sender


def _is_theirs(sender: dict[str, str], contact: dict[str, str], is_lone: bool) -> bool:
    """Whether they have the surest name in common that both have.

    Where there is no other contact the numbers may differ: a wa_id is not always the number that is dialled.
    """
    for kind in _KINDS:
        if kind in sender and kind in contact:
            return sender[kind] == contact[kind] or (is_lone and kind == "wa_id")
    return is_lone


def _external(names: dict[str, str]) -> tuple[ExternalId, ...]:
    """The surest name first."""
    return tuple(ExternalId(kind, names[kind]) for kind in _KINDS if kind in names)


def _id(value: Any) -> str:
    return value if isinstance(value, str) and _ID.fullmatch(value) else ""


def _time(value: Any) -> datetime | None:
    """Seconds since 1970, as a text or a number; None when they name no time, or the very first."""
    if isinstance(value, bool) or not isinstance(value, str | int) or not _SECONDS.fullmatch(str(value)):
        return None
    return datetime.fromtimestamp(int(value), UTC) if 0 < int(value) <= _LAST_SECOND else None


def _code(error: dict[str, Any]) -> str:
    code = error.get("code")
    return str(code) if isinstance(code, int) and not isinstance(code, bool) else "unknown"


def _error(error: dict[str, Any]) -> str:
    """Code and title alone: the other members may quote what was sent."""
    title = _MANY_DIGITS.sub("…", " ".join(text_in(error.get("title")).split()))
    return f"{_code(error)} {title[:_LONGEST_TITLE]}".rstrip()
