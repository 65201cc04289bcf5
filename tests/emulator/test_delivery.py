"""Updates reach the webhook signed, at least once, and in any way that Meta's documentation allows."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from chatstate.emulator import Account, Emulator, Update, payloads, sign
from tests.emulator.conftest import NetworkTo, Patience, at_once
from tests.emulator.webhooks import SmallWebhook


def texts(webhook: SmallWebhook) -> list[str]:
    return [message["text"]["body"] for message in webhook.messages()]


async def write_ten(emulator: Emulator) -> list[str]:
    return [await emulator.write(emulator.persons[number % 2], str(number)) for number in range(10)]


# --- Signed, in order, once -------------------------------------------------------------------------------------------


def test_the_signature_is_the_hmac_of_these_bytes() -> None:
    # Computed with: printf 'body' | openssl dgst -sha256 -hmac 'secret'
    assert sign("secret", b"body") == "sha256=dc46983557fea127b43af721467eb9b3fde2338fe3e14f51952aa8478c13d355"


async def test_what_is_written_arrives_in_order(emulator: Emulator, webhook: SmallWebhook) -> None:
    ids = await write_ten(emulator)
    await emulator.settled()
    assert [message["id"] for message in webhook.messages()] == ids
    assert len(webhook.bodies) == 10, "each with a request of its own"
    assert webhook.forged == 0


async def test_another_secret_is_not_accepted(network_to: NetworkTo, webhook: SmallWebhook) -> None:
    patience = Patience()
    network = network_to(patience, Account(app_secret="another"))
    network.send(payloads.account_error(1, "x", "x"))
    await patience.begun(1)
    assert webhook.forged == 1
    assert "CHATSTATE_WHATSAPP_APP_SECRET" in network.webhook.text
    assert webhook.bodies == []


# --- Held back and released -------------------------------------------------------------------------------------------


async def test_nothing_gets_through_while_it_is_held_back(emulator: Emulator, webhook: SmallWebhook) -> None:
    emulator.hold()
    await write_ten(emulator)
    assert (len(emulator.network.held), webhook.bodies) == (10, [])
    assert await emulator.release() == 10
    await emulator.settled()
    assert texts(webhook) == [str(number) for number in range(10)]


async def test_it_can_be_released_in_another_order(emulator: Emulator, webhook: SmallWebhook) -> None:
    emulator.hold()
    await write_ten(emulator)
    await emulator.release("reversed")
    await emulator.settled()
    assert texts(webhook) == [str(number) for number in reversed(range(10))]


async def test_a_shuffle_is_the_same_for_the_same_seed(webhook: SmallWebhook) -> None:
    orders = []
    for _ in range(2):
        webhook.bodies.clear()
        emulator = Emulator(webhook.url, pause=at_once, seed=7)
        async with emulator.serving():
            emulator.hold()
            await write_ten(emulator)
            await emulator.release("shuffled")
            await emulator.settled()
        orders.append(texts(webhook))
    assert orders[0] == orders[1]
    assert orders[0] != sorted(orders[0])
    assert sorted(orders[0]) == [str(number) for number in range(10)]


@pytest.mark.parametrize(("batch", "requests"), [(True, 1), (4, 3), (1, 10)])
async def test_it_can_be_released_in_batches(
    batch: bool | int, requests: int, emulator: Emulator, webhook: SmallWebhook
) -> None:
    emulator.hold()
    ids = await write_ten(emulator)
    assert await emulator.release(batch=batch) == requests
    await emulator.settled()
    assert len(webhook.bodies) == requests
    assert [message["id"] for message in webhook.messages()] == ids


async def test_a_batch_has_a_thousand_updates_at_most(emulator: Emulator, webhook: SmallWebhook) -> None:
    emulator.hold()
    for number in range(1100):
        await emulator.write(emulator.persons[0], str(number))
    assert await emulator.release(batch=True) == 2
    await emulator.settled()
    assert len(texts(webhook)) == 1100


async def test_all_of_it_at_once(emulator: Emulator, webhook: SmallWebhook) -> None:
    emulator.hold()
    ids = await write_ten(emulator)
    assert await emulator.release("shuffled", batch=3, duplicates=2, parallel=8) == 8
    await emulator.settled()
    assert Counter(message["id"] for message in webhook.messages()) == dict.fromkeys(ids, 2)
    assert len(set(webhook.bodies)) == 4, "a duplicate has the same bytes"


async def test_everything_can_be_delivered_twice(emulator: Emulator, webhook: SmallWebhook) -> None:
    emulator.network.duplicates = 2
    await emulator.write(emulator.persons[0], "x")
    await emulator.settled()
    assert texts(webhook) == ["x", "x"]


# --- Until it is answered with 200 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [None, 500, 503, 401, 404, 202, 301])
async def test_it_is_repeated_until_200(answer: int | None, emulator: Emulator, webhook: SmallWebhook) -> None:
    webhook.answers = [answer, answer, answer]
    await emulator.write(emulator.persons[0], "x")
    await emulator.settled()
    assert len(webhook.bodies) == 4
    assert len(set(webhook.bodies)) == 1, "with the same bytes each time"
    [entry] = emulator.journal.entries.values()
    assert (entry.tries, entry.status, entry.problem) == (4, 200, "")


def said(number: int) -> Update:
    return Update("messages", {"type": "text", "text": {"body": str(number)}})


async def test_one_that_is_not_accepted_does_not_hold_up_the_next(network_to: NetworkTo, webhook: SmallWebhook) -> None:
    patience = Patience()
    network = network_to(patience)
    webhook.answers = [503]
    for number in (1, 2):
        network.send(said(number))
    await webhook.has(lambda: len(webhook.bodies) == 2)
    await patience.begun(1)
    assert texts(webhook) == ["1", "2"]
    patience.end()
    await webhook.has(lambda: len(webhook.bodies) == 3)
    assert texts(webhook) == ["1", "2", "1"]
    assert patience.tries == [1]


async def test_whoever_is_in_a_hurry_does_not_wait(network_to: NetworkTo, webhook: SmallWebhook) -> None:
    patience = Patience()
    network = network_to(patience)
    webhook.answers = [503, 503]
    network.send(said(1))
    for tries in (1, 2):
        await patience.begun(tries)
        network.retry_now()
    await webhook.has(lambda: len(webhook.bodies) == 3)
    assert patience.tries == [1, 2]


async def test_a_repetition_is_held_back_too(emulator: Emulator, webhook: SmallWebhook) -> None:
    webhook.answers = [503]
    await emulator.write(emulator.persons[0], "x")
    await webhook.has(lambda: len(webhook.bodies) == 1)
    emulator.hold()
    await emulator.until(lambda: emulator.network.outstanding == 1)
    assert len(webhook.bodies) == 1
    await emulator.release()
    await emulator.settled()
    assert len(webhook.bodies) == 2


async def test_a_server_that_is_started_later_gets_it(emulator: Emulator, webhook: SmallWebhook) -> None:
    port = webhook.port
    emulator.network.url = emulator.network.url.replace(str(port), "9")  # discard: nobody listens there
    await emulator.write(emulator.persons[0], "x")
    await emulator.until(lambda: emulator.network.webhook.state == "absent")
    assert "Nothing listens" in emulator.network.webhook.text
    emulator.network.url = webhook.url
    await emulator.settled()
    assert texts(webhook) == ["x"]
    assert emulator.network.webhook.state == "ready"


async def test_when_it_ends_it_gives_up(webhook: SmallWebhook) -> None:
    emulator = Emulator(webhook.url, pause=Patience())
    webhook.answers = [503]
    async with emulator.serving():
        await emulator.write(emulator.persons[0], "x")
        await webhook.has(lambda: len(webhook.bodies) == 1)
    assert emulator.network.outstanding == 0


# --- The webhook's consent --------------------------------------------------------------------------------------------


async def test_the_webhook_is_asked_with_the_verify_token(network_to: NetworkTo) -> None:
    assert (await network_to().verify()).state == "ready"


@pytest.mark.parametrize(
    ("status", "mends"),
    [
        (403, "CHATSTATE_WHATSAPP_VERIFY_TOKEN"),
        (404, "CHATSTATE_WHATSAPP_APP_SECRET"),
        (500, "only 200 counts"),
    ],
)
async def test_a_refusal_says_what_mends_it(
    status: int, mends: str, network_to: NetworkTo, webhook: SmallWebhook
) -> None:
    webhook.verifies = status
    found = await network_to().verify()
    assert found.state == "refused"
    assert f"HTTP {status}" in found.text
    assert mends in found.text


async def test_another_verify_token_is_refused_and_not_told(network_to: NetworkTo) -> None:
    found = await network_to(account=Account(verify_token="t0ken")).verify()
    assert found.state == "refused"
    assert "t0ken" not in found.text


async def test_what_is_no_webhook_is_recognised(network_to: NetworkTo, webhook: SmallWebhook) -> None:
    webhook.echoes = False
    assert "no webhook of WhatsApp" in (await network_to().verify()).text


async def test_it_is_asked_until_it_consents_and_again_when_it_is_lost(
    network_to: NetworkTo, webhook: SmallWebhook
) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    patience = Patience()
    network = network_to(patience)
    network.told = lambda told: heard.put_nowait(f"{told.state} {told.text}")
    webhook.verifies = 404
    watch = asyncio.create_task(network.watch())
    try:
        await patience.begun(1)
        assert (await heard.get()).startswith("refused HTTP 404")
        webhook.verifies = 200
        network.retry_now()
        assert (await heard.get()).startswith("ready")
        webhook.verifies, webhook.answers = 403, [503]
        network.send(said(1))
        assert (await heard.get()).startswith("refused HTTP 503")
        assert (await heard.get()).startswith("refused HTTP 403: the verify token")
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
