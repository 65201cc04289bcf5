"""Turns: a worker takes messages from the inbox, runs the bot for each, and commits what comes of it.

The messages of one conversation are taken in order, one at a time; those of one session are, too, by a lease on it,
which is renewed as long as the bot works: a model may take minutes. What counts is the commit. It expects the version
that the bot has seen and a message that is not done yet, and writes the state, the replies and that it is done at once
(`Sessions.take_turn`): so a message changes the state once, whatever happens to servers, leases and clocks.

A turn that fails is run again later; after some tries its message is set aside, and the next one is taken.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import cast
from weakref import WeakValueDictionary

from msgspec import DecodeError, Struct, json
from msgspec.structs import replace

from chatstate.bot import Bot, Message, Reply, StateNotReadable, StateNotWritable, Turn, read_state, write_state
from chatstate.channels import Channel
from chatstate.errors import OutcomeUnknown, SessionNotFound, StateUnreadable, StoreError, WriteRefused
from chatstate.inbox import Envelope, Inbox, Parcel
from chatstate.leases import Lease
from chatstate.linking import Linking
from chatstate.live import Live
from chatstate.mailbox import DueQuery, InboxEntry, InboxQuery, Postpone, Send, Settle, Settled
from chatstate.model import Conflict, Session
from chatstate.people import Person
from chatstate.sessions import Sessions
from chatstate.stores.base import Store, commit_one
from chatstate.worker import ELSEWHERE_SECONDS, Worker

MOST_TRIES = 5
"""After so many a message is set aside."""

_BACKOFF_SECONDS = (2, 8, 32, 128)
"""How long after each failed try the next one follows."""

_MOST_RACES = 20
"""How often a turn is run anew because others have changed the session, before that counts as a failed try."""

_TYPING_SECONDS = 20.0
"""How often a channel is told that an answer is on its way; WhatsApp forgets it after 25 s."""

_CANCEL_SECONDS = 5.0
"""How long a bot may take to end that was cancelled."""

_BEHIND_SECONDS = 30.0
"""How long a conversation is left alone behind another one of its session, unless that ends sooner."""

_UNDELETED_SECONDS = 2.0
"""After what time a message is looked at again whose session has vanished while the bot was at work."""

_log = logging.getLogger(__name__)


class TurnSettings(Struct, frozen=True, kw_only=True):
    """How turns are run.

    at_once       how many at once
    seconds       how long one may take
    lease         for how long a conversation stays with a server that has died
    state_bytes   the largest state
    """

    at_once: int = 100
    seconds: float = 600
    lease: timedelta = timedelta(seconds=30)
    state_bytes: int = 1 << 20


class _LeaseLost(Exception):
    """Another server has the session now."""


class _BotFailed(Exception):
    """The turn cannot be applied; the message says where it went wrong, and nothing of what anybody has written."""


class Turns(Worker):
    """The worker of one server that answers messages.

    committed  is called when replies may be there to be sent
    """

    def __init__(
        self,
        bot: Bot,
        store: Store,
        sessions: Sessions,
        inbox: Inbox,
        linking: Linking,
        live: Live,
        channels: Mapping[str, Channel],
        clock: Callable[[], datetime],
        settings: TurnSettings,
        committed: Callable[[], None],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        super().__init__(store, "turn_leases", settings.lease, clock, settings.at_once, "messages cannot be answered")
        self._bot = bot
        self._sessions = sessions
        self._inbox = inbox
        self._linking = linking
        self._live = live
        self._channels = channels
        self._settings = settings
        self._committed = committed
        self._pause = pause
        self._here: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._behind: dict[str, set[str]] = {}

    async def find(self, most: int) -> Sequence[str]:
        return cast(Sequence[str], await self.store.list(DueQuery(box="inbox", now=self.clock(), limit=most)))

    async def work(self, conversation: str) -> float:
        while entry := await self._head(conversation):
            if rest := await self._take(entry):
                return rest
        return 0.0

    async def _head(self, conversation: str) -> InboxEntry | None:
        """The message that is to be taken next, if it is due."""
        query = InboxQuery(now=self.clock(), conversation=conversation, status="pending", limit=1)
        found = cast(Sequence[InboxEntry], await self.store.list(query))
        return found[0] if found and found[0].due_at <= self.clock() else None

    # --- One message --------------------------------------------------------------------------------------------------

    async def _take(self, entry: InboxEntry) -> float:
        """Do what the message asks for. How long to leave the conversation alone, because somebody else works on its
        session."""
        try:
            envelope = json.decode(entry.document if entry.is_readable else "", type=Envelope)
        except DecodeError:
            what = "is damaged" if entry.is_readable else "cannot be decrypted with the keys that this server has"
            await self._failed(entry, f"the message {what}", tries=MOST_TRIES)
            return 0.0
        message = envelope.message
        if message is None:
            await self._inbox.people.give_up(envelope.channel, envelope.former, self.clock())
            await self._settle(Settle(key=entry.key, now=self.clock(), status="noted"))
            return 0.0
        user_session_id, _ = await self._whose(entry, envelope)
        lock = self._here.setdefault(user_session_id, asyncio.Lock())
        if lock.locked():  # nobody waits in a place that others could have
            self._behind.setdefault(user_session_id, set()).add(entry.conversation)
            return _BEHIND_SECONDS
        async with lock:
            rest = await self._take_alone(entry, envelope, message, user_session_id)
        for conversation in self._behind.pop(user_session_id, ()):
            self.go_on(conversation)
        return rest

    async def _take_alone(self, entry: InboxEntry, envelope: Envelope, message: Message, user_session_id: str) -> float:
        async with self._leased(user_session_id) as lease:
            if lease is None:
                return ELSEWHERE_SECONDS
            # Before we had the lease, another server may have been at work, or a link may have ended.
            if person := await self._still(entry, envelope, user_session_id):
                await self._run(entry, envelope, message, user_session_id, person[0], lease)
        return 0.0

    async def _still(
        self, entry: InboxEntry, envelope: Envelope, user_session_id: str
    ) -> tuple[tuple[str, Person] | None] | None:
        """Who has sent the message, if it is still the next one, and for this session; None if it is not."""
        head, (session_now, person) = await self._head(entry.conversation), await self._whose(entry, envelope)
        return (person,) if head and head.key == entry.key and session_now == user_session_id else None

    async def _whose(self, entry: InboxEntry, envelope: Envelope) -> tuple[str, tuple[str, Person] | None]:
        """The session that the message is for, and who has sent it, on a channel."""
        if envelope.sender is None:
            return envelope.user_session_id, None
        person_id, person = await self._inbox.people.find(
            envelope.channel, envelope.sender, self.clock(), entry.sent_at
        )
        return person.user_session_id, (person_id, person)

    @asynccontextmanager
    async def _leased(self, user_session_id: str) -> AsyncIterator[_Held | None]:
        lease = await self.leases.take(user_session_id, self.clock())
        held = _Held(lease) if lease else None
        try:
            yield held
        finally:
            if held:
                with suppress(StoreError):  # it expires
                    await self.leases.release(held.lease, self.clock())

    async def _run(
        self,
        entry: InboxEntry,
        envelope: Envelope,
        message: Message,
        user_session_id: str,
        person: tuple[str, Person] | None,
        held: _Held,
    ) -> None:
        try:
            if person and (text := await self._linking.answer(*person, message)):
                await self._answer_link(entry, envelope, person[0], text)
            else:
                await self._turn(entry, envelope, message, user_session_id, person and person[0], held)
        except _LeaseLost:
            _log.warning("another server has taken over a conversation whose lease had run out")
        except (_BotFailed, StateUnreadable) as error:
            await self._try_failed(entry, str(error))
        except StoreError:  # that will be over, and is no fault of the message
            raise
        except Exception as error:  # if it went wrong again and again, nothing behind it would ever be taken
            await self._try_failed(entry, _where(error))
        finally:
            self._live.write(user_session_id, "", "")

    async def _try_failed(self, entry: InboxEntry, error: str) -> None:
        _log.error("a turn has failed (try %d of %d): %s", entry.tries + 1, MOST_TRIES, error)
        await self._failed(entry, error.splitlines()[0], entry.tries + 1)

    async def _answer_link(self, entry: InboxEntry, envelope: Envelope, person_id: str, text: str) -> None:
        """Say what comes of a message about links; and where the chat stands that they go on with now."""
        replies = [Reply(f"{entry.key}.1", text)]
        person = await self._inbox.people.get(person_id, self.clock())
        user_session_id = person.user_session_id if person else ""
        linked = person and person.linked_at and person.answered and person.answered.message == entry.key
        if linked and (said := await self._linking.last_said(user_session_id)):
            replies.append(replace(said, id=f"{entry.key}.2"))
        sends = self._sends(envelope.channel, person_id, user_session_id, replies)
        await self._settle(Settle(key=entry.key, now=self.clock(), sends=sends))
        self._committed()

    # --- The bot ------------------------------------------------------------------------------------------------------

    async def _turn(
        self,
        entry: InboxEntry,
        envelope: Envelope,
        message: Message,
        user_session_id: str,
        person_id: str | None,
        held: _Held,
    ) -> None:
        seen = None
        for number in range(_MOST_RACES):
            if number and not await self._still(entry, envelope, user_session_id):
                return
            session = await self._loaded(user_session_id)
            if seen and session is None:
                # It was deleted under our hands, and its messages are about to be; or it has expired. That shows soon.
                await self._postpone(entry, _UNDELETED_SECONDS)
                return
            seen = session
            turn = await self._played(entry, envelope, message, user_session_id, session, held)
            if person_id and not await self._still(entry, envelope, user_session_id):
                return  # their link has ended while the bot was at work
            state, sends = self._left(turn, envelope.channel, person_id, user_session_id)
            settle = Settle(key=entry.key, now=self.clock(), sends=sends)
            if await self._applied(user_session_id, state, session, settle):
                return
        raise _BotFailed("others change this session all the time")

    def _left(
        self, turn: Turn, channel: str, person_id: str | None, user_session_id: str
    ) -> tuple[str, tuple[Send, ...]]:
        """What the bot has left: the text of the state, and what is to be sent."""
        try:
            state = write_state(turn.state, self._settings.state_bytes)
        except StateNotWritable as error:
            raise _BotFailed(str(error)) from None
        return state, self._sends(channel, person_id, user_session_id, turn.replies) if person_id else ()

    async def _postpone(self, entry: InboxEntry, seconds: float) -> None:
        now = self.clock()
        due_at = now + timedelta(seconds=seconds)
        await self._settle(Postpone(key=entry.key, now=now, due_at=due_at, tries=entry.tries, error=entry.error))

    async def _loaded(self, user_session_id: str) -> Session | None:
        try:
            return await self._sessions.load(user_session_id)
        except SessionNotFound:
            return None

    async def _applied(self, user_session_id: str, state: str, session: Session | None, settle: Settle) -> bool:
        """Commit the turn; false when the session is another one now, and the turn has to be run on that."""
        try:
            outcome = await self._sessions.take_turn(user_session_id, state, session.tag if session else None, settle)
        except OutcomeUnknown:  # if it was applied, the next try finds that out
            return False
        except WriteRefused as error:
            raise _BotFailed(error.message) from None
        self._committed()
        return not isinstance(outcome, Conflict)

    async def _played(
        self,
        entry: InboxEntry,
        envelope: Envelope,
        message: Message,
        user_session_id: str,
        session: Session | None,
        held: _Held,
    ) -> Turn:
        """The turn after the bot has run."""
        try:
            state = read_state(session.chat_state) if session else {}
        except StateNotReadable:
            raise _BotFailed("the session's state is not a JSON object, which is what bots work with") from None

        def tell(reply: Reply) -> None:
            self._live.write(user_session_id, reply.id, reply.text)

        channel = self._channels.get(envelope.channel)
        fetch = channel.download if channel else None
        turn = Turn(user_session_id, state, message, entry.tries, tell, self.clock, fetch)
        self._live.write(user_session_id, f"{message.id}.1", "")
        await self._within(self._guarded(turn), envelope, held)
        return turn

    async def _guarded(self, turn: Turn) -> None:
        """The bot; it cannot end the server."""
        try:
            await self._bot(turn)
        except SystemExit:
            raise _BotFailed("the bot has called sys.exit(), which ends no server") from None
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise _BotFailed(_where(error)) from None

    async def _within(self, work: Awaitable[None], envelope: Envelope, held: _Held) -> None:
        """Let the bot work, as long as the lease can be renewed, and not for too long."""
        task = asyncio.ensure_future(work)
        others = [asyncio.create_task(self._keep(held, task)), asyncio.create_task(self._show_typing(envelope))]
        try:
            done, _ = await asyncio.wait([task], timeout=self._settings.seconds)
            if not done:
                raise _BotFailed(f"the bot took longer than {self._settings.seconds:g} s (CHATSTATE_TURN_SECONDS)")
            task.result()
        except asyncio.CancelledError:
            if (own := asyncio.current_task()) and own.cancelling():  # the server ends
                raise
            if held.lost:
                raise _LeaseLost from None
            if task.done():  # the bot has cancelled itself
                raise _BotFailed("the bot was cancelled") from None
            raise
        finally:
            for other in (task, *others):
                # What it ends with is nobody's business any more: asyncio would log it, with what is in it.
                other.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
                other.cancel()
            _, going_on = await asyncio.wait([task, *others], timeout=_CANCEL_SECONDS)
            if going_on:
                _log.error("a bot goes on although it was cancelled; what it does has no effect any more")

    async def _keep(self, held: _Held, task: asyncio.Future[None]) -> None:
        """Renew the lease again and again; if it is lost, there is no use in going on."""
        while not held.lost:
            await self._pause(self._settings.lease.total_seconds() / 3)
            try:
                renewed = await self.leases.renew(held.lease, self.clock())
            except StoreError:
                continue  # as long as it lasts
            # One that has only run out, because nobody had time to renew it, may be had again.
            renewed = renewed or await self._taken_again(held.lease.name)
            if renewed is None:
                held.lost = True
                task.cancel()
            else:
                held.lease = renewed

    async def _taken_again(self, name: str) -> Lease | None:
        try:
            return await self.leases.take(name, self.clock())
        except StoreError:
            return None

    async def _show_typing(self, envelope: Envelope) -> None:
        channel = self._channels.get(envelope.channel)
        while channel:
            await channel.show_typing(envelope.id)
            await self._pause(_TYPING_SECONDS)

    # --- What comes of it ---------------------------------------------------------------------------------------------

    def _sends(self, channel: str, person_id: str, user_session_id: str, replies: Iterable[Reply]) -> tuple[Send, ...]:
        """The replies as messages of the channel."""
        found = self._channels.get(channel)
        parts = [part for reply in replies for part in (found.split(reply) if found else (reply,))]
        return tuple(
            Send(
                key=part.id,
                conversation=f"{channel}:{person_id}",
                user_session_id=user_session_id,
                document=json.encode(Parcel(channel=channel, person=person_id, reply=part)).decode(),
            )
            for part in parts
        )

    async def _failed(self, entry: InboxEntry, error: str, tries: int) -> None:
        """Try it again later, or set it aside."""
        now = self.clock()
        aside = tries >= MOST_TRIES
        seconds = _BACKOFF_SECONDS[min(tries, len(_BACKOFF_SECONDS)) - 1]
        if aside:
            _log.error("a message is set aside after %d tries; see: chatstate inbox", tries)
        await self._settle(
            Postpone(
                key=entry.key, now=now, due_at=now + timedelta(seconds=seconds), tries=tries, error=error, aside=aside
            )
        )

    async def _settle(self, write: Settle | Postpone) -> None:
        outcome = await commit_one(self.store, write)
        assert isinstance(outcome, Settled)


class _Held:
    """A lease that we have, in its newest version."""

    __slots__ = ("lease", "lost")

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.lost = False


def _where(error: BaseException) -> str:
    """The kind of the error, and the way to it, without its message: there may be what somebody has written in it."""
    frames = traceback.extract_tb(error.__traceback__)
    of_bot = [frame for frame in frames if Path(frame.filename) != Path(__file__)]
    lines = [f"  {frame.filename}:{frame.lineno} in {frame.name}: {frame.line}" for frame in of_bot]
    last = of_bot[-1] if of_bot else None
    place = f" at {Path(last.filename).name}:{last.lineno} in {last.name}" if last else ""
    return "\n".join([f"{type(error).__name__}{place}", *lines])
