"""The application: a store behind the routes, as an ASGI app that also mounts inside another application."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta

from msgspec.structs import replace

from chatstate.access import NOBODY, Access
from chatstate.bot import Bot
from chatstate.channels import Channel
from chatstate.channels.whatsapp.account import WhatsAppAccount
from chatstate.copy_mark import check_is_whole
from chatstate.errors import ChatStateError, InvalidSetting, KeysRequired, StoreUnavailable
from chatstate.hashes import audit_key, digest_key
from chatstate.http.api import Api, Options
from chatstate.http.application import Application
from chatstate.http.audit import AuditLog
from chatstate.http.browsers import Doors, allow_origin, preflight
from chatstate.http.gate import Gate, Rates
from chatstate.http.links import claims_of
from chatstate.http.messages import ClientGone, Request, Response
from chatstate.http.problems import problem, problem_response
from chatstate.http.proxies import client_scheme
from chatstate.http.routes import ENDPOINTS, Routes
from chatstate.http.whatsapp import CHANNEL, WEBHOOK
from chatstate.http.wire import Limits
from chatstate.inbox import Inbox
from chatstate.linking import Linking
from chatstate.links import LONGEST_KEPT, Link, Links
from chatstate.live import Live
from chatstate.model import LONGEST_TTL, retention_of, utc_now
from chatstate.outbox import Outbox
from chatstate.privacy import Privacy
from chatstate.sessions import Sessions
from chatstate.stores.base import Store
from chatstate.stores.encrypted import EncryptedStore
from chatstate.sweeper import Sweeper
from chatstate.turns import Turns, TurnSettings
from chatstate.visits import Visits
from chatstate.worker import Worker

_METHODS = ", ".join(sorted({endpoint.method for endpoint in ENDPOINTS}))

_log = logging.getLogger(__name__)


class ChatState(Application):
    """The application. Its `lifespan` opens the store, and at the end answers what was accepted and closes it."""

    def __init__(self, store: Store, clock: Callable[[], datetime], options: Options) -> None:
        rates = options.rates
        if options.allow_anonymous and not (options.doors.origins and rates.per_address and rates.per_session):
            raise InvalidSetting(ANONYMOUS_WANTS)
        if options.whatsapp.app_secret and not (options.whatsapp.phone_number_id and options.whatsapp.verify_token):
            raise InvalidSetting(WHATSAPP_WANTS)
        self.store = store
        self.started = False
        self.access = Access(store, clock, options.allow_anonymous)
        self._clock = clock
        self._options = options
        self._gate = Gate(self.access, rates, options.trusted_proxies)
        self._sessions = Sessions(store, clock, options.retention)
        self._visits = Visits(store, clock)
        self._sweeper = Sweeper(store, clock, options.retention)
        self._audit: AuditLog | None = None
        links = Links(store, min(LONGEST_KEPT, options.retention.visits or LONGEST_KEPT))
        self._inbox = Inbox(store, clock, options.retention)
        privacy = Privacy(self._sessions, self._visits, self.access.tokens, links, self._inbox)
        self._live = Live(store, self._sessions, clock, options.retention)
        self._channels, self._workers = self._answering(links)
        self._api = Api(
            self._sessions, self._visits, privacy, links, self._inbox, self._live, store, options, self._gate, clock
        )
        self._routes = Routes(self._api)

    def _answering(self, links: Links) -> tuple[dict[str, Channel], list[Worker]]:
        """The channels that this server can send by, and the workers that answer and send."""
        options, account = self._options, self._options.whatsapp
        channels: dict[str, Channel] = {}
        if account.access_token and account.phone_number_id:
            channels[CHANNEL] = _whatsapp(account, self._clock)
        scopes = {CHANNEL: account.phone_number_id}
        lease = options.turns.lease
        outbox = Outbox(self.store, self._inbox, channels, scopes, self._clock, lease)
        workers: list[Worker] = [outbox] if channels else []
        if options.bot:
            linking = Linking(self._inbox.people, links, self._sessions, self._clock, self._holds)
            turns = Turns(
                options.bot,
                self.store,
                self._sessions,
                self._inbox,
                linking,
                self._live,
                channels,
                self._clock,
                replace(options.turns, state_bytes=options.limits.state_bytes),
                outbox.wake,
            )
            self._inbox.arrived = turns.wake
            workers.append(turns)
        return channels, workers

    async def _holds(self, user_session_id: str, link: Link) -> bool:
        """Whether what the link was made with would let somebody in now."""
        return await self.access.holds(claims_of(self._api, user_session_id, link))

    @asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncIterator[None]:
        """For applications that mount this one: `FastAPI(lifespan=chatstate.lifespan)`. Mounted, it gets none."""
        try:
            await self._start()
            always = (self._sweeper.run(), self.access.run(), self._live.run())
            tasks = [asyncio.create_task(work) for work in always]
            working = [asyncio.create_task(worker.run()) for worker in self._workers]
            try:
                yield
            finally:
                for task in (*tasks, *working):
                    task.cancel()
                await asyncio.gather(*working, return_exceptions=True)
                with suppress(ChatStateError):  # nobody waits for it
                    await self.access.record_uses()
        finally:
            self._live.end()
            await asyncio.gather(self._sessions.drain(), self._visits.drain())
            for channel in self._channels.values():
                await channel.close()
            await self.store.close()

    async def _start(self) -> None:
        await self.store.open()
        await self.store.migrate()
        await check_is_whole(self.store, self._clock())
        if isinstance(self.store, EncryptedStore):
            await self.store.check_keys(self._clock())
            if self.store.ring.newest:
                self._api.digest_key = await digest_key(self.store, self._clock())
        if self._options.first_key and (key := await self.access.keys.create_first(self._clock())):
            self._options.first_key(key)
        await self.access.refresh()
        if self._workers:
            await self._inbox.open()
        for channel in self._channels.values():
            await channel.open()
        self._live.start()
        if self._options.require_keys and self.access.mode == "open":
            raise KeysRequired
        if self._options.audit:
            self._audit = AuditLog(self._options.audit, await audit_key(self.store, self._clock()), self._clock)
        self.started = True

    def end_streams(self) -> None:
        """Let those end who listen to changes: the server is about to end, and waits for all answers."""
        self._live.end()

    async def respond(self, request: Request) -> Response:
        """The answer to any request. Raises only `ClientGone`."""
        request.scheme = client_scheme(request.client, request.headers, self._gate.trusted, request.scheme)
        if request.path == WEBHOOK:
            # It comes from outside, by a proxy or a tunnel, on a server without keys as well: its signature lets it in.
            response = await self._handled(request)
        else:
            error = self._options.doors.refusal(request, self.access.mode)
            if error:
                return problem(error)
            response = preflight(request, _METHODS) or await self._handled(request)
            allow_origin(response, request.headers)
        if self._audit and request.action and (request.caller is not NOBODY or response.problem):
            self._audit.record(request, response, self._gate.address(request))
        return response

    async def _handled(self, request: Request) -> Response:
        try:
            return await self._routes.respond(request)
        except ChatStateError as error:
            if isinstance(error, StoreUnavailable) and not self.started:
                return problem(StoreUnavailable(_NOT_STARTED))
            return problem(error)
        except ClientGone:
            raise
        except Exception:
            _log.exception("a request failed in an unexpected way")
            return problem_response("internal_error", "This is a defect of chatstate; its log says more.")


def _whatsapp(account: WhatsAppAccount, clock: Callable[[], datetime]) -> Channel:
    from chatstate.channels.whatsapp.cloud import DEFAULT_GRAPH_URL, WhatsAppCloud  # noqa: PLC0415 (few servers need it)

    url = account.graph_url or DEFAULT_GRAPH_URL
    return WhatsAppCloud(account.access_token, account.phone_number_id, url, clock=clock)


def create_app(
    store: Store,
    *,
    max_state_bytes: int = 1 << 20,
    require_json: bool = False,
    require_preconditions: bool = False,
    history: int = 0,
    idle_expiry_seconds: int | None = None,
    retention_days: int | None = None,
    keep_visits: bool = False,
    demo: bool = False,
    link_page: str | None = None,
    allow_anonymous: bool = False,
    allowed_origins: Collection[str] = (),
    allowed_hosts: Collection[str] = (),
    trusted_proxies: Collection[str] = (),
    rates: Rates = Rates(),  # noqa: B008 (frozen)
    token_ttl_seconds: int = 3600,
    token_renewable_days: int = 30,
    audit: Callable[[str], None] | None = None,
    require_keys: bool = False,
    first_key: Callable[[str], None] | None = None,
    bot: Bot | None = None,
    turn_seconds: float = 600,
    turns_at_once: int = 100,
    lease_seconds: float = 30,
    whatsapp: WhatsAppAccount = WhatsAppAccount(),  # noqa: B008 (frozen)
    clock: Callable[[], datetime] = utc_now,
) -> ChatState:
    """An ASGI application that serves the sessions of this store.

    Whatever has the name of a setting means the same, and has the same default: docs/reference/settings.md. Beside it:

    rates                    how many requests are answered once there are keys
    require_keys, first_key  refuse to start without an API key; takes the one that is made if there is none yet
    bot                      answers what people write; see `chatstate.bot`
    whatsapp                 the business number whose messages are taken and answered
    audit, clock             takes each line of the audit log; gives the time, aware and in UTC
    """
    options = Options(
        limits=Limits(state_bytes=max_state_bytes, require_json=require_json),
        retention=retention_of(history, idle_expiry_seconds, retention_days),
        doors=Doors(frozenset(map(str.lower, allowed_origins)), frozenset(map(str.lower, allowed_hosts))),
        rates=rates,
        trusted_proxies=tuple(trusted_proxies),
        allow_anonymous=allow_anonymous,
        require_preconditions=require_preconditions,
        token_ttl=min(timedelta(seconds=token_ttl_seconds), LONGEST_TTL),
        token_renewable=timedelta(days=token_renewable_days),
        keep_visits=keep_visits,
        demo=demo,
        link_page=link_page,
        bot=bot,
        turns=TurnSettings(at_once=turns_at_once, seconds=turn_seconds, lease=timedelta(seconds=lease_seconds)),
        whatsapp=whatsapp,
        audit=audit,
        require_keys=require_keys,
        first_key=first_key,
    )
    return ChatState(store, clock, options)


ANONYMOUS_WANTS = (
    "--allow-anonymous lets everybody in who reaches this server, so it wants the list of pages that may call "
    "(--allowed-origins https://chat.example.org), and limits that are not 0 (--rate-per-address, --rate-per-session)."
)

WHATSAPP_WANTS = (
    "WhatsApp wants the verify token and the id of the phone number, too (CHATSTATE_WHATSAPP_VERIFY_TOKEN, "
    "CHATSTATE_WHATSAPP_PHONE_NUMBER_ID): what is for another number is left alone."
)

_NOT_STARTED = (
    "chatstate has not started, because nothing has run its lifespan. An application that mounts it must: "
    "`FastAPI(lifespan=chatstate.lifespan)`; and uvicorn must not run with `--lifespan off`."
)
