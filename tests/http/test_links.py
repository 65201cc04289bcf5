"""Links to other devices over the API, and the attacks on them (RFC 10027). On servers in this event loop."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jwt
import pytest
import segno

from chatstate import create_store
from chatstate.encryption import KeyRing, new_key
from chatstate.errors import StateUnreadable
from chatstate.http.app import ChatState
from chatstate.http.gate import Rates
from chatstate.keys import Keys
from chatstate.links import ALPHABET, LONGEST_KEPT, MOST_KEPT, Grant, Links, SessionLinks, parse
from chatstate.record import RecordQuery
from chatstate.stores import Store
from tests.http.conftest import Answer, SettableClock
from tests.http.credentials import ask, bearer, beside, key_id_of, make_key, running

SESSIONS = "/chat-state-sessions"
MINE = "mine_1"
PHONE = {"User-Agent": "Phone/1.0 (Berlin)"}
LIMITED = Rates(0, 0, 0, 10)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/chatstate.db"


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
async def key(url: str, clock: SettableClock) -> str:
    """A key with all scopes, for all sessions."""
    return await make_key(url, clock.now)


@pytest.fixture
async def app(url: str, clock: SettableClock, key: str) -> AsyncIterator[ChatState]:
    """A keyed server with a session."""
    async with running(url, clock, demo=True) as app:
        await save(app, key)
        yield app


@pytest.fixture
async def open_app(tmp_path: Path, clock: SettableClock) -> AsyncIterator[ChatState]:
    """A server without keys, with a session."""
    async with running(f"sqlite:///{tmp_path}/open.db", clock) as app:
        await save(app, "")
        yield app


async def save(app: ChatState, credential: str, session: str = MINE) -> None:
    fields = bearer(credential) if credential else {}
    answer = await ask(app, "POST", SESSIONS, {"user_session_id": session, "chat_state": "{}"}, fields)
    assert answer.status in (200, 201), answer.body


async def token_of(app: ChatState, credential: str, session: str = MINE, **members: Any) -> str:
    answer = await ask(app, "POST", "/tokens", {"user_session_id": session, **members}, bearer(credential))
    assert answer.status == 201, answer.body
    token: str = answer.json()["token"]
    return token


async def issue(app: ChatState, credential: str = "", session: str = MINE, /, **members: Any) -> Answer:
    fields = bearer(credential) if credential else {}
    return await ask(app, "POST", f"{SESSIONS}/{session}/links", members or None, fields)


async def link_of(app: ChatState, credential: str = "", session: str = MINE, /, **members: Any) -> dict[str, str]:
    answer = await issue(app, credential, session, **members)
    assert answer.status == 201, answer.body
    link: dict[str, str] = answer.json()
    return link


async def redeem(app: ChatState, code: str, **more: Any) -> Answer:
    target = code if code.startswith("/") else f"/links/{code}"
    return await ask(app, "POST", target, None, PHONE, **more)


async def given(app: ChatState, code: str) -> str:
    """The token that the redeemer gets."""
    answer = await redeem(app, code)
    assert answer.status == 200, answer.body
    token: str = answer.json()["token"]
    return token


async def status_of(app: ChatState, credential: str, code: str, session: str = MINE) -> str:
    fields = bearer(credential) if credential else {}
    answer = await ask(app, "GET", f"{SESSIONS}/{session}/links/{code[:4]}", None, fields)
    assert answer.status == 200, answer.body
    found: str = answer.json()["status"]
    return found


async def take_back(app: ChatState, credential: str, code: str, session: str = MINE) -> Answer:
    return await ask(app, "DELETE", f"{SESSIONS}/{session}/links/{code[:4]}", None, bearer(credential))


async def load(app: ChatState, credential: str, session: str = MINE) -> int:
    return (await ask(app, "GET", f"{SESSIONS}/{session}", None, bearer(credential))).status


def secret_of(link: dict[str, str]) -> str:
    return link["url"].partition("#link=")[2]


def wrong(code: str, number: int = 0) -> str:
    """The code with another secret part."""
    others = [letter for letter in ALPHABET if letter not in code[5:]]
    return code[:5] + others[number] * 4


def said(token: str) -> dict[str, Any]:
    members: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return members


def assert_not_found(answer: Answer) -> None:
    assert (answer.status, answer.json()["code"]) == (404, "link_not_found"), answer.body


# --- How it goes ------------------------------------------------------------------------------------------------------


async def test_a_link_leads_to_the_session_on_another_device(app: ChatState, clock: SettableClock, key: str) -> None:
    answer = await issue(app, key)
    link = answer.json()
    assert answer.status == 201
    assert set(link) == {"code", "url", "expires_at"}
    assert re.fullmatch(f"[{ALPHABET}]{{4}}-[{ALPHABET}]{{4}}", link["code"])
    assert re.fullmatch(f"http://localhost/demo#link={link['code'][:4]}\\.[A-Za-z0-9_-]{{43}}", link["url"])
    assert link["expires_at"] == "2025-10-02T10:10:00Z"
    assert answer.headers["location"] == f"{SESSIONS}/{MINE}/links/{link['code'][:4]}"
    shown = await ask(app, "GET", answer.headers["location"], None, bearer(key))
    assert shown.json() == {
        "id": link["code"][:4],
        "created_at": "2025-10-02T10:00:00Z",
        "expires_at": "2025-10-02T10:10:00Z",
        "status": "open",
    }
    clock.advance(seconds=60)
    redeemed = await redeem(app, link["code"])
    assert redeemed.status == 200
    assert set(redeemed.json()) == {"user_session_id", "token", "expires_at"}
    assert (redeemed.json()["user_session_id"], redeemed.json()["expires_at"]) == (MINE, "2025-10-02T11:01:00Z")
    assert await load(app, redeemed.json()["token"]) == 200
    shown = await ask(app, "GET", answer.headers["location"], None, bearer(key))
    assert shown.json()["status"] == "redeemed"
    assert shown.json()["redeemed_at"] == "2025-10-02T10:01:00Z"
    assert shown.json()["device"] == PHONE["User-Agent"]


async def test_the_secret_of_the_address_redeems_too_and_uses_up_the_code(app: ChatState, key: str) -> None:
    link = await link_of(app, key)
    await given(app, secret_of(link))
    assert_not_found(await redeem(app, link["code"]))
    assert_not_found(await redeem(app, secret_of(link)))


async def test_an_open_server_makes_links_for_everybody_of_this_machine(open_app: ChatState) -> None:
    link = await link_of(open_app)
    assert link["url"].startswith("http://localhost/demo#link=")
    token = await given(open_app, link["code"])
    assert said(token)["verbs"] == ["read", "write", "delete"]
    assert await load(open_app, token) == 200
    assert await status_of(open_app, "", link["code"]) == "redeemed"


@pytest.mark.parametrize(
    "written",
    [
        "{a}-{b}",
        "{a}{b}",
        "{a}%20{b}",
        "%20{a}%20-%20{b}%20",
        "{al}-{bl}",
        "{al}{bl}",
        "{a}%E2%80%93{b}",
        "{a}%E2%80%91{b}",
        "{a}-{b}%0A",
        "-{al}--{b}-",
    ],
)
async def test_a_code_is_read_as_people_write_it(open_app: ChatState, written: str) -> None:
    a, b = (await link_of(open_app))["code"].split("-")
    assert (await redeem(open_app, written.format(a=a, b=b, al=a.lower(), bl=b.lower()))).status == 200


async def test_the_list_shows_the_newest_first_and_a_server_keeps_few(
    open_app: ChatState, clock: SettableClock
) -> None:
    codes = []
    for _ in range(7):
        clock.advance(seconds=1)
        codes.append((await link_of(open_app))["code"][:4])
    listed = (await ask(open_app, "GET", f"{SESSIONS}/{MINE}/links")).json()["links"]
    assert [link["id"] for link in listed] == codes[::-1]
    assert [link["status"] for link in listed] == ["open"] * 5 + ["void"] * 2, "newer ones take the place of the oldest"
    clock.advance(seconds=600)
    assert await status_of(open_app, "", codes[-1]) == "expired"
    clock.advance(seconds=86_400)
    assert (await ask(open_app, "GET", f"{SESSIONS}/{MINE}/links")).json() == {"links": []}


@pytest.mark.parametrize("members", [{"ttl_seconds": 1}, {"ttl_seconds": 600}, {"qr": False}, {}])
async def test_what_may_be_asked_for(open_app: ChatState, members: dict[str, Any]) -> None:
    link = await link_of(open_app, "", MINE, **members)
    assert "qr_svg" not in link
    assert link["expires_at"] == ("2025-10-02T10:00:01Z" if members.get("ttl_seconds") == 1 else "2025-10-02T10:10:00Z")


@pytest.mark.parametrize(
    ("member", "value"),
    [("ttl_seconds", value) for value in (0, 601, -1, 1.5, "60", None, True)]
    + [("qr", value) for value in ("true", 1, None)]
    + [("page", value) for value in (1, None, "", "x")],
)
async def test_what_may_not_be_asked_for(open_app: ChatState, member: str, value: Any) -> None:
    refused = await issue(open_app, "", MINE, **{member: value})
    assert (refused.status, refused.json()["code"]) == (400, "invalid_request")
    assert [error["member"] for error in refused.json()["errors"]] == [member]


async def test_a_picture_of_the_address_can_be_asked_for(open_app: ChatState) -> None:
    link = await link_of(open_app, "", MINE, qr=True)
    image = ElementTree.fromstring(link["qr_svg"])
    assert (image.get("role"), image.get("width")) == ("img", None)
    assert image.find("{http://www.w3.org/2000/svg}title") is not None
    code = segno.make(link["url"], error="m", micro=False)
    side = str(code.symbol_size(border=4)[0])
    assert image.get("viewBox") == f"0 0 {side} {side}"
    (dark,) = [path for path in image.iter("{http://www.w3.org/2000/svg}path") if path.get("stroke")]
    assert _painted(dark.get("d") or "") == {
        (x + 4, y + 4) for y, row in enumerate(code.matrix) for x, is_dark in enumerate(row) if is_dark
    }


def _painted(path: str) -> set[tuple[int, int]]:
    """The squares that horizontal lines cover."""
    found, x, y = set(), 0, 0.0
    for command, numbers in re.findall(r"([Mmh])([-\d. ]+)", path):
        values = [float(number) for number in numbers.split()]
        if command == "h":
            found |= {(place, int(y)) for place in range(x, x + int(values[0]))}
            x += int(values[0])
        else:
            start = (0, 0.0) if command == "M" else (x, y)
            x, y = start[0] + int(values[0]), start[1] + values[1]
    return found


# --- Brute force ------------------------------------------------------------------------------------------------------


async def test_five_wrong_tries_make_a_link_void(app: ChatState, key: str) -> None:
    link = await link_of(app, key)
    for number in range(5):
        assert await status_of(app, key, link["code"]) == "open"
        assert_not_found(await redeem(app, wrong(link["code"], number)))
    assert await status_of(app, key, link["code"]) == "void"
    assert_not_found(await redeem(app, link["code"]))
    assert_not_found(await redeem(app, secret_of(link)))


async def test_four_wrong_tries_do_not(app: ChatState, key: str) -> None:
    link = await link_of(app, key)
    for number in range(3):
        assert_not_found(await redeem(app, wrong(link["code"], number)))
    assert_not_found(await redeem(app, secret_of(link)[:-1] + "-"))
    await given(app, link["code"])


async def test_of_many_tries_at_once_five_count(app: ChatState, url: str, clock: SettableClock, key: str) -> None:
    """Over two servers, and with the right one among them: whichever comes first, never six wrong ones and then it."""
    async with running(url, clock, owner=False) as other:
        for _ in range(5):
            link = await link_of(app, key)
            tries = [redeem((app, other)[number % 2], wrong(link["code"], number)) for number in range(5)]
            answers = await asyncio.gather(*tries, redeem(other, link["code"]))
            statuses = Counter(answer.status for answer in answers)
            assert statuses in ({404: 6}, {404: 5, 200: 1})
            assert await status_of(app, key, link["code"]) == ("redeemed" if statuses[200] else "void")
            assert_not_found(await redeem(app, link["code"]))


async def test_whoever_sprays_codes_is_told_to_wait(url: str, clock: SettableClock, key: str) -> None:
    async with running(url, clock, rates=LIMITED, demo=True) as app:
        await save(app, key)
        link = await link_of(app, key)
        for _ in range(10):
            assert_not_found(await redeem(app, "BBBB-BBBB", client="198.51.100.7"))
        for code in ("BBBB-BBBB", "odd", link["code"]):
            refused = await redeem(app, code, client="198.51.100.7")
            assert (refused.status, refused.json()["code"]) == (429, "too_many_requests")
            assert 0 < int(refused.headers["retry-after"]) <= 6
        assert (await redeem(app, link["code"], client="203.0.113.9")).status == 200


async def test_many_tries_at_once_do_not_slip_past_the_limit(url: str, clock: SettableClock, key: str) -> None:
    async with running(url, clock, rates=LIMITED) as app:
        answers = await asyncio.gather(*(redeem(app, "BBBB-BBBB") for _ in range(30)))
        assert Counter(answer.status for answer in answers) == {404: 10, 429: 20}


async def test_right_codes_do_not_count_as_wrong_ones(url: str, clock: SettableClock, key: str) -> None:
    async with running(url, clock, rates=LIMITED, demo=True) as app:
        await save(app, key)
        for _ in range(15):
            await given(app, (await link_of(app, key))["code"])


# --- Once, and in time ------------------------------------------------------------------------------------------------


async def test_of_two_redeemers_one_wins(store_url: str, clock: SettableClock) -> None:
    """Also at two servers on one database."""
    async with running(store_url, clock) as app, running(store_url, clock, owner=False) as other:
        await save(app, "")
        for _ in range(5):
            link = await link_of(app)
            texts = [link["code"], secret_of(link)] * 4
            tries = [redeem((app, other)[number // 2 % 2], text) for number, text in enumerate(texts)]
            answers = await asyncio.gather(*tries)
            assert Counter(answer.status for answer in answers) == {200: 1, 404: 7}


async def test_a_link_is_redeemed_once(app: ChatState, key: str) -> None:
    link = await link_of(app, key)
    await given(app, link["code"])
    for text in (link["code"], secret_of(link)):
        assert_not_found(await redeem(app, text))


async def test_a_link_is_open_until_its_last_moment(app: ChatState, clock: SettableClock, key: str) -> None:
    for ttl, early in ((600, True), (600, False), (1, True), (1, False)):
        link = await link_of(app, key, MINE, ttl_seconds=ttl)
        clock.advance(seconds=ttl - (0.000_001 if early else 0))
        answer = await redeem(app, link["code"])
        assert answer.status == (200 if early else 404)
        assert await status_of(app, key, link["code"]) == ("redeemed" if early else "expired")


async def test_fetching_a_link_leaves_it_open(app: ChatState, key: str) -> None:
    """As scanners of mail and messengers do, which follow every address."""
    link = await link_of(app, key)
    for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH"):
        for text in (link["code"], secret_of(link)):
            answer = await ask(app, method, f"/links/{text}")
            assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert (await ask(app, "OPTIONS", f"/links/{link['code']}")).headers["allow"] == "POST"
    assert "?" not in link["url"], "what stands behind # is not sent"
    await given(app, link["code"])


ODD = [
    "x",
    "BCDF",
    "BCDFGHJK",
    "BCDF-GHJ",
    "BCDF-GHJKL",
    "AEIO-UAEI",
    "%00",
    "%ff",
    "%",
    "%zz",
    "BCDF.",
    "BCDF." + "a" * 43,
    "..",
    "BCDF." + "a" * 44,
    "%1f",
    "%2F",
    "a" * 5000,
    "BCDF-GHJ%C5%BF",
    "%C3%9F%C3%9F%C3%9F%C3%9F",
    "BCDF%00GHJK",
    "%EF%BC%A2",
]


async def test_all_that_is_wrong_looks_the_same(app: ChatState, clock: SettableClock, key: str) -> None:
    used, void, old, tried = [await link_of(app, key) for _ in range(3)] + [
        await link_of(app, key, MINE, ttl_seconds=1)
    ]
    await given(app, used["code"])
    await take_back(app, key, void["code"])
    clock.advance(seconds=1)
    codes = [used["code"], void["code"], tried["code"], wrong(old["code"]), secret_of(used), *ODD]
    answers = [await redeem(app, code) for code in codes]
    assert {(answer.status, answer.body, tuple(answer.headers.items())) for answer in answers} == {
        (404, answers[0].body, tuple(answers[0].headers.items()))
    }
    assert_not_found(answers[0])


async def test_all_that_is_wrong_takes_as_much_work(app: ChatState, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used, open_link = await link_of(app, key), await link_of(app, key)
    await given(app, used["code"])
    asked: list[str] = []
    for verb in ("load", "list", "commit"):
        method = getattr(app.store, verb)

        async def counted(*given: Any, verb: str = verb, method: Any = method) -> Any:
            asked.append(verb)
            return await method(*given)

        monkeypatch.setattr(app.store, verb, counted)
    work = []
    for code in (used["code"], "BBBB-BBBB", "odd"):
        asked.clear()
        assert_not_found(await redeem(app, code))
        work.append(list(asked))
    assert work == [["list", "list", "commit"]] * 3
    asked.clear()
    assert_not_found(await redeem(app, wrong(open_link["code"])))
    assert Counter(asked) == {"list": 3, "commit": 1}


# --- What the redeemer gets -------------------------------------------------------------------------------------------


async def test_the_redeemer_gets_a_token_of_their_own(app: ChatState, clock: SettableClock, key: str) -> None:
    """No session fixation: it is new, and the issuer's stays what it is."""
    mine = await token_of(app, key)
    link = await link_of(app, mine)
    clock.advance(seconds=1)
    token = await given(app, link["code"])
    assert token != mine
    assert said(token)["links"] != []
    assert "links" not in said(mine)
    assert [await load(app, each) for each in (mine, token)] == [200, 200]


async def test_what_somebody_sends_along_does_not_become_theirs(app: ChatState, key: str) -> None:
    """An attacker's code gives a token for the attacker's session alone, whatever the victim shows with it."""
    await save(app, key, "attacker_1")
    link = await link_of(app, key, "attacker_1")
    victim = await token_of(app, key)
    answer = await ask(app, "POST", f"/links/{link['code']}", {"user_session_id": MINE}, bearer(victim))
    assert said(answer.json()["token"])["sub"] == answer.json()["user_session_id"] == "attacker_1"
    assert await load(app, answer.json()["token"]) == 404


@pytest.mark.parametrize("verbs", [["read"], ["read", "write"], ["write"], ["export"]])
async def test_a_link_gives_what_its_issuer_has_and_no_more(app: ChatState, key: str, verbs: list[str]) -> None:
    token = await given(app, (await link_of(app, await token_of(app, key, verbs=verbs)))["code"])
    assert said(token)["verbs"] == verbs
    assert await load(app, token) == (200 if "read" in verbs else 403)
    refused = await ask(app, "POST", "/tokens", {"verbs": ["delete"]}, bearer(token))
    assert refused.status == 403


@pytest.mark.parametrize(
    ("scopes", "expected"),
    [(["mint", "read"], ["read"]), (["mint", "read", "write", "delete", "export"], ["read", "write", "delete"])],
)
async def test_a_key_gives_as_many_verbs_as_to_a_token(
    app: ChatState, url: str, clock: SettableClock, scopes: Any, expected: list[str]
) -> None:
    issuer = await make_key(url, clock.now, scopes)
    token = await given(app, (await link_of(app, issuer))["code"])
    assert (said(token)["verbs"], said(token)["azp"]) == (expected, key_id_of(issuer))


async def test_who_may_not_mint_makes_no_links(app: ChatState, url: str, clock: SettableClock) -> None:
    for scopes, lacking in ((["read", "write", "delete", "list"], "mint"), (["mint", "list"], "read")):
        issuer = await make_key(url, clock.now, scopes)  # type: ignore[arg-type]
        await app.access.refresh()
        refused = await issue(app, issuer)
        assert (refused.status, refused.json()["code"]) == (403, "forbidden")
        assert f'scope="{lacking}"' in refused.headers["www-authenticate"]


async def test_who_may_not_make_links_does_not_see_them(
    app: ChatState, url: str, clock: SettableClock, key: str
) -> None:
    link = (await link_of(app, key))["code"]
    other = await make_key(url, clock.now, ["read", "write", "delete", "list", "export", "admin"])
    await app.access.refresh()
    for method, below in (("GET", ""), ("GET", f"/{link[:4]}"), ("DELETE", f"/{link[:4]}")):
        refused = await ask(app, method, f"{SESSIONS}/{MINE}/links{below}", None, bearer(other))
        assert (refused.status, refused.json()["code"]) == (403, "forbidden")
    assert await status_of(app, key, link) == "open"


async def test_links_do_not_prolong_the_row_of_renewals(url: str, clock: SettableClock, key: str) -> None:
    async with running(url, clock, token_ttl_seconds=86_400, token_renewable_days=1, demo=True) as app:
        await save(app, key)
        token = await token_of(app, key, ttl_seconds=80_000)
        last = said(token)["auth_time"] + 86_400
        for _ in range(5):
            clock.advance(seconds=10_000)
            token = await given(app, (await link_of(app, token))["code"])
            assert said(token)["exp"] == last
        clock.advance(seconds=86_400 - 50_000 - 300)
        link = await link_of(app, token)
        clock.advance(seconds=300)
        assert_not_found(await redeem(app, link["code"]))


async def test_a_token_that_cannot_be_renewed_any_more_makes_no_link(url: str, clock: SettableClock, key: str) -> None:
    async with running(url, clock, token_ttl_seconds=86_400, token_renewable_days=1, demo=True) as app:
        await save(app, key)
        token = await token_of(app, key)
        clock.advance(seconds=86_400)
        assert (await issue(app, token)).json()["code"] == "token_expired"


async def test_a_session_is_not_handed_on_for_ever(app: ChatState, key: str) -> None:
    token = await token_of(app, key)
    for number in range(8):
        token = await given(app, (await link_of(app, token))["code"])
        assert len(said(token)["links"]) == number + 1
    refused = await issue(app, token)
    assert (refused.status, refused.json()["code"]) == (403, "forbidden")


async def test_the_anonymous_redeem_but_do_not_issue(url: str, clock: SettableClock, key: str) -> None:
    page = "https://chat.example.org/"
    settings: dict[str, Any] = {"allow_anonymous": True, "allowed_origins": ["https://chat.example.org"]}
    async with running(url, clock, rates=Rates(9, 9, 9, 9), **settings) as app:
        await save(app, "")
        assert (await issue(app)).status == 401
        for target in (f"{SESSIONS}/{MINE}/links", f"{SESSIONS}/{MINE}/links/BCDF"):
            assert (await ask(app, "GET", target)).status == 401
        token = await given(app, (await link_of(app, key, MINE, page=page))["code"])
        assert await load(app, token) == 200


# --- Taking back ------------------------------------------------------------------------------------------------------


async def test_a_link_that_was_taken_back_is_void(app: ChatState, key: str) -> None:
    link, other = await link_of(app, key), await link_of(app, key)
    for _ in range(2):
        answer = await take_back(app, key, link["code"])
        assert (answer.status, answer.json()) == (200, {"message": "Link taken back"})
    assert_not_found(await redeem(app, link["code"]))
    assert [await status_of(app, key, each["code"]) for each in (link, other)] == ["void", "open"]
    await given(app, other["code"])


async def test_taking_back_what_was_redeemed_ends_that_token_and_its_renewals_on_all_servers(
    store_url: str, clock: SettableClock
) -> None:
    key = await make_key(store_url, clock.now)
    async with running(store_url, clock, demo=True) as app, running(store_url, clock, owner=False) as other:
        await save(app, key)
        mine = await token_of(app, key)
        link, second = await link_of(app, mine), await link_of(app, mine)
        token, bystander = await given(app, link["code"]), await given(app, second["code"])
        renewed = await token_of(other, token)
        assert [await load(server, each) for server in (app, other) for each in (token, renewed)] == [200] * 4
        assert (await take_back(app, mine, link["code"])).status == 200
        assert [await load(app, each) for each in (token, renewed)] == [401, 401], "at once"
        late = await token_of(other, renewed)
        await other.access.refresh()
        assert [await load(server, each) for server in (app, other) for each in (token, renewed, late)] == [401] * 6
        assert (await ask(other, "POST", "/tokens", {}, bearer(renewed))).status == 401
        assert [await load(server, each) for server in (app, other) for each in (mine, bystander)] == [200] * 4
        shown = (await ask(app, "GET", f"{SESSIONS}/{MINE}/links/{link['code'][:4]}", None, bearer(mine))).json()
        assert (shown["status"], shown["device"]) == ("void", PHONE["User-Agent"])


async def test_taking_back_ends_what_was_handed_on_from_there(app: ChatState, key: str) -> None:
    """A thief who has redeemed a link makes links of their own at once."""
    mine = await token_of(app, key)
    link = await link_of(app, mine)
    stolen = await given(app, link["code"])
    handed_on = await given(app, (await link_of(app, stolen))["code"])
    waiting = await link_of(app, handed_on)
    await take_back(app, mine, link["code"])
    assert [await load(app, token) for token in (stolen, handed_on, mine)] == [401, 401, 200]
    assert await status_of(app, mine, waiting["code"]) == "void"
    assert_not_found(await redeem(app, waiting["code"]))


async def test_of_a_redeemer_and_who_takes_it_back_the_latter_wins(app: ChatState, key: str) -> None:
    for _ in range(10):
        link = await link_of(app, key)
        redeemed, _ = await asyncio.gather(redeem(app, link["code"]), take_back(app, key, link["code"]))
        assert redeemed.status == 404 or await load(app, redeemed.json()["token"]) == 401
        assert await status_of(app, key, link["code"]) == "void"


async def test_a_device_can_be_taken_back_as_long_as_its_token_can_be_renewed(
    app: ChatState, clock: SettableClock, key: str
) -> None:
    link = await link_of(app, key)
    token = await given(app, link["code"])
    for _ in range(7):
        clock.advance(seconds=3000)
        token = await token_of(app, token)
    clock.advance(seconds=LONGEST_KEPT.total_seconds() - 7 * 3000 - 3000)
    assert await status_of(app, key, link["code"]) == "redeemed"
    clock.advance(seconds=3001)
    assert (await take_back(app, key, link["code"])).status == 404


# --- What makes a link void -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("issuer", ["key", "token"])
async def test_revoking_the_tokens_of_a_session_voids_its_links(
    app: ChatState, clock: SettableClock, key: str, issuer: str
) -> None:
    credential = key if issuer == "key" else await token_of(app, key)
    before = await link_of(app, credential)
    assert (await ask(app, "DELETE", f"{SESSIONS}/{MINE}/tokens", None, bearer(key))).status == 200
    assert_not_found(await redeem(app, before["code"]))
    clock.advance(seconds=1)
    await given(app, (await link_of(app, key))["code"])


async def test_a_revocation_that_a_server_has_not_read_yet_counts(
    app: ChatState, url: str, clock: SettableClock, key: str
) -> None:
    """Neither for a link made with a void token there, nor for one that is redeemed there."""
    async with running(url, clock, owner=False, demo=True) as other:
        token, link = await token_of(app, key), await link_of(app, key)
        await other.access.refresh()
        clock.advance(seconds=1)
        await ask(app, "DELETE", f"{SESSIONS}/{MINE}/tokens", None, bearer(key))
        clock.advance(seconds=1)
        late = await link_of(other, token)
        for code in (link["code"], late["code"]):
            assert_not_found(await redeem(other, code))


@pytest.mark.parametrize("issuer", ["key", "token"])
async def test_revoking_a_key_voids_its_links_and_what_they_gave(
    app: ChatState, url: str, clock: SettableClock, key: str, issuer: str
) -> None:
    leaked = await make_key(url, clock.now)
    credential = leaked if issuer == "key" else await token_of(app, leaked)
    link, used = await link_of(app, credential), await link_of(app, credential)
    token = await given(app, used["code"])
    await beside(url, lambda store: Keys(store).revoke(key_id_of(leaked), clock.now))
    assert_not_found(await redeem(app, link["code"]))
    assert await load(app, token) == 401
    assert await load(app, key) == 200


async def test_a_key_that_is_rotated_at_once_takes_its_links_with_it(
    app: ChatState, url: str, clock: SettableClock, key: str
) -> None:
    from datetime import timedelta

    link = await link_of(app, key)
    clock.advance(seconds=1)
    new = await beside(url, lambda store: Keys(store).rotate(key_id_of(key), clock.now, timedelta()))
    assert_not_found(await redeem(app, link["code"]))
    clock.advance(seconds=1)
    await given(app, (await link_of(app, new))["code"])


async def test_a_link_from_when_the_server_was_open_is_void_when_it_has_keys(url: str, clock: SettableClock) -> None:
    async with running(url, clock) as app:
        await save(app, "")
        link = await link_of(app)
        await make_key(url, clock.now)
        assert_not_found(await redeem(app, link["code"]))


@pytest.mark.parametrize("again", [True, False])
async def test_deleting_a_session_voids_its_links(app: ChatState, url: str, key: str, again: bool) -> None:
    link = await link_of(app, key)
    other = await link_of(app, key)
    await given(app, other["code"])
    assert (await ask(app, "DELETE", f"{SESSIONS}/{MINE}", None, bearer(key))).status == 200
    if again:
        await save(app, key)
    assert_not_found(await redeem(app, link["code"]))
    assert await records(app.store) == {}


async def test_a_link_is_for_the_session_as_it_was_then(url: str, clock: SettableClock) -> None:
    """One that has expired and was created again is another one."""
    async with running(url, clock, idle_expiry_seconds=100) as app:
        await save(app, "")
        link, other = await link_of(app), await link_of(app)
        clock.advance(seconds=100)
        assert_not_found(await redeem(app, link["code"]))
        await save(app, "")
        assert_not_found(await redeem(app, other["code"]))


async def test_erasing_a_person_removes_links(app: ChatState, key: str) -> None:
    visit = {"user_session_id": MINE, "user_id": "ada"}
    assert (await ask(app, "POST", "/chat-sessions", visit, bearer(key))).status == 201
    link = await link_of(app, key)
    await given(app, (await link_of(app, key))["code"])
    assert (await ask(app, "DELETE", "/users/ada", None, bearer(key))).status == 200
    assert_not_found(await redeem(app, link["code"]))
    assert await records(app.store) == {}


async def test_an_export_has_the_links(app: ChatState, key: str) -> None:
    link = await link_of(app, key)
    await given(app, link["code"])
    export = (await ask(app, "GET", f"{SESSIONS}/{MINE}/export", None, bearer(key))).json()
    assert [(row["id"], row["device"]) for row in export["links"]] == [(link["code"][:4], PHONE["User-Agent"])]


# --- Not theirs -------------------------------------------------------------------------------------------------------


async def test_a_session_of_others_is_like_none(app: ChatState, url: str, clock: SettableClock, key: str) -> None:
    shop = await make_key(url, clock.now, id_prefix="shop_")
    foreign = await token_of(app, key, "other_1")
    link = (await link_of(app, key))["code"][:4]
    for credential in (shop, foreign):
        for method, below in (
            ("POST", "links"),
            ("GET", "links"),
            ("GET", f"links/{link}"),
            ("DELETE", f"links/{link}"),
        ):
            answers = [
                await ask(app, method, f"{SESSIONS}/{session}/{below}", None, bearer(credential))
                for session in (MINE, "absent")
            ]
            assert answers[0].status == 404
            assert answers[0].body == answers[1].body
            assert answers[0].headers == answers[1].headers
    assert await status_of(app, key, link) == "open"


async def test_a_link_of_another_session_is_like_none(app: ChatState, key: str) -> None:
    await save(app, key, "other_1")
    link = (await link_of(app, key))["code"][:4]
    absent = "BBBB" if link != "BBBB" else "CCCC"
    for credential in (key, await token_of(app, key, "other_1")):
        for method in ("GET", "DELETE"):
            answers = [
                await ask(app, method, f"{SESSIONS}/other_1/links/{each}", None, bearer(credential))
                for each in (link, absent)
            ]
            assert_not_found(answers[0])
            assert (answers[0].body, answers[0].headers) == (answers[1].body, answers[1].headers)
    assert await status_of(app, key, link) == "open"


async def test_links_of_a_session_that_is_not_there(app: ChatState, key: str) -> None:
    for answer in (
        await issue(app, key, "absent"),
        await ask(app, "GET", f"{SESSIONS}/absent/links", None, bearer(key)),
    ):
        assert (answer.status, answer.json()["code"]) == (404, "session_not_found")
    assert await records(app.store) == {}


# --- Where a link leads -----------------------------------------------------------------------------------------------

FOREIGN = [
    "https://evil.example/",
    "javascript:alert(1)",
    "data:text/html,x",
    "//evil.example/",
    "/demo",
    "http:evil.example",
    "https://chat.example.org@evil.example/",
    "https://chat.example.org:x@evil.example/",
    "https://evil.example\\@chat.example.org/",
    "https://chat.example.org.evil.example/",
    "https://evilchat.example.org/",
    "http://chat.example.org/",
    "ftp://chat.example.org/",
    "https://chat.example.org/#",
    "https://chat.example.org/#link=x",
    "https://chat.example.org:444/",
    " https://chat.example.org/",
    "https://chat.example.org/\n",
    "https://chat.example.org/ ",
    "https://chat.example.org/\t",
    "https://chat.example.org/é",
    "https:\\\\chat.example.org/",
    "https:/chat.example.org/",
    "https://",
    "https:///x",
    "https://chat.example.org/" + "a" * 2000,
    "https://user@chat.example.org/",
    "https://chat.example.org\u3002evil.example/",
    "https://chat.example.org/\x00",
    "https://localhost/",
    "http://127.0.0.1:3000/",
]


@pytest.mark.parametrize("page", FOREIGN)
async def test_a_link_leads_to_no_page_of_others(url: str, clock: SettableClock, key: str, page: str) -> None:
    async with running(url, clock, allowed_origins=["https://chat.example.org"]) as app:
        await save(app, key)
        refused = await issue(app, key, MINE, page=page)
        assert (refused.status, refused.json()["code"]) == (400, "invalid_request")
        assert [error["member"] for error in refused.json()["errors"]] == ["page"]


@pytest.mark.parametrize(
    "page",
    [
        "https://chat.example.org/",
        "https://chat.example.org",
        "https://chat.example.org:443/a/b?c=d&e=%20",
        "HTTPS://Chat.Example.Org/",
        "https://chat.example.org?x=1",
        "http://localhost/chat",
        "http://localhost:80/chat",
    ],
)
async def test_a_link_leads_to_pages_of_this_server_and_of_the_list(
    url: str, clock: SettableClock, key: str, page: str
) -> None:
    async with running(url, clock, allowed_origins=["https://chat.example.org"]) as app:
        await save(app, key)
        link = await link_of(app, key, MINE, page=page)
        assert link["url"].partition("#")[0] == page
        await given(app, secret_of(link))


@pytest.mark.parametrize(
    "page", ["http://localhost:5173/chat", "http://127.0.0.1:8080/", "http://[::1]:1/", "https://a.localhost/"]
)
async def test_an_open_server_leads_to_pages_of_this_machine(open_app: ChatState, page: str) -> None:
    assert (await link_of(open_app, "", MINE, page=page))["url"].startswith(f"{page}#link=")
    assert (await issue(open_app, "", MINE, page="https://chat.example.org/")).status == 400


async def test_without_a_page_it_must_be_set_which(url: str, clock: SettableClock, key: str) -> None:
    async with running(url, clock) as app:
        await save(app, key)
        refused = await issue(app, key)
        assert (refused.status, refused.json()["errors"][0]["member"]) == (400, "page")
        assert "CHATSTATE_LINK_PAGE" in refused.json()["detail"]
    async with running(url, clock, link_page="https://chat.example.org/go", demo=True) as app:
        assert (await link_of(app, key))["url"].startswith("https://chat.example.org/go#link=")


# --- What is written down ---------------------------------------------------------------------------------------------


async def records(store: Store) -> dict[str, str]:
    """All records of links, by their keys."""
    found = {}
    for collection in ("links", "link_places"):
        for row in await store.list(RecordQuery(collection=collection, now=SettableClock().now)):
            found[row.key] = row.document  # type: ignore[union-attr]
    return found


async def everything(store: Store) -> str:
    """All records."""
    collections = ("links", "link_places", "revocations", "api_keys", "signing_keys")
    rows = [await store.list(RecordQuery(collection=each, now=SettableClock().now)) for each in collections]
    return "".join(f"{row.key} {row.document}" for page in rows for row in page)  # type: ignore[union-attr]


async def test_nothing_that_is_kept_or_written_redeems_a_link(
    url: str, clock: SettableClock, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    lines: list[str] = []
    async with running(url, clock, demo=True, audit=lines.append) as app:
        await save(app, key)
        link, used = await link_of(app, key), await link_of(app, key)
        await redeem(app, wrong(link["code"]))
        token = await given(app, used["code"])
        await take_back(app, key, used["code"])
        kept = await everything(app.store)
    for each in (link, used):
        secrets = (each["code"], each["code"].replace("-", ""), secret_of(each), secret_of(each)[5:], token)
        for place in (kept, "".join(lines), caplog.text):
            assert not [secret for secret in secrets if secret in place]
        assert f'"{each["code"][5:]}"' not in kept


async def test_the_audit_log_tells_who_issued_redeemed_and_took_back(url: str, clock: SettableClock, key: str) -> None:
    lines: list[str] = []
    async with running(url, clock, demo=True, audit=lines.append) as app:
        await save(app, key)
        link = await link_of(app, key)
        await redeem(app, wrong(link["code"]))
        await given(app, link["code"])
        await take_back(app, key, link["code"])
    told = [json.loads(line) for line in lines][1:]
    who = f"key:{key_id_of(key)}"
    assert [(line["who"], line["what"], line["result"]) for line in told] == [
        (who, "issue_link", "ok"),
        ("nobody", "redeem_link", "link_not_found"),
        ("link", "redeem_link", "ok"),
        (who, "take_back_link", "ok"),
    ]
    assert told[0]["session"] == told[2]["session"] == told[3]["session"]
    assert told[2]["minted_by"] == key_id_of(key)


async def test_links_lie_encrypted_where_states_do(tmp_path: Path, clock: SettableClock) -> None:
    url, ring = f"sqlite:///{tmp_path}/sealed.db", KeyRing.parse(new_key())
    async with running(create_store(url, key_ring=ring), clock) as app:
        await save(app, "")
        link = await link_of(app)
        await redeem(app, wrong(link["code"]))
        with pytest.raises(StateUnreadable):
            await beside(url, records)
        await given(app, link["code"])
        assert await status_of(app, "", link["code"]) == "redeemed"


async def test_a_device_is_text_of_bounded_length(app: ChatState, key: str) -> None:
    for sent, shown in (("x" * 300, "x" * 200), ("a\x85b\x9fc", "abc"), ("<b>Müller</b>", "<b>Müller</b>"), ("", "")):
        link = await link_of(app, key)
        await ask(app, "POST", f"/links/{link['code']}", None, {"User-Agent": sent})
        answer = await ask(app, "GET", f"{SESSIONS}/{MINE}/links/{link['code'][:4]}", None, bearer(key))
        assert answer.json()["device"] == shown


# --- The rules without HTTP -------------------------------------------------------------------------------------------

GRANT = Grant(("read",), 0.0, "", 1e10)


@pytest.fixture
async def links(url: str) -> AsyncIterator[Links]:
    store = create_store(url)
    await store.open()
    await store.migrate()
    yield Links(store)
    await store.close()


async def test_a_session_keeps_few_links_and_those_that_were_redeemed_longest(
    links: Links, clock: SettableClock
) -> None:
    made = []
    for number in range(MOST_KEPT + 10):
        clock.advance(seconds=1)
        made.append((await links.issue("a", "x", GRANT, clock.now)).link)
        if number < 3:
            await links.redeem("a", made[-1], clock.now, "phone")
    kept = [link.id for link in await links.all("a", clock.now)]
    assert kept == [link.id for link in [*made[:3], *made[13:]]][::-1]


async def test_links_made_at_once_are_all_there(links: Links, clock: SettableClock) -> None:
    made = await asyncio.gather(*(links.issue("a", "x", GRANT, clock.now) for _ in range(10)))
    kept = await links.all("a", clock.now)
    assert {link.id for link in kept} == {each.link.id for each in made}
    assert Counter(link.status(clock.now) for link in kept) == {"open": 5, "void": 5}


async def test_no_two_open_links_have_one_id(
    links: Links, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter("BCDF" + "GHJK" + "BCDF" + "GHJK" + "LMNP" + "QRST")
    monkeypatch.setattr("chatstate.links.secrets.choice", lambda _alphabet: next(drawn))
    first, second = [await links.issue(session, "x", GRANT, clock.now) for session in "ab"]
    assert (first.code, second.code) == ("BCDF-GHJK", "GHJK-LMNP")


@pytest.mark.parametrize("text", ["", " ", "-", "BCDF-GHJK-", "bcdfghjk", "b c d f g h j k", "BCDF\u2013GHJK"])
def test_a_text_is_a_code_or_not(text: str) -> None:
    found = parse(text)
    assert (found and (found.id, found.secret, found.is_token)) == (("BCDF", "GHJK", False) if len(text) > 1 else None)


def test_a_record_of_another_version_is_read() -> None:
    assert SessionLinks.__struct_fields__ == ("links",)
