"""How PostgreSQL carries out our statements, also when it has made its plan while the tables were empty.

It keeps a plan until the table's statistics change, and a table may grow by a hundred thousand rows before they do.
"""

from __future__ import annotations

import uuid
from itertools import pairwise
from typing import Any

import pytest

from chatstate.stores.postgres_connection import session_settings
from chatstate.stores.postgres_schema import Schema
from chatstate.stores.postgres_sessions import statement
from tests.stores.old_tables import connected, migrated

TIME = "'2025-10-02T10:00:00Z'"
SAVES = f"{TIME}, NULL, '{{a}}', '{{{uuid.uuid4()}}}', '{{x}}', '{{2025-10-02Z}}', '{{2025-10-02Z}}', '{{1}}'"


async def plan_of(connection: Any, name: str, values: str, history: int = 0) -> list[str]:
    """The generic plan of the statement, made on tables that are empty, and known to be."""
    return await plan_of_statement(connection, statement(Schema("public"), name, history), values)


async def plan_of_statement(connection: Any, text: str, values: str) -> list[str]:
    settings = {**session_settings(), "plan_cache_mode": "force_generic_plan"}
    for setting, value in settings.items():
        await connection.execute(f"SET {setting} = '{value}'")
    await connection.execute("VACUUM ANALYZE")
    await connection.execute(f"PREPARE planned AS {text}")
    return [row[0].strip() for row in await connection.fetch(f"EXPLAIN (COSTS off) EXECUTE planned ({values})")]


@pytest.mark.parametrize(
    ("name", "values", "history"),
    [
        ("load", f"{TIME}, NULL, '{{a}}'", 0),
        ("tags", f"{TIME}, NULL, '{{a}}'", 0),
        ("upsert", SAVES, 0),
        ("upsert", SAVES, 10),
        ("recall", f"{TIME}, '{{a}}', '{{x}}', '{{k}}'", 0),
        ("versions", f"{TIME}, NULL, 'a', 5, NULL, false, 10", 0),
        ("sweep", f"{TIME}, 10", 0),
        ("sweep_keys", f"{TIME}, 10", 0),
        ("sweep_records", f"{TIME}, 10", 0),
        ("sweep_visits", f"{TIME}, 10", 0),
        ("sweep_page", f"{TIME}, NULL, '', 10", 0),
    ],
)
async def test_no_statement_reads_a_whole_table(name: str, values: str, history: int, postgres_url: str) -> None:
    async with migrated(postgres_url), connected(postgres_url) as connection:
        plan = await plan_of(connection, name, values, history)
    assert not [line for line in plan if "Seq Scan" in line]
    found = [following for line, following in pairwise(plan) if "Index" in line and " Scan " in line]
    assert all(line.startswith("Index Cond") for line in found), plan


async def test_keys_that_are_remembered_slow_down_no_other(postgres_url: str) -> None:
    """The index by time would do for an empty table, and then have all keys that are not forgotten yet."""
    async with migrated(postgres_url), connected(postgres_url) as connection:
        plan = "\n".join(await plan_of(connection, "recall", f"{TIME}, '{{a}}', '{{x}}', '{{k}}'"))
    assert "Index Scan using idempotency_keys_pkey" in plan
    for column in ("user_session_id", "caller", "key"):
        assert f"({column} = w.{column})" in plan.partition("Index Cond")[2]


async def test_versions_of_others_slow_down_no_save(postgres_url: str) -> None:
    async with migrated(postgres_url), connected(postgres_url) as connection:
        plan = await plan_of(connection, "upsert", SAVES, history=10)
    conditions = [line for line in plan if line.startswith("Index Cond") and "table_schema" in line]
    assert len(conditions) == 2, "of the version before, and of those that are too old"
    assert all("session_id" in condition for condition in conditions)
