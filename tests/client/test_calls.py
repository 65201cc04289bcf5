"""Each call of the clients, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import httpx
import pytest

from chatstate import AsyncClient, Client
from chatstate.client import (
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    PatchConflict,
    StateNotJson,
    TooLarge,
    Unauthorized,
)
from chatstate.model import Scope
from tests.client.conftest import Connect
from tests.http.credentials import make_key
from tests.servers.process import ServerProcess

CHAT = {"messages": ["Hello", "schön 👍", "a\0b"], "step": None, "n": 2**70, "x": 1.0}


async def test_a_state_comes_back_as_it_was_saved(client: Any, new_id: str) -> None:
    assert await client.load(new_id) is None
    time = datetime(2025, 10, 2, 12, 0, 0, 250000, tzinfo=timezone(timedelta(hours=2)))
    saved = await client.save(new_id, CHAT, last_activity=time)
    assert (saved.id, saved.version, saved.created, saved.replayed, saved.expires_at) == (new_id, 1, True, False, None)
    session = await client.load(new_id)
    assert session.state == CHAT
    assert (session.id, session.etag, session.last_activity) == (new_id, saved.etag, time)
    assert session.last_activity.tzinfo == UTC
    assert session.text == json.dumps(CHAT, ensure_ascii=False, separators=(",", ":"))


async def test_a_base_of_nothing_is_only_for_nothing(client: Any, new_id: str) -> None:
    first = await client.save(new_id, {"n": 1}, base=await client.load(new_id))
    with pytest.raises(Conflict) as conflict:
        await client.save(new_id, {"n": 2})
    assert (conflict.value.etag, conflict.value.status, conflict.value.code) == (first.etag, 412, "precondition_failed")
    assert conflict.value.current.state == {"n": 1}
    assert conflict.value.outcome == "failed"


async def test_a_state_is_saved_in_the_place_of_the_one_it_was_made_from(client: Any, new_id: str) -> None:
    first = await client.save(new_id, {"n": 1})
    session = await client.load(new_id)
    second = await client.save(new_id, {"n": 2}, base=session)
    third = await client.save(new_id, {"n": 3}, base=second)
    assert [first.version, second.version, third.version] == [1, 2, 3]
    assert not second.created
    for old in (session, first, first.etag):
        with pytest.raises(Conflict):
            await client.save(new_id, {"n": 4}, base=old)
    await client.save(new_id, {"n": 5}, base=third.etag)
    assert (await client.load(new_id)).state == {"n": 5}


async def test_a_base_of_another_session_is_refused(client: Any, new_id: str) -> None:
    saved = await client.save(new_id, 1)
    with pytest.raises(ValueError, match="base is of session"):
        await client.save(f"{new_id} other", 2, base=saved)


async def test_overwrite_replaces_whatever_is_there(client: Any, new_id: str) -> None:
    assert (await client.save(new_id, 1, overwrite=True)).created
    assert not (await client.save(new_id, 2, overwrite=True)).created
    assert (await client.load(new_id)).state == 2
    with pytest.raises(ValueError, match="base has no meaning"):
        await client.save(new_id, 3, overwrite=True, base='"a-1"')


async def test_a_deleted_session_is_not_saved_again_by_who_has_not_seen_it(client: Any, new_id: str) -> None:
    session = await client.save(new_id, 1)
    assert await client.delete(new_id)
    assert not await client.delete(new_id)
    with pytest.raises(Conflict) as conflict:
        await client.save(new_id, 2, base=session)
    assert (conflict.value.etag, conflict.value.current) == (None, None)
    assert await client.load(new_id) is None


async def test_delete_with_a_base_erases_that_version_only(client: Any, new_id: str) -> None:
    first = await client.save(new_id, 1)
    second = await client.save(new_id, 2, base=first)
    with pytest.raises(Conflict):
        await client.delete(new_id, base=first)
    assert await client.delete(new_id, base=second)
    assert not await client.delete(new_id, base=second)


async def test_states_that_are_not_json_are_texts(client: Any, new_id: str) -> None:
    await client.save(new_id, text="no JSON: {")
    session = await client.load(new_id)
    assert session.text == "no JSON: {"
    with pytest.raises(StateNotJson):
        _ = session.state
    with pytest.raises(StateNotJson):
        async with client.edit(new_id):
            pytest.fail("a state that cannot be read is not edited")
    with pytest.raises(StateNotJson):
        await client.update(new_id, lambda state: {})
    assert (await client.load(new_id)).etag == session.etag


@pytest.mark.parametrize("state", [{1, 2}, float("nan"), float("inf"), object(), {"a": b"b"}])
async def test_what_json_cannot_say_is_refused(client: Any, new_id: str, state: object) -> None:
    with pytest.raises(InvalidRequest, match="cannot be said in JSON"):
        await client.save(new_id, state)
    assert await client.load(new_id) is None


async def test_a_lone_surrogate_can_be_in_a_state_and_not_in_a_text(client: Any, new_id: str) -> None:
    await client.save(new_id, {"cut": "\ud83d"})
    assert (await client.load(new_id)).state == {"cut": "\ud83d"}
    with pytest.raises(InvalidRequest):
        await client.save(new_id, text='"\ud83d"', overwrite=True)


@pytest.mark.parametrize("wrong", ["", ".", "..", "\ud83d", "a\nb", "a" * 256])
async def test_ids_that_cannot_be_are_refused(client: Any, wrong: str) -> None:
    with pytest.raises(InvalidRequest):
        await client.load(wrong)
    with pytest.raises(InvalidRequest):
        await client.save(wrong, 1)


@pytest.mark.parametrize(
    "unusual", ["a/b", "%41", "a b", "~", "é", "e\u0301", "a?b#c", "...", "+", "👍", "\\", "a%2Fb"]
)
async def test_ids_reach_the_server_as_they_are(client: Any, process: ServerProcess, unusual: str) -> None:
    await client.save(unusual, unusual, overwrite=True)
    assert (await client.load(unusual)).state == unusual
    async with httpx.AsyncClient(base_url=process.base_url) as plain:
        listed = (await plain.get("/chat-state-sessions", params={"prefix": unusual})).json()["sessions"]
    assert unusual in [session["user_session_id"] for session in listed]


async def test_arguments_that_contradict_each_other_are_refused(client: Any, new_id: str) -> None:
    with pytest.raises(TypeError, match="a state or a text"):
        await client.save(new_id)
    with pytest.raises(TypeError, match="a state or a text"):
        await client.save(new_id, 1, text="1")
    with pytest.raises(TypeError, match="merge or operations"):
        await client.patch(new_id)
    with pytest.raises(InvalidRequest, match="time zone"):
        await client.save(new_id, 1, last_activity=datetime(2025, 10, 2))
    with pytest.raises(InvalidRequest, match="printable"):
        await client.save(new_id, 1, idempotency_key="é")


async def test_expiry(client: Any, new_id: str) -> None:
    saved = await client.save(new_id, 1, expires_in=3600)
    assert saved.expires_at - saved.updated_at == timedelta(hours=1)


async def test_patches(client: Any, new_id: str) -> None:
    with pytest.raises(NotFound):
        await client.patch(new_id, merge={"step": "age"})
    first = await client.save(new_id, {"step": "language", "old": 1})
    second = await client.patch(new_id, merge={"step": "age", "old": None})
    assert (second.version, (await client.load(new_id)).state) == (2, {"step": "age"})
    await client.patch(new_id, operations=[{"op": "add", "path": "/n", "value": 1}], base=second)
    assert (await client.load(new_id)).state == {"step": "age", "n": 1}
    with pytest.raises(Conflict):
        await client.patch(new_id, merge={"n": 2}, base=first)
    with pytest.raises(PatchConflict) as refused:
        await client.patch(new_id, operations=[{"op": "remove", "path": "/absent"}])
    assert (refused.value.code, refused.value.status) == ("patch_conflict", 409)
    with pytest.raises(InvalidRequest) as invalid:
        await client.patch(new_id, operations=[{"op": "invent", "path": "/n"}])
    assert invalid.value.code == "invalid_patch"
    assert invalid.value.errors[0].member


async def test_append(client: Any, new_id: str) -> None:
    with pytest.raises(NotFound):
        await client.append(new_id, "/messages", "Hello")
    await client.append(new_id, "/messages", "Hello", create={"messages": []})
    await client.append(new_id, "/messages", "How", "are you?", create={"messages": []})
    assert (await client.load(new_id)).state == {"messages": ["Hello", "How", "are you?"]}
    with pytest.raises(PatchConflict):
        await client.append(new_id, "/nothing", "Hello", create={"messages": []})


async def test_a_message_that_is_delivered_twice_is_appended_once(client: Any, new_id: str) -> None:
    def deliver(key: str) -> Any:
        return client.append(new_id, "/messages", "Hello", create={"messages": []}, idempotency_key=key)

    first, again, other = [await deliver(key) for key in ("wamid.1==", "wamid.1==", "wamid.2==")]
    assert [first.replayed, again.replayed, other.replayed] == [False, True, False]
    assert again.etag == first.etag
    assert (await client.load(new_id)).state == {"messages": ["Hello", "Hello"]}


async def test_appends_to_a_session_that_nobody_has_made_yet_lose_nothing(client: Any, new_id: str) -> None:
    await asyncio.gather(*(client.append(new_id, "/messages", n, create={"messages": []}) for n in range(16)))
    assert sorted((await client.load(new_id)).state["messages"]) == list(range(16))


async def test_too_large(client: Any, new_id: str) -> None:
    with pytest.raises(TooLarge):
        await client.save(new_id, "x" * (1 << 20))


async def test_a_server_that_demands_preconditions(connect: Connect, tmp_path: Any, new_id: str) -> None:
    url, arguments = f"sqlite:///{tmp_path}/chatstate.db", ("--require-preconditions",)
    with ServerProcess(url, tmp_path, arguments=arguments) as server:
        async with connect(server.base_url) as client:
            await client.save(new_id, {"messages": []}, overwrite=True)
            await client.patch(new_id, merge={"n": 1})
            await client.append(new_id, "/messages", "Hello")
            await client.update(new_id, lambda state: {**state, "n": 2})
            assert (await client.load(new_id)).state == {"messages": ["Hello"], "n": 2}
            assert await client.delete(new_id)


async def test_credentials(connect: Connect, own_process: ServerProcess, own_url: str, new_id: str) -> None:
    scopes: tuple[list[Scope], ...] = (["read"], ["read", "write"])
    reader, writer = [await make_key(own_url, datetime.now(UTC), some) for some in scopes]
    own_process.terminate()  # a running server would notice the keys a little later
    own_process.restart()
    async with connect(own_process.base_url) as client:
        with pytest.raises(Unauthorized) as refused:
            await client.load(new_id)
        assert (refused.value.code, refused.value.status) == ("unauthorized", 401)
    async with connect(own_process.base_url, reader) as client:
        assert await client.load(new_id) is None
        with pytest.raises(Forbidden):
            await client.save(new_id, 1)
    async with connect(own_process.base_url, writer) as client:
        await client.save(new_id, 1)
        with pytest.raises(Forbidden):
            await client.delete(new_id)


async def test_a_function_for_the_token_is_asked_again_after_a_401(
    connect: Connect, own_process: ServerProcess, own_url: str, new_id: str
) -> None:
    key = await make_key(own_url, datetime.now(UTC))
    own_process.terminate()
    own_process.restart()
    given = iter(["cs_wrong", key])
    asked = []

    def token() -> str:
        asked.append(next(given))
        return asked[-1]

    async with connect(own_process.base_url, token) as client:
        assert await client.load(new_id) is None
        await client.save(new_id, 1)
    assert asked == ["cs_wrong", key]
    async with connect(own_process.base_url, lambda: "cs_wrong") as client:
        with pytest.raises(Unauthorized):
            await client.load(new_id)


async def test_an_async_function_may_give_the_token(own_process: ServerProcess, own_url: str, new_id: str) -> None:
    key = await make_key(own_url, datetime.now(UTC))
    own_process.terminate()
    own_process.restart()

    async def token() -> str:
        return key

    async with AsyncClient(own_process.base_url, token) as client:
        assert await client.load(new_id) is None


@pytest.mark.parametrize("wrong", ["localhost:3000", "", "ftp://localhost", "http://", "http://localhost?a=b"])
def test_an_address_that_cannot_be_one_is_refused_at_once(wrong: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match="base_url"):
            kind(wrong)


IMPORTS = """
import sys
import chatstate
assert not [name for name in sys.modules if name.startswith("chatstate.")], "import chatstate alone stays light"
chatstate.Client("http://localhost:1").close(), chatstate.AsyncClient
server = {"apsw", "asyncpg", "uvicorn", "uvloop", "httptools", "msgspec", "cryptography", "jwt", "jsonpatch"}
loaded = {name for name in sys.modules if name.split(".")[0] in server}
ours = {name for name in sys.modules if name.startswith("chatstate.") and not name.startswith("chatstate.client")}
print(sorted(loaded | ours))
"""


def test_the_client_loads_nothing_of_the_server() -> None:
    printed = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True).stdout
    assert printed == "[]\n"


async def test_both_clients_have_the_same_calls() -> None:
    def names(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert names(Client) - {"close"} == names(AsyncClient) - {"aclose"}
