"""WhatsApp's Cloud API as a channel: sending messages, and fetching the files that people have sent.

What an error means follows Meta's list of error codes (June 2026). Codes decide, statuses only where there is no code:
limits come with 400 as well as with 429. No message of an error repeats a text of Meta's, which may quote the request.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Literal, NamedTuple

import httpx

from chatstate.bot import Reply
from chatstate.channels import Channel, Contact
from chatstate.channels.whatsapp import render
from chatstate.errors import InvalidSetting, SendFailed
from chatstate.model import utc_now

DEFAULT_GRAPH_URL = "https://graph.facebook.com/v26.0"
"""Meta serves this version since July 2026; each is served for two years or more."""

WINDOW = timedelta(hours=24)
"""WhatsApp's customer service window: it begins anew with each message of the person's (131047 after it)."""

TIMEOUT_SECONDS = 20.0
DOWNLOAD_SECONDS = 60.0
TYPING_SECONDS = 5.0
"""How long a message, a file and a typing indicator may take, from connecting to the last byte."""

MOST_BYTES = 16 << 20
"""Of a file, by default. People can send documents of up to 100 MB."""

_MOST_ANSWER_BYTES = 1 << 16
_LONGEST_WAIT = 86_400.0  # after a day nobody may be written to anyhow
_SOON, _IN_A_MINUTE, _LATER, _MUCH_LATER = 5.0, 60.0, 300.0, 3600.0
_PAIR_SECONDS = 6.0  # WhatsApp takes one message in 6 seconds to the same person, bursts aside
_NEVER = None

_ID_FORM = re.compile(r"[A-Za-z0-9_-]{1,256}")
_TOKEN_FORM = re.compile(r"[!-~]+")
_MEDIA_TYPE = re.compile(r"[!-~ ]{1,200}")
_log = logging.getLogger(__name__)


class _Meaning(NamedTuple):
    """What a code says, when to try again (seconds, None: never), and what has to wait so long."""

    title: str
    retry_after: float | None
    holds: Literal["message", "person", "channel"] = "message"
    mend: str = ""


_ACCESS = "Set CHATSTATE_WHATSAPP_ACCESS_TOKEN to a valid token with the permission whatsapp_business_messaging."
_PHONE = "Set CHATSTATE_WHATSAPP_PHONE_NUMBER_ID to the id of a registered number that the access token is for."
_GRAPH = "Check CHATSTATE_WHATSAPP_GRAPH_URL."

_CODES = {
    0: _Meaning("Authentication failed", _LATER, "channel", _ACCESS),
    1: _Meaning("Unknown error of the API", _SOON),
    2: _Meaning("Service temporarily unavailable", _SOON, "channel"),
    3: _Meaning("Capability or permission is missing", _LATER, "channel", _ACCESS),
    4: _Meaning("Too many API calls", _LATER, "channel"),
    10: _Meaning("Permission denied", _LATER, "channel", _ACCESS),
    33: _Meaning("The business phone number does not exist", _LATER, "channel", _PHONE),
    100: _Meaning("Invalid parameter", _NEVER),
    190: _Meaning("Access token has expired or is not valid", _LATER, "channel", _ACCESS),
    **dict.fromkeys(range(200, 300), _Meaning("Permission is missing", _LATER, "channel", _ACCESS)),
    368: _Meaning("Temporarily blocked for policy violations", _MUCH_LATER, "channel"),
    80007: _Meaning("Rate limit of the business account", _LATER, "channel"),
    130429: _Meaning("Rate limit hit", _SOON, "channel"),
    130472: _Meaning("The person's number is part of an experiment", _NEVER),
    130497: _Meaning("Messages to this country are restricted", _NEVER),
    131000: _Meaning("Something went wrong", _SOON),
    131005: _Meaning("Access denied", _LATER, "channel", _ACCESS),
    131008: _Meaning("Required parameter is missing", _NEVER),
    131009: _Meaning("Parameter value is not valid", _NEVER),
    131016: _Meaning("Service unavailable", _SOON, "channel"),
    131021: _Meaning("Recipient cannot be sender", _NEVER),
    131026: _Meaning("Message undeliverable", _NEVER),
    131030: _Meaning("Recipient is not in the list of allowed numbers", _NEVER),
    131031: _Meaning("Account has been locked", _MUCH_LATER, "channel"),
    131042: _Meaning("Business eligibility payment issue", _MUCH_LATER, "channel"),
    131045: _Meaning("The business phone number is not registered", _MUCH_LATER, "channel"),
    131047: _Meaning("Re-engagement message", _NEVER),
    131048: _Meaning("Spam rate limit hit", _MUCH_LATER, "channel"),
    131049: _Meaning("Meta chose not to deliver", _NEVER),
    131051: _Meaning("Unsupported message type", _NEVER),
    131052: _Meaning("Media download error", _NEVER),
    131053: _Meaning("Media upload error", _NEVER),
    131056: _Meaning("Pair rate limit hit", _PAIR_SECONDS, "person"),
    131057: _Meaning("Account in maintenance mode", _IN_A_MINUTE, "channel"),
    133004: _Meaning("Server temporarily unavailable", _SOON, "channel"),
    133010: _Meaning("Phone number is not registered", _MUCH_LATER, "channel", _PHONE),
    135000: _Meaning("Generic error of the request", _NEVER),
}

_OBJECT_NOT_FOUND = (100, 33)
"""Code and subcode: there is no such number or file, or the token may not see it."""


class WhatsAppCloud(Channel):
    """WhatsApp by Meta's Cloud API. `open` it, and `close` it.

    access_token     of a system user, with the permission whatsapp_business_messaging
    phone_number_id  of the business's number, as Meta's dashboard shows it; not the number itself
    graph_url        where the API is, with its version
    timeout          seconds that a message may take
    clock            the time, for dates in Retry-After

    Raises `InvalidSetting` when the token or the address cannot be sent or reached in any case.
    """

    name: ClassVar[str] = "whatsapp"
    window: ClassVar[timedelta | None] = WINDOW

    def __init__(
        self,
        access_token: str,
        phone_number_id: str,
        graph_url: str = DEFAULT_GRAPH_URL,
        *,
        timeout: float = TIMEOUT_SECONDS,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._graph_url = _checked_url(graph_url)
        self._headers = {
            "authorization": f"Bearer {_checked(access_token, _TOKEN_FORM, _ACCESS)}",
            "user-agent": "chatstate",
        }
        self._messages_url = f"{self._graph_url}/{_checked(phone_number_id, _ID_FORM, _PHONE)}/messages"
        self._timeout = timeout
        self._clock = clock
        self._http: httpx.AsyncClient | None = None

    async def open(self) -> None:
        logger = logging.getLogger("httpx")
        if _not_of_ours not in logger.filters:
            logger.addFilter(_not_of_ours)
        if self._http is None:
            self._http = httpx.AsyncClient(headers=self._headers, timeout=self._timeout, follow_redirects=False)

    async def close(self) -> None:
        http, self._http = self._http, None
        if http:
            await http.aclose()

    def split(self, reply: Reply) -> tuple[Reply, ...]:
        """See `render.split`."""
        return render.split(reply)

    async def send(self, recipient: Contact, reply: Reply) -> str:
        """Send one message; its id (`wamid.…`), by which reports name it.

        Where the answer is lost or cannot be read, the message is to be sent again, and may come twice.
        """
        answer = await self._post(render.payload(recipient, reply), self._timeout)
        if not answer.is_success:
            raise self._failure(answer, "message")
        message_id = _message_id(answer.data)
        if not message_id:
            raise SendFailed("WhatsApp's answer to a message names no id.", _IN_A_MINUTE)
        return message_id

    async def show_typing(self, message_id: str) -> None:
        """Mark the message as read, and show for 25 seconds, or until the reply, that one is being written."""
        content = {"messaging_product": "whatsapp", "status": "read", "message_id": message_id}
        try:
            answer = await self._post(content | {"typing_indicator": {"type": "text"}}, TYPING_SECONDS)
            if not answer.is_success:
                raise self._failure(answer, "typing indicator")
        except SendFailed as error:
            _log.debug("No typing indicator: %s", error.message)

    async def download(self, media_id: str, most_bytes: int = MOST_BYTES) -> tuple[bytes, str]:
        """A file that somebody has sent (`Attachment.id`), and its media type. WhatsApp keeps it for 7 days.

        Raises `SendFailed`, also when the file is larger.
        """
        if not _ID_FORM.fullmatch(media_id):
            raise SendFailed("This is no id of a file on WhatsApp.")
        async with self._calling(DOWNLOAD_SECONDS) as http:
            async with http.stream("GET", f"{self._graph_url}/{media_id}") as response:
                answer = await _read(response)
            if not answer.is_success:
                raise self._no_file(answer)
            url, media_type, size = (answer.member(name) for name in ("url", "mime_type", "file_size"))
            if isinstance(size, int) and size > most_bytes:
                raise _too_large(most_bytes)
            async with http.stream("GET", self._file_url(url)) as response:
                return await self._file(response, most_bytes), _media_type(media_type, response)

    def _file_url(self, url: Any) -> httpx.URL:
        """The address of a file, if the token may be sent there."""
        address = _url(url)
        if not address.host or address.userinfo or (address.scheme != "https" and not self._is_ours(address)):
            raise SendFailed("WhatsApp's answer names no address of the file that the access token may be sent to.")
        return address

    def _is_ours(self, address: httpx.URL) -> bool:
        graph = httpx.URL(self._graph_url)
        return (address.scheme, address.host, address.port) == (graph.scheme, graph.host, graph.port)

    async def _file(self, response: httpx.Response, most_bytes: int) -> bytes:
        if not response.is_success:
            raise self._no_file(await _read(response))
        content = await _read_at_most(response, most_bytes)
        if content is None:
            raise _too_large(most_bytes)
        return content

    async def _post(self, content: dict[str, Any], seconds: float) -> _Answer:
        headers = {"content-type": "application/json"}
        async with (
            self._calling(seconds) as http,
            http.stream("POST", self._messages_url, content=json.dumps(content), headers=headers) as response,
        ):
            return await _read(response)

    @asynccontextmanager
    async def _calling(self, seconds: float) -> AsyncIterator[httpx.AsyncClient]:
        """The client, for calls that take at most so long; whatever happens to them is `SendFailed`."""
        if self._http is None:
            raise SendFailed("The connection to WhatsApp is not open.", _SOON, "channel")
        token = _calling.set(True)
        try:
            async with asyncio.timeout(seconds):
                yield self._http
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            text = f"WhatsApp cannot be reached ({type(error).__name__}). Check the network. {_GRAPH}"
            raise SendFailed(text, _SOON, "channel") from None
        except (TimeoutError, httpx.TimeoutException):
            raise SendFailed(f"WhatsApp has not answered within {seconds:g} seconds.", _SOON) from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise SendFailed(f"The connection to WhatsApp has failed ({type(error).__name__}).", _SOON) from None
        finally:
            _calling.reset(token)

    def _no_file(self, answer: _Answer) -> SendFailed:
        if answer.is_not_found or answer.status in (404, 410):
            return SendFailed("WhatsApp does not have this file, or not any more: it keeps them for 7 days.")
        if 300 <= answer.status < 400:
            return SendFailed("WhatsApp says that the file is elsewhere. The access token is not sent after it.")
        return self._failure(answer, "file")

    def _failure(self, answer: _Answer, what: str) -> SendFailed:
        meaning = answer.meaning()
        code = f"{answer.code} {meaning.title}" if answer.code is not None and meaning.title else answer.code
        text = f"WhatsApp has refused a {what}: {f'status {answer.status}' if code is None else code}."
        if meaning.mend:
            text += f" {meaning.mend}"
        if meaning.retry_after is None:
            return SendFailed(text)
        asked = _seconds(answer.retry_after, self._clock())
        return SendFailed(text, meaning.retry_after if asked is None else asked, meaning.holds)


class _Answer(NamedTuple):
    """What the API has answered. `data` is None when it is not JSON."""

    status: int
    retry_after: str
    data: Any

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    def member(self, name: str) -> Any:
        return self.data.get(name) if isinstance(self.data, dict) else None

    def _error(self, name: str) -> int | None:
        error = self.member("error")
        value = error.get(name) if isinstance(error, dict) else None
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    @property
    def code(self) -> int | None:
        return self._error("code")

    @property
    def is_not_found(self) -> bool:
        return (self.code, self._error("error_subcode")) == _OBJECT_NOT_FOUND

    def meaning(self) -> _Meaning:
        """What a failure means."""
        if self.is_not_found:
            return _CODES[33]
        known = _CODES.get(self.code) if self.code is not None else None
        if self.status == 401 and not (known and known.mend):
            return _Meaning("Unauthorized", _LATER, "channel", _ACCESS)
        return known or _meaning_of_status(self.status)


def _meaning_of_status(status: int) -> _Meaning:
    """What an answer means that has no code, or a new one."""
    if status == 403:
        return _Meaning("", _LATER, "channel", _ACCESS)
    if 300 <= status < 400:
        return _Meaning("", _LATER, "channel", _GRAPH)
    if status == 429:
        return _Meaning("", _SOON, "channel")
    return _Meaning("", _SOON if status >= 500 or status == 408 else _NEVER)


_calling: ContextVar[bool] = ContextVar("calling", default=False)


def _not_of_ours(_record: logging.LogRecord) -> bool:
    """Keeps our calls out of what httpx logs: with the address, which has ids, and opens a file that was sent."""
    return not _calling.get()


async def _read(response: httpx.Response) -> _Answer:
    body = await _read_at_most(response, _MOST_ANSWER_BYTES)
    try:
        data = json.loads(body or b"")
    except (ValueError, RecursionError):
        data = None
    return _Answer(response.status_code, response.headers.get("retry-after", ""), data)


async def _read_at_most(response: httpx.Response, most_bytes: int) -> bytes | None:
    """The body; None, if it is larger. What is over the limit is not waited for."""
    content = bytearray()
    async for piece in response.aiter_bytes():
        content += piece
        if len(content) > most_bytes:
            return None
    return bytes(content)


def _too_large(most_bytes: int) -> SendFailed:
    return SendFailed(f"The file is larger than {most_bytes} bytes.")


def _media_type(told: Any, response: httpx.Response) -> str:
    media_type = told if isinstance(told, str) else response.headers.get("content-type", "")
    return media_type if _MEDIA_TYPE.fullmatch(media_type) else "application/octet-stream"


def _message_id(data: Any) -> str:
    messages = data.get("messages") if isinstance(data, dict) else None
    first = messages[0] if isinstance(messages, list) and messages else None
    message_id = first.get("id") if isinstance(first, dict) else None
    return message_id if isinstance(message_id, str) else ""


def _seconds(retry_after: str, now: datetime) -> float | None:
    """How long Retry-After asks to wait: seconds or a date (RFC 9110, section 10.2.3). None: it does not say."""
    if re.fullmatch(r"[0-9]{1,9}", retry_after):
        return min(float(retry_after), _LONGEST_WAIT)
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    until = date if date.tzinfo else date.replace(tzinfo=UTC)
    return min(max((until - now).total_seconds(), 0.0), _LONGEST_WAIT)


def _checked(value: str, form: re.Pattern[str], mend: str) -> str:
    """What can stand in a header, or in a path."""
    if not form.fullmatch(value):
        raise InvalidSetting(f"{mend} What is set is empty, or has characters that cannot be in it.")
    return value


def _checked_url(url: str) -> str:
    address = _url(url)
    if address.scheme not in ("https", "http") or not address.host or address.userinfo or set(url) & {*"?#"}:
        raise InvalidSetting(f"CHATSTATE_WHATSAPP_GRAPH_URL must be an address such as {DEFAULT_GRAPH_URL}")
    return url.rstrip("/")


def _url(url: Any) -> httpx.URL:
    """The address; one without a host when it is none."""
    try:
        return httpx.URL(url if isinstance(url, str) else "")
    except httpx.InvalidURL:
        return httpx.URL("")
