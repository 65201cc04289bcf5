"""JSON Patch and JSON Merge Patch beside the plainest reading of their RFCs, on whatever hypothesis can think of."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chatstate.errors import InvalidPatch, PatchConflict, StateNotPatchable
from chatstate.model import is_json
from chatstate.patches import parse_json_patch, parse_merge_patch
from tests.test_patches import LITERALS

LIMIT = 1 << 30
unhurried = settings(deadline=None)


def json_patch(state: str, operations: Any) -> str:
    return parse_json_patch(json.dumps(operations).encode())(state, LIMIT)


def merge_patch(state: str, patch: Any) -> str:
    return parse_merge_patch(json.dumps(patch).encode())(state, LIMIT)


NAMES = ["a", "b", "0", "1", "01", "-", "", "/", "~", "~1", "a/b", "é"]
names = st.sampled_from(NAMES)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from([0.0, 1.0, 1.5, -1e300])
    | st.text('aé\0\\"😀', max_size=3)
)
documents = st.recursive(
    scalars, lambda part: st.lists(part, max_size=4) | st.dictionaries(names, part, max_size=4), max_leaves=12
)


class Literal(str):
    """A number as it is written."""


literals = st.sampled_from(LITERALS).map(Literal)
texts = st.text(st.characters(exclude_categories=["Cs"]))
literal_documents = st.recursive(
    literals | texts | st.booleans() | st.none(),
    lambda part: st.lists(part) | st.dictionaries(texts, part),
)


def written(value: Any, blank: str, ascii_only: bool) -> str:
    """The JSON text, with this between its tokens."""
    if isinstance(value, Literal):
        return str(value)
    if isinstance(value, list):
        return f"[{blank}{f'{blank},'.join(written(part, blank, ascii_only) for part in value)}{blank}]"
    if isinstance(value, dict):
        parts = ((written(name, blank, ascii_only), written(part, blank, ascii_only)) for name, part in value.items())
        return f"{{{blank}{f',{blank}'.join(f'{name}{blank}:{blank}{part}' for name, part in parts)}{blank}}}"
    return json.dumps(value, ensure_ascii=ascii_only)


def read(text: str) -> Any:
    """Objects as lists of their members, in order; numbers as literals."""
    return json.loads(text, parse_int=Literal, parse_float=Literal, object_pairs_hook=lambda pairs: ["object", *pairs])


@unhurried
@given(literal_documents, st.sampled_from(["", " ", "\n\t"]), st.booleans())
def test_an_empty_patch_changes_nothing(document: Any, blank: str, ascii_only: bool) -> None:
    state = written(document, blank, ascii_only)
    patched = json_patch(state, [])
    assert read(patched) == read(state)
    assert json_patch(patched, []) == patched
    if isinstance(document, dict):
        assert merge_patch(state, {}) == patched


@unhurried
@given(st.text('[]{},:"\\u0dD8e3-1.E+ tru\n\x7f\u2028é'))
@example('"\\ud83d\\ude00"')
@example("-0e-00")
def test_what_is_json_elsewhere_is_json_here(state: str) -> None:
    try:
        merge_patch(state, {})
    except StateNotPatchable as refused:
        taken = "is not JSON" not in refused.message
    else:
        taken = True
    assert taken == is_json(state)


def merged(target: Any, patch: Any) -> Any:
    """RFC 7396, section 2, to the letter."""
    if not isinstance(patch, dict):
        return patch
    target = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        else:
            target[name] = merged(target.get(name), value)
    return target


@unhurried
@given(documents, documents)
def test_merge_patches_do_what_the_rfc_says(document: Any, patch: Any) -> None:
    assert json.dumps(json.loads(merge_patch(json.dumps(document), patch))) == json.dumps(merged(document, patch))


class Refused(Exception):
    """The operation cannot be applied."""


def step(container: Any, token: str, behind: bool = False) -> Any:
    """The key of a member, or the index of an element, that is there; or the place behind the last element."""
    if isinstance(container, dict) and (behind or token in container):
        return token
    if isinstance(container, list):
        if behind and token == "-":
            return len(container)
        if token in [str(index) for index in range(len(container) + behind)]:
            return int(token)
    raise Refused


def tokens(pointer: str) -> list[str]:
    return [token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:]]


def at(document: Any, path: list[str]) -> Any:
    for token in path:
        document = document[step(document, token)]
    return document


def added(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    container = at(document, path[:-1])
    key = step(container, path[-1], behind=True)
    if isinstance(container, list):
        container.insert(key, value)
    else:
        container[key] = value
    return document


def removed(document: Any, path: list[str]) -> Any:
    if not path:
        raise Refused
    container = at(document, path[:-1])
    del container[step(container, path[-1])]
    return document


def same(left: Any, right: Any) -> bool:
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    return isinstance(left, bool) == isinstance(right, bool) and left == right


def replaced(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    container = at(document, path[:-1])
    container[step(container, path[-1])] = value
    return document


def moved(document: Any, source: list[str], path: list[str]) -> Any:
    found = at(document, source)
    if source == path:
        return document
    if path[: len(source)] == source:
        raise Refused
    return added(removed(document, source), path, found)


def evaluated(document: Any, operation: dict[str, Any]) -> Any:
    """RFC 6902, section 4, to the letter, on plain Python values. Changes the document."""
    path, value = tokens(operation["path"]), deepcopy(operation.get("value"))
    source = tokens(operation.get("from", ""))
    match operation["op"]:
        case "add":
            document = added(document, path, value)
        case "remove":
            document = removed(document, path)
        case "replace":
            document = replaced(document, path, value)
        case "copy":
            document = added(document, path, deepcopy(at(document, source)))
        case "move":
            document = moved(document, source, path)
        case "test":
            if not same(at(document, path), value):
                raise Refused
    return document


def pointer(path: list[str]) -> str:
    return "".join("/" + token.replace("~", "~0").replace("/", "~1") for token in path)


def places(document: Any) -> list[list[str]]:
    """Every place in the document, and every place where something could be added."""
    children: dict[str, Any] = {}
    if isinstance(document, dict):
        children = {"new": None} | document
    elif isinstance(document, list):
        children = {str(index): part for index, part in enumerate(document)} | {str(len(document)): None, "-": None}
    return [[], *([name, *path] for name, child in children.items() for path in places(child))]


@st.composite
def operations(draw: st.DrawFn, document: Any) -> dict[str, Any]:
    """An operation that often fits the document."""
    somewhere = (st.sampled_from(places(document)) | st.lists(names, max_size=3)).map(pointer)
    operation = {"op": draw(st.sampled_from(["add", "remove", "replace", "move", "copy", "test"]))}
    operation["path"] = draw(somewhere)
    if operation["op"] in ("move", "copy"):
        operation["from"] = draw(somewhere)
    elif operation["op"] == "test" and draw(st.booleans()):
        try:
            operation["value"] = deepcopy(at(document, tokens(operation["path"])))
        except Refused:
            operation["value"] = None
    elif operation["op"] != "remove":
        operation["value"] = draw(documents)
    return operation


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_json_patches_do_what_the_rfc_says(data: st.DataObject) -> None:
    """Operations that fit, one after the other, and each that does not by itself at the end."""
    document = data.draw(documents)
    fitting: list[dict[str, Any]] = []
    result = deepcopy(document)
    for _ in range(data.draw(st.integers(1, 6))):
        operation = data.draw(operations(result))
        try:
            result = evaluated(deepcopy(result), operation)
            fitting.append(operation)
        except Refused:
            with pytest.raises((PatchConflict, InvalidPatch)):
                json_patch(json.dumps(document), [*fitting, operation])
    assert json.dumps(json.loads(json_patch(json.dumps(document), fitting))) == json.dumps(result)
