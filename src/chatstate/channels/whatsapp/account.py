"""What a server is told of a WhatsApp business number."""

from __future__ import annotations

from msgspec import Struct


class WhatsAppAccount(Struct, frozen=True, kw_only=True):
    """A business number on Meta's Cloud API.

    app_secret       signs what Meta posts; empty: nothing is taken
    verify_token     what Meta shows when the webhook is set up, as the operator has chosen it
    access_token     with which replies are sent
    phone_number_id  of the number, as Meta's dashboard shows it
    number           the number itself, with its country code, in digits; empty: nobody can be led to it
    graph_url        where the API is; empty: Meta's own
    """

    app_secret: str = ""
    verify_token: str = ""
    access_token: str = ""
    phone_number_id: str = ""
    number: str = ""
    graph_url: str = ""

    def __repr__(self) -> str:
        return f"WhatsAppAccount({self.phone_number_id})"  # secrets reach logs by way of it
