"""What the load generator sends: states as chats have them, and requests put together quickly."""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate

from msgspec import json

from bench.apis import Api

MARK = "765432109876"
"""Stands in every state where a running number goes, so that no two saves are equal."""

MESSAGE_BYTES = 200

_SYLLABLES = re.findall("..", "kalomitasoveduperantiosqualibenostafegainulrochemape")
_ROLES = ("user", "assistant")


@lru_cache(1)
def states(state_bytes: int, seed: int = 1) -> list[str]:
    """States of chats as JSON.stringify writes them, each of so many bytes in UTF-8 (at least 80), all different.

    There are 64 of them, or fewer when they are large. The words are made up, a few of them are frequent, as in a
    language. Texts have line breaks and quotes; a quarter of the states is in a language with accents.
    """
    dice = random.Random(seed)
    number = max(8, min(64, (8 << 20) // state_bytes))
    return [_state(dice, state_bytes, accents=index % 4 == 3) for index in range(number)]


def _state(dice: random.Random, state_bytes: int, accents: bool) -> str:
    messages: list[dict[str, object]] = []
    room = state_bytes - 100
    while room > 90:
        chosen = _words(dice, min(dice.randint(5, 45), (room - 70) // 8), accents)
        text = " ".join(chosen).capitalize() + dice.choice((".", "?", "!\n", ' "' + chosen[0] + '".'))
        message = {"role": _ROLES[len(messages) % 2], "content": text, "at": 1759392000000 + dice.randrange(10**9)}
        messages.append(message)
        room -= len(json.encode(message)) + 1
    document = {"turn": int(MARK), "currentStep": "language", "messages": messages, "note": ""}
    while (missing := state_bytes - len(json.encode(document))) < 0 and messages:
        messages.pop()
    note = " ".join(_words(dice, max(missing, 0), accents=False))[: max(missing, 0)]
    return json.encode({**document, "note": note}).decode()


def _message() -> str:
    dice = random.Random(3)
    message = {"role": "user", "content": "", "at": int(MARK)}
    room = MESSAGE_BYTES - len(json.encode(message))
    return json.encode({**message, "content": " ".join(_words(dice, room, accents=False))[:room]}).decode()


def _words(dice: random.Random, number: int, accents: bool) -> list[str]:
    words, weights = _vocabulary(accents)
    return dice.choices(words, cum_weights=weights, k=number)


@lru_cache
def _vocabulary(accents: bool) -> tuple[list[str], list[float]]:
    dice = random.Random(7)
    words = ["".join(dice.choices(_SYLLABLES, k=dice.randint(1, 4))) for _ in range(2000)]
    if accents:
        words = [word.replace("e", "é").replace("ul", "ü") for word in words]
    return words, list(accumulate(1 / rank for rank in range(1, len(words) + 1)))


MESSAGE = _message()
"""A message to append, as JSON."""


class Requests:
    """The requests of an Api, put together from pieces that were made before, because the generator has to be quick."""

    def __init__(self, api: Api, state_bytes: int, seed: int) -> None:
        self._api = api
        texts = [json.encode(state)[1:-1] for state in states(state_bytes, seed)]
        self._states = [(len(text), *text.split(MARK.encode())) for text in texts]
        self._number = 10 ** (len(MARK) - 1)
        self._frame = lru_cache(1 << 17)(self._make_frame)
        self.load: Callable[[int], bytes] = lru_cache(1 << 17)(api.load)
        self._key = f"\r\nIdempotency-Key: {uuid.uuid4()}-".encode()  # keys are remembered from run to run
        self._check(state_bytes, seed)

    def save(self, session: int, fields: bytes = b"") -> bytes:
        """A save of another state than any before. `fields` are further lines of the head, each after its line end."""
        self._number += 1
        length, before, after = self._states[self._number % len(self._states)]
        head, others, middle, tail = self._frame(session)
        return b"".join((head, b"%d" % (others + length), fields, middle, before, b"%d" % self._number, after, tail))

    def conditional(self, session: int, tag: bytes) -> bytes:
        """A save on condition that the session is in this version; `tag` is its entity tag, with the quotes."""
        return self.save(session, b"\r\nIf-Match: " + tag)

    def keyed(self, session: int) -> bytes:
        """A save with an idempotency key, another one than any before."""
        return self.save(session, self._key + b"%d" % self._number)

    def append(self, session: int) -> bytes:
        """A patch that appends another message than any before."""
        self._number += 1
        return self._api.append(session, MESSAGE).replace(MARK.encode(), b"%d" % self._number)

    def _make_frame(self, session: int) -> tuple[bytes, int, bytes, bytes]:
        """A save without its state: up to the body's length, the length of the rest, what surrounds the state."""
        head, _, body = self._api.save(session, MARK).partition(b"\r\n\r\n")
        match = re.search(rb"(?i)(?<=\r\nContent-Length: )\d+", head)
        assert match
        before, after = body.split(MARK.encode())
        return head[: match.start()], len(before) + len(after), head[match.end() :] + b"\r\n\r\n" + before, after

    def _check(self, state_bytes: int, seed: int) -> None:
        """What is put together must be, byte for byte, what the Api makes."""
        request = self.save(0)
        state = states(state_bytes, seed)[self._number % len(self._states)].replace(MARK, str(self._number))
        assert request == self._api.save(0, state), "this Api cannot be taken to pieces"
