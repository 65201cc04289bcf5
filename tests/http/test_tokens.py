"""Session tokens over the API: minting, renewing, revoking, and keys that sign. On servers in this event loop."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest

from chatstate.http.app import ChatState
from chatstate.http.gate import Rates
from chatstate.keys import Keys
from chatstate.model import VERBS
from chatstate.records import Records
from chatstate.stores import Store
from chatstate.tokens import ALGORITHM, AUDIENCE, TYPE, Claims, Revocation, SigningKey, Tokens, new_claims
from tests.http.conftest import Answer, SettableClock
from tests.http.credentials import HOUR, ask, bearer, beside, claims_of, key_id_of, make_key, running, signer_of

SESSIONS = "/chat-state-sessions"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/chatstate.db"


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
def store_url(url: str) -> str:
    """Of the store without a server."""
    return url


@pytest.fixture
async def key(url: str, clock: SettableClock) -> str:
    """A key with all scopes, for all sessions."""
    return await make_key(url, clock.now)


@pytest.fixture
async def app(url: str, clock: SettableClock, key: str) -> AsyncIterator[ChatState]:
    """A keyed server."""
    async with running(url, clock) as app:
        yield app


async def mint(app: ChatState, credential: str, /, **members: Any) -> Answer:
    return await ask(app, "POST", "/tokens", members, bearer(credential))


async def token_of(app: ChatState, credential: str, /, **members: Any) -> str:
    answer = await mint(app, credential, **members)
    assert answer.status == 201, answer.body
    token: str = answer.json()["token"]
    return token


async def load(app: ChatState, session: str, credential: str) -> int:
    """The status of a load: 404 for who may load, as nothing is saved."""
    return (await ask(app, "GET", f"{SESSIONS}/{session}", None, bearer(credential))).status


async def revoke(app: ChatState, session: str, credential: str) -> Answer:
    return await ask(app, "DELETE", f"{SESSIONS}/{session}/tokens", None, bearer(credential))


def said(token: str) -> dict[str, Any]:
    members: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return members


# --- Minting ----------------------------------------------------------------------------------------------------------


async def test_a_token_says_whom_it_is_for_and_nothing_else(app: ChatState, clock: SettableClock, key: str) -> None:
    answer = await mint(app, key, user_session_id="session_1")
    token, seconds = answer.json()["token"], clock.now.timestamp()
    assert jwt.get_unverified_header(token).items() >= {"alg": "HS256", "typ": TYPE}.items()
    assert set(jwt.get_unverified_header(token)) == {"alg", "typ", "kid"}
    assert said(token) == {
        "sub": "session_1",
        "verbs": ["read", "write", "delete"],
        "iat": seconds,
        "exp": seconds + 3600,
        "auth_time": seconds,
        "azp": key_id_of(key),
        "aud": AUDIENCE,
    }
    assert answer.json() == {"token": token, "user_session_id": "session_1", "expires_at": "2025-10-02T11:00:00Z"}


async def test_without_a_body_a_token_is_for_a_new_session(app: ChatState, key: str) -> None:
    answers = [await ask(app, "POST", "/tokens", None, bearer(key)) for _ in range(3)]
    assert [answer.status for answer in answers] == [201, 201, 201]
    assert len({answer.json()["user_session_id"] for answer in answers}) == 3


@pytest.mark.parametrize("prefix", ["", "shop_", "Grüße 😀/"])
async def test_a_new_id_has_the_prefix_of_the_key_and_192_random_bits(
    url: str, clock: SettableClock, prefix: str
) -> None:
    key = await make_key(url, clock.now, id_prefix=prefix)
    async with running(url, clock) as app:
        answer = (await mint(app, key)).json()
        name = answer["user_session_id"]
        assert name.startswith(prefix)
        assert len(name) - len(prefix) == 32, "base64 of 24 bytes"
        assert said(answer["token"])["sub"] == name


async def test_a_key_mints_for_its_prefix_alone(url: str, clock: SettableClock) -> None:
    key = await make_key(url, clock.now, id_prefix="shop_")
    async with running(url, clock) as app:
        assert (await mint(app, key, user_session_id="shop_1")).status == 201
        for name in ("other_1", "shop", "Shop_1", " shop_1"):
            refused = await mint(app, key, user_session_id=name)
            assert (refused.status, refused.json()["code"]) == (403, "forbidden")
            assert "scope=" not in refused.headers["www-authenticate"], "no scope is missing"


async def test_a_token_has_no_verb_that_its_key_lacks(url: str, clock: SettableClock) -> None:
    key = await make_key(url, clock.now, ["read", "mint", "list"])
    async with running(url, clock) as app:
        assert said(await token_of(app, key))["verbs"] == ["read"]
        assert said(await token_of(app, key, verbs=["read"]))["verbs"] == ["read"]
        for verbs in (["write"], ["read", "write"], ["delete"], ["export"], ["export", "read"]):
            refused = await mint(app, key, verbs=verbs)
            assert refused.status == 403
            lacking = next(verb for verb in ("write", "delete", "export") if verb in verbs)
            assert f'scope="{lacking}"' in refused.headers["www-authenticate"]


async def test_a_token_has_export_only_if_it_is_asked_for(app: ChatState, key: str) -> None:
    assert "export" not in said(await token_of(app, key))["verbs"]
    assert said(await token_of(app, key, verbs=["export", "read", "read"]))["verbs"] == ["read", "export"]
    assert said(await token_of(app, key, verbs=VERBS))["verbs"] == ["read", "write", "delete", "export"]


async def test_a_key_that_may_only_mint_gives_nothing(url: str, clock: SettableClock) -> None:
    key = await make_key(url, clock.now, ["mint", "list", "admin"])
    async with running(url, clock) as app:
        refused = await mint(app, key)
        assert (refused.status, refused.json()["code"]) == (403, "forbidden")
        assert 'scope="read"' in refused.headers["www-authenticate"]


async def test_a_body_is_as_large_as_a_request_for_a_token_can_be(app: ChatState, key: str) -> None:
    for size, status in ((16_384, 201), (16_385, 413)):
        body = b"{}" + b" " * (size - 2)
        assert (await ask(app, "POST", "/tokens", body, bearer(key))).status == status


async def test_minting_for_a_session_counts_as_a_request_to_it(url: str, clock: SettableClock) -> None:
    key = await make_key(url, clock.now)
    async with running(url, clock, rates=Rates(0, 0.001, 0, 0)) as app:
        statuses = [(await mint(app, key, user_session_id="a")).status for _ in range(2)]
        assert [*statuses, (await mint(app, key, user_session_id="b")).status] == [201, 429, 201]


async def test_a_key_without_mint_neither_mints_nor_revokes(url: str, clock: SettableClock) -> None:
    key = await make_key(url, clock.now, ["read", "write", "delete", "list", "export", "admin"])
    async with running(url, clock) as app:
        for answer in (await mint(app, key), await revoke(app, "session_1", key)):
            assert answer.status == 403
            assert 'scope="mint"' in answer.headers["www-authenticate"]


@pytest.mark.parametrize("seconds", [1, 2.0, 599, 600])
async def test_a_token_is_valid_for_as_long_as_it_is_asked_for(url: str, clock: SettableClock, seconds: float) -> None:
    key = await make_key(url, clock.now)
    async with running(url, clock, token_ttl_seconds=600) as app:
        token = await token_of(app, key, user_session_id="a", ttl_seconds=seconds)
        clock.advance(seconds=seconds - 0.001)
        assert await load(app, "a", token) == 404
        clock.advance(seconds=0.001)
        assert await load(app, "a", token) == 401


async def test_a_token_is_never_valid_for_longer_than_the_settings_say(url: str, clock: SettableClock) -> None:
    key = await make_key(url, clock.now)
    async with running(url, clock, token_ttl_seconds=600) as app:
        assert said(await token_of(app, key))["exp"] == clock.now.timestamp() + 600
        for seconds in (601, 0, -1, 0.5, "60", None, [60], True, 1e300, 86400):
            refused = await mint(app, key, ttl_seconds=seconds)
            assert (refused.status, refused.json()["errors"][0]["member"]) == (400, "ttl_seconds"), seconds
    async with running(url, clock, token_ttl_seconds=10**6) as app:
        assert said(await token_of(app, key))["exp"] == clock.now.timestamp() + 86400, (
            "a day, whatever the settings say"
        )


@pytest.mark.parametrize("verbs", [[], ["list"], ["mint"], ["admin"], ["read", "list"], "read", None, {}, [1], [None]])
async def test_verbs_that_are_none_are_invalid(app: ChatState, key: str, verbs: Any) -> None:
    refused = await mint(app, key, verbs=verbs)
    assert (refused.status, refused.json()["errors"][0]["member"]) == (400, "verbs")


async def test_the_id_of_a_token_is_checked_like_any_other(app: ChatState, key: str) -> None:
    for name in ("", ".", "..", "a" * 256, "a\u0000", None, 5):
        refused = await mint(app, key, user_session_id=name)
        assert (refused.status, refused.json()["errors"][0]["member"]) == (400, "user_session_id")


async def test_a_token_is_void_when_the_key_that_minted_it_expires(url: str, clock: SettableClock) -> None:
    key = await make_key(url, clock.now, expires_at=clock.now + timedelta(seconds=60))
    async with running(url, clock) as app:
        token = await token_of(app, key, user_session_id="a")
        clock.advance(seconds=59)
        assert await load(app, "a", token) == 404
        clock.advance(seconds=1)
        assert await load(app, "a", token) == 401


# --- Renewing ---------------------------------------------------------------------------------------------------------


async def test_a_token_renews_itself_and_nothing_more(app: ChatState, clock: SettableClock, key: str) -> None:
    first = await token_of(app, key, user_session_id="a", verbs=["read"])
    clock.advance(seconds=60)
    second = await token_of(app, first)
    later = clock.now.timestamp()
    assert said(second) == {**said(first), "iat": later, "exp": later + 3600}
    for members in (
        {"user_session_id": "b"},
        {"verbs": ["write"]},
        {"verbs": ["read", "export"]},
    ):
        refused = await mint(app, first, **members)
        scope = {"write": "write", "export": "export"}.get(members.get("verbs", [""])[-1], "mint")
        assert (refused.status, f'scope="{scope}"' in refused.headers["www-authenticate"]) == (403, True)
    assert (await mint(app, first, user_session_id="a")).status == 201


async def test_a_renewal_can_give_verbs_up_but_not_back(app: ChatState, key: str) -> None:
    whole = await token_of(app, key, user_session_id="a", verbs=["read", "write"])
    less = await token_of(app, whole, verbs=["read"])
    assert said(less)["verbs"] == ["read"]
    assert said(await token_of(app, less))["verbs"] == ["read"]
    assert (await mint(app, less, verbs=["write"])).status == 403


async def test_a_row_of_renewals_ends(url: str, clock: SettableClock) -> None:
    key = await make_key(url, clock.now)
    async with running(url, clock, token_ttl_seconds=86400, token_renewable_days=2) as app:
        first = token = await token_of(app, key, user_session_id="a")
        for _ in range(3):
            clock.advance(seconds=12 * 3600)
            token = await token_of(app, token)
            assert said(token)["auth_time"] == said(first)["auth_time"]
        assert said(token)["exp"] == said(first)["auth_time"] + 2 * 86400, "not after the end"
        clock.advance(seconds=12 * 3600 - 1)
        token = await token_of(app, token)
        assert said(token)["exp"] == clock.now.timestamp() + 1
        clock.advance(seconds=1)
        refused = await mint(app, token)
        assert (refused.status, refused.json()["code"]) == (401, "token_expired")


async def test_what_cannot_be_renewed_any_more_is_told_so(url: str, clock: SettableClock) -> None:
    key = await make_key(url, clock.now)
    async with running(url, clock, token_ttl_seconds=86400) as app:
        signer = await signer_of(url, clock.now)
        await app.access.refresh()
        old = said(await token_of(app, key, user_session_id="a")) | {"auth_time": clock.now.timestamp() - 30 * 86400}
        refused = await mint(app, signer.sign(old))
        assert (refused.status, refused.json()["code"]) == (401, "token_expired")
        assert "renewed" in refused.json()["detail"]
        still = {**old, "auth_time": old["auth_time"] + 1}
        assert said(await token_of(app, signer.sign(still)))["exp"] == clock.now.timestamp() + 1


async def test_an_expired_token_is_not_renewed(app: ChatState, clock: SettableClock, key: str) -> None:
    token = await token_of(app, key)
    clock.advance(seconds=3600)
    refused = await mint(app, token)
    assert (refused.status, refused.json()["code"]) == (401, "token_expired")


# --- Revoking ---------------------------------------------------------------------------------------------------------


async def test_a_revocation_ends_older_tokens_of_the_session_at_once(
    app: ChatState, clock: SettableClock, key: str
) -> None:
    old, other = await token_of(app, key, user_session_id="a"), await token_of(app, key, user_session_id="b")
    assert (await revoke(app, "a", key)).status == 200
    assert await load(app, "a", old) == 401
    assert (await mint(app, old)).status == 401, "no renewal either"
    assert await load(app, "b", other) == 404
    clock.advance(seconds=0.000_001)
    new = await token_of(app, key, user_session_id="a")
    assert await load(app, "a", new) == 404


async def test_a_token_revokes_the_tokens_of_its_session(app: ChatState, key: str) -> None:
    token = await token_of(app, key, user_session_id="a", verbs=["read"])
    assert (await revoke(app, "a", token)).status == 200
    assert await load(app, "a", token) == 401
    assert (await revoke(app, "a", token)).status == 401


async def test_another_server_knows_of_a_revocation_once_it_has_read_again(
    url: str, clock: SettableClock, app: ChatState, key: str
) -> None:
    async with running(url, clock, owner=False) as other:
        token = await token_of(app, key, user_session_id="a")
        assert await load(other, "a", token) == 404
        await revoke(app, "a", key)
        await other.access.refresh()
        assert await load(other, "a", token) == 401


async def test_a_renewal_does_not_escape_a_revocation_that_its_server_does_not_know_yet(
    url: str, clock: SettableClock, app: ChatState, key: str
) -> None:
    token = await token_of(app, key, user_session_id="a")
    async with running(url, clock, owner=False) as other:
        await revoke(app, "a", key)
        clock.advance(seconds=1)
        renewed = await token_of(other, token)
        await other.access.refresh()
        assert [await load(server, "a", renewed) for server in (app, other)] == [401, 401]
        assert (await mint(other, renewed)).status == 401


async def test_a_server_that_starts_later_knows_of_a_revocation(
    url: str, clock: SettableClock, app: ChatState, key: str
) -> None:
    token = await token_of(app, key, user_session_id="a")
    await revoke(app, "a", key)
    clock.advance(seconds=1800)
    async with running(url, clock, owner=False) as other:
        assert await load(other, "a", token) == 401


async def test_of_two_revocations_the_later_one_counts(app: ChatState, clock: SettableClock, key: str) -> None:
    await revoke(app, "a", key)
    clock.advance(seconds=10)
    token = await token_of(app, key, user_session_id="a")
    clock.advance(seconds=-10)
    await revoke(app, "a", key)
    clock.advance(seconds=10)
    assert await load(app, "a", token) == 404
    await revoke(app, "a", key)
    assert await load(app, "a", token) == 401


async def test_a_revocation_of_what_is_not_theirs_revokes_nothing_and_is_not_remembered(
    url: str, clock: SettableClock
) -> None:
    key, other = await make_key(url, clock.now), await make_key(url, clock.now, id_prefix="shop_")
    async with running(url, clock) as app:
        token = await token_of(app, key, user_session_id="a")
        foreign = await token_of(app, key, user_session_id="b")
        for credential in (other, foreign):
            answer = await revoke(app, "a", credential)
            assert (answer.status, answer.body) == (200, (await revoke(app, "absent", credential)).body)
        assert await load(app, "a", token) == 404
        assert not await beside(url, lambda store: Tokens(store)._revocations.all(clock.now)), "nothing is kept"


# --- Keys that sign ---------------------------------------------------------------------------------------------------


async def test_after_a_rotation_both_keys_verify_and_the_new_one_signs(
    url: str, clock: SettableClock, app: ChatState, key: str
) -> None:
    before = await token_of(app, key, user_session_id="a")
    clock.advance(seconds=1)
    signer = await beside(url, lambda store: Tokens(store).rotate(clock.now))
    await app.access.refresh()
    after = await token_of(app, key, user_session_id="a")
    assert jwt.get_unverified_header(after)["kid"] == signer != jwt.get_unverified_header(before)["kid"]
    assert [await load(app, "a", token) for token in (before, after)] == [404, 404]


async def test_the_former_key_verifies_for_a_day(url: str, clock: SettableClock) -> None:
    key = await make_key(url, clock.now)
    async with running(url, clock, token_ttl_seconds=86400) as app:
        token = await token_of(app, key, user_session_id="a")
        await beside(url, lambda store: Tokens(store).rotate(clock.now))
        clock.advance(seconds=86399)
        await app.access.refresh()
        assert await load(app, "a", token) == 404
        clock.advance(seconds=1)
        await app.access.refresh()
        assert await load(app, "a", token) == 401


async def test_a_rotation_without_grace_voids_all_tokens(
    url: str, clock: SettableClock, app: ChatState, key: str
) -> None:
    tokens = [await token_of(app, key, user_session_id="a")]
    await beside(url, lambda store: Tokens(store).rotate(clock.now))
    await app.access.refresh()
    tokens.append(await token_of(app, key, user_session_id="a"))
    assert [await load(app, "a", token) for token in tokens] == [404, 404]
    await beside(url, lambda store: Tokens(store).rotate(clock.now, timedelta()))
    await app.access.refresh()
    assert [await load(app, "a", token) for token in tokens] == [401, 401]
    assert await load(app, "a", await token_of(app, key, user_session_id="a")) == 404


async def test_each_former_key_is_kept_for_a_day_after_its_own_rotation(store: Store, clock: SettableClock) -> None:
    kept = Records(store, "signing_keys", SigningKey)
    first = await Tokens(store).rotate(clock.now)
    clock.advance(seconds=3600)
    second = await Tokens(store).rotate(clock.now)
    clock.advance(seconds=3600)
    third = await Tokens(store).rotate(clock.now)
    assert set(await kept.all(clock.now)) == {first, second, third}
    clock.advance(seconds=23 * 3600)
    assert set(await kept.all(clock.now)) == {second, third}
    clock.advance(seconds=3600)
    assert set(await kept.all(clock.now)) == {third}
    clock.advance(seconds=10**8)
    (key,) = (await kept.all(clock.now)).values()
    assert len(b64decode(key.secret)) == 32
    assert re.fullmatch("[0-9a-f]{8}", third)


async def test_a_server_signs_with_the_key_that_another_one_has_made(store: Store, clock: SettableClock) -> None:
    claims = new_claims("a", ("read",), clock.now, HOUR, "")
    tokens = [await Tokens(store).mint(claims, clock.now) for _ in range(3)]
    assert len({jwt.get_unverified_header(token)["kid"] for token in tokens}) == 1
    assert len(await Records(store, "signing_keys", SigningKey).all(clock.now)) == 1


async def test_a_token_is_what_other_versions_take_it_for() -> None:
    """Those that are out, and servers of another version on the same database, rely on it."""
    assert (ALGORITHM, TYPE, AUDIENCE) == ("HS256", "chatstate+jwt", "chatstate:session")
    assert Claims("a", (), 0, 0, 0).azp == ""


async def test_only_the_servers_own_clock_counts(url: str) -> None:
    """The library would compare times with the clock of the machine."""
    clock = SettableClock()
    clock.now = datetime(2099, 1, 1, tzinfo=UTC)
    key = await make_key(url, clock.now)
    async with running(url, clock) as app:
        assert await load(app, "a", await token_of(app, key, user_session_id="a")) == 404


async def test_a_token_with_a_critical_extension_is_refused(
    url: str, clock: SettableClock, app: ChatState, key: str
) -> None:
    await token_of(app, key)
    signer, claims = await signer_of(url, clock.now), claims_of("a", clock.now, key_id_of(key))
    assert await load(app, "a", signer.sign(claims)) == 404
    for critical in (["exp"], ["b64"], []):
        assert await load(app, "a", signer.sign(claims, crit=critical)) == 401


async def test_revocations_are_where_other_versions_look_for_them(store: Store, clock: SettableClock) -> None:
    tokens, kept = Tokens(store), Records(store, "revocations", Revocation)
    await tokens.revoke("a", clock.now)
    assert await kept.all(clock.now) == {"a": Revocation(clock.now)}
    assert await kept.all(clock.now + timedelta(days=1, minutes=5)) == {}
    await tokens.forget("a", clock.now)
    assert await kept.all(clock.now) == {}


async def test_a_rotation_never_brings_a_key_back_that_another_one_has_dropped(
    url: str, clock: SettableClock, app: ChatState, key: str
) -> None:
    """The ring as the slower one has read it still has the key that was leaked."""
    leaked = await token_of(app, key, user_session_id="a")

    async def both(store: Any) -> None:
        slow, fast = Tokens(store), Tokens(store)
        read = slow._keys.all

        async def all_then_dropped(now: Any) -> Any:
            ring = await read(now)
            slow._keys.all = read  # type: ignore[method-assign]
            await fast.rotate(now, timedelta())
            return ring

        slow._keys.all = all_then_dropped  # type: ignore[method-assign, assignment]
        await slow.rotate(clock.now)

    await beside(url, both)
    await app.access.refresh()
    assert await load(app, "a", leaked) == 401


async def test_a_server_that_has_not_seen_the_new_key_yet_accepts_a_token_signed_by_it(
    url: str, clock: SettableClock, app: ChatState, key: str
) -> None:
    await token_of(app, key)
    async with running(url, clock, owner=False) as other:
        clock.advance(seconds=1)
        await app.access.tokens.rotate(clock.now)
        assert await load(other, "a", await token_of(app, key, user_session_id="a")) == 404


async def test_a_server_that_has_read_just_now_accepts_a_key_that_is_newer(
    url: str, clock: SettableClock, app: ChatState
) -> None:
    await app.access.refresh()
    assert await load(app, "a", await make_key(url, clock.now)) == 404


async def test_verification_asks_nothing_of_the_store(
    app: ChatState, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await token_of(app, key, user_session_id="a")

    async def asked(*_: object, **__: object) -> None:
        raise AssertionError("the store was asked")

    with monkeypatch.context() as patched:
        for verb in ("load", "list", "commit"):
            patched.setattr(app.store, verb, asked)
        for _ in range(3):
            assert (await app.access.caller(token)).within.only == "a"
            assert (await app.access.caller(key)).key_id == key_id_of(key)


async def test_a_leaked_key_that_is_rotated_at_once_takes_its_tokens_with_it(
    url: str, clock: SettableClock, app: ChatState, key: str
) -> None:
    """Also those that were renewed; while an orderly rotation leaves them alone."""
    old = await token_of(app, key, user_session_id="a")
    clock.advance(seconds=1)
    await beside(url, lambda store: Keys(store).rotate(key_id_of(key), clock.now))
    await app.access.refresh()
    renewed = await token_of(app, old)
    assert [await load(app, "a", token) for token in (old, renewed)] == [404, 404]
    clock.advance(seconds=1)
    newer = await beside(url, lambda store: Keys(store).rotate(key_id_of(key), clock.now, timedelta()))
    await app.access.refresh()
    assert [await load(app, "a", token) for token in (old, renewed)] == [401, 401]
    assert (await mint(app, old)).status == 401
    clock.advance(seconds=1)
    assert await load(app, "a", await token_of(app, newer, user_session_id="a")) == 404


async def test_a_revoked_key_takes_its_tokens_with_it(url: str, clock: SettableClock, app: ChatState, key: str) -> None:
    token = await token_of(app, key, user_session_id="a")
    clock.advance(seconds=HOUR.total_seconds() / 2)
    await beside(url, lambda store: Keys(store).revoke(key_id_of(key), clock.now))
    await app.access.refresh()
    assert [await load(app, "a", credential) for credential in (key, token)] == [401, 401]
