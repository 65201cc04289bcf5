"""What a bot is given, and what becomes of what it leaves."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatstate.bot import (
    Attachment,
    Choice,
    Media,
    Message,
    Reply,
    StateNotReadable,
    Turn,
    last_reply,
    load_bot,
    read_state,
    write_state,
)
from chatstate.errors import InvalidSetting

AT = datetime(2026, 10, 2, 10, 0, tzinfo=UTC)


def turn(text: str = "Hello", state: dict[str, object] | None = None, **given: object) -> Turn:
    return Turn("s", {} if state is None else state, Message("m", AT, text, **given), clock=lambda: AT)  # type: ignore[arg-type]


async def test_what_was_said_stands_in_the_state() -> None:
    given = turn("Hello", attachment=Attachment("image", "media-1", "image/jpeg"))
    await given.reply("Hi", choices=["Yes", Choice("n", "No", "not at all")])
    await given.reply(media=Media("https://example.org/a.png"))
    at = "2026-10-02T10:00:00Z"
    assert given.state["messages"] == [
        {
            "id": "m",
            "role": "user",
            "text": "Hello",
            "at": at,
            "attachment": {"kind": "image", "id": "media-1", "media_type": "image/jpeg"},
        },
        {
            "id": "m.1",
            "role": "bot",
            "text": "Hi",
            "at": at,
            "choices": [{"id": "Yes", "title": "Yes"}, {"id": "n", "title": "No", "description": "not at all"}],
        },
        {"id": "m.2", "role": "bot", "text": "", "at": at, "media": {"url": "https://example.org/a.png"}},
    ]
    assert [reply.id for reply in given.replies] == ["m.1", "m.2"]


async def test_a_bot_may_put_another_state_in_the_place_of_this_one() -> None:
    given = turn()
    given.state = {"step": 1}
    await given.reply("Hi")
    assert [entry["text"] for entry in given.state["messages"]] == ["Hi"]


async def test_messages_that_are_another_programs_are_left_alone() -> None:
    given = turn(state={"messages": {"odd": True}})
    await given.reply("Hi")
    assert given.state == {"messages": {"odd": True}}


async def test_a_reply_may_come_in_pieces() -> None:
    async def tokens() -> AsyncIterator[str]:
        for token in ("a", "b", "", "c"):
            yield token

    told: list[Reply] = []
    given = Turn("s", {}, Message("m", AT, "Hi"), tell=told.append)
    reply = await given.reply(tokens(), choices={"x": "X"})
    assert (reply.text, reply.choices) == ("abc", (Choice("x", "X"),))
    assert [piece.text for piece in told] == ["a", "ab", "ab", "abc"]
    assert {piece.id for piece in told} == {reply.id}


async def test_what_is_no_reply_is_refused() -> None:
    given = turn()
    for choices in (["a", "a"], [""], [Choice("", "x")], {"x": ""}):
        with pytest.raises(ValueError, match="choice"):
            await given.reply("Which?", choices=choices)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a text"):
        await given.reply("")
    assert given.replies == []


def test_the_choice_of_a_channel_is_kept() -> None:
    assert turn("Deutsch", choice=Choice("de", "Deutsch")).message.choice == Choice("de", "Deutsch")


def test_a_choice_that_a_channel_has_shortened_is_whole_again() -> None:
    long = {"id": "long", "title": "A title that no button has room for"}
    state: dict[str, object] = {"messages": [{"role": "bot", "id": "1", "text": "?", "choices": [long]}]}
    message = turn("A title that no bu…", state, choice=Choice("long", "A title that no bu…")).message
    assert (message.text, message.choice) == (long["title"], Choice(**long))


def test_only_what_was_offered_last_is_a_choice() -> None:
    offered = {"role": "bot", "id": "1", "text": "?", "choices": [{"id": "a", "title": "Apple"}]}
    state: dict[str, object] = {"messages": [offered, {"role": "user", "id": "2", "text": "hm"}]}
    assert turn("APPLE", state).message.choice == Choice("a", "Apple")
    later: dict[str, object] = {"messages": [offered, {"role": "bot", "id": "3", "text": "never mind"}]}
    assert turn("Apple", later).message.choice is None


@pytest.mark.parametrize("said", [None, 7, [7], [{"role": "bot"}], [{"role": "bot", "id": 1, "text": "x"}]])
def test_an_odd_transcript_is_no_transcript(said: object) -> None:
    assert last_reply({"messages": said}) is None


@pytest.mark.parametrize(
    "text", ["", "x", "[]", "7", "null", '"x"', '{"a": NaN}', '{"a": Infinity}', "{", "[" * 100_000]
)
def test_what_is_no_object_is_not_readable(text: str) -> None:
    with pytest.raises(StateNotReadable):
        read_state(text)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), _JSON, max_size=5))
def test_a_state_is_read_as_it_was_written(state: dict[str, object]) -> None:
    text = write_state(state, 1 << 20)
    text.encode()
    assert read_state(text) == state
    assert "\0" not in text


def test_the_newest_messages_stay_when_there_is_no_room() -> None:
    said = [{"id": f"{number}", "text": "x" * 50} for number in range(100)]
    text = write_state({"messages": said, "a": 1}, 1000)
    kept = json.loads(text)
    assert len(text) <= 1000
    assert kept["a"] == 1
    assert kept["messages"] == said[-len(kept["messages"]) :]
    with pytest.raises(ValueError, match="CHATSTATE_MAX_STATE_BYTES"):
        write_state({"a": "x" * 1000}, 1000)
    with pytest.raises(ValueError, match="CHATSTATE_MAX_STATE_BYTES"):
        write_state({"messages": [{"text": "x" * 1000}]}, 1000)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules can be imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return tmp_path


def test_a_bot_is_found_by_its_name(folder: Path) -> None:
    source = "async def bot(turn):\n    pass\n\n\nclass Cls:\n    async def __call__(self, turn):\n        pass\n"
    (folder / "some_bot.py").write_text(f"{source}\n\nobj = Cls()\n")
    assert load_bot("some_bot:bot").__name__ == "bot"  # type: ignore[attr-defined]
    assert load_bot("some_bot:obj")


@pytest.mark.parametrize(
    ("place", "mends"),
    [
        ("some_bot", "package.module:bot"),
        (":bot", "package.module:bot"),
        ("nowhere_to_be_found:bot", "no module nowhere_to_be_found"),
        ("odd_bot:missing", "missing is none"),
        ("odd_bot:plain", "async def plain"),
    ],
)
def test_what_is_no_bot_is_explained(folder: Path, place: str, mends: str) -> None:
    (folder / "odd_bot.py").write_text("def plain(turn):\n    pass\n")
    with pytest.raises(InvalidSetting, match=mends):
        load_bot(place)


def test_a_module_that_a_bot_lacks_is_not_taken_for_the_bot(folder: Path) -> None:
    (folder / "lacking_bot.py").write_text("import another_that_is_missing\n")
    with pytest.raises(ModuleNotFoundError, match="another_that_is_missing"):
        load_bot("lacking_bot:bot")


async def test_the_example_goes_through_its_questions() -> None:
    from examples.onboarding_bot import bot

    state: dict[str, object] = {}
    said = []
    for number, text in enumerate(("Hi", "Klingon", "english", "female", "old", "34", "Why?", "And?")):
        given = Turn("s", state, Message(f"{number}", AT, text))
        await bot(given)
        state = given.state
        said.append(given.replies[-1].text)
    assert state["answers"] == {"language": "en", "gender": "Female", "age": 34, "question": "And?"}
    assert said[1] == "Please choose one."
    assert "from 1 to 120" in said[4]
    assert "“Why?” is a good question" in said[6]


async def test_the_example_goes_on_after_other_bots_and_buttons_of_before() -> None:
    from examples.onboarding_bot import bot

    async def said(state: dict[str, object], text: str, choice: Choice | None = None) -> str:
        given = Turn("s", state, Message("m", AT, text, choice))
        await bot(given)
        return given.replies[-1].text

    assert "language" in await said({}, "x")
    of_another = {"currentStep": "chat", "answers": {"language": "es"}}
    assert "is a good question" in await said(of_another, "Why?")
    old = Choice("en", "English")
    assert await said({"currentStep": "language"}, "Sí", Choice("es", "Español")) == "Please choose one."
    assert "gender" in await said({"currentStep": "gender", "answers": {"language": "en"}}, "English", old)
    assert "1 to 120" in await said(
        {"currentStep": "age", "answers": {"language": "en"}}, "Female", Choice("1", "Female")
    )


def test_the_example_is_short() -> None:
    assert len((Path(__file__).parent.parent / "examples" / "onboarding_bot.py").read_text().splitlines()) <= 60
