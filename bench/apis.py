"""How a save and a load look on the wire of each system: plain bytes, which the load generator only has to send."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from msgspec import json


class Api(ABC):
    """Requests for session `number` (0, 1, 2 …), HTTP/1.1 with keep-alive, complete with their heads."""

    @abstractmethod
    def save(self, number: int, state: str) -> bytes:
        """Create the session or replace its state."""

    @abstractmethod
    def load(self, number: int) -> bytes:
        """Load the session's state."""

    def fill(self, number: int, state: str) -> bytes:
        """Create the session, for systems whose save only works on one that is there."""
        return self.save(number, state)

    def append(self, number: int, message: str) -> bytes:
        """Append a message, the text of JSON, to the member `messages` of the state; only for those that can."""
        raise NotImplementedError


class WithCredentials(Api):
    """Another one's requests with a credential: each session has its own, or all share one."""

    def __init__(self, api: Api, bearers: Sequence[str]) -> None:
        self._api = api
        self._fields = [f"Host: 127.0.0.1\r\nAuthorization: Bearer {bearer}\r\n".encode() for bearer in bearers]

    def save(self, number: int, state: str) -> bytes:
        return self._with_field(number, self._api.save(number, state))

    def load(self, number: int) -> bytes:
        return self._with_field(number, self._api.load(number))

    def fill(self, number: int, state: str) -> bytes:
        return self._with_field(number, self._api.fill(number, state))

    def append(self, number: int, message: str) -> bytes:
        return self._with_field(number, self._api.append(number, message))

    def _with_field(self, number: int, request: bytes) -> bytes:
        return request.replace(b"Host: 127.0.0.1\r\n", self._fields[number % len(self._fields)], 1)


def request(
    method: str, path: str, body: bytes = b"", headers: str = "", media_type: str = "application/json"
) -> bytes:
    """One request to 127.0.0.1; `headers` are further lines, each with its line end."""
    length = f"Content-Type: {media_type}\r\nContent-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}{length}\r\n".encode() + body


def user_session_id(number: int) -> str:
    return f"session-{number:08d}"


class ChatState(Api):
    """The seed's endpoints: those of chatstate, of the service that it replaces, and of the FastAPI peer."""

    def save(self, number: int, state: str) -> bytes:
        body = json.encode({"user_session_id": user_session_id(number), "chat_state": state})
        return request("POST", "/chat-state-sessions", body)

    def load(self, number: int) -> bytes:
        return request("GET", f"/chat-state-sessions/{user_session_id(number)}")

    def append(self, number: int, message: str) -> bytes:
        patch = b'[{"op":"add","path":"/messages/-","value":%b}]' % message.encode()
        path = f"/chat-state-sessions/{user_session_id(number)}"
        return request("PATCH", path, patch, media_type="application/json-patch+json")


class PocketBase(Api):
    """Records of a collection, whose ids are the sessions'; a save updates (bench/peers/pocketbase.py says why)."""

    records = "/api/collections/chat_state_sessions/records"

    def save(self, number: int, state: str) -> bytes:
        return request("PATCH", f"{self.records}/{user_session_id(number)}", json.encode({"chat_state": state}))

    def load(self, number: int) -> bytes:
        return request("GET", f"{self.records}/{user_session_id(number)}")

    def fill(self, number: int, state: str) -> bytes:
        name = user_session_id(number)
        return request("POST", self.records, json.encode({"id": name, "user_session_id": name, "chat_state": state}))


class Kinto(Api):
    """Records, whose ids are the sessions', spread over collections (bench/peers/kinto.py says why)."""

    bucket = "/v1/buckets/chatstate"
    collections = 250

    def save(self, number: int, state: str) -> bytes:
        return request("PUT", self._record(number), json.encode({"data": {"chat_state": state}}))

    def load(self, number: int) -> bytes:
        return request("GET", self._record(number))

    def _record(self, number: int) -> str:
        return f"{self.collection(number)}/records/{user_session_id(number)}"

    def collection(self, number: int) -> str:
        """The path of the collection that keeps the session."""
        return f"{self.bucket}/collections/sessions-{number % self.collections:03d}"


APIS: dict[str, Api] = {"chatstate": ChatState(), "pocketbase": PocketBase(), "kinto": Kinto()}
