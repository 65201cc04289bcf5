"""The client for event loops: asyncio, Starlette, FastAPI. Its calls are those of `Client`, awaited."""

from __future__ import annotations

import asyncio
import inspect
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import datetime
from typing import Any, Self, TypeVar

import httpx
from httpx_sse import EventSource

from chatstate.client import options
from chatstate.client.calls import Ask, Base, Calls, Operation, Pause, Send
from chatstate.client.feed import SILENCE_SECONDS, Feed
from chatstate.client.values import Event, Saved, Session

Result = TypeVar("Result")


class AsyncClient:
    """Chat states of one server. Tasks of one event loop may share it; `aclose` it, or use it with `async with`.

    base_url   where the server is, with the path that it is mounted at, if any
    token      an API key or a session token; or a function, also an async one, that gives one, and is asked again
               after a 401
    timeout    seconds without an answer (to connect, to the next byte) after which a try has failed
    retries    how often a try that failed for now (no network, 503, a short 429) is repeated. A repeated write is
               carried out once: each has an `Idempotency-Key`
    transport  how requests are sent, in place of sockets (`httpx.ASGITransport`, a proxy, certificates)
    pause      how to wait for some seconds, in place of `asyncio.sleep`

    Calls raise `chatstate.client.ClientError` (see its tree); `load` gives None only when the server has said that
    there is no such session.
    """

    def __init__(
        self,
        base_url: str = options.BASE_URL,
        token: str | Callable[[], str | Awaitable[str]] | None = None,
        *,
        timeout: float = options.TIMEOUT_SECONDS,
        retries: int = options.RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
        pause: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        self._base_url = options.checked_url(base_url)
        self._timeout = timeout
        self._calls = Calls(token, retries)
        self._http = httpx.AsyncClient(
            timeout=timeout, headers=options.HEADERS, limits=options.LIMITS, transport=transport
        )
        self._pause = pause
        self._watches: weakref.WeakSet[AsyncWatch] = weakref.WeakSet()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End all connections; watches end, too."""
        for watch in list(self._watches):
            await watch.aclose()
        await self._http.aclose()

    async def load(self, id: str) -> Session | None:
        """The session with its `state` and `etag`; None: there is none. A failure is never None: it raises."""
        return await self._run(self._calls.load(id))

    async def save(
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
        return await self._run(
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

    async def patch(
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
        return await self._run(self._calls.patch(id, patch, media_type, base, idempotency_key))

    async def append(
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
        return await self._run(self._calls.append(id, path, values, create, base, idempotency_key))

    async def delete(self, id: str, *, base: Base = None, idempotency_key: str | None = None) -> bool:
        """Erase the session and all that is kept about it. Gives whether there was one.

        With `base`, raises `Conflict` when there is a newer version.
        """
        return await self._run(self._calls.delete(id, base, idempotency_key))

    async def update(
        self,
        id: str,
        change: Callable[[Any], Any],
        *,
        default: Callable[[], Any] | None = dict,
        expires_in: int | None = None,
    ) -> Session:
        """Load the state, change it, save it; and all of it again whenever somebody else was quicker.

        change   is given the state, and gives the new one; or changes it in place, and gives None. It may be async. It
                 may run several times, so it does nothing else. If it raises, nothing is saved
        default  gives the state to begin with when there is no session; None: that is `NotFound`

        Gives the session as it was saved.
        """
        return await self._run(self._calls.update(id, change, default, expires_in))

    @asynccontextmanager
    async def edit(
        self, id: str, *, default: Callable[[], Any] | None = dict, expires_in: int | None = None
    ) -> AsyncIterator[Any]:
        """`async with client.edit(id) as state:` change the dict or list in place; it is saved when the block ends.

        An exception in the block, or no change at all: nothing is saved. A block cannot run twice. So when somebody
        else was quicker, what the block has changed is merged with what they have changed (docs/reference/python.md);
        `MergeConflict`, with nothing saved, when both have changed the same place. `update` never needs to merge.

        default  gives the state to begin with when there is no session; None: that is `NotFound`
        """
        editing = await self._run(self._calls.begin_edit(id, default))
        yield editing.state
        await self._run(self._calls.finish_edit(id, editing, expires_in))

    def watch(self, id: str, *, silence: float = SILENCE_SECONDS) -> AsyncWatch:
        """`async for event in client.watch(id):` the state now, and each newer one: `State`, or `Gone`.

        It never ends by itself: it connects again when the connection breaks, or when there was silence for so many
        seconds. A slow reader is shown the newest state only. Raises `Unauthorized` and `Forbidden`, and `Unavailable`
        when the server cannot be reached to begin with.
        """
        return AsyncWatch(self, id, silence)

    async def _run(self, operation: Operation[Result]) -> Result:
        came: Any = None
        while True:
            try:
                effect = operation.send(came)
            except StopIteration as end:
                result: Result = end.value
                return result
            came = await self._carry_out(effect)

    async def _carry_out(self, effect: Send | Pause | Ask) -> Any:
        if isinstance(effect, Ask):
            result = effect.function(*effect.arguments)
            return await result if inspect.isawaitable(result) else result
        if isinstance(effect, Pause):
            return await (self._pause or asyncio.sleep)(effect.seconds)
        request = effect.request
        try:
            return await self._http.request(
                request.method, f"{self._base_url}{request.path}", headers=request.fields, content=request.body
            )
        except httpx.RequestError as error:
            return error


class AsyncWatch(AsyncIterator[Event]):
    """The events of one session, for one task; `aclose` may be called from any other, and ends the iteration.

    Waiting for an event may be given up (`asyncio.wait_for`) and taken up again: no event gets lost.
    """

    def __init__(self, client: AsyncClient, id: str, silence: float) -> None:
        self._client = client
        self._feed = Feed(client._calls, id)
        self._timeout = httpx.Timeout(client._timeout, read=silence)
        self._closed = False
        self._next: asyncio.Task[Event | None] | None = None
        self._events = self._follow()
        client._watches.add(self)

    async def __anext__(self) -> Event:
        if self._closed:
            raise StopAsyncIteration
        task = self._next = self._next or asyncio.create_task(self._advance())
        await asyncio.wait({task})  # it does not cancel the task when it is cancelled itself
        self._next = None
        event = None if task.cancelled() else task.result()
        if event is None:
            raise StopAsyncIteration
        return event

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End it; a task that waits for the next event has its loop ended."""
        self._closed = True
        self._client._watches.discard(self)
        if task := self._next:
            task.cancel()
            await asyncio.wait({task})
        await self._events.aclose()

    async def _advance(self) -> Event | None:
        return await anext(self._events, None)

    async def _follow(self) -> AsyncGenerator[Event, None]:
        while True:
            try:
                async with aclosing(self._connection()) as events:
                    async for event in events:
                        yield event
            except httpx.RequestError as error:
                self._feed.failed(error)
            await (self._client._pause or asyncio.sleep)(self._feed.pause())

    async def _connection(self) -> AsyncGenerator[Event, None]:
        client, request = self._client, await self._client._run(self._feed.request())
        url = f"{client._base_url}{request.path}"
        async with client._http.stream("GET", url, headers=request.fields, timeout=self._timeout) as response:
            if not self._feed.is_open(response):
                await response.aread()
                self._feed.refused(response)
                return
            self._feed.opened()
            async with aclosing(EventSource(response).aiter_sse()) as received:
                async for one in received:
                    if event := self._feed.take(one):
                        yield event
