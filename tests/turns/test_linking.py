"""Going on with a chat of the web on a channel, and what may go wrong with that (RFC 10027)."""

from __future__ import annotations

import pytest

from chatstate.bot import Turn
from chatstate.channels import Contact
from chatstate.errors import LinkNotFound
from chatstate.links import Made
from tests.turns.conftest import Clock, NewWorld, World, done, person

CHROME = "Chrome on Windows"
NOT_VALID = "This code is not valid, or not any more: each works once, and for ten minutes. Ask for a new one there."


async def web_chat(world: World, session: str = "web", state: str = '{"messages": []}') -> Made:
    """A chat on a web page, and a link to it."""
    await world.sessions.save(session, state)
    return await world.link_to(session, CHROME)


async def tell(world: World, text: str, contact: Contact | None = None) -> list[str]:
    """What is said to somebody who writes this."""
    before = len(world.paper.sent)
    world_messages = getattr(world, "messages", 0) + 1
    world.messages = world_messages  # type: ignore[attr-defined]
    await world.write(contact or person(), f"m{world_messages}", text)
    await world.work()
    return world.paper.texts[before:]


SAID = '{"messages": [{"id": "a", "role": "bot", "text": "How old are you?", "choices": [{"id": "n", "title": "No"}]}]}'


async def test_a_code_links_and_the_chat_goes_on_where_it_stands(world: World) -> None:
    made = await web_chat(world, state=SAID)
    linked, question = await tell(world, made.code)
    assert CHROME in linked
    assert "UNLINK" in linked
    assert question == "How old are you?"
    assert world.paper.sent[-1][1].choices[0].title == "No"
    assert await world.session_of(person()) == "web"
    assert await tell(world, "34") == ["You said: 34"]
    assert await world.texts("web") == ["How old are you?", "34", "You said: 34"]


async def test_what_a_client_has_put_there_that_cannot_be_sent_is_left_out(world: World) -> None:
    made = await web_chat(world, state='{"messages": [{"id": "a", "role": "bot", "text": "\\ud83d"}]}')
    (linked,) = await tell(world, made.code)
    assert CHROME in linked
    assert await world.inbox.entries("pending") == []


async def test_one_too_many_is_told_so_and_keeps_their_own_chat(world: World) -> None:
    made = await web_chat(world)
    for number in range(100):
        await world.inbox.people._follow(f"p{number}", "web", world.clock())
    (answer,) = await tell(world, made.code)
    assert "Very many people" in answer
    assert await tell(world, "Hi") == ["You said: Hi"]
    assert await world.texts("web") == []


@pytest.mark.parametrize("form", ["{0}", "  {0}\n", "LINK {0}", "link {1}", "{2}", "{3}"])
async def test_a_code_may_be_written_in_any_way(world: World, form: str) -> None:
    code = (await web_chat(world)).code
    text = form.format(code, code.lower(), code.replace("-", ""), code.replace("-", " "))
    await tell(world, text)
    assert await world.session_of(person()) == "web"


async def test_a_text_with_a_code_in_it_is_no_code(world: World) -> None:
    made = await web_chat(world)
    for text in (f"my code is {made.code}", f"{made.code}!", made.code[:-1]):
        assert await tell(world, text) == [f"You said: {text}"]
    assert await world.session_of(person()) != "web"


async def test_a_code_works_once(world: World) -> None:
    made = await web_chat(world)
    await tell(world, made.code)
    (answer,) = await tell(world, made.code, person("2"))
    assert "not valid" in answer
    assert await world.session_of(person("2")) != "web"


async def test_a_code_works_for_ten_minutes(world: World, clock: Clock) -> None:
    made = await web_chat(world)
    clock.advance(600)
    (answer,) = await tell(world, made.code)
    assert "not valid" in answer


async def test_a_code_of_a_deleted_session_is_not_valid(world: World) -> None:
    made = await web_chat(world)
    await world.sessions.delete("web")
    assert "not valid" in (await tell(world, made.code))[0]
    await world.sessions.save("web", "{}")  # another one with the same id
    assert "not valid" in (await tell(world, made.code))[0]


async def test_a_code_for_a_channel_is_none_for_a_device_and_the_other_way_round(world: World, clock: Clock) -> None:
    from chatstate.links import Grant

    made = await web_chat(world)
    with pytest.raises(LinkNotFound):
        await world.links.match(made.code, clock())
    with pytest.raises(LinkNotFound):
        await world.links.match(made.token, clock())
    session = await world.sessions.load("web")
    grant = Grant(("read", "write"), clock().timestamp(), "", clock().timestamp())
    device = await world.links.issue("web", session.session_id, grant, clock())
    assert "not valid" in (await tell(world, device.code))[0]
    assert (await world.links.match(device.code, clock()))[0] == "web"


async def test_whoever_guesses_codes_is_not_listened_to_for_long(world: World, clock: Clock) -> None:
    made = await web_chat(world)
    wrong = f"{made.link.id}-BBBB" if not made.code.endswith("BBBB") else f"{made.link.id}-CCCC"
    answers = [(await tell(world, wrong))[0] for _ in range(7)]
    assert ["not valid" in answer for answer in answers] == [True] * 5 + [False] * 2
    assert "wait" in answers[-1]
    assert "Too many" in (await tell(world, made.code))[0]  # also the right one
    clock.advance(3600)
    assert "not valid" in (await tell(world, made.code, person("2")))[0]  # five wrong ones have made it void


async def test_whoever_has_a_chat_there_is_asked_first(world: World) -> None:
    """Session phishing: somebody has got the person to send a foreign code."""
    await tell(world, "my own secret")
    own = await world.session_of(person())
    made = await web_chat(world)
    (question,) = await tell(world, made.code)
    assert CHROME in question
    assert made.link.number not in question
    assert await world.session_of(person()) == own
    linked, *_ = await tell(world, made.link.number)
    assert "go on here" in linked
    assert await world.session_of(person()) == "web"


async def test_the_browser_never_sees_what_was_there_before(world: World) -> None:
    await tell(world, "my own secret")
    own = await world.session_of(person())
    made = await web_chat(world)
    await tell(world, made.code)
    await tell(world, made.link.number)
    await tell(world, "from now on")
    assert await world.texts("web") == ["from now on", "You said: from now on"]
    assert await world.texts(own) == ["my own secret", "You said: my own secret"]  # nothing is ever merged


async def test_a_wrong_number_keeps_everything_as_it_is_and_there_is_no_second_try(world: World) -> None:
    await tell(world, "mine")
    own = await world.session_of(person())
    made = await web_chat(world)
    await tell(world, made.code)
    wrong = "10" if made.link.number != "10" else "11"
    assert "stays as it is" in (await tell(world, wrong))[0]
    assert await tell(world, made.link.number) == [f"You said: {made.link.number}"]
    assert await world.session_of(person()) == own


async def test_any_other_answer_is_for_the_bot_and_keeps_everything_as_it_is(world: World) -> None:
    await tell(world, "mine")
    own = await world.session_of(person())
    made = await web_chat(world)
    await tell(world, made.code)
    assert await tell(world, "What is that?") == ["You said: What is that?"]
    assert await tell(world, made.link.number) == [f"You said: {made.link.number}"]
    assert await world.session_of(person()) == own


async def test_a_number_that_comes_too_late_links_nothing(world: World, clock: Clock) -> None:
    await tell(world, "mine")
    own = await world.session_of(person())
    made = await web_chat(world)
    await tell(world, made.code)
    clock.advance(600)
    assert "stays as it is" in (await tell(world, made.link.number))[0]
    assert await world.session_of(person()) == own


async def test_a_number_for_a_session_that_is_gone_links_nothing(world: World) -> None:
    await tell(world, "mine")
    own = await world.session_of(person())
    made = await web_chat(world)
    await tell(world, made.code)
    await world.sessions.delete("web")
    assert "not valid" in (await tell(world, made.link.number))[0]
    assert await world.session_of(person()) == own


async def test_a_number_for_a_link_that_was_taken_back_links_nothing(world: World, clock: Clock) -> None:
    await tell(world, "mine")
    own = await world.session_of(person())
    made = await web_chat(world)
    await tell(world, made.code)
    await world.links.void("web", await world.links.find("web", made.link.id, clock()), clock())
    assert "not valid" in (await tell(world, made.link.number))[0]
    assert await world.session_of(person()) == own


async def test_a_number_for_another_session_of_that_id_links_nothing(world: World) -> None:
    await tell(world, "mine")
    made = await web_chat(world)
    await tell(world, made.code)
    await world.sessions.delete("web")
    await world.sessions.save("web", SAID)
    assert await tell(world, made.link.number) == [NOT_VALID]


async def test_a_code_is_as_good_as_the_credential_that_it_was_made_with(world: World) -> None:
    await world.sessions.save("web", "{}")
    made = await world.link_to("web", key="revoked later")
    world.revoked.add("revoked later")
    assert await tell(world, made.code) == [NOT_VALID]


async def test_unlink_works_while_something_is_asked(world: World) -> None:
    await tell(world, (await web_chat(world, "first")).code)
    made = await web_chat(world, "second")
    assert "answer with the number" in (await tell(world, made.code))[0]
    assert "ended" in (await tell(world, "UNLINK"))[0]
    assert await world.session_of(person()) not in ("first", "second")
    assert await world.texts("first") == []
    assert await tell(world, made.link.number) == [f"You said: {made.link.number}"]


async def test_a_code_may_follow_a_question(world: World) -> None:
    await tell(world, "mine")
    await tell(world, (await web_chat(world, "first")).code)
    made = await web_chat(world, "second")
    assert "answer with the number" in (await tell(world, made.code))[0]
    await tell(world, made.link.number)
    assert await world.session_of(person()) == "second"


async def test_a_code_that_was_used_does_not_undo_an_unlink(world: World) -> None:
    made = await web_chat(world)
    await tell(world, made.code)
    await tell(world, "UNLINK")
    assert await tell(world, made.code) == [NOT_VALID]


async def test_unlink_gives_back_the_chat_that_was_there(world: World) -> None:
    await tell(world, "mine")
    own = await world.session_of(person())
    made = await web_chat(world)
    await tell(world, made.code)
    await tell(world, made.link.number)
    assert "ended" in (await tell(world, "unlink"))[0]
    assert await world.session_of(person()) == own
    await tell(world, "again mine")
    assert await world.texts("web") == []
    assert (await world.texts(own))[-2:] == ["again mine", "You said: again mine"]
    assert "nothing to end" in (await tell(world, "UNLINK"))[0]


async def test_unlinking_from_the_web_ends_it_too(world: World, clock: Clock) -> None:
    made = await web_chat(world)
    await tell(world, made.code)
    people = await world.inbox.people.linked("web", clock())
    (person_id,) = people
    assert people[person_id].link_id == made.link.id
    assert await world.inbox.people.unlink(person_id, clock())
    assert await world.inbox.people.unlink(person_id, clock()) is False
    assert await world.inbox.people.linked("web", clock()) == {}
    await tell(world, "and now?")
    assert await world.texts("web") == []


async def test_unlinking_under_a_turn_gives_the_message_to_its_sender(new_world: NewWorld) -> None:
    world: World
    runs: list[str] = []

    async def disturbed(turn: Turn) -> None:
        runs.append(turn.user_session_id)
        for person_id in await world.inbox.people.linked("web", world.clock()):
            await world.inbox.people.unlink(person_id, world.clock())
        await turn.reply("Answered")

    world = await new_world(disturbed)
    made = await web_chat(world)
    await tell(world, made.code)
    assert await tell(world, "private") == ["Answered"]
    own = await world.session_of(person())
    assert runs == ["web", own]
    assert (await world.texts("web"), await world.texts(own)) == ([], ["private", "Answered"])


async def test_a_reply_of_a_chat_that_they_have_left_does_not_reach_them(world: World, clock: Clock) -> None:
    await tell(world, (await web_chat(world)).code)
    await world.write(person(), "waiting", "What is in it?")
    await done(world.turns)
    (person_id,) = await world.inbox.people.linked("web", clock())
    await world.inbox.people.unlink(person_id, clock())
    before = len(world.paper.sent)
    await done(world.outbox)
    assert len(world.paper.sent) == before
    assert "does not go on" in (await world.inbox.replies("failed"))[0].error


async def test_the_same_chat_again_asks_nothing(world: World) -> None:
    made = await web_chat(world)
    await tell(world, made.code)
    await tell(world, "Hi")
    again = await world.link_to("web")
    assert "go on here" in (await tell(world, again.code))[0]
    assert await world.session_of(person()) == "web"


async def test_a_second_chat_of_the_web_is_asked_for_too(world: World) -> None:
    await tell(world, (await web_chat(world, "first")).code)
    made = await web_chat(world, "second")
    assert CHROME in (await tell(world, made.code))[0]
    assert await world.session_of(person()) == "first"


async def test_a_message_about_links_is_carried_out_once_also_if_a_server_dies_over_it(
    new_world: NewWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the link and the note that its message is done: it is looked at again."""
    asked: list[str] = []

    async def bot(turn: Turn) -> None:
        asked.append(turn.message.text)
        await turn.reply("?")

    world = await new_world(bot)
    await tell(world, "mine")
    made = await web_chat(world)

    async def dies(_write: object) -> None:
        raise ConnectionResetError

    for number, text in enumerate((made.code, made.link.number, "UNLINK")):
        await world.write(person(), f"x{number}", text)
        with monkeypatch.context() as patch:
            patch.setattr(world.turns, "_settle", dies)
            (conversation,) = await world.turns.find(10)
            with pytest.raises(ConnectionResetError):
                await world.turns.work(conversation)
        await done(world.turns)
        await done(world.outbox)
    assert asked == ["mine"]
    question, linked, *rest = world.paper.texts[1:]
    assert "answer with the number" in question
    assert "go on here" in linked
    assert "ended" in rest[-1]


async def test_what_is_said_about_links_is_not_part_of_the_chat(world: World) -> None:
    made = await web_chat(world, state=SAID)
    await tell(world, made.code)
    await tell(world, "UNLINK")
    assert await world.texts("web") == ["How old are you?"]
