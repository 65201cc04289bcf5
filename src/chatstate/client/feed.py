"""What a watch knows (docs/reference/http.md, the change feed), without I/O."""

from __future__ import annotations

import json

import httpx
from httpx_sse import ServerSentEvent

from chatstate.client import wire
from chatstate.client.calls import Calls, Operation, back_off, bearer
from chatstate.client.errors import ClientError, Unavailable, UnexpectedAnswer
from chatstate.client.values import Event, Gone, State, state_of
from chatstate.client.wire import Request

SILENCE_SECONDS = 45.0
"""The server says something every 15 s; after this silence the connection is dead."""

_RETRY_SECONDS = 2.0
_LONGEST_PAUSE_SECONDS = 30.0


class Feed:
    """One session's events. Connect with `request`, say `opened` or `failed`, `take` each event, `pause`, and again."""

    def __init__(self, calls: Calls, id: str) -> None:
        self._calls, self._id = calls, id
        self._path = f"{wire.path_of(id)}/events"
        self._last: Event | None = None
        self._retry = _RETRY_SECONDS
        self._failures = 0
        self._wait: float | None = None
        self._ever_opened = False
        self._token: str | None = None
        self._refused: str | None = None

    def request(self) -> Operation[Request]:
        """How to connect, again from where the last connection ended."""
        self._token = yield from self._calls.credential.get(self._refused)
        fields = {"Accept": "text/event-stream", "Cache-Control": "no-store", **bearer(self._token)}
        if isinstance(self._last, State):
            fields["Last-Event-ID"] = self._last.etag
        return Request("GET", self._path, self._id, fields)

    @staticmethod
    def is_open(response: httpx.Response) -> bool:
        return response.status_code == 200 and wire.media_type_of(response) == "text/event-stream"

    def opened(self) -> None:
        """The answer is a stream of events."""
        self._ever_opened, self._failures, self._wait, self._refused = True, 0, None, None

    def refused(self, response: httpx.Response) -> None:
        """The answer is another one, and was read. Raises what connecting again does not mend."""
        if response.status_code == 401 and self._calls.credential.renewable and self._refused is None:
            self._refused, self._wait = self._token, 0.0
            return
        error = wire.error_of(response, self._id)
        if not (isinstance(error, Unavailable) or response.status_code in (429, 500)):
            raise error
        self.failed(error)

    def failed(self, error: ClientError | httpx.RequestError) -> None:
        """No stream, or it broke. Raises when there never was one, and the retries are used up."""
        if not self._ever_opened and self._failures >= self._calls.retries:
            if isinstance(error, ClientError):
                raise error
            raise Unavailable(f"no answer from the server: {error or type(error).__name__}") from error
        self._wait = error.retry_after if isinstance(error, ClientError) else None
        self._failures += 1

    def pause(self) -> float:
        """The seconds until it is time to connect again."""
        if self._wait is not None:
            return self._wait
        if not self._ever_opened:
            return back_off(self._failures)
        return back_off(self._failures, self._retry, _LONGEST_PAUSE_SECONDS)

    def take(self, received: ServerSentEvent) -> Event | None:
        """The event for the user; None for what is none, and for what they have seen."""
        if received.retry is not None:
            self._retry = received.retry / 1000
        event = self._event(received)
        if event is None or self._seen(event):
            return None
        self._last = event
        return event

    def _event(self, received: ServerSentEvent) -> Event | None:
        if received.event == "state":
            try:
                return state_of(json.loads(received.data), self._id, received.id)
            except (KeyError, TypeError, ValueError) as error:
                raise UnexpectedAnswer("the feed has sent a state that cannot be read") from error
        if received.event in ("absent", "deleted", "expired"):
            return Gone(self._id, received.event)  # type: ignore[arg-type]
        return None

    def _seen(self, event: Event) -> bool:
        """After a reconnection the server begins with what is there; that a session is gone is said once."""
        if isinstance(event, State) and isinstance(self._last, State):
            return event.etag == self._last.etag
        return isinstance(event, Gone) and isinstance(self._last, Gone)
