"""What callers show: keys and tokens of a server's database, genuine ones and others; and an application that is asked
without sockets, as whoever it is, from wherever."""

from __future__ import annotations

import hmac
from base64 import b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, TypeVar
from urllib.parse import urlencode

import httpx
from msgspec import json
from msgspec.structs import asdict

from chatstate import create_app, create_store
from chatstate.bot import Turn
from chatstate.channels import Contact, ExternalId
from chatstate.channels.whatsapp.account import WhatsAppAccount
from chatstate.hashes import mail_key
from chatstate.http.app import ChatState
from chatstate.http.gate import Rates
from chatstate.http.messages import Headers, Request
from chatstate.keys import Keys
from chatstate.model import SCOPES, Scope
from chatstate.people import Answered, People
from chatstate.records import Records
from chatstate.stores import Store
from chatstate.tokens import ALGORITHM, AUDIENCE, TYPE, Claims, SigningKey, Tokens
from tests.http.conftest import Answer, SettableClock

UNLIMITED = Rates(0, 0, 0, 0)
CLIENT = "127.0.0.1"
HOUR = timedelta(hours=1)

Value = TypeVar("Value")


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}


async def beside(url: str, work: Callable[[Store], Awaitable[Value]]) -> Value:
    """What this work gives, on a store of its own on the database, as another process has it."""
    store = create_store(url, owner=False)
    await store.open()
    try:
        await store.migrate()
        return await work(store)
    finally:
        await store.close()


async def make_key(
    url: str, now: datetime, scopes: Collection[Scope] = SCOPES, id_prefix: str = "", expires_at: datetime | None = None
) -> str:
    """The text of a new key."""

    async def made(store: Store) -> str:
        return (await Keys(store).create("test", now, scopes, id_prefix, expires_at))[1]

    return await beside(url, made)


def key_id_of(text: str) -> str:
    return text.split("_")[1]


# --- Tokens -----------------------------------------------------------------------------------------------------------


def claims_of(session: str, now: datetime, minted_by: str, **other: Any) -> dict[str, Any]:
    """The members of a token that holds for an hour; others take their place, None leaves one out."""
    seconds = now.timestamp()
    claims = Claims(session, ("read", "write", "delete", "export"), seconds, int(seconds) + 3600, seconds, minted_by)
    members = {**asdict(claims), "aud": AUDIENCE, **other}
    return {name: value for name, value in members.items() if value is not None}


@dataclass
class Signer:
    """Signs what it is told to, as whoever has the signing key could."""

    kid: str
    secret: bytes

    def sign(self, claims: Mapping[str, Any], algorithm: str = ALGORITHM, **header: Any) -> str:
        """A token with these claims. Members of the header that are None are left out."""
        fields = {"alg": algorithm, "kid": self.kid, "typ": TYPE, **header}
        text = f"{segment({name: value for name, value in fields.items() if value is not None})}.{segment(claims)}"
        return f"{text}.{segment(hmac.digest(self.secret, text.encode(), _DIGESTS[algorithm]))}"


_DIGESTS = {"HS256": "sha256", "HS512": "sha512"}


async def signer_of(url: str, now: datetime) -> Signer:
    """The signing key of a database; it is made if there is none."""

    async def found(store: Store) -> Signer:
        keys = Records(store, "signing_keys", SigningKey)
        if not await keys.all(now):
            await Tokens(store).rotate(now)
        kid, key = max((await keys.all(now)).items(), key=lambda item: item[1].created_at)
        return Signer(kid, b64decode(key.secret))

    return await beside(url, found)


def segment(value: Any) -> str:
    """A part of a JWT."""
    content = value if isinstance(value, bytes) else json.encode(value)
    return urlsafe_b64encode(content).rstrip(b"=").decode()


# --- Channels ---------------------------------------------------------------------------------------------------------

ACCOUNT = WhatsAppAccount(
    app_secret="the secret of an app", verify_token="to verify", phone_number_id="106540352242922", number="15550783881"
)
"""A number on WhatsApp; without a token for sending, so what is to leave waits."""


async def echo(turn: Turn) -> None:
    """The smallest bot that answers."""
    await turn.reply(turn.message.text)


def signed(body: bytes) -> dict[str, str]:
    """What Meta shows with this body."""
    return {"X-Hub-Signature-256": f"sha256={hmac.new(ACCOUNT.app_secret.encode(), body, sha256).hexdigest()}"}


def verifying(challenge: str = "1158201444") -> str:
    """The query with which Meta asks whether this is the webhook."""
    return urlencode({"hub.mode": "subscribe", "hub.challenge": challenge, "hub.verify_token": ACCOUNT.verify_token})


def delivered(text: str, number: str = "16505551234") -> bytes:
    """The body of a delivery: somebody with this number has written this."""
    message_id = f"wamid.{sha256(f'{number} {text}'.encode()).hexdigest()}"  # the same when it comes again
    message = {"from": number, "id": message_id, "timestamp": "1759399200", "type": "text"}
    value = {
        "messaging_product": "whatsapp",
        "metadata": {"display_phone_number": ACCOUNT.number, "phone_number_id": ACCOUNT.phone_number_id},
        "contacts": [{"profile": {"name": "Ada"}, "wa_id": number}],
        "messages": [{**message, "text": {"body": text}}],
    }
    entry = {"id": "102290129340398", "changes": [{"field": "messages", "value": value}]}
    return json.encode({"object": "whatsapp_business_account", "entry": [entry]})


async def link_somebody(store: Store, user_session_id: str, now: datetime, number: str = "16505551234") -> str:
    """Somebody with this number, who goes on with the session on WhatsApp from now on; their id."""
    people = People(store, await mail_key(store, now))
    person_id, _ = await people.find("whatsapp", Contact((ExternalId("wa_id", number),)), now)
    await people.link(person_id, user_session_id, "BCDF", "Firefox on Linux", now, Answered("wamid.1", "Linked"))
    return person_id


# --- Without sockets --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def running(
    store: Store | str, clock: SettableClock, *, owner: bool = True, **settings: Any
) -> AsyncIterator[ChatState]:
    """chatstate itself, in this event loop. A further one on a SQLite file is not its `owner`."""
    store = create_store(store, owner=owner) if isinstance(store, str) else store
    app = create_app(store, clock=clock, **{"rates": UNLIMITED, **settings})
    async with app.lifespan():
        yield app


async def ask(
    app: ChatState,
    method: str,
    target: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    *,
    client: str = CLIENT,
    scheme: str = "http",
) -> Answer:
    """What the application answers to a request from this address."""
    fields = {"Host": "localhost", **({} if body is None else {"Content-Type": "application/json"}), **(headers or {})}
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in fields.items()]
    content = b"" if body is None else body if isinstance(body, bytes) else json.encode(body)
    path, _, query = target.partition("?")
    request = Request(method, path, Headers(raw), content, query=query, client=client, scheme=scheme)
    response = await app.respond(request)
    lines = [line.split(": ", 1) for line in response.head().splitlines()]
    if response.stream and response.media_type == "text/event-stream":  # of that, what comes at once
        async with aclosing(response.stream):
            streamed = await anext(response.stream)
    else:
        streamed = b"".join([piece async for piece in response.stream]) if response.stream else b""
    return Answer(response.status, httpx.Headers(lines), streamed or response.body)


class Asked:
    """Counts what a store is asked from here on and by what is begun here, from before an application has it: not what
    the application does by itself every few seconds."""

    def __init__(self, store: Store) -> None:
        self.verbs: list[str] = []
        self._here: ContextVar[bool] = ContextVar("here", default=False)
        for verb in ("load", "list", "commit"):
            setattr(store, verb, self._counted(verb, getattr(store, verb)))

    def _counted(self, verb: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        def asked(*given: Any, **more: Any) -> Awaitable[Any]:
            if self._here.get():
                self.verbs.append(f"{verb} {type(given[0]).__name__}" if verb == "list" else verb)
            return method(*given, **more)

        return asked

    def taken(self) -> list[str]:
        """What was asked since the last time; the first time nothing."""
        self._here.set(True)
        verbs, self.verbs = self.verbs, []
        return verbs
