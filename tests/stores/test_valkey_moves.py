"""Slots that move from one shard of a Valkey Cluster to another one, while what lies there is saved and loaded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from hashlib import sha256
from itertools import count, islice
from typing import Any

import pytest

from chatstate.errors import OutcomeUnknown, StoreUnavailable
from chatstate.model import (
    ANYTHING,
    Delete,
    Expect,
    IdempotencyKey,
    Retention,
    Save,
    Session,
    SessionQuery,
    Tag,
    utc_now,
)
from chatstate.stores import Store, valkey_cluster, valkey_node
from chatstate.stores.valkey_keys import SLOTS, digest, slot_of
from tests.servers.valkey import ValkeyCluster, ValkeyNode
from tests.stores.hearing import SOON, opened

KEEPING = Retention(history=3)
"""With it, an expiry and an idempotency key a session has all the keys that it can have."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with ValkeyCluster(shards=3, replicas=1) as running:
        yield running


@pytest.fixture
async def store(cluster: ValkeyCluster) -> AsyncIterator[Store]:
    async with opened(cluster.url("moves:")) as store:
        yield store


_names = map("session {}".format, count())


def names_on(cluster: ValkeyCluster, shard: int, number: int) -> list[str]:
    """Ids of sessions that no other test has, on slots that are on this shard at first."""
    return list(islice((name for name in _names if cluster.shard_of(name) == shard), number))


def slots_of(cluster: ValkeyCluster, shard: int) -> tuple[int, int]:
    """The first and the last slot that a shard has at first."""
    return SLOTS * shard // cluster.shards, SLOTS * (shard + 1) // cluster.shards - 1


class Move:
    """A slot on its way from one primary to another, by the steps of `valkey-cli --cluster reshard`."""

    def __init__(self, cluster: ValkeyCluster, slot: int, source: int = 0, target: int = 1) -> None:
        self.slot = slot
        self.source, self.target = cluster.nodes[source], cluster.nodes[target]
        self._others = [cluster.nodes[number] for number in range(3) if number not in (source, target)]

    async def begin(self) -> None:
        await self._set(self.target, "IMPORTING", self.source.node_id)
        await self._set(self.source, "MIGRATING", self.target.node_id)

    async def keys(self, node: ValkeyNode | None = None) -> list[str]:
        found = await asyncio.to_thread((node or self.source).call, "CLUSTER", "GETKEYSINSLOT", self.slot, 1000)
        return sorted(found, key=lambda key: (not key.endswith(":s"), key))

    async def send(self, *keys: str) -> None:
        target = self.target
        words = ("MIGRATE", target.host, target.port, "", 0, 5000, "AUTH", target.password, "KEYS", *keys)
        assert await asyncio.to_thread(self.source.call, *words) == "OK"

    async def end(self) -> None:
        for node in (self.target, self.source, *self._others):
            await self._set(node, "NODE", self.target.node_id)
        assert not await self.keys()

    async def _set(self, node: ValkeyNode, *words: str) -> None:
        assert await asyncio.to_thread(node.call, "CLUSTER", "SETSLOT", self.slot, *words) == "OK"


def saving(name: str, state: str, expect: Expect = ANYTHING, **more: Any) -> Save:
    now = utc_now()
    words = {"chat_state": state, "last_activity": now, "now": now, "expect": expect, **more}
    return Save(user_session_id=name, new_session_id=f"id of {name}", **words)


def in_full(name: str, state: str, expect: Expect = ANYTHING) -> Save:
    """A save of which there is everything that can be: an expiry, and what an idempotency key remembers."""
    once = IdempotencyKey(key=state, caller="", digest=sha256(state.encode()).digest())
    return saving(name, state, expect, expires_in=1000, once=once)


def exactly(session: Session) -> Expect:
    return Expect(absent=False, only=frozenset([Tag(session.session_id, session.version)]))


async def commit(store: Store, write: Save | Delete) -> Any:
    (outcome,) = await store.commit([write], KEEPING)
    return outcome


async def loaded(store: Store, name: str) -> Session:
    return (await store.load([name], utc_now()))[name]


class Client:
    """Saves one session again and again, each time over the version before, and loads it beside that."""

    def __init__(self, store: Store, first: Session) -> None:
        self._store = store
        self.known = first
        self.name = first.user_session_id
        self.attempted = ""
        self.errors: list[Exception] = []
        self.done = {"saves": 0, "loads": 0}
        self._more = asyncio.Condition()

    async def save(self) -> None:
        for number in count():
            self.attempted = f"{number}"
            outcome = await commit(self._store, saving(self.name, self.attempted, exactly(self.known)))
            if isinstance(outcome, OutcomeUnknown):
                self.errors.append(outcome)
                outcome = await self._look()
            if isinstance(outcome, StoreUnavailable):
                self.errors.append(outcome)
            else:
                assert isinstance(outcome, Session), outcome
                self.known = outcome
            await self._count("saves")

    async def load(self) -> None:
        while True:
            before = self.known
            found = await self._look()
            assert found.session_id == before.session_id
            assert found.version >= before.version, "what was acknowledged is not there"
            assert found.version > before.version or found.chat_state == before.chat_state
            await self._count("loads")

    async def _look(self) -> Session:
        while True:
            try:
                return await loaded(self._store, self.name)  # KeyError: it is said to be absent
            except StoreUnavailable as error:
                self.errors.append(error)

    async def _count(self, what: str) -> None:
        self.done[what] += 1
        async with self._more:
            self._more.notify_all()

    async def further(self, what: str, number: int = 2) -> None:
        """Wait until so many have been done that begin from now on."""
        until = self.done[what] + number
        async with self._more, asyncio.timeout(SOON):
            await self._more.wait_for(lambda: self.done[what] >= until)


@asynccontextmanager
async def at_work(clients: list[Client]) -> AsyncIterator[asyncio.TaskGroup]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work()) for client in clients for work in (client.save, client.load)]
        await asyncio.gather(*(client.further("saves") for client in clients))
        yield group
        for task in tasks:
            task.cancel()


async def begun(store: Store, names: list[str]) -> list[Client]:
    return [Client(store, await commit(store, saving(name, "first"))) for name in names]


async def check(cluster: ValkeyCluster, shard: int, store: Store, clients: list[Client]) -> None:
    """Whether the store, and the replica of the shard where they are now, have what was acknowledged last."""
    replica = cluster.shard(shard)[1]
    replica.call("READONLY")
    for client in clients:
        assert {type(error) for error in client.errors} <= {StoreUnavailable, OutcomeUnknown}
        assert (await loaded(store, client.name)).version >= client.known.version
        text = replica.call("GET", f"moves:{{{digest(client.name)}}}:s")
        assert int(text[:16]) >= client.known.version


async def test_sessions_whose_slots_move_are_saved_and_loaded_meanwhile(cluster: ValkeyCluster, store: Store) -> None:
    clients = await begun(store, names_on(cluster, 0, 6))
    async with at_work(clients):
        for client in clients:
            move = Move(cluster, slot_of(digest(client.name)))
            await move.begin()
            for key in await move.keys():
                await move.send(key)
                await client.further("loads")
            await move.end()
            await client.further("saves")
        await asyncio.gather(*(client.further("saves", 5) for client in clients))
    assert all(client.known.version > 1000 for client in clients), "a new primary does not begin a new epoch"
    await check(cluster, 1, store, clients)


@pytest.mark.parametrize("moved", [0, 1, -1, None])
async def test_what_has_half_moved_is_loaded_and_not_saved_twice(
    cluster: ValkeyCluster, store: Store, monkeypatch: pytest.MonkeyPatch, moved: int | None
) -> None:
    """The slot is not handed over: no key of it has moved yet, its session has, all but one have, or all."""
    (name,) = names_on(cluster, 0, 1)
    known = await commit(store, saving(name, "before"))
    move = Move(cluster, slot_of(digest(name)))
    await move.begin()
    keys = await move.keys()
    if moved != 0:
        await move.send(*keys[:moved])
    monkeypatch.setattr(valkey_cluster, "RETRY_SECONDS", 0.1)
    for expect in (ANYTHING, exactly(known), Expect(only=frozenset())):
        assert type(await commit(store, saving(name, "refused", expect))) is StoreUnavailable
        assert await loaded(store, name) == known
    assert type(await commit(store, Delete(user_session_id=name, now=utc_now()))) is StoreUnavailable
    assert await loaded(store, name) == known
    monkeypatch.undo()
    waiting = asyncio.create_task(commit(store, saving(name, "after", exactly(known))))
    if left := await move.keys():
        await move.send(*left)
    await move.end()
    after = await waiting
    assert (after.chat_state, after.version > known.version) == ("after", True)
    assert await loaded(store, name) == after
    assert set(await move.keys(move.target)) == set(keys)


@pytest.mark.parametrize("kind", ["save", "delete"])
async def test_a_script_is_not_stopped_halfway_because_its_slot_is_moving(
    cluster: ValkeyCluster, store: Store, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """All keys of the session are still there, so the node would begin; what a script removes is missing then."""
    (name,) = names_on(cluster, 0, 1)
    known = await commit(store, in_full(name, "before"))
    move = Move(cluster, slot_of(digest(name)))
    assert len(await move.keys()) == 8
    await move.begin()
    monkeypatch.setattr(valkey_cluster, "RETRY_SECONDS", 0.1)
    write = (
        in_full(name, "after", exactly(known))
        if kind == "save"
        else Delete(user_session_id=name, now=utc_now(), expect=exactly(known))
    )
    assert type(await commit(store, write)) is StoreUnavailable
    assert await loaded(store, name) == known
    monkeypatch.undo()
    await move.send(*await move.keys())
    await move.end()
    assert await commit(store, in_full(name, "after", exactly(known)))


async def test_lists_go_on_while_a_slot_moves_and_never_lack_anything(cluster: ValkeyCluster, store: Store) -> None:
    """They were refused from when the first of a slot had moved until the last one had, and once more after that."""
    first, second = names_on(cluster, 0, 2)
    await store.commit([saving(first, ""), saving(second, "")], KEEPING)
    now = utc_now()

    async def check() -> None:
        query = SessionQuery(now=now, prefix="session", limit=1000, order="id")
        listed = [found.user_session_id for found in await store.list(query)]
        assert listed == sorted(listed)
        assert listed.count(first) == listed.count(second) == 1
        assert (await store.sweep(now, KEEPING, None, 100)).sessions == 0

    move = Move(cluster, slot_of(digest(first)))
    await move.begin()
    await check()
    for key in await move.keys():
        await move.send(key)
        await check()
    await move.end()
    await check()


async def test_what_is_asked_for_at_the_importing_node_is_confirmed_there(
    cluster: ValkeyCluster, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tag,) = (digest(name) for name in names_on(cluster, 0, 1))
    move, replica = Move(cluster, slot_of(tag)), cluster.shard(1)[1]
    await move.begin()
    call = valkey_cluster.Call(move.slot, ("APPEND", f"moves:{{{tag}}}:x", "1"))
    assert await store.inner._cluster.write([call]) == [1]
    monkeypatch.setattr(valkey_node, "CONFIRM_MILLISECONDS", 50)
    replica.pause()
    outcomes = await store.inner._cluster.write([call])
    replica.wake()
    assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown]
    await move.end()


async def test_a_shard_moves_at_once_and_slots_move_into_what_is_empty(cluster: ValkeyCluster, store: Store) -> None:
    """All slots of a shard by `CLUSTER MIGRATESLOTS`; then one comes back by steps, to a shard that has none."""
    clients = await begun(store, names_on(cluster, 2, 6))
    first, last = slots_of(cluster, 2)
    async with at_work(clients):
        words = ("MIGRATESLOTS", "SLOTSRANGE", first, last, "NODE", cluster.nodes[1].node_id)
        assert await asyncio.to_thread(cluster.nodes[2].call, "CLUSTER", *words) == "OK"
        async with asyncio.timeout(SOON):
            while not all(client.known.version > 1000 for client in clients):  # they save to the new one
                await clients[0].further("loads")
    await check(cluster, 1, store, clients)
    known = await loaded(store, clients[0].name)  # what was cancelled may have been carried out
    move = Move(cluster, slot_of(digest(clients[0].name)), 1, 2)
    await move.begin()
    await move.send(*await move.keys())
    assert await loaded(store, known.user_session_id) == known
    waiting = asyncio.create_task(commit(store, saving(known.user_session_id, "after", exactly(known))))
    await move.end()
    clients[0].known = await waiting
    assert clients[0].known.chat_state == "after"
    await check(cluster, 2, store, clients[:1])
