"""Sending over WhatsApp's Cloud API, and what its errors mean: against a server that answers as it is told."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from chatstate.bot import Choice, Reply
from chatstate.channels import Contact, ExternalId
from chatstate.channels.whatsapp.cloud import DEFAULT_GRAPH_URL, WhatsAppCloud
from chatstate.errors import InvalidSetting, SendFailed

TOKEN = "EAAGsecrettoken"
NUMBER_ID = "410000000000001"
NUMBER = "15550001111"
ANNA = Contact((ExternalId("bsuid", "US.1001ANNA"), ExternalId("wa_id", NUMBER)))
HI = Reply("r", "a private text")
NOW = datetime(2026, 8, 20, 9, 30, tzinfo=UTC)
SENT = {"messaging_product": "whatsapp", "messages": [{"id": "wamid.SENT"}]}


class Graph:
    """A server on loopback that gives the answers that it is told to, one for each request.

    An answer is its bytes, and whether it ends with them; else nothing more comes until the test is over. `asked` are
    the requests: the first line, the header fields, and the body.
    """

    def __init__(self) -> None:
        self.answers: list[tuple[bytes, bool]] = []
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self._over = asyncio.Event()

    async def serve(self, stack: AsyncExitStack) -> None:
        server = await stack.enter_async_context(await asyncio.start_server(self._answer, "127.0.0.1", 0))
        stack.callback(self._over.set)
        self.origin = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self.url = f"{self.origin}/v26.0"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        self.asked.append((head[0], fields, await reader.readexactly(int(fields.get("content-length", 0)))))
        answer, ends = self.answers.pop(0)
        writer.write(answer)
        if not ends:
            await self._over.wait()
        writer.close()

    def will_answer(self, content: Any, status: int = 200, **fields: str) -> None:
        """`content` is JSON, or bytes as they are. `fields` are header fields, with `_` for `-`."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        given = {"connection": "close", "content-length": str(len(body))}
        given |= {name.replace("_", "-"): value for name, value in fields.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        self.answers.append((f"HTTP/1.1 {status} -\r\n{head}\r\n".encode() + body, True))

    def will_refuse(self, code: Any, status: int = 400, subcode: int | None = None, **fields: str) -> None:
        """As Meta does, with a text that quotes what it should not."""
        message = f"(#{code}) {NUMBER} {TOKEN} {HI.text}"
        error = {"message": message, "type": "OAuthException", "code": code, "error_data": {"details": message}}
        self.will_answer({"error": error | ({"error_subcode": subcode} if subcode else {})}, status, **fields)


Connect = Callable[..., Any]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def graph(stack: AsyncExitStack) -> Graph:
    graph = Graph()
    await graph.serve(stack)
    return graph


@pytest.fixture
async def connect(graph: Graph, stack: AsyncExitStack) -> Connect:
    async def connect(url: str = "", **options: Any) -> WhatsAppCloud:
        cloud = WhatsAppCloud(TOKEN, NUMBER_ID, url or graph.url, clock=lambda: NOW, **options)
        await cloud.open()
        stack.push_async_callback(cloud.close)
        return cloud

    return connect


@pytest.fixture
async def cloud(connect: Connect) -> WhatsAppCloud:
    return await connect()  # type: ignore[no-any-return]


async def failure(cloud: WhatsAppCloud) -> SendFailed:
    """The failure of a message, which tells nothing that is nobody's business."""
    with pytest.raises(SendFailed) as failed:
        await cloud.send(ANNA, HI)
    check_discretion(failed.value)
    return failed.value


def check_discretion(error: SendFailed) -> None:
    assert error.__cause__ is None
    for secret in (TOKEN, NUMBER_ID, NUMBER, "1001ANNA", HI.text, "127.0.0.1"):
        assert secret not in error.message


# Sending


async def test_a_message_is_sent(graph: Graph, cloud: WhatsAppCloud) -> None:
    graph.will_answer(SENT)
    assert await cloud.send(ANNA, HI) == "wamid.SENT"
    ((line, fields, body),) = graph.asked
    assert line == f"POST /v26.0/{NUMBER_ID}/messages HTTP/1.1"
    assert (fields["authorization"], fields["content-type"]) == (f"Bearer {TOKEN}", "application/json")
    assert fields["user-agent"] == "chatstate"
    expected = {"messaging_product": "whatsapp", "to": NUMBER, "type": "text", "text": {"body": HI.text}}
    assert json.loads(body) == expected


async def test_a_channel_says_what_it_is(cloud: WhatsAppCloud) -> None:
    assert (cloud.name, cloud.window) == ("whatsapp", timedelta(hours=24))
    assert [part.id for part in cloud.split(Reply("r", "x" * 5000, (Choice("a", "b"),)))] == ["r", "r.2"]
    assert DEFAULT_GRAPH_URL.startswith("https://graph.facebook.com/v")


async def test_a_text_that_is_no_unicode_is_sent_all_the_same(graph: Graph, cloud: WhatsAppCloud) -> None:
    graph.will_answer(SENT)
    assert await cloud.send(ANNA, Reply("r", "half \ud83d 😀")) == "wamid.SENT"
    assert json.loads(graph.asked[0][2])["text"]["body"] == "half \ud83d 😀"


async def test_to_nobody_nothing_is_sent(graph: Graph, cloud: WhatsAppCloud) -> None:
    with pytest.raises(SendFailed) as failed:
        await cloud.send(Contact(()), HI)
    assert (failed.value.retry_after, graph.asked) == (None, [])


# Refusals


@pytest.mark.parametrize(
    ("code", "status", "retry_after", "holds", "title"),
    [
        (131056, 400, 6, "person", "Pair rate limit hit"),
        (131056, 429, 6, "person", "Pair rate limit hit"),
        (130429, 429, 5, "channel", "Rate limit hit"),
        (80007, 400, 300, "channel", "Rate limit of the business account"),
        (4, 400, 300, "channel", "Too many API calls"),
        (131048, 400, 3600, "channel", "Spam rate limit hit"),
        (131057, 400, 60, "channel", "Account in maintenance mode"),
        (368, 403, 3600, "channel", "Temporarily blocked for policy violations"),
        (131031, 403, 3600, "channel", "Account has been locked"),
        (131042, 400, 3600, "channel", "Business eligibility payment issue"),
        (2, 503, 5, "channel", "Service temporarily unavailable"),
        (131016, 500, 5, "channel", "Service unavailable"),
        (131000, 500, 5, "message", "Something went wrong"),
        (131047, 400, None, "message", "Re-engagement message"),
        (131026, 400, None, "message", "Message undeliverable"),
        (131051, 400, None, "message", "Unsupported message type"),
        (131009, 400, None, "message", "Parameter value is not valid"),
        (100, 400, None, "message", "Invalid parameter"),
    ],
)
async def test_codes_say_when_to_try_again_and_what_has_to_wait(
    graph: Graph, cloud: WhatsAppCloud, code: int, status: int, retry_after: float | None, holds: str, title: str
) -> None:
    graph.will_refuse(code, status)
    error = await failure(cloud)
    assert (error.retry_after, error.holds) == (retry_after, holds)
    assert error.message == f"WhatsApp has refused a message: {code} {title}."


@pytest.mark.parametrize(
    ("code", "status", "subcode", "setting"),
    [
        (190, 401, 463, "ACCESS_TOKEN"),
        (190, 400, None, "ACCESS_TOKEN"),
        (0, 401, None, "ACCESS_TOKEN"),
        (10, 403, None, "ACCESS_TOKEN"),
        (200, 403, None, "ACCESS_TOKEN"),
        (299, 400, None, "ACCESS_TOKEN"),
        (131005, 403, None, "ACCESS_TOKEN"),
        (999, 401, None, "ACCESS_TOKEN"),
        (999, 403, None, "ACCESS_TOKEN"),
        (131026, 401, None, "ACCESS_TOKEN"),
        (100, 400, 33, "PHONE_NUMBER_ID"),
        (33, 400, None, "PHONE_NUMBER_ID"),
        (133010, 400, None, "PHONE_NUMBER_ID"),
    ],
)
async def test_what_an_operator_has_to_mend_holds_everything_and_names_the_setting(
    graph: Graph, cloud: WhatsAppCloud, code: int, status: int, subcode: int | None, setting: str
) -> None:
    graph.will_refuse(code, status, subcode)
    error = await failure(cloud)
    assert error.retry_after in (300, 3600)
    assert error.holds == "channel"
    assert f"Set CHATSTATE_WHATSAPP_{setting} to " in error.message


@pytest.mark.parametrize(
    ("content", "status", "retry_after", "holds"),
    [
        (b"<html>Bad gateway</html>", 502, 5, "message"),
        ({"error": {"code": 999_999}}, 500, 5, "message"),
        ({"error": "broken"}, 503, 5, "message"),
        ({"error": {"code": True}}, 408, 5, "message"),
        (b"", 429, 5, "channel"),
        ({"error": {"code": 999_999}}, 400, None, "message"),
        ({"error": {"code": "131056"}}, 400, None, "message"),
        ([], 404, None, "message"),
        (b"\xff", 400, None, "message"),
        (b"", 302, 300, "channel"),
    ],
)
async def test_without_a_code_the_status_says_it(
    graph: Graph, cloud: WhatsAppCloud, content: Any, status: int, retry_after: float | None, holds: str
) -> None:
    graph.will_answer(content, status, location=f"{graph.origin}/elsewhere")
    error = await failure(cloud)
    assert (error.retry_after, error.holds) == (retry_after, holds)
    assert error.message.startswith("WhatsApp has refused a message: ")
    assert len(graph.asked) == 1


@pytest.mark.parametrize(
    ("retry_after", "expected"),
    [
        ("120", 120),
        ("0", 0),
        ("Thu, 20 Aug 2026 09:32:30 GMT", 150),
        ("Thu, 20 Aug 2026 09:32:30 -0000", 150),
        ("Thu, 20 Aug 2026 09:00:00 GMT", 0),
        ("Fri, 20 Aug 2027 09:00:00 GMT", 86_400),
        ("999999999", 86_400),
        ("-1", 5),
        ("soon", 5),
        ("1" * 50, 5),
    ],
)
async def test_retry_after_is_heeded(graph: Graph, cloud: WhatsAppCloud, retry_after: str, expected: float) -> None:
    graph.will_refuse(130429, 429, retry_after=retry_after)
    assert (await failure(cloud)).retry_after == expected
    graph.will_answer(b"", 503, retry_after=retry_after)
    assert (await failure(cloud)).retry_after == expected


async def test_retry_after_does_not_make_the_impossible_possible(graph: Graph, cloud: WhatsAppCloud) -> None:
    graph.will_refuse(131047, 400, retry_after="5")
    assert (await failure(cloud)).retry_after is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"OK",
        b"[" * 60_000,
        [],
        {},
        {"messages": {}},
        {"messages": []},
        {"messages": [7]},
        {"messages": [{"id": 7}]},
        SENT | {"x": "y" * 70_000},
    ],
)
async def test_an_answer_without_an_id_is_no_success(graph: Graph, cloud: WhatsAppCloud, content: Any) -> None:
    graph.will_answer(content)
    error = await failure(cloud)
    assert (error.retry_after, error.holds) == (60, "message")


# The network


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 -\r\ncontent-length: 100\r\n\r\n{"])
async def test_no_answer_in_time_is_a_failure_to_try_again(graph: Graph, connect: Connect, answer: bytes) -> None:
    graph.answers = [(answer, False)]
    error = await failure(await connect(timeout=0.05))
    assert (error.retry_after, error.holds) == (5, "message")
    assert error.message == "WhatsApp has not answered within 0.05 seconds."


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 -\r\ncontent-length: 100\r\n\r\n{", b"SSH-2.0\r\n\r\n"])
async def test_an_answer_that_breaks_off_is_a_failure_to_try_again(
    graph: Graph, cloud: WhatsAppCloud, answer: bytes
) -> None:
    graph.answers = [(answer, True)]
    error = await failure(cloud)
    assert (error.retry_after, error.holds) == (5, "message")
    assert error.message == "The connection to WhatsApp has failed (RemoteProtocolError)."


async def test_when_nobody_is_there_everything_waits(graph: Graph, connect: Connect) -> None:
    async with AsyncExitStack() as stack:
        gone = Graph()
        await gone.serve(stack)
    error = await failure(await connect(gone.url))
    assert (error.retry_after, error.holds) == (5, "channel")
    assert "CHATSTATE_WHATSAPP_GRAPH_URL" in error.message


async def test_a_channel_that_is_not_open_sends_nothing_and_can_be_opened_again(graph: Graph, connect: Connect) -> None:
    cloud = await connect()
    await cloud.open()
    await cloud.close()
    await cloud.close()
    error = await failure(cloud)
    assert (error.retry_after, error.holds, graph.asked) == (5, "channel", [])
    await cloud.open()
    graph.will_answer(SENT)
    assert await cloud.send(ANNA, HI) == "wamid.SENT"


@pytest.mark.parametrize(
    ("given", "setting"),
    [
        (("", NUMBER_ID), "ACCESS_TOKEN"),
        (("tok en", NUMBER_ID), "ACCESS_TOKEN"),
        (("tökén", NUMBER_ID), "ACCESS_TOKEN"),
        (("token\n", NUMBER_ID), "ACCESS_TOKEN"),
        ((TOKEN, ""), "PHONE_NUMBER_ID"),
        ((TOKEN, "+1/2"), "PHONE_NUMBER_ID"),
        ((TOKEN, NUMBER_ID, ""), "GRAPH_URL"),
        ((TOKEN, NUMBER_ID, "graph.facebook.com"), "GRAPH_URL"),
        ((TOKEN, NUMBER_ID, "ftp://graph.facebook.com"), "GRAPH_URL"),
        ((TOKEN, NUMBER_ID, "https://me@graph.facebook.com"), "GRAPH_URL"),
        ((TOKEN, NUMBER_ID, "https://graph.facebook.com/?a=b"), "GRAPH_URL"),
        ((TOKEN, NUMBER_ID, "https://graph.facebook.com:port"), "GRAPH_URL"),
    ],
)
def test_settings_that_cannot_work_are_refused(given: tuple[str, ...], setting: str) -> None:
    with pytest.raises(InvalidSetting, match=f"CHATSTATE_WHATSAPP_{setting}") as refused:
        WhatsAppCloud(*given)
    assert TOKEN not in refused.value.message


# Typing


async def test_a_message_is_marked_as_read_and_being_answered(graph: Graph, cloud: WhatsAppCloud) -> None:
    graph.will_answer({"success": True})
    await cloud.show_typing("wamid.A")
    ((line, _, body),) = graph.asked
    assert line == f"POST /v26.0/{NUMBER_ID}/messages HTTP/1.1"
    expected = {"messaging_product": "whatsapp", "status": "read", "message_id": "wamid.A"}
    assert json.loads(body) == expected | {"typing_indicator": {"type": "text"}}


async def test_that_it_cannot_be_shown_is_no_error(
    graph: Graph, cloud: WhatsAppCloud, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "chatstate")
    graph.will_refuse(190, 401)
    await cloud.show_typing("wamid.A")
    graph.answers = [(b"", True)]
    await cloud.show_typing("wamid.A")
    await cloud.close()
    await cloud.show_typing("wamid.A")
    said = [record.getMessage() for record in caplog.records if record.name.startswith("chatstate")]
    assert [message.split(":")[0] for message in said] == ["No typing indicator"] * 3
    assert not any(secret in message for message in said for secret in (TOKEN, NUMBER, NUMBER_ID, "wamid.A"))


# Files


async def test_a_file_is_fetched_in_two_steps(graph: Graph, cloud: WhatsAppCloud) -> None:
    graph.will_answer({"url": f"{graph.origin}/file?a=1", "mime_type": "image/png", "file_size": 4, "id": "777"})
    graph.will_answer(b"\x89PNG", content_type="application/octet-stream")
    assert await cloud.download("777") == (b"\x89PNG", "image/png")
    assert [line for line, _, _ in graph.asked] == ["GET /v26.0/777 HTTP/1.1", "GET /file?a=1 HTTP/1.1"]
    assert [fields["authorization"] for _, fields, _ in graph.asked] == [f"Bearer {TOKEN}"] * 2


@pytest.mark.parametrize(
    ("told", "content_type", "expected"),
    [
        (None, "audio/ogg; codecs=opus", "audio/ogg; codecs=opus"),
        (7, "a/b", "a/b"),
        ("a\nb", "a/b", "application/octet-stream"),
        (None, "", "application/octet-stream"),
    ],
)
async def test_the_media_type_is_a_plain_one(
    graph: Graph, cloud: WhatsAppCloud, told: Any, content_type: str, expected: str
) -> None:
    graph.will_answer({"url": f"{graph.origin}/file", "mime_type": told})
    graph.will_answer(b"x", content_type=content_type)
    assert await cloud.download("777") == (b"x", expected)


async def no_file(cloud: WhatsAppCloud, media_id: str = "777", **options: Any) -> SendFailed:
    with pytest.raises(SendFailed) as failed:
        await cloud.download(media_id, **options)
    check_discretion(failed.value)
    assert "777" not in failed.value.message
    return failed.value


async def test_a_file_is_as_large_as_is_allowed_and_no_larger(graph: Graph, cloud: WhatsAppCloud) -> None:
    graph.will_answer({"url": f"{graph.origin}/file", "file_size": 1001})
    error = await no_file(cloud, most_bytes=1000)
    assert (error.message, error.retry_after) == ("The file is larger than 1000 bytes.", None)
    assert len(graph.asked) == 1
    for size in (1000, 1001):
        graph.will_answer({"url": f"{graph.origin}/file", "file_size": 3})
        graph.will_answer(b"x" * size)
    assert await cloud.download("777", 1000) == (b"x" * 1000, "application/octet-stream")
    assert (await no_file(cloud, most_bytes=1000)).message == error.message


async def test_of_a_file_without_end_only_so_much_is_read(graph: Graph, cloud: WhatsAppCloud) -> None:
    graph.will_answer({"url": f"{graph.origin}/file"})
    chunk = b"7d0\r\n" + b"x" * 2000 + b"\r\n"
    graph.answers.append((b"HTTP/1.1 200 -\r\ntransfer-encoding: chunked\r\n\r\n" + chunk, False))
    assert (await no_file(cloud, most_bytes=1000)).message == "The file is larger than 1000 bytes."


@pytest.mark.parametrize(
    "url",
    [
        None,
        7,
        "",
        "/file",
        "http://[",
        "http://127.0.0.1:1/file",
        "http://localhost/file",
        "ftp://127.0.0.1/file",
        "file:///etc/passwd",
        "https://me:secret@127.0.0.1/file",
    ],
)
async def test_the_token_is_not_sent_anywhere(graph: Graph, cloud: WhatsAppCloud, url: Any) -> None:
    graph.will_answer({"url": url})
    error = await no_file(cloud)
    assert (error.retry_after, len(graph.asked)) == (None, 1)
    assert "address" in error.message


async def test_the_token_is_not_sent_after_a_redirect(graph: Graph, cloud: WhatsAppCloud) -> None:
    graph.will_answer({"url": f"{graph.origin}/file"})
    graph.will_answer(b"", 302, location=f"{graph.origin}/elsewhere")
    error = await no_file(cloud)
    assert (error.retry_after, len(graph.asked)) == (None, 2)


async def test_a_file_that_is_gone(graph: Graph, cloud: WhatsAppCloud) -> None:
    graph.will_refuse(100, 400, 33)
    first = await no_file(cloud)
    graph.will_answer({"url": f"{graph.origin}/file"})
    graph.will_answer(b"", 404)
    second = await no_file(cloud)
    assert (
        first.message
        == second.message
        == "WhatsApp does not have this file, or not any more: it keeps them for 7 days."
    )
    assert (first.retry_after, second.retry_after) == (None, None)


async def test_a_file_that_cannot_be_had_at_the_moment(graph: Graph, cloud: WhatsAppCloud) -> None:
    graph.will_refuse(190, 401)
    assert "CHATSTATE_WHATSAPP_ACCESS_TOKEN" in (await no_file(cloud)).message
    graph.will_answer({"url": f"{graph.origin}/file"})
    graph.will_answer(b"", 503, retry_after="7")
    assert (await no_file(cloud)).retry_after == 7


@pytest.mark.parametrize("media_id", ["", "../me", "777/x", "777?x", "777\n", "x" * 257])
async def test_what_is_no_id_of_a_file_is_not_asked_for(graph: Graph, cloud: WhatsAppCloud, media_id: str) -> None:
    with pytest.raises(SendFailed):
        await cloud.download(media_id)
    assert graph.asked == []


# Logs


async def test_httpx_logs_no_call_of_ours_and_those_of_others(
    graph: Graph, cloud: WhatsAppCloud, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    graph.will_answer(SENT)
    await cloud.send(ANNA, HI)
    graph.will_refuse(190, 401)
    await failure(cloud)
    graph.will_answer({"url": f"{graph.origin}/secret-address"})
    graph.will_answer(b"x")
    await cloud.download("777")
    assert caplog.records == []
    graph.will_answer({})
    async with httpx.AsyncClient() as other:
        await other.get(f"{graph.origin}/other")
    assert [record.name for record in caplog.records] == ["httpx"]
