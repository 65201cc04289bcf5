"""Servers that the tests start for themselves: PostgreSQL, PgBouncer, and a proxy that breaks connections."""
