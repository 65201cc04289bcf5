"""A primary lost under load: the servers go on with the standby that is promoted, and nothing acknowledged is missing.

CHATSTATE_TEST_FAILOVERS=20 loses 20 primaries in place of one.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from tests.http.event_stream import EventStream, listening
from tests.servers.load import RETRY_SECONDS, Answer, Connection, History, Load
from tests.servers.memory import memory_folder
from tests.servers.postgres import wheels
from tests.servers.process import ServerProcess
from tests.servers.standby import Pair, ask, frozen

FAILOVERS = int(os.environ.get("CHATSTATE_TEST_FAILOVERS", "1"))

GO_ON_SECONDS = 10.0
"""How soon after a promotion every server acknowledges writes again, without a restart."""

SESSIONS = "/chat-state-sessions"


@pytest.fixture(params=wheels()[-1:], ids=lambda wheel: wheel.name)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """In memory: the one that is lost is lost, whatever it has synced, and the other one only has to be quick."""
    with Pair.create(request.param, parent=memory_folder()) as pair:
        yield pair


@contextmanager
def serving(url: str, folder: Path) -> Iterator[list[ServerProcess]]:
    """Two servers on one database."""
    with ExitStack() as stack:
        folders = [folder / str(number) for number in range(2)]
        for each in folders:
            each.mkdir()
        servers = [stack.enter_context(ServerProcess(url, each)) for each in folders]
        yield servers
        for server in servers:
            assert server.terminate() == 0, server.output
            assert "Traceback" not in server.output


@asynccontextmanager
async def loaded(history: History, servers: Sequence[ServerProcess]) -> AsyncIterator[list[Load]]:
    """Writers at work at each server."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Load(history, server.port, workers=8)) for server in servers]


async def acknowledged(loads: Sequence[Load], number: int) -> None:
    await asyncio.gather(*(load.acknowledgements(number) for load in loads))


async def ask_server(server: ServerProcess, method: str, path: str, body: object = None) -> Answer:
    async with await Connection.open(server.port) as connection:
        return await connection.request(method, path, body)


async def save(server: ServerProcess, name: str, state: str = "{}") -> Answer:
    return await ask_server(server, "POST", SESSIONS, {"user_session_id": name, "chat_state": state})


async def until_it_goes_on(server: ServerProcess) -> float:
    """How long it takes, in seconds, until the server acknowledges a write."""
    began = time.monotonic()
    async with asyncio.timeout(GO_ON_SECONDS):
        while (answer := await save(server, "probe")).status == 503:  # noqa: ASYNC110
            await asyncio.sleep(RETRY_SECONDS)
    assert answer.status in (200, 201), answer
    return time.monotonic() - began


async def readiness(servers: Sequence[ServerProcess]) -> set[int]:
    return {(await ask_server(server, "GET", "/readyz")).status for server in servers}


@pytest.mark.parametrize("pair", wheels()[:1], indirect=True, ids=lambda wheel: wheel.name)
@pytest.mark.parametrize("_round", range(FAILOVERS))
async def test_a_primary_that_is_killed_under_load_takes_nothing_acknowledged_with_it(
    _round: int, pair: Pair, tmp_path: Path
) -> None:
    history = History()
    with serving(await pair.create_database(), tmp_path) as servers:
        async with loaded(history, servers) as loads:
            await acknowledged(loads, history.random_for(-1).randrange(50, 300))
            await asyncio.to_thread(pair.primary.kill)  # beside the clients, in whatever they and the servers are doing
            assert await readiness(servers) == {503}
            await pair.promote()
            seconds = await asyncio.gather(*map(until_it_goes_on, servers))
            await acknowledged(loads, 50)
        for load in loads:
            assert load.broken == 0, "chatstate itself has closed connections"
            assert load.statuses[503] > 0, "no request met the fault"
            assert set(load.statuses) <= {200, 201, 404, 412, 503}, load.statuses
        for server in servers:
            await history.check(server.port)
        assert await readiness(servers) == {200}
    history.report(f"went on after {max(seconds):.2f} s")


async def test_what_the_standby_may_not_have_is_unknown(pair: Pair, tmp_path: Path) -> None:
    """Also when the primary is lost, and the standby promoted: what was sent while it hung is in doubt."""
    history = History()
    with serving(await pair.create_database(), tmp_path) as servers:
        assert "disks of the primary and of its synchronous standby" in servers[0].output
        await is_unknown_when_cancelled(pair, servers[0])
        async with loaded(history, servers) as loads:
            await acknowledged(loads, 50)
            with frozen(pair.standby):
                await pair.waiting()
                await asyncio.to_thread(pair.primary.kill)
            await pair.promote()
            await asyncio.gather(*map(until_it_goes_on, servers))
            await acknowledged(loads, 20)
        assert history.count("unknown") > 0
        for server in servers:
            await history.check(server.port)


async def is_unknown_when_cancelled(pair: Pair, server: ServerProcess) -> None:
    await asyncio.to_thread(pair.standby.stop)
    task = asyncio.create_task(save(server, "a"))
    await ask(pair.primary, f"SELECT pg_cancel_backend({await pair.waiting()})")
    answer = await task
    assert (answer.status, json.loads(answer.body)["outcome"]) == (503, "unknown")
    task = asyncio.create_task(save(server, "b"))
    await pair.waiting()
    assert not task.done()
    await asyncio.to_thread(pair.standby.start)
    assert (await task).status == 201
    await pair.caught_up()


async def test_a_planned_switchover_loses_nothing_and_watchers_go_on(pair: Pair, tmp_path: Path) -> None:
    history = History()
    with serving(await pair.create_database(), tmp_path) as servers:
        here, there = servers
        with listening(here.port, "watched/events") as stream:
            assert await next_event(stream) == "absent"
            await save(there, "watched", '"before"')
            assert await next_event(stream) == '"before"'
            async with loaded(history, servers) as loads:
                await acknowledged(loads, 50)
                await asyncio.to_thread(pair.primary.stop, "fast")
                await pair.promote()
                await asyncio.gather(*map(until_it_goes_on, servers))
                await acknowledged(loads, 20)
            assert (await save(there, "watched", '"after"')).status == 200
            assert await next_event(stream) == '"after"'
        for server in servers:
            await history.check(server.port)


async def next_event(stream: EventStream) -> str:
    event = await asyncio.to_thread(stream.next)
    assert event
    return event.state if event.name == "state" else event.name
