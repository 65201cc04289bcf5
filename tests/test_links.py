"""The rules of links, without HTTP: on each store, with times that are given."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from chatstate import links as rules
from chatstate.errors import LinkNotFound, StoreBusy
from chatstate.links import LONGEST_KEPT, LONGEST_LINK, Grant, Links, Place, SessionLinks
from chatstate.records import Records
from chatstate.stores import Store

NOW = datetime(2025, 10, 2, 10, 0, tzinfo=UTC)
SOON = timedelta.resolution
DAY = timedelta(days=1)


def grant(renewable: timedelta = DAY) -> Grant:
    return Grant(("read",), NOW.timestamp(), "", (NOW + renewable).timestamp())


@pytest.fixture
def links(store: Store) -> Links:
    return Links(store)


async def test_what_is_kept_is_where_other_versions_look_for_it(store: Store, links: Links) -> None:
    made = await links.issue("a", "x", grant(), NOW)
    kept = await Records(store, "links", SessionLinks).all(NOW)
    assert kept == {"a": SessionLinks((made.link,))}
    assert await Records(store, "link_places", Place).all(NOW) == {made.link.id: Place("a")}
    assert (made.link.tries, made.link.device, made.link.voided_at, made.link.redeemed_at) == (0, "", None, None)


async def test_a_link_is_made_of_enough_chance(links: Links) -> None:
    """RFC 8628, section 6.1: 20 letters; four of them are found by, four are secret."""
    assert rules.ALPHABET == "BCDFGHJKLMNPQRSTVWXZ"
    assert (rules.MOST_TRIES, rules.MOST_OPEN, rules.MOST_KEPT) == (5, 5, 50)
    assert timedelta(minutes=10) == LONGEST_LINK
    made = [await links.issue("a", "x", grant(), NOW) for _ in range(10)]
    assert all(re.fullmatch(f"[{rules.ALPHABET}]{{4}}-[{rules.ALPHABET}]{{4}}", each.code) for each in made)
    assert all(re.fullmatch(r"[A-Z]{4}\.[\w-]{43}", each.token) for each in made)
    for secrets in (
        {each.code for each in made},
        {each.code[5:] for each in made},
        {each.token[5:] for each in made},
        {each.link.salt for each in made},
        {each.link.handle for each in made},
    ):
        assert len(secrets) == 10
    assert {(len(each.link.salt), len(each.link.handle)) for each in made} == {(32, 24)}


async def test_when_no_id_is_free_nothing_is_made(links: Links, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    def draw() -> str:
        drawn.append("BCDF")
        return "BCDF"

    monkeypatch.setattr(rules, "_letters", draw)
    await links.issue("a", "x", grant(), NOW)
    drawn.clear()
    for session in "ab":
        with pytest.raises(StoreBusy):
            await links.issue(session, "x", grant(), NOW)
    assert len(drawn) == 200
    assert len(await links.all("a", NOW)) == 1
    assert await links.all("b", NOW) == ()
    later = NOW + LONGEST_LINK
    assert (await links.issue("b", "x", grant(), later)).link.id == "BCDF", "it is free again"


async def test_a_link_is_remembered_for_a_day_after_its_end(store: Store, links: Links) -> None:
    made = await links.issue("a", "x", grant(), NOW)
    end = NOW + LONGEST_LINK + DAY
    assert await links.find("a", made.link.id, end - SOON) == made.link
    with pytest.raises(LinkNotFound):
        await links.find("a", made.link.id, end)
    assert await Records(store, "links", SessionLinks).all(end) == {}, "the record has expired with it"


@pytest.mark.parametrize(
    ("renewable", "longest", "expected"),
    [
        (timedelta(days=9), LONGEST_KEPT, timedelta(days=9)),
        (timedelta(days=99), LONGEST_KEPT, timedelta(days=30, seconds=5)),
        (timedelta(days=99), timedelta(days=7), timedelta(days=7, seconds=5)),
        (timedelta(), LONGEST_KEPT, LONGEST_LINK + DAY),
        (timedelta(days=-9), LONGEST_KEPT, LONGEST_LINK + DAY),
    ],
)
async def test_one_that_was_redeemed_is_remembered_as_long_as_its_token_can_be_renewed(
    store: Store, renewable: timedelta, longest: timedelta, expected: timedelta
) -> None:
    links = Links(store, longest)
    made = await links.issue("a", "x", grant(renewable), NOW)
    await links.redeem("a", made.link, NOW + timedelta(seconds=5), "phone")
    (kept,) = await links.all("a", NOW + expected - timedelta(milliseconds=1))
    assert (kept.redeemed_at, kept.device) == (NOW + timedelta(seconds=5), "phone")
    assert await links.all("a", NOW + expected) == ()


async def test_what_is_to_be_forgotten_gives_way_to_a_new_one(store: Store, links: Links) -> None:
    await links.issue("a", "x", grant(), NOW)
    redeemed = await links.issue("a", "x", grant(timedelta(days=9)), NOW)
    await links.redeem("a", redeemed.link, NOW, "phone")
    end = NOW + LONGEST_LINK + DAY
    made = await links.issue("a", "x", grant(), end)
    (kept,) = (await Records(store, "links", SessionLinks).all(end)).values()
    assert [link.id for link in kept.links] == [made.link.id, redeemed.link.id]


async def test_a_link_that_is_gone_is_not_redeemed(links: Links) -> None:
    first, second = [await links.issue(session, "x", grant(), NOW) for session in "ab"]
    await links.erase("a", NOW)
    for session, made in (("a", first), ("b", first), ("c", second)):
        with pytest.raises(LinkNotFound):
            await links.redeem(session, made.link, NOW, "phone")
        with pytest.raises(LinkNotFound):
            await links.match(first.code, NOW)
    await links.redeem("b", second.link, NOW, "phone")


async def test_erasing_leaves_the_places_of_others(store: Store, links: Links) -> None:
    """An id is free again when its link has ended, and may be that of another session's link."""
    old = await links.issue("a", "x", grant(), NOW)
    end = NOW + LONGEST_LINK
    places = Records(store, "link_places", Place)
    assert await places.put(old.link.id, Place("b"), end, expect=0)
    await links.erase("a", end)
    assert await places.get(old.link.id, end) == Place("b")
    new = await links.issue("a", "x", grant(), end)
    await links.erase("a", end + LONGEST_LINK - SOON)
    assert await places.get(new.link.id, end) is None


async def test_a_wrong_try_after_the_end_is_no_try(links: Links) -> None:
    made = await links.issue("a", "x", grant(), NOW)
    await links.redeem("a", made.link, NOW, "phone")
    for _ in range(6):
        with pytest.raises(LinkNotFound):
            await links.match(made.code[:5] + "BBBB", NOW)
    (kept,) = await links.all("a", NOW)
    assert (kept.tries, kept.status(NOW)) == (0, "redeemed")
