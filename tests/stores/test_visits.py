"""Visits as the databases keep them: typed tables for whoever asks in SQL, several tenants, rights, and locked rows."""

from __future__ import annotations

import re
import secrets
import sqlite3
import uuid
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, urlsplit

import asyncpg
import pytest

from chatstate.errors import SessionLocked, StoreUnavailable, WriteRefused
from chatstate.model import EVERYTHING, Session
from chatstate.stores import Store
from chatstate.stores.base import AnyWrite
from chatstate.stores.contract import saving
from chatstate.stores.sql import statement
from chatstate.stores.sqlite_visits import _statement, _within
from chatstate.stores.visit_contract import FULL, START, creating
from chatstate.visit import Changes, ChangeVisit, ChangeVisits, Visit, VisitMissing, VisitQuery, VisitsChanged
from tests.servers.postgres import database_of
from tests.stores.old_tables import SEED, connected, migrated, old_database, opened, with_query

USER = "session_12345"


async def commit_one(store: Store, write: Any) -> Any:
    (outcome,) = await store.commit([write])
    return outcome


async def visits(store: Store, **query: Any) -> list[Visit]:
    return cast(list[Visit], list(await store.list(VisitQuery(**query))))


# --- In SQL -----------------------------------------------------------------------------------------------------------


async def test_postgres_has_typed_columns(postgres_url: str) -> None:
    async with migrated(postgres_url) as store, connected(postgres_url) as connection:
        for minutes, address in ((3, "203.0.113.7"), (5, "203.0.113.250"), (100, "2001:db8::7")):
            end = START + timedelta(minutes=minutes)
            await commit_one(store, creating(USER, session_end_time=end, ip_address=address, session_completed=True))
        row = await connection.fetchrow(
            "SELECT avg(session_duration_minutes), max(session_end_time - session_start_time), "
            "bool_and(session_completed) FROM chatstate.visits "
            "WHERE table_schema = 'public' AND ip_address <<= '203.0.113.0/24'"
        )
        assert tuple(row) == (4, timedelta(minutes=5), True)


async def test_in_postgres_the_rules_hold_for_other_programs(postgres_url: str) -> None:
    async with migrated(postgres_url) as store, connected(postgres_url, timezone="Asia/Tokyo") as connection:
        visit = await commit_one(store, creating(USER))
        await connection.execute("UPDATE chatstate.visits SET session_end_time = session_start_time + '7 minutes'")
        await connection.execute(
            "INSERT INTO chatstate.visits (table_schema, user_session_id) VALUES ('public', 'sql')"
        )
        (changed,) = await visits(store, session_id=visit.session_id)
        assert (changed.session_end_time, changed.session_duration_minutes) == (START + timedelta(minutes=7), 7)
        (made,) = await visits(store, user_session_id="sql")
        assert abs(made.session_start_time - datetime.now(UTC)) < timedelta(minutes=1)
        assert (made.total_messages_count, made.session_completed) == (0, False)
        for assignment in (
            "session_end_time = 'infinity'",
            "session_start_time = '0001-01-01 BC'",
            "total_messages_count = -1",
            "given_duration_minutes = -1",
            "session_duration_minutes = 5",
            "ip_address = 'unknown'",
        ):
            with pytest.raises(asyncpg.PostgresError):
                await connection.execute(f"UPDATE chatstate.visits SET {assignment}")


async def test_sqlite_has_typed_columns_and_rules(tmp_path: Path) -> None:
    path = tmp_path / "chatstate.db"
    async with migrated(f"sqlite:///{path}") as store:
        visit = await commit_one(store, creating(USER))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE chat_sessions SET session_end_time = session_start_time + 7 * 60 * 1000000")
        query = (
            "SELECT datetime(session_start_time / 1000000, 'unixepoch'), session_duration_minutes FROM chat_sessions"
        )
        assert connection.execute(query).fetchall() == [("2025-10-02 10:00:00", 7)]
        for assignment in (
            "session_end_time = '2025-10-02'",
            f"session_end_time = {1 << 62}",
            "total_messages_count = -1",
            "given_duration_minutes = 1.5",
            "session_duration_minutes = 5",
            "session_completed = 2",
            "user_id = 'a' || char(0)",
        ):
            with pytest.raises(sqlite3.Error):
                connection.execute(f"UPDATE chat_sessions SET {assignment}")
        connection.commit()
    async with opened(f"sqlite:///{path}") as store:
        assert [row.session_duration_minutes for row in await visits(store, session_id=visit.session_id)] == [7]


def test_sqlite_finds_pages_by_an_index(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "plain.db")) as connection:
        connection.executescript(statement("sqlite", "migrations/0003_visits"))
        parameters = {"start": 0, "id": "", "limit": 1, "user_session_id": "", "session_id": "", **_within(EVERYTHING)}
        for name, index in (
            ("visit_one", "sqlite_autoindex_chat_sessions_1"),
            ("visit_page", "chat_sessions_start"),
            ("visit_page_user", "chat_sessions_user"),
            ("visit_change_user", "chat_sessions_user"),
        ):
            sql = _statement(name).replace("{assignments}", "user_id = NULL")
            used = {key: parameters[key] for key in re.findall(r":(\w+)", sql.partition("\n")[2])}
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", used)]
            assert len(plan) == 1
            assert plan[0].startswith(f"SEARCH chat_sessions USING INDEX {index} (")


@pytest.mark.parametrize(("name", "index"), [("visit_page", "visits_start"), ("visit_page_user", "visits_user")])
async def test_postgres_finds_pages_by_an_index(name: str, index: str, postgres_url: str) -> None:
    async with migrated(postgres_url), connected(postgres_url, enable_seqscan="off") as connection:
        sql = statement("postgres", name).replace("{columns}", "*").replace("{name}", "'public'")
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        one = "$6" in sql
        values = f"'2025-10-02Z', '{uuid.uuid4()}', 10, '', NULL" + (", 'u'" if one else "")
        types = ", ".join(("text", "uuid", "bigint", "text", "text", "text")[: 6 if one else 5])
        await connection.execute(f"PREPARE page ({types}) AS {sql}")
        plan = [row[0] for row in await connection.fetch(f"EXPLAIN EXECUTE page ({values})")]
        assert f"Index Scan Backward using {index}" in "\n".join(plan)
        assert not [line for line in plan if "Sort" in line]
        assert all("starts_with" in line for line in plan if "Filter" in line), "who may see only some ids looks at all"


# --- Tenants and rights -----------------------------------------------------------------------------------------------


async def test_the_schemas_of_one_database_do_not_see_each_others_visits(postgres_url: str) -> None:
    async with migrated(postgres_url) as public, migrated(with_query(postgres_url, schema="app")) as app:
        write = creating(USER)
        visit = await commit_one(public, write)
        change = ChangeVisit(session_id=visit.session_id, changes=FULL)
        assert await commit_one(app, change) == VisitMissing()
        assert await commit_one(app, ChangeVisits(user_session_id=USER, changes=FULL)) == VisitsChanged(0)
        assert await visits(app) == await visits(app, user_session_id=USER) == []
        assert await visits(app, session_id=visit.session_id) == []
        assert await commit_one(app, creating("other", session_id=visit.session_id)) != visit
        assert await visits(public) == [visit]


async def test_a_database_of_the_old_service_gets_the_table_too(postgres_url: str) -> None:
    async with old_database(SEED, postgres_url), migrated(postgres_url) as store:
        visit = await commit_one(store, creating(USER))
        assert await visits(store) == [visit]


@pytest.fixture
async def role(postgres_url: str) -> AsyncIterator[tuple[str, str]]:
    """A role with no rights, and the URL with which it opens the same database."""
    name, password = f"visitor_{secrets.token_hex(4)}", secrets.token_hex(8)
    async with connected(postgres_url) as owner:
        await owner.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
        parts = urlsplit(postgres_url)
        host = parts.netloc.rpartition("@")[2]
        yield name, f"postgresql://{name}:{quote(password)}@{host}/{database_of(postgres_url)}"
        await owner.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


async def test_who_has_rights_on_the_old_table_alone_is_told_what_is_missing(
    role: tuple[str, str], postgres_url: str
) -> None:
    """Chat states work, and visits say which rights they need."""
    async with migrated(postgres_url), connected(postgres_url) as owner:
        await owner.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON public.chat_state_sessions TO {role[0]}")
        async with opened(role[1]) as store:
            assert (await commit_one(store, saving(USER))).is_new
            missing = r"permission denied for table visits.*GRANT.* ALL TABLES IN SCHEMA chatstate"
            for call in (store.commit([creating(USER)]), store.list(VisitQuery())):
                with pytest.raises(StoreUnavailable, match=missing):
                    await call
            saved, refused = await store.commit([saving(USER), creating(USER)])
            assert isinstance(saved, Session)
            assert isinstance(refused, StoreUnavailable)
            await owner.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA chatstate TO {role[0]}")
            visit = await commit_one(store, creating(USER))
            assert await visits(store) == [visit]


# --- Rows that others hold, and values that do not fit ----------------------------------------------------------------


async def test_a_visit_that_another_program_holds_is_locked_and_nothing_is_written(postgres_url: str) -> None:
    async with migrated(postgres_url) as store, connected(postgres_url) as holder:
        held, free = [await commit_one(store, creating(USER)) for _ in range(2)]
        await holder.execute(f"BEGIN; SELECT FROM chatstate.visits WHERE session_id = '{held.session_id}' FOR UPDATE")
        change = Changes(user_id="new")
        with pytest.raises(SessionLocked):
            await store.commit([ChangeVisit(session_id=row.session_id, changes=change) for row in (free, held)])
        assert {row.user_id for row in await visits(store)} == {None}
        changed = await commit_one(store, ChangeVisit(session_id=free.session_id, changes=change))
        assert changed.user_id == "new"
        await holder.execute("ROLLBACK")
        assert await commit_one(store, ChangeVisits(user_session_id=USER, changes=change)) == VisitsChanged(2)


async def test_a_visit_that_does_not_fit_fails_alone_beside_a_session(store: Store) -> None:
    """A batch of both: what has been written stays written, and the outcomes say what has not."""
    writes: list[AnyWrite] = [saving(USER), creating(USER, user_id="\x00"), creating(USER)]
    try:
        outcomes = await store.commit(writes)
    except WriteRefused:
        assert await visits(store) == []
        return
    assert isinstance(outcomes[1], WriteRefused)
    assert await visits(store) == [outcomes[2]]
