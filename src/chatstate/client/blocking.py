"""The client for programs that block: scripts, threads, Flask and Django."""

from __future__ import annotations

import socket
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, Self, TypeVar

import httpx
from httpx_sse import EventSource

from chatstate.client import options
from chatstate.client.calls import Ask, Base, Calls, Operation, Pause, Send
from chatstate.client.feed import SILENCE_SECONDS, Feed
from chatstate.client.values import Event, Saved, Session

Result = TypeVar("Result")


class Client:
    """Chat states of one server. Threads may share it; close it, or use it as a context manager.

    base_url   where the server is, with the path that it is mounted at, if any
    token      an API key or a session token; or a function that gives one, which is asked again after a 401
    timeout    seconds without an answer (to connect, to the next byte) after which a try has failed
    retries    how often a try that failed for now (no network, 503, a short 429) is repeated. A repeated write is
               carried out once: each has an `Idempotency-Key`
    transport  how requests are sent, in place of sockets (`httpx.WSGITransport`, a proxy, certificates)
    pause      how to wait for some seconds, in place of `time.sleep`

    Calls raise `chatstate.client.ClientError` (see its tree); `load` gives None only when the server has said that
    there is no such session.
    """

    def __init__(
        self,
        base_url: str = options.BASE_URL,
        token: str | Callable[[], str] | None = None,
        *,
        timeout: float = options.TIMEOUT_SECONDS,
        retries: int = options.RETRIES,
        transport: httpx.BaseTransport | None = None,
        pause: Callable[[float], None] | None = None,
    ) -> None:
        self._base_url = options.checked_url(base_url)
        self._timeout = timeout
        self._calls = Calls(token, retries)
        self._http = httpx.Client(timeout=timeout, headers=options.HEADERS, limits=options.LIMITS, transport=transport)
        self._pause = pause
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End all connections; watches end, too."""
        for watch in list(self._watches):
            watch.close()
        self._http.close()

    def load(self, id: str) -> Session | None:
        """The session with its `state` and `etag`; None: there is none. A failure is never None: it raises."""
        return self._run(self._calls.load(id))

    def save(
        self,
        id: str,
        state: Any = options.NOT_GIVEN,
        *,
        text: str | None = None,
        base: Base = None,
        overwrite: bool = False,
        last_activity: datetime | None = None,
        expires_in: int | None = None,
        idempotency_key: str | None = None,
    ) -> Saved:
        """Save a whole state, in the place of the one that it was made from.

        state            anything that JSON can say
        text             or a text that is kept byte for byte, JSON or not
        base             what this state replaces: what `load` or the last `save` gave, or an ETag. None, which is also
                         what `load` gives when there is no session: only if there is still none
        overwrite        replace whatever is there, unseen; the last one wins
        last_activity    an aware time; by default the server's
        expires_in       so many seconds after its last write the session expires; by default as before
        idempotency_key  within a day, a call with the same key and the same state is carried out once

        Raises `Conflict` when somebody else has written meanwhile. Nothing is saved then.
        """
        content = options.text_to_save(state, text, base, overwrite)
        return self._run(
            self._calls.save(
                id,
                content,
                base,
                overwrite=overwrite,
                last_activity=last_activity,
                expires_in=expires_in,
                key=idempotency_key,
            )
        )

    def patch(
        self,
        id: str,
        *,
        merge: Any = options.NOT_GIVEN,
        operations: list[dict[str, Any]] | None = None,
        base: Base = None,
        idempotency_key: str | None = None,
    ) -> Saved:
        """Change a part of the state on the server; what others change meanwhile stays.

        merge       the members to set, None to remove one (JSON Merge Patch, RFC 7396)
        operations  or a list of operations (JSON Patch, RFC 6902)
        base        only if this version is still the current one

        Raises `NotFound` when there is no session, `PatchConflict` when the patch does not fit, `Conflict` with `base`.
        """
        patch, media_type = options.patch_to_send(merge, operations)
        return self._run(self._calls.patch(id, patch, media_type, base, idempotency_key))

    def append(
        self,
        id: str,
        path: str,
        *values: Any,
        create: Any = None,
        base: Base = None,
        idempotency_key: str | None = None,
    ) -> Saved:
        """Append values to the list at this JSON Pointer (RFC 6901), for example `/messages`; one request, no race.

        create           the state to begin with if there is no session, for example `{"messages": []}`; without it that
                         is `NotFound`
        idempotency_key  what stays the same when a message is delivered twice, so that it is appended once

        Raises `PatchConflict` when there is no list at `path`.
        """
        return self._run(self._calls.append(id, path, values, create, base, idempotency_key))

    def delete(self, id: str, *, base: Base = None, idempotency_key: str | None = None) -> bool:
        """Erase the session and all that is kept about it. Gives whether there was one.

        With `base`, raises `Conflict` when there is a newer version.
        """
        return self._run(self._calls.delete(id, base, idempotency_key))

    def update(
        self,
        id: str,
        change: Callable[[Any], Any],
        *,
        default: Callable[[], Any] | None = dict,
        expires_in: int | None = None,
    ) -> Session:
        """Load the state, change it, save it; and all of it again whenever somebody else was quicker.

        change   is given the state, and gives the new one; or changes it in place, and gives None. It may run several
                 times, so it does nothing else. If it raises, nothing is saved
        default  gives the state to begin with when there is no session; None: that is `NotFound`

        Gives the session as it was saved.
        """
        return self._run(self._calls.update(id, change, default, expires_in))

    @contextmanager
    def edit(
        self, id: str, *, default: Callable[[], Any] | None = dict, expires_in: int | None = None
    ) -> Iterator[Any]:
        """`with client.edit(id) as state:` change the dict or list in place; it is saved when the block ends.

        An exception in the block, or no change at all: nothing is saved. A block cannot run twice. So when somebody
        else was quicker, what the block has changed is merged with what they have changed (docs/reference/python.md);
        `MergeConflict`, with nothing saved, when both have changed the same place. `update` never needs to merge.

        default  gives the state to begin with when there is no session; None: that is `NotFound`
        """
        editing = self._run(self._calls.begin_edit(id, default))
        yield editing.state
        self._run(self._calls.finish_edit(id, editing, expires_in))

    def watch(self, id: str, *, silence: float = SILENCE_SECONDS) -> Watch:
        """`for event in client.watch(id):` the state now, and each newer one: `State`, or `Gone`.

        It never ends by itself: it connects again when the connection breaks, or when there was silence for so many
        seconds. A slow reader is shown the newest state only. Raises `Unauthorized` and `Forbidden`, and `Unavailable`
        when the server cannot be reached to begin with.
        """
        return Watch(self, id, silence)

    def _run(self, operation: Operation[Result]) -> Result:
        came: Any = None
        while True:
            try:
                effect = operation.send(came)
            except StopIteration as end:
                result: Result = end.value
                return result
            came = self._carry_out(effect)

    def _carry_out(self, effect: Send | Pause | Ask) -> Any:
        if isinstance(effect, Ask):
            return effect.function(*effect.arguments)
        if isinstance(effect, Pause):
            return (self._pause or time.sleep)(effect.seconds)
        request = effect.request
        try:
            return self._http.request(
                request.method, f"{self._base_url}{request.path}", headers=request.fields, content=request.body
            )
        except httpx.RequestError as error:
            return error


class Watch(Iterator[Event]):
    """The events of one session, for one thread; `close` may be called from any other, and ends the iteration."""

    def __init__(self, client: Client, id: str, silence: float) -> None:
        self._client = client
        self._feed = Feed(client._calls, id)
        self._timeout = httpx.Timeout(client._timeout, read=silence)
        self._closed = threading.Event()
        self._response: httpx.Response | None = None
        self._events = self._follow()
        client._watches.add(self)

    def __next__(self) -> Event:
        return next(self._events)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End it; a thread that waits for the next event has its loop ended."""
        self._closed.set()
        self._client._watches.discard(self)
        if response := self._response:
            with suppress(OSError, AttributeError):  # a connection that is gone already
                # Closing a socket does not wake the thread that reads from it; this does.
                response.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        with suppress(ValueError):  # a thread is in it; it leaves it now
            self._events.close()

    def _follow(self) -> Generator[Event, None, None]:
        try:
            while not self._closed.is_set():
                try:
                    yield from self._connection()
                except httpx.RequestError as error:
                    if not self._closed.is_set():
                        self._feed.failed(error)
                self._wait()
        finally:
            self.close()

    def _connection(self) -> Iterator[Event]:
        client, request = self._client, self._client._run(self._feed.request())
        url = f"{client._base_url}{request.path}"
        with client._http.stream("GET", url, headers=request.fields, timeout=self._timeout) as response:
            if not self._feed.is_open(response):
                response.read()
                self._feed.refused(response)
                return
            self._feed.opened()
            self._response = response
            if self._closed.is_set():  # while it connected
                return
            try:
                for received in EventSource(response).iter_sse():
                    if self._closed.is_set():
                        return
                    if event := self._feed.take(received):
                        yield event
            finally:
                self._response = None

    def _wait(self) -> None:
        if not self._closed.is_set():
            (self._client._pause or self._closed.wait)(self._feed.pause())
