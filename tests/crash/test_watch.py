"""Watching through server processes: two on one database, killed, ended and started again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.http.event_stream import listening
from tests.servers.process import ServerProcess

SESSIONS = "/chat-state-sessions"


@pytest.fixture
def processes(store_url: str, tmp_path: Path) -> Iterator[list[ServerProcess]]:
    """Two servers on one database; twice the same one where the store is a file, which has one owner."""
    count = 1 if store_url.startswith("sqlite") else 2
    with ExitStack() as stack:
        folders = [tmp_path / str(number) for number in range(count)]
        for folder in folders:
            folder.mkdir()
        yield [stack.enter_context(ServerProcess(store_url, folder)) for folder in folders]


def save(server: ServerProcess, state: str) -> str:
    """Save the session `watched`; its ETag."""
    body = {"user_session_id": "watched", "chat_state": state}
    answer = httpx.post(f"{server.base_url}{SESSIONS}", json=body, timeout=20)
    assert answer.status_code in (200, 201)
    return answer.headers["etag"]


def test_what_one_server_has_acknowledged_the_watchers_of_another_see(processes: list[ServerProcess]) -> None:
    here, there = processes[0], processes[-1]
    with listening(here.port, "watched/events") as stream:
        assert stream.next() == ("absent", "", {})
        for number in range(30):
            tag = save(there, str(number))
            event = stream.next()
            assert event
            assert (event.id, event.state) == (tag, str(number))


def test_a_watcher_of_a_killed_server_goes_on_where_it_was(processes: list[ServerProcess]) -> None:
    here, there = processes[0], processes[-1]
    known = save(there, "0")
    for turn in range(4):
        with listening(here.port, "watched/events", {"Last-Event-ID": known}) as stream:
            seen = save(there, f"{turn} seen")
            assert stream.state() == f"{turn} seen"
            here.kill()
            here.restart()
            known = save(there, f"{turn} missed")
        with listening(here.port, "watched/events", {"Last-Event-ID": seen}) as stream:
            event = stream.next()
            assert event
            assert (event.id, event.state) == (known, f"{turn} missed")


def test_a_server_with_watchers_ends_at_once_and_in_order(processes: list[ServerProcess]) -> None:
    here = processes[0]
    with ExitStack() as stack:
        streams = [stack.enter_context(listening(here.port, f"watched{number}/events")) for number in range(50)]
        assert all(stream.next() for stream in streams)
        assert here.terminate(seconds=10) == 0
        assert [stream.next() for stream in streams] == [None] * 50
    assert "Stopped; everything that was accepted has been answered." in here.output
    assert "Traceback" not in here.output
