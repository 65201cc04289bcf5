"""A database of the service that chatstate replaces is adopted in place, also while that service still writes to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from chatstate.errors import OutcomeUnknown, WriteRefused
from chatstate.model import PRESENT, Conflict, Deleted, Session, Tag, none_of, one_of
from chatstate.stores import Store
from chatstate.stores.contract import NOW, deleting, saving
from tests.servers.postgres import database_of
from tests.stores.old_tables import (
    OLD_COLUMNS,
    OLD_ROWS,
    OUR_COLUMNS,
    OUR_TRIGGERS,
    PRISMA_TEXT,
    PRISMA_UUID,
    SEED,
    SEED_SQL,
    STARTS,
    STEPS,
    OldDatabase,
    commit_one,
    connected,
    load_one,
    migrated,
    old_database,
    opened,
    shape,
    with_query,
)

ID = "session_12345"


@pytest.fixture(params=STARTS, ids=lambda start: start.name)
async def old(request: pytest.FixtureRequest, postgres_url: str) -> AsyncIterator[OldDatabase]:
    """The old service's database, made in each way, on each server in turn."""
    async with old_database(request.param, postgres_url) as database:
        yield database


async def old_rows(old: OldDatabase) -> list[Any]:
    """All that the old service has stored, and where in the file: a changed or rewritten row would have moved."""
    rows = f"SELECT xmin, ctid, {OLD_COLUMNS} FROM chat_state_sessions ORDER BY user_session_id"
    return [await old.connection.fetchval(FILE), *await old.connection.fetch(rows)]


FILE = "SELECT pg_relation_filenode('chat_state_sessions')"


async def version_of(store: Store, user_session_id: str = ID) -> int:
    session = await load_one(store, user_session_id)
    assert session is not None
    return session.version


# --- What adoption leaves alone ---------------------------------------------------------------------------------------


async def test_rows_columns_and_indexes_stay_as_they_were(old: OldDatabase) -> None:
    rows, before = await old_rows(old), await shape(old.connection)
    assert len(rows) == 1 + len(OLD_ROWS)
    async with opened(old.store_url) as store:
        assert await shape(old.connection) == before  # opening alone changes nothing
        assert await store.migrate() == STEPS
        assert await store.migrate() == []
    after = await shape(old.connection)
    assert await old_rows(old) == rows
    assert after.columns == [*before.columns, *OUR_COLUMNS]
    assert (after.indexes, after.constraints) == (before.indexes, before.constraints)
    assert [name for name, _ in after.triggers] == OUR_TRIGGERS


async def test_old_rows_are_served(old: OldDatabase) -> None:
    rows = await old.connection.fetch("SELECT user_session_id, session_id::text FROM chat_state_sessions")
    async with migrated(old.store_url) as store:
        sessions = await store.load([*OLD_ROWS, "absent"], NOW)
    assert {key: session.chat_state for key, session in sessions.items()} == OLD_ROWS
    assert {key: session.tag for key, session in sessions.items()} == {key: Tag(sid, 1) for key, sid in rows}


async def test_our_writes_raise_the_version_by_one(old: OldDatabase) -> None:
    async with migrated(old.store_url) as store:
        writes = (saving(ID, "two"), saving(ID, "three", PRESENT), saving(ID, None, PRESENT))
        outcomes = [await commit_one(store, write) for write in writes]
        assert [(done.chat_state, done.version) for done in outcomes] == [("two", 2), ("three", 3), ("three", 4)]
        assert await load_one(store, ID) == outcomes[-1]
        created = await commit_one(store, saving("new"))
        assert (created.version, await load_one(store, "new")) == (1, created)
        assert await commit_one(store, deleting(ID)) == Deleted(outcomes[-1].tag)
    stored = await old.connection.fetch("SELECT user_session_id FROM chat_state_sessions")
    assert {row[0] for row in stored} == (OLD_ROWS.keys() - {ID}) | {"new"}


# --- The old service goes on ------------------------------------------------------------------------------------------

UPDATE = "UPDATE chat_state_sessions SET chat_state = $2 WHERE user_session_id = $1"
DELETE = "DELETE FROM chat_state_sessions WHERE user_session_id = $1"
UPSERT_TAIL = " ON CONFLICT (user_session_id) DO UPDATE SET chat_state = excluded.chat_state"


async def overtaken(store: Store, seen: Session) -> Session:
    """The session as the old service has left it, after showing that who has `seen` it before loses no turn."""
    now = await load_one(store, ID)
    assert now is not None
    assert now.tag != seen.tag
    assert await commit_one(store, saving(ID, "stale", one_of([seen.tag]))) == Conflict(now.tag)
    return now


async def test_what_the_old_service_changes_has_a_new_version(old: OldDatabase) -> None:
    async with migrated(old.store_url) as store:
        seen: Session = await commit_one(store, saving(ID, "ours"))
        for statement in (UPDATE, old.start.insert + UPSERT_TAIL, UPDATE):
            await old.connection.execute(statement, ID, "theirs")
            theirs = await overtaken(store, seen)
            assert (theirs.chat_state, theirs.version) == ("theirs", seen.version + 1)
            seen = await commit_one(store, saving(ID, "ours", one_of([theirs.tag])))
            assert seen.version == theirs.version + 1


async def test_what_the_old_service_makes_anew_has_a_new_tag(old: OldDatabase) -> None:
    async with migrated(old.store_url) as store:
        seen = await load_one(store, ID)
        assert seen is not None
        await old.connection.execute(DELETE, ID)
        assert await load_one(store, ID) is None
        assert await commit_one(store, saving(ID, "stale", one_of([seen.tag]))) == Conflict(None)
        await old.insert(ID, "second life")
        again = await overtaken(store, seen)
        assert (again.chat_state, again.version) == ("second life", 1)


async def test_the_old_service_reads_what_we_write(old: OldDatabase) -> None:
    async with migrated(old.store_url) as store:
        await commit_one(store, saving("ours", OLD_ROWS["large"]))
    query = "SELECT chat_state FROM chat_state_sessions WHERE user_session_id = 'ours'"
    assert await old.connection.fetchval(query) == OLD_ROWS["large"]


async def test_a_version_that_is_set_by_hand_stays(postgres_url: str) -> None:
    async with old_database(SEED, postgres_url) as old, migrated(postgres_url) as store:
        await old.connection.execute("UPDATE chat_state_sessions SET version = 40 WHERE user_session_id = $1", ID)
        assert await version_of(store) == 40
        await old.connection.execute("UPDATE chat_state_sessions SET version = version WHERE user_session_id = $1", ID)
        assert await version_of(store) == 41
        await old.connection.execute(UPDATE, "empty", "x")
        assert (await version_of(store), await version_of(store, "empty")) == (41, 2)


async def test_the_seed_sql_after_our_migration_adds_only_its_index(postgres_url: str) -> None:
    """The index that doubles the unique constraint is the only thing in it that a table of ours does not have."""
    async with migrated(postgres_url) as store, connected(postgres_url, search_path="public") as connection:
        session = await commit_one(store, saving(ID))
        before = await shape(connection)
        await connection.execute(SEED_SQL)
        after = await shape(connection)
        added = [name for name, _ in after.indexes if name not in dict(before.indexes)]
        assert added == ["idx_chat_state_sessions_user_session_id"]
        assert after._replace(indexes=before.indexes) == before
        assert await store.migrate() == []
        assert await load_one(store, ID) == session
        assert (await commit_one(store, saving(ID))).version == 2


# --- Times ------------------------------------------------------------------------------------------------------------

THEIR_TIME = datetime(2025, 7, 2, 10, 0, 0, 123000, UTC)
SET_TIMES = "UPDATE chat_state_sessions SET last_activity = '2025-07-02T10:00:00.123Z' WHERE user_session_id = $1"
TIMES = "SELECT last_activity::text, updated_at::text FROM chat_state_sessions WHERE user_session_id = $1"


@pytest.mark.parametrize("start", [PRISMA_TEXT, PRISMA_UUID, SEED], ids=lambda start: start.name)
@pytest.mark.parametrize("query", [{}, {"pgbouncer": "true"}], ids=["direct", "as-through-a-pooler"])
async def test_times_are_utc_whatever_the_servers_zone(start: Any, query: dict[str, str], postgres_url: str) -> None:
    async with connected(postgres_url) as owner:
        await owner.execute(f"ALTER DATABASE {database_of(postgres_url)} SET timezone = 'America/New_York'")
    async with old_database(start, postgres_url) as old, migrated(with_query(postgres_url, **query)) as store:
        assert await old.connection.fetchval("SHOW timezone") == "America/New_York"
        await old.connection.execute(SET_TIMES, ID)
        session = await load_one(store, ID)
        assert session is not None
        assert session.last_activity == THEIR_TIME
        assert session.last_activity.utcoffset() == timedelta(0)
        ours = await commit_one(store, saving(ID, now=NOW))
        assert await load_one(store, ID) == ours
        if start is SEED:
            assert list(await old.connection.fetchrow(TIMES, ID)) == ["2025-10-02 06:00:00.123456-04"] * 2
        else:
            assert list(await old.connection.fetchrow(TIMES, ID)) == ["2025-10-02 10:00:00.123"] * 2
            assert ours.last_activity == ours.updated_at == NOW.replace(microsecond=123000)


FIRST = datetime(1, 1, 1, tzinfo=UTC)
LAST = datetime(9999, 12, 31, 23, 59, 59, 999999, UTC)
BEYOND = {
    "infinity": LAST,
    "-infinity": FIRST,
    "20000-01-01 00:00:00": LAST,
    "9999-12-31 23:59:59.9999999": LAST,
    "0044-03-15 12:00:00 BC": FIRST,
}


@pytest.mark.parametrize("start", [SEED, PRISMA_TEXT], ids=lambda start: start.name)
async def test_times_beyond_the_calendar_are_its_ends(start: Any, postgres_url: str) -> None:
    """Other programs may store times that no client can read; such a session is served, and so are its neighbours."""
    async with old_database(start, postgres_url) as old, migrated(postgres_url) as store:
        await old.connection.execute("SET timezone = 'UTC'")
        for time in BEYOND:
            await old.insert(time, "{}")
            times = ", ".join(f"{column} = '{time}'" for column in ("last_activity", "created_at", "updated_at"))
            await old.connection.execute(f"UPDATE chat_state_sessions SET {times} WHERE user_session_id = $1", time)
        sessions = await store.load([*BEYOND, ID], NOW)
        assert sessions.keys() == {*BEYOND, ID}
        for time, end in BEYOND.items():
            session = sessions[time]
            assert [session.last_activity, session.created_at, session.updated_at] == [end] * 3


@pytest.mark.parametrize("start", [SEED, PRISMA_TEXT], ids=lambda start: start.name)
async def test_sessions_from_beyond_the_calendar_can_be_written(start: Any, postgres_url: str) -> None:
    async with old_database(start, postgres_url) as old, migrated(postgres_url) as store:
        for time in BEYOND:
            await old.insert(time, "{}")
        await old.connection.execute(
            "UPDATE chat_state_sessions SET created_at = '20000-01-01' WHERE chat_state = '{}'"
        )
        for expect in ({}, {"expect": PRESENT}):
            outcomes = await store.commit([saving(time, "new", now=LAST, **expect) for time in BEYOND])
            assert [(done.created_at, done.last_activity) for done in outcomes] == [(LAST, LAST)] * len(BEYOND)
        assert {session.version for session in (await store.load(list(BEYOND), NOW)).values()} == {4}


# --- Schemas ----------------------------------------------------------------------------------------------------------


async def test_two_schemas_of_one_database_are_independent(postgres_url: str) -> None:
    async with old_database(SEED, postgres_url) as old, opened(with_query(postgres_url, schema="app")) as in_app:
        before = await shape(old.connection)
        assert await in_app.migrate() == STEPS  # and makes the schema
        assert await shape(old.connection) == before
        await commit_one(in_app, saving(ID, "in app"))
        async with migrated(postgres_url) as in_public:
            session = await load_one(in_public, ID)
            assert session is not None
            assert session.chat_state == OLD_ROWS[ID]
            assert await commit_one(in_public, deleting(ID)) == Deleted(session.tag)
        assert await version_of(in_app) == 1
        assert await in_app.migrate() == []


async def test_a_table_is_found_on_the_search_path(postgres_url: str) -> None:
    async with connected(postgres_url) as owner:
        await owner.execute(f"ALTER DATABASE {database_of(postgres_url)} SET search_path = hidden, app, public")
    async with old_database(SEED._replace(schema="app"), postgres_url) as old, migrated(postgres_url) as store:
        assert await version_of(store) == 1
        assert [name for name, _ in (await shape(old.connection)).triggers] == OUR_TRIGGERS
        assert await old.connection.fetchval("SELECT to_regclass('public.chat_state_sessions')") is None


async def test_a_user_called_chatstate_keeps_the_table(postgres_url: str) -> None:
    """The search path of such a user begins with our own schema; a second table there must not hide the first one."""
    async with migrated(postgres_url) as store:
        session = await commit_one(store, saving("a", "kept"))
    async with connected(postgres_url) as connection:
        assert await connection.fetchval("SELECT current_schema()") == "chatstate", "the test's user has that name"
        await connection.execute(SEED_SQL)
        assert await connection.fetchval("SELECT count(*) FROM chatstate.chat_state_sessions") == 0
    async with migrated(postgres_url) as store:
        assert (await store.load(["a"], NOW))["a"] == session


async def test_a_row_that_is_refused_in_a_second_attempt_does_not_fail_its_neighbours(postgres_url: str) -> None:
    """A write that demands none of some versions is an update first, and an insert when that finds nothing."""
    async with connected(postgres_url) as connection:
        await connection.execute(SEED_SQL.replace("VARCHAR(255)", "VARCHAR(20)"))
    async with migrated(postgres_url) as store:
        expect = none_of([Tag("some other life", 1)])
        writes = [saving(key, "state", expect) for key in ("a", "b" * 30, "c")]
        outcomes = await store.commit(writes)
        assert [type(outcome) for outcome in outcomes] == [Session, WriteRefused, Session]
        assert sorted(await store.load(["a", "c"], NOW)) == ["a", "c"]


async def test_a_trigger_that_changes_ids_does_not_make_a_write_happen_twice(postgres_url: str) -> None:
    async with migrated(postgres_url) as store, connected(postgres_url) as connection:
        await connection.execute(
            """
            CREATE FUNCTION public.lower_ids() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN NEW.user_session_id := lower(NEW.user_session_id); RETURN NEW; END $$;
            CREATE TRIGGER lower_ids BEFORE INSERT ON public.chat_state_sessions
            FOR EACH ROW EXECUTE FUNCTION public.lower_ids();
            """
        )
        outcomes = await store.commit([saving("ann"), saving("Bob")])
        assert isinstance(outcomes[0], Session)
        assert isinstance(outcomes[1], OutcomeUnknown), "the row that was written has another id"
        assert {key: session.version for key, session in (await store.load(["ann", "bob"], NOW)).items()} == {
            "ann": 1,
            "bob": 1,
        }
