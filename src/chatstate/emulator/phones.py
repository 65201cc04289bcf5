"""The phones: who can write, what they do, and what becomes of it until the bot has answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from random import Random
from secrets import randbelow
from typing import NoReturn

from msgspec import Struct
from msgspec.structs import replace

from chatstate.emulator import payloads
from chatstate.emulator.delivery import Delivery, Network, Order, Pause
from chatstate.emulator.graph import Choice, GraphError, Outgoing
from chatstate.emulator.journal import Bubble, Feed, Journal
from chatstate.emulator.media import SAMPLES, Kind
from chatstate.emulator.payloads import Account, Content, Identities, Person, State, Update

SECONDS = 30.0
"""How long tests wait for something by default."""


class Sent(Struct, eq=False, kw_only=True):
    """A message of the bot that was accepted.

    person   who gets it; None: nobody has this number or user id
    message  what it says
    state    which status was reported last
    """

    id: str
    person: Person | None
    message: Outgoing
    at: datetime
    state: State | None = None

    @property
    def text(self) -> str:
        return self.message.text

    @property
    def choices(self) -> Sequence[Choice]:
        return self.message.choices


class Phones:
    """Persons with phones, who write to one number.

    persons     who can write; more with `add_person`
    sent        all messages of the bot that were accepted, in their order; one that was sent twice is there twice
    identities  how webhooks say who has written; see `payloads`
    network     what is on its way to the webhook
    journal     what is shown of all this, and `feed`, who is told of changes
    url         where the emulator itself is reached
    """

    def __init__(
        self,
        webhook: str,
        account: Account,
        identities: Identities,
        url: str,
        clock: Callable[[], datetime],
        pause: Pause,
        seed: int,
    ) -> None:
        self.account, self.identities, self.url, self.clock = account, identities, url, clock
        self.persons = [
            Person(key="zoe", name="Zoë Park", wa_id="16505551234", user_id=f"US.{10**19 + 1}", username="@zoe.park"),
            Person(key="luis", name="Luis Peña", wa_id="15550100002", user_id=f"US.{10**19 + 2}", username="@luis_p"),
        ]
        self.sent: list[Sent] = []
        self.failing: list[tuple[GraphError, bool]] = []
        self.feed = Feed()
        self.journal = Journal(self.feed.changed)
        random = Random(seed)  # noqa: S311 (an order to play with, no secret)
        self.network = Network(account, webhook, clock=clock, pause=pause, random=random, changed=self._on_its_way)
        self._heard: dict[str, datetime] = {}
        self._writers: dict[str, Person] = {}
        self._replies: dict[Person, list[Sent]] = {}

    # --- What persons do ----------------------------------------------------------------------------------------------

    def add_person(self, name: str) -> Person:
        """Somebody new, with a number of their own."""
        key = f"person-{len(self.persons) + 1}"
        username = "@" + "".join(letter for letter in name.lower() if letter.isascii() and letter.isalnum())
        user_id = payloads.new_user_id()
        person = Person(key=key, name=name, wa_id=self._new_number(), user_id=user_id, username=username)
        self.persons.append(person)
        self.feed.changed("state")
        return person

    def person(self, key: str) -> Person:
        """The person with this key. Raises KeyError."""
        return next((person for person in self.persons if person.key == key), None) or _missing(key)

    async def post(
        self, person: Person, content: Content, shown: str = "", *, reply_to: str = "", file: str = ""
    ) -> str:
        """Send any content, such as `payloads.order()`; the message's id. `shown` is what the phone shows of it."""
        message_id, now = self._new_id(person), self.clock()
        if reply_to:
            content = {**content, "context": {"from": self.account.number, "id": reply_to}}
        self._heard[person.key], self._writers[message_id] = now, person
        bubble = Bubble(id=message_id, by="person", type=content["type"], text=shown, at=now, ticks="waiting")
        self.journal.show(person.key, replace(bubble, reply_to=reply_to, file=file))
        self.network.send(payloads.message(person, self.identities, message_id, now, content))
        return message_id

    async def write(self, person: Person, text: str, *, reply_to: str = "") -> str:
        """Send a text; the message's id. It is on its way then, and not there yet (see `settled`)."""
        return await self.post(person, payloads.text(text), text, reply_to=reply_to)

    async def choose(self, person: Person, reply: Sent | str, choice_id: str) -> str:
        """Tap a button or a row of this message of the bot, or of the one with this id. Raises KeyError when it offers
        no such choice."""
        sent = reply if isinstance(reply, Sent) else self._sent(reply)
        choice = next((choice for choice in sent.choices if choice.id == choice_id), None) or _missing(choice_id)
        if sent.message.button:
            content = payloads.list_reply(choice.id, choice.title, choice.description)
        else:
            content = payloads.button_reply(choice.id, choice.title)
        self.journal.mark(sent.id, chosen=choice.id)
        return await self.post(person, content, choice.title, reply_to=sent.id)

    async def attach(self, person: Person, kind: Kind, caption: str = "") -> str:
        """Send a sample file."""
        sample = SAMPLES[kind]
        media = sample.object(f"{self.url}/media/{sample.id}", caption, voice=kind == "voice")
        return await self.post(person, {"type": sample.type, sample.type: media}, caption, file=sample.filename or kind)

    async def react(self, person: Person, message_id: str, emoji: str) -> str:
        """React to a message; an empty emoji takes the reaction back."""
        if found := self.journal.bubble(message_id):
            reactions = {**found[1].reactions, person.key: emoji}
            self.journal.mark(message_id, reactions={who: given for who, given in reactions.items() if given})
        return await self._silently(person, payloads.reaction(message_id, emoji))

    async def edit(self, person: Person, message_id: str, text: str) -> str:
        """Change a text that was sent."""
        self.journal.mark(message_id, text=text, note="edited")
        return await self._silently(person, payloads.edit(message_id, text))

    async def revoke(self, person: Person, message_id: str) -> str:
        """Delete a message for everyone."""
        self.journal.mark(message_id, text="", file="", note="deleted")
        return await self._silently(person, payloads.revoke(message_id))

    async def _silently(self, person: Person, content: Content) -> str:
        """Send what is seen at another message, not as one."""
        message_id, now = self._new_id(person), self.clock()
        self._heard[person.key], self._writers[message_id] = now, person
        self.network.send(payloads.message(person, self.identities, message_id, now, content))
        return message_id

    async def change_number(self, person: Person, number: str = "") -> None:
        """Get another number, and by that another user id."""
        self._become(person, number or self._new_number(), "has a new number", payloads.number_changed)

    async def change_user_id(self, person: Person) -> None:
        """Get another user id, and no other number."""

        def told(old: Person, new: Person, _style: Identities, message_id: str, at: datetime) -> Update:
            return payloads.user_id_changed(old, new, message_id, at)

        self._become(person, person.wa_id, "has a new user id", told)

    def _become(self, person: Person, number: str, what: str, update: Callable[..., Update]) -> None:
        old, now = replace(person), self.clock()
        person.wa_id, person.user_id = number, payloads.new_user_id()
        message_id = self._new_id(old)
        self.journal.show(
            person.key, Bubble(id=message_id, by="phone", type="system", text=f"{person.name} {what}.", at=now)
        )
        self.network.send(update(old, person, self.identities, message_id, now))
        self.feed.changed("state")

    def _new_number(self) -> str:
        taken = {self.account.number, *(person.wa_id for person in self.persons)}
        while (number := f"1555{randbelow(10**7):07d}") in taken:  # nobody has the area code 555
            pass
        return number

    # --- What happens to messages on their way ------------------------------------------------------------------------

    def hold(self) -> None:
        """Hold back what goes to the webhook from now on, repetitions included."""
        self.network.hold()

    async def release(
        self, order: Order = "kept", *, batch: bool | int = False, duplicates: int | None = None, parallel: int = 1
    ) -> int:
        """Let it go on; into how many requests it has been put. See `Network.release`."""
        return self.network.release(order=order, batch=batch, duplicates=duplicates, parallel=parallel)

    def fail_sends(
        self, error: GraphError | int, times: int = 1, *, retry_after: int | None = None, accepted: bool = False
    ) -> None:
        """Refuse the next sends with this error, or with that of this code.

        accepted  the message is sent all the same: only the answer says something else, as when it gets lost
        """
        refusal = error if isinstance(error, GraphError) else GraphError(error, retry_after=retry_after)
        self.failing += [(refusal, accepted)] * times
        self.feed.changed("state")

    def stop_failing(self) -> None:
        """Accept all sends again."""
        self.failing.clear()
        self.feed.changed("state")

    # --- Waiting ------------------------------------------------------------------------------------------------------

    async def until(self, holds: Callable[[], bool], what: str = "it happened", *, within: float = SECONDS) -> None:
        """Wait until this holds, looking after each thing that happens here. Raises TimeoutError."""
        if not await self.feed.until(holds, within):
            raise TimeoutError(f"{within:g} s have passed before {what}; {self._progress()}")

    async def replied(self, person: Person, count: int = 1, *, within: float = SECONDS) -> list[Sent]:
        """Wait until the bot has sent this person so many messages since the beginning; all that it has sent them.
        Raises TimeoutError."""
        replies = self._replies.setdefault(person, [])
        await self.until(lambda: len(replies) >= count, f"{person.key} had {count} replies", within=within)
        return self.to(person)

    async def settled(self, *, within: float = SECONDS) -> None:
        """Wait until the webhook has answered everything with 200, statuses included. Raises TimeoutError."""
        await self.until(lambda: self.network.is_quiet, "all was delivered", within=within)

    def to(self, person: Person) -> list[Sent]:
        """What the bot has sent this person."""
        return list(self._replies.get(person, ()))

    def _progress(self) -> str:
        network = self.network
        return (
            f"{len(self.sent)} sends were accepted, {len(network.held)} updates are held back, {network.outstanding} "
            f"requests are under way. The webhook: {network.webhook.text}"
        )

    def _new_id(self, person: Person) -> str:
        """Meta's ids have a name of the person in them: not the number, where it is not told."""
        return payloads.new_message_id(person.user_id if self.identities == "username" else person.wa_id)

    def _sent(self, message_id: str) -> Sent:
        return next((sent for sent in self.sent if sent.id == message_id), None) or _missing(message_id)

    def _on_its_way(self, delivery: Delivery | None) -> None:
        if delivery is not None:
            self.journal.record(delivery)
            for update in delivery.updates if delivery.done else ():
                found = self.journal.bubble(update.item["id"]) if update.kind == "messages" else None
                if found and found[1].ticks == "waiting":
                    self.journal.mark(found[1].id, ticks="received")
        self.feed.changed("state")


def _missing(key: str) -> NoReturn:
    raise KeyError(key)
