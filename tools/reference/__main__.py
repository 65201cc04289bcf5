"""`python -m tools.reference` writes the files that `chatstate.http.reference` serves."""

from __future__ import annotations

import json
from pathlib import Path

import chatstate
from chatstate.http.routes import ENDPOINTS
from tools.reference.openapi import document
from tools.reference.page import page

FOLDER = Path(chatstate.__file__).parent / "http"


def contents() -> dict[Path, str]:
    """What belongs into each file."""
    spec = document(ENDPOINTS)
    return {FOLDER / "openapi.json": json.dumps(spec, indent=1) + "\n", FOLDER / "docs.html": page(spec)}


if __name__ == "__main__":
    for path, text in contents().items():
        path.write_text(text, "utf-8")
