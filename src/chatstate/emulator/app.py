"""The emulator: persons who write from their phones, the Cloud API between them and the bot, and a page to play it all.

As a library, for tests:

    emulator = Emulator("http://127.0.0.1:3000/channels/whatsapp/webhook")
    async with emulator.serving() as url:  # CHATSTATE_WHATSAPP_GRAPH_URL of the server that is tested
        zoe = emulator.persons[0]
        await emulator.write(zoe, "Hello")
        [question] = await emulator.replied(zoe)
        await emulator.choose(zoe, question, question.choices[0].id)
        await emulator.replied(zoe, 2)
        await emulator.settled()

Everything is to be called in the event loop in which it is served.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import datetime

from chatstate.emulator import payloads
from chatstate.emulator.delivery import Pause, longer_each_time
from chatstate.emulator.graph import GraphError, Limits, Meter, Outgoing, ReadMark, Recipient
from chatstate.emulator.journal import Bubble
from chatstate.emulator.payloads import WINDOW, Account, Identities, Person, State
from chatstate.emulator.phones import Phones, Sent
from chatstate.emulator.routes import respond
from chatstate.emulator.serving import serving
from chatstate.http.application import Application
from chatstate.http.messages import Request, Response
from chatstate.model import utc_now

WEBHOOK = "http://localhost:3000/channels/whatsapp/webhook"
PORT = 4000


class Emulator(Phones, Application):
    """Emulates the WhatsApp Cloud API for one number, and is the server of it; see `Phones` for what can be done.

    read_marks  the ids of the messages that the bot has marked as read, in the order of the marks
    limits      which limits hold for sends
    reads       whether persons read what they get at once
    blocked     the keys of those who have blocked the number: they get nothing, and the bot is not told
    typing      the keys of those who see that the bot is typing
    """

    def __init__(
        self,
        webhook: str = WEBHOOK,
        account: Account = Account(),  # noqa: B008 (frozen)
        *,
        identities: Identities = "both",
        url: str = f"http://localhost:{PORT}",
        clock: Callable[[], datetime] = utc_now,
        pause: Pause = longer_each_time,
        seed: int = 0,
        watching: bool = False,
    ) -> None:
        """
        webhook   where updates are delivered
        pause     what is waited for before a delivery is tried again
        seed      of the order in which shuffled deliveries come
        watching  whether the webhook is asked for its consent, as Meta does once, until it gives it
        """
        super().__init__(webhook, account, identities, url, clock, pause, seed)
        self.read_marks: list[str] = []
        self.limits = Limits()
        self.reads = True
        self.blocked: set[str] = set()
        self.typing: set[str] = set()
        self._watching = watching
        self._meter = Meter()

    # --- The Graph API ------------------------------------------------------------------------------------------------

    def accept(self, message: Outgoing) -> Sent:
        """Take a message of the bot. Raises `GraphError`."""
        failure, accepted = self.failing.pop(0) if self.failing else (None, True)
        if failure and not accepted:
            self.feed.changed("state")
            raise failure
        person, now = self._addressed(message.recipient), self.clock()
        late = person is not None and self._is_late(person, now)
        if late and self.limits.window == "refuse":
            raise GraphError(131047)
        self._meter.count(message.recipient.value, now, self.limits)
        sent = Sent(id=payloads.new_message_id(message.recipient.value), person=person, message=message, at=now)
        self.sent.append(sent)
        if person:
            self._replies.setdefault(person, []).append(sent)
        if not late:
            self._show(sent)
        self._report_all(sent, late)
        if failure:
            raise failure
        return sent

    def mark_read(self, mark: ReadMark) -> None:
        """The bot has read a message and those before it. Raises `GraphError`."""
        person = self._writers.get(mark.message_id)
        if person is None:
            raise GraphError(131009, "message_id is not that of a message which this number has received.")
        self.read_marks.append(mark.message_id)
        self.journal.mark_read(person.key, mark.message_id)
        if mark.typing:
            self.typing.add(person.key)
            self.feed.changed(("typing", person.key))

    def _addressed(self, recipient: Recipient) -> Person | None:
        if recipient.by == "number":
            return next((person for person in self.persons if person.wa_id == recipient.value), None)
        return next((person for person in self.persons if person.user_id == recipient.value), None)

    def _is_late(self, person: Person, now: datetime) -> bool:
        heard = self._heard.get(person.key)
        return self.limits.window != "off" and (heard is None or now - heard >= WINDOW)

    def _show(self, sent: Sent) -> None:
        if sent.person is None or sent.person.key in self.blocked:
            return
        message = sent.message
        bubble = Bubble(
            id=sent.id,
            by="bot",
            type=message.type,
            text=message.text,
            at=sent.at,
            header=message.header,
            footer=message.footer,
            choices=message.choices,
            button=message.button,
            file=message.filename or message.link,
            reply_to=message.reply_to,
        )
        self.typing.discard(sent.person.key)
        self.journal.show(sent.person.key, bubble)
        self.feed.changed(("typing", sent.person.key))

    def _report_all(self, sent: Sent, late: bool) -> None:
        if sent.message.misdirected:
            return  # Meta says nothing at all
        if sent.person is None or late:
            self._report(sent, "failed", GraphError(131047 if late else 131026))
            return
        self._report(sent, "sent")
        if sent.person.key in self.blocked:
            return
        self._report(sent, "delivered")
        if self.reads:
            self._report(sent, "read")

    def _report(self, sent: Sent, state: State, error: GraphError | None = None) -> None:
        recipient = sent.message.recipient
        # A failure can be about somebody who does not exist: all that is known of them is how they were addressed.
        person = sent.person or Person(key="", name="", wa_id=recipient.value, user_id=recipient.value, username="")
        sent.state = state
        self.journal.mark(sent.id, ticks=state, note=str(error) if error else "")
        by_number = recipient.by == "number"
        told = error.object() if error else None
        self.network.send(payloads.status(person, self.identities, sent.id, state, sent.at, told, by_number=by_number))

    # --- Serving ------------------------------------------------------------------------------------------------------

    async def respond(self, request: Request) -> Response:
        """See `Application.respond`."""
        return await respond(self, request)

    @asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncIterator[None]:
        """Deliveries that are not done when it ends are given up."""
        watch = asyncio.create_task(self.network.watch()) if self._watching else None
        self.started = True
        try:
            yield
        finally:
            if watch:
                watch.cancel()
                with suppress(asyncio.CancelledError):
                    await watch
            self.feed.end()
            await self.network.stop()

    def end_streams(self) -> None:
        """See `Application.end_streams`."""
        self.feed.end()

    def serving(self, port: int = 0) -> AbstractAsyncContextManager[str]:
        """`async with emulator.serving() as url:` serves it in this event loop, on 127.0.0.1; port 0 is a free one."""
        return serving(self, port)
