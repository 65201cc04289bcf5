"""Group commit: while one flush is in flight, arriving work queues; then the whole queue goes as one batch.

There is no timer: an idle server flushes at once, a busy one makes large batches by itself. The rules that hold here,
each with a test in `tests/test_group_commit.py`:

* work is answered only after its own flush has ended;
* work for one key keeps its order, and a batch names a key once: the second waits for the first one's flush;
* a batch that fails because of one item is taken apart and its items are tried alone, so none fails its neighbours; a
  batch whose outcome is unknown is never tried again;
* a key whose session another program holds goes alone from then on, in one lane, until it is free: the rest flows on;
* whoever waits may go away at any time: that neither cancels a flush nor stops a lane;
* the queue is bounded by items and by bytes; over the bound, work is refused with `StoreBusy`;
* `drain` waits until everything that was accepted has been answered.

The idea is the one of group commit in databases (DeWitt et al., "Implementation Techniques for Main Memory Database
Systems", SIGMOD 1984, section 5), moved above the store so that every store has it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from itertools import islice
from typing import Generic, TypeVar

from chatstate.errors import ChatStateError, OutcomeUnknown, PrivilegeMissing, SessionLocked, StoreBusy, WriteRefused

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class _Entry(Generic[Item, Answer]):
    """One piece of waiting work. `waiter` is done as soon as nobody waits any more, or an answer is there."""

    __slots__ = ("item", "key", "size", "waiter")

    def __init__(self, key: Hashable, item: Item, size: int, waiter: asyncio.Future[Answer]) -> None:
        self.key = key
        self.item = item
        self.size = size
        self.waiter = waiter

    def settle(self, answer: Answer | Exception) -> None:
        if self.waiter.done():  # the client hung up
            return
        if isinstance(answer, Exception):
            self.waiter.set_exception(answer)
        else:
            self.waiter.set_result(answer)


_Lines = dict[Hashable, deque[_Entry[Item, Answer]]]
"""Work that waits, by key, each line in its order."""

_SMALL_BATCH = 16
"""Up to so many items go together at once: the cost of a flush is spread well enough, and smaller ones are slower."""

_MOST_SUSPECTS = 1000
"""How many held keys are remembered; a key that nobody submits again would stay for ever."""

_log = logging.getLogger(__name__)


class GroupCommit(Generic[Item, Answer]):
    """Turns single submissions into batches for `flush`.

    flush       takes items with distinct keys; gives an answer for each, in order, which may be an exception for that
                item alone. If it raises, nothing of the batch was done (or, `OutcomeUnknown`, nobody knows).
    lanes       how many flushes may be in flight at once.
    batch_items, batch_bytes    the largest batch; a single larger item goes alone. With several lanes it is smaller
                while less is waiting: a lane that took everything would leave nothing to do for the others, nor for
                the process that prepares and answers it.
    queue_items, queue_bytes    the most that may wait or be in flight.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | Exception]]],
        *,
        lanes: int = 2,
        batch_items: int = 64,
        batch_bytes: int = 4 << 20,
        queue_items: int = 10_000,
        queue_bytes: int = 128 << 20,
    ) -> None:
        self._flush = flush
        self._lanes = self._free_lanes = lanes
        self._batch_items, self._batch_bytes = batch_items, batch_bytes
        self._queue_items, self._queue_bytes = queue_items, queue_bytes
        self._ready: _Lines[Item, Answer] = {}  # by key, in order of arrival
        self._in_flight: _Lines[Item, Answer] = {}  # what waits behind the item of that key that is in flight
        self._held: _Lines[Item, Answer] = {}  # what is ready but for a key of `_suspects`
        self._suspects: set[Hashable] = set()
        self._suspect_in_flight = False
        self._items = self._bytes = 0
        self._pump_scheduled = False
        self._flushes: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop  # known once there is work; asking for it costs a system call
        self._idle = asyncio.Event()
        self._idle.set()

    async def submit(self, key: Hashable, item: Item, size: int = 0) -> Answer:
        """Queue the item (of `size` bytes) and wait for its answer. Raises `StoreBusy` when the queue is full."""
        if self._items and (self._items >= self._queue_items or self._bytes + size > self._queue_bytes):
            raise StoreBusy
        if not self._items:
            self._loop = asyncio.get_running_loop()
        entry: _Entry[Item, Answer] = _Entry(key, item, size, self._loop.create_future())
        self._items += 1
        self._bytes += size
        self._idle.clear()
        if key in self._in_flight:
            self._in_flight[key].append(entry)
        else:
            self._waiting(key).setdefault(key, deque()).append(entry)
        self._schedule_pump()
        return await entry.waiter

    async def drain(self) -> None:
        """Wait until all accepted work has been answered."""
        await self._idle.wait()

    def _waiting(self, key: Hashable) -> _Lines[Item, Answer]:
        return self._held if key in self._suspects else self._ready

    def _schedule_pump(self) -> None:
        # Not at once, but after the callbacks that are already due: requests that arrived together travel together.
        if not self._pump_scheduled and (self._ready or self._held):
            self._pump_scheduled = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_scheduled = False
        while self._free_lanes and (batch := self._take_suspect() or self._take_batch()):
            self._free_lanes -= 1
            task = self._loop.create_task(self._run(batch))
            self._flushes.add(task)
            task.add_done_callback(self._flushes.discard)

    def _take_suspect(self) -> list[_Entry[Item, Answer]]:
        if self._suspect_in_flight or not self._held:
            return []
        self._suspect_in_flight = True
        return [self._take(self._held, next(iter(self._held)))]

    def _take_batch(self) -> list[_Entry[Item, Answer]]:
        batch: list[_Entry[Item, Answer]] = []
        size = 0
        for key in list(islice(self._ready, self._share())):
            size += self._ready[key][0].size
            if batch and size > self._batch_bytes:
                break
            batch.append(self._take(self._ready, key))
        return batch

    def _share(self) -> int:
        """How many of the waiting items the next batch may take: at most half of what would be this lane's part."""
        if self._lanes == 1:
            return self._batch_items
        return min(self._batch_items, max(_SMALL_BATCH, len(self._ready) // (2 * self._lanes)))

    def _take(self, lines: _Lines[Item, Answer], key: Hashable) -> _Entry[Item, Answer]:
        self._in_flight[key] = lines.pop(key)
        return self._in_flight[key].popleft()

    async def _run(self, batch: list[_Entry[Item, Answer]]) -> None:
        was_suspect = batch[0].key in self._suspects
        try:
            await self._flush_or_split(batch)
        except BaseException as error:
            # Not an error of ours, or a cancelled flush (the loop is being torn down): nobody knows what was done.
            self._settle(batch, [OutcomeUnknown()] * len(batch))
            if not isinstance(error, Exception):
                raise
            _log.exception("a flush failed in an unexpected way")
        finally:
            self._free_lanes += 1
            self._suspect_in_flight = self._suspect_in_flight and not was_suspect
            self._release(batch)
            self._schedule_pump()

    async def _flush_or_split(self, batch: list[_Entry[Item, Answer]]) -> None:
        try:
            answers = await self._flush([entry.item for entry in batch])
        except (WriteRefused, SessionLocked, PrivilegeMissing) as error:
            # Nothing was done, and it may be one item's fault.
            if len(batch) == 1:
                self._settle(batch, [error])
            else:
                for entry in batch:
                    await self._flush_or_split([entry])
        except ChatStateError as error:
            self._settle(batch, [error] * len(batch))
        else:
            self._settle(batch, answers)

    def _settle(self, batch: list[_Entry[Item, Answer]], answers: Sequence[Answer | Exception]) -> None:
        for entry, answer in zip(batch, answers, strict=True):
            entry.settle(answer)
            if not isinstance(answer, SessionLocked):
                self._suspects.discard(entry.key)
            elif len(self._suspects) < _MOST_SUSPECTS:
                self._suspects.add(entry.key)

    def _release(self, batch: list[_Entry[Item, Answer]]) -> None:
        for entry in batch:
            self._items -= 1
            self._bytes -= entry.size
            line = self._in_flight.pop(entry.key)
            if line:
                self._waiting(entry.key)[entry.key] = line
        if not self._items:
            self._idle.set()
