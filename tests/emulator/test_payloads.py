"""Webhooks have the shapes that Meta documents, for each type of message and each way to name a person."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from msgspec import json

from chatstate.emulator import Account, Person, Update, encode, payloads
from chatstate.emulator.media import BY_ID, SAMPLES
from chatstate.emulator.payloads import Content, Identities

AT = datetime(2026, 8, 11, 9, 30, 5, 900_000, tzinfo=UTC)
SECONDS = "1786440605"
STYLES: tuple[Identities, ...] = get_args(Identities)

ANN = Person(key="ann", name="Ann Öz", wa_id="16505551234", user_id="US.1234", username="@ann.oz")
METADATA = {"display_phone_number": "15550783881", "phone_number_id": "106540352242922"}


def decoded(*updates: Update) -> dict[str, Any]:
    document: dict[str, Any] = json.decode(encode(Account(), updates))
    return document


def value_of(update: Update) -> dict[str, Any]:
    [entry] = decoded(update)["entry"]
    [change] = entry["changes"]
    assert change["field"] == "messages"
    value: dict[str, Any] = change["value"]
    return value


def message(content: Content, style: Identities = "both", message_id: str = "wamid.A") -> Update:
    return payloads.message(ANN, style, message_id, AT, content)


# --- Who has written --------------------------------------------------------------------------------------------------

CONTACTS = {
    "before": {"profile": {"name": "Ann Öz"}, "wa_id": "16505551234"},
    "both": {"profile": {"name": "Ann Öz"}, "wa_id": "16505551234", "user_id": "US.1234"},
    "username": {"profile": {"name": "Ann Öz", "username": "@ann.oz"}, "user_id": "US.1234"},
}
SENDERS = {
    "before": {"from": "16505551234"},
    "both": {"from": "16505551234", "from_user_id": "US.1234"},
    "username": {"from_user_id": "US.1234"},
}


@pytest.mark.parametrize("style", STYLES)
def test_a_text_names_its_sender(style: Identities) -> None:
    document = decoded(message(payloads.text("Hi"), style))
    said = {**SENDERS[style], "id": "wamid.A", "timestamp": SECONDS, "type": "text", "text": {"body": "Hi"}}
    value = {"messaging_product": "whatsapp", "metadata": METADATA, "contacts": [CONTACTS[style]], "messages": [said]}
    entry = {"id": "102290129340398", "changes": [{"value": value, "field": "messages"}]}
    assert document == {"object": "whatsapp_business_account", "entry": [entry]}


@pytest.mark.parametrize("style", STYLES)
def test_no_payload_tells_the_number_of_who_has_a_username(style: Identities) -> None:
    new = Person(key="ann", name="Ann Öz", wa_id="16505554321", user_id="US.5678", username="@ann.oz")
    told = [
        message(payloads.text("Hi"), style),
        payloads.number_changed(ANN, new, style, "wamid.B", AT),
        payloads.status(ANN, style, "wamid.C", "delivered", AT, by_number=False),
    ]
    assert ("16505551234" in encode(Account(), told).decode()) == (style != "username")
    assert (b"US." in encode(Account(), told)) == (style != "before")
    assert (b"@ann" in encode(Account(), told)) == (style == "username")


def test_a_change_of_the_number_is_told_in_each_style() -> None:
    new = Person(key="ann", name="Ann Öz", wa_id="16505554321", user_id="US.5678", username="@ann.oz")
    told = {style: value_of(payloads.number_changed(ANN, new, style, "wamid.B", AT)) for style in STYLES}
    assert all("contacts" not in value for value in told.values())
    messages = {style: value["messages"][0] for style, value in told.items()}
    assert {message["type"] for message in messages.values()} == {"system"}
    numbers = {
        "body": "User Ann Öz changed from 16505551234 to 16505554321",
        "wa_id": "16505554321",
        "type": "user_changed_number",
    }
    ids = {"user_id": "US.5678", "previous_user_id": "US.1234"}
    assert (messages["before"]["from"], messages["before"]["system"]) == ("16505551234", numbers)
    assert (messages["both"]["from"], messages["both"]["system"]) == ("16505551234", {**numbers, **ids})
    assert "from" not in messages["username"]
    body = "User Ann Öz changed from US.1234 to US.5678"
    assert messages["username"]["system"] == {"body": body, **ids, "type": "user_changed_user_id"}


# --- What it says -----------------------------------------------------------------------------------------------------

CONTENTS: dict[str, tuple[Content, dict[str, Any]]] = {
    "button": (
        payloads.button_reply("yes", "Yes"),
        {"interactive": {"type": "button_reply", "button_reply": {"id": "yes", "title": "Yes"}}},
    ),
    "list": (
        payloads.list_reply("a", "A", "First"),
        {"interactive": {"type": "list_reply", "list_reply": {"id": "a", "title": "A", "description": "First"}}},
    ),
    "list without description": (
        payloads.list_reply("a", "A"),
        {"interactive": {"type": "list_reply", "list_reply": {"id": "a", "title": "A"}}},
    ),
    "template": (payloads.template_button("go", "Go"), {"button": {"payload": "go", "text": "Go"}}),
    "reaction": (payloads.reaction("wamid.Z", "👍"), {"reaction": {"message_id": "wamid.Z", "emoji": "👍"}}),
    "no reaction": (payloads.reaction("wamid.Z", ""), {"reaction": {"message_id": "wamid.Z"}}),
    "edit": (
        payloads.edit("wamid.Z", "New"),
        {"edit": {"original_message_id": "wamid.Z", "message": {"type": "text", "text": {"body": "New"}}}},
    ),
    "revoke": (payloads.revoke("wamid.Z"), {"revoke": {"original_message_id": "wamid.Z"}}),
    "unknown": (payloads.unknown(), {"hologram": {"shape": "dodecahedron", "seconds": 12}}),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_what_a_message_says(name: str) -> None:
    content, expected = CONTENTS[name]
    [said] = value_of(message(content))["messages"]
    common = {"from": "16505551234", "from_user_id": "US.1234", "id": "wamid.A", "timestamp": SECONDS}
    assert said == {**common, "type": next(iter(expected)), **expected}


def test_locations_contacts_and_orders_have_what_bots_look_for() -> None:
    place = value_of(message(payloads.location()))["messages"][0]["location"]
    assert {type(place["latitude"]), type(place["longitude"])} == {float}
    [card] = value_of(message(payloads.contacts()))["messages"][0]["contacts"]
    assert card["name"]["formatted_name"] == "Ana Núñez"
    assert card["phones"][0].keys() == {"phone", "type", "wa_id"}
    assert (card["origin"], card["vcard"][:11]) == ("other", "BEGIN:VCARD")
    order = value_of(message(payloads.order()))["messages"][0]["order"]
    assert order.keys() == {"catalog_id", "text", "product_items"}
    assert order["product_items"][0].keys() == {"product_retailer_id", "quantity", "item_price", "currency"}


def test_what_the_api_cannot_show_comes_with_an_error() -> None:
    [said] = value_of(message(payloads.unsupported()))["messages"]
    assert said["type"] == "unsupported"
    assert said["errors"] == [
        {
            "code": 131051,
            "title": "Message type unknown",
            "message": "Message type unknown",
            "error_data": {"details": "Message type is currently not supported."},
        }
    ]


def test_errors_of_the_account_stand_beside_messages() -> None:
    value = value_of(payloads.account_error(130429, "Rate limit hit", "Too many."))
    assert value.keys() == {"messaging_product", "metadata", "errors"}
    assert value["errors"][0]["code"] == 130429
    assert value["errors"][0]["error_data"] == {"details": "Too many."}


@pytest.mark.parametrize("kind", SAMPLES)
def test_files_are_described_as_they_are(kind: Any) -> None:
    sample = SAMPLES[kind]
    described = sample.object("http://localhost:4000/media/1", "A caption", voice=kind == "voice")
    assert described["mime_type"] == sample.media_type
    assert ("caption" in described) == (kind in ("image", "video", "document"))
    assert described.get("voice") == {"audio": False, "voice": True}.get(kind)
    assert described.get("animated") == (False if kind == "sticker" else None)
    assert sample.described("x")["file_size"] == len(sample.content)
    assert BY_ID[described["id"]] is sample
    signatures = {"image": b"\x89PNG", "sticker": b"RIFF", "document": b"%PDF", "video": b"\0\0\0\x1cftyp"}
    assert sample.content.startswith(signatures.get(kind, b"OggS"))


# --- Statuses ---------------------------------------------------------------------------------------------------------


def test_statuses_before_user_ids() -> None:
    value = value_of(payloads.status(ANN, "before", "wamid.S", "sent", AT))
    assert "contacts" not in value
    [sent] = value["statuses"]
    assert (sent["recipient_id"], sent["pricing"]["pricing_model"]) == ("16505551234", "CBP")
    assert sent["conversation"]["expiration_timestamp"] == str(int(SECONDS) + 86_400)
    [delivered] = value_of(payloads.status(ANN, "before", "wamid.S", "delivered", AT))["statuses"]
    assert "expiration_timestamp" not in delivered["conversation"]
    [read] = value_of(payloads.status(ANN, "before", "wamid.S", "read", AT))["statuses"]
    assert read == {"id": "wamid.S", "status": "read", "timestamp": SECONDS, "recipient_id": "16505551234"}


def test_statuses_with_user_ids() -> None:
    value = value_of(payloads.status(ANN, "both", "wamid.S", "delivered", AT))
    assert value["contacts"] == [CONTACTS["both"]]
    pricing = {"billable": False, "pricing_model": "PMP", "type": "free_customer_service", "category": "service"}
    recipient = {"recipient_id": "16505551234", "recipient_user_id": "US.1234"}
    told = {"id": "wamid.S", "status": "delivered", "timestamp": SECONDS, **recipient, "pricing": pricing}
    assert value["statuses"] == [told]


def test_statuses_of_who_has_a_username() -> None:
    sent = value_of(payloads.status(ANN, "username", "wamid.S", "sent", AT, by_number=False))
    assert sent["contacts"] == [{"profile": {"name": "Ann Öz"}, "user_id": "US.1234"}], "sent tells no username"
    read = value_of(payloads.status(ANN, "username", "wamid.S", "read", AT, by_number=False))
    assert read["contacts"] == [CONTACTS["username"]]
    assert "recipient_id" not in read["statuses"][0]
    known = value_of(payloads.status(ANN, "username", "wamid.S", "read", AT, by_number=True))
    assert known["contacts"][0]["wa_id"] == known["statuses"][0]["recipient_id"] == "16505551234"


def test_a_failure_tells_whom_it_was_sent_to_and_why() -> None:
    error = payloads.error_object(131026, "Message undeliverable", "No such person.")
    value = value_of(payloads.status(ANN, "both", "wamid.S", "failed", AT, error))
    assert "contacts" not in value
    failed = {"id": "wamid.S", "status": "failed", "timestamp": SECONDS, "recipient_id": "16505551234"}
    assert value["statuses"] == [{**failed, "errors": [error]}]
    by_id = value_of(payloads.status(ANN, "username", "wamid.S", "failed", AT, error, by_number=False))
    assert by_id["statuses"][0]["recipient_user_id"] == "US.1234"
    assert "recipient_id" not in by_id["statuses"][0]


# --- Requests ---------------------------------------------------------------------------------------------------------


def test_the_signed_bytes_are_ascii_with_escapes_in_lower_case() -> None:
    body = encode(Account(), [message(payloads.text("Ü 日 👍 https://a/b"))])
    assert b'"body":"\\u00dc \\u65e5 \\ud83d\\udc4d https:\\/\\/a\\/b"' in body
    assert json.decode(body)["entry"][0]["changes"][0]["value"]["messages"][0]["text"]["body"] == "Ü 日 👍 https://a/b"


def test_a_batch_has_all_updates_in_order_over_entries_changes_and_messages() -> None:
    written = [message(payloads.text("x"), message_id=f"wamid.{number}") for number in range(1000)]
    document = decoded(*written)
    changes = [change for entry in document["entry"] for change in entry["changes"]]
    messages = [message for change in changes for message in change["value"]["messages"]]
    assert [message["id"] for message in messages] == [f"wamid.{number}" for number in range(1000)]
    assert min(len(document["entry"]), *(len(entry["changes"]) for entry in document["entry"][:-1])) > 1
    assert {len(change["value"]["messages"]) for change in changes} > {1, 2, 3}
    assert all(change["value"]["contacts"] == [CONTACTS["both"]] for change in changes)


def test_messages_and_statuses_do_not_share_a_change() -> None:
    document = decoded(
        message(payloads.text("1"), message_id="wamid.1"),
        payloads.status(ANN, "both", "wamid.S", "sent", AT),
        payloads.account_error(130429, "Rate limit hit", "Too many."),
        message(payloads.text("2"), message_id="wamid.2"),
    )
    values = [change["value"] for entry in document["entry"] for change in entry["changes"]]
    kinds = [value.keys() & {"messages", "statuses", "errors"} for value in values]
    assert kinds == [{"messages"}, {"statuses"}, {"errors"}, {"messages"}]


def test_a_change_names_each_person_of_its_messages_once() -> None:
    ben = Person(key="ben", name="Ben", wa_id="15550100002", user_id="US.9", username="@ben")
    written = [payloads.message(person, "both", "wamid.A", AT, payloads.text("x")) for person in (ANN, ben) * 4]
    values = [change["value"] for entry in decoded(*written)["entry"] for change in entry["changes"]]
    for value in values:
        known = [contact["wa_id"] for contact in value["contacts"]]
        assert known == list(dict.fromkeys(message["from"] for message in value["messages"]))
    assert any(len(value["contacts"]) == 2 for value in values)


@pytest.mark.parametrize("count", [0, 1001])
def test_no_request_brings_none_or_too_many(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 1000 updates"):
        encode(Account(), [message(payloads.text("x"))] * count)


def test_ids_are_new_each_time_and_hide_nothing_of_the_account() -> None:
    assert payloads.new_message_id("16505551234") != payloads.new_message_id("16505551234")
    assert payloads.new_message_id("16505551234").startswith("wamid.HBgLMTY1MDU1NTEyMzQVAgAS")
    assert "secret" not in repr(Account(app_secret="secret"))
    assert "16505551234" not in repr(ANN)
