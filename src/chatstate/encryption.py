"""Encryption at rest: states and records as they lie in the database, for whoever reads that without the keys.

A sealed text is `$chatstate$aes256gcm$<key id>$<data>`, where the data is unpadded base64 (RFC 4648) of a nonce of 12
bytes, the ciphertext, and a tag of 16 bytes: AES-256-GCM (NIST SP 800-38D). Its key is derived (HKDF-Expand, RFC
5869) from one of the ring for each collection and name, so that no key ever meets as many nonces as section 8.3 there
allows; and the collection, the name and the head are authenticated with it: a text that is moved to another session's
row, or to another collection, cannot be opened.

A text without the mark `$chatstate$` lies there as it is: from before encryption, or from another program. One that has
the mark by itself, and is not encrypted, is kept behind `$chatstate$plain$`.
"""

from __future__ import annotations

import re
import secrets
from base64 import b64decode, b64encode
from binascii import a2b_base64, b2a_base64
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from chatstate.errors import StateUnreadable

MARK = "$chatstate$"
SEALED = f"{MARK}aes256gcm$"
PLAIN = f"{MARK}plain$"

KEY_BYTES = 32
_ID_LENGTH = 8
_NONCE_BYTES, _TAG_BYTES = 12, 16

HEAD_LENGTH = len(SEALED) + _ID_LENGTH + 1
"""How long the head of a sealed text is, in bytes."""

OVERHEAD = _NONCE_BYTES + _TAG_BYTES
"""How many bytes more than the text the data has."""

_KEYS_AT_ONCE = 10_000
"""How many derived keys are remembered."""


def new_key() -> str:
    """The text of a new key, for `KeyRing.parse`."""
    return b64encode(secrets.token_bytes(KEY_BYTES)).decode()


class KeyRing:
    """Keys by their ids, which follow from them. The first one seals, all of them open; with none nothing is sealed."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        self._keys = {_id_of(key): key for key in keys}
        self.newest = _id_of(keys[0]) if keys else None
        self._cipher = lru_cache(_KEYS_AT_ONCE)(self._derive)

    @classmethod
    def parse(cls, text: str) -> KeyRing:
        """The keys in base64, separated by commas or white space, the newest first. Raises ValueError."""
        items = [item for item in re.split(r"[\s,]+", text) if item]
        return cls([_parse_key(item) for item in items or [""]])

    @property
    def head(self) -> str:
        """What the texts begin with that are sealed with the newest key; empty without one."""
        return f"{SEALED}{self.newest}$" if self.newest else ""

    def seal(self, collection: str, name: str, text: str) -> str:
        """The text as it is to lie in the database."""
        if self.newest is None:
            return PLAIN + text if text.startswith(MARK) else text
        nonce = secrets.token_bytes(_NONCE_BYTES)
        bound = _bound(self.head, collection, name)
        data = nonce + self._cipher(self.newest, collection, name).encrypt(nonce, text.encode(), bound)
        return self.head + _encoded(data)

    def open(self, collection: str, name: str, text: str) -> str:
        """The text as it was sealed. Raises `StateUnreadable`, which says nothing of the text."""
        if not text.startswith(MARK):
            return text
        if text.startswith(PLAIN):
            return text.removeprefix(PLAIN)
        key_id = text[len(SEALED) : HEAD_LENGTH - 1]
        if not text.startswith(SEALED) or text[HEAD_LENGTH - 1 : HEAD_LENGTH] != "$":
            raise StateUnreadable(_DAMAGED)
        if key_id not in self._keys:
            raise StateUnreadable(_missing(key_id), key_id)
        try:
            data = _decoded(text[HEAD_LENGTH:])
            nonce, sealed = data[:_NONCE_BYTES], data[_NONCE_BYTES:]
            bound = _bound(text[:HEAD_LENGTH], collection, name)
            return self._cipher(key_id, collection, name).decrypt(nonce, sealed, bound).decode()
        except (InvalidTag, ValueError):
            raise StateUnreadable(_DAMAGED, key_id) from None

    def is_current(self, text: str) -> bool:
        """Whether the text lies in the database as it would if it were sealed now."""
        if self.newest:
            return text.startswith(self.head)
        return not text.startswith(SEALED)

    def _derive(self, key_id: str, collection: str, name: str) -> AESGCM:
        info = b"chatstate" + _bound("", collection, name)
        return AESGCM(HKDFExpand(SHA256(), KEY_BYTES, info).derive(self._keys[key_id]))


def _parse_key(item: str) -> bytes:
    digits = item.rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        key = b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError(
            "must be keys of 32 bytes in base64, the newest first, separated by commas; make one with: "
            "chatstate keys new-encryption-key"
        )
    return key


def _id_of(key: bytes) -> str:
    return sha256(b"chatstate key id" + key).hexdigest()[:_ID_LENGTH]


def _bound(head: str, collection: str, name: str) -> bytes:
    """What a sealed text is bound to, each part with its length, so that different parts are never the same bytes."""
    parts = (head.encode(), collection.encode(), name.encode(errors="surrogatepass"))
    return b"".join(len(part).to_bytes(4) + part for part in parts)


def _encoded(data: bytes) -> str:
    return b2a_base64(data, newline=False).rstrip(b"=").decode()


def _decoded(data: str) -> bytes:
    """Strictly, so that no two texts are the same data: also the bits that the last digit has too many."""
    decoded = a2b_base64(data + "=" * (-len(data) % 4), strict_mode=True)
    odd = len(decoded) % 3
    if len(decoded) < OVERHEAD or (odd and _encoded(decoded[-odd:]) != data[-odd - 1 :]):
        raise ValueError("base64")
    return decoded


def _missing(key_id: str) -> str:
    return (
        f"This is encrypted with the key {key_id}, which is missing here. Add it to CHATSTATE_ENCRYPTION_KEYS. "
        "Nothing is lost."
    )


_DAMAGED = (
    "The state cannot be decrypted: it was changed in the database, or moved there from another session. Bring back a "
    "backup of it."
)
