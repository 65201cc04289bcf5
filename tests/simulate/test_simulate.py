"""A random walk through everything that clients, time, sweepers and other programs do to sessions, on each store.

`model.py` has the rules, `machine.py` what is done, `servers.py` who answers. A failure prints the command that replays
it; without a seed every run is a new one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Iterator
from logging.handlers import BufferingHandler
from pathlib import Path

import pytest
import uvloop
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.conftest import STORE_NAMES, VALKEY, database
from tests.servers.postgres import RunningServers
from tests.simulate.machine import SETTINGS, Simulation
from tests.simulate.servers import Deployment

_USUAL_EXAMPLES = 100
SEED = int(os.environ.get("CHATSTATE_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
EXAMPLES = int(os.environ.get("CHATSTATE_TEST_EXAMPLES") or _USUAL_EXAMPLES)

PROFILE = settings(
    max_examples=EXAMPLES,
    stateful_step_count=20,
    database=None,
    deadline=None,
    derandomize=False,
    phases=[Phase.generate, Phase.shrink],
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """The event loop in which both the simulation and the servers run."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[BufferingHandler]:
    """What the servers log, in place of pytest's record, which would show the log of every example."""
    logger, handler = logging.getLogger("chatstate"), BufferingHandler(1000)
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture(params=[name for name in STORE_NAMES if name != VALKEY])  # the examples also write to the tables
def store_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def deployment(
    store_name: str, runner: asyncio.Runner, servers: RunningServers, tmp_path: Path
) -> Iterator[Deployment]:
    """Servers on an empty database, of each kind in turn."""
    with database(store_name, servers, tmp_path) as url:
        running = Deployment(url, SETTINGS)
        runner.run(running.start())
        yield running
        runner.run(running.stop())


def simulate(
    store_name: str, runner: asyncio.Runner, deployment: Deployment, log: BufferingHandler, profile: settings = PROFILE
) -> None:
    """Run all examples. Raises what goes wrong in one of them, with all that is needed to look into it."""
    examples = 0

    def example() -> Simulation:
        nonlocal examples
        examples += 1
        log.buffer.clear()
        return Simulation(runner.get_loop(), deployment)

    try:
        run_state_machine_as_test(seed(SEED)(example), settings=profile)  # type: ignore[arg-type]
    except BaseException as error:
        for record in log.buffer:
            error.add_note(logging.Formatter().format(record))
        error.add_note(f"After {examples} examples. Replay it with: {replay_command(store_name)}")
        raise


def replay_command(store_name: str) -> str:
    examples = "" if EXAMPLES == _USUAL_EXAMPLES else f" EXAMPLES={EXAMPLES}"
    return f"make simulate STORE={store_name} SEED={SEED}{examples}"


def test_the_servers_answer_as_the_model(
    store_name: str, runner: asyncio.Runner, deployment: Deployment, log: BufferingHandler
) -> None:
    simulate(store_name, runner, deployment, log)


@pytest.mark.parametrize("store_name", ["sqlite"])
def test_another_rule_is_noticed_and_its_seed_replays(
    store_name: str, runner: asyncio.Runner, deployment: Deployment, log: BufferingHandler
) -> None:
    """Servers that keep no history stand for whatever may go wrong."""
    for server in deployment.pair(SETTINGS[0]):
        server.settings = server.settings._replace(history=0)
        runner.run(server.restart())
    ends = []
    for _ in range(2):
        with pytest.raises(AssertionError, match="should have") as caught:
            simulate(store_name, runner, deployment, log, settings(PROFILE, phases=[Phase.generate]))
        ends.append(caught.value.__notes__[-1])
    assert ends[0] == ends[1]
    assert f"make simulate STORE=sqlite SEED={SEED}" in ends[0]
