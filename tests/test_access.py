"""Whom a credential belongs to: modes, keys that come and go, and a store that does not answer. On a real store."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from chatstate.access import ANONYMOUS, INTERVAL_SECONDS, NOBODY, OPEN, Access, Caller
from chatstate.errors import StoreUnavailable, TokenExpired, Unauthorized
from chatstate.keys import Keys
from chatstate.model import EVERYTHING, LONGEST_TTL, SCOPES, Within
from chatstate.record import DropRecord
from chatstate.stores import Store
from chatstate.tokens import new_claims
from tests.test_keys import checksum

NOW = datetime(2025, 10, 2, 10, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)
UNKNOWN = "cs_aaaaaaaa_" + "0" * 43
UNKNOWN += checksum(UNKNOWN)
EAGER_SECONDS, STALE_SECONDS = 1.0, 30.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


class Fault:
    """A store that can be told to fail, and counts how often it was asked for rows."""

    def __init__(self, store: Store) -> None:
        self.error: Exception | None = None
        self.asked = 0
        self._list = store.list
        store.list = self._answer  # type: ignore[method-assign]

    async def _answer(self, query: Any) -> Any:
        self.asked += 1
        if self.error:
            raise self.error
        return await self._list(query)


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/chatstate.db"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def access(store: Store, clock: Clock) -> Access:
    return Access(store, clock)


@pytest.fixture
def fault(store: Store) -> Fault:
    return Fault(store)


def older(access: Access, seconds: float) -> None:
    """As if all had been read so much longer ago."""
    assert access._read_at is not None
    access._read_at -= seconds
    access._looked_at -= seconds


async def token_of(access: Access, session: str = "a", key_id: str = "") -> str:
    now = access._clock()
    return await access.tokens.mint(new_claims(session, ("read",), now, HOUR, key_id), now)


async def refused(access: Access, credential: str) -> str:
    with pytest.raises(Unauthorized) as refusal:
        await access.caller(credential)
    return refusal.value.message


# --- Modes ------------------------------------------------------------------------------------------------------------


async def test_without_keys_everybody_may_do_everything(access: Access) -> None:
    assert access.mode == "open"
    for credential in ("", "x", "Basic abc", "cs_aaaaaaaa_" + "0" * 49, "cs_aaaaaaaa_x", "eyJhbGciOiJIUzI1NiJ9.e30.x"):
        assert await access.caller(credential) is OPEN
    assert (OPEN.scopes, OPEN.within, OPEN.key_id, OPEN.claims) == (frozenset(SCOPES), EVERYTHING, "", None)


async def test_on_an_open_server_a_token_is_for_its_session_all_the_same(access: Access) -> None:
    token = await token_of(access)
    caller = await access.caller(token)
    assert (caller.name, caller.scopes, caller.within) == ("token", {"read"}, Within(only="a"))
    assert "not valid" in await refused(access, token[:-4] + "AAAA")


async def test_the_log_says_when_a_server_that_runs_is_closed(
    store: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    access = Access(store, clock)
    for _ in range(2):
        await access.refresh()
    assert not caplog.records
    await access.keys.create("web", NOW)
    for _ in range(2):
        await access.refresh()
    assert [record.getMessage() for record in caplog.records] == [
        "there is an API key now: from here on each request wants a credential"
    ]
    await Access(store, clock).refresh()
    assert len(caplog.records) == 1, "a server that starts with a key says so in its banner"


async def test_without_a_valid_key_nobody_is_let_in(access: Access, clock: Clock) -> None:
    assert not access.lets_nobody_in
    await access.keys.create("web", NOW, expires_at=NOW + HOUR)
    await access.refresh()
    assert not access.lets_nobody_in
    clock.now = NOW + HOUR
    assert access.lets_nobody_in
    other, _ = await access.keys.create("web", NOW)
    await access.refresh()
    assert not access.lets_nobody_in
    await access.keys.revoke(other.id, NOW)
    await access.refresh()
    assert access.lets_nobody_in


async def test_the_first_key_closes_the_server(access: Access) -> None:
    await access.refresh()
    key, text = await access.keys.create("web", NOW, ["read", "list"], "shop_")
    assert access.mode == "open", "as long as it is not known"
    await access.refresh()
    assert access.mode == "keyed"
    caller = await access.caller(text)
    assert caller == Caller(f"key:{key.id}", frozenset({"read", "list"}), Within("shop_"), key.id, None)
    assert await refused(access, "") == Unauthorized().message
    assert "neither an API key nor a session token" in await refused(access, "x")


async def test_the_first_key_is_known_as_soon_as_it_is_shown(access: Access) -> None:
    """Else a token that is minted with it at once would be one of an open server, and void a moment later."""
    await access.refresh()
    key, text = await access.keys.create("web", NOW)
    assert (await access.caller(text)).key_id == key.id
    assert access.mode == "keyed"


async def test_a_token_from_when_the_server_was_open_is_void_once_it_is_keyed(access: Access) -> None:
    token = await token_of(access)
    await access.caller(token)
    await access.keys.create("web", NOW)
    await access.refresh()
    assert "minted" in await refused(access, token)


async def test_revoking_the_last_key_does_not_open_the_server_again(store: Store, access: Access, clock: Clock) -> None:
    key, text = await access.keys.create("web", NOW)
    await access.keys.revoke(key.id, NOW)
    for one in (access, Access(store, clock)):
        await one.refresh()
        assert one.mode == "keyed"
        assert "revoked" in await refused(one, text)
        assert await refused(one, "") == Unauthorized().message


async def test_emptying_the_table_by_hand_does_not_open_a_server_that_runs(store: Store, access: Access) -> None:
    key, text = await access.keys.create("web", NOW)
    await access.refresh()
    token = await token_of(access, key_id=key.id)
    await access.caller(token)
    await store.commit([DropRecord(collection="api_keys", key=key.id, now=NOW)])
    for _ in range(2):
        await access.refresh()
        assert access.mode == "keyed"
        assert "not valid" in await refused(access, text)
        assert "not valid any more" in await refused(access, token)
        assert await refused(access, "") == Unauthorized().message


async def test_with_allow_anonymous_who_shows_nothing_is_let_in_and_keys_count_all_the_same(
    store: Store, clock: Clock
) -> None:
    access = Access(store, clock, allow_anonymous=True)
    assert access.mode == "anonymous"
    for credential in ("", "x", "?"):
        assert await access.caller(credential) is ANONYMOUS
    assert ANONYMOUS.scopes == {"read", "write", "delete"}
    assert "not valid" in await refused(access, UNKNOWN), "a key is meant, even if there is none"
    key, text = await access.keys.create("web", NOW)
    await access.refresh()
    assert access.mode == "anonymous"
    assert (await access.caller(text)).key_id == key.id
    assert (await access.caller(await token_of(access, key_id=key.id))).claims
    assert "minted" in await refused(access, await token_of(access))
    assert "mistyped" in await refused(access, text[:-1])


# --- Keys -------------------------------------------------------------------------------------------------------------


async def test_a_secret_that_was_accepted_is_void_once_a_rotation_without_grace_is_known(access: Access) -> None:
    key, old = await access.keys.create("web", NOW)
    await access.refresh()
    await access.caller(old)
    new = await access.keys.rotate(key.id, NOW, timedelta())
    await access.refresh()
    assert "not valid" in await refused(access, old)
    assert (await access.caller(new)).key_id == key.id


async def test_a_former_secret_that_was_accepted_is_void_when_its_grace_ends(access: Access, clock: Clock) -> None:
    key, old = await access.keys.create("web", NOW)
    new = await access.keys.rotate(key.id, NOW, HOUR)
    await access.refresh()
    clock.now += HOUR - timedelta.resolution
    assert [(await access.caller(text)).key_id for text in (old, new, old, new)] == [key.id] * 4
    clock.now += timedelta.resolution
    assert "not valid" in await refused(access, old)
    assert (await access.caller(new)).key_id == key.id


async def test_a_key_that_was_accepted_is_void_when_it_expires_or_is_revoked(access: Access, clock: Clock) -> None:
    key, text = await access.keys.create("web", NOW, expires_at=NOW + HOUR)
    other, other_text = await access.keys.create("other", NOW)
    await access.refresh()
    for credential in (text, other_text):
        await access.caller(credential)
    await access.keys.revoke(other.id, NOW)
    await access.refresh()
    assert "revoked" in await refused(access, other_text)
    assert (await access.caller(text)).key_id == key.id
    clock.now += HOUR
    assert "expired" in await refused(access, text)


async def test_the_memory_of_accepted_credentials_is_bounded(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatstate.access._MOST_ACCEPTED", 3)
    texts = [(await access.keys.create("web", NOW))[1] for _ in range(10)]
    await access.refresh()
    known = []
    for text in texts:
        await access.caller(text)
        known.append(len(access._accepted))
    assert known == [1, 2, 3, 1, 2, 3, 1, 2, 3, 1]


async def test_why_a_key_is_refused_is_said_as_far_as_it_gives_nothing_away(
    access: Access, clock: Clock, store: Store
) -> None:
    key, text = await access.keys.create("web", NOW, expires_at=NOW + HOUR)
    other, other_text = await access.keys.create("other", NOW)
    await access.refresh()
    assert "checksum" in await refused(access, text[:-1] + ("0" if text[-1] != "0" else "1"))
    clock.now += HOUR
    expired = await refused(access, text)
    await access.keys.revoke(other.id, NOW)
    await access.refresh()
    revoked = await refused(access, other_text)
    unknown = (await Keys(store).create("unknown", NOW))[1]
    await store.commit([DropRecord(collection="api_keys", key=unknown.split("_")[1], now=NOW)])
    assert expired == revoked == await refused(access, unknown)
    assert key.id not in expired


async def test_a_key_that_another_process_has_made_is_looked_for(store: Store, access: Access, clock: Clock) -> None:
    await access.keys.create("web", NOW)
    await access.refresh()
    _, text = await Keys(store).create("new", NOW)
    assert (await access.caller(text)).scopes == frozenset(SCOPES)


async def test_keys_that_there_are_not_make_the_store_be_asked_once_a_second_at_most(
    access: Access, fault: Fault
) -> None:
    await access.keys.create("web", NOW)
    await access.refresh()
    token = await token_of(access)
    fault.asked = 0
    await asyncio.gather(*(refused(access, UNKNOWN) for _ in range(20)))
    assert fault.asked == 3, "keys, signing keys and revocations, once"
    await refused(access, UNKNOWN)
    await refused(access, token[:10] + token)
    assert fault.asked == 3
    older(access, EAGER_SECONDS)
    await refused(access, UNKNOWN)
    assert fault.asked == 6
    older(access, EAGER_SECONDS - 0.5)
    await refused(access, UNKNOWN)
    assert fault.asked == 6


async def test_a_wrong_secret_and_a_known_one_ask_nothing(access: Access, fault: Fault) -> None:
    _, text = await access.keys.create("web", NOW)
    _, other = await access.keys.create("other", NOW)
    await access.refresh()
    fault.asked = 0
    wrong = text[:12] + other[12:55]
    assert "not valid" in await refused(access, wrong + checksum(wrong))
    await access.caller(text)
    assert fault.asked == 0


async def test_what_was_read_earlier_does_not_take_the_place_of_newer_things(access: Access, store: Store) -> None:
    """A slow reading that has begun before a revocation, and a quick one after it."""
    key, text = await access.keys.create("web", NOW)
    await access.refresh()
    began, go_on = asyncio.Event(), asyncio.Event()
    rows_of = store.list

    async def slow(query: Any) -> Any:
        rows = await rows_of(query)
        if query.collection == "api_keys" and not began.is_set():
            began.set()
            await go_on.wait()
        return rows

    store.list = slow  # type: ignore[method-assign]
    first = asyncio.create_task(access.refresh())
    await began.wait()
    await access.keys.revoke(key.id, NOW)
    second = asyncio.create_task(access.refresh())
    for _ in range(3):
        await rows_of_nothing(store)
    go_on.set()
    await asyncio.gather(first, second)
    assert "revoked" in await refused(access, text)


async def rows_of_nothing(store: Store) -> None:
    """A round trip to the store, in which others get further."""
    await store.load(["nobody"], NOW)


# --- Tokens -----------------------------------------------------------------------------------------------------------


async def test_a_token_is_of_its_session_and_of_the_key_that_minted_it(access: Access, clock: Clock) -> None:
    key, _ = await access.keys.create("web", NOW, id_prefix="shop_")
    await access.refresh()
    caller = await access.caller(await token_of(access, "shop_1", key.id))
    assert (caller.name, caller.key_id, caller.within) == ("token", key.id, Within(only="shop_1"))
    assert caller.claims
    assert caller.own("shop_1") == "shop_1"
    assert caller.own("shop_2") != "shop_2"


async def test_a_token_expires_to_the_second(access: Access, clock: Clock) -> None:
    token = await token_of(access)
    clock.now += HOUR - timedelta.resolution
    assert await access.caller(token)
    clock.now += timedelta.resolution
    with pytest.raises(TokenExpired):
        await access.caller(token)


async def test_many_tokens_and_revocations_are_told_apart(access: Access, clock: Clock) -> None:
    revoked_before, live = await token_of(access, "before"), await token_of(access, "live")
    await access.tokens.revoke("before", clock.now)
    clock.now += LONGEST_TTL + HOUR
    for number in range(10_001):
        access.tokens._revoke_here(f"s{number}", clock.now)
    await access.refresh()
    assert "before" not in access.tokens._revoked, "pointless by now: what it was for has expired"
    assert "s0" in access.tokens._revoked
    for token in (revoked_before, live):
        with pytest.raises(TokenExpired):
            await access.caller(token)


async def test_an_old_revocation_is_remembered_for_as_long_as_it_matters(access: Access, clock: Clock) -> None:
    await access.tokens.revoke("before", clock.now)
    for number in range(10_001):
        access.tokens._revoke_here(f"s{number}", clock.now)
    clock.now += LONGEST_TTL
    await access.refresh()
    assert "before" in access.tokens._revoked
    assert await access.tokens.revoked_at("before", clock.now) == NOW
    clock.now += timedelta(minutes=6)
    assert await access.tokens.revoked_at("before", clock.now) is None


async def test_as_long_as_revocations_are_few_none_is_looked_at_again(access: Access, clock: Clock) -> None:
    for number in range(10_000):
        access.tokens._revoke_here(f"s{number}", clock.now)
    clock.now += LONGEST_TTL + HOUR
    await access.refresh()
    assert len(access.tokens._revoked) == 10_000
    access.tokens._revoke_here("one more", clock.now)
    await access.refresh()
    assert access.tokens._revoked.keys() == {"one more"}


async def test_revocations_are_read_although_the_clocks_of_servers_differ(store: Store, clock: Clock) -> None:
    access, other = Access(store, clock), Access(store, clock)
    token = await token_of(access, "a")
    await access.refresh()
    await other.tokens.revoke("a", NOW - timedelta(minutes=4))
    await other.tokens.revoke("b", NOW + timedelta(minutes=4))
    await access.refresh()
    assert set(access.tokens._revoked) == {"a", "b"}
    assert await access.caller(token), "it was minted after that"


# --- A store that does not answer -------------------------------------------------------------------------------------


async def test_what_was_read_is_relied_on_for_half_a_minute_and_then_nobody_is_let_in(
    access: Access, fault: Fault
) -> None:
    key, text = await access.keys.create("web", NOW)
    await access.refresh()
    token = await token_of(access, key_id=key.id)
    fault.error = StoreUnavailable()
    older(access, STALE_SECONDS - 1)
    assert (await access.caller(text)).key_id == key.id
    assert (await access.caller(token)).key_id == key.id
    assert "not valid" in await refused(access, UNKNOWN)
    older(access, 1)
    for credential in (text, token, "", "x"):
        with pytest.raises(StoreUnavailable, match="API keys cannot be read"):
            await access.caller(credential)
    fault.error = None
    assert (await access.caller(text)).key_id == key.id
    assert (await access.caller(token)).key_id == key.id


async def test_an_open_or_anonymous_server_lets_nobody_in_either(store: Store, clock: Clock, fault: Fault) -> None:
    for access in (Access(store, clock), Access(store, clock, allow_anonymous=True)):
        fault.error = StoreUnavailable()
        with pytest.raises(StoreUnavailable):
            await access.caller("")
        fault.error = None
        assert await access.caller("")


async def test_callers_who_wait_for_one_reading_do_not_read_again(access: Access, fault: Fault) -> None:
    _, text = await access.keys.create("web", NOW)
    await asyncio.gather(*(access.caller(text) for _ in range(10)))
    assert fault.asked == 3


async def test_reading_goes_on_after_every_fault_and_says_so(
    store: Store, clock: Clock, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []
    errors: list[Exception | None] = [None, StoreUnavailable("gone"), ValueError("odd"), None]

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if not errors:
            raise asyncio.CancelledError
        fault.error = errors.pop(0)

    access = Access(store, clock, pause=pause)
    key, text = await access.keys.create("web", NOW)
    with caplog.at_level(logging.WARNING), pytest.raises(asyncio.CancelledError):
        await access.run()
    assert pauses == [INTERVAL_SECONDS] * 5 == [2.0] * 5
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
    assert "gone" in caplog.text
    assert access.mode == "keyed"
    assert (await access.caller(text)).key_id == key.id


# --- Uses -------------------------------------------------------------------------------------------------------------


async def test_uses_are_recorded_once_a_minute_at_most(access: Access, clock: Clock) -> None:
    key, text = await access.keys.create("web", NOW)
    await access.keys.create("unused", NOW)
    await access.refresh()
    for seconds, expected in ((0, 0), (59, 0), (1, 60), (59, 60), (61, 180)):
        clock.now += seconds * SECOND
        await access.caller(text)
        await access.record_uses()
        assert await access.keys.last_uses(clock.now) == {key.id: NOW + expected * SECOND}
    clock.now += 100 * SECOND
    await access.record_uses()
    assert await access.keys.last_uses(clock.now) == {key.id: NOW + 180 * SECOND}, "not used since"


async def test_a_key_that_is_refused_was_not_used(access: Access, clock: Clock) -> None:
    _, text = await access.keys.create("web", NOW, expires_at=NOW + SECOND)
    await access.refresh()
    clock.now += SECOND
    await refused(access, text)
    await access.record_uses()
    assert await access.keys.last_uses(clock.now) == {}


async def test_uses_are_recorded_all_the_time(store: Store, clock: Clock) -> None:
    async def pause(_: float) -> None:
        if await access.keys.last_uses(clock.now):
            raise asyncio.CancelledError

    access = Access(store, clock, pause=pause)
    key, text = await access.keys.create("web", NOW)
    await access.caller(text)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(access.run(), 20)
    assert await access.keys.last_uses(clock.now) == {key.id: NOW}


# --- Callers ----------------------------------------------------------------------------------------------------------


def test_those_without_a_credential_have_names_for_the_audit_log() -> None:
    assert [caller.name for caller in (OPEN, ANONYMOUS, NOBODY)] == ["open", "anonymous", "nobody"]
    assert NOBODY.scopes == frozenset()


def test_an_id_that_is_not_theirs_becomes_one_that_no_session_has() -> None:
    caller = Caller("key:x", frozenset(), Within("shop_"))
    assert caller.own("shop_1") == "shop_1"
    names = {caller.own("other_1"), caller.own("other_2"), caller.own("")}
    assert len(names) == 3, "two of them do not meet"
    assert all(name.startswith("\x1f") and len(name) >= 33 for name in names)
    assert caller.own("other_1") == caller.own("other_1")
