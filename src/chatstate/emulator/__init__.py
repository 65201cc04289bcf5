"""An emulator of the WhatsApp Cloud API, for development and tests: a WhatsApp bot without an account.

`chatstate whatsapp emulate` runs it; `Emulator` is for tests. It keeps nothing, and talks to this machine alone.
"""

from __future__ import annotations

from chatstate.emulator.app import PORT, WEBHOOK, Emulator
from chatstate.emulator.delivery import Delivery, Network, Webhook, longer_each_time, sign
from chatstate.emulator.graph import GraphError, Limits, Outgoing
from chatstate.emulator.payloads import Account, Identities, Person, Update, encode
from chatstate.emulator.phones import Sent

__all__ = [
    "PORT",
    "WEBHOOK",
    "Account",
    "Delivery",
    "Emulator",
    "GraphError",
    "Identities",
    "Limits",
    "Network",
    "Outgoing",
    "Person",
    "Sent",
    "Update",
    "Webhook",
    "encode",
    "longer_each_time",
    "sign",
]
