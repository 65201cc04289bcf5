"""What a Valkey Cluster must be set to so that nothing acknowledged is lost, and how to set it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from chatstate.stores.valkey_cluster import Cluster, CommandRefused, Shard

_ASKED = ("appendonly", "appendfsync", "maxmemory-policy")

_log = logging.getLogger(__name__)


async def faults(cluster: Cluster) -> list[str]:
    """What would lose acknowledged writes, each with what mends it, in words for people. Raises `StoreUnavailable`."""
    found: list[str] = []
    for shard in cluster.shards:
        found += _of_shard(shard)
        for place in shard.nodes:
            settings = await _settings(cluster, place)
            found += [f"{place[0]}:{place[1]} has {fault}" for fault in _of_node(settings)]
    return found


async def _settings(cluster: Cluster, place: tuple[str, int]) -> dict[str, str]:
    try:
        flat = await cluster.ask(place, "CONFIG", "GET", *_ASKED)
    except CommandRefused:
        _log.warning(
            "the settings of Valkey at %s:%d cannot be asked for (CONFIG GET), so see to it yourself that it has: "
            "appendonly yes, appendfsync always, maxmemory-policy noeviction",
            *place,
        )
        return {}
    return {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _of_shard(shard: Shard) -> Iterator[str]:
    if not shard.replicas:
        place = f"{shard.host}:{shard.port}"
        yield f"the shard of {place} has no replica: a failure of its machine loses it (CLUSTER REPLICATE)"


def _of_node(settings: dict[str, str]) -> Iterator[str]:
    if settings.get("appendonly") == "no":
        yield "appendonly no: it keeps nothing on its disk (CONFIG SET appendonly yes)"
    if settings.get("appendfsync") == "no":
        yield "appendfsync no: a power failure takes what it has acknowledged (CONFIG SET appendfsync always)"
    elif settings.get("appendfsync") == "everysec":
        _log.warning("Valkey has appendfsync everysec: each save takes up to a second. CONFIG SET appendfsync always")
    if settings.get("maxmemory-policy", "noeviction") != "noeviction":
        policy = settings["maxmemory-policy"]
        yield f"maxmemory-policy {policy}: it forgets sessions when it is full (CONFIG SET maxmemory-policy noeviction)"
