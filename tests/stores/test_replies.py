"""Replies on their way between servers: what is said and heard, also when messages are lost, and over real lines."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from itertools import count

import pytest

from chatstate.encryption import KeyRing, new_key
from chatstate.stores import Store
from chatstate.stores.feed import Feed
from chatstate.stores.replies import READ_SECONDS, REPEAT_SECONDS, Replies, Sealing
from tests.stores.hearing import opened

SOON = 10.0


class Network:
    """A writer and a reader of the session `d`, and the messages between them. `now` is their clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.follows = True
        self.told: list[tuple[str, str]] = []
        self.writer = Replies(lambda _: False, lambda *_: None)
        self.reader = Replies(lambda digest: self.follows and digest == "d", self._tell)

    def _tell(self, digest: str, reply: str, text: str) -> None:
        assert digest == "d"
        self.told.append((reply, text))

    def write(self, reply: str, text: str) -> None:
        self.writer.write("d", reply, text, self.now)

    def settle(self, lost: float = 0.0, rng: random.Random | None = None) -> int:
        """Carry messages to and fro until nobody has anything to say; how many there were. `lost`: this part is not."""
        for number in count():
            said = [(self.reader, message) for message in self.writer.messages(self.now)]
            said += [(self.writer, message) for message in self.reader.messages(self.now)]
            if not said:
                return number
            for hearer, message in said:
                if rng is None or rng.random() >= lost:
                    hearer.hear(message, self.now)
        raise AssertionError


@pytest.fixture
def network() -> Network:
    return Network()


def sealing(ring: KeyRing) -> Sealing:
    return Sealing(partial(ring.seal, "replies"), partial(ring.open, "replies"))


def test_a_reply_is_told_as_it_grows(network: Network) -> None:
    for text in ("", "Hel", "Hello", "Hello 😀"):
        network.write("r1", text)
        network.settle()
    network.write("r2", "Again")
    network.settle()
    network.write("", "")
    network.settle()
    texts = [("r1", ""), ("r1", "Hel"), ("r1", "Hello"), ("r1", "Hello 😀"), ("r2", "Again"), ("", "")]
    assert network.told == texts


def test_what_is_not_followed_is_not_sent(network: Network) -> None:
    network.follows = False
    network.write("r", "secret")
    messages = list(network.writer.messages(0))
    assert len(messages) == 1
    assert b"secret" not in messages[0]
    assert not network.reader.hear(messages[0], 0)
    assert not list(network.reader.messages(0))
    assert not network.writer.write("d", "r", "secret, longer", 0)
    assert not list(network.writer.messages(0))


def test_whoever_comes_late_gets_the_whole_text_soon(network: Network) -> None:
    network.follows = False
    network.write("r", "as far as it is")
    network.settle()
    network.follows = True
    network.now += REPEAT_SECONDS
    network.settle()
    assert network.told == [("r", "as far as it is")]


def test_nobody_who_has_left_is_written_to(network: Network) -> None:
    network.write("r", "one")
    network.settle()
    network.follows = False
    network.reader.forget("d")
    network.now += READ_SECONDS
    network.write("r", "one two")
    assert not any(b"two" in message for message in network.writer.messages(network.now))


def test_a_long_text_goes_in_pieces_that_each_are_below_8000_bytes(network: Network) -> None:
    text = "😀\x01" * 3000
    network.writer.sealing = network.reader.sealing = sealing(KeyRing.parse(new_key()))
    network.write("r", text)
    network.reader.hear(next(network.writer.messages(0)), 0)
    (asking,) = network.reader.messages(0)
    network.writer.hear(asking, 0)
    pieces = list(network.writer.messages(0))
    assert len(pieces) == 6
    assert max(map(len, pieces)) < 7500
    for piece in pieces:
        network.reader.hear(piece, 0)
    assert network.told[-1] == ("r", text)


def test_what_cannot_be_opened_is_not_told(network: Network) -> None:
    network.writer.sealing = sealing(KeyRing.parse(new_key()))
    network.reader.sealing = sealing(KeyRing.parse(new_key()))
    network.write("r", "text")
    network.settle()
    assert not network.told


def test_a_server_that_dies_leaves_no_reply_behind(network: Network) -> None:
    network.write("r", "half a sent")
    network.settle()
    network.now += 3 * REPEAT_SECONDS
    network.reader.drop_silent(network.now)
    assert network.told[-1] == ("r", "half a sent")
    network.now += 0.1
    network.reader.drop_silent(network.now)
    assert network.told[-1] == ("", "")


def test_messages_of_another_version_are_passed_over(network: Network) -> None:
    assert not network.reader.hear(b'["z", "of tomorrow"]', 0)
    assert not network.reader.hear(b"no JSON", 0)


@pytest.mark.parametrize("seed", range(30))
def test_lost_messages_are_made_up_for(network: Network, seed: int) -> None:
    """What is told is always a beginning of what was written; and once nothing is lost any more, all of it."""
    rng = random.Random(seed)
    text = ""
    for number in range(40):
        reply = f"r{number // 10}"
        text = (text if number % 10 else "") + rng.choice(("a", "word ", "x" * 1500))
        network.write(reply, text)
        network.settle(0.4, rng)
        network.now += rng.choice((0.1, REPEAT_SECONDS, READ_SECONDS))
        if network.told:
            heard, said = network.told[-1]
            assert heard != reply or text.startswith(said)
    for _ in range(3):
        network.now += READ_SECONDS
        network.settle()
    assert network.told[-1] == ("r3", text)


# --- Between servers --------------------------------------------------------------------------------------------------


class Reader:
    """Follows `s` on a store."""

    def __init__(self, store: Store) -> None:
        self.told = ("", "")
        self.news = asyncio.Event()
        self.feed: Feed = store.watch(lambda _: None, self._tell)
        self.feed.follow("s")

    def _tell(self, user_session_id: str, reply: str, text: str) -> None:
        assert user_session_id == "s"
        self.told = (reply, text)
        self.news.set()

    async def until(self, reply: str, text: str) -> None:
        async with asyncio.timeout(SOON):
            while self.told != (reply, text):
                self.news.clear()
                await self.news.wait()


@pytest.mark.parametrize("ring", [None, KeyRing.parse(new_key())], ids=["in the clear", "sealed"])
async def test_what_one_server_writes_is_read_on_another(
    shared_url: str, said: list[str], ring: KeyRing | None
) -> None:
    async with opened(shared_url, ring) as one, opened(shared_url, ring) as other:
        writer, reader = one.watch(lambda _: None), Reader(other)
        for text in ("", "Hello", "Hello, is this private?"):
            writer.write("s", "r", text)
            await reader.until("r", text)
        writer.write("s", "", "")
        await reader.until("", "")
    assert any("private" in message for message in said) == (ring is None)
