"""Visits in a Valkey Cluster, whose ids are unique though a visit and its pointer lie on different slots."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

from chatstate.errors import StoreError
from chatstate.stores import valkey_visits
from chatstate.stores.valkey_cluster import Call, Cluster
from chatstate.stores.valkey_keys import BUCKETS, Bucket
from chatstate.stores.valkey_node import parse_url
from chatstate.stores.valkey_steps import Steps
from chatstate.stores.visit_contract import creating
from chatstate.visit import EraseVisits, Visit, VisitQuery, VisitTaken, VisitWrite
from tests.stores.chance import seeded
from tests.stores.hearing import opened

EXAMPLES = int(os.environ.get("CHATSTATE_TEST_EXAMPLES") or 40)

USERS = ("a", "b", "c")
"""User sessions whose visits lie in different buckets."""


@pytest.fixture
async def cluster(valkey_url: str) -> AsyncIterator[Cluster]:
    cluster = Cluster(parse_url(valkey_url))
    await cluster.open()
    yield cluster
    await cluster.close()


class Running:
    """Writes that are under way at once, of which each step is taken when it is asked for."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.prefix = cluster.url.prefix
        self.outcomes: list[tuple[VisitWrite, Any]] = []
        self.under_way: list[tuple[VisitWrite, Steps, Any]] = []

    def begin(self, write: VisitWrite) -> None:
        steps = valkey_visits.write(self.prefix, write)
        self.under_way.append((write, steps, next(steps)))

    async def step(self, place: int) -> None:
        """The next step of one write."""
        write, steps, calls = self.under_way.pop(place)
        try:
            self.under_way.append((write, steps, steps.send(await self.cluster.write(calls))))
        except StopIteration as end:
            self.outcomes.append((write, end.value))

    async def crash(self, place: int) -> None:
        """The server of one write dies, before its next step or when nobody has heard what came of it."""
        _, steps, calls = self.under_way.pop(place)
        if place % 2:
            await self.cluster.write(calls)
        steps.close()

    async def lying(self, session_id: str) -> list[int]:
        """In which buckets there is a visit with this id."""
        places = [Bucket(self.prefix, "v", number) for number in range(BUCKETS)]
        found = await self.cluster.read([Call(one.slot, ("HEXISTS", one.key("docs"), session_id)) for one in places])
        return [place.number for place, is_there in zip(places, found, strict=True) if is_there]


async def test_an_id_is_that_of_one_visit_wherever_its_creations_are_interrupted(cluster: Cluster) -> None:
    """Creations for several user sessions, and removals, interleaved at random, of which some never end."""
    rng = seeded()
    for _ in range(EXAMPLES):
        running = Running(cluster)
        session_id = creating("").session_id
        is_erased = rng.random() < 0.5
        for _ in range(rng.randrange(2, 6)):
            running.begin(creating(rng.choice(USERS), session_id=session_id))
        while running.under_way:
            place = rng.randrange(len(running.under_way))
            await (running.crash if rng.random() < 0.1 else running.step)(place)
            if is_erased and rng.random() < 0.2:
                running.begin(EraseVisits(user_session_id=rng.choice(USERS)))
            assert len(await running.lying(session_id)) <= 1
        outcomes = [outcome for write, outcome in running.outcomes if not isinstance(write, EraseVisits)]
        made = [outcome for outcome in outcomes if isinstance(outcome, Visit)]
        assert is_erased or len(made) <= 1
        await _is_found_or_can_be_made(running, session_id, made if not is_erased else [])
        for name in USERS:
            await _whole(running, EraseVisits(user_session_id=name))


async def _is_found_or_can_be_made(running: Running, session_id: str, made: list[Visit]) -> None:
    query = VisitQuery(session_id=session_id)
    found = await valkey_visits.visits(running.cluster, running.prefix, query)
    assert len(found) == len(await running.lying(session_id)), "its pointer leads to it"
    assert not made or found == made
    again = await _whole(running, creating("d", session_id=session_id))
    assert again == VisitTaken() if found else isinstance(again, Visit)
    if isinstance(again, Visit):
        assert await valkey_visits.visits(running.cluster, running.prefix, query) == [again]
        await _whole(running, EraseVisits(user_session_id="d"))
        assert await running.lying(session_id) == []


async def _whole(running: Running, write: VisitWrite) -> Any:
    """The outcome of a write that nobody disturbs."""
    other = Running(running.cluster)
    other.begin(write)
    while other.under_way:
        await other.step(0)
    (_, outcome), *_ = other.outcomes
    assert not isinstance(outcome, StoreError)
    return outcome


async def test_of_many_who_create_a_visit_for_different_user_sessions_one_does(valkey_url: str) -> None:
    async with opened(valkey_url) as one, opened(valkey_url) as other:
        for _ in range(5):
            writes = [creating(f"user {number}") for number in range(10)]
            session_id = writes[0].session_id
            commits = [
                (one, other)[number % 2].commit([creating(write.user_session_id, session_id=session_id)])
                for number, write in enumerate(writes)
            ]
            outcomes = [outcome for (outcome,) in await asyncio.gather(*commits)]
            (winner,) = [outcome for outcome in outcomes if isinstance(outcome, Visit)]
            assert outcomes.count(VisitTaken()) == 9
            assert list(await one.list(VisitQuery(session_id=session_id))) == [winner]
