"""The SQL of the stores, one file for each statement, and their migrations in the order of their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import NamedTuple

from chatstate.encryption import HEAD_LENGTH, OVERHEAD, PLAIN, SEALED


class Migration(NamedTuple):
    """One step of the schema: its number (1, 2, 3 …), its name, and its SQL."""

    number: int
    name: str
    sql: str


def statement(store: str, name: str) -> str:
    """The text of `<store>/<name>.sql`."""
    return files(__name__).joinpath(store, f"{name}.sql").read_text()


def filled(template: str, words: Mapping[str, str]) -> str:
    """The template with each `{word}` replaced, in the order of the words; others stay as they are."""
    for word, value in words.items():
        template = template.replace(f"{{{word}}}", value)
    return template


def clear_size(column: str) -> str:
    """The size of the text in this column when it is not sealed (`chatstate.encryption`), in bytes; for any store."""
    size = f"octet_length({column})"
    return (
        f"CASE WHEN substr({column}, 1, {len(SEALED)}) = '{SEALED}' THEN ({size} - {HEAD_LENGTH}) * 3 / 4 - {OVERHEAD} "
        f"WHEN substr({column}, 1, {len(PLAIN)}) = '{PLAIN}' THEN {size} - {len(PLAIN)} ELSE {size} END"
    )


def migrations(store: str) -> list[Migration]:
    """The files `<store>/migrations/NNNN_name.sql`."""
    folder = files(__name__).joinpath(store, "migrations")
    names = sorted(file.name.removesuffix(".sql") for file in folder.iterdir() if file.name.endswith(".sql"))
    return [Migration(int(name[:4]), name, folder.joinpath(f"{name}.sql").read_text()) for name in names]
