"""Load, change, save: `edit` and `update`, alone and with many at once."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from chatstate import AsyncClient, Client
from chatstate.client import Conflict, InvalidRequest, MergeConflict, NotFound
from tests.servers.process import ServerProcess

THREADS, TURNS = 32, 4


async def test_what_the_block_changes_is_saved(client: Any, new_id: str) -> None:
    async with client.edit(new_id) as state:
        state.setdefault("messages", []).append("Hello")
    async with client.edit(new_id) as state:
        state["messages"].append("Bye")
    session = await client.load(new_id)
    assert session.state == {"messages": ["Hello", "Bye"]}


async def test_a_block_that_changes_nothing_writes_nothing(client: Any, new_id: str) -> None:
    async with client.edit(new_id, default=lambda: {"messages": []}):
        pass
    assert await client.load(new_id) is None
    saved = await client.save(new_id, text='{ "n": 1.0 }')
    async with client.edit(new_id) as state:
        state["n"] = 1.0
    assert (await client.load(new_id)).etag == saved.etag


async def test_an_exception_in_the_block_saves_nothing(client: Any, new_id: str) -> None:
    saved = await client.save(new_id, {"n": 1})
    with pytest.raises(KeyError, match="of the bot"):
        async with client.edit(new_id) as state:
            state["n"] = 2
            raise KeyError("of the bot")
    with pytest.raises(InvalidRequest):
        async with client.edit(new_id) as state:
            state["n"] = {1, 2}
    assert (await client.load(new_id)).etag == saved.etag


async def test_without_a_default_an_absent_session_is_not_found(client: Any, new_id: str) -> None:
    with pytest.raises(NotFound):
        async with client.edit(new_id, default=None):
            pytest.fail("there is nothing to edit")
    with pytest.raises(NotFound):
        await client.update(new_id, lambda state: state, default=None)


async def test_only_dicts_and_lists_can_be_edited_in_place(client: Any, new_id: str) -> None:
    await client.save(new_id, "a text")
    with pytest.raises(TypeError, match=r"use update\(\)"):
        async with client.edit(new_id):
            pytest.fail("a str cannot be changed in place")
    assert (await client.update(new_id, str.upper)).state == "A TEXT"


async def test_what_others_have_saved_meanwhile_is_merged(client: Any, new_id: str) -> None:
    await client.save(new_id, {"messages": ["a"], "step": "language", "n": 1})
    async with client.edit(new_id) as state:
        state["messages"].append("mine")
        state["step"] = "age"
        await client.append(new_id, "/messages", "theirs")
        await client.patch(new_id, merge={"language": "de"})
    merged = {"messages": ["a", "theirs", "mine"], "step": "age", "n": 1, "language": "de"}
    assert (await client.load(new_id)).state == merged


async def test_two_who_begin_a_session_at_the_same_moment_are_merged(client: Any, new_id: str) -> None:
    async with client.edit(new_id) as state:
        state["messages"] = ["mine"]
        await client.save(new_id, {"messages": ["theirs"]})
    assert (await client.load(new_id)).state == {"messages": ["theirs", "mine"]}


async def test_a_change_of_the_same_place_is_a_conflict_and_nothing_is_written(client: Any, new_id: str) -> None:
    await client.save(new_id, {"step": "language", "n": 1})
    with pytest.raises(MergeConflict) as conflict:
        async with client.edit(new_id) as state:
            state["step"] = "age"
            state["n"] = 2
            theirs = await client.patch(new_id, merge={"step": "payment"})
    assert conflict.value.paths == ("/step",)
    assert conflict.value.etag == conflict.value.current.etag == theirs.etag
    session = await client.load(new_id)
    assert (session.etag, session.state) == (theirs.etag, {"step": "payment", "n": 1})


async def test_an_edit_does_not_bring_a_deleted_session_back(client: Any, new_id: str) -> None:
    await client.save(new_id, {"n": 1})
    with pytest.raises(Conflict) as conflict:
        async with client.edit(new_id) as state:
            state["n"] = 2
            await client.delete(new_id)
    assert conflict.value.etag is None
    assert await client.load(new_id) is None


async def test_a_state_that_is_no_longer_json_is_not_overwritten(client: Any, new_id: str) -> None:
    await client.save(new_id, {"n": 1})
    with pytest.raises(Exception, match="state_not_json"):
        async with client.edit(new_id) as state:
            state["n"] = 2
            await client.save(new_id, text="encrypted", overwrite=True)
    assert (await client.load(new_id)).text == "encrypted"


async def test_update_gives_the_session_as_it_was_saved(client: Any, new_id: str) -> None:
    def change(state: Any) -> None:
        state["n"] = state.get("n", 0) + 1

    first = await client.update(new_id, change, expires_in=60)
    second = await client.update(new_id, lambda state: {"n": state["n"] + 1}, default=None)
    assert (first.state, second.state) == ({"n": 1}, {"n": 2})
    assert (await client.load(new_id)) == second


async def test_an_exception_in_the_change_saves_nothing(client: Any, new_id: str) -> None:
    def change(state: Any) -> None:
        state["n"] = 1
        raise KeyError("of the bot")

    with pytest.raises(KeyError, match="of the bot"):
        await client.update(new_id, change)
    assert await client.load(new_id) is None


def test_a_stop_iteration_of_the_change_is_an_exception_like_others(process: ServerProcess, new_id: str) -> None:
    with Client(process.base_url) as client, pytest.raises(StopIteration):
        client.update(new_id, lambda state: next(iter(())))


async def test_a_default_is_not_shared(client: Any, new_id: str) -> None:
    initial: dict[str, Any] = {"messages": []}
    async with client.edit(new_id, default=lambda: initial) as state:
        state["messages"].append("Hello")
    assert initial == {"messages": []}


def test_many_threads_lose_nothing(process: ServerProcess, new_id: str) -> None:
    """Updates and edits of one session from threads that share a client."""
    begin = threading.Barrier(THREADS)
    with Client(process.base_url) as client:

        def turns(thread: int) -> None:
            begin.wait(20)
            for turn in range(TURNS):

                def change(state: Any, said: str = f"{thread}.{turn}") -> None:
                    state.setdefault("messages", []).append(said)

                if thread % 4:
                    client.update(new_id, change)
                else:
                    with client.edit(new_id) as state:
                        change(state)

        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(turns, range(THREADS)))
        session = client.load(new_id)
    assert session
    messages = session.state["messages"]
    assert sorted(messages) == sorted(f"{thread}.{turn}" for thread in range(THREADS) for turn in range(TURNS))
    for thread in range(THREADS):  # what one thread says stays in its order
        said = [message for message in messages if message.startswith(f"{thread}.")]
        assert said == [f"{thread}.{turn}" for turn in range(TURNS)]


async def test_many_tasks_lose_nothing(process: ServerProcess, new_id: str) -> None:
    async def change(state: Any) -> Any:
        await asyncio.sleep(0)
        return {"n": state.get("n", 0) + 1}

    async with AsyncClient(process.base_url) as client:
        await asyncio.gather(*(client.update(new_id, change) for _ in range(THREADS)))
        session = await client.load(new_id)
    assert session
    assert session.state == {"n": THREADS}
