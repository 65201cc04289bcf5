"""Watching a session: its state now, and what becomes of it, across broken connections and restarts."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from chatstate import AsyncClient, Client
from chatstate.client import Event, Gone, State, Unauthorized, Unavailable, UnexpectedAnswer
from tests.browser import bots
from tests.browser.dictation import dictating
from tests.client.conftest import Connect, scripted
from tests.http.credentials import make_key
from tests.servers.fault_proxy import FaultProxy
from tests.servers.ports import LOOPBACK, free_port
from tests.servers.postgres import poll_until
from tests.servers.process import ServerProcess

EVENT_SECONDS = 20.0


@asynccontextmanager
async def watching(client: Any, user_session_id: str, **options: Any) -> AsyncIterator[Any]:
    watch = client.watch(user_session_id, **options)
    try:
        yield watch
    finally:
        await watch.aclose()


async def event_of(watch: Any) -> Event:
    event: Event = await asyncio.wait_for(anext(watch), EVENT_SECONDS)
    return event


async def test_the_state_now_each_newer_one_and_its_end(client: Any, new_id: str) -> None:
    first = await client.save(new_id, {"n": 1})
    async with watching(client, new_id) as watch:
        event = await event_of(watch)
        assert isinstance(event, State)
        assert (event.id, event.state, event.etag, event.version) == (new_id, {"n": 1}, first.etag, 1)
        assert event.last_activity == first.last_activity
        second = await client.save(new_id, {"n": 2}, base=event)
        assert (await event_of(watch)).etag == second.etag  # type: ignore[union-attr]
        await client.patch(new_id, merge={"n": 3})
        assert (await event_of(watch)).state == {"n": 3}  # type: ignore[union-attr]
        await client.delete(new_id)
        assert await event_of(watch) == Gone(new_id, "deleted")
        await client.save(new_id, {"n": 4})
        assert (await event_of(watch)).state == {"n": 4}  # type: ignore[union-attr]


async def test_a_reply_that_is_being_written_is_no_event(connect: Connect, new_id: str, tmp_path: Path) -> None:
    shutil.copy(bots.__file__, tmp_path)
    url = f"sqlite:///{tmp_path}/chatstate.db"
    with ServerProcess(url, tmp_path, arguments=["--bot", "bots:obedient"]) as server:
        path = f"/chat-state-sessions/{quote(new_id, safe='')}"
        async with (
            dictating() as dictation,
            httpx.AsyncClient(base_url=server.base_url, timeout=EVENT_SECONDS) as http,
            connect(server.base_url) as client,
            watching(client, new_id) as watch,
            http.stream("GET", f"{path}/events") as feed,
        ):
            assert await event_of(watch) == Gone(new_id, "absent")
            lines = feed.aiter_lines()
            await http.post(f"{path}/messages", json={"id": "1", "text": f"stream {dictation.port}"})
            bot = await dictation.begun()
            for piece in ("Once", " upon", " a time"):
                bot.write(f"{piece}\n".encode())
                while f'"text":"{piece}"' not in await anext(lines):
                    pass
            bot.close()
            event = await event_of(watch)
            assert isinstance(event, State)
            assert [message["text"] for message in event.state["messages"]][1:] == ["Once upon a time"]
            assert event.version == 1


async def test_a_session_that_is_not_there_yet(client: Any, new_id: str) -> None:
    async with watching(client, new_id) as watch:
        assert await event_of(watch) == Gone(new_id, "absent")
        await client.save(new_id, text="no JSON")
        assert (await event_of(watch)).text == "no JSON"  # type: ignore[union-attr]


async def test_a_watch_goes_on_after_the_server_was_started_again(
    connect: Connect, own_process: ServerProcess, new_id: str
) -> None:
    """What is the same is not repeated; what has changed meanwhile comes first."""
    async with connect(own_process.base_url, retries=50) as client, watching(client, new_id) as watch:
        assert await event_of(watch) == Gone(new_id, "absent")
        await client.save(new_id, {"n": 1})
        assert (await event_of(watch)).version == 1  # type: ignore[union-attr]
        own_process.kill()
        await asyncio.to_thread(own_process.restart)
        await client.patch(new_id, merge={"n": 2})
        assert (await event_of(watch)).version == 2  # type: ignore[union-attr]
        await asyncio.to_thread(own_process.terminate)
        await asyncio.to_thread(own_process.restart)
        await client.delete(new_id)
        assert await event_of(watch) == Gone(new_id, "deleted")


async def test_what_was_written_while_it_was_cut_off_is_not_missed(
    connect: Connect, process: ServerProcess, client: Any, new_id: str
) -> None:
    await client.save(new_id, {"n": 1})
    async with FaultProxy(LOOPBACK, process.port) as proxy, connect(f"http://{LOOPBACK}:{proxy.port}") as far:
        async with watching(far, new_id) as watch:
            assert (await event_of(watch)).version == 1  # type: ignore[union-attr]
            proxy.refuse()
            await client.patch(new_id, merge={"n": 2})
            await client.patch(new_id, merge={"n": 3})
            proxy.heal()
            assert (await event_of(watch)).version == 3  # type: ignore[union-attr]
            proxy.refuse()
            await client.delete(new_id)
            proxy.heal()
            assert await event_of(watch) == Gone(new_id, "deleted")
            proxy.cut()  # what is gone is not told again
            await client.save(new_id, {"n": 4})
            assert (await event_of(watch)).state == {"n": 4}  # type: ignore[union-attr]


async def test_a_connection_that_has_fallen_silent_is_left(
    connect: Connect, process: ServerProcess, client: Any, new_id: str
) -> None:
    await client.save(new_id, {"n": 1})
    async with FaultProxy(LOOPBACK, process.port) as proxy, connect(f"http://{LOOPBACK}:{proxy.port}") as far:
        async with watching(far, new_id, silence=0.2) as watch:
            assert (await event_of(watch)).version == 1  # type: ignore[union-attr]
            proxy.blackhole()
            await client.patch(new_id, merge={"n": 2})
            waiting = asyncio.create_task(event_of(watch))
            connections = proxy.connections
            assert await asyncio.to_thread(poll_until, lambda: proxy.connections > connections, EVENT_SECONDS)
            proxy.heal()
            assert (await waiting).version == 2  # type: ignore[union-attr]


async def test_close_ends_it_for_who_waits(client: Any, new_id: str) -> None:
    watch = client.watch(new_id)
    assert await event_of(watch) == Gone(new_id, "absent")

    async def rest() -> list[Event]:
        return [event async for event in watch]

    waiting = asyncio.create_task(rest())
    await asyncio.sleep(0)
    await watch.aclose()
    assert await asyncio.wait_for(waiting, EVENT_SECONDS) == []
    await watch.aclose()


def test_the_end_of_a_client_ends_its_watches(process: ServerProcess, new_id: str) -> None:
    seen: list[Event] = []
    begun = threading.Event()
    with Client(process.base_url) as client:
        watch = client.watch(new_id)

        def read() -> None:
            for event in watch:
                seen.append(event)
                begun.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert begun.wait(EVENT_SECONDS)
    reader.join(EVENT_SECONDS)
    assert not reader.is_alive()
    assert seen == [Gone(new_id, "absent")]


def test_leaving_the_loop_frees_the_connection(process: ServerProcess, new_id: str) -> None:
    with Client(process.base_url) as client:
        with client.watch(new_id) as watch:
            assert next(watch) == Gone(new_id, "absent")
        assert list(watch) == []
        assert list(client._watches) == []


async def test_waiting_may_be_given_up_and_taken_up_again(process: ServerProcess, new_id: str) -> None:
    async with AsyncClient(process.base_url) as client, client.watch(new_id) as watch:
        assert await event_of(watch) == Gone(new_id, "absent")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(watch), 0.01)
        await client.save(new_id, 1)
        assert (await event_of(watch)).state == 1  # type: ignore[union-attr]


async def test_a_watch_needs_a_credential_and_asks_for_a_new_one(
    connect: Connect, own_process: ServerProcess, own_url: str, new_id: str
) -> None:
    key = await make_key(own_url, datetime.now(UTC))
    await asyncio.to_thread(own_process.terminate)
    await asyncio.to_thread(own_process.restart)
    async with connect(own_process.base_url, "cs_wrong") as client, watching(client, new_id) as watch:
        with pytest.raises(Unauthorized):
            await event_of(watch)
    given = iter(["cs_wrong", key])
    async with connect(own_process.base_url, lambda: next(given)) as client, watching(client, new_id) as watch:
        assert await event_of(watch) == Gone(new_id, "absent")


async def test_a_server_that_never_was_there_is_an_error(connect: Connect, new_id: str) -> None:
    async with connect(f"http://{LOOPBACK}:{free_port()}", retries=2) as client, watching(client, new_id) as watch:
        with pytest.raises(Unavailable):
            await event_of(watch)


@pytest.mark.parametrize(
    ("status", "body", "media_type"),
    [
        (404, b"<h1>Not Found</h1>", "text/html"),
        (200, b"{}", "application/json"),
        (200, b"event: state\ndata: {}\n\n", "text/event-stream"),
    ],
)
async def test_a_server_that_is_not_ours_is_an_error(
    connect: Connect, status: int, body: bytes, media_type: str
) -> None:
    with scripted(status, body, content_type=media_type) as server:
        async with connect(server.base_url) as client, watching(client, "a") as watch:
            with pytest.raises(UnexpectedAnswer):
                await event_of(watch)


STREAM = (
    b'\xef\xbb\xbf: a comment\r\nretry: 7000\r\n\r\nevent: state\rid: "a-1"\rdata: {"chat_state": "1",\r'
    b'data:"last_activity": "2025-10-02T10:00:00Z", "version": 1}\r\revent: unheard-of\ndata: {}\n\n'
    b'event: state\nid: "a-2"\ndata: {"chat_state": "2", "last_activity": "2025-10-02T10:00:00Z", "version": 2}\n\n'
    b"event: deleted\nid\ndata: {}\n\nevent: state\ndata: cut off"
)


async def test_streams_are_read_as_the_standard_says(connect: Connect) -> None:
    """WHATWG HTML, section 9.2.6: all line ends, comments, data in several lines, an event that was cut off."""
    with scripted(200, STREAM, content_type="text/event-stream") as server:
        async with connect(server.base_url) as client, watching(client, "a") as watch:
            events = [await event_of(watch) for _ in range(3)]
            await event_of(watch)  # of the next connection
    assert [getattr(event, "state", event) for event in events] == [1, 2, Gone("a", "deleted")]
    assert [headers.get("Last-Event-ID") for _, _, headers in server.requests[:2]] == [None, None]
