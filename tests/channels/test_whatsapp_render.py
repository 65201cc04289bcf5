"""Replies as messages that WhatsApp takes: within its limits, with nothing lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chatstate.bot import Choice, Media, Reply
from chatstate.channels import Contact, ExternalId
from chatstate.channels.whatsapp.render import LIST_LABEL, WITHOUT_TEXT, payload, split
from chatstate.errors import SendFailed

ANNA = Contact((ExternalId("bsuid", "US.1001ANNA"), ExternalId("wa_id", "15550001111")))

FAMILY = "👨‍👩‍👧‍👦"


def named(*titles: str) -> tuple[Choice, ...]:
    return tuple(Choice(f"id {n}", title) for n, title in enumerate(titles, 1))


def sent(reply: Reply) -> list[dict[str, Any]]:
    """The bodies of the requests, without what is the same in all."""
    bodies = [payload(ANNA, part) for part in split(reply)]
    for body in bodies:
        assert body.pop("messaging_product") == "whatsapp"
        assert body.pop("to") == "15550001111"
    return bodies


def texts(reply: Reply) -> list[str]:
    bodies = sent(reply)
    assert {body["type"] for body in bodies} <= {"text"}
    return [body["text"]["body"] for body in bodies]


def units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


# Recipients


@pytest.mark.parametrize(
    ("ids", "address"),
    [
        ([("wa_id", "15550001111")], {"to": "15550001111"}),
        ([("bsuid", "US.1"), ("wa_id", "15550001111"), ("parent", "US.ENT.2")], {"to": "15550001111"}),
        ([("bsuid", "US.1"), ("parent", "US.ENT.2")], {"recipient": "US.1"}),
        ([("parent", "US.ENT.2")], {"recipient": "US.ENT.2"}),
        ([("wa_id", "1"), ("wa_id", "2")], {"to": "1"}),
    ],
)
def test_a_message_goes_to_the_number_else_to_the_user_id(ids: list[tuple[str, str]], address: dict[str, str]) -> None:
    contact = Contact(tuple(ExternalId(*name) for name in ids))
    expected = {"messaging_product": "whatsapp", "type": "text", "text": {"body": "Hi"}} | address
    assert payload(contact, Reply("r", "Hi")) == expected


def test_nobody_is_written_to_without_a_name() -> None:
    with pytest.raises(SendFailed) as failed:
        payload(Contact((ExternalId("telegram", "1"),)), Reply("r", "Hi"))
    assert failed.value.retry_after is None


# Texts


def test_a_short_reply_stays_as_it_is() -> None:
    assert split(Reply("r", "Hi\n\n there ")) == (Reply("r", "Hi\n\n there"),)
    assert texts(Reply("r", "x" * 4096)) == ["x" * 4096]


@pytest.mark.parametrize("text", ["", " \n "])
def test_a_reply_that_says_nothing_is_no_message(text: str) -> None:
    assert split(Reply("r", text)) == ()


def test_parts_have_ids_of_their_own() -> None:
    parts = split(Reply("r-1", "a" * 10_000))
    assert [part.id for part in parts] == ["r-1", "r-1.2", "r-1.3"]
    assert [len(part.text) for part in parts] == [4096, 4096, 1808]


@pytest.mark.parametrize(
    ("first", "gap", "second"),
    [
        ("Long. " * 400 + "End.", "\n\n", "A paragraph\n" * 300 + "end"),
        ("x" * 3000, "\n", "word " * 500 + "end"),
        ("x" * 4000, " ", "y" * 300),
        ("x" * 4096, " ", "y"),
        ("x" * 4096, "\n\n", "y"),
        ("x" * 2500, "  \n\n\n  ", "y" * 4000),
    ],
)
def test_long_texts_are_cut_between_paragraphs_lines_or_words(first: str, gap: str, second: str) -> None:
    assert texts(Reply("r", first + gap + second)) == [first, second]


def test_no_part_is_small_because_of_an_early_end() -> None:
    assert [len(part) for part in texts(Reply("r", "Hi\n\n" + "x" * 5000))] == [4096, 908]


def test_lengths_are_counted_in_utf_16() -> None:
    assert texts(Reply("r", "😀" * 2048)) == ["😀" * 2048]
    assert texts(Reply("r", "x" + "😀" * 2048)) == ["x" + "😀" * 2047, "😀"]


@pytest.mark.parametrize(
    "character", ["e\u0301", FAMILY, "👍🏽", "🇦🇹", "\u1112\u1161\u11ab", "❤️", "🏴\U000e0067\U000e007f"]
)
def test_what_people_see_as_one_character_is_not_torn(character: str) -> None:
    for shift in range(units(character)):
        parts = texts(Reply("r", "x" * shift + character * 3000))
        assert len(parts) > 1
        assert all(part.strip("x").replace(character, "") == "" for part in parts)


def test_a_character_without_end_is_cut_all_the_same() -> None:
    assert [len(part) for part in texts(Reply("r", "e" + "\u0301" * 5000))] == [4096, 905]
    assert len(texts(Reply("r", "🇦" * 5000))) == 3


# Choices


def test_up_to_three_short_choices_are_buttons() -> None:
    (body,) = sent(Reply("r", "Again?", named("Yes", "No", "x" * 20)))
    assert body == {
        "type": "interactive",
        "interactive": {
            "type": "button",
            "body": {"text": "Again?"},
            "action": {
                "buttons": [
                    {"type": "reply", "reply": {"id": "id 1", "title": "Yes"}},
                    {"type": "reply", "reply": {"id": "id 2", "title": "No"}},
                    {"type": "reply", "reply": {"id": "id 3", "title": "x" * 20}},
                ]
            },
        },
    }


def rows(*choices: Choice) -> list[dict[str, str]]:
    (body,) = sent(Reply("r", "Which?", choices))
    interactive = body["interactive"]
    assert (body["type"], interactive["type"], interactive["body"]) == ("interactive", "list", {"text": "Which?"})
    assert interactive["action"]["button"] == LIST_LABEL
    (section,) = interactive["action"]["sections"]
    return list(section["rows"])


def test_more_or_longer_ones_are_a_list() -> None:
    assert rows(*named("1", "2", "3", "4")) == [{"id": f"id {n}", "title": str(n)} for n in (1, 2, 3, 4)]
    assert len(rows(*named(*"abcdefghij"))) == 10
    assert rows(*named("x" * 21)) == [{"id": "id 1", "title": "x" * 21}]
    assert [row["title"] for row in rows(*named("Same", "Same"))] == ["Same", "Same"]
    assert rows(Choice("a", "b", "c"), *named("1", "2", "3"))[0] == {"id": "a", "title": "b", "description": "c"}


def test_a_title_that_is_too_long_stands_below_in_whole() -> None:
    long = "The answer to everything, and more"
    assert rows(Choice("a", long)) == [{"id": "a", "title": "The answer to everythin…", "description": long}]
    assert rows(Choice("a", long, "42"))[0]["description"] == f"{long} – 42"
    (row,) = rows(Choice("a", "word " * 30, "x" * 80))
    assert row == {"id": "a", "title": "word word word word wor…", "description": "word " * 14 + "w…"}
    assert rows(Choice("a", "x" * 24, "y" * 73))[0]["description"] == "y" * 71 + "…"
    assert rows(Choice("a", "x" * 20 + FAMILY))[0]["title"] == "x" * 20 + "…"


def test_titles_are_one_line() -> None:
    (body,) = sent(Reply("r", "?", (Choice("a", " Two\n words "),)))
    assert body["interactive"]["action"]["buttons"][0]["reply"] == {"id": "a", "title": "Two words"}


def test_more_than_ten_choices_are_lines_of_the_text() -> None:
    choices = (*named(*"abcdefghij"), Choice("k", "k", "the last"))
    lines = "\n".join(f"• {letter}" for letter in "abcdefghij")
    assert texts(Reply("r", "Which?", choices)) == [f"Which?\n\n{lines}\n• k: the last"]
    assert texts(Reply("r", "", choices)) == [f"{lines}\n• k: the last"]


@pytest.mark.parametrize("ids", [["a", "a"], ["a", ""], ["a", " b"], ["a", "b\n"], ["a", "i" * 257]])
def test_ids_that_would_not_come_back_are_not_sent(ids: list[str]) -> None:
    choices = tuple(Choice(choice_id, title) for choice_id, title in zip(ids, ("One", "Two"), strict=True))
    assert texts(Reply("r", "Which?", choices)) == ["Which?\n\n• One\n• Two"]


def test_the_longest_ids_that_come_back() -> None:
    (body,) = sent(Reply("r", "?", (Choice("i" * 256, "One"),)))
    assert body["interactive"]["action"]["buttons"][0]["reply"]["id"] == "i" * 256
    assert rows(Choice("i" * 200, "x" * 24))[0]["id"] == "i" * 200
    assert texts(Reply("r", "?", (Choice("i" * 201, "x" * 24),))) == ["?\n\n• " + "x" * 24]


def test_a_choice_without_a_title_is_a_line() -> None:
    assert texts(Reply("r", "?", (Choice("yes", " "), Choice("no", "No")))) == ["?\n\n• yes\n• No"]


def test_choices_without_a_text() -> None:
    (body,) = sent(Reply("r", "", named("Yes")))
    assert body["interactive"]["body"] == {"text": WITHOUT_TEXT}


def test_choices_stand_below_the_end_of_a_long_text() -> None:
    first, second = "x" * 4000, "y" * 1000
    *before, last = sent(Reply("r", f"{first}\n\n{second}", named("Yes")))
    assert [body["text"]["body"] for body in before] == [first]
    assert last["interactive"]["body"]["text"] == second
    *before, last = sent(Reply("r", "z" * 5000, named("Yes")))
    assert [len(body["text"]["body"]) for body in before] == [4096]
    assert len(last["interactive"]["body"]["text"]) == 5000 - 4096
    *before, last = sent(Reply("r", "z" * 1024, named("Yes")))
    assert (before, len(last["interactive"]["body"]["text"])) == ([], 1024)


# Files

PICTURE = Media("https://example.com/a.png")


def test_a_file_has_the_text_as_its_caption() -> None:
    assert sent(Reply("r", "See", media=PICTURE)) == [
        {"type": "image", "image": {"link": "https://example.com/a.png", "caption": "See"}}
    ]
    assert sent(Reply("r", media=PICTURE)) == [{"type": "image", "image": {"link": "https://example.com/a.png"}}]
    assert len(sent(Reply("r", "x" * 1024, media=PICTURE))) == 1


@pytest.mark.parametrize("kind", ["image", "video", "document", "audio"])
def test_only_a_document_has_a_name(kind: Any) -> None:
    (body,) = sent(Reply("r", media=Media("https://example.com/a", kind, "a.pdf")))
    assert body == {
        "type": kind,
        kind: {"link": "https://example.com/a"} | ({"filename": "a.pdf"} if kind == "document" else {}),
    }


def test_a_long_text_and_that_of_a_sound_come_after_the_file() -> None:
    file, rest = sent(Reply("r", "x" * 1025, media=PICTURE))
    assert (file, rest["text"]["body"]) == (
        {"type": "image", "image": {"link": "https://example.com/a.png"}},
        "x" * 1025,
    )
    sound, text = sent(Reply("r", "Listen", media=Media("https://example.com/a.ogg", "audio")))
    assert (sound["audio"], text["text"]["body"]) == ({"link": "https://example.com/a.ogg"}, "Listen")


def test_choices_come_after_the_file() -> None:
    file, choices = split(Reply("r", "Which?", named("Yes"), PICTURE))
    assert (file, choices) == (Reply("r", media=PICTURE), Reply("r.2", "Which?", named("Yes")))
    (captioned,) = split(Reply("r", "Which?", (Choice("", "Yes"),), PICTURE))
    assert captioned == Reply("r", "Which?\n\n• Yes", media=PICTURE)


# Any reply


TEXTS = st.lists(
    st.sampled_from(["word ", "a\n", "\n\n", "x" * 700, "😀" * 300, FAMILY * 40, " ", "\ud800", "e\u0301"]), max_size=30
).map("".join)
TITLES = st.text(max_size=30) | st.sampled_from(["Yes", "No", "x" * 100, FAMILY * 5])
IDS = st.text(max_size=5) | st.sampled_from(["i" * 200, "i" * 201, "i" * 256, "i" * 257])
CHOICES = st.lists(st.builds(Choice, IDS, TITLES, st.just("") | TITLES), max_size=12).map(tuple)
MEDIA = st.none() | st.builds(Media, st.just("https://example.com/a"), st.sampled_from(["image", "audio", "document"]))
REPLIES = st.builds(Reply, st.just("r"), TEXTS, CHOICES, MEDIA)


@settings(deadline=None)
@given(REPLIES)
@example(Reply("r", "x" * 4096 + "\n" + "y" * 1024, named("Yes"), PICTURE))
def test_any_reply_is_within_the_limits_and_loses_nothing(reply: Reply) -> None:
    parts = split(reply)
    assert [part.id for part in parts] == ["r", *(f"r.{n}" for n in range(2, len(parts) + 1))][: len(parts)]
    for part in parts:
        assert split(part) == (part,)
        check_limits(payload(ANNA, part))
    kept = "".join("".join(part.text for part in parts).split())
    assert kept.startswith("".join(reply.text.split()))
    if reply.choices and not parts[-1].choices:
        assert all("".join(choice.title.split()) in kept for choice in reply.choices)
    assert reply.media == (parts[0].media if parts else None)


def size(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def check_limits(body: dict[str, Any]) -> None:
    json.dumps(body)
    content = body[body["type"]]
    if body["type"] == "text":
        assert 0 < size(content["body"]) <= 4096
    elif body["type"] == "interactive":
        assert 0 < size(content["body"]["text"]) <= 1024
        check_choices(content["action"])
    else:
        assert size(content.get("caption", "x")) in range(1, 1025)


def check_choices(action: dict[str, Any]) -> None:
    if "buttons" in action:
        replies, longest_title, longest_id = [button["reply"] for button in action["buttons"]], 20, 256
        assert len(replies) <= 3
        assert len({reply["title"] for reply in replies}) == len(replies)
    else:
        (section,) = action["sections"]
        replies, longest_title, longest_id = section["rows"], 24, 200
        assert len(replies) <= 10
        assert all(size(row.get("description", "x")) in range(1, 73) for row in replies)
    assert len({reply["id"] for reply in replies}) == len(replies)
    for reply in replies:
        assert 0 < size(reply["title"]) <= longest_title
        assert 0 < size(reply["id"]) <= longest_id
        assert reply["id"] == reply["id"].strip()
