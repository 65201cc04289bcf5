"""Whose address it is: that of the peer, or, when the peer is a proxy that we trust, the one that the proxy names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

from chatstate.http.messages import Headers

Network = IPv4Network | IPv6Network

FORWARDING = frozenset(
    (
        "forwarded",
        "via",
        "x-real-ip",
        "x-client-ip",
        "x-cluster-client-ip",
        "x-original-forwarded-for",
        "x-envoy-external-address",
        "cf-connecting-ip",
        "fastly-client-ip",
        "true-client-ip",
    )
)
"""Header fields that proxies add, beside all that begin with `x-forwarded-` (RFC 7239; RFC 9110, section 7.6.3)."""


def is_forwarded(headers: Headers) -> bool:
    """Whether a proxy says that it has forwarded the request."""
    return any(name in FORWARDING or name.startswith("x-forwarded-") for name in headers.names())


def peer_address(peer: Sequence[Any] | None) -> str:
    """The address in a pair of address and port."""
    return _normal(str(peer[0] or "") if peer else "")


@lru_cache(1024)
def _normal(text: str) -> str:
    """The address as it is usually written; what is none stays as it is."""
    address = _address(text)
    return text if address is None else str(address)


@lru_cache(1024)
def is_this_machine(peer: str) -> bool:
    """Whether the peer is on this machine. What is no address is no network: a Unix socket, or a test's client."""
    address = _address(peer)
    return address is None or address.is_loopback


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """The address; an IPv4 one that is written as IPv6 (RFC 4291, section 2.5.5.2) as what it is."""
    try:
        found = ip_address(text)
    except ValueError:
        return None
    return (isinstance(found, IPv6Address) and found.ipv4_mapped) or found


def client_address(peer: str, headers: Headers, trusted: tuple[Network, ...]) -> str:
    """The address of the client: in X-Forwarded-For the last one that is not of a proxy that we trust.

    Only what trusted proxies have written there counts: whatever stands further left, anybody may have written.
    """
    address = peer
    names = [_without_port(name.strip()) for line in headers.all("x-forwarded-for") for name in line.split(",")]
    while names and _is_in(address, trusted):
        address = names.pop()
    return address


_WITH_PORT = re.compile(r"\[([^]]*)\](?::\d+)?|([\d.]+):\d+")


def _without_port(name: str) -> str:
    """The address alone: some proxies name the client's port, too, which is another one for each connection."""
    match = _WITH_PORT.fullmatch(name)
    return (match[1] or match[2] or "") if match else name


def client_scheme(peer: str, headers: Headers, trusted: tuple[Network, ...], scheme: str) -> str:
    """`https` if a trusted proxy says that the client came by TLS."""
    said = headers.get("x-forwarded-proto").strip().lower()
    return said if said in ("http", "https") and _is_in(peer, trusted) else scheme


@lru_cache(1024)
def _is_in(address: str, networks: tuple[Network, ...]) -> bool:
    found = _address(address)
    return found is not None and any(found in network for network in networks)


@lru_cache(1024)
def block_of(address: str) -> str:
    """What the limits count an address as: itself, and of IPv6 the network of 64 bits, which is one client's."""
    found = _address(address)
    if isinstance(found, IPv6Address):
        return str(IPv6Network((int(found) >> 64 << 64, 64)))
    return _normal(address)
