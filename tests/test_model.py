"""The pure rules, on whatever hypothesis can think of."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chatstate.http.conditions import etag, precondition
from chatstate.http.messages import Headers
from chatstate.model import (
    ABSENT,
    ANYTHING,
    MAX_STATE_DEPTH,
    PRESENT,
    Delete,
    Expect,
    Save,
    Tag,
    format_time,
    is_json,
    json_depth,
    none_of,
    one_of,
    parse_time,
    state_size,
)

TAGS = [Tag("a", 1), Tag("a", 2), Tag("b", 1)]
tags = st.sampled_from(TAGS)
expectations = st.builds(Expect, st.booleans(), st.none() | st.frozensets(tags), st.frozensets(tags))
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda part: st.lists(part) | st.dictionaries(st.text(), part),
)


def depth(value: Any) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if parts is None else 1 + max(map(depth, parts), default=0)


@given(documents)
@example({'["\\': ['\\"[[[', "]"]})
def test_depth_is_that_of_the_document_whatever_its_strings_hold(document: Any) -> None:
    for text in (json.dumps(document), json.dumps(document, ensure_ascii=False, indent=1)):
        assert json_depth(text.encode(errors="surrogatepass")) == depth(document)
        assert is_json(text) or any(0xD800 <= ord(character) < 0xE000 for character in text)


def test_json_ends_at_the_deepest_level() -> None:
    assert is_json("[" * MAX_STATE_DEPTH + "]" * MAX_STATE_DEPTH)
    assert not is_json("[" * (MAX_STATE_DEPTH + 1) + "]" * (MAX_STATE_DEPTH + 1))
    assert not is_json("[" * 1_000_000)


@given(expectations, expectations, st.none() | tags)
def test_two_expectations_together_allow_what_both_allow(one: Expect, other: Expect, current: Tag | None) -> None:
    assert (one & other).allows(current) == (one.allows(current) and other.allows(current))


def test_expectations_by_name() -> None:
    def allowed(expect: Expect) -> list[Tag | None]:
        return [tag for tag in (None, *TAGS) if expect.allows(tag)]

    assert allowed(ANYTHING) == [None, *TAGS]
    assert allowed(PRESENT) == TAGS
    assert allowed(ABSENT) == [None]
    assert allowed(one_of(TAGS[:1])) == TAGS[:1]
    assert allowed(none_of(TAGS[:1])) == [None, *TAGS[1:]]


@given(st.text(st.characters(exclude_categories=["Cs"], min_codepoint=32)), st.integers(1, 2**63 - 1))
def test_a_tag_comes_back_from_its_header(session_id: str, version: int) -> None:
    tag = Tag(session_id, version)
    assert precondition(Headers([(b"if-match", etag(tag).encode())])) == one_of([tag])


@given(st.datetimes(timezones=st.timezones() | st.just(UTC)))
@example(datetime.max.replace(tzinfo=UTC))
@example(datetime.min.replace(tzinfo=UTC))
def test_times_come_back_as_they_were(time: datetime) -> None:
    offset = time.utcoffset()
    assert offset is not None
    fixed = time.replace(tzinfo=timezone(timedelta(minutes=offset // timedelta(minutes=1))))
    try:
        in_utc = fixed.astimezone(UTC)
    except OverflowError:
        with pytest.raises(ValueError, match="between the years"):
            parse_time(fixed.isoformat())
        return
    assert parse_time(fixed.isoformat()) == in_utc
    assert parse_time(format_time(fixed)) == in_utc


@given(st.text())
def test_the_size_is_that_of_the_utf_8_text(text: str) -> None:
    if not any(0xD800 <= ord(character) < 0xE000 for character in text):
        assert state_size(text) == len(text.encode())


def test_writes_that_make_no_sense_cannot_be_made() -> None:
    now = datetime(2025, 1, 1, tzinfo=UTC)
    with pytest.raises(ValueError, match="keeps the state"):
        Save(user_session_id="a", new_session_id="b", chat_state=None, last_activity=now, now=now)
    with pytest.raises(ValueError, match="deletion"):
        Delete(user_session_id="a", now=datetime.now(UTC), expect=ANYTHING)
