"""`chatstate serve --workers`: several processes on one port, of which any may die."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from signal import SIGINT, SIGTERM, Signals

import httpx
import psutil
import pytest

from tests.conftest import POSTGRES_NAMES, database
from tests.crash.test_shutdown import AT_ONCE_SECONDS, THE_OTHER_HALF, half_open, refused
from tests.servers.load import History, Load
from tests.servers.postgres import RunningServers, poll_until
from tests.servers.process import PROGRAM, ServerProcess

SECONDS = 10.0
KILLS = 3


@pytest.fixture
def server(servers: RunningServers, tmp_path: Path) -> Iterator[ServerProcess]:
    """Two workers on one of the PostgreSQL servers."""
    with (
        database(POSTGRES_NAMES[0], servers, tmp_path) as url,
        ServerProcess(url, tmp_path, arguments=("--workers", "2")) as server,
    ):
        yield server


def workers(server: ServerProcess) -> list[psutil.Process]:
    """Those that are alive, once there are two."""
    found: list[psutil.Process] = []

    def both() -> bool:
        found[:] = [child for child in psutil.Process(server.pid).children() if alive(child)]
        return len(found) == 2

    assert poll_until(both, SECONDS), server.output
    return found


def alive(process: psutil.Process) -> bool:
    """Whether it has not ended; its parent may be about to be told."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_worker_that_is_killed_has_lost_nothing_and_is_replaced(server: ServerProcess) -> None:
    history = History()
    rng = random.Random(history.seed)
    for _ in range(KILLS):
        async with Load(history, server.port) as load:
            await load.acknowledgements(rng.randrange(50, 300))
            victim = rng.choice(workers(server))
            held = sum(connection.status == psutil.CONN_ESTABLISHED for connection in victim.net_connections("tcp"))
            victim.kill()
            await asyncio.to_thread(victim.wait, SECONDS)
        assert load.broken <= held, "the other one answers all the time"
        assert victim.pid not in [worker.pid for worker in workers(server)]
        await history.check(server.port)
    assert server.output.count("been killed by SIGKILL; another one takes its place") == KILLS
    assert server.terminate() == 0, server.output
    history.report(f"{KILLS} kills of a worker")


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
async def test_an_orderly_end_of_all_answers_what_was_accepted(number: Signals, server: ServerProcess) -> None:
    history = History()
    both = workers(server)
    async with Load(history, server.port) as load:
        await load.acknowledgements(150)
        server.send(number)
        await load.ended()
    assert await asyncio.to_thread(server.wait) == 0, server.output
    assert load.broken == 0
    assert history.count("unknown") == 0
    assert not any(worker.is_running() for worker in both)
    assert server.output.count("everything that was accepted has been answered") == 1
    assert server.output.count("listens on") == 1
    assert "workers     2 processes" in server.output


async def test_a_signal_that_each_process_gets_ends_them_in_order(server: ServerProcess) -> None:
    """As systemd sends it: with the one that the parent passes on it was the second, and cut off what was accepted."""
    both = workers(server)
    async with half_open(server) as connection:
        server.send(SIGTERM)
        await refused(server.port)
        for worker in both:
            with suppress(psutil.NoSuchProcess):
                worker.terminate()
        await connection.send(THE_OTHER_HALF)
        assert (await connection.answer()).status == 201
    assert await asyncio.to_thread(server.wait) == 0, server.output


async def test_connections_are_refused_from_the_end_on_and_a_second_signal_ends_all_at_once(
    server: ServerProcess,
) -> None:
    """The parent, too, held the sockets: who came now waited for an answer, and was cut off at the end of all."""
    both = workers(server)
    async with half_open(server):
        server.send(SIGINT)
        await refused(server.port)
        assert server.running
        assert await asyncio.to_thread(server.terminate, SIGINT, AT_ONCE_SECONDS) != 0
    assert not any(worker.is_running() for worker in both)
    assert "Traceback" not in server.output


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_an_end_while_a_worker_is_being_replaced_is_in_order(number: Signals, server: ServerProcess) -> None:
    """The one that is just starting cannot end as one that serves does: it was reported as killed, with status 15."""
    before = workers(server)
    before[0].kill()
    new: list[psutil.Process] = []

    def begun() -> bool:
        new[:] = [child for child in psutil.Process(server.pid).children() if child not in before]
        return bool(new)

    assert poll_until(begun, SECONDS), server.output
    assert server.terminate(number) == 0, server.output
    assert not new[0].is_running()


def test_no_worker_is_started_when_the_end_has_begun(servers: RunningServers, tmp_path: Path) -> None:
    """Those that were still to come at Ctrl+C were started, heard nothing of it, and went on to serve."""
    with (
        database(POSTGRES_NAMES[0], servers, tmp_path) as url,
        ServerProcess(url, tmp_path, arguments=("--workers", "4")) as server,
    ):
        assert server.terminate(SIGINT) == 0, server.output


def test_workers_whose_parent_is_killed_end_too(server: ServerProcess) -> None:
    both = workers(server)
    server.kill()
    _, left = psutil.wait_procs(both, SECONDS)
    assert not left
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.base_url}/healthz")


def test_the_end_of_a_child_of_somebody_else_is_no_matter(servers: RunningServers, tmp_path: Path) -> None:
    """As process 1 of a container, and after `exec` in a script, it gets such children: it fell over the first one."""
    script = ("/bin/sh", "-c", 'true & exec "$@"', "sh", *PROGRAM)
    with (
        database(POSTGRES_NAMES[0], servers, tmp_path) as url,
        ServerProcess(url, tmp_path, program=script, arguments=("--workers", "2")) as server,
    ):
        workers(server)[1].kill()
        assert poll_until(lambda: "another one takes its place" in server.output, SECONDS), server.output
        assert server.terminate() == 0, server.output
        assert "Traceback" not in server.output
