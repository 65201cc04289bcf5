"""The webhook of WhatsApp: what Meta posts is verified, kept, and only then acknowledged.

There is no way to ask Meta again for what was lost; but whatever is not answered with 200 is delivered again, for seven
days. So a store that cannot keep a message makes the answer 503.
"""

from __future__ import annotations

import logging
from typing import Annotated

from msgspec import Meta, Raw

from chatstate.access import Caller
from chatstate.channels.whatsapp.webhook import challenge, is_signed, looks_signed, parse
from chatstate.errors import BodyTooLarge, WebhookRefused
from chatstate.http.api import STORE_PROBLEMS, Api, Endpoint
from chatstate.http.gate import Credential
from chatstate.http.messages import Request, Response
from chatstate.http.problems import nothing_here
from chatstate.http.shapes import Message
from chatstate.http.wire import answer

CHANNEL = "whatsapp"
WEBHOOK = "/channels/whatsapp/webhook"

MOST_BYTES = 3 << 20
"""The largest delivery, of up to 1000 updates."""

WebhookBody = Annotated[
    Raw,
    Meta(
        title="WebhookBody",
        description="What Meta delivers: messages, and what became of those that were sent. Whatever else is ignored.",
        examples=[{"object": "whatsapp_business_account", "entry": []}],
    ),
]

_CALLER = Caller("channel:whatsapp", frozenset())

_log = logging.getLogger(__name__)


async def verify_webhook(api: Api, request: Request) -> Response:
    """Meta asks whether this webhook is what the operator has told it about: the challenge comes back as it is."""
    account = api.options.whatsapp
    if not account.app_secret:
        return nothing_here()
    text = challenge(request.query, account.verify_token)
    if text is None:
        raise WebhookRefused("The verify token is missing or wrong. It is that of CHATSTATE_WHATSAPP_VERIFY_TOKEN.")
    return Response(200, text.encode(), "text/plain; charset=utf-8")


async def take_delivery(api: Api, request: Request) -> Response:
    """Take what Meta delivers: messages, and what became of those that were sent. It is kept when the answer is 200."""
    account = api.options.whatsapp
    if not account.app_secret:
        return nothing_here()
    signatures = request.headers.all("x-hub-signature-256")
    if not looks_signed(signatures):  # before the body, which may be large
        raise WebhookRefused
    try:
        body = await request.read(MOST_BYTES)
    except BodyTooLarge:
        raise BodyTooLarge(f"A delivery has at most {MOST_BYTES} bytes.") from None
    if not is_signed(account.app_secret, body, signatures):
        raise WebhookRefused
    request.caller = _CALLER
    delivery = parse(body, account.phone_number_id, api.clock())
    await api.inbox.receive(CHANNEL, account.phone_number_id, delivery.arrived)
    await api.inbox.report(CHANNEL, account.phone_number_id, delivery.reports)
    notes = [arrived.note for arrived in delivery.arrived if arrived.note]
    for what in sorted({*notes, *delivery.ignored}):
        level = logging.WARNING if what == "another phone number" else logging.INFO
        _log.log(level, "WhatsApp has delivered something that is nothing for this bot: %s", what)
    return answer(Message("Kept"))


_TAG = "Channels"
_SIGNATURE = Credential("webhook_signature")

ENDPOINTS = (
    Endpoint(
        "GET",
        WEBHOOK,
        _SIGNATURE,
        verify_webhook,
        _TAG,
        None,
        {200: "text/plain"},
        ("webhook_refused", "not_found"),
        ("hubMode", "hubChallenge"),
    ),
    Endpoint(
        "POST",
        WEBHOOK,
        _SIGNATURE,
        take_delivery,
        _TAG,
        {"application/json": WebhookBody},
        {200: Message},
        ("webhook_refused", "not_found", "invalid_json", "too_large", *STORE_PROBLEMS),
    ),
)
