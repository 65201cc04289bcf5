"""The inbox: how long Meta waits for the acknowledgement of a large delivery, and how long a person for an answer.

A delivery of 1,000 messages, of as many people, is signed and posted; it is acknowledged once all of them are kept.
Beside it, in the same rounds, as many messages are committed to the same database without HTTP: the least that it could
take. A message of a web page is posted, and the time is counted until a watcher has the state with the bot's answer;
beside it that of a plain save.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from hashlib import sha256
from http.client import HTTPConnection
from statistics import quantiles

from msgspec import json

from bench.chatstate import ROOT, ChatStateServer, sqlite_url
from bench.live import Client, connected
from bench.measure import FAILURES, Bench, RunFailed, Started
from chatstate.mailbox import Receive
from chatstate.stores import create_store
from tests.servers.ports import LOOPBACK

PART = "inbox"
MESSAGES = 1000
"""The most that Meta puts into one delivery."""

DELIVERIES = 10
TURNS = 300
"""How many of each a round has."""

MOST_MS = 250.0
"""The floor: how long an acknowledgement may take."""

_SECRET, _NUMBER_ID = "of the bench", "106540352242922"
_ENVIRONMENT = {
    "CHATSTATE_WHATSAPP_APP_SECRET": _SECRET,
    "CHATSTATE_WHATSAPP_VERIFY_TOKEN": "unused",
    "CHATSTATE_WHATSAPP_ACCESS_TOKEN": "unused",
    "CHATSTATE_WHATSAPP_PHONE_NUMBER_ID": _NUMBER_ID,
    "PYTHONPATH": str(ROOT),
}


def inbox(bench: Bench, systems: Sequence[ChatStateServer], rounds: int) -> None:
    """All facts of the part."""
    for system in systems:
        kind = type(system)
        try:
            with bench.stage.started(kind(None, environment=_ENVIRONMENT)) as started:
                _deliver(bench, started, rounds)
            with bench.stage.started(kind(None, "--bot", "bench.inbox:bot", environment=_ENVIRONMENT)) as started:
                _answer(bench, started, rounds)
        except FAILURES as error:
            bench.failed(system.name, PART, error)


# --- Deliveries -------------------------------------------------------------------------------------------------------


def _deliver(bench: Bench, started: Started, rounds: int) -> None:
    acknowledged, kept = [], []
    url = started.database.url if started.database else sqlite_url(started.folder)
    with closing(HTTPConnection(LOOPBACK, started.port, timeout=20)) as connection:
        for number in range(rounds):
            bench.tell(f"{PART} {number + 1}: {MESSAGES:,} messages in one delivery, {started.name}")
            for count in range(DELIVERIES):
                acknowledged.append(_acknowledged(connection, f"{number}.{count}"))
                kept.append(asyncio.run(_kept(url, f"{number}.{count}")))
    for label, place in (("p50", 0.5), ("longest", 1.0)):
        fact = f"{label} of the acknowledgement of {MESSAGES:,} messages, {started.name}"
        bench.results.fact(PART, fact, "ms", _at(acknowledged, place))
    ratio = _at(acknowledged, 0.5) / _at(kept, 0.5)
    bench.results.fact(PART, f"p50 of that : of the commit alone, {started.name}", "×", ratio)


def _at(times: Sequence[float], place: float) -> float:
    return sorted(times)[min(len(times) - 1, int(place * len(times)))]


def _acknowledged(connection: HTTPConnection, mark: str) -> float:
    """The milliseconds until a delivery is acknowledged."""
    body = json.encode(_delivery(mark))
    signature = "sha256=" + hmac.new(_SECRET.encode(), body, sha256).hexdigest()
    headers = {"Content-Type": "application/json", "X-Hub-Signature-256": signature}
    began = time.perf_counter()
    connection.request("POST", "/channels/whatsapp/webhook", body, headers)
    answer = connection.getresponse()
    answer.read()
    passed = 1000 * (time.perf_counter() - began)
    if answer.status != 200:
        raise RunFailed(f"a delivery was answered with {answer.status}")
    return passed


def _delivery(mark: str) -> dict[str, object]:
    people = [f"1650555{number:04}" for number in range(MESSAGES)]
    messages = [
        {
            "from": person,
            "id": f"wamid.{mark}.{person}",
            "timestamp": str(int(time.time())),
            "type": "text",
            "text": {"body": "Hello"},
        }
        for person in people
    ]
    contacts = [{"profile": {"name": "Somebody"}, "wa_id": person} for person in people]
    metadata = {"display_phone_number": "15550783881", "phone_number_id": _NUMBER_ID}
    value = {"messaging_product": "whatsapp", "metadata": metadata, "contacts": contacts, "messages": messages}
    changes = [{"field": "messages", "value": value}]
    return {"object": "whatsapp_business_account", "entry": [{"id": "102290129340398", "changes": changes}]}


async def _kept(url: str, mark: str) -> float:
    """The milliseconds of a commit of as many messages of the same size."""
    now = datetime.now(UTC)
    writes = [
        Receive(
            key=sha256(f"{mark}.{number}".encode()).hexdigest()[:32],
            conversation=sha256(f"{number}".encode()).hexdigest()[:32],
            document="x" * 300,
            sent_at=now,
            now=now,
        )
        for number in range(MESSAGES)
    ]
    store = create_store(url, owner=False)
    await store.open()
    try:
        began = time.perf_counter()
        await store.commit(writes)
        return 1000 * (time.perf_counter() - began)
    finally:
        await store.close()


# --- Answers ----------------------------------------------------------------------------------------------------------


async def bot(turn: object) -> None:
    """Answers at once."""
    await turn.reply("Hello")  # type: ignore[attr-defined]


def _answer(bench: Bench, started: Started, rounds: int) -> None:
    answered, saved = [], []
    with connected(started.port) as watcher, connected(started.port) as writer:
        watcher.send("GET", "/asked/events")
        watcher.event(b"event: absent")
        for number in range(rounds):
            bench.tell(f"{PART} {number + 1}: answers, {started.name}")
            for count in range(TURNS):
                answered.append(_answered(writer, watcher, f"{number}.{count}"))
                saved.append(_saved(writer))
    for label, percentile in (("p50", 50), ("p99", 99)):
        turn, save = (quantiles(times, n=100)[percentile - 1] for times in (answered, saved))
        bench.results.fact(PART, f"{label} from a message to the state with its answer, {started.name}", "ms", turn)
        bench.results.fact(PART, f"{label} of that : of a save, {started.name}", "×", turn / save)


def _answered(writer: Client, watcher: Client, mark: str) -> float:
    body = json.encode({"id": f"m{mark}.", "text": "Hello"})
    began = time.perf_counter()
    writer.send("POST", "/asked/messages", body)
    watcher.event(rf"m{mark}..1\"".encode())
    passed = 1000 * (time.perf_counter() - began)
    writer.answer()
    return passed


def _saved(writer: Client) -> float:
    began = time.perf_counter()
    writer.send("POST", "", json.encode({"user_session_id": "saved", "chat_state": "{}"}))
    writer.answer()
    return 1000 * (time.perf_counter() - began)
