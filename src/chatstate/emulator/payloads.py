"""The webhooks of the WhatsApp Cloud API: messages of every type, statuses and errors, as Meta sends them.

The shapes are those of Meta's documentation of August 2026 (developers.facebook.com/documentation/business-messaging/
whatsapp: the `messages` webhook reference with its pages for each type, and the page on business-scoped user ids).

Who has written stands there in one of three styles:

before    only the phone number (`wa_id`, `from`), as until March 2026
both      the number and the business-scoped user id (`user_id`, `from_user_id`), as since April 2026
username  the id and the name of a person who has taken a username, and no number
"""

from __future__ import annotations

import secrets
from base64 import b64encode
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import cycle, groupby, islice
from json import dumps
from typing import Any, Literal, NamedTuple

from msgspec import Struct

Identities = Literal["before", "both", "username"]
State = Literal["sent", "delivered", "read", "failed"]
Content = dict[str, Any]
"""What a message says: its `type`, the member of that name, and its `context` perhaps."""

WINDOW = timedelta(hours=24)
MOST_UPDATES = 1000
"""How many messages and statuses one request may bring."""

ERROR_CODES_URL = "/documentation/business-messaging/whatsapp/support/error-codes"
_CHANGE_SIZES = (1, 3, 2, 5)
_CHANGES_OF_AN_ENTRY = 2


class Account(Struct, frozen=True, kw_only=True):
    """The business that is written to, and what it and Meta know of each other. Its numbers are those of Meta's docs.

    app_secret    signs webhooks
    verify_token  is shown by Meta when it asks for the first time
    access_token  is shown by the business when it sends
    """

    phone_number_id: str = "106540352242922"
    number: str = "15550783881"
    business_id: str = "102290129340398"
    app_secret: str = "emulated-app-secret"  # noqa: S105 (of nothing that exists)
    verify_token: str = "emulated-verify-token"  # noqa: S105
    access_token: str = "emulated-access-token"  # noqa: S105

    def __repr__(self) -> str:
        return f"Account({self.phone_number_id})"  # secrets reach logs by way of it


class Person(Struct, eq=False, kw_only=True):
    """Somebody with a phone.

    key       names the person here
    wa_id     the phone number, in digits
    user_id   the business-scoped user id; a change of the number brings another one
    username  begins with `@`
    """

    key: str
    name: str
    wa_id: str
    user_id: str
    username: str

    def __repr__(self) -> str:
        return f"Person({self.key})"


def new_user_id() -> str:
    """A business-scoped user id that nobody has: a country, a dot, and up to 128 letters and digits."""
    return f"US.{secrets.randbelow(9 * 10**19) + 10**19}"


def new_message_id(address: str) -> str:
    """An id that looks like Meta's, and that no other message has."""
    name = address.rpartition(".")[2].encode()
    number = secrets.token_hex(10).upper().encode()
    return "wamid." + b64encode(b"\x1c\x18%c%b\x15\x02\x00\x12\x18\x14%b\x00" % (len(name), name, number)).decode()


# --- What a message says ----------------------------------------------------------------------------------------------


def text(body: str) -> Content:
    return {"type": "text", "text": {"body": body}}


def button_reply(choice_id: str, title: str) -> Content:
    """A button of an interactive message was tapped."""
    reply = {"id": choice_id, "title": title}
    return {"type": "interactive", "interactive": {"type": "button_reply", "button_reply": reply}}


def list_reply(choice_id: str, title: str, description: str = "") -> Content:
    """A row of a list was tapped."""
    reply = {"id": choice_id, "title": title, **({"description": description} if description else {})}
    return {"type": "interactive", "interactive": {"type": "list_reply", "list_reply": reply}}


def template_button(payload: str, title: str) -> Content:
    """A quick-reply button of a template was tapped."""
    return {"type": "button", "button": {"payload": payload, "text": title}}


def location() -> Content:
    place = {"latitude": 52.5163, "longitude": 13.3777, "name": "Brandenburg Gate", "address": "Pariser Platz, Berlin"}
    return {"type": "location", "location": place}


def contacts() -> Content:
    card = {
        "name": {"first_name": "Ana", "last_name": "Núñez", "formatted_name": "Ana Núñez"},
        "org": {"company": "Fern & Pot"},
        "phones": [{"phone": "+1 (555) 010-0142", "type": "WORK", "wa_id": "15550100142"}],
        "origin": "other",
        "vcard": "BEGIN:VCARD\nVERSION:3.0\nFN:Ana Núñez\nTEL;type=WORK:+1 (555) 010-0142\nEND:VCARD",
    }
    return {"type": "contacts", "contacts": [card]}


def order() -> Content:
    items = [
        {"product_retailer_id": "fern-12", "quantity": 2, "item_price": 9.5, "currency": "USD"},
        {"product_retailer_id": "pot-small", "quantity": 1, "item_price": 4, "currency": "USD"},
    ]
    return {"type": "order", "order": {"catalog_id": "700000000000001", "text": "For Tuesday", "product_items": items}}


def reaction(message_id: str, emoji: str) -> Content:
    """An emoji on a message; an empty one takes it away, and then the member is missing."""
    return {"type": "reaction", "reaction": {"message_id": message_id, **({"emoji": emoji} if emoji else {})}}


def edit(original_id: str, body: str) -> Content:
    """A text was changed, up to 15 minutes after it was sent. Meta tells only numbers that the app uses, too."""
    return {"type": "edit", "edit": {"original_message_id": original_id, "message": text(body)}}


def revoke(original_id: str) -> Content:
    """A message was deleted for everyone. Meta tells only numbers that the app uses, too."""
    return {"type": "revoke", "revoke": {"original_message_id": original_id}}


def unsupported() -> Content:
    """What the Cloud API cannot show, such as a poll."""
    error = error_object(131051, "Message type unknown", "Message type is currently not supported.")
    del error["href"]
    return {"type": "unsupported", "errors": [error], "unsupported": {"type": "poll_creation"}}


def unknown() -> Content:
    """A type that does not exist yet: some day there will be one that nobody has heard of."""
    return {"type": "hologram", "hologram": {"shape": "dodecahedron", "seconds": 12}}


def error_object(code: int, title: str, details: str) -> dict[str, Any]:
    """An error as it stands in webhooks."""
    return {"code": code, "title": title, "message": title, "error_data": {"details": details}, "href": ERROR_CODES_URL}


# --- Updates: what has happened, and whom it is about -----------------------------------------------------------------


class Update(NamedTuple):
    """One message, status or error, of which a webhook may bring many.

    kind     the member that it stands in
    item     itself
    contact  who it is about, where that stands beside it
    """

    kind: Literal["messages", "statuses", "errors"]
    item: dict[str, Any]
    contact: dict[str, Any] | None = None

    @property
    def label(self) -> str:
        """What it is, in a word."""
        if self.kind == "errors":
            return f"error {self.item['code']}"
        word: str = self.item["type" if self.kind == "messages" else "status"]
        inner: object = self.item.get(word) if word in ("interactive", "system") else None
        return str(inner["type"]) if isinstance(inner, dict) else word


def message(person: Person, style: Identities, message_id: str, at: datetime, content: Content) -> Update:
    """What a person has sent."""
    sender = {} if style == "username" else {"from": person.wa_id}
    if style != "before":
        sender["from_user_id"] = person.user_id
    item = {**sender, "id": message_id, "timestamp": _seconds(at), **content}
    return Update("messages", item, _contact(person, style, with_username=True))


def number_changed(old: Person, new: Person, style: Identities, message_id: str, at: datetime) -> Update:
    """A person has another number, and therefore another user id. Such messages come without contacts.

    Where the number is not told, neither is the new one: then it is `user_changed_user_id`.
    """
    if style == "username":
        return user_id_changed(old, new, message_id, at)
    system = {"body": f"User {old.name} changed from {old.wa_id} to {new.wa_id}", "wa_id": new.wa_id}
    if style == "both":
        system |= {"user_id": new.user_id, "previous_user_id": old.user_id}
    return _system(message_id, at, {**system, "type": "user_changed_number"}, {"from": old.wa_id})


def user_id_changed(old: Person, new: Person, message_id: str, at: datetime) -> Update:
    """A person has another business-scoped user id, and that is all that is told."""
    system = {
        "body": f"User {old.name} changed from {old.user_id} to {new.user_id}",
        "user_id": new.user_id,
        "previous_user_id": old.user_id,
        "type": "user_changed_user_id",
    }
    return _system(message_id, at, system, {})


def status(
    person: Person,
    style: Identities,
    message_id: str,
    state: State,
    at: datetime,
    error: dict[str, Any] | None = None,
    *,
    by_number: bool = True,
) -> Update:
    """What became of a message that the business has sent; `by_number`: to the person's number, not to the user id."""
    item: dict[str, Any] = {"id": message_id, "status": state, "timestamp": _seconds(at)}
    if by_number or style != "username":
        item["recipient_id"] = person.wa_id
    if style != "before" and not (state == "failed" and by_number):
        item["recipient_user_id"] = person.user_id
    if state in ("sent", "delivered"):
        item |= _prices(style, message_id, at, with_end=state == "sent")
    if error:
        item["errors"] = [error]
    if style == "before" or state == "failed":
        return Update("statuses", item)
    contact = _contact(person, style, with_username=state != "sent")
    if by_number:
        contact["wa_id"] = person.wa_id
    return Update("statuses", item, contact)


def account_error(code: int, title: str, details: str) -> Update:
    """Something that went wrong and belongs to no message."""
    return Update("errors", error_object(code, title, details))


def _contact(person: Person, style: Identities, with_username: bool) -> dict[str, Any]:
    profile = {"name": person.name}
    if style == "username" and with_username:
        profile["username"] = person.username
    contact: dict[str, Any] = {"profile": profile}
    if style != "username":
        contact["wa_id"] = person.wa_id
    if style != "before":
        contact["user_id"] = person.user_id
    return contact


def _system(message_id: str, at: datetime, system: dict[str, str], sender: dict[str, str]) -> Update:
    item = {**sender, "id": message_id, "timestamp": _seconds(at), "type": "system", "system": system}
    return Update("messages", item)


def _prices(style: Identities, message_id: str, at: datetime, with_end: bool) -> dict[str, Any]:
    if style != "before":
        kind = {"pricing_model": "PMP", "type": "free_customer_service", "category": "service"}
        return {"pricing": {"billable": False, **kind}}
    conversation: dict[str, Any] = {"id": message_id[-32:].lower(), "origin": {"type": "service"}}
    if with_end:
        conversation["expiration_timestamp"] = _seconds(at + WINDOW)
    pricing = {"billable": True, "pricing_model": "CBP", "category": "service"}
    return {"conversation": conversation, "pricing": pricing}


def _seconds(at: datetime) -> str:
    return str(int(at.timestamp()))


# --- Requests ---------------------------------------------------------------------------------------------------------


def encode(account: Account, updates: Sequence[Update]) -> bytes:
    """The body of one request that brings these updates, in this order; several make several entries and changes.

    Characters beyond ASCII are escaped, in lower case, and so are slashes: these are the bytes that Meta signs.
    """
    if not 1 <= len(updates) <= MOST_UPDATES:
        raise ValueError(f"one request brings 1 to {MOST_UPDATES} updates, not {len(updates)}")
    changes = [{"value": value, "field": "messages"} for value in _values(account, updates)]
    entries = [
        {"id": account.business_id, "changes": changes[start : start + _CHANGES_OF_AN_ENTRY]}
        for start in range(0, len(changes), _CHANGES_OF_AN_ENTRY)
    ]
    document = {"object": "whatsapp_business_account", "entry": entries}
    return dumps(document, separators=(",", ":")).replace("/", "\\/").encode("ascii")


def _values(account: Account, updates: Sequence[Update]) -> Iterator[dict[str, Any]]:
    """Messages and statuses do not share a change; one change has now fewer and now more of them."""
    metadata = {"display_phone_number": account.number, "phone_number_id": account.phone_number_id}
    sizes = cycle(_CHANGE_SIZES)
    for kind, group in groupby(updates, key=lambda update: update.kind):
        while together := list(islice(group, next(sizes))):
            value: dict[str, Any] = {"messaging_product": "whatsapp", "metadata": metadata}
            known = [update.contact for update in together if update.contact]
            if known:
                value["contacts"] = [contact for number, contact in enumerate(known) if contact not in known[:number]]
            yield {**value, kind: [update.item for update in together]}
