"""What a client does when the network or the server fails: it writes once, and takes no failure for None."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from chatstate import AsyncClient, Client
from chatstate.client import Conflict, Forbidden, TooManyRequests, Unauthorized, Unavailable, UnexpectedAnswer
from chatstate.client.calls import LONGEST_PAUSE_SECONDS
from tests.client.conftest import Connect, Pauses, scripted
from tests.servers.fault_proxy import FaultProxy
from tests.servers.ports import LOOPBACK, at_port, free_port
from tests.servers.postgres import PostgresServer
from tests.servers.process import ServerProcess

PROBLEM = "application/problem+json"


def problem(status: int, code: str, **members: object) -> bytes:
    return json.dumps({"status": status, "code": code, "detail": "so it is", **members}).encode()


def through(proxy: FaultProxy) -> str:
    return f"http://{LOOPBACK}:{proxy.port}"


async def test_a_write_whose_answer_is_lost_is_carried_out_once(
    connect: Connect, process: ServerProcess, new_id: str
) -> None:
    async with FaultProxy(LOOPBACK, process.port) as proxy, connect(through(proxy)) as client:
        proxy.cut_reply_to(b"POST ")
        saved = await client.save(new_id, {"messages": []})
        assert (saved.version, saved.created, saved.replayed) == (1, True, True)
        proxy.cut_reply_to(b"PATCH ", times=2)
        assert (await client.append(new_id, "/messages", "once")).version == 2
        proxy.cut_reply_to(b"POST ")
        await client.update(new_id, lambda state: {**state, "n": state.get("n", 0) + 1})
        proxy.cut_reply_to(b"POST ")
        async with client.edit(new_id) as state:
            state["messages"].append("once more")
        assert proxy.cuts == 5
        session = await client.load(new_id)
        assert session.state == {"messages": ["once", "once more"], "n": 1}
        proxy.cut_reply_to(b"DELETE ")
        assert await client.delete(new_id)


async def test_a_write_whose_answers_are_all_lost_has_an_unknown_outcome(
    connect: Connect, process: ServerProcess, new_id: str
) -> None:
    async with FaultProxy(LOOPBACK, process.port) as proxy, connect(through(proxy), retries=2) as client:
        proxy.cut_reply_to(b"POST ", times=3)
        with pytest.raises(Unavailable, match="may have been carried out") as lost:
            await client.save(new_id, 1)
        assert (lost.value.outcome, lost.value.status, lost.value.code) == ("unknown", None, "unreachable")
        assert isinstance(lost.value.__cause__, httpx.RequestError)
        assert (await client.load(new_id)).state == 1


async def test_a_server_that_is_away_is_never_an_empty_state(connect: Connect, new_id: str) -> None:
    async with connect(f"http://{LOOPBACK}:{free_port()}", retries=2) as client:
        with pytest.raises(Unavailable):
            await client.load(new_id)
        with pytest.raises(Unavailable) as failed:
            await client.save(new_id, 1)
        assert failed.value.outcome == "failed"
        with pytest.raises(Unavailable):
            async with client.edit(new_id):
                pytest.fail("nothing was loaded")
        with pytest.raises(Unavailable):
            await client.update(new_id, lambda state: pytest.fail("nothing was loaded"))


async def test_a_server_that_comes_back_is_asked_again(process: ServerProcess, new_id: str) -> None:
    async with FaultProxy(LOOPBACK, process.port) as proxy:
        paused = []

        async def waiting(seconds: float) -> None:
            paused.append(seconds)
            if len(paused) == 2:
                proxy.heal()

        proxy.refuse()
        async with AsyncClient(through(proxy), pause=waiting) as client:
            await client.save(new_id, 1)
        assert len(paused) == 2


async def test_what_is_saved_when_the_server_is_killed_is_there_afterwards(
    connect: Connect, own_process: ServerProcess, new_id: str
) -> None:
    async with connect(own_process.base_url, retries=0) as client:
        await client.save(new_id, {"n": 1})
        own_process.kill()
        with pytest.raises(Unavailable):
            await client.load(new_id)
        own_process.restart()
        assert (await client.load(new_id)).state == {"n": 1}


WRONG = [
    (404, b"<h1>Not Found</h1>", {"content_type": "text/html"}),
    (404, b"", {}),
    (404, b'{"detail": "Not Found"}', {"content_type": "application/json"}),
    (404, b'{"code": "session_not_found"}', {"content_type": "application/json"}),
    (404, problem(404, "not_found"), {"content_type": PROBLEM}),
    (404, b"not JSON", {"content_type": PROBLEM}),
    (200, b"<h1>Welcome</h1>", {"content_type": "text/html"}),
    (200, b"{}", {"content_type": "application/json", "etag": '"a"'}),
    (200, b"null", {"content_type": "application/json", "etag": '"a"'}),
    (200, b'{"chat_state": null, "last_activity": "2025-10-02T10:00:00Z"}', {"content_type": "application/json"}),
    (200, b'{"chat_state": "{}", "last_activity": "2025-10-02T10:00:00Z"}', {"content_type": "application/json"}),
    (200, b'{"chat_state": "{', {"content_type": "application/json", "etag": '"a"'}),
    (204, b"", {}),
    (304, b"", {}),
    (302, b"", {"location": "http://localhost/"}),
    (400, b"", {}),
    (412, b"", {}),
    (500, b"", {}),
    (500, problem(500, "internal_error"), {"content_type": PROBLEM}),
]


@pytest.mark.parametrize(("status", "body", "headers"), WRONG)
async def test_a_server_that_is_not_ours_is_never_an_empty_state(
    connect: Connect, status: int, body: bytes, headers: dict[str, str]
) -> None:
    with scripted(status, body, **headers) as server:
        async with connect(server.base_url) as client:
            with pytest.raises(UnexpectedAnswer) as wrong:
                await client.load("a")
            assert wrong.value.status == status
            with pytest.raises(UnexpectedAnswer):
                async with client.edit("a"):
                    pytest.fail("nothing was loaded")
            with pytest.raises(UnexpectedAnswer) as unsaved:
                await client.save("a", 1)
            assert unsaved.value.outcome == ("unknown" if status in (200, 500) else "failed")
            with pytest.raises(UnexpectedAnswer):
                await client.delete("a")
    assert all(method == "GET" for method, _, _ in server.requests[:2])


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (401, b"", Unauthorized),
        (403, b"<html>", Forbidden),
        (503, b"", Unavailable),
        (502, b"<html>", Unavailable),
        (503, problem(503, "store_busy"), Unavailable),
        (503, problem(503, "state_unreadable"), Unavailable),
        (503, problem(503, "outcome_unknown", outcome="unknown"), Unavailable),
    ],
)
async def test_failures_are_errors_of_their_kind(
    connect: Connect, status: int, body: bytes, kind: type[Exception]
) -> None:
    with scripted(status, body, content_type=PROBLEM) as server:
        async with connect(server.base_url, retries=1) as client:
            with pytest.raises(kind):
                await client.load("a")
            with pytest.raises(kind) as failed:
                await client.append("a", "/messages", 1, create={"messages": []})
    lasting = status in (401, 403) or b"state_unreadable" in body
    assert [method for method, _, _ in server.requests] == (
        ["GET", "PATCH"] if lasting else ["GET"] * 2 + ["PATCH"] * 2
    )
    unknown = status == 502 or b"outcome_unknown" in body
    assert failed.value.outcome == ("unknown" if unknown else "failed")  # type: ignore[attr-defined]


async def test_every_try_of_a_write_has_the_same_key_and_every_write_another_one() -> None:
    with scripted(503, problem(503, "store_busy"), content_type=PROBLEM, retry_after="1") as server:
        pauses = Pauses()
        async with AsyncClient(server.base_url, retries=2, pause=pauses.awaited) as client:
            for _ in range(2):
                with pytest.raises(Unavailable) as failed:
                    await client.save("a", 1)
                assert failed.value.retry_after == 1
        keys = [headers["Idempotency-Key"] for _, _, headers in server.requests]
    assert keys[:3] == keys[:1] * 3
    assert keys[3:] == keys[3:4] * 3
    assert keys[0] != keys[3]
    assert pauses == [1.0] * 4


def test_pauses_grow_and_are_spread() -> None:
    pauses = Pauses()
    with (
        Client(f"http://{LOOPBACK}:{free_port()}", retries=12, pause=pauses.blocking) as client,
        pytest.raises(Unavailable),
    ):
        client.load("a")
    assert len(pauses) == 12
    assert all(0.05 * 2**n <= pause <= 0.1 * 2**n for n, pause in enumerate(pauses[:6]))
    assert max(pauses) <= LONGEST_PAUSE_SECONDS
    assert len(set(pauses)) == 12


@pytest.mark.parametrize(("seconds", "tries"), [("1", 3), ("60", 1)])
async def test_a_short_limit_is_sat_out_and_a_long_one_is_an_error(connect: Connect, seconds: str, tries: int) -> None:
    body = problem(429, "too_many_requests")
    with scripted(429, body, content_type=PROBLEM, retry_after=seconds) as server:
        async with connect(server.base_url, retries=2) as client:
            with pytest.raises(TooManyRequests) as limited:
                await client.load("a")
        assert limited.value.retry_after == float(seconds)
        assert len(server.requests) == tries


async def test_a_conflict_whose_current_state_cannot_be_read_has_none(connect: Connect) -> None:
    body = problem(412, "precondition_failed", current={"chat_state": 1})
    with scripted(412, body, content_type=PROBLEM, etag='"a-1"') as server:
        async with connect(server.base_url) as client:
            with pytest.raises(Conflict) as conflict:
                await client.save("a", 1)
    assert (conflict.value.etag, conflict.value.current) == ('"a-1"', None)


async def test_a_database_that_is_away_is_never_an_empty_state(
    connect: Connect, own_postgres: PostgresServer, tmp_path: Path, new_id: str
) -> None:
    async with FaultProxy(own_postgres.host, own_postgres.port) as proxy:
        url = at_port(await own_postgres.create_database(), proxy.port)
        server = await asyncio.to_thread(ServerProcess(url, tmp_path).__enter__)
        try:
            async with connect(server.base_url, retries=1) as client:
                await client.save(new_id, {"messages": ["Hello"]})
                proxy.refuse()
                with pytest.raises(Unavailable) as away:
                    await client.load(new_id)
                assert (away.value.status, away.value.outcome) == (503, "failed")
                with pytest.raises(Unavailable):
                    async with client.edit(new_id):
                        pytest.fail("nothing was loaded")
                proxy.heal()
                assert (await client.load(new_id)).state == {"messages": ["Hello"]}
        finally:
            server.kill()
