"""Who has written: the names under which a channel knows people, which come, go, change, and are given to others."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from chatstate.channels import Contact, ExternalId
from chatstate.errors import SendFailed, StoreUnavailable
from chatstate.leases import Leases
from chatstate.people import People
from chatstate.record import Record, RecordQuery
from chatstate.stores import Store
from tests.turns.conftest import Clock, World, person

NUMBER, BSUID, PARENT = ("wa_id", "16505551234"), ("bsuid", "US.1349120865530274191"), ("parent", "US.ENT.1181579921")


def known(*names: tuple[str, str]) -> Contact:
    return Contact(tuple(ExternalId(*name) for name in names))


async def who(world: World, *names: tuple[str, str]) -> str:
    person_id, _ = await world.inbox.people.find("paper", known(*names), world.clock())
    return person_id


async def test_a_person_is_the_same_under_any_of_their_names(world: World) -> None:
    first = await who(world, NUMBER)
    assert await who(world, NUMBER) == first
    assert await who(world, BSUID, NUMBER, PARENT) == first  # a new kind of name comes beside the old one
    for names in ((BSUID,), (NUMBER,), (PARENT,), (BSUID, PARENT)):
        assert await who(world, *names) == first
    _, found = await world.inbox.people.find("paper", known(BSUID), world.clock())
    assert set(found.names) == {BSUID, NUMBER, PARENT}


async def test_a_number_with_another_surer_name_is_somebody_else(world: World) -> None:
    first = await who(world, BSUID, NUMBER)
    other = await who(world, ("bsuid", "US.9"), NUMBER)
    assert other != first
    assert await who(world, NUMBER) == other  # whoever has it now
    assert await who(world, BSUID) == first


async def test_a_number_that_is_not_told_any_more_is_not_written_to(world: World) -> None:
    for number, names in enumerate(((BSUID, NUMBER), (("bsuid", "US.9"), NUMBER), (BSUID,))):
        await world.write(known(*names), f"m{number}")
        await world.work()
    assert world.paper.sent[-1][0].ids == (BSUID,)


async def test_a_reply_that_waits_does_not_go_to_a_number_that_is_somebody_elses_now(
    world: World, clock: Clock
) -> None:
    world.paper.failing = [SendFailed("later", retry_after=60)]
    await world.write(known(BSUID, NUMBER), "m1")
    await world.work()
    await who(world, ("bsuid", "US.9"), NUMBER)
    clock.advance(61)
    await world.work()
    assert [contact.ids for contact, _ in world.paper.sent] == [(BSUID,)]


async def test_a_message_that_has_waited_takes_no_number_back_from_who_has_it_now(world: World, clock: Clock) -> None:
    await world.write(known(BSUID, NUMBER), "m1")
    await world.work()
    await world.write(known(BSUID, NUMBER), "m2")
    clock.advance(60)
    other = await who(world, ("bsuid", "US.9"), NUMBER)
    await world.work()
    assert [contact.ids for contact, _ in world.paper.sent] == [(BSUID, NUMBER), (BSUID,)]
    assert await who(world, NUMBER) == other
    first = await world.inbox.people.get(await who(world, BSUID), clock())
    assert first
    assert first.names == (BSUID,)
    later = await who(world, BSUID, NUMBER)  # it has been given back
    assert (later, await who(world, NUMBER)) == (await who(world, BSUID), later)


async def test_people_of_different_channels_are_different(world: World) -> None:
    one, _ = await world.inbox.people.find("paper", known(NUMBER), world.clock())
    other, _ = await world.inbox.people.find("stone", known(NUMBER), world.clock())
    assert one != other


async def test_a_number_that_was_not_used_for_long_is_somebody_elses(world: World, clock: Clock) -> None:
    first = await who(world, NUMBER)
    clock.advance(44 * 86400)
    assert await who(world, NUMBER) == first
    clock.advance(44 * 86400)
    assert await who(world, NUMBER) == first  # it was used meanwhile
    clock.advance(45 * 86400)
    assert await who(world, NUMBER) != first


async def test_a_lasting_name_is_known_for_ever(world: World, clock: Clock) -> None:
    first = await who(world, BSUID, NUMBER)
    clock.advance(400 * 86400)
    assert await who(world, BSUID) == first
    assert await who(world, NUMBER) != first


async def test_the_session_of_a_person_names_nobody(world: World) -> None:
    _, found = await world.inbox.people.find("paper", known(NUMBER), world.clock())
    assert found.user_session_id == found.own_session_id
    assert found.user_session_id.startswith("paper_")
    assert len(found.user_session_id) == len("paper_") + 32
    assert NUMBER[1] not in found.user_session_id


async def test_a_name_is_looked_for_by_a_hash(world: World, store: Store) -> None:
    await who(world, NUMBER)
    rows = await store.list(RecordQuery(collection="people_names", now=world.clock()))
    keys = [row.key for row in rows if isinstance(row, Record)]
    assert len(keys) == 1
    assert NUMBER[1] not in keys[0]
    assert await People(store, b"another key").find("paper", known(NUMBER), world.clock()) != await who(world, NUMBER)


async def test_of_many_servers_that_meet_somebody_new_one_gives_them_their_session(world: World) -> None:
    for number in range(10):
        names = (("wa_id", f"1{number}"), ("parent", f"P{number}"))
        found = await asyncio.gather(*(who(world, *names) for _ in range(8)))
        assert len(set(found)) == 1, number


async def test_a_server_that_died_over_somebody_new_holds_up_others_for_a_moment(world: World, store: Store) -> None:
    await Leases(store, "people_leases", "died", timedelta(seconds=5)).take("paper", world.clock())
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    people = People(store, b"key", pause=pause)
    async with asyncio.timeout(60):
        person_id, _ = await people.find("paper", known(NUMBER), world.clock())
    assert 4.9 < sum(pauses) < 5.1
    assert (await people.find("paper", known(NUMBER), world.clock()))[0] == person_id


async def test_names_that_are_given_up_are_nobodys(world: World) -> None:
    first = await who(world, BSUID, NUMBER)
    await world.inbox.people.give_up("paper", [ExternalId(*NUMBER)], world.clock())
    assert await who(world, BSUID) == first
    assert await who(world, NUMBER) != first
    await world.inbox.people.give_up("paper", [ExternalId("wa_id", "unknown")], world.clock())


async def test_giving_up_a_name_can_be_done_again_when_it_was_interrupted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, people = await who(world, BSUID, NUMBER), world.inbox.people

    async def fail(*_: object) -> None:
        raise StoreUnavailable

    monkeypatch.setattr(people._names, "drop", fail)
    with pytest.raises(StoreUnavailable):
        await people.give_up("paper", [ExternalId(*NUMBER)], world.clock())
    monkeypatch.undo()
    await people.give_up("paper", [ExternalId(*NUMBER)], world.clock())
    found = await people.get(first, world.clock())
    assert found
    assert found.names == (BSUID,)
    assert await who(world, NUMBER) != first


async def test_a_changed_number_ends_a_link(world: World, clock: Clock) -> None:
    await world.sessions.save("web", "{}")
    contact = known(BSUID, NUMBER)
    await world.write(contact, "m1")
    await world.work()
    own = await world.session_of(contact)
    made = await world.link_to("web")
    await world.write(contact, "m2", made.code)
    await world.write(contact, "m3", made.link.number)
    await world.work()
    assert await world.session_of(contact) == "web"
    await world.write(contact, "m4", message=None, note="user_changed_number", former=(ExternalId(*NUMBER),))
    await world.work()
    assert await world.session_of(known(BSUID)) == own
    assert await world.session_of(known(NUMBER)) not in ("web", own)


async def test_a_note_is_kept_and_starts_no_bot(world: World) -> None:
    await world.write(person(), "m1", message=None, note="reaction")
    await world.work()
    (entry,) = await world.inbox.entries("noted")
    assert entry.document != ""
    assert await world.inbox.entries("pending") == []
    assert world.paper.sent == []


async def test_erasing_somebody_leaves_a_number_to_who_has_it_now(world: World, clock: Clock) -> None:
    first = known(BSUID, NUMBER)
    await world.write(first, "m1")
    await world.work()
    session = await world.session_of(first)
    clock.advance(46 * 86400)
    other = await who(world, NUMBER)
    await world.sessions.delete(session)
    await world.inbox.erase(session)
    assert await who(world, NUMBER) == other


async def test_two_deliveries_of_somebody_new_under_different_names_are_one_person(world: World) -> None:
    for number in range(10):
        names = (("bsuid", f"US.{number}"), ("wa_id", f"2{number}"))
        found = await asyncio.gather(who(world, *names), who(world, names[1]), who(world, *names))
        assert len(set(found)) == 1, number


async def test_people_are_forgotten_with_everything_else(store: Store, clock: Clock) -> None:
    people = People(store, b"key", kept=timedelta(days=30))
    person_id, _ = await people.find("paper", known(BSUID, NUMBER), clock())
    clock.advance(29 * 86400)
    assert (await people.find("paper", known(BSUID, NUMBER), clock()))[0] == person_id
    clock.advance(29 * 86400)
    assert (await people.find("paper", known(BSUID), clock()))[0] == person_id  # they have written meanwhile
    clock.advance(30 * 86400)
    for collection in ("people", "people_names", "people_sessions"):
        assert await store.list(RecordQuery(collection=collection, now=clock())) == []


async def test_erasing_a_session_forgets_who_has_written(world: World, clock: Clock) -> None:
    contact = person("16505551234")
    await world.write(contact, "m1")
    await world.work()
    session = await world.session_of(contact)
    await world.write(contact, "m2")
    await world.sessions.delete(session)
    assert await world.inbox.erase(session)
    await world.work()
    for collection in ("people", "people_names", "people_sessions"):
        assert await world.store.list(RecordQuery(collection=collection, now=clock())) == []
    assert await world.inbox.replies(user_session_id=session) == []
    assert await world.state(session) is None
    assert await world.inbox.erase(session) is False
    await world.write(contact, "m1")  # delivered again
    await world.work()
    assert world.paper.texts == ["You said: Hello"]
    assert await world.session_of(contact) != session


async def test_erasing_a_linked_session_gives_people_back_their_own(world: World, clock: Clock) -> None:
    await world.sessions.save("web", "{}")
    contact = person()
    made = await world.link_to("web")
    own = await world.session_of(contact)
    await world.write(contact, "m1", made.code)
    await world.work()
    assert await world.session_of(contact) == "web"
    await world.sessions.delete("web")
    assert await world.inbox.erase("web")
    assert await world.session_of(contact) == own
    await world.write(contact, "m2", "still there?")
    await world.work()
    assert await world.texts(own) == ["still there?", "You said: still there?"]
    assert await world.state("web") is None


async def test_a_lease_is_held_by_one_and_expires(store: Store, clock: Clock) -> None:
    from chatstate.leases import Leases

    one, other = (Leases(store, "test", name, timedelta(seconds=30)) for name in ("one", "other"))
    lease = await one.take("a", clock())
    assert lease
    assert await other.take("a", clock()) is None
    assert await other.take("b", clock())
    clock.advance(29)
    lease = await one.renew(lease, clock())
    assert lease
    clock.advance(29)
    assert await other.take("a", clock()) is None
    clock.advance(1)
    taken = await other.take("a", clock())
    assert taken
    assert await one.renew(lease, clock()) is None
    await one.release(lease, clock())  # which is another's by now
    assert await one.take("a", clock()) is None
    await other.release(taken, clock())
    assert await one.take("a", clock())
    await other.release_all(clock())
    assert await other.take("a", clock())


async def test_of_many_who_take_a_lease_one_has_it(store: Store, clock: Clock) -> None:
    from chatstate.leases import Leases

    servers = [Leases(store, "test", f"{number}", timedelta(seconds=30)) for number in range(16)]
    taken = await asyncio.gather(*(server.take("a", clock()) for server in servers))
    assert len([lease for lease in taken if lease]) == 1
