"""Many clients that change one session at once, through two server processes where the store allows two."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.servers.load import RETRY_SECONDS, Answer, Connection
from tests.servers.process import ServerProcess

SESSIONS = "/chat-state-sessions"
SESSION = f"{SESSIONS}/raced"
APPENDS = 200

Clients = list[Connection]


@pytest.fixture
def processes(store_url: str, tmp_path: Path) -> Iterator[list[ServerProcess]]:
    """Two servers on one database; one where the store is a file, which has one owner."""
    count = 1 if store_url.startswith("sqlite") else 2
    with ExitStack() as stack:
        folders = [tmp_path / str(number) for number in range(count)]
        for folder in folders:
            folder.mkdir()
        yield [stack.enter_context(ServerProcess(store_url, folder)) for folder in folders]


@asynccontextmanager
async def connected(processes: list[ServerProcess], count: int) -> AsyncIterator[Clients]:
    """So many clients, spread over the servers."""
    async with AsyncExitStack() as stack:
        ports = [processes[number % len(processes)].port for number in range(count)]
        yield [await stack.enter_async_context(await Connection.open(port)) for port in ports]


async def send(client: Connection, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    return await client.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})


async def save(client: Connection, messages: list[str], **headers: str) -> Answer:
    body = {"user_session_id": "raced", "chat_state": json.dumps({"messages": messages})}
    return await send(client, "POST", SESSIONS, body, **headers)


async def messages_of(client: Connection) -> tuple[list[str], str]:
    answer = await send(client, "GET", SESSION)
    assert answer.status == 200
    messages: list[str] = json.loads(json.loads(answer.body)["chat_state"])["messages"]
    return messages, answer.headers["etag"]


async def at_once(clients: Clients, task: Callable[[Connection, int], Awaitable[Any]]) -> list[Any]:
    return list(await asyncio.gather(*(task(client, number) for number, client in enumerate(clients))))


async def test_32_clients_that_append_200_times_each_lose_nothing(processes: list[ServerProcess]) -> None:
    """Each reads, appends and saves with If-Match; what was acknowledged is there once, and nothing else is."""
    acknowledged: list[str] = []

    async def append(client: Connection, number: int) -> None:
        for turn in range(APPENDS):
            messages, tag = await messages_of(client)
            mark = f"{number}-{turn}"
            answer = await save(client, [*messages, mark], If_Match=tag)
            assert answer.status in (200, 412), answer
            if answer.status == 200:
                acknowledged.append(mark)

    async with connected(processes, 32) as clients:
        assert (await save(clients[0], [])).status == 201
        await at_once(clients, append)
        messages, tag = await messages_of(clients[0])
    assert sorted(messages) == sorted(acknowledged)
    assert len(acknowledged) >= APPENDS  # in each round of the race somebody wins
    assert tag.endswith(f'-{1 + len(acknowledged)}"')


async def test_of_50_first_creations_one_succeeds(processes: list[ServerProcess]) -> None:
    async def create(client: Connection, number: int) -> int:
        return (await save(client, [str(number)], If_None_Match="*")).status

    async with connected(processes, 50) as clients:
        statuses = await at_once(clients, create)
        assert sorted(statuses) == [201] + [412] * 49
        assert (await messages_of(clients[0]))[0] == [str(statuses.index(201))]


async def test_appends_by_patch_need_no_precondition(processes: list[ServerProcess]) -> None:
    """Every one of them succeeds, and is there once; each client's are in its order."""

    async def append(client: Connection, number: int) -> None:
        for turn in range(25):
            patch = [{"op": "add", "path": "/messages/-", "value": f"{number}-{turn}"}]
            answer = await send(client, "PATCH", SESSION, patch, Content_Type="application/json-patch+json")
            assert answer.status == 200, answer

    async with connected(processes, 16) as clients:
        await save(clients[0], [])
        await at_once(clients, append)
        messages, _ = await messages_of(clients[0])
    assert sorted(messages) == sorted(f"{number}-{turn}" for number in range(16) for turn in range(25))
    for number in range(16):
        mine = [message for message in messages if message.startswith(f"{number}-")]
        assert mine == [f"{number}-{turn}" for turn in range(25)]


async def test_duplicates_that_arrive_together_are_one_append(processes: list[ServerProcess]) -> None:
    turns: list[str] = []

    async def append(client: Connection, _number: int) -> tuple[int, str, bytes]:
        turn = turns[-1]
        patch = [{"op": "add", "path": "/messages/-", "value": turn}]
        answer = await send(
            client, "PATCH", SESSION, patch, Content_Type="application/json-patch+json", Idempotency_Key=turn
        )
        return answer.status, answer.headers["etag"], answer.body

    async with connected(processes, 16) as clients:
        await save(clients[0], [])
        for number in range(10):
            turns.append(str(number))
            answers = await at_once(clients, append)
            assert len(set(answers)) == 1
            assert answers[0][0] == 200
        assert (await messages_of(clients[0]))[0] == turns


async def test_a_retry_after_a_crash_between_commit_and_answer_is_no_second_turn(
    processes: list[ServerProcess],
) -> None:
    """Servers are killed at random moments; each client sends its append again until it has an answer."""
    rng = random.Random(4)
    acknowledged: asyncio.Queue[None] = asyncio.Queue()

    async def client(number: int) -> int:
        sent = 0
        for turn in range(APPENDS // 5):
            mark = f"{number}-{turn}"
            status = 0
            while status != 200:
                sent += 1
                status = await append_once(rng.choice(processes), mark)
                assert status in (0, 200, 503)
            acknowledged.put_nowait(None)
        return sent

    async def killer() -> None:
        while True:
            for _ in range(rng.randrange(1, 40)):
                await acknowledged.get()
            server = rng.choice(processes)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.restart)

    async with connected(processes[:1], 1) as clients:
        await save(clients[0], [])
    killing = asyncio.create_task(killer())
    sent = await asyncio.gather(*map(client, range(8)))
    killing.cancel()
    await asyncio.gather(killing, return_exceptions=True)
    for server in processes:
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.restart)
    async with connected(processes[:1], 1) as clients:
        messages, _ = await messages_of(clients[0])
    assert sum(sent) > 8 * APPENDS // 5
    assert sorted(messages) == sorted(f"{number}-{turn}" for number in range(8) for turn in range(APPENDS // 5))


async def append_once(server: ServerProcess, mark: str) -> int:
    """The status of an append with this text as its key and message; 0 when the connection broke."""
    patch = [{"op": "add", "path": "/messages/-", "value": mark}]
    try:
        async with await Connection.open(server.port) as client:
            headers = {"Content_Type": "application/json-patch+json", "Idempotency_Key": mark}
            return (await send(client, "PATCH", SESSION, patch, **headers)).status
    except (OSError, EOFError):
        await asyncio.sleep(RETRY_SECONDS)
        return 0
