"""The HTTP contract, on a real server over every store."""
# ruff: noqa: A005
