"""Writes that take several steps, many of them side by side: what they do next goes to the cluster together.

A write is a generator: it yields the calls of its next step, and is sent a reply for each, once all of the step is
durable. So what a write does is told in one place, from its first step to its last, and it does no I/O itself.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from itertools import islice
from typing import Any, TypeVar

from chatstate.errors import OutcomeUnknown, StoreError, StoreUnavailable, WriteRefused
from chatstate.stores.valkey_cluster import Call, Cluster

Result = TypeVar("Result")
Steps = Generator[Sequence[Call], list[Any], Result]
"""What it is sent in the place of a reply that there is not is a `StoreError`. What it raises is its outcome."""


async def carry_out(cluster: Cluster, writes: Sequence[Steps[Result]]) -> list[Result | StoreError]:
    """What each of the writes comes to, in order; an error of the store in the place of one that has raised it.

    Raises `WriteRefused` if one does before its first step, and whatever the first step of all raises: then nothing has
    happened.
    """
    outcomes: dict[int, Result | StoreError] = {}
    asked: dict[int, Sequence[Call]] = {}

    def advance(place: int, go_on: Callable[[], Sequence[Call]]) -> None:
        try:
            asked[place] = go_on()
        except StopIteration as end:
            outcomes[place] = end.value
        except StoreError as error:
            if is_first and isinstance(error, WriteRefused):
                raise
            outcomes[place] = error

    is_first = True
    for place, write in enumerate(writes):
        advance(place, lambda write=write: next(write))  # type: ignore[misc]
    while asked:
        step, asked = asked, {}
        together = [call for calls in step.values() for call in calls]
        try:
            replies = iter(await cluster.write(together) if together else ())
        except StoreError as error:
            if is_first:
                raise
            replies = iter([error] * len(together))
        is_first = False
        for place, calls in step.items():
            part = list(islice(replies, len(calls)))
            advance(place, lambda place=place, part=part: writes[place].send(part))  # type: ignore[misc]
    return [outcomes[place] for place in range(len(writes))]


def sure(replies: list[Any]) -> list[Any]:
    """The replies, if they are all there. Raises the first error among them."""
    for reply in replies:
        if isinstance(reply, StoreError):
            raise reply
    return replies


def reply_to(call: Call) -> Steps[Any]:
    """A step of one call. Raises the error that is in the place of the reply."""
    (reply,) = sure((yield [call]))
    return reply


def beforehand(steps: Steps[Result]) -> Steps[Result]:
    """Steps that change nothing that anybody sees: whatever is not known of them, the write has not happened."""
    try:
        return (yield from steps)
    except OutcomeUnknown as error:
        raise StoreUnavailable("The Valkey Cluster does not confirm what it is told. Nothing was written.") from error
