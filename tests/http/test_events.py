"""The change feed over HTTP, on each store, and on any ASGI server."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from chatstate import access, create_app, create_store, live
from chatstate.errors import StoreUnavailable
from chatstate.http import events
from chatstate.http.gate import Rates
from chatstate.keys import Keys
from chatstate.stores import Store
from tests.http.conftest import Serve, Server, SettableClock, Start
from tests.http.credentials import UNLIMITED, bearer, beside, key_id_of, make_key
from tests.http.event_stream import listening

SESSIONS = "/chat-state-sessions"


@pytest.fixture(scope="module", autouse=True)
def _often() -> Iterator[None]:
    """What servers do every few seconds, they do more often here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "INTERVAL_SECONDS", 0.2)
        patch.setattr(access, "INTERVAL_SECONDS", 0.2)
        yield


def save(client: httpx.Client, user_session_id: str, state: str, **headers: str) -> str:
    """Save; the ETag."""
    answer = client.post(SESSIONS, json={"user_session_id": user_session_id, "chat_state": state}, headers=headers)
    assert answer.status_code in (200, 201)
    return answer.headers["etag"]


def test_the_current_state_comes_first_and_then_each_new_one(server: Server, client: httpx.Client, new_id: str) -> None:
    text = 'a\nb\r "quoted" \u2028 Grüße 😀'
    tag = save(client, new_id, text)
    with listening(server.port, f"{new_id}/events") as stream:
        assert stream.status == 200
        assert stream.headers["content-type"] == "text/event-stream"
        assert (stream.headers["cache-control"], stream.headers["x-accel-buffering"]) == ("no-store", "no")
        assert stream.block() == "retry: 2000"
        event = stream.next()
        assert event
        loaded = client.get(f"{SESSIONS}/{new_id}").json()
        assert event == ("state", tag, {**loaded, "version": 1})
        assert event.state == text
        for version in range(2, 5):
            tag = save(client, new_id, str(version))
            event = stream.next()
            assert event
            assert (event.id, event.state, event.data["version"]) == (tag, str(version), version)


def test_each_kind_of_write_is_told(server: Server, client: httpx.Client, new_id: str) -> None:
    with listening(server.port, f"{new_id}/events") as stream:
        absent = stream.next()
        assert absent == ("absent", "", {})
        save(client, new_id, '{"n":1}')
        assert stream.state() == '{"n":1}'
        client.put(f"{SESSIONS}/{new_id}", json={"chat_state": '{"n":2}'})
        assert stream.state() == '{"n":2}'
        client.put(f"{SESSIONS}/{new_id}", json={"last_activity": "2025-10-02T10:00:00Z"})
        event = stream.next()
        assert event
        assert event.data == {"chat_state": '{"n":2}', "last_activity": "2025-10-02T10:00:00Z", "version": 3}
        patch = {"Content-Type": "application/merge-patch+json"}
        client.patch(f"{SESSIONS}/{new_id}", content='{"n":3}', headers=patch)
        assert stream.state() == '{"n":3}'
        client.delete(f"{SESSIONS}/{new_id}")
        assert stream.next() == ("deleted", "", {})
        save(client, new_id, "again")
        assert stream.state() == "again"


def test_a_write_that_changes_nothing_is_not_told(server: Server, client: httpx.Client, new_id: str) -> None:
    save(client, new_id, "first")
    with listening(server.port, f"{new_id}/events") as stream:
        assert stream.state() == "first"
        body = {"user_session_id": new_id, "chat_state": "refused"}
        assert client.post(SESSIONS, json=body, headers={"If-None-Match": "*"}).status_code == 412
        client.get(f"{SESSIONS}/{new_id}")
        save(client, f"{new_id}-of-others", "other")
        save(client, new_id, "second")
        assert stream.state() == "second"


@pytest.mark.parametrize(
    "known", ["", "garbage", '"garbage"', 'W/"x-1"', '"0b8b9d5c-6f5e-4f0e-9a59-1c7d3c1f2a44-99"', "é" * 99]
)
def test_who_comes_back_with_an_id_that_is_not_current_gets_the_newest_state(
    server: Server, client: httpx.Client, new_id: str, known: str
) -> None:
    save(client, new_id, "first")
    save(client, new_id, "second")
    with listening(server.port, f"{new_id}/events", {"Last-Event-ID": known}) as stream:
        assert stream.state() == "second"


def test_who_comes_back_gets_what_they_have_missed_and_nothing_twice(
    server: Server, client: httpx.Client, new_id: str
) -> None:
    tag = save(client, new_id, "first")
    with listening(server.port, f"{new_id}/events", {"Last-Event-ID": tag}) as stream:
        newer = save(client, new_id, "second")
        assert stream.state() == "second"  # and "first" did not come
    with listening(server.port, f"{new_id}/events", {"Last-Event-ID": tag}) as stream:
        event = stream.next()
        assert event
        assert (event.id, event.state) == (newer, "second")
    client.delete(f"{SESSIONS}/{new_id}")
    with listening(server.port, f"{new_id}/events", {"Last-Event-ID": newer}) as stream:
        assert stream.next() == ("deleted", "", {})
    save(client, new_id, "again")
    with listening(server.port, f"{new_id}/events", {"Last-Event-ID": newer}) as stream:
        assert stream.state() == "again"


def test_a_reader_that_is_dropped_at_random_misses_no_newest_state(
    server: Server, client: httpx.Client, new_id: str
) -> None:
    """Test 28 of thirty: drop the connection again and again while somebody writes."""
    seen, known = [], ""
    for turn in range(20):
        with listening(server.port, f"{new_id}/events", {"Last-Event-ID": known}) as stream:
            for number in range(turn % 4):
                save(client, new_id, f"{turn}.{number}")
            tag = save(client, new_id, f"{turn}")
            while known != tag:
                event = stream.next()
                assert event
                if event.name == "state":
                    seen.append(event.data["version"])
                    known = str(event.id)
        save(client, new_id, f"{turn} while nobody listens")
    assert seen == sorted(set(seen))


def test_a_slow_reader_gets_the_newest_state_alone(server: Server, client: httpx.Client, new_id: str) -> None:
    """All that is held for it is what the sockets hold, and one state."""
    large = "x" * 900_000
    save(client, new_id, "first")
    with listening(server.port, f"{new_id}/events") as stream:
        assert stream.state() == "first"
        for version in range(40):
            save(client, new_id, f"{large}{version}")
        save(client, new_id, "last")
        states = []
        while not states or states[-1] != "last":
            states.append(stream.state())
        assert len(states) < 30


def test_a_head_request_is_answered_at_once(server: Server, client: httpx.Client, new_id: str) -> None:
    for _ in range(3):
        answer = client.head(f"{SESSIONS}/{new_id}/events")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")


def test_an_id_that_cannot_be_is_400(client: httpx.Client) -> None:
    assert client.get(f"{SESSIONS}/%00/events").status_code == 400


def test_expiry_is_told(server: Server, client: httpx.Client, new_id: str) -> None:
    body = {"user_session_id": new_id, "chat_state": "short", "expires_in_seconds": 60}
    client.post(SESSIONS, json=body)
    with listening(server.port, f"{new_id}/events") as stream:
        assert stream.state() == "short"
        server.clock.advance(seconds=60)
        assert stream.next() == ("expired", "", {})


# --- Ends -------------------------------------------------------------------------------------------------------------


def watchers(server: Server, user_session_id: str) -> int:
    return sum(app._live.count(user_session_id) for app in server.apps)


def end_streams(server: Server) -> None:
    for app in server.apps:
        app.end_streams()


def until(what: Callable[[], object], expected: object) -> None:
    """Wait until it gives this."""
    end = time.monotonic() + 20
    while what() != expected:
        assert time.monotonic() < end
        time.sleep(0.005)


def test_nothing_is_left_of_those_who_have_gone(server: Server, new_id: str) -> None:
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(listening(server.port, f"{new_id}/events")).next()
        until(lambda: watchers(server, new_id), 20)
    until(lambda: watchers(server, new_id), 0)
    assert not any(new_id in app._live._topics for app in server.apps)


@pytest.fixture
def quiet(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server on our own protocol whose streams say nothing by themselves."""
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 600)
    with serve(create_app(create_store(f"sqlite:///{tmp_path}/chatstate.db"))) as server:
        yield server


@pytest.mark.parametrize("query", ["", "?again=1"])
def test_who_hangs_up_has_gone_at_once(quiet: Server, query: str) -> None:
    for _ in range(3):
        with listening(quiet.port, f"a/events{query}") as stream:
            assert stream.next() == ("absent", "", {})
            until(lambda: watchers(quiet, "a"), 1)
        until(lambda: watchers(quiet, "a"), 0)


HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("together", [False, True])
def test_a_request_behind_a_stream_ends_it_and_is_answered(
    quiet: Server, together: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It waited for ever, and hid the end of the connection: the watcher stayed."""
    first = f"GET {SESSIONS}/a/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", quiet.port), timeout=20) as connection:
            answer = connection.makefile("rb")
            connection.sendall(first + HEALTH if together else first)
            if not together:
                until(lambda: watchers(quiet, "a"), 1)
                connection.sendall(HEALTH)
            seen = [
                next(line for line in answer if line.startswith(what)) for what in (b"HTTP", b"event", b"0\r", b"HTTP")
            ]
            assert seen == [b"HTTP/1.1 200 OK\r\n", b"event: absent\n", b"0\r\n", b"HTTP/1.1 200 OK\r\n"]
        until(lambda: watchers(quiet, "a"), 0)
    assert not caplog.records


def test_the_end_of_the_server_ends_streams_in_order(start: Start, own_url: str, new_id: str) -> None:
    with ExitStack() as stack, start(own_url) as server:
        stream = stack.enter_context(listening(server.port, f"{new_id}/events"))
        assert stream.next()
        end_streams(server)
        assert stream.next() is None  # the last chunk has come: it was not cut off


def test_a_heartbeat_comes_when_nothing_else_does(server: Server, new_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.02)
    with listening(server.port, f"{new_id}/events") as stream:
        assert stream.next() == ("absent", "", {})
        assert [stream.next(comments=True) for _ in range(3)] == [("", None, None)] * 3


# --- Credentials ------------------------------------------------------------------------------------------------------


@dataclass
class Keyed:
    """A keyed server, a client that shows a key for everything, and the text of that key."""

    server: Server
    client: httpx.Client
    key: str

    def token(self, user_session_id: str, **body: Any) -> str:
        answer = self.client.post("/tokens", json={"user_session_id": user_session_id, **body})
        assert answer.status_code == 201
        return str(answer.json()["token"])


@pytest.fixture
def keyed(start: Start, own_url: str) -> Iterator[Keyed]:
    clock = SettableClock()
    key = asyncio.run(make_key(own_url, clock.now))
    rates = Rates(0, 0, 0, 0, watchers_per_session=3)
    with (
        start(own_url, clock=clock, rates=rates) as server,
        server.client(headers=bearer(key), timeout=20) as client,
    ):
        yield Keyed(server, client, key)


def test_http_1_0_gets_one_event(keyed: Keyed, new_id: str) -> None:
    """It knows no body that comes in pieces, and an ASGI server would collect them for ever."""
    save(keyed.client, new_id, "first")
    with listening(keyed.server.port, f"{new_id}/events", bearer(keyed.key), version="1.0") as stream:
        assert stream.state() == "first"
        assert stream.next() is None


def test_a_stream_ends_when_its_token_has_expired_and_tells_nothing_more(keyed: Keyed, new_id: str) -> None:
    save(keyed.client, new_id, "first")
    token = keyed.token(new_id, ttl_seconds=60)
    with listening(keyed.server.port, f"{new_id}/events", bearer(token)) as stream:
        assert stream.state() == "first"
        keyed.server.clock.advance(seconds=59)
        save(keyed.client, new_id, "while it is valid")
        assert stream.state() == "while it is valid"
        keyed.server.clock.advance(seconds=1)
        save(keyed.client, new_id, "secret")
        assert stream.next() is None


def test_a_stream_ends_when_the_tokens_of_its_session_are_revoked(keyed: Keyed, new_id: str) -> None:
    save(keyed.client, new_id, "first")
    token = keyed.token(new_id)
    with listening(keyed.server.port, f"{new_id}/events", bearer(token)) as stream:
        assert stream.state() == "first"
        assert keyed.client.delete(f"{SESSIONS}/{new_id}/tokens").status_code == 200
        refused_everywhere(keyed, new_id, token)
        save(keyed.client, new_id, "secret")
        assert stream.next() is None


def refused_everywhere(keyed: Keyed, new_id: str, credential: str) -> None:
    """Wait until each of the servers, which are asked in turn, has noticed that this credential is void."""

    def statuses() -> set[int]:
        asked = [keyed.client.get(f"{SESSIONS}/{new_id}", headers=bearer(credential)) for _ in keyed.server.apps]
        return {answer.status_code for answer in asked}

    until(statuses, {401})


def tells_nothing_after(keyed: Keyed, own_url: str, new_id: str, end: Callable[[Keys, str], Awaitable[object]]) -> None:
    """Watch with a key of its own, which comes to this end."""
    key = asyncio.run(make_key(own_url, keyed.server.clock.now))
    save(keyed.client, new_id, "first")
    with listening(keyed.server.port, f"{new_id}/events", bearer(key)) as stream:
        assert stream.state() == "first"

        async def come_to_its_end(store: Store) -> None:
            await end(Keys(store), key_id_of(key))

        asyncio.run(beside(own_url, come_to_its_end))
        refused_everywhere(keyed, new_id, key)
        save(keyed.client, new_id, "secret")
        assert stream.next() is None


def test_a_stream_ends_when_its_key_is_revoked(keyed: Keyed, own_url: str, new_id: str) -> None:
    tells_nothing_after(keyed, own_url, new_id, lambda keys, key_id: keys.revoke(key_id, keyed.server.clock.now))


@pytest.mark.parametrize("grace", [timedelta(0), timedelta(minutes=5)])
def test_a_stream_ends_when_the_secret_of_its_key_does(
    keyed: Keyed, own_url: str, new_id: str, grace: timedelta
) -> None:
    """The key lives on, with another secret."""

    async def rotate(keys: Keys, key_id: str) -> None:
        await keys.rotate(key_id, keyed.server.clock.now, grace)
        keyed.server.clock.advance(seconds=300)

    tells_nothing_after(keyed, own_url, new_id, rotate)


def test_a_stream_ends_when_nobody_can_know_who_may_come_in(
    keyed: Keyed, new_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.02)
    save(keyed.client, new_id, "first")
    with listening(keyed.server.port, f"{new_id}/events", bearer(keyed.key)) as stream:
        assert stream.state() == "first"

        async def unreadable() -> None:
            raise StoreUnavailable

        for app in keyed.server.apps:
            monkeypatch.setattr(app.access, "_read", unreadable)
        monkeypatch.setattr(access, "STALE_SECONDS", 0)
        assert stream.next() is None


def test_watching_an_open_server_leaves_no_trace_of_keys(
    start: Start, own_url: str, new_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.02)
    with start(own_url) as server:
        with listening(server.port, f"{new_id}/events") as stream:
            assert [stream.next(comments=True) for _ in range(3)]
        assert not any(app.access._used for app in server.apps)


def test_an_open_stream_ends_when_the_server_gets_its_first_key(start: Start, own_url: str, new_id: str) -> None:
    with start(own_url, rates=UNLIMITED) as server, listening(server.port, f"{new_id}/events") as stream:
        assert stream.next() == ("absent", "", {})
        key = asyncio.run(make_key(own_url, server.clock.now))
        with server.client(timeout=20) as client:
            until(lambda: {client.get(f"{SESSIONS}/{new_id}").status_code for _ in server.apps}, {401})
            save(client, new_id, "secret", **bearer(key))
        assert stream.next() is None


@pytest.mark.parametrize("by_token", [False, True])
def test_a_session_of_others_looks_like_one_that_is_not_there(
    keyed: Keyed, own_url: str, new_id: str, by_token: bool
) -> None:
    key = asyncio.run(make_key(own_url, keyed.server.clock.now, id_prefix="mine_"))
    fields = bearer(keyed.token("mine_other") if by_token else key)
    save(keyed.client, new_id, "secret")
    with (
        listening(keyed.server.port, f"{new_id}/events", fields) as theirs,
        listening(keyed.server.port, f"{new_id}-absent/events", fields) as absent,
    ):
        for headers in (theirs.headers, absent.headers):
            headers.pop("date")
        assert theirs.headers == absent.headers
        assert theirs.next() == absent.next() == ("absent", "", {})
        save(keyed.client, new_id, "secret")
        assert watchers(keyed.server, new_id) == 0
        end_streams(keyed.server)
        assert theirs.next() is absent.next() is None  # nothing has come before the end


def test_one_session_has_a_bounded_number_of_watchers(keyed: Keyed, new_id: str) -> None:
    with ExitStack() as stack:
        most = 3 * len(keyed.server.apps)  # each server counts for itself
        for _ in range(most):
            stream = stack.enter_context(listening(keyed.server.port, f"{new_id}/events", bearer(keyed.key)))
            assert stream.next()
        until(lambda: watchers(keyed.server, new_id), most)
        answer = keyed.client.get(f"{SESSIONS}/{new_id}/events")
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_requests")
        assert int(answer.headers["retry-after"]) > 0
        with listening(keyed.server.port, f"{new_id}-other/events", bearer(keyed.key)) as other:
            assert other.next()
    until(lambda: watchers(keyed.server, new_id), 0)
    with listening(keyed.server.port, f"{new_id}/events", bearer(keyed.key)) as stream:
        assert stream.next()


def test_many_at_once_are_no_more_watchers_than_may_be(keyed: Keyed, new_id: str) -> None:
    """They are counted when it is known what they get; also those who do not read it."""
    save(keyed.client, new_id, "x" * 1_000_000)
    lines = f"GET {SESSIONS}/{new_id}/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {keyed.key}\r\n\r\n"
    with ExitStack() as stack:
        sockets = []
        for _ in range(30):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(20)
            connection.connect(("127.0.0.1", keyed.server.port))
            sockets.append(connection)
        for connection in sockets:
            connection.sendall(lines.encode())
        statuses = [connection.recv(12) for connection in sockets]
        most = 3 * len(keyed.server.apps)
        assert statuses.count(b"HTTP/1.1 200") == most
        assert statuses.count(b"HTTP/1.1 429") == 30 - most
        assert watchers(keyed.server, new_id) == most
    until(lambda: watchers(keyed.server, new_id), 0)


def test_0_is_no_limit(start: Start, own_url: str, new_id: str) -> None:
    key = asyncio.run(make_key(own_url, SettableClock().now))
    with (
        start(own_url, rates=Rates(0, 0, 0, 0, watchers_per_session=0)) as server,
        listening(server.port, f"{new_id}/events", bearer(key)) as stream,
    ):
        assert stream.next() == ("absent", "", {})
