"""`python -m chatstate`."""

from __future__ import annotations

from chatstate.cli import main

main()
