"""The header fields that put conditions on a request, read by themselves. What they do over HTTP stands in
`test_preconditions` and `test_idempotency`."""

from __future__ import annotations

from hashlib import sha256

import pytest

from chatstate.errors import InvalidPrecondition, InvalidRequest, PreconditionRequired
from chatstate.http.conditions import (
    etag,
    idempotency_key,
    if_match,
    if_none_match,
    precondition,
    prefers_representation,
)
from chatstate.http.messages import Headers
from chatstate.model import ABSENT, ANYTHING, PRESENT, Tag, none_of, one_of

UUID = "0b8b9d5c-6f5e-4f0e-9a59-1c7d3c1f2a44"
TAG, NEXT = Tag(UUID, 1), Tag(UUID, 2)
LONGEST = 10**19 - 1


def headers(name: str, *values: str) -> Headers:
    return Headers([(name.encode(), value.encode("latin-1")) for value in values])


# --- Entity tags ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        (TAG, f'"{UUID}-1"'),
        (Tag(UUID, 9223372036854775807), f'"{UUID}-9223372036854775807"'),
        (Tag("a b", 1), '"a%20b-1"'),
        (Tag('a"b', 1), '"a%22b-1"'),
        (Tag("a_b.c~d", 1), '"a_b.c~d-1"'),
        (Tag("a%20b", 1), '"a%2520b-1"'),
        (Tag("é😀", 3), '"%C3%A9%F0%9F%98%80-3"'),
        (Tag("a/b-2", 3), '"a/b-2-3"'),
        (Tag("", 1), '"-1"'),
    ],
)
def test_a_tag_is_read_as_it_was_written(tag: Tag, text: str) -> None:
    assert etag(tag) == text
    for read, expected in ((if_match, one_of([tag])), (if_none_match, none_of([tag]))):
        name = read.__name__.replace("_", "-")
        assert read(headers(name, text)) == expected
        assert read(headers(name, f" {text}\t,, ")) == expected


@pytest.mark.parametrize(
    "text",
    [
        f'"{UUID}"',
        f'"{UUID}-"',
        f'"{UUID}-01"',
        f'"{UUID}-+1"',
        f'"{UUID}-1x"',
        f'"{UUID}-x"',
        f'"{UUID}-\u00b2"',
        f'"{UUID}-\u00bd"',
        f'"{UUID}-99999999999999999999"',
        '"a b-1"'.replace(" ", "%2"),
        '"a%2fb-1"',
        '"%61-1"',
        '"a%00-1"',
        '"a%1F-1"',
        '"\u00e9-1"',
        '""',
        '"-"',
        '"x"',
    ],
)
def test_a_tag_that_is_not_ours_matches_nothing(text: str) -> None:
    assert if_match(headers("if-match", text)) == one_of([])
    assert if_none_match(headers("if-none-match", text)) == none_of([])
    assert if_match(headers("if-match", f"{text}, {etag(TAG)}")) == one_of([TAG])


def test_a_version_of_nineteen_digits_is_one() -> None:
    assert if_match(headers("if-match", f'"{UUID}-{LONGEST}"')) == one_of([Tag(UUID, LONGEST)])
    assert if_match(headers("if-match", f'"{UUID}-{LONGEST}", "x"')) == one_of([Tag(UUID, LONGEST)])
    assert if_match(headers("if-match", f'"{UUID}-{LONGEST + 1}", "x"')) == one_of([])


@pytest.mark.parametrize(
    "lines",
    [
        ('"a-1", "b-2"',),
        ('"a-1"', '"b-2"'),
        ('"a-1","b-2",',),
        (',,"a-1"\t ,"b-2"',),
        ('"a-1"', "", '"b-2"'),
    ],
)
def test_lists_are_read_over_all_lines(lines: tuple[str, ...]) -> None:
    assert if_match(headers("if-match", *lines)) == one_of([Tag("a", 1), Tag("b", 2)])
    assert if_none_match(headers("if-none-match", *lines)) == none_of([Tag("a", 1), Tag("b", 2)])


def test_a_weak_tag_matches_only_where_it_may() -> None:
    assert if_match(headers("if-match", f"W/{etag(TAG)}")) == one_of([])
    assert if_match(headers("if-match", f"W/{etag(TAG)}, {etag(NEXT)}")) == one_of([NEXT])
    assert if_none_match(headers("if-none-match", f"W/{etag(TAG)}")) == none_of([TAG])


@pytest.mark.parametrize("star", ["*", " *", "* "])
def test_a_star_is_any_session(star: str) -> None:
    assert if_match(headers("if-match", star)) == PRESENT
    assert if_none_match(headers("if-none-match", star)) == ABSENT


def test_without_the_field_anything_will_do() -> None:
    assert if_match(headers("accept", "*")) == if_none_match(headers("accept", "*")) == ANYTHING
    assert precondition(headers("accept", "*")) == ANYTHING


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        " , ,",
        "a-1",
        '"a-1',
        'a-1"',
        '"a-1" "b-2"',
        '"a-1";q=1',
        "*, *",
        '*, "a-1"',
        '"a-1", *',
        'w/"a-1"',
        "W/",
        "W/a-1",
        '"a b-1"',
        '"a\x7f-1"',
        "'a-1'",
        '"a-1", x',
    ],
)
def test_what_is_no_list_of_tags_is_an_error_and_not_no_condition(text: str) -> None:
    for name, read in (("if-match", if_match), ("if-none-match", if_none_match)):
        with pytest.raises(InvalidPrecondition) as error:
            read(headers(name, text))
        (finding,) = error.value.errors
        assert finding.member == {"if-match": "If-Match", "if-none-match": "If-None-Match"}[name]
        assert "entity tags" in finding.detail


def test_both_fields_hold_at_once() -> None:
    both = Headers([(b"if-match", etag(TAG).encode()), (b"if-none-match", etag(NEXT).encode())])
    found = precondition(both)
    assert found.allows(TAG)
    assert not found.allows(NEXT)
    assert not found.allows(None)


def test_a_condition_can_be_required() -> None:
    with pytest.raises(PreconditionRequired):
        precondition(headers("accept", "*"), required=True)
    assert precondition(headers("if-match", "*"), required=True) == PRESENT
    assert precondition(headers("if-none-match", "*"), required=True) == ABSENT
    assert precondition(headers("accept", "*"), required=False) == ANYTHING


# --- Preferences ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ((), False),
        (("return=representation",), True),
        (("Return = Representation",), True),
        (('return="representation"',), True),
        (("return=representation; foo=bar",), True),
        (("respond-async, return=representation",), True),
        (("respond-async", "return=representation"), True),
        (("return=minimal",), False),
        (("return=minimal, return=representation",), False),
        (("return=representation, return=minimal",), True),
        (("return=minimal", "return=representation"), False),
        (("return",), False),
        (("returns=representation",), False),
        (("x=return; return=representation",), False),
        (("representation",), False),
        (("return=representations",), False),
    ],
)
def test_the_first_preference_counts(lines: tuple[str, ...], wanted: bool) -> None:
    assert prefers_representation(headers("prefer", *lines)) is wanted


# --- Idempotency keys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("abc", "abc"),
        (" abc ", "abc"),
        ('"abc"', "abc"),
        ('"a b"', "a b"),
        ("!#~", "!#~"),
        ('"!#~ []^"', "!#~ []^"),
        ("a\\b", "a\\b"),
        ("a" * 255, "a" * 255),
        (f'"{"a" * 255}"', "a" * 255),
    ],
)
def test_a_key_is_quoted_or_not(text: str, key: str) -> None:
    once = idempotency_key(headers("idempotency-key", text), "save")
    assert once
    assert once.key == key


@pytest.mark.parametrize(
    "lines",
    [
        ("",),
        ('""',),
        ("a b",),
        ('"a',),
        ('a"',),
        ('"a\\b"',),
        ('"a"b"',),
        ("\u00e9",),
        ("a\x7f",),
        ("a" * 256,),
        (f'"{"a" * 256}"',),
        ("a", "a"),
    ],
)
def test_what_is_no_key_is_an_error(lines: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest) as error:
        idempotency_key(headers("idempotency-key", *lines), "save")
    assert [finding.member for finding in error.value.errors] == ["Idempotency-Key"]


def test_a_key_names_who_does_what_with_which_body() -> None:
    given = headers("idempotency-key", "k")
    once = idempotency_key(given, "save", b"body", "key:x")
    assert once
    assert (once.caller, once.digest) == ("key:x", sha256(b"save\0body").digest())
    digests = {
        found.digest
        for operation, body in (("save", b"body"), ("save", b""), ("update", b"body"), ("saveb", b"ody"))
        if (found := idempotency_key(given, operation, body))
    }
    assert len(digests) == 4
    anonymous = idempotency_key(given, "save")
    assert anonymous
    assert (anonymous.caller, anonymous.digest) == ("", sha256(b"save\0").digest())


def test_without_the_field_there_is_no_key() -> None:
    assert idempotency_key(headers("accept", "*"), "save") is None
