"""What a type checker makes of the client in a user's program; `make lint` checks it, nothing runs it."""

from __future__ import annotations

from typing import Any, assert_type

from chatstate import AsyncClient, Client
from chatstate.client import Conflict, Gone, Saved, Session, State


def blocking() -> None:
    with Client("http://localhost:3000", token=lambda: "cs_…") as client:
        session = client.load("a")
        assert_type(session, Session | None)
        saved = client.save("a", {"n": 1}, base=session)
        assert_type(client.append("a", "/messages", "Hello", base=saved), Saved)
        assert_type(client.update("a", lambda state: {"n": state["n"] + 1}), Session)
        with client.edit("a", default=list) as state:
            assert_type(state, Any)
        for event in client.watch("a"):
            assert_type(event, State | Gone)


async def asynchronous() -> None:
    async def token() -> str:
        return "cs_…"

    async def change(state: Any) -> None:
        state["n"] += 1

    async with AsyncClient(token=token) as client:
        assert_type(await client.load("a"), Session | None)
        assert_type(await client.update("a", change), Session)
        async with client.edit("a") as state:
            assert_type(state, Any)
        async for event in client.watch("a"):
            assert_type(event, State | Gone)
        try:
            assert_type(await client.delete("a"), bool)
        except Conflict as conflict:
            assert_type(conflict.current, Session | None)
