"""The stores. `create_store(url)` finds the one that a URL means; its driver is imported only then."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from chatstate.encryption import KeyRing
from chatstate.errors import InvalidSetting
from chatstate.stores.base import Outcome, Store, StoreStatus
from chatstate.stores.encrypted import EncryptedStore

if TYPE_CHECKING:
    from chatstate.stores.postgres_tuning import PostgresTuning

__all__ = ["EncryptedStore", "KeyRing", "Outcome", "Store", "StoreStatus", "create_store", "create_tuning"]


_POSTGRES = ("postgresql", "postgres")
_VALKEY = ("valkey", "valkeys")


def create_store(
    url: str,
    *,
    owner: bool = True,
    create: bool = True,
    pool_size: int | None = None,
    allow_unsafe: bool = False,
    key_ring: KeyRing | None = None,
) -> EncryptedStore:
    """The store that the URL means, not yet open.

    url           sqlite:///file.db (relative), sqlite:////folder/file.db (absolute), postgresql://user:password@host/database,
                  or valkey://user:password@host:port,host:port
    owner         whether this process serves the store: a SQLite file has one owner at a time
    create        whether a SQLite file that is not there yet is made
    pool_size     the most connections to PostgreSQL; by default what the URL's `connection_limit` says, else 6
    allow_unsafe  accept a PostgreSQL that may lose acknowledged writes (`fsync=off`)
    key_ring      the keys that states lie encrypted with; without any they are not

    Raises `InvalidSetting` for a URL that cannot be understood.
    """
    return EncryptedStore(_create(url, owner, create, pool_size, allow_unsafe), key_ring or KeyRing())


def _create(url: str, owner: bool, create: bool, pool_size: int | None, allow_unsafe: bool) -> Store:
    scheme = url.partition(":")[0].lower()
    if scheme == "sqlite":
        from chatstate.stores.sqlite import SQLiteStore

        return SQLiteStore(_sqlite_path(url), owner, create)
    if scheme in _POSTGRES:
        from chatstate.stores.postgres import PostgresStore

        return PostgresStore(url, pool_size, allow_unsafe)
    if scheme in _VALKEY:
        try:
            from chatstate.stores.valkey import ValkeyStore
        except ModuleNotFoundError as error:
            raise InvalidSetting(
                f"The store on a Valkey Cluster wants a driver ({error.name}): pip install 'chatstate[valkey]'"
            ) from None
        return ValkeyStore(url, allow_unsafe)
    raise InvalidSetting(
        f"No store is known for URLs that begin with {scheme!r}. Use --store sqlite:///chatstate.db, "
        "--store postgresql://user:password@host/database or --store valkey://user:password@host:port"
    )


def create_tuning(url: str) -> PostgresTuning | None:
    """What can be tuned in the store that the URL means; None where nothing can: we make those tables ourselves."""
    if url.partition(":")[0].lower() not in _POSTGRES:
        return None
    from chatstate.stores.postgres_tuning import PostgresTuning

    return PostgresTuning(url)


def _sqlite_path(url: str) -> Path:
    try:
        parts = urlsplit(url)
        path = unquote(parts.path).removeprefix("/")
    except ValueError:  # brackets in place of a host
        path = ""
    if not path or path == ":memory:" or "\0" in path or parts.netloc or parts.query:
        raise InvalidSetting(
            "A SQLite store is a file: --store sqlite:///chatstate.db (in the current folder) or "
            "--store sqlite:////var/lib/chatstate/chatstate.db (four slashes: an absolute path)"
        )
    return Path(path)
