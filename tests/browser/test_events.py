"""The change feed in a browser without any client of ours: a plain `EventSource`."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.browser.chat import OFFLINE
from tests.browser.conftest import NewDevice
from tests.servers.process import ServerProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

LISTEN = """url => {
    window.heard = [];
    window.source = new EventSource(url);
    for (const name of ["state", "absent", "deleted"])
        source.addEventListener(name, ({lastEventId, data}) => heard.push([name, lastEventId, JSON.parse(data)]));
}"""


async def test_an_event_source_hears_what_is_saved_and_goes_on_by_itself_when_the_server_is_back(
    server: ServerProcess, new_device: NewDevice
) -> None:
    device = await new_device(OFFLINE)
    page = await device.context.new_page()
    await page.goto(f"{server.base_url}/demo")
    path = "/chat-state-sessions/plain"
    await page.evaluate(LISTEN, f"{path}/events")

    async def save(state: str) -> str:
        body = {"user_session_id": "plain", "chat_state": state}
        async with httpx.AsyncClient(base_url=server.base_url) as client:
            return (await client.post("/chat-state-sessions", json=body)).headers["etag"]

    async def hears(name: str, tag: str) -> None:
        await page.wait_for_function(
            "([name, tag]) => heard.at(-1)?.[0] === name && heard.at(-1)[1] === tag", arg=[name, tag]
        )

    await hears("absent", "")
    await hears("state", await save("first"))
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.restart)
    await hears("state", await save("while it comes back"))
    async with httpx.AsyncClient(base_url=server.base_url) as client:
        await client.delete(path)
    await hears("deleted", "")
    states = [data["chat_state"] for name, _, data in await page.evaluate("heard") if name == "state"]
    assert states == ["first", "while it comes back"], "nothing comes twice"
    await page.evaluate("source.close()")
