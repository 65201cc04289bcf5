"""Sealing and opening: what it is made of, what it is bound to, and what is said when it cannot be opened."""

from __future__ import annotations

from base64 import b64decode, b64encode, urlsafe_b64encode

import pytest
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from chatstate.encryption import HEAD_LENGTH, OVERHEAD, PLAIN, SEALED, KeyRing, new_key
from chatstate.errors import StateUnreadable

KEY, OLDER = bytes(range(32)), bytes(range(32, 64))
RING = KeyRing([KEY])
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(TEXTS, TEXTS, TEXTS)
def test_what_was_sealed_is_opened_as_it_was(collection: str, name: str, text: str) -> None:
    sealed = RING.seal(collection, name, text)
    assert sealed.startswith(SEALED)
    assert RING.open(collection, name, sealed) == text
    assert (len(sealed) - HEAD_LENGTH) * 3 // 4 - OVERHEAD == len(text.encode())


@given(TEXTS)
def test_without_a_key_every_text_comes_back_too(text: str) -> None:
    ring = KeyRing()
    for tried in (text, f"$chatstate${text}", f"{SEALED}{text}", f"{PLAIN}{text}"):
        assert ring.open("c", "n", ring.seal("c", "n", tried)) == tried


def test_a_sealed_text_is_aes_256_gcm_under_a_key_of_hkdf() -> None:
    """Computed once more from the primitives (RFC 5869, section 2.3; NIST SP 800-38D)."""
    sealed = RING.seal("chat_state", "session_1", "Grüße")
    head, data = sealed[:HEAD_LENGTH], sealed[HEAD_LENGTH:]
    assert head == f"$chatstate$aes256gcm${RING.newest}$"
    raw = b64decode(data + "=" * (-len(data) % 4))

    def bound(text: str) -> bytes:
        parts = (text.encode(), b"chat_state", b"session_1")
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)

    expand = hmac.HMAC(KEY, hashes.SHA256())
    expand.update(b"chatstate" + bound("") + b"\x01")
    decryptor = Cipher(algorithms.AES256(expand.finalize()), modes.GCM(raw[:12], raw[-16:])).decryptor()
    decryptor.authenticate_additional_data(bound(head))
    assert (decryptor.update(raw[12:-16]) + decryptor.finalize()).decode() == "Grüße"


def test_the_same_text_is_never_sealed_the_same_way_twice() -> None:
    assert len({RING.seal("c", "n", "text") for _ in range(1000)}) == 1000


@pytest.mark.parametrize(("collection", "name"), [("c", "other"), ("other", "n"), ("cn", ""), ("", "cn"), ("n", "c")])
def test_a_text_that_was_moved_cannot_be_opened(collection: str, name: str) -> None:
    with pytest.raises(StateUnreadable) as caught:
        RING.open(collection, name, RING.seal("c", "n", "text"))
    assert "moved there from another session" in caught.value.message


def test_no_changed_character_goes_unnoticed() -> None:
    sealed = RING.seal("c", "n", "text")
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_"
    for place in range(len(SEALED), len(sealed)):
        for digit in (*digits, "=", "!", " ", "é", "$", ""):
            changed = sealed[:place] + digit + sealed[place + 1 :]
            if changed != sealed:
                with pytest.raises(StateUnreadable):
                    RING.open("c", "n", changed)


def test_no_truncated_and_no_longer_text_goes_unnoticed() -> None:
    sealed = RING.seal("c", "n", "some text")
    for changed in (
        *(sealed[:length] for length in range(len("$chatstate$"), len(sealed))),
        sealed + "A",
        sealed + "=",
    ):
        with pytest.raises(StateUnreadable):
            RING.open("c", "n", changed)


def test_any_key_of_the_ring_opens_and_the_first_one_seals() -> None:
    old, both = KeyRing([OLDER]), KeyRing([KEY, OLDER])
    sealed = old.seal("c", "n", "text")
    assert both.open("c", "n", sealed) == "text"
    assert both.seal("c", "n", "text").startswith(both.head)
    assert both.head == RING.head
    assert [both.is_current(text) for text in (sealed, both.seal("c", "n", "text"), "text")] == [False, True, False]
    assert [KeyRing().is_current(text) for text in (sealed, "text", f"{PLAIN}text")] == [False, True, True]


@pytest.mark.parametrize("ring", [KeyRing([OLDER]), KeyRing()], ids=["another key", "no key"])
def test_a_missing_key_is_named_and_the_text_is_not(ring: KeyRing) -> None:
    with pytest.raises(StateUnreadable) as caught:
        ring.open("c", "n", RING.seal("c", "n", "secret text"))
    assert caught.value.key_id == RING.newest
    assert f"the key {RING.newest}, which is missing here" in caught.value.message
    assert "secret" not in caught.value.message


def test_keys_are_read_in_any_base64() -> None:
    keys = [b"\xfb\xff" * 16, KEY, OLDER]
    texts = [b64encode(key).decode() for key in keys]
    spellings = (
        *(",".join(texts), "\n".join(texts), " , ".join(texts) + "\n", ",".join(text.rstrip("=") for text in texts)),
        ",".join(urlsafe_b64encode(key).decode() for key in keys),
    )
    heads = {KeyRing.parse(spelling).head for spelling in spellings}
    assert heads == {KeyRing(keys).head}
    sealed = KeyRing([OLDER]).seal("c", "n", "text")
    assert all(KeyRing.parse(spelling).open("c", "n", sealed) == "text" for spelling in spellings)


@pytest.mark.parametrize("text", ["x", "secret" * 5, b64encode(KEY[:31]).decode(), b64encode(KEY + b"1").decode(), "é"])
def test_what_is_no_key_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ValueError, match="chatstate keys new-encryption-key") as caught:
        KeyRing.parse(text)
    assert text not in str(caught.value) or len(text) == 1


def test_new_keys_differ() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert {len(b64decode(key)) for key in keys} == {32}
