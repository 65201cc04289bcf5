"""Small files of each kind that people send, made here: a picture, a sticker, a film, a voice, a document."""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from typing import Any, Literal, NamedTuple

Kind = Literal["image", "video", "audio", "voice", "document", "sticker"]


class Sample(NamedTuple):
    """A file, as Meta keeps it for a message.

    id        by which the Graph API finds it
    type      the type of the message that brings it
    filename  which only documents have
    """

    id: str
    type: str
    media_type: str
    content: bytes
    filename: str = ""

    def object(self, url: str, caption: str = "", *, voice: bool = False) -> dict[str, Any]:
        """How it stands in a message; `url` is where it can be downloaded, with the access token."""
        digest = b64encode(sha256(self.content).digest()).decode()
        found: dict[str, Any] = {"mime_type": self.media_type, "sha256": digest, "id": self.id, "url": url}
        if caption and self.type in ("image", "video", "document"):
            found["caption"] = caption
        if self.filename:
            found["filename"] = self.filename
        if self.type == "audio":
            found["voice"] = voice
        if self.type == "sticker":
            found["animated"] = False
        return found

    def described(self, url: str) -> dict[str, Any]:
        """How the Graph API describes it."""
        return {
            "messaging_product": "whatsapp",
            "url": url,
            "mime_type": self.media_type,
            "sha256": sha256(self.content).hexdigest(),
            "file_size": len(self.content),
            "id": self.id,
        }


def _png() -> bytes:
    """A sunset of 96 × 64 pixels."""
    rows = b"".join(b"\0" + b"".join(_sky(x, y) for x in range(96)) for y in range(64))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 96, 64, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, 9)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _sky(x: int, y: int) -> bytes:
    if y < 44 and (x - 48) ** 2 + (y - 34) ** 2 < 196:
        return bytes((255, 214, 102))
    return bytes((40, 70 + y // 2, 110 + y)) if y >= 44 else bytes((250 - y, 110 + y, 90 + y))


def _webp() -> bytes:
    """A square of 512 × 512 pixels (RFC 9649): where each channel has one value, a pixel takes no bits at all."""
    bits = [(511, 14), (511, 14), (0, 1), (0, 3), (0, 3)]  # sizes, no alpha, version; no transform, cache, groups
    for value in (160, 46, 92, 255, 0):  # green, red, blue, alpha, distance
        bits += [(0b101, 3), (value, 8)]  # a code of one symbol, which has eight bits
    number, shift = 0, 0
    for value, width in bits:
        number |= value << shift
        shift += width
    data = b"\x2f" + number.to_bytes(-(-shift // 8), "little")
    chunk = b"VP8L" + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


def _mp4() -> bytes:
    """A film of two seconds without a track."""

    def box(name: bytes, *content: bytes) -> bytes:
        body = b"".join(content)
        return struct.pack(">I", len(body) + 8) + name + body

    unity = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    header = struct.pack(">IIIIIIHHII", 0, 0, 0, 1000, 2000, 0x10000, 0x100, 0, 0, 0) + unity + bytes(24)
    movie = box(b"moov", box(b"mvhd", header + struct.pack(">I", 1)))
    return box(b"ftyp", b"isom", struct.pack(">I", 512), b"isomiso2mp41") + movie + box(b"mdat")


def _ogg() -> bytes:
    """A second of silence, in Opus (RFC 7845)."""
    head = b"OpusHead" + struct.pack("<BBHIHB", 1, 1, 312, 48000, 0, 0)
    tags = b"OpusTags" + struct.pack("<I", 9) + b"chatstate" + struct.pack("<I", 0)
    silence = [b"\xf8\xff\xfe"] * 50  # each of 20 ms
    pages = [(2, 0, [head]), (0, 0, [tags]), (4, 48000, silence)]
    return b"".join(_ogg_page(flags, number, end, packets) for number, (flags, end, packets) in enumerate(pages))


def _ogg_page(flags: int, number: int, end: int, packets: list[bytes]) -> bytes:
    """A page of whole packets (RFC 3533, section 6)."""
    lacing = bytes(map(len, packets))
    start = struct.pack("<4sBBqII", b"OggS", 0, flags, end, 1, number)
    rest = bytes([len(lacing)]) + lacing + b"".join(packets)
    return start + struct.pack("<I", _ogg_checksum(start + bytes(4) + rest)) + rest


def _ogg_checksum(data: bytes) -> int:
    remainder = 0
    for byte in data:
        remainder ^= byte << 24
        for _ in range(8):
            remainder = (remainder << 1 ^ (0x04C11DB7 if remainder & 0x80000000 else 0)) & 0xFFFFFFFF
    return remainder


def _pdf() -> bytes:
    """One page with a line on it."""
    line = b"BT /F1 24 Tf 72 720 Td (A sample of the emulator) Tj ET"
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%b\nendstream" % (len(line), line),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    file, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(b"%010d 00000 n \n" % len(file))
        file += b"%d 0 obj%b endobj\n" % (number, content)
    table = b"xref\n0 6\n0000000000 65535 f \n" + b"".join(places)
    return file + table + b"trailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % len(file)


_MAKERS: dict[Kind, tuple[str, str, str, Callable[[], bytes], str]] = {
    "image": ("900000000000001", "image", "image/png", _png, ""),
    "video": ("900000000000002", "video", "video/mp4", _mp4, ""),
    "audio": ("900000000000003", "audio", "audio/ogg; codecs=opus", _ogg, ""),
    "voice": ("900000000000004", "audio", "audio/ogg; codecs=opus", _ogg, ""),
    "document": ("900000000000005", "document", "application/pdf", _pdf, "Sample – Übersicht.pdf"),
    "sticker": ("900000000000006", "sticker", "image/webp", _webp, ""),
}

SAMPLES: dict[Kind, Sample] = {
    kind: Sample(media_id, message_type, media_type, make(), filename)
    for kind, (media_id, message_type, media_type, make, filename) in _MAKERS.items()
}

BY_ID = {sample.id: sample for sample in SAMPLES.values()}
