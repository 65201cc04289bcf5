"""What people write on web pages: taken, answered by the bot of the server, and told by the change feed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
from msgspec import json

from chatstate.bot import Turn
from chatstate.http.channels import MOST_TEXT
from chatstate.inbox import MOST_WAITING
from tests.http.conftest import Server, SettableClock, Start
from tests.http.credentials import UNLIMITED, bearer, claims_of, key_id_of, make_key, signer_of
from tests.http.event_stream import Event, EventStream, listening

SECONDS = 20.0


SLOWLY = "slowly"

read = threading.Event()
"""Set when a reply to that can go on."""


async def count(turn: Turn) -> None:
    turn.state["count"] = turn.state.get("count", 0) + 1
    await turn.reply(slowly() if turn.message.text == SLOWLY else f"{turn.state['count']}: {turn.message.text}")


async def slowly() -> AsyncIterator[str]:
    yield "being "
    yield "written"
    while not read.is_set():  # noqa: ASYNC110 - another thread does it
        await asyncio.sleep(0.01)
    yield " no more"


@pytest.fixture(scope="module")
def server(start: Start, store_url: str) -> Iterator[Server]:
    with start(store_url, bot=count) as running:
        yield running


def say(client: httpx.Client, session: str, message_id: str, text: str = "Hello", **given: Any) -> httpx.Response:
    body = {"id": message_id, "text": text}
    return client.post(f"/chat-state-sessions/{session}/messages", json=body, **given)


def answered(client: httpx.Client, session: str, turns: int) -> dict[str, Any]:
    """The state, once so many turns have changed it."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        answer = client.get(f"/chat-state-sessions/{session}")
        if answer.status_code == 200:
            state: dict[str, Any] = json.decode(answer.json()["chat_state"])
            if state["count"] >= turns:
                return state
    raise AssertionError(f"{session} was not answered")


def test_a_message_is_answered_in_the_state(client: httpx.Client, new_id: str) -> None:
    answer = say(client, new_id, "m1", "Grüße 😀")
    assert (answer.status_code, answer.json()) == (202, {"id": "m1", "duplicate": False})
    state = answered(client, new_id, 1)
    assert [entry["text"] for entry in state["messages"]] == ["Grüße 😀", "1: Grüße 😀"]


def test_a_message_that_is_sent_again_is_known(client: httpx.Client, new_id: str) -> None:
    for number in range(3):
        answer = say(client, new_id, "m1", "other" if number else "Hello")
        assert (answer.status_code, answer.json()["duplicate"]) == (202, number > 0)
    say(client, new_id, "m2")
    assert answered(client, new_id, 2)["count"] == 2


def test_the_answer_is_told_by_the_change_feed_of_each_server_as_it_is_written(
    server: Server, client: httpx.Client, new_id: str
) -> None:
    read.clear()
    with ExitStack() as stack:
        streams = [stack.enter_context(listening(server.port, f"{new_id}/events")) for _ in range(2)]
        assert [event.name for stream in streams if (event := stream.next())] == ["absent", "absent"]
        say(client, new_id, "m1", SLOWLY)
        told = [events_until(stream, lambda event: event.data["text"].endswith("written")) for stream in streams]
        read.set()
        for stream, events in zip(streams, told, strict=True):
            assert {event.name for event in events} == {"reply"}
            assert {event.data["id"] for event in events} == {"m1.1"}
            assert not events[0].data["continues"]
            assert "".join(event.data["text"] for event in events) == "being written"
            assert all(event.id is None for event in events)  # whoever comes back asks for states
            *_, last = events_until(stream, lambda event: event.name == "state")
            assert json.decode(last.state)["count"] == 1


def events_until(stream: EventStream, is_last: Callable[[Event], bool]) -> list[Event]:
    events: list[Event] = []
    while not events or not is_last(events[-1]):
        event = stream.next()
        assert event
        events.append(event)
    return events


@pytest.mark.parametrize(
    ("body", "member"),
    [
        ({"id": "m"}, "text"),
        ({"text": "Hello"}, "id"),
        ({"id": "", "text": "Hello"}, "id"),
        ({"id": "x" * 256, "text": "Hello"}, "id"),
        ({"id": "m\n", "text": "Hello"}, "id"),
        ({"id": "m", "text": " \n"}, "text"),
        ({"id": "m", "text": "a\0b"}, "text"),
        ({"id": "m", "text": "x" * (MOST_TEXT + 1)}, "text"),
        ({"id": 1, "text": ["x"]}, "id"),
    ],
)
def test_bad_messages_are_refused(client: httpx.Client, new_id: str, body: dict[str, Any], member: str) -> None:
    answer = client.post(f"/chat-state-sessions/{new_id}/messages", json=body)
    assert answer.status_code == 400
    assert member in [error["member"] for error in answer.json()["errors"]]


def test_a_lone_surrogate_is_refused(client: httpx.Client, new_id: str) -> None:
    body = rb'{"id": "m", "text": "\ud800"}'
    headers = {"Content-Type": "application/json"}
    answer = client.post(f"/chat-state-sessions/{new_id}/messages", content=body, headers=headers)
    assert answer.status_code == 400


def test_a_server_without_a_bot_says_so(start: Start, own_url: str) -> None:
    with start(own_url) as server, server.client() as client:
        answer = say(client, "s", "m1")
        assert (answer.status_code, answer.json()["code"]) == (404, "bot_not_found")
        assert "--bot" in answer.json()["detail"]


def test_a_token_is_for_its_own_session(start: Start, own_url: str) -> None:
    clock = SettableClock()
    key = asyncio.run(make_key(own_url, clock.now))
    signer = asyncio.run(signer_of(own_url, clock.now))
    with (
        start(own_url, clock=clock, bot=count, rates=UNLIMITED) as server,
        server.client() as client,
    ):
        own = bearer(signer.sign(claims_of("mine", clock.now, key_id_of(key), verbs=("read", "write"))))
        read_only = bearer(signer.sign(claims_of("mine", clock.now, key_id_of(key), verbs=("read",))))
        assert say(client, "mine", "m1", headers=own).status_code == 202
        assert say(client, "theirs", "m1", headers=own).status_code == 404
        assert say(client, "mine", "m2", headers=read_only).status_code == 403
        assert say(client, "mine", "m2").status_code == 401


@contextmanager
def busy(start: Start, url: str) -> Iterator[Server]:
    """A server whose bot goes on with its first messages until the block is left."""
    over = threading.Event()

    async def bot(_turn: Turn) -> None:
        await asyncio.to_thread(over.wait)

    with start(url, bot=bot, lease_seconds=1) as server:
        try:
            yield server
        finally:
            over.set()


def test_deleting_a_session_erases_what_waits_for_it(start: Start, own_url: str) -> None:
    with busy(start, own_url) as server, server.client(timeout=SECONDS) as client:
        assert say(client, "s", "m1", "a canary").status_code == 202
        waiting = client.get("/chat-state-sessions/s/export").json()["waiting_messages"]
        assert ("a canary" in waiting[0]["document"], waiting[0]["status"]) == (True, "pending")
        assert client.delete("/chat-state-sessions/s").status_code == 200
        assert client.get("/chat-state-sessions/s/export").status_code == 404
        assert client.delete("/chat-state-sessions/s").status_code == 404
        assert say(client, "s", "m1").json()["duplicate"] is True


def test_only_so_many_messages_wait(start: Start, own_url: str) -> None:
    with busy(start, own_url) as server, server.client(timeout=SECONDS) as client:
        statuses = [say(client, "s", f"m{number}").status_code for number in range(MOST_WAITING + 1)]
        assert statuses == [202] * MOST_WAITING + [429]
        assert say(client, "other", "m").status_code == 202
