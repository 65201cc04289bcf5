"""`chatstate inbox` as operators use it: a real server whose bot fails, and the command beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from chatstate.bot import Message
from chatstate.inbox import Inbox
from chatstate.mailbox import Postpone, Progress, Send, Settle
from chatstate.model import utc_now
from chatstate.stores import create_store
from tests.test_cli import run

CANARY = "what-somebody-has-written"


def prepared(url: str, work: Callable[[Inbox, list[str]], list[object]]) -> None:
    """A database with three messages, of which the work changes some; it gets their keys."""

    async def prepare() -> None:
        store = create_store(url)
        await store.open()
        await store.migrate()
        box = Inbox(store)
        for number in range(3):
            await box.say(f"s{number}", Message("m", utc_now(), CANARY))
        keys = [entry.key for entry in await box.entries("pending")]
        for write in work(box, keys):
            await store.commit([write])  # type: ignore[list-item]
        await store.close()

    asyncio.run(prepare())


def aside(key: str) -> Postpone:
    now = utc_now()
    return Postpone(key=key, now=now, due_at=now, tries=5, error="ValueError at bot.py:7 in bot", aside=True)


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder}/chatstate.db"


def test_nothing_is_wrong(tmp_path: Path) -> None:
    prepared(url_of(tmp_path), lambda _box, _keys: [])
    code, text = run(tmp_path, "inbox", CHATSTATE_STORE=url_of(tmp_path))
    assert (code, "No message was set aside." in text) == (0, True)
    assert "Waiting for an answer: 3. Replies that could not be sent: 0." in text


def test_what_was_set_aside_is_listed_without_what_it_says(tmp_path: Path) -> None:
    failed: list[str] = []

    def break_some(_box: Inbox, keys: list[str]) -> list[object]:
        failed.extend(keys[:2])
        reply = Send(key="r", conversation="c", user_session_id="s2", document=CANARY)
        now = utc_now() + timedelta(seconds=1)
        unsent = Progress(key="r", now=now, status="failed", error="131026 Message undeliverable")
        return [aside(keys[0]), aside(keys[1]), Settle(key=keys[2], now=now, sends=(reply,)), unsent]

    prepared(url_of(tmp_path), break_some)
    code, text = run(tmp_path, "inbox", CHATSTATE_STORE=url_of(tmp_path))
    assert code == 0
    assert CANARY not in text
    for key in failed:
        assert f"{key[:8]}  " in text
    assert text.count("ValueError at bot.py:7 in bot") == 2
    assert "Replies that could not be sent: 1." in text
    assert "1 × 131026 Message undeliverable" in text


def test_they_are_brought_back_or_dropped(tmp_path: Path) -> None:
    keys: list[str] = []

    def break_all(_box: Inbox, found: list[str]) -> list[object]:
        keys.extend(found)
        return [aside(key) for key in found]

    prepared(url_of(tmp_path), break_all)
    variables = {"CHATSTATE_STORE": url_of(tmp_path)}
    assert run(tmp_path, "inbox", "retry", keys[0][:8], **variables) == (0, "1 message will be answered.\n")
    assert run(tmp_path, "inbox", "drop", keys[1], **variables) == (0, "1 message dropped.\n")
    assert run(tmp_path, "inbox", "retry", "--all", **variables) == (0, "1 message will be answered.\n")
    _, text = run(tmp_path, "inbox", **variables)
    assert "Waiting for an answer: 2." in text


def test_mistakes_are_explained(tmp_path: Path) -> None:
    prepared(url_of(tmp_path), lambda _box, keys: [aside(keys[0])])
    variables = {"CHATSTATE_STORE": url_of(tmp_path)}
    code, text = run(tmp_path, "inbox", "retry", "nothing", **variables)
    assert (code, "names no message that was set aside" in text) == (1, True)
    for wrong in (("inbox", "retry"), ("inbox", "drop", "--all", "x"), ("inbox", "--pool-size", "3", "retry", "--all")):
        code, text = run(tmp_path, *wrong, **variables)
        assert (code, "Usage:" in text) == (2, True)
