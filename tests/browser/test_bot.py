"""The chat page of a server that runs a bot: what is said arrives once, and what the bot writes is seen as it grows."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio
from msgspec import json
from playwright.async_api import Locator, Route, expect

from chatstate.emulator import Account, Emulator
from chatstate.model import utc_now
from tests.browser.bots import BOMB
from tests.browser.chat import OFFLINE, Chat, Device, arrives, eventually, stored, stored_turns
from tests.browser.conftest import NewDevice
from tests.browser.dictation import Dictation, dictating
from tests.browser.test_chat import FILL_THE_STORAGE
from tests.browser.test_devices import SHUT_OUT, Keyed, let_in
from tests.browser.test_page import address, check, focused, save, tab_to
from tests.emulator.conftest import at_once
from tests.http.credentials import make_key
from tests.servers.ports import LOOPBACK, free_port
from tests.servers.process import ServerProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[2]
OBEDIENT = ("--bot", "bots:obedient", "--lease-seconds", "3")
ONBOARDING = ("--bot", "onboarding_bot:bot")
GONE = (OFFLINE, "status of 503")
PHONE = {"width": 320, "height": 568}


def with_bots(folder: Path) -> Path:
    """The folder, with the files of the bots in it: a server looks for its bot where it was started."""
    for file in (ROOT / "examples" / "onboarding_bot.py", Path(__file__).parent / "bots.py"):
        shutil.copy(file, folder)
    return folder


def serving(folder: Path, *arguments: str, **environment: str) -> ServerProcess:
    url = f"sqlite:///{folder}/chatstate.db"
    return ServerProcess(url, with_bots(folder), arguments=arguments, environment=environment)


@pytest.fixture(scope="module")
def obedient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose bot does what it is told, for tests that do not mind each other's sessions."""
    with serving(tmp_path_factory.mktemp("obedient"), *OBEDIENT) as running:
        yield running


@pytest.fixture
def own(tmp_path: Path) -> Iterator[ServerProcess]:
    """The same for a test alone."""
    with serving(tmp_path, *OBEDIENT) as running:
        yield running


@dataclass
class Reachable:
    """A server with the bot of the seed's flow that can be reached on WhatsApp, and the phones there."""

    server: ServerProcess
    phones: Emulator


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reachable(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Reachable]:
    account, port = Account(), free_port()
    names = ("app_secret", "verify_token", "access_token", "phone_number_id", "number")
    known = {f"CHATSTATE_WHATSAPP_{name.upper()}": getattr(account, name) for name in names}
    known["CHATSTATE_WHATSAPP_GRAPH_URL"] = f"http://{LOOPBACK}:{port}"
    with serving(tmp_path_factory.mktemp("reachable"), *ONBOARDING, **known) as server:
        phones = Emulator(f"{server.base_url}/channels/whatsapp/webhook", account, pause=at_once)
        async with phones.serving(port):
            yield Reachable(server, phones)


# --- What is said -----------------------------------------------------------------------------------------------------


async def test_the_flow_by_buttons_and_typing_survives_refreshing(reachable: Reachable, new_device: NewDevice) -> None:
    base_url = reachable.server.base_url
    chat = await (await new_device()).open(f"{base_url}/")
    await expect(chat.page.locator("#nothing-said")).to_have_text(re.compile("A bot on this server answers"))
    await chat.choose("Hello")
    said = ["Hello"]
    for choice, text, question, step in [
        ("English", "", "How would you describe your gender?", "gender"),
        ("Non-binary", "", "how old are you?", "age"),
        ("", "thirty", "Please type a number from 1 to 120", "age"),
        ("", "34", "What would you like to ask?", "question"),
        ("", "What is the weather?", "is a good question", "question"),
    ]:
        if choice:
            await chat.choose(choice)
        else:
            await chat.say(text)
        said.append(choice or text)
        await chat.asks(question)
        if step == "age":
            await chat.page.reload()
            await chat.asks(question)
        await chat.shows(*said)
        await chat.saved()
        assert (await stored(base_url, chat.session))["currentStep"] == step
    assert await stored_turns(base_url, chat.session) == said
    answers = {"language": "en", "gender": "Non-binary", "age": 34, "question": "What is the weather?"}
    assert (await stored(base_url, chat.session))["answers"] == answers
    await expect(chat.page.locator("#nothing-said")).to_be_hidden()
    assert await kept(chat) is None, "what is in the state is kept nowhere else"


async def kept(chat: Chat) -> Any:
    """What the browser keeps of unsent messages."""
    return await chat.page.evaluate("id => localStorage.getItem(`chatstate-demo:unsent:${id}`)", chat.session)


async def test_windows_and_devices_follow_each_other(obedient: ServerProcess, new_device: NewDevice) -> None:
    session = "a/b ü🙂 ?#&=%2F"
    device = await new_device()
    first = await device.open(address(obedient, session))
    await first.say("in the first")
    await first.asks("You said: in the first")
    second = await device.open(first.page.url)
    third = await (await new_device()).open(first.page.url)
    await second.shows("in the first")
    await second.say("menu")
    await third.choose("Cactus")
    for chat in (first, second, third):
        await chat.asks("You said: Cactus")
        await chat.shows("in the first", "menu", "Cactus")
        await chat.saved()
    assert await stored_turns(obedient.base_url, quote(session, safe="")) == ["in the first", "menu", "Cactus"]


def status(chat: Chat) -> Locator:
    """What stands below the last that the person has said."""
    return chat.page.locator("#messages .user .status").last


@pytest.mark.parametrize("stays", [False, True], ids=["both windows are closed", "one stays"])
async def test_what_is_unsent_survives_the_tab(own: ServerProcess, new_device: NewDevice, stays: bool) -> None:
    device = await new_device(*GONE)
    chat = await device.open(f"{own.base_url}/demo")
    await chat.say("before")
    await chat.asks("You said: before")
    other = await device.open(chat.page.url)
    await other.shows("before")
    await asyncio.to_thread(own.kill)
    typed = [f"offline {number}" for number in range(5)]
    for text in typed:
        await chat.say(text)
    await other.shows("before", *typed)
    await other.sign("offline")
    await expect(status(chat)).to_have_text("Sending…")
    await chat.page.close()
    if not stays:
        await other.page.close()
    await asyncio.to_thread(own.restart)
    again = other if stays else await device.open(f"{own.base_url}/demo")
    await again.asks("You said: offline 4")
    await again.shows("before", *typed)
    await again.saved()
    await expect(again.page.locator("#messages .user .status:not(:empty)")).to_have_count(0)
    assert await stored_turns(own.base_url, again.session) == ["before", *typed]


async def test_a_message_whose_answer_was_lost_is_sent_again_and_there_once(
    obedient: ServerProcess, new_device: NewDevice
) -> None:
    chat = await (await new_device(OFFLINE)).open(f"{obedient.base_url}/demo")
    sent: list[str] = []

    async def lose(route: Route) -> None:
        sent.append(json.decode(route.request.post_data or "")["id"])
        await route.fetch()
        await route.abort()

    await chat.page.route("**/messages", lose, times=2)
    await chat.say("once")
    await chat.asks("You said: once")
    await chat.shows("once")
    await chat.saved()
    assert await stored_turns(obedient.base_url, chat.session) == ["once"]
    [message, _] = (await stored(obedient.base_url, chat.session))["messages"]
    assert set(sent) == {message["id"]}


async def test_what_was_said_just_before_leaving_arrives(obedient: ServerProcess, new_device: NewDevice) -> None:
    device = await new_device(OFFLINE)
    chat = await device.open(f"{obedient.base_url}/demo")
    session = chat.session
    await device.context.set_offline(True)
    await chat.say("from another chat")
    await chat.sign("offline")
    await chat.page.click("#new-chat")
    await chat.shows()
    await device.context.set_offline(False)
    await arrives(obedient.base_url, session, ["from another chat"])
    await chat.say("the last words")
    session = chat.session
    await chat.page.close(run_before_unload=True)  # as a person does it, not as a debugger
    await arrives(obedient.base_url, session, ["the last words"])


async def test_what_was_said_arrives_when_the_page_goes_before_its_turn_to_send_has_come(
    obedient: ServerProcess, new_device: NewDevice
) -> None:
    """Another window sends at that time, or the browser is slow to tell that none does."""
    device = await new_device()
    chat = await device.open(f"{obedient.base_url}/demo")
    other = await device.open(f"{obedient.base_url}/demo")
    await other.page.evaluate(
        """name => new Promise(
            (locked) => navigator.locks.request(name, () => (locked(), new Promise(() => {})))
        )""",
        f"chatstate-demo:unsent:{chat.session}",
    )
    await chat.say("the last words")
    await chat.page.close(run_before_unload=True)
    await arrives(obedient.base_url, chat.session, ["the last words"])


async def test_what_the_server_refuses_is_shown_with_the_reason(obedient: ServerProcess, new_device: NewDevice) -> None:
    chat = await (await new_device(r"status of 400 .*/messages$")).open(f"{obedient.base_url}/demo")
    await chat.page.locator("#text").evaluate("input => { input.maxLength = 100_000; }")
    await chat.say("x" * 40_000)
    await expect(status(chat)).to_contain_text("Not sent: text must have at most 32768 bytes of UTF-8")
    await chat.page.reload()
    await expect(status(chat)).to_contain_text("Not sent: ")
    async with chat.page.expect_response("**/messages"):
        await chat.choose("Try again")
    await expect(status(chat)).to_contain_text("Not sent: ")
    await chat.say("a shorter one")
    await chat.asks("You said: a shorter one")
    await chat.choose("Delete")
    await chat.shows("a shorter one")
    assert await kept(chat) is None


async def test_no_more_wait_than_there_is_room_for(obedient: ServerProcess, new_device: NewDevice) -> None:
    device = await new_device(OFFLINE)
    chat = await device.open(f"{obedient.base_url}/demo")
    await device.context.set_offline(True)
    await chat.page.evaluate(
        """() => {
            for (let number = 0; number < 50; number++) {
                document.getElementById("text").value = `turn ${number}`;
                document.getElementById("composer").requestSubmit();
            }
        }"""
    )
    await chat.say("one too many")
    await chat.sign("error")
    await expect(chat.page.locator("#sign")).to_contain_text("50 messages wait here")
    await expect(chat.page.locator("#text")).to_have_value("one too many")
    await device.context.set_offline(False)
    await chat.asks("You said: turn ")
    await chat.page.press("#text", "Enter")
    await expect(chat.page.locator("#text")).to_have_value("")
    turns = await stored_turns(obedient.base_url, chat.session)
    assert turns[:50] == [f"turn {number}" for number in range(len(turns[:50]))], "in their order"


async def test_a_full_storage_is_told(obedient: ServerProcess, new_device: NewDevice) -> None:
    device = await new_device(OFFLINE)
    chat = await device.open(f"{obedient.base_url}/demo")
    await chat.say("first")
    await chat.asks("You said: first")
    await chat.page.evaluate(FILL_THE_STORAGE)
    await device.context.set_offline(True)
    await chat.say("no room")
    await expect(chat.page.locator("#sign")).to_contain_text("Not kept on this device")
    await device.context.set_offline(False)
    await chat.asks("You said: no room")
    await arrives(obedient.base_url, chat.session, ["first", "no room"])


async def test_what_is_in_a_full_storage_is_not_sent_again_and_again(
    obedient: ServerProcess, new_device: NewDevice
) -> None:
    device = await new_device(OFFLINE)
    chat = await device.open(f"{obedient.base_url}/demo")
    sent: list[str] = []
    async with dictating() as dictation:
        await device.context.set_offline(True)
        for text in (f"stream {dictation.port}", "second"):
            await chat.say(text)
        await chat.page.evaluate(FILL_THE_STORAGE)
        await chat.say("no room")
        await chat.page.route("**/messages", lambda route: _note(sent, route))
        await device.context.set_offline(False)
        writer = await dictation.begun()
        await eventually(lambda: len(set(sent)) == 3)
        await expect(chat.page.locator("#messages .user .status:text('Sent')")).to_have_count(3)
        writer.write(b"That is all\n")
        writer.close()
        await chat.asks("You said: no room")
    assert len(sent) == 3


async def _note(sent: list[str], route: Route) -> None:
    sent.append(json.decode(route.request.post_data or "")["text"])
    await route.continue_()


async def test_where_no_locks_are_to_be_had_it_is_sent_all_the_same(
    obedient: ServerProcess, new_device: NewDevice
) -> None:
    device = await new_device()
    denied = "Promise.reject(new DOMException('denied', 'SecurityError'))"
    refuse = f"if (navigator.locks) navigator.locks.request = () => {denied}"
    await device.context.add_init_script(refuse)
    chat = await device.open(f"{obedient.base_url}/demo")
    for text in ("first", "second"):
        await chat.say(text)
        await chat.asks(f"You said: {text}")


async def test_what_is_unsent_in_another_chat_is_sent_when_the_page_is_opened_anew(
    own: ServerProcess, new_device: NewDevice
) -> None:
    device = await new_device(*GONE)
    chat = await device.open(f"{own.base_url}/demo")
    session = chat.session
    await asyncio.to_thread(own.kill)
    await chat.say("left behind")
    await chat.sign("offline")
    await chat.page.click("#new-chat")
    await chat.shows()
    await chat.page.close()
    await asyncio.to_thread(own.restart)
    again = await device.open(f"{own.base_url}/demo")
    assert again.session != session
    await arrives(own.base_url, session, ["left behind"])


async def test_a_message_that_comes_before_others_leaves_them_in_the_page(
    obedient: ServerProcess, new_device: NewDevice
) -> None:
    chat = await (await new_device(r"status of 400 .*/messages$")).open(f"{obedient.base_url}/demo")
    await chat.page.locator("#text").evaluate("input => { input.maxLength = 100_000; }")
    await chat.say("x" * 40_000)
    await chat.page.get_by_role("button", name="Delete").focus()
    await save(obedient, chat.session, '{"messages": [{"id": "m", "role": "bot", "text": "Hi"}]}')
    await chat.asks("Hi")
    assert await focused(chat.page) == "Delete"


# --- What the bot says ------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(loop_scope="module")
async def dictation() -> AsyncIterator[Dictation]:
    async with dictating() as made:
        yield made


async def begun(device: Device, url: str) -> Chat:
    """A window that listens: something was said, and the answer has come."""
    chat = await device.open(url)
    await chat.say("hello")
    await chat.asks("You said: hello")
    return chat


def growing(chat: Chat) -> Locator:
    """The replies that are being written."""
    return chat.page.locator("#writing p")


async def test_a_reply_is_seen_as_it_grows(
    obedient: ServerProcess, new_device: NewDevice, dictation: Dictation
) -> None:
    device = await new_device()
    chat = await begun(device, f"{obedient.base_url}/demo")
    await chat.say(f"stream {dictation.port}")
    bot = await dictation.begun()
    await expect(growing(chat)).to_have_class("dots")
    await expect(chat.page.locator("#announcement")).to_have_text("The bot is writing.")
    await expect(status(chat)).to_have_text("Sent")
    bot.write(b"Once\n")
    await expect(growing(chat)).to_have_text("Once")
    late = await device.open(chat.page.url)  # whoever comes later sees it from its beginning
    await expect(growing(late)).to_have_text("Once")
    bot.write(b" upon\n a <b>time</b>\n")
    for window in (chat, late):
        await expect(growing(window)).to_have_text("Once upon a <b>time</b>")
        await expect(window.page.locator("#messages .bot")).to_have_count(1)
    await chat.page.reload()
    await expect(growing(chat)).to_have_text("Once upon a <b>time</b>")
    await chat.shows("hello", f"stream {dictation.port}")
    assert len((await stored(obedient.base_url, chat.session))["messages"]) == 2, "it is not kept before it is complete"
    bot.close()
    for window in (chat, late):
        await window.asks("Once upon a <b>time</b>")
        await expect(growing(window)).to_have_count(0)
        await expect(window.page.locator("#messages .bot")).to_have_count(2)
        await expect(window.page.locator("#announcement")).to_be_empty()
    await chat.saved()
    assert len((await stored(obedient.base_url, chat.session))["messages"]) == 4


async def test_replies_of_one_turn_stand_below_each_other(
    obedient: ServerProcess, new_device: NewDevice, dictation: Dictation
) -> None:
    chat = await begun(await new_device(reduced_motion="reduce"), f"{obedient.base_url}/demo")
    await chat.say(f"twice {dictation.port}")
    bot = await dictation.begun()
    await expect(growing(chat)).to_have_class("dots")
    assert await chat.page.evaluate("document.getAnimations().length") == 0
    bot.write(b"The first.\n")
    await expect(growing(chat)).to_have_text(["The first."])
    bot.close()
    bot = await dictation.begun()
    bot.write(b"The second.\n")
    await expect(growing(chat)).to_have_text(["The first.", "The second."])
    bot.close()
    await expect(chat.page.locator("#messages .bot p")).to_have_text(["You said: hello", "The first.", "The second."])
    await expect(growing(chat)).to_have_count(0)


async def test_what_a_turn_has_written_that_failed_is_gone(
    obedient: ServerProcess, new_device: NewDevice, dictation: Dictation
) -> None:
    chat = await begun(await new_device(), f"{obedient.base_url}/demo")
    await chat.say(f"crash {dictation.port}")
    bot = await dictation.begun()
    bot.write(b"I shall not finish\n")
    await expect(growing(chat)).to_have_text("I shall not finish")
    bot.close()
    await expect(growing(chat)).to_have_count(0)
    await chat.asks(f"You said: crash {dictation.port}")
    await expect(chat.page.locator("#messages .bot")).to_have_count(2)


async def test_it_follows_again_after_the_server_was_killed(
    own: ServerProcess, new_device: NewDevice, dictation: Dictation
) -> None:
    chat = await begun(await new_device(*GONE), f"{own.base_url}/demo")
    await chat.say(f"stream {dictation.port}")
    bot = await dictation.begun()
    bot.write(b"Cut off\n")
    await expect(growing(chat)).to_have_text("Cut off")
    await asyncio.to_thread(own.kill)
    await expect(growing(chat)).to_have_count(0)
    await chat.shows("hello", f"stream {dictation.port}")
    await asyncio.to_thread(own.restart)
    again = await dictation.begun()  # the turn is run again

    async def is_seen() -> bool:
        again.write(b"Anew. \n")  # the first may come before the page does
        return await growing(chat).count() > 0

    await eventually(is_seen)
    await expect(growing(chat)).to_have_text(re.compile("^(Anew. ?)+$"))
    again.close()
    await chat.asks("Anew.")
    await expect(growing(chat)).to_have_count(0)
    assert await stored_turns(own.base_url, chat.session) == ["hello", f"stream {dictation.port}"]


async def test_a_window_that_nobody_sees_does_not_listen(
    obedient: ServerProcess, new_device: NewDevice, dictation: Dictation
) -> None:
    """Browsers have six connections to one server, and more windows than that."""
    chat = await begun(await new_device(), f"{obedient.base_url}/demo")
    await chat.say(f"stream {dictation.port}")
    bot = await dictation.begun()
    await expect(growing(chat)).to_have_class("dots")
    async with chat.page.expect_event("requestfailed", lambda request: request.url.endswith("/events")):
        await chat.page.evaluate(_SET_VISIBILITY, "hidden")
    await expect(growing(chat)).to_have_count(0)
    bot.write(b"There you are\n")
    await chat.page.evaluate(_SET_VISIBILITY, "visible")
    await expect(growing(chat)).to_have_text("There you are")
    bot.close()
    await chat.asks("There you are")


_SET_VISIBILITY = """state => {
    Object.defineProperty(document, "visibilityState", { value: state, configurable: true });
    document.dispatchEvent(new Event("visibilitychange", { bubbles: true }));
}"""


@pytest.fixture
def keyed(tmp_path: Path) -> Iterator[Keyed]:
    key = asyncio.run(make_key(f"sqlite:///{tmp_path}/chatstate.db", utc_now()))
    with serving(tmp_path, "--demo", *OBEDIENT) as server:
        yield Keyed(server, key)


async def test_with_a_token(keyed: Keyed, new_device: NewDevice, dictation: Dictation) -> None:
    chat = await (await new_device()).open(keyed.page)
    await let_in(chat, keyed.token("anna", verbs=["read", "write"]))
    await chat.say("hello")
    await chat.asks("You said: hello")
    await chat.say(f"stream {dictation.port}")
    bot = await dictation.begun()
    bot.write(b"For you alone\n")
    await expect(growing(chat)).to_have_text("For you alone")
    bot.close()
    await chat.asks("For you alone")
    reader = await (await new_device(r"status of 403 .*/messages$")).open(keyed.page)
    await let_in(reader, keyed.token("anna", verbs=["read"]))
    await reader.asks("For you alone")
    await reader.say("may I?")
    await expect(status(reader)).to_contain_text("Not sent: ")
    await expect(status(reader)).to_contain_text("write")
    stranger = await (await new_device(SHUT_OUT)).open(keyed.page)
    await let_in(stranger, keyed.token("anna") + "x")
    await expect(stranger.page.locator("#access-reason")).to_contain_text("This device is not let into this chat")
    assert await keyed.turns("anna") == ["hello", f"stream {dictation.port}"]


async def test_choices_say_more_and_are_posted_by_their_title(obedient: ServerProcess, new_device: NewDevice) -> None:
    chat = await (await new_device()).open(f"{obedient.base_url}/demo")
    await chat.say("menu")
    await expect(chat.page.locator("#choices button")).to_have_text(["Fern likes shade", "Cactus"])
    await chat.choose("Fern likes shade")
    await chat.shows("menu", "Fern")
    await chat.asks("You said: Fern")
    await expect(chat.page.locator("#choices button")).to_have_count(0)
    await expect(chat.page.locator("#whatsapp")).to_be_hidden()  # there is no number
    [_, _, chosen, _] = (await stored(obedient.base_url, chat.session))["messages"]
    assert chosen["choice"] == "1"


# --- Files, and hostile texts -----------------------------------------------------------------------------------------


async def test_a_file_is_a_link_and_only_by_https(obedient: ServerProcess, new_device: NewDevice) -> None:
    chat = await (await new_device()).open(f"{obedient.base_url}/demo")
    await chat.say("picture")
    await expect(chat.page.locator("#messages .bot").first).to_contain_text("A fern")
    link = chat.page.get_by_role("link", name="Picture on example.org")
    await expect(link).to_have_attribute("href", "https://example.org/fern.jpg")
    await expect(link).to_have_attribute("rel", "noopener noreferrer")
    await expect(chat.page.locator("#messages .attached")).to_have_text(["Picture on example.org", "Prices.pdf"])
    assert await chat.page.locator("#messages a").count() == 1
    assert await chat.page.locator("main img").count() == 0


async def test_hostile_texts_are_texts(obedient: ServerProcess, new_device: NewDevice) -> None:
    chat = await (await new_device()).open(f"{obedient.base_url}/demo")
    await chat.say("bomb")
    await chat.asks(BOMB)
    await expect(chat.page.locator("#choices button")).to_have_text(f"{BOMB} {BOMB}")
    await expect(chat.page.locator("#messages .attached")).to_have_text(BOMB)
    await chat.page.locator("#choices button").click()
    await chat.asks(f"You said: {BOMB}")
    await chat.shows("bomb", BOMB)
    assert await chat.page.evaluate("window.hacked") is None
    assert await chat.page.locator("main img, main a[href]").count() == 0


ODD_ATTACHMENTS = [
    ({"kind": BOMB, "filename": {}}, "File"),
    ({"kind": "constructor"}, "File"),
    ({"kind": "image", "media_type": BOMB}, f"Picture: {BOMB}"),
    ({"kind": "location", "details": {"name": "Kew", "address": BOMB}}, f"Place: Kew, {BOMB}"),
    ({"kind": "location", "details": {"latitude": 51.5, "longitude": -0.3}}, "Place: 51.5, -0.3"),
    ({"kind": "contacts", "details": []}, "Contact"),
]


async def test_whatever_stands_in_a_state_it_is_shown(obedient: ServerProcess, new_device: NewDevice) -> None:
    said = [
        {"id": f"a{number}", "role": "user", "text": "", "attachment": attachment}
        for number, (attachment, _) in enumerate(ODD_ATTACHMENTS)
    ]
    odd = {"id": "odd", "role": "bot", "text": BOMB, "at": BOMB, "media": [], "attachment": 1, "choices": [None, {}, 1]}
    await save(obedient, "odd", json.encode({"messages": [*said, odd]}).decode())
    chat = await (await new_device()).open(address(obedient, "odd"))
    await chat.asks(BOMB)
    await expect(chat.page.locator("#messages .attached")).to_have_text([text for _, text in ODD_ATTACHMENTS])
    await expect(chat.page.locator("#choices button")).to_have_count(0)
    assert await chat.page.evaluate("window.hacked") is None
    for session, state in [("bare", "{}"), ("flat", "[]"), ("no chat", '{"messages": [1]}')]:
        await save(obedient, session, state)
    await chat.page.get_by_role("button", name="bare").click()
    await chat.say("hello")  # an object is all that a bot needs
    await chat.asks("You said: hello")
    for session in ("flat", "no chat"):
        await chat.page.get_by_role("button", name=session).click()
        await expect(chat.page.locator("#raw-title")).to_be_visible()
        await expect(chat.page.locator("#text")).to_be_hidden()


# --- WhatsApp ---------------------------------------------------------------------------------------------------------


async def code_in(chat: Chat) -> str:
    """The code that the open dialog shows."""
    code = chat.page.locator("#whatsapp-code")
    await expect(code).to_have_text(re.compile(r"^[A-Z0-9]{4}-[A-Z0-9]{4}$"))
    return await code.inner_text()


async def test_a_chat_goes_on_on_whatsapp_and_ends_there(reachable: Reachable, new_device: NewDevice) -> None:
    server, phones = reachable.server, reachable.phones
    zoe = phones.add_person("Zoë")
    chat = await (await new_device()).open(f"{server.base_url}/demo")
    page = chat.page
    await page.get_by_role("button", name="Continue on WhatsApp").click()
    await expect(page.locator("#whatsapp-status")).to_contain_text("There is nothing to go on with yet")
    await page.get_by_role("button", name="Close").click()
    await chat.choose("Hello")
    await chat.choose("English")
    await page.get_by_role("button", name="Continue on WhatsApp").click()
    code = await code_in(chat)
    link = page.get_by_role("link", name="Open WhatsApp")
    await expect(link).to_have_attribute("href", f"https://wa.me/{phones.account.number}?text={code}")
    await expect(link).to_have_attribute("rel", "noopener")
    picture = page.get_by_role("img", name="QR code that opens WhatsApp")
    assert await picture.evaluate("image => image.decode().then(() => image.naturalWidth > 0)")
    await expect(page.locator("#whatsapp-open")).to_contain_text("Only send it from your own WhatsApp.")
    await expect(page.locator("#whatsapp-left")).to_have_text(re.compile(r"^Good for \d:\d\d min\.$"))
    await link.focus()
    await phones.write(zoe, code)
    await expect(page.locator("#whatsapp-status")).to_have_text("Linked with WhatsApp.")
    await expect(page.locator("#whatsapp-title")).to_be_focused()
    await page.get_by_role("button", name="Close").click()
    await expect(page.get_by_role("button", name="Linked with WhatsApp")).to_be_visible()

    question = (await phones.replied(zoe, 2))[-1]
    await phones.choose(zoe, question, "Non-binary")
    await chat.asks("how old are you?")
    await phones.attach(zoe, "document", "my age")
    await expect(page.locator("#messages .user .attached")).to_contain_text("Document: ")
    await chat.shows("Hello", "English", "Non-binary", "my age", *await page.locator(".attached").all_text_contents())
    await chat.say("34")
    await chat.asks("What would you like to ask?")

    await page.reload()
    await page.get_by_role("button", name="Linked with WhatsApp").click()
    await page.get_by_role("button", name="Unlink").click()
    await expect(page.locator("#whatsapp-status")).to_contain_text("Unlinked")
    await page.get_by_role("button", name="Close").click()
    await expect(page.get_by_role("button", name="Continue on WhatsApp")).to_be_visible()
    await phones.write(zoe, "on my own")
    await phones.settled()
    assert "on my own" not in await stored_turns(server.base_url, chat.session)


async def test_whoever_has_a_chat_there_is_asked_for_the_number(reachable: Reachable, new_device: NewDevice) -> None:
    server, phones = reachable.server, reachable.phones
    luis = phones.add_person("Luis")
    await phones.write(luis, "Hello")
    await phones.replied(luis)
    chat = await (await new_device()).open(f"{server.base_url}/demo")
    page = chat.page
    await chat.choose("Hello")
    await chat.asks("Which language")
    await page.get_by_role("button", name="Continue on WhatsApp").click()
    await phones.write(luis, await code_in(chat))
    number = await page.locator("#whatsapp-number").inner_text()
    await expect(page.locator("#whatsapp-open")).to_contain_text(f"WhatsApp may ask you for this number: {number}")
    await expect(page.locator("#whatsapp-status")).to_have_text(f"WhatsApp asks you now. Answer there with {number}.")
    await phones.write(luis, number)
    await expect(page.get_by_role("button", name="Unlink")).to_be_visible()
    await page.get_by_role("button", name="Make another code").click()
    code = await code_in(chat)
    await page.get_by_role("button", name="Take back").click()
    await expect(page.locator("#whatsapp-status")).to_contain_text("Taken back")
    zoe = phones.add_person("Zoë")
    await phones.write(zoe, code)
    [answer] = await phones.replied(zoe)
    assert "not valid" in answer.text
    await phones.write(luis, "unlink")
    await eventually(lambda: "has ended" in phones.to(luis)[-1].text)
    await page.get_by_role("button", name="Close").click()
    await chat.choose("Deutsch")  # nobody tells the page; it looks when something happens
    await expect(page.get_by_role("button", name="Continue on WhatsApp")).to_be_visible()


# --- For everybody ----------------------------------------------------------------------------------------------------


async def test_it_works_without_a_mouse(reachable: Reachable, new_device: NewDevice) -> None:
    chat = await (await new_device()).open(f"{reachable.server.base_url}/demo")
    page = chat.page
    await expect(page.get_by_role("button", name="Hello")).to_be_visible()
    await tab_to(page, "Hello")
    await page.keyboard.press("Enter")
    await chat.asks("Which language")
    await expect(page.get_by_role("button", name="English")).to_be_focused()
    await page.keyboard.press("Enter")
    await chat.asks("gender")
    await expect(page.get_by_role("button", name="Female")).to_be_focused()
    await tab_to(page, "Non-binary")
    await page.keyboard.press("Space")
    await chat.asks("how old")
    await tab_to(page, "text")
    await page.keyboard.type("34")
    await page.keyboard.press("Enter")
    await chat.asks("like to ask?")
    assert await focused(page) == "text"
    await chat.shows("Hello", "English", "Non-binary", "34")
    await tab_to(page, "Continue on WhatsApp")
    await page.keyboard.press("Enter")
    await code_in(chat)
    await expect(page.get_by_role("button", name="Close")).to_be_focused()
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Open WhatsApp in a new tab")).to_be_focused()
    await tab_to(page, "Take back")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("button", name="Make another code")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(page.locator("dialog[open]")).to_have_count(0)
    assert await focused(page) == "Continue on WhatsApp"


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_everything_has_a_name_stands_out_and_fits(
    reachable: Reachable, new_device: NewDevice, scheme: str
) -> None:
    session = f"everything {scheme}"
    said = [
        {"id": "1", "role": "user", "text": "", "attachment": {"kind": "document", "filename": "Long" * 30}},
        {"id": "2", "role": "bot", "text": "A fern", "media": {"kind": "image", "url": "https://example.org/f.jpg"}},
        {"id": "3", "role": "bot", "text": "What?", "choices": [{"id": "1", "title": "This", "description": "more"}]},
    ]
    await save(reachable.server, session, json.encode({"messages": said}).decode())
    device = await new_device(color_scheme=scheme, viewport=PHONE)
    chat = await device.open(address(reachable.server, session))
    page = chat.page
    await chat.asks("What?")
    await chat.saved()
    for width in (900, 780, 650, 420, 360, PHONE["width"]):
        await page.set_viewport_size({"width": width, "height": PHONE["height"]})
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
    assert await check(page, "overflowing") == []
    for part in ("#text", "#composer button", "#hand-off", "#whatsapp", "#toggle-sessions", "#sign"):
        await expect(page.locator(part)).to_be_in_viewport(ratio=1)
    await page.locator("#whatsapp").click()
    await code_in(chat)
    assert await page.locator("#whatsapp-dialog").evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")
    await page.keyboard.press("Escape")
    await page.evaluate(_KEEP_A_REFUSED_ONE, session)
    await page.reload()
    await expect(status(chat)).to_contain_text("Not sent: too long")
    await check(page, "showEverything")
    assert await check(page, "withoutName") == []
    assert await check(page, "tooSmall", 40) == []
    contrasts = await check(page, "contrasts")
    assert [(text, ratio) for text, ratio in contrasts if ratio < 4.5] == []
    assert len(contrasts) > 40


_KEEP_A_REFUSED_ONE = """session => localStorage.setItem(`chatstate-demo:unsent:${session}`, JSON.stringify([
    { id: "refused", text: "x", at: new Date().toISOString(), refused: "too long" },
]))"""
