"""Hashes that stand for names: of sessions in logs, of people and messages in the database. Whoever has no key cannot
find out, by trying, whose they are.
"""

from __future__ import annotations

import hmac
from datetime import datetime
from hashlib import sha256
from secrets import token_hex

from msgspec import Struct

from chatstate.errors import StoreUnavailable
from chatstate.records import Records
from chatstate.stores.base import Store

_LENGTH = 32  # hexadecimal digits: 128 bits


class HashKey(Struct, frozen=True):
    """The key of hashes, in hexadecimal digits."""

    key: str


async def audit_key(store: Store, now: datetime) -> bytes:
    """The key of the hashes that stand for sessions in audit logs."""
    return await _key(store, "audit_keys", "sessions", now)


async def digest_key(store: Store, now: datetime) -> bytes:
    """The key of the digests by which repeated requests are known: without it they tell who reads the database, and
    guesses a body, that the guess is right."""
    return await _key(store, "digest_keys", "requests", now)


async def mail_key(store: Store, now: datetime) -> bytes:
    """The key of the hashes that stand for people of channels, and for messages, in whose ids are phone numbers."""
    return await _key(store, "mail_keys", "names", now)


async def _key(store: Store, collection: str, name: str, now: datetime) -> bytes:
    """The same for all servers on the store and for ever; made when it is first asked for."""
    kept = Records(store, collection, HashKey)
    await kept.put(name, HashKey(token_hex(32)), now, expect=0)
    found = await kept.get(name, now)
    if found is None:
        raise StoreUnavailable
    return bytes.fromhex(found.key)


def session_hash(key: bytes, user_session_id: str) -> str:
    """What stands in the log for a session: HMAC-SHA-256 of its id, the first 128 bits, in hexadecimal digits."""
    return _hash(key, user_session_id)


def name_hash(key: bytes, *parts: str) -> str:
    """What stands for something that these parts name together; the same kind of hash."""
    return _hash(key, "".join(f"{len(part)}:{part}" for part in parts))


def _hash(key: bytes, text: str) -> str:
    return hmac.digest(key, text.encode(errors="replace"), sha256).hex()[:_LENGTH]
