"""What it costs to know who is calling: saves and loads with an API key, and with session tokens, beside open ones. And
what it costs to keep states encrypted.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.chatstate import ChatStateOnPostgres, ChatStateOnSQLite, ChatStateServer, WithKey, WithTokens
from bench.load import Spec
from bench.measure import Bench, changed
from bench.turns import ALIKE, halved
from chatstate.encryption import new_key

PART = "access"

MOST_TOKENS = 2000
"""How many sessions there are at most, each with a token of its own."""

LEAST_RATE = 0.85
"""The floor: how many of the saves and loads without a credential there must be with one."""


def access(bench: Bench, systems: Sequence[ChatStateServer], spec: Spec, rounds: int) -> None:
    """All rows of the part. The ratios are near to one, so there are more rounds, and shorter ones."""
    spec = changed(halved(spec), sessions=min(spec.sessions, MOST_TOKENS))
    for system in systems:
        if isinstance(system, ChatStateOnSQLite | ChatStateOnPostgres):
            _one(bench, system, spec, 2 * rounds)
            _encrypted(bench, system, spec, rounds)


def _one(bench: Bench, system: ChatStateServer, spec: Spec, rounds: int) -> None:
    closed = [kind(type(system), spec.sessions) for kind in (WithKey, WithTokens)]
    with bench.casting([system, *closed], PART, spec) as cast:
        bench.interleave(PART, PART, cast, lambda _, mix: changed(spec, mix=mix), rounds, ("save", "load"))
    for keyed in closed:
        for mix in ("save", "load"):
            what = f"{mix} {keyed.kind} : {mix}"
            floors = {"rate": 1 / LEAST_RATE}
            bench.compare(what, (PART, keyed.name, mix), (PART, system.name, mix), ALIKE, floors)


def _encrypted(bench: Bench, system: ChatStateServer, spec: Spec, rounds: int) -> None:
    name = f"{system.name}, encrypted"
    sealed = type(system)(name, environment={"CHATSTATE_ENCRYPTION_KEYS": new_key()})
    case = "encrypted"
    with bench.casting([system, sealed], case, spec) as cast:
        bench.interleave(PART, case, cast, lambda _, mix: changed(spec, mix=mix), rounds, ("save", "load"))
    for mix in ("save", "load"):
        bench.compare(f"{mix} encrypted : {mix}", (case, name, mix), (case, system.name, mix), ALIKE)
