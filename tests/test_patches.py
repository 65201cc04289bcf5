"""JSON Patch and JSON Merge Patch: the examples of the RFCs, what they leave open, and what a patch must never do."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from chatstate.errors import BodyTooLarge, InvalidJson, InvalidPatch, PatchConflict, StateNotPatchable
from chatstate.model import MAX_STATE_DEPTH
from chatstate.patches import MAX_OPERATIONS, MEDIA_TYPES, parse_json_patch, parse_merge_patch, unhurried

LIMIT = 1 << 20
CASES = Path(__file__).parent / "patches"
REFUSALS = {"conflict": PatchConflict, "invalid": InvalidPatch}


def json_patch(state: str, operations: Any, limit: int = LIMIT) -> str:
    body = operations if isinstance(operations, str) else json.dumps(operations)
    return parse_json_patch(body.encode())(state, limit)


def merge_patch(state: str, body: str, limit: int = LIMIT) -> str:
    return parse_merge_patch(body.encode())(state, limit)


def exactly(value: Any) -> str:
    """Text that tells `true` from 1, and keeps the order of members."""
    return json.dumps(value)


def short(value: Any) -> str:
    return str(value)[:40]


def cases(name: str) -> list[Any]:
    found = json.loads((CASES / f"{name}.json").read_text())
    return [pytest.param(case, id=case.get("case", exactly(case["doc"]))) for case in found]


# --- The tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [*cases("rfc6902"), *cases("json_patch")])
def test_json_patch(case: dict[str, Any]) -> None:
    state, body = json.dumps(case["doc"]), case.get("text") or json.dumps(case["patch"])
    if "error" in case:
        with pytest.raises(REFUSALS[case["error"]]):
            json_patch(state, body)
    else:
        assert exactly(json.loads(json_patch(state, body))) == exactly(case["expected"])


@pytest.mark.parametrize("case", cases("rfc7396"))
def test_merge_patch(case: dict[str, Any]) -> None:
    assert exactly(json.loads(merge_patch(json.dumps(case["doc"]), json.dumps(case["patch"])))) == exactly(
        case["expected"]
    )


def test_the_media_types() -> None:
    assert {
        "application/merge-patch+json": parse_merge_patch,
        "application/json-patch+json": parse_json_patch,
    } == MEDIA_TYPES


async def test_others_are_answered_while_a_long_one_is_at_work() -> None:
    others = threading.Event()

    def work(text: str, seconds: int) -> bool:
        return others.wait(seconds)

    patching = asyncio.create_task(unhurried(work, "x" * LIMIT, 10))
    await asyncio.sleep(0)  # the task has begun
    others.set()
    assert await patching
    assert not await unhurried(lambda text, seconds: threading.current_thread() is not threading.main_thread(), "x", 0)


# --- What the messages say --------------------------------------------------------------------------------------------


def test_every_bad_member_is_named() -> None:
    body = [
        {"op": "add", "path": "/a", "value": 1},
        {"op": "move"},
        {"op": "increment", "path": "/a"},
        7,
        {"op": "test", "path": "a/~3"},
        {"op": "move", "from": "/a", "path": "/a/b"},
        {"op": "remove", "path": ""},
    ]
    with pytest.raises(InvalidPatch) as refused:
        json_patch("{}", body)
    members = [finding.member for finding in refused.value.errors]
    assert members == ["/1/from", "/1/path", "/2/op", "/3", "/4/path", "/4/value", "/5/path", "/6/path"]
    assert "/2/op: must be one of add, remove, replace, move, copy, test" in refused.value.message


def test_an_answer_names_only_so_many_members() -> None:
    with pytest.raises(InvalidPatch) as refused:
        json_patch("{}", [{"op": "move"}] * MAX_OPERATIONS)
    assert len(refused.value.errors) == 20


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        ({"op": "test", "path": "/a", "value": 2}, "the value there is another one"),
        ({"op": "remove", "path": "/b"}, "b"),
        ({"op": "add", "path": "/a/b", "value": 1}, "no object and no array"),
        ({"op": "move", "from": "/b", "path": "/c"}, "there is no 'b'"),
    ],
)
def test_a_conflict_names_the_operation(operation: dict[str, Any], reason: str) -> None:
    fits = {"op": "test", "path": "/a", "value": 1}
    with pytest.raises(PatchConflict) as refused:
        json_patch('{"a": 1}', [fits, fits, operation])
    assert "Operation 2" in refused.value.message
    assert f'"path":"{operation["path"]}"' in refused.value.message
    assert reason in refused.value.message


def test_messages_stay_short_and_tell_nothing_of_the_state() -> None:
    secret = {"secret" * 1000: ["secret"] * 1000}
    for path in ("/" + "x" * 100_000, "/secret", "/" + "secret" * 1000 + "/" + "9" * 100_000):
        for operation in ({"op": "remove"}, {"op": "test", "value": 1}, {"op": "move", "from": path}):
            with pytest.raises(PatchConflict) as refused:
                json_patch(json.dumps(secret), [operation | {"path": path}])
            assert len(refused.value.message) < 800
            assert '["secret"' not in refused.value.message
            assert "['secret'" not in refused.value.message


# --- Bodies and states that are refused -------------------------------------------------------------------------------

NOT_JSON = [
    *("", " ", "{", "[1,]", "{'a': 1}", "[NaN]", "[-Infinity]", "[01]", "[1.]", "[+1]", "1 2", "nul"),
    *('"\n"', '"\\x"', '"\\u12"', "\ufeff[]", "[\u0661]", "[1]\0"),
]


@pytest.mark.parametrize("parse", MEDIA_TYPES.values())
@pytest.mark.parametrize(
    "body", [*(text.encode() for text in NOT_JSON), b'["\xff"]', b'"\xed\xa0\x80"', "[]".encode("utf-16")]
)
def test_a_body_that_is_not_json(parse: Any, body: bytes) -> None:
    with pytest.raises(InvalidJson):
        parse(body)


@pytest.mark.parametrize("parse", MEDIA_TYPES.values())
@pytest.mark.parametrize(
    "value",
    [
        '{"a": 1, "b": 2, "a": 1}',
        '[{"x": {"a": 1, "\\u0061": 2}}]',
        '"\\ud800"',
        '{"\\uDFFF": 1}',
        '{"\\ud800": 1, "\\ud800": 2}',
        '"\\ude00\\ud83d"',
        "[" * (MAX_STATE_DEPTH + 1) + "]" * (MAX_STATE_DEPTH + 1),
        "[" * 100_000 + "]" * 100_000,
    ],
    ids=short,
)
def test_values_that_no_patch_could_insert_as_they_are(parse: Any, value: str) -> None:
    body = value if parse is parse_merge_patch else f'[{{"op": "add", "path": "", "value": {value}}}]'
    with pytest.raises(InvalidPatch) as refused:
        parse(body.encode())
    assert [finding.member for finding in refused.value.errors] == ["body"]
    refused.value.message.encode()


def test_values_may_be_as_deep_as_states() -> None:
    deep = "[" * MAX_STATE_DEPTH + "]" * MAX_STATE_DEPTH
    assert merge_patch("0", deep) == deep
    assert json_patch("0", f'[{{"op": "replace", "path": "", "value": {deep}}}]') == deep


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        *((text, "is not JSON") for text in NOT_JSON),
        ("H4sIAAAAAAAA", "is not JSON"),
        ('{"b": 1, "a": 2, "b": 1}', "names the member 'b' twice"),
        ('{"a": 1, "\\u0061": 2}', "names the member 'a' twice"),
        ('["\\ud83d"]', "lone surrogates"),
        ('{"\\uDE00": 1}', "lone surrogates"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
    ],
    ids=short,
)
def test_a_state_that_cannot_be_patched(state: str, reason: str) -> None:
    for patched in (json_patch, merge_patch):
        with pytest.raises(StateNotPatchable) as refused:
            patched(state, "[]")
        assert reason in refused.value.message
        refused.value.message.encode()


@pytest.mark.parametrize("twice", ['{"b":1,"b":2}', '{"b": 1, "\\u0062": {}}', '{"a":[{"b":1}],"b":1,"b":{"c":1}}'])
def test_a_patch_that_goes_into_an_object_with_a_member_twice(twice: str) -> None:
    state = f'{{"a":[{twice}]}}'
    for operation in ("add", "replace", "remove", "test"):
        with pytest.raises(StateNotPatchable, match="names the member 'b' twice"):
            json_patch(state, [{"op": operation, "path": "/a/0/b", "value": 1}])
    with pytest.raises(StateNotPatchable, match="names the member 'b' twice"):
        merge_patch(f'{{"a":{twice}}}', '{"a": {"c": 1}}')
    assert json_patch(state, [{"op": "copy", "from": "/a", "path": "/c"}]) == f'{{"a":[{twice}],"c":[{twice}]}}'


@pytest.mark.parametrize(
    "value",
    [
        '{"b":1,"b":2}',
        '"\\u00e9\\/\\ud83d\\ude00\\u0000"',
        "[ 1.0 ,\t-0,\n{ } ]",
        '{"\\u0061" : [[]], "": {}}',
        "[" * 500 + "]" * 500,
    ],
    ids=short,
)
def test_what_a_patch_does_not_go_into_stays_byte_for_byte(value: str) -> None:
    state = f'{{"kept":{value},"list":[{value},{value}]}}'
    assert json_patch(state, [{"op": "add", "path": "/list/1", "value": 1}]) == (
        f'{{"kept":{value},"list":[{value},1,{value}]}}'
    )
    assert json_patch(state, [{"op": "remove", "path": "/list"}]) == f'{{"kept":{value}}}'
    assert merge_patch(state, '{"list": null, "new": 1}') == f'{{"kept":{value},"new":1}}'


def test_white_space_goes_where_there_is_some_throughout() -> None:
    state = json.dumps({"a": [{"b": ["é", 1.0]}], "b": {}}, indent=2)
    assert json_patch(state, []) == json_patch(json_patch(state, []), []) == '{"a":[{"b":["\\u00e9",1.0]}],"b":{}}'


def test_the_most_operations() -> None:
    append = {"op": "add", "path": "/-", "value": 1}
    assert json.loads(json_patch("[]", [append] * MAX_OPERATIONS)) == [1] * MAX_OPERATIONS
    with pytest.raises(InvalidPatch, match="at most 1000 operations, has 1001"):
        json_patch("[]", [append] * (MAX_OPERATIONS + 1))


# --- Literals, values, order ------------------------------------------------------------------------------------------

LITERALS = [
    *("0", "-0", "1", "-1", "0.0", "-0.0", "1.0", "1.50", "-0e0", "1e5", "1E5", "1e+5", "1E-5", "1e05"),
    *(
        "1E400",
        "-1E400",
        "1e400000000",
        "1e-400000000",
        "1e99999999999999999999",
        "0.1000000000000000055511151231257827",
    ),
    *(str(2**53 + 1), str(2**63), str(-(2**63) - 1), str(2**64), "12345678901234567890123"),
    *("9" * 5000, "-" + "9" * 5000, "1." + "0" * 5000),
]


@pytest.mark.parametrize("literal", LITERALS, ids=short)
def test_numbers_keep_their_literals(literal: str) -> None:
    state = f'{{"a":{literal},"b":[{literal},{{"c":{literal}}}]}}'
    add = f'{{"op": "add", "path": "/b/-", "value": {literal}}}'
    test = f'{{"op": "test", "path": "/a", "value": {literal}}}'
    copy = '{"op": "copy", "from": "/b", "path": "/d"}'
    array = f'[{literal},{{"c":{literal}}},{literal}]'
    assert json_patch(state, f"[{test}, {add}, {copy}]") == f'{{"a":{literal},"b":{array},"d":{array}}}'
    assert merge_patch(state, f'{{"b": {literal}}}') == f'{{"a":{literal},"b":{literal}}}'
    assert json_patch(literal, "[]") == merge_patch("[]", literal) == literal


@pytest.mark.parametrize(
    ("found", "expected", "equal"),
    [
        ("1", "1.0", True),
        ("1", "1e0", True),
        ("100", "1E+2", True),
        ("0.01", "1e-2", True),
        ("0", "-0", True),
        ("-0.0", "0", True),
        ("0e5", "0", True),
        ("1E400", "10e399", True),
        ("1" + "0" * 5000, "1e5000", True),
        ("1e400000000", "10e399999999", True),
        ("1e400000000", "1", False),
        ("1e400000000", "1e400000001", False),
        ("1e-400000000", "0", False),
        ("9007199254740993", "9007199254740992", False),
        ("0.1", "0.1000000000000000055511151231257827", False),
        (str(2**64), str(2**64) + ".0", True),
        (str(2**64), str(2**64 + 1), False),
        ("1", "-1", False),
        ("1e99999999999999999999", "1e99999999999999999999", True),
        ("1e99999999999999999999", "1e99999999999999999998", False),
        ("1", "true", False),
        ("1.0", "true", False),
        ("0", "false", False),
        ("true", "1", False),
        ("false", "0.0", False),
        ("true", "true", True),
        ("1", '"1"', False),
        ("0", "null", False),
    ],
    ids=short,
)
@pytest.mark.parametrize(
    ("around_found", "around_expected"),
    [("{}", "{}"), ("[0.0, {}]", "[0, {}]"), ('{{"b": 1e0, "a": [[{}]]}}', '{{"a": [[{}]], "b": 1}}')],
)
def test_numbers_are_compared_by_value(
    found: str, expected: str, equal: bool, around_found: str, around_expected: str
) -> None:
    state, test = around_found.format(found), around_expected.format(expected)
    patch = parse_json_patch(f'[{{"op": "test", "path": "", "value": {test}}}]'.encode())
    if equal:
        patch(state, LIMIT)
    else:
        with pytest.raises(PatchConflict):
            patch(state, LIMIT)


def test_members_keep_their_order_and_strings_their_values() -> None:
    state = '{"z": "\\u00e9\\/\\u0000\\ud83d\\ude00", "": [ ], "a": {"10": 1, "9": 2}, "\\n": null}'
    patched = merge_patch(state, '{"new": "\u2028", "a": {"9": 3}}')
    assert list(json.loads(patched)) == ["z", "", "a", "\n", "new"]
    assert json.loads(patched) == json.loads(state) | {"a": {"10": 1, "9": 3}, "new": "\u2028"}
    assert "\x00" not in patched


@pytest.mark.parametrize(
    "patched",
    [
        lambda limit: json_patch("[]", [{"op": "add", "path": "/-", "value": "éé"}], limit),
        lambda limit: merge_patch("0", '["éé"]', limit),
    ],
)
def test_the_limit_counts_bytes(patched: Any) -> None:
    assert patched(8) == '["éé"]'
    with pytest.raises(BodyTooLarge, match="larger than 7 bytes"):
        patched(7)


# --- Applying one patch many times ------------------------------------------------------------------------------------


def test_a_patch_is_not_changed_by_what_it_is_applied_to() -> None:
    patch = parse_json_patch(
        b"""[
            {"op": "add", "path": "/a", "value": {"list": [1.0], "object": {}}},
            {"op": "add", "path": "/a/list/-", "value": 2},
            {"op": "copy", "from": "/a", "path": "/b"},
            {"op": "replace", "path": "/b/object", "value": {"x": []}},
            {"op": "move", "from": "/a/list", "path": "/b/object/x/0"},
            {"op": "test", "path": "/b/object", "value": {"x": [[1, 2]]}}
        ]"""
    )
    expected = '"a":{"object":{}},"b":{"list":[1.0,2],"object":{"x":[[1.0,2]]}}}'
    assert [patch("{}", LIMIT) for _ in range(3)] == ["{" + expected] * 3
    assert patch('{"c":-0}', LIMIT) == '{"c":-0,' + expected
    with pytest.raises(PatchConflict):
        patch("[]", LIMIT)
    assert patch("{}", LIMIT) == "{" + expected


def test_a_merge_patch_is_not_changed_by_what_it_is_applied_to() -> None:
    patch = parse_merge_patch(b'{"a": {"b": {"c": 1}, "d": null, "e": [{"f": null}]}}')
    merged = '{"a":{"b":{"c":1},"e":[{"f":null}]}}'
    assert [patch(state, LIMIT) for state in ("{}", '{"a": 1}', "null", "{}")] == [merged] * 4
    assert patch('{"a": {"d": 1, "b": {"x": 2}}}', LIMIT) == '{"a":{"b":{"x":2,"c":1},"e":[{"f":null}]}}'
    assert patch("{}", LIMIT) == merged


def test_the_limit_is_counted_anew_each_time() -> None:
    patch = parse_json_patch(b'[{"op": "copy", "from": "/a", "path": "/b"}]')
    state = json.dumps({"a": "x" * 400})
    assert len({patch(state, 1000) for _ in range(10)}) == 1


# --- Bombs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operations",
    [
        [{"op": "copy", "from": "", "path": "/-"}] * 1000,
        [{"op": "copy", "from": "/0", "path": "/0/-"}] * 1000,
        [{"op": "copy", "from": "/0", "path": "/-"}, {"op": "remove", "path": "/0"}] * 500,
        [{"op": "copy", "from": "", "path": "/0"}, {"op": "move", "from": "/0/0", "path": "/-"}] * 500,
    ],
)
def test_copies_of_copies(operations: list[Any]) -> None:
    with pytest.raises(BodyTooLarge, match="copies more than"):
        json_patch(json.dumps([["x" * 1000]]), operations, 100_000)


def test_a_large_value_is_copied_no_more_often_than_fits() -> None:
    copy = {"op": "copy", "from": "/0", "path": "/-"}
    state = json.dumps(["x" * 1000])
    assert len(json.loads(json_patch(state, [copy] * 9, 10_100))) == 10
    with pytest.raises(BodyTooLarge):
        json_patch(state, [copy] * 10, 10_100)


def test_what_is_inserted_and_removed_again_counts() -> None:
    add, remove = {"op": "add", "path": "/a", "value": "x" * 600}, {"op": "remove", "path": "/a"}
    json_patch("{}", [add, remove], 1000)
    with pytest.raises(BodyTooLarge, match="inserts"):
        json_patch("{}", [add, remove, add, remove], 1000)


@pytest.mark.parametrize(
    ("operation", "fits"),
    [
        ({"op": "add", "path": "/0", "value": 0}, False),
        ({"op": "copy", "from": "/0", "path": "/1"}, False),
        ({"op": "remove", "path": "/9"}, False),
        ({"op": "move", "from": "/0", "path": "/-"}, False),
        ({"op": "move", "from": "/9000", "path": "/0"}, False),
        ({"op": "move", "from": "/9999", "path": "/-"}, True),
        ({"op": "replace", "path": "/0", "value": 0}, True),
        ({"op": "add", "path": "/-", "value": 0}, True),
        ({"op": "add", "path": "", "value": [0]}, True),
    ],
)
def test_elements_that_move_again_and_again(
    operation: dict[str, Any], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatstate.patches.MAX_STEPS", 5_000_000)
    state = json.dumps([0] * 10_000)
    if fits:
        json_patch(state, [operation] * MAX_OPERATIONS)
    else:
        with pytest.raises(BodyTooLarge, match="within long arrays"):
            json_patch(state, [operation] * MAX_OPERATIONS)


def test_long_literals_that_are_compared_again_and_again() -> None:
    state = "[1." + "0" * 1_000_000 + "]"
    test = {"op": "test", "path": "/0", "value": 1}
    json_patch(state, [test] * 10)
    with pytest.raises(BodyTooLarge):
        json_patch(state, [test] * MAX_OPERATIONS)


def test_many_tests_of_a_large_state() -> None:
    state = json.dumps(list(range(100_000)))
    with pytest.raises(PatchConflict):
        json_patch(state, [{"op": "test", "path": "", "value": []}] * MAX_OPERATIONS)
    tests = [{"op": "test", "path": f"/{index}", "value": float(index)} for index in range(MAX_OPERATIONS)]
    assert json.loads(json_patch(state, tests)) == json.loads(state)


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def test_the_deepest_result() -> None:
    for deeper, path in ((28, "/0" * 100), (28, "/0" * 99 + "/-")):
        assert json_patch(json.dumps(nested(100)), [{"op": "add", "path": path, "value": nested(deeper)}])
        with pytest.raises(BodyTooLarge, match="deeper than 128"):
            json_patch(json.dumps(nested(100)), [{"op": "add", "path": path, "value": nested(deeper + 1)}])


def wrapping(times: int) -> list[Any]:
    """Puts /a a hundred levels deeper, again and again."""
    value: Any = {}
    for _ in range(100):
        value = {"n": value}
    down = "/b" + "/n" * 100 + "/a"
    moves = [{"op": "move", "from": "/a", "path": down}, {"op": "move", "from": "/b", "path": "/a"}]
    return [{"op": "add", "path": "/b", "value": value}, *moves] * times


@pytest.mark.parametrize(
    "last",
    [
        [],
        [{"op": "copy", "from": "/a", "path": "/b"}],
        [{"op": "copy", "from": "", "path": "/a/n"}],
        [{"op": "test", "path": "/a/n", "value": nested(100)}, {"op": "remove", "path": "/a"}],
    ],
)
def test_a_state_that_grows_deeper_than_the_stack(last: list[Any]) -> None:
    with pytest.raises((BodyTooLarge, PatchConflict)):
        json_patch('{"a": {}}', wrapping(330) + last)


def test_what_was_too_deep_on_the_way_may_go() -> None:
    assert json_patch('{"a": {}}', [*wrapping(330), {"op": "remove", "path": "/a"}]) == "{}"


def test_a_pointer_that_leads_too_deep() -> None:
    with pytest.raises(PatchConflict):
        json_patch("[]", [{"op": "remove", "path": "/0" * MAX_STATE_DEPTH}])
    with pytest.raises(InvalidPatch, match="more than 128 levels down"):
        json_patch("[]", [{"op": "remove", "path": "/0" * (MAX_STATE_DEPTH + 1)}])
