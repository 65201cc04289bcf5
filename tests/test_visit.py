"""The rules for the members of a visit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from chatstate.visit import (
    MAX_COUNT,
    Changes,
    CreateVisit,
    Visit,
    canonical_ip_address,
    canonical_session_id,
    check_count,
    check_text,
    duration_minutes,
)

START = datetime(2025, 10, 2, 10, 0, tzinfo=UTC)
UUID = "0b8b9d5c-6f5e-4f0e-9a59-1c7d3c1f2a44"


@pytest.mark.parametrize(
    ("seconds", "minutes"),
    [(0, 0), (0.000001, 0), (29.999999, 0), (30, 1), (60, 1), (89.999999, 1), (90, 2), (3600, 60), (-0.000001, None)],
)
def test_a_duration_is_in_whole_minutes_and_never_negative(seconds: float, minutes: int | None) -> None:
    assert duration_minutes(START, START + timedelta(seconds=seconds)) == minutes


def test_there_is_no_duration_without_an_end_and_the_longest_is_that_of_the_calendar() -> None:
    assert duration_minutes(START, None) is None
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    assert duration_minutes(first, last) == (last - first + timedelta(seconds=30)) // timedelta(minutes=1)


@pytest.mark.parametrize("text", [UUID, UUID.upper(), "00000000-0000-0000-0000-000000000000", "F" * 8 + UUID[8:]])
def test_a_uuid_in_any_case_becomes_lower_case(text: str) -> None:
    assert canonical_session_id(text) == text.lower()


@pytest.mark.parametrize(
    "text",
    [
        "",
        UUID[:-1],
        UUID + "0",
        UUID.replace("-", ""),
        f"{{{UUID}}}",
        f"urn:uuid:{UUID}",
        f" {UUID}",
        f"{UUID}\n",
        UUID.replace("0", "g"),
        UUID.replace("0", "٠"),
        UUID[:8] + UUID[9:14] + "-" + UUID[14:],
        "user",
    ],
)
def test_other_texts_are_no_uuid(text: str) -> None:
    with pytest.raises(ValueError, match="UUID"):
        canonical_session_id(text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:DB8:0:0:0:0:0:7", "2001:db8::7"),
        ("::1", "::1"),
        ("::", "::"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("::FFFF:cb00:7107", "203.0.113.7"),
        ("::203.0.113.7", "::cb00:7107"),
    ],
)
def test_an_address_is_kept_in_its_canonical_form(text: str, canonical: str) -> None:
    assert canonical_ip_address(text) == canonical
    assert canonical_ip_address(canonical) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unknown",
        "localhost",
        "203.0.113",
        "203.0.113.256",
        "203.0.113.07",
        "1.2.3.4, 5.6.7.8",
        "1.2.3.4:80",
        "[::1]",
        "fe80::1%eth0",
        "10.0.0.0/8",
        " ::1",
        "1.2.3.4\n",
        "1.2.3.4\x00",
        "\ud800",
        "١.2.3.4",
        "1" * 100_000,
    ],
)
def test_what_is_more_or_less_than_an_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be an IPv4 or IPv6 address"):
        canonical_ip_address(text)


@pytest.mark.parametrize("text", ["", "x" * 255, "😀" * 255, "\x01\x7f\u2028\uffff"])
def test_any_text_of_so_many_characters_is_fine(text: str) -> None:
    check_text(text)


@pytest.mark.parametrize("text", ["x" * 256, "\x00", "a\ud800", "\udfff"])
def test_longer_texts_and_those_that_no_store_can_keep_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        check_text(text)


def test_counts_fit_the_columns() -> None:
    for number in (0, 1, MAX_COUNT):
        check_count(number)
    for number in (-1, MAX_COUNT + 1, 1 << 70):
        with pytest.raises(ValueError, match="2147483647"):
            check_count(number)


def test_writes_name_the_members_of_a_visit() -> None:
    """The stores rely on it: members of writes are columns."""
    members = {*Visit.__struct_fields__} - {"session_duration_minutes"} | {"given_duration_minutes"}
    assert {*CreateVisit.__struct_fields__} == members
    assert {*Changes.__struct_fields__} == members - {"session_id", "user_session_id", "created_at"}
