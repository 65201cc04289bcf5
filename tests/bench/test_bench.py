"""The bench as a whole, in small: does it run, and does it say what it did not run?"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from contextlib import AbstractContextManager, closing
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import psutil
import pytest
from msgspec import json as typed_json

from bench import inbox, live, moving, peers
from bench.__main__ import main
from bench.chatstate import ChatStateOnPostgres, sqlite_url
from bench.limits import PgBench, script
from bench.lists import Client
from bench.load import Latency, Spec
from bench.measure import RunFailed, Stage, ordered
from bench.report import WIDTH, report
from bench.results import OPEN, STANDARD, Comparison, Figures, Results, RowName, Spread, ratio
from bench.systems import NotRun, Running, System
from chatstate.copying import pages_of
from chatstate.row import SHELVES, SessionRow, shelf_of
from chatstate.stores import create_store, sql
from tests.bench.small_server import Asked, answer, serving

TINY = ["--rounds", "1", "--seconds", "0.2", "--sessions", "20", "--connections", "4", "--state-bytes", "200"]


class Missing(System):
    """A peer whose tool is not installed."""

    name = "Peer without its tool"

    def prepare(self) -> None:
        raise NotRun("there is no `node` on this machine")

    def running(self, folder: Path, database_url: str | None) -> AbstractContextManager[Running]:
        raise AssertionError("not prepared, but run")


@pytest.fixture
def missing_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one peer there is."""
    monkeypatch.setattr(peers, "REPLACED", [Missing()])
    monkeypatch.setattr(peers, "OTHERS", [])


@pytest.mark.usefixtures("missing_peer")
def test_a_tiny_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results.json"
    arguments = ["--only", "peers", "--systems", "SQLite", "Peer", "--output", str(output), *TINY]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    results = typed_json.decode(output.read_bytes(), type=Results)
    assert set(json.loads(output.read_bytes())) == set(Results.__struct_fields__)
    assert [(failure.system, failure.reason) for failure in results.not_run] == [
        ("Peer without its tool", "there is no `node` on this machine")
    ]
    assert "Peer without its tool: there is no `node`" in text
    assert {row.system for row in results.rows} == {"chatstate, SQLite"}
    cases = [(STANDARD, "save"), (STANDARD, "load"), (STANDARD, "half"), (OPEN, "save"), (OPEN, "load")]
    assert sorted((row.case, row.mix) for row in results.rows) == sorted(cases)
    assert not results.failed
    for row in results.rows:
        (figures,) = row.rounds
        assert (figures.round, figures.errors) == (0, 0)
        assert figures.requests > 0
        assert figures.memory_mb is not None
        assert figures.server_cpu_us is not None
    assert not [child for child in psutil.Process().children(recursive=True) if "chatstate" in child.cmdline()]


def test_a_tiny_bench_beside_pgbench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results.json"
    assert main(["--quick", "--only", "limits", "--systems", "PostgreSQL", "--output", str(output), *TINY]) == 0
    results = typed_json.decode(output.read_bytes(), type=Results)
    assert not results.failed
    row = results.find(STANDARD, "pgbench, 64 clients", "save")
    assert row is not None
    assert row.rounds[0].requests > 0
    assert row.rounds[0].errors == 0
    assert row.rounds[0].database_cpu_us is not None
    assert "to pgbench, 64 clients" in capsys.readouterr().out


def test_pgbench_has_its_time_after_it_has_connected() -> None:
    with Stage() as stage, stage.started(ChatStateOnPostgres()) as started:
        assert started.database
        started.database.execute("ALTER SYSTEM SET post_auth_delay = 1", "SELECT pg_reload_conf()")
        figures = PgBench(started, clients=1).measure(Spec(port=0, sessions=20, state_bytes=200, seconds=1, warmup=0))
    assert figures.requests > 0


def test_tiny_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results.json"
    assert main(["--only", "turns", "--systems", "SQLite", "--output", str(output), *TINY]) == 0
    results = typed_json.decode(output.read_bytes(), type=Results)
    assert not results.failed
    assert not [row for row in results.rows if row.errors or not row.rounds[0].requests]
    assert sorted({row.mix for row in results.rows}) == ["append", "conditional", "keyed", "save"]
    whats = [compared.what for compared in results.comparisons]
    assert whats == [
        "conditional save : save",
        "with an idempotency key : save",
        "append to 12 KB : save of the whole",
        "with a history of 10 : save",
        "index : none, 20 × 200 bytes",
        "index : none, 2,000 × 200 bytes",
    ]
    assert all(
        results.ratio(compared, measure)
        for compared in results.comparisons
        for measure in compared.measures
        if measure != "cpu_us"  # counted in steps of 10 ms, of which so short a run may have none
    )
    text = capsys.readouterr().out
    assert all(what in text for what in whats)
    assert max(map(len, text.splitlines())) <= WIDTH


def test_tiny_access(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results.json"
    assert main(["--only", "access", "--systems", "SQLite", "--output", str(output), *TINY]) == 0
    results = typed_json.decode(output.read_bytes(), type=Results)
    assert not results.failed
    assert not [row for row in results.rows if row.errors or not row.rounds[0].requests]
    whats = [compared.what for compared in results.comparisons]
    kinds = ("with an API key", "with session tokens", "encrypted")
    assert whats == [f"{mix} {kind} : {mix}" for kind in kinds for mix in ("save", "load")]
    text = capsys.readouterr().out
    assert all(what in text for what in whats)
    assert max(map(len, text.splitlines())) <= WIDTH


def test_tiny_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results.json"
    assert main(["--only", "lists", "--systems", "PostgreSQL", "SQLite", "--output", str(output), *TINY]) == 0
    results = typed_json.decode(output.read_bytes(), type=Results)
    assert not results.failed
    rare = "prefix of 1 in 1,000"
    kinds = ["newest first", "by id", f"newest first, {rare}", f"by id, {rare}"]
    cases = [f"2,000 sessions, {kind}" for kind in kinds]
    assert [row.case for row in results.rows if row.mix == "page" and row.system == "chatstate, SQLite"] == cases
    assert {compared.what for compared in results.comparisons} == {"page 20 : page 1"}
    assert len(results.comparisons) == 2 * 2  # on both stores, for the two lists that have many pages
    text = capsys.readouterr().out
    assert "lists of 2,000 sessions" in text
    assert all(kind in text for kind in kinds)
    assert max(map(len, text.splitlines())) <= WIDTH


def test_tiny_lists_of_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results.json"
    assert main(["--only", "lists", "--systems", "1 shard", "--output", str(output), *TINY]) == 0
    results = typed_json.decode(output.read_bytes(), type=Results)
    assert not results.failed
    systems = ["chatstate, PostgreSQL", "chatstate, SQLite", "chatstate, Valkey, 1 shard"]
    kinds = ["newest first", "by id", "by id, prefix of none"]
    pages = [(f"200 sessions, {kind}", system) for kind in kinds for system in systems]
    assert [(row.case, row.system) for row in results.rows] == pages
    assert len(results.comparisons) == 2 * 3
    assert all(results.ratio(compared, "p50") for compared in results.comparisons)
    text = capsys.readouterr().out
    assert text.count("page 1 : PostgreSQL's") == 2 * 3
    assert "Valkey, 1 shard" in text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_tiny_moving(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ("chatstate backup, SQLite", "chatstate copy, PostgreSQL to SQLite")  # the others are moved once only
    monkeypatch.setattr(moving, "BESIDE", {name: moving.BESIDE[name] for name in ours})
    output = tmp_path / "results.json"
    assert main(["--only", "moving", "--output", str(output), *TINY]) == 0
    results = typed_json.decode(output.read_bytes(), type=Results)
    assert not results.failed
    names = [f"{name}, 40 rows" for name in moving.WAYS] + [f"{name}, 8 rows" for name in moving.BESIDE]
    assert sorted(row.system for row in results.rows) == sorted(names)
    for row in results.rows:
        (figures,) = row.rounds
        assert figures.requests == int(row.system.split()[-2])
        assert figures.memory_mb is not None
    assert len(results.comparisons) == 2 * len(moving.BESIDE)
    text = capsys.readouterr().out
    for compared in results.comparisons:
        assert compared.what in text
        assert all(results.ratio(compared, measure) for measure in compared.measures if measure != "cpu_us")
    assert max(map(len, text.splitlines())) <= WIDTH


async def test_what_is_moved_is_kept_as_it_is(tmp_path: Path) -> None:
    rows = list(moving.rows_of(3, 200))
    await moving.put(sqlite_url(tmp_path), 3, 200)
    store = create_store(sqlite_url(tmp_path), owner=False)
    await store.open()
    try:
        found = [row for shelf in SHELVES async for page in pages_of(store.inner, shelf) for row in page]
    finally:
        await store.close()
    assert sorted(map(str, found)) == sorted(map(str, rows))
    assert Counter(shelf_of(row) for row in rows) == {"sessions": 3, "versions": 6, "visits": 3}
    assert {len(row.chat_state) for row in rows if isinstance(row, SessionRow)} == {200}


def test_a_command_is_watched_to_its_end(tmp_path: Path) -> None:
    text = "import hashlib; print('begun', flush=True); hashlib.sha256(b'x' * (100 << 20))"
    used = moving.run(moving.Command((sys.executable, "-c", text), {}), tmp_path)
    assert used.memory_mb > 100
    assert used.cpu_seconds > 0
    assert used.seconds > 0


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    command = moving.Command((sys.executable, "-c", "import os, sys; sys.exit(os.environ['WHY'])"), {"WHY": "no disk"})
    with pytest.raises(RunFailed, match="no disk"):
        moving.run(command, tmp_path)


def test_a_command_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "MOST_SECONDS", 0.1)
    with pytest.raises(RunFailed, match="went on for more than"):
        moving.run(moving.Command((sys.executable, "-c", "while True: pass"), {}), tmp_path)
    assert not [child for child in psutil.Process().children() if "while True: pass" in child.cmdline()]


def test_tiny_live(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SAVES", 20), ("WATCHERS", 10), ("IDLE_SECONDS", 0.01)):
        monkeypatch.setattr(live, name, value)
    output = tmp_path / "results.json"
    assert main(["--only", "live", "--systems", "PostgreSQL", "--output", str(output), *TINY]) == 0
    results = typed_json.decode(output.read_bytes(), type=Results)
    found = {fact.name: fact.values for fact in results.facts}
    assert results.failed == []
    for name in ("PostgreSQL", "PostgreSQL, two processes"):
        (latency,) = found[f"p99 from a save to its event, chatstate, {name}"]
        assert latency > 0
    assert len([name for name in found if name.startswith("memory of an idle")]) == 2
    assert "p50 from a save to its event, chatstate, PostgreSQL" in capsys.readouterr().out


def test_tiny_inbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MESSAGES", 20), ("DELIVERIES", 2), ("TURNS", 5)):
        monkeypatch.setattr(inbox, name, value)
    output = tmp_path / "results.json"
    assert main(["--only", "inbox", "--systems", "SQLite", "--output", str(output), *TINY]) == 0
    results = typed_json.decode(output.read_bytes(), type=Results)
    found = {fact.name: fact.values for fact in results.facts}
    assert results.failed == []
    assert len(found) == 7
    assert all(value > 0 for values in found.values() for value in values)


async def test_a_far_page_is_found_by_the_links() -> None:
    async def page(asked: Asked, writer: asyncio.StreamWriter) -> None:
        given = dict(parse_qsl(urlsplit(asked.path.decode()).query))
        behind = int(given.get("cursor", 0)) + int(given["limit"])
        link = f'Link: </list?limit={given["limit"]}&order=id&cursor={behind}>; rel="next"\r\n'
        writer.write(answer(b"{}", headers=link.encode().lower() if behind < 2500 else b""))

    async with serving(page) as server:
        client = await asyncio.to_thread(Client, server.port)
        with closing(client):
            far = await asyncio.to_thread(client.find, "/list?limit=100&order=id", 24)
            assert far == "/list?limit=100&order=id&cursor=2300"
            assert [asked.path.count(b"limit=1000&") for asked in server.asked] == [1, 1, 0, 0, 0]
            with pytest.raises(RunFailed, match="the list ends"):
                await asyncio.to_thread(client.find, "/list?limit=100", 30)


def test_an_interrupt_leaves_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.__main__.perform", interrupted)
    assert main(["--output", str(tmp_path / "results.json")]) == 130
    assert json.loads((tmp_path / "results.json").read_bytes())["rows"] == []


# --- Figures and text -------------------------------------------------------------------------------------------------


def figures(number: int, rate: float, p99: float = 1.0, errors: int = 0) -> Figures:
    latency = Latency(10, p99 / 2, p99 / 2, p99, p99, p99)
    example = "HTTP/1.1 500" if errors else ""
    return Figures(round=number, rate=rate, requests=10, errors=errors, example=example, saves=latency)


def test_ratios_are_taken_within_rounds() -> None:
    results = Results(date="2026-01-01T00:00:00Z")
    for number, (high, low) in enumerate([(10, 1), (200, 100), (3000, 1000)]):
        results.add("comparison", STANDARD, "chatstate, SQLite", "save", figures(number, high))
        results.add("comparison", STANDARD, "Peer", "save", figures(number, low))
    ours, theirs = (results.find(STANDARD, name, "save") for name in ("chatstate, SQLite", "Peer"))
    assert ratio(ours, theirs, "rate") == 3  # of 10, 2 and 3; the ratio of the medians would be 2
    results.add("comparison", STANDARD, "Peer", "save", figures(3, 1.0, errors=1))
    results.add("comparison", STANDARD, "chatstate, SQLite", "save", figures(3, 1000.0))
    assert ratio(ours, theirs, "rate") == 3
    assert ratio(ours, None, "rate") is None
    results.summarise()
    assert [(found.theirs, found.measure, found.median) for found in results.ratios] == [
        ("Peer", "rate", 3),
        ("Peer", "p99", 1),
    ]
    (first, _) = results.summary
    assert (first.system, first.errors, first.values["rate"]) == ("chatstate, SQLite", 0, Spread(600, 10, 3000))


def test_the_report_puts_ratios_first_and_flags_errors() -> None:
    results = Results(date="2026-01-01T00:00:00Z")
    results.add("comparison", STANDARD, "chatstate, PostgreSQL", "save", figures(0, 8000, p99=10))
    results.add("comparison", STANDARD, "Replaced", "save", figures(0, 1000, p99=200))
    results.add("comparison", STANDARD, "Broken", "save", figures(0, 10, errors=3))
    results.fact("peers", "start, Replaced", "s", 1.25)
    lines = report(results).splitlines()
    assert max(map(len, lines)) <= WIDTH
    titles = [line for line in lines if line and not line.startswith(" ")]
    assert titles[1] == "Ratios of chatstate, PostgreSQL"
    assert any(line.split() == ["to", "Replaced", "×8", "1/20.0"] for line in lines)
    assert any(line.split()[:2] == ["Broken", "10!"] for line in lines)
    assert any("Broken, standard, save: 3, such as 'HTTP/1.1 500'" in line for line in lines)


def test_floors_that_are_missed_are_named() -> None:
    results = Results(date="2026-01-01T00:00:00Z")
    names: list[RowName] = [("case", "chatstate, SQLite", mix) for mix in ("conditional", "keyed", "save")]
    for (case, system, mix), rate in zip(names, (80, 90, 100), strict=True):
        results.add("turns", case, system, mix, figures(0, rate))
    for what, ours in (("dear", names[0]), ("cheap", names[1])):
        compared = Comparison(what=what, ours=ours, theirs=names[2], measures=("rate",), floors={"rate": 1.15})
        results.comparisons.append(compared)
    lines = [line.split() for line in report(results).splitlines()]
    assert ["dear", "SQLite", "×0.80", "×1.00", "MISSED:", "rate", "80"] in lines
    assert ["cheap", "SQLite", "×0.90", "×1.00", "met", "90"] in lines
    results.summarise()
    assert [(found.mix, found.median) for found in results.ratios] == [("conditional", 0.8), ("keyed", 0.9)]


def test_every_round_has_another_order() -> None:
    class Named:
        mixes = ("save",)

        def __init__(self, name: str) -> None:
            self.name = name

    cast = [Named("a"), Named("b"), Named("c")]
    orders = ["".join(who.name for who in ordered(cast, number)) for number in range(3)]  # type: ignore[arg-type]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert len(set(orders)) == 3


def test_pgbench_runs_the_upsert_of_chatstate() -> None:
    upsert = sql.statement("postgres", "upsert")
    text = script(upsert, '{"turn":', batch=2, sessions=100)
    *settings, statement = text.strip().splitlines()
    assert settings[:2] == ["\\set n0 random(0, 49)", "\\set n1 random(50, 99)"]
    assert "$" not in statement
    assert statement.index(":n0") < statement.index(":n1")
    kept = upsert[upsert.index("ON CONFLICT") :]
    assert statement.endswith(" ".join(kept.split()) + ";")
