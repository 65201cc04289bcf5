"""API keys: their form, and what becomes of them in a real store."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

import chatstate.keys
from chatstate.errors import KeyNotFound
from chatstate.keys import FIRST_KEY, GRACE, Keys, is_key, parse
from chatstate.model import EVERYTHING, SCOPES, Within
from chatstate.record import RecordQuery
from chatstate.stores import Store

NOW = datetime(2025, 10, 2, 10, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/chatstate.db"


@pytest.fixture
def keys(store: Store) -> Keys:
    return Keys(store)


def secret_of(text: str) -> str:
    parsed = parse(text)
    assert parsed
    return parsed.secret


def checksum(text: str) -> str:
    """CRC-32 in six digits of base 62, written down once more."""
    number = crc32(text.encode())
    return "".join(DIGITS[number // 62**power % 62] for power in range(5, -1, -1))


# --- Form -------------------------------------------------------------------------------------------------------------


async def test_the_pattern_in_the_docs_finds_every_key_and_no_two_are_alike(keys: Keys) -> None:
    pattern = re.search(r"`(cs_\[.*?)`", chatstate.keys.__doc__ or "")
    assert pattern
    texts = [(await keys.create("x", NOW))[1] for _ in range(1000)]
    assert len(set(texts)) == 1000
    assert len({text.split("_")[2][:43] for text in texts}) == 1000
    found = re.findall(pattern[1], " ".join(f'key="{text}";' for text in texts))
    assert found == texts
    assert len({digit for text in texts for digit in secret_of(text)}) == 62, "all digits are drawn from"


async def test_a_key_has_an_id_a_secret_and_a_checksum(keys: Keys) -> None:
    key, text = await keys.create("web", NOW)
    assert re.fullmatch(r"cs_[a-z2-7]{8}_[0-9A-Za-z]{49}", text)
    assert (text[3:11], text[12:55]) == (key.id, secret_of(text))
    assert text[55:] == checksum(text[:55])
    parsed = parse(text)
    assert parsed
    assert (parsed.id, parsed.secret) == (key.id, text[12:55])
    assert key.digest == sha256(text[12:55].encode()).hexdigest()
    assert 62**43 >= 2**256


async def test_every_slip_of_a_digit_is_noticed(keys: Keys) -> None:
    _, text = await keys.create("web", NOW)
    for place in range(len(text)):
        for digit in "a2Z_":
            changed = text[:place] + digit + text[place + 1 :]
            assert (parse(changed) is None) == (changed != text), place
    for place in range(len(text) - 1):
        swapped = text[:place] + text[place + 1] + text[place] + text[place + 2 :]
        assert (parse(swapped) is None) == (swapped != text), place


async def test_what_is_no_key_is_none(keys: Keys) -> None:
    _, text = await keys.create("web", NOW)
    for other in (
        "",
        text[:-1],
        text + "0",
        f" {text}",
        f"{text}\n",
        text.upper(),
        text[3:],
        text * 2,
        "cs_",
        "é" * 61,
    ):
        assert parse(other) is None
    assert parse(text) is not None


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("cs_abcdefg2_", True),
        ("cs_abcdefg2_anything", True),
        ("cs_abcdefg1_x", False),
        ("cs_abcdefg_x", False),
        (" cs_abcdefg2_", False),
        ("Cs_abcdefg2_", False),
        ("eyJhbGciOiJIUzI1NiJ9.e30.x", False),
        ("", False),
    ],
)
def test_what_is_meant_to_be_a_key(text: str, meant: bool) -> None:
    assert is_key(text) == meant


# --- What is kept -----------------------------------------------------------------------------------------------------


async def test_nothing_that_is_kept_gives_the_secret_away(store: Store, keys: Keys) -> None:
    key, text = await keys.create("web", NOW, ["list", "read"], "shop_", NOW + HOUR)
    rows: Any = await store.list(RecordQuery(collection="api_keys", now=NOW))
    assert secret_of(text) not in rows[0].document
    assert await keys.all(NOW) == {key.id: key}
    assert (key.name, key.scopes, key.id_prefix) == ("web", ("read", "list"), "shop_")
    assert (key.created_at, key.expires_at, key.revoked_at, key.formers) == (NOW, NOW + HOUR, None, ())
    assert key.within == Within("shop_")


async def test_a_key_has_all_scopes_and_all_sessions_unless_it_is_said(keys: Keys) -> None:
    key, _ = await keys.create("web", NOW)
    assert (key.scopes, key.within, key.expires_at) == (SCOPES, EVERYTHING, None)
    assert (await keys.create("none", NOW, []))[0].scopes == ()


async def test_a_key_accepts_its_own_secret_alone(keys: Keys) -> None:
    key, text = await keys.create("web", NOW)
    other, other_text = await keys.create("other", NOW)
    assert key.accepts(secret_of(text), NOW)
    assert other.accepts(secret_of(other_text), NOW)
    assert not key.accepts(secret_of(other_text), NOW)
    assert not key.accepts("", NOW)
    assert not key.accepts(key.digest, NOW)


async def test_a_key_is_live_until_it_expires_or_is_revoked(keys: Keys) -> None:
    key, _ = await keys.create("web", NOW, expires_at=NOW + HOUR)
    assert key.is_live(NOW + HOUR - timedelta.resolution)
    assert not key.is_live(NOW + HOUR)
    endless, _ = await keys.create("web", NOW)
    assert endless.is_live(NOW + 1000 * 365 * 24 * HOUR)
    assert not (await keys.revoke(endless.id, NOW)).is_live(NOW)


async def test_an_id_that_is_taken_is_not_taken_again(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    first, text = await keys.create("first", NOW)
    drawn = [first.id, "bbbbbbbb"]
    random = chatstate.keys._random
    monkeypatch.setattr(
        chatstate.keys, "_random", lambda alphabet, length: drawn.pop(0) if length == 8 else random(alphabet, length)
    )
    second, _ = await keys.create("second", NOW)
    assert second.id == "bbbbbbbb"
    assert (await keys.all(NOW))[first.id].accepts(secret_of(text), NOW)


# --- Revoking ---------------------------------------------------------------------------------------------------------


async def test_a_key_is_revoked_for_ever(keys: Keys) -> None:
    key, _ = await keys.create("web", NOW)
    assert (await keys.revoke(key.id, NOW + HOUR)).revoked_at == NOW + HOUR
    assert (await keys.revoke(key.id, NOW + 2 * HOUR)).revoked_at == NOW + HOUR, "the first time counts"
    with pytest.raises(KeyNotFound, match="keys create"):
        await keys.rotate(key.id, NOW + 2 * HOUR)
    assert not (await keys.all(NOW))[key.id].is_live(NOW)


async def test_a_key_that_there_is_not_is_neither_revoked_nor_rotated(keys: Keys) -> None:
    for change in (keys.revoke, keys.rotate):
        with pytest.raises(KeyNotFound, match=r"no key aaaaaaaa.*keys list"):
            await change("aaaaaaaa", NOW)
    assert await keys.all(NOW) == {}


# --- Rotating ---------------------------------------------------------------------------------------------------------


async def test_after_a_rotation_both_secrets_are_accepted_for_the_grace(keys: Keys) -> None:
    key, old = await keys.create("web", NOW, ["read"], "shop_")
    new = await keys.rotate(key.id, NOW, HOUR)
    rotated = (await keys.all(NOW))[key.id]
    assert parse(new) is not None
    assert (rotated.scopes, rotated.id_prefix, rotated.name) == (("read",), "shop_", "web")
    for later, old_is_accepted in ((timedelta(), True), (HOUR - timedelta.resolution, True), (HOUR, False)):
        assert rotated.accepts(secret_of(new), NOW + later)
        assert rotated.accepts(secret_of(old), NOW + later) == old_is_accepted


async def test_the_grace_is_a_day_unless_it_is_said(keys: Keys) -> None:
    key, _ = await keys.create("web", NOW)
    await keys.rotate(key.id, NOW)
    (former,) = (await keys.all(NOW))[key.id].formers
    assert former.until == NOW + GRACE == NOW + 24 * HOUR


async def test_without_grace_the_old_secret_is_void_at_once(keys: Keys) -> None:
    key, old = await keys.create("web", NOW)
    await keys.rotate(key.id, NOW, timedelta())
    assert not (await keys.all(NOW))[key.id].accepts(secret_of(old), NOW)


async def test_an_expired_key_is_not_rotated_back_to_life(keys: Keys) -> None:
    key, _ = await keys.create("web", NOW, expires_at=NOW + HOUR)
    with pytest.raises(KeyNotFound, match=key.id):
        await keys.rotate(key.id, NOW + HOUR)
    await keys.rotate(key.id, NOW + HOUR - timedelta.resolution)


async def test_a_second_rotation_does_not_cut_the_grace_of_the_first_one_short(keys: Keys) -> None:
    """Whoever has lost the new secret and rotates again stops no program that works with the old one."""
    key, first = await keys.create("web", NOW)
    second = await keys.rotate(key.id, NOW)
    third = await keys.rotate(key.id, NOW + HOUR)
    for later, accepted in ((HOUR, [True] * 3), (GRACE, [False, True, True]), (GRACE + HOUR, [False, False, True])):
        kept = (await keys.all(NOW))[key.id]
        assert [kept.accepts(secret_of(text), NOW + later) for text in (first, second, third)] == accepted
    await keys.rotate(key.id, NOW + GRACE + HOUR)
    assert len((await keys.all(NOW))[key.id].formers) == 1, "what is over is not kept"


async def test_a_rotation_without_grace_voids_all_secrets_before(keys: Keys) -> None:
    key, first = await keys.create("web", NOW)
    second = await keys.rotate(key.id, NOW)
    third = await keys.rotate(key.id, NOW, timedelta())
    kept = (await keys.all(NOW))[key.id]
    assert [kept.accepts(secret_of(text), NOW) for text in (first, second, third)] == [False, False, True]


async def test_of_rotations_at_once_the_last_one_counts_and_each_has_its_grace(store: Store, keys: Keys) -> None:
    key, first = await keys.create("web", NOW)
    texts = [first, *await asyncio.gather(*(Keys(store).rotate(key.id, NOW) for _ in range(8)))]
    kept = (await keys.all(NOW))[key.id]
    assert len(set(texts)) == 9
    assert all(kept.accepts(secret_of(text), NOW) for text in texts)
    assert sum(kept.accepts(secret_of(text), NOW + GRACE) for text in texts) == 1


async def test_a_revocation_is_not_lost_among_rotations(store: Store, keys: Keys) -> None:
    key, _ = await keys.create("web", NOW)
    rotations = [Keys(store).rotate(key.id, NOW) for _ in range(4)]
    revocation: Any = Keys(store).revoke(key.id, NOW)
    await asyncio.gather(
        *rotations, revocation, *(Keys(store).rotate(key.id, NOW) for _ in range(4)), return_exceptions=True
    )
    assert (await keys.all(NOW))[key.id].revoked_at == NOW


# --- The first key ----------------------------------------------------------------------------------------------------


async def test_of_servers_that_start_at_once_one_makes_the_first_key(store: Store, keys: Keys) -> None:
    texts = [text for text in await asyncio.gather(*(Keys(store).create_first(NOW) for _ in range(8))) if text]
    assert len(texts) == 1
    (first,) = (await keys.all(NOW)).values()
    assert (first.id, first.name, first.scopes, first.within) == (FIRST_KEY, "first", SCOPES, EVERYTHING)
    assert first.accepts(secret_of(texts[0]), NOW)
    assert await keys.create_first(NOW) is None


async def test_where_there_is_a_key_no_first_one_is_made(keys: Keys) -> None:
    key, _ = await keys.create("web", NOW)
    await keys.revoke(key.id, NOW)
    assert await keys.create_first(NOW) is None
    assert list(await keys.all(NOW)) == [key.id]


# --- Uses -------------------------------------------------------------------------------------------------------------


async def test_keys_and_uses_are_where_other_versions_look_for_them(store: Store, keys: Keys) -> None:
    key, _ = await keys.create("web", NOW)
    await keys.record_use(key.id, NOW)
    for collection in ("api_keys", "api_key_uses"):
        rows: Any = await store.list(RecordQuery(collection=collection, now=NOW))
        assert [row.key for row in rows] == [key.id]


async def test_uses_are_kept_beside_the_keys(keys: Keys) -> None:
    key, _ = await keys.create("web", NOW)
    assert await keys.last_uses(NOW) == {}
    for later in (timedelta(), HOUR):
        await keys.record_use(key.id, NOW + later)
        assert await keys.last_uses(NOW) == {key.id: NOW + later}
    assert await keys.all(NOW) == {key.id: key}
