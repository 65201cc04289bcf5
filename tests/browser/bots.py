"""A bot that does what a test tells it to. Servers of the tests run a copy of this file, which lies in their folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from chatstate import Choice, Media, Turn

BOMB = "<img src=x onerror='window.hacked = 1'><script>window.hacked = 1</script>"


async def obedient(turn: Turn) -> None:
    """The first word of a message says what is wanted, the second one on which port somebody tells more."""
    word, _, port = turn.message.text.partition(" ")
    if word == "stream":
        await turn.reply(_told(int(port)))
    elif word == "twice":
        await turn.reply(_told(int(port)))
        await turn.reply(_told(int(port)))
    elif word == "crash" and turn.tries == 0:
        await turn.reply(_told(int(port)))
        raise RuntimeError("as it was told")
    elif word == "menu":
        await turn.reply("What would you like?", choices=[Choice("1", "Fern", "likes shade"), Choice("2", "Cactus")])
    elif word == "picture":
        await turn.reply("A fern", media=Media("https://example.org/fern.jpg"))
        await turn.reply("", media=Media("http://example.org/price-list.pdf", "document", "Prices.pdf"))
    elif word == "bomb":
        await turn.reply(
            BOMB, choices=[Choice("1", BOMB, BOMB)], media=Media("javascript:window.hacked=1", "image", BOMB)
        )
    else:
        await turn.reply(f"You said: {turn.message.text}")


async def _told(port: int) -> AsyncIterator[str]:
    """The lines that somebody writes on this port, until they end it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async for line in reader:
            yield line.decode().rstrip("\n")
    finally:
        writer.close()
