"""Chance that can be replayed."""

from __future__ import annotations

import os
import random
import sys

SEED_VARIABLE = "CHATSTATE_TEST_SEED"


def seeded() -> random.Random:
    """Chance that can be replayed: a test that fails shows its seed, and the variable sets it."""
    seed = os.environ.get(SEED_VARIABLE) or str(random.SystemRandom().randrange(1 << 32))
    sys.stdout.write(f"replay this with {SEED_VARIABLE}={seed}\n")
    return random.Random(int(seed))
