"""All that lies in a Valkey Cluster under a prefix, as its primaries tell."""

from __future__ import annotations

from chatstate.stores.valkey_cluster import Cluster
from chatstate.stores.valkey_node import parse_url

_READ = {b"string": ("GET",), b"hash": ("HGETALL",), b"zset": ("ZRANGE", "0", "-1"), b"set": ("SMEMBERS",)}
"""What shows all of a key, by its type; KeyError for another."""


async def keys_in(cluster: Cluster, prefix: str) -> dict[bytes, tuple[str, int]]:
    """All keys, each with the place of the primary that has it."""
    places = [(shard.host, shard.port) for shard in cluster.shards]
    return {key: place for place in places for key in await cluster.ask(place, "KEYS", f"{prefix}*")}


async def contents_of(url: str) -> dict[bytes, list[bytes]]:
    """All keys under the prefix of this store URL, each with the texts that it holds."""
    seed = parse_url(url)
    cluster = Cluster(seed)
    await cluster.open()
    found = {}
    for key, place in (await keys_in(cluster, seed.prefix)).items():
        command, *bounds = _READ[await cluster.ask(place, "TYPE", key)]
        value = await cluster.ask(place, command, key, *bounds)
        found[key] = [value] if isinstance(value, bytes) else list(value)
    await cluster.close()
    return found
