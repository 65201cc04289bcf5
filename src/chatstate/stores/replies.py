"""Replies that are being written, on their way from the server that writes one to those whose watchers read along.

What is said between servers, in messages that may be lost, without any I/O: a store's `Hints` carry them. Nothing is
sent that nobody reads:

* `Writing`: these sessions are being written to here; once at the beginning, and again every `REPEAT_SECONDS`.
* `Read`: somebody follows these here; said when that is heard. It holds for `READ_SECONDS`.
* `Piece`: more of a reply, from this place of its text on. Whoever has missed something asks anew, from the beginning.
* `Over`: nothing is being written any more.

Sessions are named by digests. The texts are sealed where the store encrypts: they may come to lie in a log or a queue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from msgspec import DecodeError, Struct, json

from chatstate.errors import StateUnreadable

REPEAT_SECONDS = 2.0
"""How often it is said that a reply is being written; so long somebody who comes late sees nothing of it."""

READ_SECONDS = 10.0
"""For how long pieces are sent after somebody has asked for them."""

_SILENT_SECONDS = 3 * REPEAT_SECONDS
"""When nothing was heard of a reply for so long, its server has died."""

_MOST_NAMED = 200
_LONGEST_PIECE = 1000
"""How many sessions a message names, and how many code points it brings: it stays below 8000 bytes, sealed as well."""

Written = Callable[[str, str, str], None]
"""Takes the id of a session that is followed, the id of a reply that another server is writing for it, and its text so
far; both empty: none is being written any more. It is called in the event loop, and must not raise."""


class Sealing(NamedTuple):
    """How texts are sealed on their way, and opened; both take the name that the text is bound to, and the text.

    `open` raises `StateUnreadable`.
    """

    seal: Callable[[str, str], str]
    open: Callable[[str, str], str]


def _as_it_is(_name: str, text: str) -> str:
    return text


IN_THE_CLEAR = Sealing(_as_it_is, _as_it_is)


class Writing(Struct, tag="w", array_like=True):
    digests: list[str]


class Read(Struct, tag="r", array_like=True):
    """`anew`: from the beginning of the text."""

    digests: list[str]
    anew: bool


class Piece(Struct, tag="p", array_like=True):
    digest: str
    reply: str
    start: int
    text: str


class Over(Struct, tag="o", array_like=True):
    digests: list[str]


_Message = Writing | Read | Piece | Over


class _Here:
    """A reply that is being written here: how much of it was sent (None: not even its id), and until when somebody
    reads it."""

    __slots__ = ("announced", "read_until", "reply", "sent", "text")

    def __init__(self) -> None:
        self.reply = self.text = ""
        self.sent: int | None = None
        self.announced = self.read_until = float("-inf")


class _Elsewhere:
    """A reply that another server writes, as far as it was heard, and when that was; when it was last asked for."""

    __slots__ = ("asked", "heard", "reply", "text")

    def __init__(self) -> None:
        self.reply = self.text = ""
        self.heard = self.asked = float("-inf")


class Replies:
    """What one server writes and reads. Times are in seconds, of any clock that only goes forward.

    follows  whether somebody here follows the session with this digest
    tell     takes a digest, and the reply and its text so far
    """

    def __init__(self, follows: Callable[[str], bool], tell: Written) -> None:
        self.sealing = IN_THE_CLEAR
        self._follows = follows
        self._tell = tell
        self._here: dict[str, _Here] = {}
        self._elsewhere: dict[str, _Elsewhere] = {}
        self._over: list[str] = []
        self._asking: dict[str, bool] = {}  # whether from the beginning

    @property
    def are_written(self) -> bool:
        """Whether there is something to say again and again."""
        return bool(self._here)

    def write(self, digest: str, reply: str, text: str, now: float) -> bool:
        """So far is the reply that is being written here; both empty: none is any more. Whether there is something to
        say about it."""
        if not reply:
            ended = self._here.pop(digest, None)
            if ended and ended.announced > float("-inf"):
                self._over.append(digest)
            return bool(self._over)
        is_new = digest not in self._here
        here = self._here.setdefault(digest, _Here())
        if here.reply != reply or not text.startswith(here.text[: here.sent]):
            here.sent = None
        here.reply, here.text = reply, text
        return is_new or here.read_until > now

    def forget(self, digest: str) -> None:
        """Nobody follows it here any more."""
        self._elsewhere.pop(digest, None)
        self._asking.pop(digest, None)

    # --- What is said -------------------------------------------------------------------------------------------------

    def messages(self, now: float) -> Iterator[bytes]:
        """What is to be said now."""
        yield from map(json.encode, self._messages(now))

    def _messages(self, now: float) -> Iterator[_Message]:
        due = [digest for digest, here in self._here.items() if now - here.announced >= REPEAT_SECONDS]
        for digest in due:
            self._here[digest].announced = now
        yield from map(Writing, _parts(due))
        for anew in (False, True):
            asked = [digest for digest, again in self._asking.items() if again is anew]
            yield from (Read(part, anew) for part in _parts(asked))
        self._asking.clear()
        for digest, here in self._here.items():
            if here.read_until > now:
                yield from self._pieces(digest, here)
        over, self._over = self._over, []
        yield from map(Over, _parts(over))

    def _pieces(self, digest: str, here: _Here) -> Iterator[Piece]:
        begin = here.sent or 0
        end = len(here.text) or int(here.sent is None)  # a text that is empty is told once
        for start in range(begin, end, _LONGEST_PIECE):
            text = here.text[start : start + _LONGEST_PIECE]
            yield Piece(digest, here.reply, start, self.sealing.seal(digest, text))
        here.sent = len(here.text)

    # --- What is heard ------------------------------------------------------------------------------------------------

    def hear(self, message: bytes | str, now: float) -> bool:
        """What another server has said. Whether there is something to say about it."""
        try:
            heard = json.decode(message, type=_Message)
        except DecodeError:  # of another version
            return False
        if isinstance(heard, Read):
            return self._asked(heard, now)
        if isinstance(heard, Piece):
            self._piece(heard, now)
        elif isinstance(heard, Writing):
            for digest in filter(self._follows, heard.digests):
                self._written(digest, now)
        else:
            for digest in heard.digests:
                self._ended(digest)
        return bool(self._asking)

    def _asked(self, heard: Read, now: float) -> bool:
        ours = [self._here[digest] for digest in heard.digests if digest in self._here]
        for here in ours:
            if heard.anew or here.read_until <= now:
                here.sent = None
            here.read_until = now + READ_SECONDS
        return bool(ours)

    def _written(self, digest: str, now: float) -> None:
        elsewhere = self._elsewhere.setdefault(digest, _Elsewhere())
        elsewhere.heard = now
        if now - elsewhere.asked >= READ_SECONDS / 2:
            elsewhere.asked = now
            self._asking[digest] = not elsewhere.reply

    def _piece(self, heard: Piece, now: float) -> None:
        if not self._follows(heard.digest):
            return
        elsewhere = self._elsewhere.setdefault(heard.digest, _Elsewhere())
        elsewhere.heard = now
        try:
            text = self.sealing.open(heard.digest, heard.text)
        except StateUnreadable:  # the state that it ends in says so, too
            return
        if heard.start == 0:
            elsewhere.reply, elsewhere.text = heard.reply, text
        elif elsewhere.reply == heard.reply and heard.start == len(elsewhere.text):
            elsewhere.text += text
        else:
            self._asking[heard.digest] = True
            return
        self._tell(heard.digest, elsewhere.reply, elsewhere.text)

    def _ended(self, digest: str) -> None:
        if self._elsewhere.pop(digest, None):
            self._tell(digest, "", "")

    def drop_silent(self, now: float) -> None:
        """End what nothing was heard of for so long that its server must have died."""
        silent = [digest for digest, elsewhere in self._elsewhere.items() if now - elsewhere.heard > _SILENT_SECONDS]
        for digest in silent:
            self._ended(digest)


def _parts(digests: Sequence[str]) -> Iterable[list[str]]:
    return ([*digests[start : start + _MOST_NAMED]] for start in range(0, len(digests), _MOST_NAMED))
