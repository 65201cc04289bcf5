"""The load generator against real small servers: does it send, understand and count as it should?"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from time import perf_counter

import httptools
import pytest

from bench import load
from bench.apis import APIS
from bench.load import COUNTING, Answer, Result, Spec, perform
from bench.requests import MARK, MESSAGE_BYTES, Requests, states
from tests.bench.small_server import Asked, SmallServer, always, answer, chunked, serving

STATE_BYTES = 200
ENOUGH = b"x" * STATE_BYTES


def spec(server: SmallServer, **changes: object) -> Spec:
    """A short run."""
    values: dict[str, object] = {
        "port": server.port,
        "connections": 4,
        "sessions": 10,
        "state_bytes": STATE_BYTES,
        "warmup": 0.02,
        "seconds": 0.1,
    }
    return Spec(**{**values, **changes})  # type: ignore[arg-type]


# --- Answers ----------------------------------------------------------------------------------------------------------

ANSWERS = {
    "length": (answer(b"four"), 200, 4),
    "capitals": (b"HTTP/1.1 201 Created\r\nCONTENT-LENGTH:3\r\nA: b\r\n\r\nabc", 201, 3),
    "empty": (answer(b"", b"404 Not Found"), 404, 0),
    "no content": (b"HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n", 204, 0),
    "chunks": (chunked(b"some", b"t" * 300), 200, 304),
    "no chunk": (chunked(), 200, 0),
    "extension": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;a=b\r\nok\r\n0\r\nT: x\r\n\r\n", 200, 2),
    "line ends": (chunked(b"\r\n0\r\n\r\n"), 200, 7),
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("piece", [1, 2, 3, 7, 10_000])
def test_answers_in_pieces_of_any_size(name: str, piece: int) -> None:
    data, status, size = ANSWERS[name]
    reader = Answer()
    for _ in range(2):  # the second one as the first
        pieces = [data[start : start + piece] for start in range(0, len(data), piece)]
        assert [reader.feed(part) for part in pieces] == [False] * (len(pieces) - 1) + [True]
        assert (reader.status, reader.size) == (status, size)


@pytest.mark.parametrize(
    "data",
    [
        answer(b"one") + b"HTTP",
        b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
        b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"x" * 70_000,
    ],
)
def test_what_is_no_answer_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        Answer().feed(data)


def test_the_last_answer_of_a_connection() -> None:
    reader = Answer()
    assert reader.feed(answer(b"", headers=b"Connection: close\r\n"))
    assert reader.last
    assert reader.feed(answer(b""))
    assert not reader.last


# --- Requests ---------------------------------------------------------------------------------------------------------


class Parsed:
    """What a strict parser of HTTP finds in a request."""

    def __init__(self, data: bytes) -> None:
        self.body, self.complete = b"", 0
        self.fields: dict[bytes, bytes] = {}
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete += 1


@pytest.mark.parametrize("api", APIS)
def test_requests_are_http_and_every_state_is_a_new_one(api: str) -> None:
    requests = Requests(APIS[api], 600, seed=1)
    bodies = [Parsed(requests.save(number % 7)) for number in range(200)]
    assert all(parsed.complete == 1 and parsed.parser.should_keep_alive() for parsed in bodies)
    texts = [find_state(json.loads(parsed.body)) for parsed in bodies]
    assert len(set(texts)) == 200
    assert {len(text.encode()) for text in texts} == {600}
    assert all("messages" in json.loads(text) for text in texts)
    assert Parsed(requests.load(3)).complete == 1
    assert Parsed(APIS[api].fill(3, "{}")).complete == 1


def test_every_key_is_another_one() -> None:
    def keys(requests: Requests) -> set[bytes]:
        saves = [Parsed(requests.keyed(number % 3)) for number in range(50)]
        assert all(len(find_state(json.loads(save.body)).encode()) == 600 for save in saves)
        return {save.fields[b"idempotency-key"] for save in saves}

    first, second = keys(Requests(APIS["chatstate"], 600, seed=1)), keys(Requests(APIS["chatstate"], 600, seed=1))
    assert len(first | second) == 100  # also from run to run: a server remembers them


def test_an_append_is_a_json_patch_with_a_message() -> None:
    requests = Requests(APIS["chatstate"], 600, seed=1)
    patches = [Parsed(requests.append(number)) for number in range(10)]
    assert all(patch.complete == 1 for patch in patches)
    assert {patch.fields[b"content-type"] for patch in patches} == {b"application/json-patch+json"}
    operations = [operation for patch in patches for operation in json.loads(patch.body)]
    assert {(operation["op"], operation["path"]) for operation in operations} == {("add", "/messages/-")}
    messages = [json.dumps(operation["value"], separators=(",", ":")) for operation in operations]
    assert len(set(messages)) == 10
    assert {len(message) for message in messages} == {MESSAGE_BYTES}


def find_state(body: dict[str, object]) -> str:
    """Where each Api keeps it."""
    inner = body.get("data", body)
    assert isinstance(inner, dict)
    return str(inner["chat_state"])


@pytest.mark.parametrize("size", [80, 200, 4096, 65_536])
def test_states_have_the_size_that_is_asked_for(size: int) -> None:
    texts = states(size)
    assert {len(text.encode()) for text in texts} == {size}
    assert all(text.count(MARK) == 1 and "messages" in json.loads(text) for text in texts)
    assert len(set(texts)) == len(texts) or size == 80


# --- Runs -------------------------------------------------------------------------------------------------------------


async def test_a_closed_loop_counts_what_was_answered() -> None:
    async with serving(always(answer(ENOUGH))) as server:
        result = await perform(spec(server, mix="half"))
        assert server.connections == 4
        asked = Counter(asked.method for asked in server.asked)
    assert result.errors == 0
    assert result.saves is not None
    assert result.loads is not None
    assert result.requests == result.saves.requests + result.loads.requests
    assert 0 < result.saves.requests <= asked[b"POST"]
    assert 0 < result.loads.requests <= asked[b"GET"]
    assert result.rate == result.requests / result.seconds
    assert 0 < result.saves.p50 <= result.saves.p90 <= result.saves.p99 <= result.saves.p999 <= result.saves.max
    assert result.cpu_seconds > 0


@pytest.mark.parametrize(("mix", "method"), [("save", b"POST"), ("load", b"GET")])
async def test_a_mix_of_one_kind(mix: str, method: bytes) -> None:
    async with serving(always(chunked(ENOUGH[:50], ENOUGH[50:]))) as server:
        result = await perform(spec(server, mix=mix))
        assert {asked.method for asked in server.asked} == {method}
        assert len({asked.path for asked in server.asked}) == (1 if mix == "save" else 10)
    assert result.errors == 0
    assert (result.saves is None, result.loads is None) == (mix == "load", mix == "save")


async def test_answers_byte_by_byte() -> None:
    async def write(_: Asked, writer: asyncio.StreamWriter) -> None:
        for byte in answer(ENOUGH):
            writer.write(bytes([byte]))
            await asyncio.sleep(0)

    async with serving(write) as server:
        result = await perform(spec(server))
    assert result.errors == 0
    assert result.requests


@pytest.mark.parametrize(
    ("data", "example"),
    [
        (answer(b"no", b"500 Internal Server Error"), "500 Internal"),
        (answer(b"", b"302 Found"), "302 Found"),
        (answer(b"short"), "answered with 5 bytes"),
        (answer(ENOUGH) * 2, "more came than one answer"),
        (b"nonsense\r\n\r\n", "not an answer"),
    ],
)
async def test_bad_answers_are_errors_and_nothing_else(data: bytes, example: str) -> None:
    async with serving(always(data)) as server:
        result = await perform(spec(server, mix="load"))
    assert result.requests == 0
    assert result.errors
    assert example in result.example


async def test_connections_that_break_are_errors_and_replaced() -> None:
    async def every_second(_: Asked, writer: asyncio.StreamWriter) -> None:
        if len(server.asked) % 2:
            writer.write(answer(ENOUGH))
        else:
            writer.close()

    async with serving(every_second) as server:
        result = await perform(spec(server))
        assert server.connections > 4
    assert result.requests
    assert result.errors
    assert "the connection broke" in result.example


async def test_a_server_may_close_after_an_answer() -> None:
    async def answer_and_close(_: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(ENOUGH, headers=b"Connection: close\r\n"))
        writer.close()

    async with serving(answer_and_close) as server:
        result = await perform(spec(server))
        assert server.connections >= result.requests
    assert result.errors == 0
    assert result.requests


async def test_a_run_that_is_held_up_before_it_counts_lasts_as_long_all_the_same() -> None:
    """A machine that stood still for the whole of a short run made one of two microseconds, without a request."""
    held_up = False

    async def answer_late(_: Asked, writer: asyncio.StreamWriter) -> None:
        nonlocal held_up
        if not held_up:
            held_up = True
            until = perf_counter() + 0.3
            while perf_counter() < until:  # the load's event loop is this one
                pass
        writer.write(answer(ENOUGH))

    async with serving(answer_late) as server:
        wanted = spec(server)
        result = await perform(wanted)
    assert result.seconds > wanted.seconds / 2
    assert result.requests


async def test_a_run_that_is_held_up_while_it_counts_has_the_answer_that_comes_then() -> None:
    """A disk that stood still for the whole of a short run made one without a request, and the bench failed."""
    released = asyncio.Event()

    async def answer_late(_: Asked, writer: asyncio.StreamWriter) -> None:
        await released.wait()
        writer.write(answer(ENOUGH))

    async with serving(answer_late) as server:
        wanted = spec(server)
        asyncio.get_running_loop().call_later(wanted.warmup + wanted.seconds + 0.2, released.set)
        result = await perform(wanted)
    assert (result.requests, result.errors) == (1, 0)
    assert result.seconds > wanted.seconds


async def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "GRACE_SECONDS", 0.1)

    async def answer_never(_: Asked, writer: asyncio.StreamWriter) -> None:
        await writer.wait_closed()

    async with serving(answer_never) as server:
        result = await perform(spec(server))
    assert (result.requests, result.errors) == (0, 4)
    assert "after the end" in result.example


async def test_a_server_that_is_not_there() -> None:
    async with serving(always(b"")) as server:
        pass
    result = await perform(spec(server))
    assert (result.requests, result.rate) == (0, 0)
    assert "cannot connect" in result.example


class Versions:
    """A server of sessions that have nothing but versions, and refuses what If-Match does not allow."""

    def __init__(self) -> None:
        self.versions: Counter[str] = Counter()
        self.refused = 0

    async def __call__(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        name = asked.path.decode().rpartition("/")[2]
        if asked.method == b"POST":
            await asyncio.sleep(0)  # others may come in between
            name = json.loads(asked.body)["user_session_id"]
            if asked.fields.get(b"if-match") != self.tag(name):
                self.refused += 1
                writer.write(answer(b"", b"412 Precondition Failed"))
                return
            self.versions[name] += 1
        writer.write(answer(ENOUGH, headers=b"etag: %s\r\n" % self.tag(name)))

    def tag(self, name: str) -> bytes:
        return f'"{name}-{self.versions[name]}"'.encode()


async def test_a_conditional_save_has_the_current_tag() -> None:
    versions = Versions()
    async with serving(versions) as server:
        result = await perform(spec(server, mix="conditional", sessions=5))
        asked = Counter(asked.method for asked in server.asked)
    assert (result.errors, versions.refused) == (0, 0)
    assert result.saves is not None
    assert 0 < result.saves.requests <= asked[b"POST"] == versions.versions.total()
    assert len(versions.versions) == asked[b"GET"] == 5  # each was loaded once, for its first tag
    assert max(versions.versions.values()) > 1


async def test_without_tags_there_is_nothing_to_save() -> None:
    async with serving(always(answer(b"", b"404 Not Found"))) as server:
        result = await perform(spec(server, mix="conditional"))
        assert {asked.method for asked in server.asked} == {b"GET"}
    assert (result.requests, result.rate) == (0, 0)
    assert "404" in result.example


async def test_the_bytes_on_the_wire_are_counted() -> None:
    reply = chunked(ENOUGH, b"more")
    async with serving(always(reply)) as server:
        result = await perform(spec(server, mix="load"))
    request = APIS["chatstate"].load(0)
    assert result.wire_bytes == result.requests * (len(request) + len(reply))


async def test_an_open_loop_keeps_its_rate() -> None:
    async with serving(always(answer(ENOUGH))) as server:
        result = await perform(spec(server, loop="open", rate=2000.0, seconds=0.5))
    assert result.errors == 0
    assert 1500 < result.rate < 2500  # 2000 ± 8 standard deviations


async def test_an_open_loop_counts_from_the_arrival() -> None:
    """The server answers nothing until many more requests have arrived than there are connections."""
    released = asyncio.Event()

    async def stalled(_: Asked, writer: asyncio.StreamWriter) -> None:
        if len(server.asked) == 1:
            asyncio.get_running_loop().call_later(0.4, released.set)
        await released.wait()
        writer.write(answer(ENOUGH))

    async with serving(stalled) as server:
        result = await perform(spec(server, loop="open", rate=1000.0, warmup=0.0, seconds=0.3))
        assert server.connections == 4
    assert result.errors == 0
    assert result.requests > 200  # all that arrived while it counted, whenever they were answered
    assert result.saves is not None
    assert result.saves.max > 350  # those that arrived first waited longest: that is no speed, but the stall's length
    assert result.saves.p50 > 200  # had they counted from being sent, only four would show the stall


async def test_a_fill_creates_each_session_once() -> None:
    async with serving(always(answer(b"", b"201 Created"))) as server:
        result = await perform(spec(server, loop="fill", sessions=100))
        names = [json.loads(asked.body)["user_session_id"] for asked in server.asked]
    assert sorted(names) == [f"session-{number:08d}" for number in range(100)]
    assert (result.requests, result.errors) == (100, 0)


async def test_the_generator_is_a_process_that_speaks_json() -> None:
    async with serving(always(answer(ENOUGH))) as server:
        request = json.dumps({"port": server.port, "sessions": 10, "seconds": 0.1, "warmup": 0.05, "connections": 2})
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-m", "bench.load"], input=request, capture_output=True, text=True
        )
    counting, result = done.stdout.splitlines()
    assert (counting, done.stderr) == (COUNTING, "")
    assert set(json.loads(result)) == set(Result.__struct_fields__)
