"""Patches to a state: JSON Merge Patch (RFC 7396) and JSON Patch (RFC 6902).

A body is parsed once into a `Patch`, which may then be applied to any number of states.

A state is opened only as far as the patch goes into it. A value that is not opened is the `Raw` of its JSON text: it is
found, moved, copied and written as it stands, so that an append to a long state costs little more than to a short one,
and nothing that a patch leaves alone can change. Nor are numbers read as numbers: `1.0`, `1E400`, `-0` and integers of
any length keep their literals, also those that a patch brings.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Context, Decimal
from functools import cache
from itertools import chain, islice
from json import JSONDecodeError, JSONDecoder
from typing import Any, TypeVar, cast

from jsonpatch import AddOperation, JsonPatch, JsonPatchException, JsonPointer, JsonPointerException, PatchOperation
from msgspec import DecodeError, Raw
from msgspec.json import Decoder, decode, encode
from msgspec.json import format as formatted

from chatstate.errors import BodyTooLarge, Finding, InvalidJson, InvalidPatch, PatchConflict, StateNotPatchable
from chatstate.model import MAX_STATE_DEPTH, json_depth

Value = TypeVar("Value")

Patch = Callable[[str, int], str]
"""Takes the text of a state and the most bytes of UTF-8 that the result may have, and gives the text of the new state.

Raises `StateNotPatchable`, `PatchConflict`, and `BodyTooLarge` for a result over the limit or nested too deeply.
"""

MAX_OPERATIONS = 1000
"""The most operations that one JSON Patch may have."""

_LONG = 1 << 19
"""Below it, changing threads costs more than it gives; the worst that can be done to so little takes some 50 ms."""

MAX_STEPS = 2_000_000_000
"""What one JSON Patch may cost beyond reading and writing: a step is an array element that moves up or down by one."""


def parse_merge_patch(body: bytes) -> Patch:
    """The body of `application/merge-patch+json`. Raises `InvalidJson` or `InvalidPatch`."""
    patch = _read_body(body, MAX_STATE_DEPTH)

    def apply(state: str, limit: int) -> str:
        return _write(_merged(_read_state(state), patch), limit, False)

    return apply


def _merged(target: Any, patch: Any) -> Any:
    """RFC 7396, section 2. Changes the target in place, and the patch never."""
    if not isinstance(patch, dict):
        return patch
    target = _opened(target)
    result = target if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = _merged(result.get(name), value)
    return result


def parse_json_patch(body: bytes) -> Patch:
    """The body of `application/json-patch+json`. Raises `InvalidJson`, or `InvalidPatch` naming each bad member.

    What no state could ever take is refused here already: to remove the root, or to move a value into itself.
    """
    entries = _read_body(body, MAX_STATE_DEPTH + 2)
    if findings := tuple(islice(_findings(entries), 20)):
        raise InvalidPatch(errors=findings)
    operations = [_operation(entry) for entry in entries]
    levels = max((_levels(entry) for entry in entries), default=0)

    def apply(state: str, limit: int) -> str:
        return _write(_Application(limit).run(_read_state(state), operations), limit, levels > MAX_STATE_DEPTH)

    return apply


MEDIA_TYPES: Mapping[str, Callable[[bytes], Patch]] = {
    "application/merge-patch+json": parse_merge_patch,
    "application/json-patch+json": parse_json_patch,
}
"""The parser for each media type that a patch may have."""


async def unhurried(work: Callable[..., Value], text: str | bytes, *more: Any) -> Value:
    """Parse a body, or apply a patch to a state. A long one takes its time in a thread, while others are answered."""
    if len(text) <= _LONG:
        return work(text, *more)
    return await asyncio.to_thread(work, text, *more)


# --- The operations of a JSON Patch -----------------------------------------------------------------------------------

_NEEDS = {
    "add": ("path", "value"),
    "remove": ("path",),
    "replace": ("path", "value"),
    "move": ("from", "path"),
    "copy": ("from", "path"),
    "test": ("path", "value"),
}


def _findings(entries: Any) -> Iterator[Finding]:
    """What is wrong with the body; each place in it is named by a JSON pointer."""
    if not isinstance(entries, list):
        yield Finding("body", "must be a JSON array of operations (RFC 6902)")
    elif len(entries) > MAX_OPERATIONS:
        yield Finding("body", f"must have at most {MAX_OPERATIONS} operations, has {len(entries)}: send several")
    else:
        for index, entry in enumerate(entries):
            yield from (Finding(f"/{index}{member}", problem) for member, problem in _problems(entry))


def _problems(entry: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(entry, dict):
        yield "", "must be an object with the members `op` and `path`"
        return
    op, path, source = entry.get("op"), entry.get("path"), entry.get("from")
    if not isinstance(op, str) or op not in _NEEDS:
        yield "/op", f"must be one of {', '.join(_NEEDS)}"
        return
    for name in _NEEDS[op]:
        if name not in entry:
            yield f"/{name}", f"is missing: `{op}` needs it"
        elif name != "value" and (problem := _pointer_problem(entry[name])):
            yield f"/{name}", problem
    if op == "remove" and path == "":
        yield "/path", "must not be the whole state; replace it instead"
    if op == "move" and isinstance(path, str) and isinstance(source, str) and path.startswith(source + "/"):
        yield "/path", "must not lie inside `from`: a value cannot move into itself"


def _pointer_problem(pointer: Any) -> str | None:
    if not isinstance(pointer, str):
        return "must be a string, a JSON pointer (RFC 6901)"
    if pointer.count("/") > MAX_STATE_DEPTH:
        return f"leads more than {MAX_STATE_DEPTH} levels down, where no state has anything"
    try:
        JsonPointer(pointer)
    except JsonPointerException:
        return "must be a JSON pointer (RFC 6901): empty or beginning with `/`, and `~` only in `~0` and `~1`"
    return None


def _levels(entry: dict[str, Any]) -> int:
    """How deep what the operation adds may reach; deeper than any state may be where that depends on the state."""
    if "from" in _NEEDS[entry["op"]]:
        return MAX_STATE_DEPTH + 1
    return entry["path"].count("/") + _depth(entry["value"]) if entry["op"] in ("add", "replace") else 0


def _operation(entry: dict[str, Any]) -> PatchOperation:
    """The operation, parsed as far as it can be without a state."""
    members = {"op": entry["op"]}
    for name in _NEEDS[entry["op"]]:
        members[name] = entry[name] if name == "value" else _Pointer(entry[name])
    if entry["op"] in ("add", "replace"):
        members["value"] = _Value(members["value"])
    return JsonPatch.operations[entry["op"]](members, pointer_cls=_Pointer)


class _Pointer(JsonPointer):
    """A JSON pointer that leads only to what is there, and does not put the whole state into its messages."""

    def walk(self, doc: Any, part: str | int) -> Any:
        if isinstance(doc, dict) and part in doc:
            return _child(doc, part)
        if isinstance(doc, list) and part != "-":
            super().walk(doc, part)
            return _child(doc, self.get_part(doc, part))
        raise JsonPointerException(f"there is no {part!r}")

    def to_last(self, doc: Any) -> tuple[Any, Any]:
        if not self.parts:
            return doc, None
        for part in self.parts[:-1]:
            doc = self.walk(doc, part)
        if not isinstance(doc, dict | list):
            raise JsonPointerException(f"{self.parts[-1]!r} would be in a value that is no object and no array")
        return doc, self.get_part(doc, self.parts[-1])


class _Value:
    """A value to insert, closed. The library takes a copy; what is closed never changes, and can be shared."""

    def __init__(self, value: Any) -> None:
        text = encode(value)
        self.size = len(text)
        self.closed = Raw(text)

    def __deepcopy__(self, memo: object) -> Raw:
        return self.closed


class _Application:
    """One application of a JSON Patch, and what it may still cost.

    What `add`, `replace` and `copy` insert may have as many bytes together as a state: copies of copies stay small.
    """

    def __init__(self, limit: int) -> None:
        self._limit = self._bytes = limit
        self._steps = MAX_STEPS

    def run(self, document: Any, operations: list[PatchOperation]) -> Any:
        for index, operation in enumerate(operations):
            try:
                document = _opened(self._apply(operation, document))
            except (JsonPatchException, JsonPointerException) as error:
                members = {name: _clipped(str(at)) for name, at in operation.operation.items() if name != "value"}
                where = f"Operation {index}, {encode(members).decode()}, does not fit the state"
                raise PatchConflict(f"{where}: {_clipped(str(error))}.") from None
            except RecursionError:
                raise _too_deep() from None
        return document

    def _apply(self, operation: PatchOperation, document: Any) -> Any:
        op = operation.operation["op"]
        source: Any = operation.operation.get("from")
        if op == "test":
            return self._test(operation, document)
        if op == "copy":
            members = {"op": "add", "path": operation.pointer, "value": _Value(source.resolve(document))}
            operation = AddOperation(members, pointer_cls=_Pointer)
        if op == "move":
            source.resolve(document)
            self._spend(_shift(source, document))
        self._insert(operation.operation.get("value"))
        document = operation.apply(document)
        if op != "replace":
            self._spend(_shift(operation.pointer, document))
        return document

    def _insert(self, value: _Value | None) -> None:
        self._bytes -= value.size if value else 0
        if self._bytes < 0:
            raise BodyTooLarge(
                f"The patch inserts and copies more than {self._limit} bytes (CHATSTATE_MAX_STATE_BYTES)."
                " Send it in parts, or save the state as a whole."
            )

    def _test(self, operation: PatchOperation, document: Any) -> Any:
        found, expected = operation.pointer.resolve(document), operation.operation["value"]
        if not self._equal(found, expected):
            raise JsonPatchException("the value there is another one")
        return document

    def _equal(self, found: Any, expected: Any) -> bool:
        """Whether two values are the same (RFC 6902, section 4.6). Takes no longer than `expected` is large."""
        if isinstance(found, list) and isinstance(expected, list):
            return len(found) == len(expected) and self._have_equal(found, expected, range(len(found)))
        if isinstance(found, dict) and isinstance(expected, dict):
            return found.keys() == expected.keys() and self._have_equal(found, expected, found)
        if isinstance(found, Raw) and not _is_number(found):
            found = decode(found)
        if isinstance(found, Raw) and isinstance(expected, Raw):
            return found == expected or self._number(found) == self._number(expected)
        return type(found) is type(expected) and bool(found == expected)

    def _have_equal(self, found: Any, expected: Any, keys: Iterable[Any]) -> bool:
        return all(self._equal(_child(found, key), expected[key]) for key in list(keys))

    def _number(self, literal: Raw) -> Decimal:
        """The exact value; NaN, which equals nothing, when its exponent has more than 18 digits."""
        text = bytes(literal).decode()
        self._spend(32 * len(text))
        return Decimal(text, _WITHOUT_TRAPS)

    def _spend(self, steps: int) -> None:
        self._steps -= steps
        if self._steps < 0:
            raise BodyTooLarge(
                "The patch moves elements within long arrays, or compares long numbers, too often."
                " Save the state as a whole instead."
            )


_WITHOUT_TRAPS = Context(traps=[])


def _shift(pointer: JsonPointer, document: Any) -> int:
    """How many elements of an array give way, or close up, when one is put in or taken out there."""
    parent, part = pointer.to_last(document)
    return max(len(parent) - part, 0) if isinstance(part, int) else 0


# --- Between text and values ------------------------------------------------------------------------------------------


def _read_body(body: bytes, max_depth: int) -> Any:
    if not body:
        raise InvalidJson("The body is empty; send a patch.")
    try:
        return _read(body.decode(), max_depth)
    except UnicodeDecodeError as error:
        raise InvalidJson(f"The body is not UTF-8 (byte {error.start}).") from None
    except JSONDecodeError as error:
        raise InvalidJson(f"The body is not valid JSON: {error}.") from None
    except ValueError as error:
        raise InvalidPatch(errors=(Finding("body", str(error)),)) from None


def _read_state(state: str) -> Any:
    """The state, its outermost container opened. All of it is checked to be JSON."""
    text = state.strip(" \t\n\r").encode()
    try:
        return _opened(decode(text, type=Raw))
    except (DecodeError, RecursionError):
        raise StateNotPatchable(f"The state {_why_not_json(state)}. Save it as a whole instead.") from None


def _why_not_json(state: str) -> str:
    try:
        _parse(state)
    except JSONDecodeError as error:
        return f"is not JSON: {error}"
    except RecursionError:
        return "is nested too deeply"
    return _LONE_SURROGATES


_OBJECT, _ARRAY = Decoder(dict[str, Raw]), Decoder(list[Raw])


def _opened(value: Any) -> Any:
    """A closed object or array as one whose members are closed; anything else as it is.

    Raises `StateNotPatchable` for an object that names a member twice.
    """
    if type(value) is not Raw:
        return value
    match memoryview(value)[0]:
        case 0x7B:  # {
            members = _OBJECT.decode(value)
            return members if _is_all(members, value) else _opened_with_care(value)
        case 0x5B:  # [
            elements = _ARRAY.decode(value)
            return elements if _is_all(elements, value) else _ARRAY.decode(formatted(value, indent=-1))
    return value


def _is_all(container: Any, text: Raw) -> bool:
    """Whether this is as long as its text: then there was no white space, no escape in a name, and no name twice."""
    return len(encode(container)) == memoryview(text).nbytes


def _opened_with_care(value: Raw) -> dict[str, Any]:
    compact = Raw(formatted(value, indent=-1))
    members = _OBJECT.decode(compact)
    if _is_all(members, compact):
        return members
    try:
        return cast(dict[str, Any], _parse(bytes(compact).decode(), _members))
    except ValueError as error:
        raise StateNotPatchable(f"The state {error}. Save it as a whole instead.") from None


def _child(container: Any, key: Any) -> Any:
    """The member or element. It is opened there, and stays open."""
    child = container[key]
    if type(child) is Raw and memoryview(child)[0] in b"{[":
        container[key] = child = _opened(child)
    return child


def _is_number(value: Raw) -> bool:
    return memoryview(value)[0] in b"-0123456789"


def _read(text: str, max_depth: int) -> Any:
    """Raises JSONDecodeError for what is no JSON, and ValueError for JSON that would not survive."""
    try:
        value = _parse(text, _members)
        too_deep = _depth(value) > max_depth
    except RecursionError:
        too_deep = True
    if too_deep:
        raise ValueError(f"is nested deeper than {max_depth} levels")
    try:
        decode(text.encode(), type=Raw)
    except DecodeError:
        raise ValueError(_LONE_SURROGATES) from None
    return value


_LONE_SURROGATES = "has escapes of lone surrogates, which no UTF-8 text can carry"


def _parse(text: str, members: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The JSON document as a tree in which each number is the `Raw` of its literal."""
    number = cache(Raw)
    decoder = JSONDecoder(
        object_pairs_hook=members, parse_float=number, parse_int=number, parse_constant=_refuse_constant
    )
    return decoder.decode(text)


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"names the member {_clipped(name)!r} twice in one object")
    return members


def _refuse_constant(name: str) -> Any:
    raise JSONDecodeError(f"{name} is not JSON", name, 0)


def _depth(value: Any) -> int:
    """How deeply arrays and objects are nested; 0 for a scalar."""
    depth = -1
    level: list[Any] = [[value]]
    while level:
        depth += 1
        nodes = [node.values() if type(node) is dict else node for node in level]
        level = [child for child in chain.from_iterable(nodes) if type(child) is dict or type(child) is list]
    return depth


def _write(document: Any, limit: int, perhaps_deep: bool) -> str:
    try:
        text = encode(document)
    except RecursionError:
        raise _too_deep() from None
    if perhaps_deep and json_depth(text) > MAX_STATE_DEPTH:
        raise _too_deep()
    if len(text) > limit:
        raise BodyTooLarge(f"The patched state is larger than {limit} bytes (CHATSTATE_MAX_STATE_BYTES).")
    return text.decode()


def _too_deep() -> BodyTooLarge:
    return BodyTooLarge(f"The patched state is nested deeper than {MAX_STATE_DEPTH} levels.")


def _clipped(message: str) -> str:
    return message if len(message) <= 200 else message[:199] + "…"
