"""What Meta posts to the webhook: whether Meta has sent it, and what is made of it, whatever its shape."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatstate.bot import Attachment, Choice, Message
from chatstate.channels import Arrived, ExternalId, Report
from chatstate.channels.whatsapp.webhook import Delivery, challenge, is_signed, parse
from chatstate.errors import InvalidJson
from chatstate.model import EARLIEST

OURS = "410000000000001"
SECRET = "app-secret"
SENT = datetime(2026, 8, 20, 9, 30, tzinfo=UTC)
SECONDS = str(int(SENT.timestamp()))

ANNA = {"wa_id": "15550001111", "user_id": "US.1001ANNA", "parent_user_id": "US.ENT.2001ANNA"}
ANNA_IDS = (
    ExternalId("bsuid", "US.1001ANNA"),
    ExternalId("wa_id", "15550001111"),
    ExternalId("parent", "US.ENT.2001ANNA"),
)


def text(body: str = "Hi", **members: Any) -> dict[str, Any]:
    """A text message; members that are None are left out."""
    message = {"from": "15550001111", "id": "wamid.A", "timestamp": SECONDS, "type": "text", "text": {"body": body}}
    return {name: value for name, value in (message | members).items() if value is not None}


def of_type(kind: str, content: Any) -> dict[str, Any]:
    return text(type=kind, **{"text": None, kind: content})


def value(*messages: Any, contacts: Any = (), number: str = OURS, **members: Any) -> dict[str, Any]:
    metadata = {"display_phone_number": "15559990000", "phone_number_id": number}
    return {"messaging_product": "whatsapp", "metadata": metadata, "contacts": list(contacts)} | (
        {"messages": list(messages)} | members
    )


def envelope(*values: Any, field: str = "messages") -> dict[str, Any]:
    changes = [{"field": field, "value": value} for value in values]
    return {"object": "whatsapp_business_account", "entry": [{"id": "120000000000001", "changes": changes}]}


def read(payload: Any, received_at: datetime = EARLIEST) -> Delivery:
    return parse(json.dumps(payload).encode(), OURS, received_at)


def read_one(message: dict[str, Any], **members: Any) -> Arrived:
    delivery = read(envelope(value(message, **members)))
    assert (delivery.reports, delivery.ignored) == ((), {})
    (arrived,) = delivery.arrived
    return arrived


def said(message: dict[str, Any]) -> Message:
    arrived = read_one(message)
    assert arrived.message
    assert (arrived.message.id, arrived.message.at, arrived.note) == ("wamid.A", SENT, "")
    return arrived.message


def note(message: dict[str, Any]) -> str:
    arrived = read_one(message)
    assert arrived.message is None
    return arrived.note


# Signatures


def signature(body: bytes, secret: str = SECRET) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, sha256).hexdigest()


def test_a_body_that_was_signed_with_the_secret_is_signed() -> None:
    body = '{"text": "Grüße, \\u0041"}'.encode()
    assert is_signed(SECRET, body, [signature(body)])
    assert is_signed("sécret", body, [signature(body, "sécret")])


def test_the_signature_covers_the_very_bytes() -> None:
    body = b'{"text": "\\u00fc"}'
    assert not is_signed(SECRET, json.dumps(json.loads(body), ensure_ascii=False).encode(), [signature(body)])
    assert not is_signed(SECRET, body + b"\n", [signature(body)])


GOOD = signature(b"{}")


@pytest.mark.parametrize(
    "signatures",
    [
        [],
        [""],
        [GOOD, GOOD],
        [GOOD.upper()],
        ["sha256=" + GOOD[7:].upper()],
        [GOOD[:-1]],
        [GOOD + "0"],
        [GOOD + "\n"],
        [" " + GOOD],
        [GOOD[7:]],
        ["sha1=" + hmac.new(SECRET.encode(), b"{}", "sha1").hexdigest()],
        ["sha256=" + "é" * 64],
        ["sha256=" + "٣" * 64],
        ["sha256=" + "0" * 64],
        [f"{GOOD}, {GOOD}"],
        [signature(b"{}", "another secret")],
    ],
)
def test_every_other_signature_is_refused(signatures: list[str]) -> None:
    assert not is_signed(SECRET, b"{}", signatures)


def test_without_a_secret_nothing_is_signed() -> None:
    assert not is_signed("", b"{}", [signature(b"{}", "")])


@settings(deadline=None)
@given(st.text(), st.binary(max_size=50), st.lists(st.text(max_size=80), max_size=2))
def test_signatures_of_any_shape_are_refused_and_raise_nothing(secret: str, body: bytes, signatures: list[str]) -> None:
    assert not is_signed(secret, body, signatures)


# The challenge


def asked(**changes: str | None) -> str:
    given = {"mode": "subscribe", "verify_token": "t%C3%B6ken+1", "challenge": "1158201444"} | changes
    return "&".join(f"hub.{name}={value}" for name, value in given.items() if value is not None)


def test_the_challenge_is_answered_to_who_knows_the_token() -> None:
    assert challenge(asked(), "töken 1") == "1158201444"
    assert challenge("other=1&" + asked(challenge="a-Z_0.9~"), "töken 1") == "a-Z_0.9~"


@pytest.mark.parametrize(
    "query",
    [
        "",
        asked(mode=None),
        asked(mode="unsubscribe"),
        asked(verify_token=None),
        asked(verify_token=""),
        asked(verify_token="t%C3%B6ken"),
        asked(verify_token="t%F6ken+1"),
        asked(challenge=None),
        asked(challenge=""),
        asked(challenge="1" * 129),
        asked(challenge="%3Cscript%3E"),
        asked(challenge="1%0D%0Aset-cookie:x"),
        asked(challenge="%D9%A3"),
        asked() + "&hub.challenge=2",
        asked() + "&hub.verify_token=x",
        asked() + "&hub.mode=subscribe",
        asked() + "&a=1" * 100,
    ],
)
def test_every_other_challenge_is_refused(query: str) -> None:
    assert challenge(query, "töken 1") is None


def test_without_a_token_no_challenge_is_answered() -> None:
    assert challenge(asked(verify_token=""), "") is None


@settings(deadline=None)
@given(st.text(max_size=200), st.text(max_size=20))
def test_challenges_of_any_shape_raise_nothing(query: str, token: str) -> None:
    assert challenge(query, token) is None


# Envelopes


def test_everything_of_every_entry_and_change_arrives_in_order() -> None:
    first = envelope(
        value(text(id="wamid.1"), text(id="wamid.2"), statuses=[{"id": "wamid.9", "status": "sent"}]),
        value(text(id="wamid.3")),
    )
    second = envelope(value(text(id="wamid.4"), text(id="wamid.1")))
    delivery = read(first | {"entry": first["entry"] + second["entry"]})
    assert [arrived.id for arrived in delivery.arrived] == ["wamid.1", "wamid.2", "wamid.3", "wamid.4", "wamid.1"]
    assert [report.id for report in delivery.reports] == ["wamid.9"]
    assert delivery.ignored == {}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"a=1",
        b"\xff",
        b"NaN",
        b'{"object": Infinity}',
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b"[" * 200_000,
    ],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidJson) as refused:
        parse(body, OURS)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    ("payload", "ignored"),
    [
        ([], {"another object": 1}),
        ("whatsapp_business_account", {"another object": 1}),
        ({"object": "page", "entry": []}, {"another object": 1}),
        (envelope() | {"entry": None}, {}),
        (envelope() | {"entry": 7}, {"malformed entry": 1}),
        (envelope() | {"entry": [7, {"changes": [None, "x"]}]}, {"malformed entry": 1, "malformed changes": 2}),
        (envelope({"event": "x"}, field="account_update"), {"field account_update": 1}),
        (envelope({}, {}, field="+1 555 000 1111"), {"field unknown": 2}),
        (envelope(None), {"another phone number": 1}),
        (envelope(value(text(), text(), statuses=[{}], number="42")), {"another phone number": 3}),
        (envelope(value(metadata=None)), {"another phone number": 1}),
        (envelope(value("x", text(id=7), text(id="a b"), text(id=None), text(id="i" * 257))),
         {"malformed messages": 1, "message without an id": 4}),
        (envelope(value(text(**{"from": None}))), {"message without a sender": 1}),
        (envelope(value(text(**{"from": {"a": 1}}), contacts=[7, {"profile": {}}])),
         {"message without a sender": 1, "malformed contacts": 1}),
        (envelope(value(text(group_id="G1"))), {"group message": 1}),
        (envelope(value(errors=[{"code": 130429, "title": "x"}, {"code": "15550001111"}])),
         {"error 130429": 1, "error unknown": 1}),
        (envelope(value(statuses=[{"status": "played"}, {"status": "deleted"}, {"status": 7}, {"status": "read"}])),
         {"status played": 1, "status deleted": 1, "status unknown": 1, "status without an id": 1}),
    ],
)  # fmt: skip
def test_what_is_odd_is_left_out_and_counted(payload: Any, ignored: Mapping[str, int]) -> None:
    assert read(payload) == Delivery((), (), ignored)


def test_what_is_odd_does_not_lose_its_neighbours() -> None:
    odd = envelope(None, value(None, text(id=None), text(id="wamid.1")), {"metadata": 1}, value(text(id="wamid.2")))
    delivery = read(odd | {"entry": [None, *odd["entry"], {"changes": 1}]})
    assert [arrived.id for arrived in delivery.arrived] == ["wamid.1", "wamid.2"]


# Times


@pytest.mark.parametrize("timestamp", [SECONDS, int(SECONDS)])
def test_the_time_is_the_messages(timestamp: Any) -> None:
    assert read_one(text(timestamp=timestamp)).sent_at == SENT


@pytest.mark.parametrize(
    "timestamp", [None, "", "0", 0, -5, "-5", "soon", "1e9", True, 1.5, [], "9" * 12, "9" * 40, 10**14]
)
def test_without_one_it_is_the_entrys_else_when_it_was_received(timestamp: Any) -> None:
    payload = envelope(value(text(timestamp=timestamp)))
    assert read(payload).arrived[0].sent_at == EARLIEST
    assert read(payload, SENT).arrived[0].sent_at == SENT
    payload["entry"][0]["time"] = int(SECONDS)
    (arrived,) = read(payload).arrived
    assert arrived.message
    assert (arrived.sent_at, arrived.message.at) == (SENT, SENT)


# Who


def test_before_2026_people_have_a_number() -> None:
    contact = {"profile": {"name": "Anna"}, "wa_id": "15550001111"}
    assert read_one(text(), contacts=[contact]).sender.ids == ANNA_IDS[1:2]
    assert read_one(text()).sender.ids == ANNA_IDS[1:2]


def test_since_2026_they_have_user_ids_too() -> None:
    new = text(from_user_id="US.1001ANNA", from_parent_user_id="US.ENT.2001ANNA")
    assert read_one(new, contacts=[ANNA]).sender.ids == ANNA_IDS
    assert read_one(new).sender.ids == ANNA_IDS
    assert read_one(text(), contacts=[ANNA]).sender.ids == ANNA_IDS


def test_people_with_a_username_have_no_number() -> None:
    contact = {"profile": {"username": "anna"}, "user_id": "US.1001ANNA"}
    hidden = text(from_user_id="US.1001ANNA", **{"from": None})
    assert read_one(hidden, contacts=[contact]).sender.ids == ANNA_IDS[:1]
    assert read_one(text(**{"from": None}), contacts=[contact]).sender.ids == ANNA_IDS[:1]


def test_a_user_id_in_the_place_of_a_number_is_not_taken_for_one() -> None:
    contact = {"wa_id": "US.1001ANNA", "user_id": "US.1001ANNA"}
    assert read_one(text(**{"from": "US.1001ANNA"}), contacts=[contact]).sender.ids == ANNA_IDS[:1]
    assert read_one(text(**{"from": "US.1001ANNA"})).sender.ids == ANNA_IDS[:1]
    assert read_one(text(**{"from": "US.ENT.2001ANNA"})).sender.ids == ANNA_IDS[2:]


def test_a_number_is_the_same_with_a_plus() -> None:
    assert read_one(text(**{"from": "+15550001111"})).sender.ids == ANNA_IDS[1:2]


def test_a_wa_id_may_differ_from_the_number_that_is_dialled() -> None:
    contact = {"wa_id": "5215550001111", "user_id": "MX.1"}
    ids = (ExternalId("bsuid", "MX.1"), ExternalId("wa_id", "5215550001111"))
    assert read_one(text(**{"from": "525550001111"}), contacts=[contact]).sender.ids == ids
    named = text(**{"from": "525550001111", "from_user_id": "MX.1"})
    assert read_one(named, contacts=[ANNA, contact]).sender.ids == ids


def test_each_message_has_its_own_contact() -> None:
    bela = {"wa_id": "15550002222", "user_id": "US.1002BELA"}
    carl = {"user_id": "US.1003CARL"}
    messages = [
        text(**{"from": "15550002222"}),
        text(**{"from": None, "from_user_id": "US.1003CARL"}),
        text(),
        text(**{"from": "15550004444"}),
        text(**{"from": "15550001111", "from_user_id": "US.1004DORA"}),
    ]
    delivery = read(envelope(value(*messages, contacts=[ANNA, carl, bela])))
    assert [[name.value for name in arrived.sender.ids] for arrived in delivery.arrived] == [
        ["US.1002BELA", "15550002222"],
        ["US.1003CARL"],
        [name.value for name in ANNA_IDS],
        ["15550004444"],
        ["US.1004DORA", "15550001111"],
    ]


def test_a_single_contact_is_not_everybodys() -> None:
    messages = [text(), text(**{"from": "15550002222"}), text(**{"from": None})]
    delivery = read(envelope(value(*messages, contacts=[ANNA])))
    assert [arrived.sender.ids[-1].value for arrived in delivery.arrived] == ["US.ENT.2001ANNA", "15550002222"]
    assert delivery.ignored == {"message without a sender": 1}
    other = read_one(text(**{"from": None, "from_user_id": "US.1002BELA"}), contacts=[ANNA])
    assert other.sender.ids == (ExternalId("bsuid", "US.1002BELA"),)


# What


def test_a_text() -> None:
    assert said(text("Grüße 👋\n\x00 – " + "x" * 70_000)).text == "Grüße 👋\n\x00 – " + "x" * 70_000
    assert said(text("half \ud83d of it")).text == "half \ufffd of it"


def test_a_choice_comes_back_with_its_id() -> None:
    button = {"type": "button_reply", "button_reply": {"id": "lang:de", "title": "Deutsch"}}
    assert said(of_type("interactive", button)) == Message("wamid.A", SENT, "Deutsch", Choice("lang:de", "Deutsch"))
    row = {"type": "list_reply", "list_reply": {"id": "f", "title": "Female", "description": "or so"}}
    assert said(of_type("interactive", row)) == Message("wamid.A", SENT, "Female", Choice("f", "Female", "or so"))
    template = {"payload": "stop", "text": "No more of this"}
    assert said(of_type("button", template)).choice == Choice("stop", "No more of this")
    assert said(of_type("button", {"text": "Yes"})).choice == Choice("Yes", "Yes")


def test_the_answers_of_a_form_are_its_text() -> None:
    form = {"name": "flow", "body": "Sent", "response_json": '{"age": "42"}'}
    assert said(of_type("interactive", {"type": "nfm_reply", "nfm_reply": form})).text == '{"age": "42"}'
    assert said(of_type("interactive", {"type": "nfm_reply", "nfm_reply": {"body": "Sent"}})).text == "Sent"


@pytest.mark.parametrize("kind", ["image", "video", "audio", "document", "sticker", "voice"])
def test_a_file_is_an_attachment_and_its_caption_the_text(kind: Any) -> None:
    content = {"id": "777", "mime_type": "a/b", "sha256": "x", "caption": "See", "filename": "f.pdf"}
    attachment = Attachment("audio" if kind == "voice" else kind, "777", "a/b", "f.pdf")
    assert said(of_type(kind, content)) == Message("wamid.A", SENT, "See", None, attachment)
    assert said(of_type(kind, {"id": "777"})).attachment == Attachment(attachment.kind, "777")


def test_places_contacts_and_orders_are_kept_as_they_are() -> None:
    place = {"latitude": 48.2, "longitude": 16.4, "name": "Home"}
    location = Attachment("location", details=place)
    assert said(of_type("location", place)) == Message("wamid.A", SENT, attachment=location)
    cards = [{"name": {"first_name": "Bela"}, "phones": [{"phone": "+1 555"}]}]
    assert said(of_type("contacts", cards)).attachment == Attachment("contacts", details={"contacts": cards})
    order = {"catalog_id": "1", "text": "Please", "product_items": [{"quantity": 2}]}
    assert said(of_type("order", order)).attachment == Attachment("order", details=order)
    assert said(of_type("order", order)).text == "Please"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (of_type("reaction", {"message_id": "wamid.9", "emoji": "👍"}), "reaction"),
        (of_type("edit", {"original_message_id": "wamid.9", "message": {"type": "text"}}), "edit"),
        (of_type("revoke", {"original_message_id": "wamid.9"}), "revoke"),
        (of_type("request_welcome", None), "request_welcome"),
        (of_type("unsupported", {"type": "poll"}) | {"errors": [{"code": 131051}]}, "unsupported"),
        (of_type("unsupported", {"type": "poll"}), "unsupported"),
        (text(errors=[{"code": 131052, "title": "Media download error"}]), "unsupported"),
        (of_type("interactive", None), "unsupported"),
        (of_type("interactive", {"type": "call_permission_reply"}), "unsupported"),
        (of_type("interactive", {"type": "list_reply", "list_reply": {"id": 7}}), "unsupported"),
        (of_type("interactive", {"type": ["nfm_reply"]}), "unsupported"),
        (of_type("interactive", {"type": "nfm_reply"}), "unsupported"),
        (of_type("text", "Hi"), "unsupported"),
        (of_type("text", {"body": 7}), "unsupported"),
        (of_type("image", {"caption": "no id"}), "unsupported"),
        (of_type("location", []), "unsupported"),
        (of_type("contacts", {}), "unsupported"),
        (of_type("order", "x"), "unsupported"),
        (of_type("button", {}), "unsupported"),
        (text(type="poll_creation"), "unknown type poll_creation"),
        (text(type="Call me at 15550001111"), "unknown type"),
        (text(type=None), "unknown type"),
        (text(type=["text"]), "unknown type"),
    ],
)
def test_what_is_not_for_a_bot_is_kept_with_a_note(message: dict[str, Any], expected: str) -> None:
    assert note(message) == expected


# Changes of names


NEW_IDS = (ExternalId("bsuid", "US.1009ANNA"), ExternalId("wa_id", "15550009999"))


def system(kind: str, sender: Mapping[str, Any] | None = None, **members: Any) -> dict[str, Any]:
    message = text(type="system", text=None, **{"from": None}) | {"system": {"type": kind, "body": "…"} | members}
    return message | dict(sender or {})


@pytest.mark.parametrize("kind", ["user_changed_number", "customer_changed_number"])
def test_after_a_new_number_the_old_names_are_nobodys(kind: str) -> None:
    changed = system(
        kind, {"from": "15550001111"}, wa_id="15550009999", user_id="US.1009ANNA", previous_user_id="US.1001ANNA"
    )
    arrived = read_one(changed)
    assert (arrived.note, arrived.message) == ("user_changed_number", None)
    assert (arrived.sender.ids, arrived.former) == (NEW_IDS, ANNA_IDS[:2])


def test_a_new_number_as_it_was_told_before_2026() -> None:
    for member in ("wa_id", "new_wa_id"):
        arrived = read_one(system("user_changed_number", {"from": "15550001111"}, **{member: "15550009999"}))
        assert (arrived.sender.ids, arrived.former) == (NEW_IDS[1:], ANNA_IDS[1:2])
    arrived = read_one(system("customer_changed_number", customer="15550001111", wa_id="15550009999"))
    assert (arrived.sender.ids, arrived.former) == (NEW_IDS[1:], ANNA_IDS[1:2])


def test_a_contact_that_is_told_with_a_new_number_does_not_hide_the_old_one() -> None:
    changed = system("user_changed_number", {"from": "15550001111"}, wa_id="15550009999")
    assert read_one(changed, contacts=[{"wa_id": "15550009999"}]).former == ANNA_IDS[1:2]


def test_after_a_new_user_id_the_old_ones_are_nobodys() -> None:
    changed = system(
        "user_changed_user_id",
        user_id="US.1009ANNA",
        previous_user_id="US.1001ANNA",
        parent_user_id="US.ENT.2009ANNA",
        previous_parent_user_id="US.ENT.2001ANNA",
    )
    arrived = read_one(changed)
    assert arrived.note == "user_changed_user_id"
    assert arrived.sender.ids == (NEW_IDS[0], ExternalId("parent", "US.ENT.2009ANNA"))
    assert arrived.former == (ANNA_IDS[0], ANNA_IDS[2])


def test_a_name_that_stays_is_not_a_former_one() -> None:
    changed = system("user_changed_user_id", {"from_user_id": "US.1009ANNA"}, user_id="US.1009ANNA")
    arrived = read_one(changed)
    assert (arrived.sender.ids, arrived.former) == (NEW_IDS[:1], ())


def test_of_a_change_without_new_names_the_old_ones_are_kept() -> None:
    arrived = read_one(system("user_changed_user_id", {"from": "15550001111"}, previous_user_id="US.1001ANNA"))
    assert (arrived.sender.ids, arrived.former) == (ANNA_IDS[:2], ANNA_IDS[:2])


def test_a_profile_name_cannot_take_names_away() -> None:
    spoof = system("user_changed_user_id", user_id="US.1009ANNA", body="User x changed from US.1002BELA to US.1009ANNA")
    assert read_one(spoof).former == ()


@pytest.mark.parametrize("kind", ["customer_identity_changed", "user_identity_changed"])
def test_after_a_new_registration_the_number_may_be_somebody_elses(kind: str) -> None:
    arrived = read_one(system(kind, {"from": "15550001111"}), contacts=[ANNA])
    number = (ExternalId("wa_id", "15550001111"),)
    assert (arrived.note, arrived.sender.ids, arrived.former) == ("customer_identity_changed", ANNA_IDS, number)
    before = read_one(system(kind, {"from": "15550001111"}), contacts=[{"wa_id": "15550001111"}])
    assert (before.sender.ids, before.former) == (number, number)


def test_other_system_messages_are_kept() -> None:
    assert note(system("group_something", {"from": "1"})) == "group_something"
    assert note(system("1 555", {"from": "1"})) == "system"
    assert note(text(type="system", system=None)) == "system"
    assert read(envelope(value(system("user_changed_number")))).ignored == {"message without a sender": 1}


def update(**members: Any) -> dict[str, Any]:
    changed = {"wa_id": "15550009999", "timestamp": SECONDS} | members
    return envelope(value(user_id_update=[changed]) | {"messages": None}, field="user_id_update")


def test_a_change_of_user_ids_as_it_was_told_in_early_2026() -> None:
    payload = update(
        user_id={"previous": "US.1001ANNA", "current": "US.1009ANNA"},
        parent_user_id={"previous": "US.ENT.2001ANNA", "current": "US.ENT.2001ANNA"},
    )
    (arrived,) = read(payload).arrived
    assert (arrived.note, arrived.sent_at, arrived.message) == ("user_id_update", SENT, None)
    assert (arrived.sender.ids, arrived.former) == ((*NEW_IDS, ANNA_IDS[2]), ANNA_IDS[:1])
    assert read(payload, EARLIEST).arrived == read(payload, SENT).arrived == (arrived,)
    other = read(update(user_id={"previous": "US.1002BELA", "current": "US.1009ANNA"})).arrived[0]
    assert other.id != arrived.id
    timeless = update(user_id={"previous": "US.1001ANNA", "current": "US.1009ANNA"}, timestamp=None)
    assert read(timeless).arrived[0].id == read(timeless, SENT).arrived[0].id


@pytest.mark.parametrize("user_id", [None, 7, "US.1", {"previous": 1}])
def test_odd_changes_of_user_ids_raise_nothing(user_id: Any) -> None:
    assert read(update(user_id=user_id, wa_id=None)).ignored == {"message without a sender": 1}
    assert read(update(user_id=user_id)).arrived[0].former == ()


# Reports


def status(kind: str, **members: Any) -> dict[str, Any]:
    return {"id": "wamid.9", "status": kind, "timestamp": SECONDS, "recipient_id": "15550001111"} | members


def test_reports_say_what_became_of_a_message() -> None:
    kinds: tuple[Any, ...] = ("sent", "delivered", "read", "failed")
    delivery = read(envelope(value(statuses=[status(kind) for kind in kinds])))
    assert delivery == Delivery((), tuple(Report("wamid.9", kind, SENT) for kind in kinds), {})


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([{"code": 131047, "title": "Re-engagement message", "message": "secret", "error_data": {"details": "secret"}}],
         "131047 Re-engagement message"),
        ([{"code": 131026}], "131026"),
        ([{"title": "To 15550001111\n failed"}], "unknown To … failed"),
        ([{"code": 1, "title": "x" * 500}], "1 " + "x" * 100),
        ([], ""),
    ],
)  # fmt: skip
def test_a_failure_says_code_and_title_and_no_more(errors: Any, expected: str) -> None:
    (report,) = read(envelope(value(statuses=[status("failed", errors=errors)]))).reports
    assert report.error == expected


# Any shape


MEMBERS = """
    object entry changes field value messages metadata phone_number_id contacts statuses errors user_id_update id from
    from_user_id from_parent_user_id wa_id user_id parent_user_id previous current timestamp time type text body title
    interactive button_reply list_reply nfm_reply description response_json button payload image caption location order
    system status code group_id whatsapp_business_account user_changed_number customer_identity_changed sent failed
"""
WORDS = st.sampled_from(MEMBERS.split())
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=8) | WORDS | st.just(OURS)
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=6), max_leaves=30
)


def storable(delivery: Delivery) -> None:
    """What was read can be written to a store and read again."""
    assert msgspec.json.decode(msgspec.json.encode(delivery.arrived), type=tuple[Arrived, ...]) == delivery.arrived
    assert msgspec.json.decode(msgspec.json.encode(delivery.reports), type=tuple[Report, ...]) == delivery.reports
    for arrived in delivery.arrived:
        assert arrived.sender.ids
        assert (arrived.message is None) == bool(arrived.note)


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_any_bytes(body: bytes) -> None:
    try:
        storable(parse(body, OURS))
    except InvalidJson:
        return


@settings(deadline=None)
@given(ANYTHING)
def test_any_json(payload: Any) -> None:
    storable(read(payload))


@settings(deadline=None)
@given(st.lists(ANYTHING, max_size=3), st.lists(ANYTHING, max_size=2), st.lists(ANYTHING, max_size=2), st.booleans())
def test_any_members_of_a_value(messages: list[Any], contacts: list[Any], statuses: list[Any], is_update: bool) -> None:
    shaped = value(*messages, contacts=contacts, statuses=statuses, user_id_update=messages)
    storable(read(envelope(shaped, field="user_id_update" if is_update else "messages")))


@settings(deadline=None)
@given(st.data())
def test_a_good_message_with_any_members_replaced(data: st.DataObject) -> None:
    """At least its neighbour arrives."""
    good = [
        text(from_user_id="US.1001ANNA"),
        of_type("interactive", {"type": "list_reply", "list_reply": {"id": "a", "title": "b"}}),
        of_type("order", {"text": "x", "product_items": [{"quantity": 1}]}),
        system("user_changed_number", {"from": "15550001111"}, wa_id="15550009999"),
    ]
    message = data.draw(st.sampled_from(good))
    message = message | {name: data.draw(ANYTHING) for name in data.draw(st.sets(st.sampled_from(sorted(message))))}
    contacts = data.draw(ANYTHING)
    delivery = read(envelope(value(message, text(id="wamid.B")) | {"contacts": contacts}))
    storable(delivery)
    assert delivery.arrived[-1].id == "wamid.B"


def test_numbers_that_no_type_holds_and_deep_nesting_are_kept_as_far_as_they_can_be() -> None:
    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    raw = json.dumps(envelope(value(of_type("location", {"a": deep, "b": "BIG", "c": "HUGE"}))))
    delivery = parse(raw.replace('"BIG"', "9" * 5000).replace('"HUGE"', "1e999").encode(), OURS)
    storable(delivery)
    (arrived,) = delivery.arrived
    assert arrived.message
    assert arrived.message.attachment
    details = arrived.message.attachment.details
    assert (details["b"], details["c"]) == (None, None)
    assert str(details["a"]).count("[") == 16
