"""`make cluster`: a Valkey Cluster of six nodes, and two servers behind a proxy, on this machine, for people to try.

Everything ends with Ctrl+C, and what was saved goes with it: the nodes keep their files in temporary folders.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from itertools import cycle
from pathlib import Path
from threading import Thread

from tests.servers.ports import LOOPBACK
from tests.servers.process import ServerProcess
from tests.servers.valkey import ValkeyCluster

SHARDS, REPLICAS, SERVERS = 3, 1, 2
_CHUNK = 65_536


class RoundRobin:
    """Passes each connection on to the next server, and no byte is changed; one that does not answer is passed over."""

    def __init__(self, ports: list[int]) -> None:
        self._ports = cycle(ports)
        self._count = len(ports)

    async def serve(self, port: int) -> asyncio.Server:
        """Raises OSError when the port is taken."""
        return await asyncio.start_server(self._accept, LOOPBACK, port)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            for _ in range(self._count):
                with suppress(OSError):
                    others = await asyncio.open_connection(LOOPBACK, next(self._ports))
                    break
            else:
                return
            with closing(others[1]):
                await asyncio.gather(_pump(reader, others[1]), _pump(others[0], writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


def _said(cluster: ValkeyCluster, servers: list[ServerProcess], port: int, url: str) -> str:
    nodes = []
    for shard in range(cluster.shards):
        primary = cluster.primary(shard)
        for node in cluster.shard(shard):
            role = "primary" if node is primary else "replica"
            nodes.append(f"  shard {shard + 1}   {role} {node.host}:{node.port}, process {node.pid}")
    victim = cluster.primary(0).pid
    processes = [f"  server {n}  {server.base_url}, process {server.pid}" for n, server in enumerate(servers, 1)]
    return f"""\
A Valkey Cluster of {len(cluster.nodes)} nodes, and {len(servers)} servers behind a proxy that takes turns:

  http://localhost:{port}    (chat page: /demo; what it is: /readyz)

{chr(10).join(nodes + processes)}

Try it:

  curl -X POST http://localhost:{port}/chat-state-sessions -H "Content-Type: application/json" \\
    -d '{{"user_session_id": "session_12345", "chat_state": "{{\\"messages\\": []}}"}}'
  curl http://localhost:{port}/chat-state-sessions/session_12345

Kill a primary: its replica takes its place within seconds. What it had acknowledged is there, and loads go on; saves to
that shard are refused until every replica can confirm them again. Press Enter, and the node is started again.

  kill -9 {victim}

The store, for a server of your own or `chatstate copy`: {url}
Stop with Ctrl+C; what was saved goes with it.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="make cluster", description=__doc__)
    parser.add_argument("--port", type=int, default=3000, help="of the proxy")
    port: int = parser.parse_args().port
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # who ends it shall not leave the nodes behind
    with ExitStack() as stack:
        cluster = stack.enter_context(ValkeyCluster(SHARDS, REPLICAS, {"cluster-node-timeout": "3000"}))
        seeds = ",".join(f"{node.host}:{node.port}" for node in cluster.nodes)
        url = f"valkey://:{cluster.password}@{seeds}"
        servers = []
        for _ in range(SERVERS):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chatstate-cluster-")))
            servers.append(stack.enter_context(ServerProcess(url, folder)))
        Thread(target=_start_again, args=(cluster,), daemon=True).start()
        try:
            asyncio.run(_serve(servers, port, lambda: _said(cluster, servers, port, url)))
        except KeyboardInterrupt:
            print("\nStopped.")
        except OSError as error:
            sys.exit(f"Port {port} is taken ({error.strerror}). Try: make cluster ARGS='--port {port + 10}'")


def _start_again(cluster: ValkeyCluster) -> None:
    """Start the nodes that were killed, at each line that is typed."""
    for _ in sys.stdin:
        for node in cluster.nodes:
            if not node.running:
                node.start()
                print(f"127.0.0.1:{node.port} is back, process {node.pid}", flush=True)


async def _serve(servers: list[ServerProcess], port: int, greet: Callable[[], str]) -> None:
    async with await RoundRobin([server.port for server in servers]).serve(port) as listener:
        print(await asyncio.to_thread(greet), flush=True)
        await listener.serve_forever()


if __name__ == "__main__":
    main()
