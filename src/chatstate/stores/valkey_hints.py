"""Hints between the servers of one Valkey Cluster, by a sharded channel (Valkey: "Pub/Sub", "Sharded Pub/Sub").

What is said on a sharded channel stays among the nodes of one shard, while other channels are repeated by every node of
the cluster to every other one. One channel does for all: messages are few, see `chatstate.stores.server_hints`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from uuid import uuid4

from chatstate.errors import StoreError
from chatstate.stores.server_hints import ServerHints
from chatstate.stores.valkey_cluster import Call, Cluster
from chatstate.stores.valkey_keys import slot_of
from chatstate.stores.valkey_node import Subscription

TAG = "hints"
"""The hash tag of the channel."""


def channel(prefix: str) -> str:
    """Where the servers with this prefix talk."""
    return f"{prefix}{{{TAG}}}"


class ValkeyHints(ServerHints):
    """Hints from all servers on the cluster, once `listen` was called; before that from here alone."""

    def __init__(self) -> None:
        super().__init__()
        self._cluster: Cluster | None = None
        self._channel = ""
        self._me = uuid4().hex  # says which messages are one's own

    def listen(self, cluster: Cluster, prefix: str) -> None:
        """Hear other servers, and tell them; from now on, and until `close`."""
        self._cluster = cluster
        self._channel = channel(prefix)
        self.start(prefix)

    async def _listen(self) -> None:
        assert self._cluster
        async with self._cluster.subscribed(slot_of(TAG), self._channel) as line:
            hearing = asyncio.create_task(self._hear_all(line))
            hearing.add_done_callback(lambda _: self._wake.set())
            try:
                await self._talk(partial(self._say, line), lambda: hearing.done() or not line.is_current())
            finally:
                hearing.cancel()
                (fault,) = await asyncio.gather(hearing, return_exceptions=True)
        if isinstance(fault, Exception) and not isinstance(fault, StoreError):
            raise fault

    async def _hear_all(self, line: Subscription) -> None:
        while True:
            said = await line.hear()
            if said is not None:
                speaker, _, message = said.decode().partition(" ")
                if speaker != self._me:
                    self._hear(message)

    async def _say(self, line: Subscription, messages: Sequence[str]) -> None:
        await line.say("PING")
        if self._cluster and messages:
            words = [("SPUBLISH", self._channel, f"{self._me} {message}") for message in messages]
            await self._cluster.read([Call(slot_of(TAG), one) for one in words])
