"""The page "Put it on the internet": its files and commands, run as they stand there, but for places and ports."""

from __future__ import annotations

import json
import os
import re
import shutil
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from signal import SIGTERM
from typing import Any

import httpx
import pytest

from tests.servers.canaries import look_through
from tests.servers.ports import free_port
from tests.servers.postgres import poll_until

PAGE = (Path(__file__).parents[1] / "docs" / "howto" / "put-it-on-the-internet.md").read_text()
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
ORIGIN = "https://www.example.org"

needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is missing; on Debian: apt-get install nginx-light")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


class Machine:
    """A machine of the page, in a folder: its places lie there, and its name is `localhost` with other ports."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.inner, self.outer = free_port(), free_port()
        for folder in (
            "etc/nginx",
            "etc/chatstate",
            "var/lib/chatstate",
            "var/log/chatstate",
            "opt/chatstate/bin",
            "bin",
        ):
            (root / folder).mkdir(parents=True)
        self.certificate = root / "fullchain.pem"
        program = root / "opt/chatstate/bin/chatstate"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m chatstate "$@"\n')
        program.chmod(0o755)
        self.environment = {
            "PATH": f"{root}/bin:{os.environ['PATH']}",
            "CURL_CA_BUNDLE": str(self.certificate),
            "SSL_CERT_FILE": str(self.certificate),
            "NODE_EXTRA_CA_CERTS": str(self.certificate),
        }

    @property
    def url(self) -> str:
        return f"https://localhost:{self.outer}"

    def here(self, text: str) -> str:
        """The text, with the places of this machine."""
        text = re.sub(r"/etc/letsencrypt/live/chat.example.org/", f"{self.root}/", text)
        text = re.sub(r"(?<![\w/.])/(etc|var|opt)/", rf"{self.root}/\1/", text)
        text = text.replace("sqlite:////var/", f"sqlite:////{self.root}/var/").replace(
            "/usr/local/bin/", f"{self.root}/bin/"
        )
        text = text.replace("https://chat.example.org", self.url).replace("chat.example.org", "localhost")
        text = text.replace("listen 443 ssl", f"listen 127.0.0.1:{self.outer} ssl")
        text = text.replace("127.0.0.1:3000", f"127.0.0.1:{self.inner}").replace("_PORT=3000", f"_PORT={self.inner}")
        return text.replace("exec setpriv --reuid chatstate --regid chatstate --clear-groups", "exec")

    def shell(self, text: str, **variables: str) -> str:
        """What the commands print."""
        done = subprocess.run(
            ["/bin/sh", "-e", "-c", self.here(text)],
            cwd=self.root,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        look_through("the errors of a command of the page", done.stderr)
        return done.stdout

    def set_up(self) -> str:
        """Steps 1 and 2; the key."""
        (settings,) = blocks("ini")
        (self.root / "etc/chatstate/environment").write_text(self.here(settings))
        install, secret, _systemd, admin, *_ = blocks("bash")
        assert "pip install --quiet --require-hashes -r requirements.txt" in install
        self.shell(secret)
        return self.shell(f"{admin}\necho $CHATSTATE_KEY").strip()

    def start(self, *command: str | Path, ready: str, **variables: str) -> subprocess.Popen[bytes]:
        output = self.root / f"{Path(command[0]).name}.output"
        with output.open("ab") as log:
            process = subprocess.Popen(
                [str(word) for word in command], cwd=self.root, env=self.environment | variables, stdout=log, stderr=log
            )
        poll_until(lambda: _answers(ready) or process.poll() is not None, 30)
        assert _answers(ready), output.read_text()
        return process

    def serve(self) -> subprocess.Popen[bytes]:
        """As the unit does it."""
        lines = dict(re.findall(r"^(\w+)=(.*)$", self.here(blocks("systemd")[0]), re.MULTILINE))
        given = Path(lines["EnvironmentFile"]).read_text().splitlines()
        name, path = lines["LoadCredential"].split(":")
        credential = lines["Environment"].replace("%d/", str(self.root) + "/").split("=")
        shutil.copy(path, self.root / name)
        variables = dict(line.split("=", 1) for line in given) | {credential[0]: credential[1]}
        return self.start(*lines["ExecStart"].split(), ready=f"http://127.0.0.1:{self.inner}/healthz", **variables)

    def proxy(self) -> subprocess.Popen[bytes]:
        """nginx with the site of the page, in a frame that needs no rights."""
        openssl = (
            "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
        )
        self.shell(f"{openssl} -keyout privkey.pem -out fullchain.pem 2>/dev/null")
        site = self.root / "etc/nginx/site"
        site.write_text(self.here(blocks("nginx")[0]))
        places = "".join(
            f"{name}_temp_path {self.root}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        frame = self.root / "etc/nginx/nginx.conf"
        frame.write_text(
            f"daemon off; master_process off; pid {self.root}/nginx.pid; error_log stderr;\nevents {{}}\n"
            f"http {{ access_log off;\n{places}include {site};\n}}\n"
        )
        assert NGINX is not None
        return self.start(NGINX, "-p", self.root, "-c", frame, ready=f"{self.url}/healthz")


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, verify=False, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("machine"))


@pytest.fixture(scope="module")
def key(machine: Machine) -> Iterator[str]:
    """The API key, while everything runs."""
    with ExitStack() as stack:
        key = machine.set_up()
        for process in (machine.serve(), machine.proxy()):
            stack.callback(process.wait, 20)
            stack.callback(process.send_signal, SIGTERM)
        yield key
    for output in machine.root.glob("*.output"):
        look_through(output.name, output.read_text())


@pytest.fixture
def outside(machine: Machine, key: str) -> Iterator[httpx.Client]:
    trusted = ssl.create_default_context(cafile=machine.certificate)
    with httpx.Client(base_url=machine.url, verify=trusted, timeout=20) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@needs_nginx
def test_the_look_from_outside_shows_what_the_page_says(machine: Machine, key: str) -> None:
    look = next(block for block in blocks("bash") if "/healthz" in block)
    statuses = [
        machine.shell(
            line.replace("curl ", "curl --silent --output /dev/null --write-out %{http_code} "), CHATSTATE_KEY=key
        )
        for line in look.splitlines()
    ]
    assert statuses == ["200", "401", "404"]


@needs_nginx
def test_the_secrets_are_their_owners_alone(machine: Machine, key: str) -> None:
    assert stat.S_IMODE((machine.root / "etc/chatstate/encryption_keys").stat().st_mode) == 0o600
    assert stat.S_IMODE((machine.root / "var/lib/chatstate/chatstate.db").stat().st_mode) == 0o600
    assert stat.S_IMODE((machine.root / "var/log/chatstate/audit.jsonl").stat().st_mode) == 0o600


@needs_nginx
def test_ids_arrive_as_they_were_sent(outside: httpx.Client, key: str) -> None:
    for name in ("a/b", "a%2Fb", "ä ☃", "a//b/../c", "+ &?"):
        body = {"user_session_id": name, "chat_state": json.dumps({"name": name})}
        made = outside.post("/chat-state-sessions", json=body, headers=bearer(key))
        assert made.status_code == 201
        loaded = outside.get(made.headers["location"], headers=bearer(key))
        assert json.loads(loaded.json()["chat_state"]) == {"name": name}


@needs_nginx
def test_the_largest_state_passes_and_no_larger_one(outside: httpx.Client, key: str) -> None:
    for size, status in ((1 << 20, 201), ((1 << 20) + 1, 413)):
        body = {"user_session_id": f"size {size}", "chat_state": "x" * size}
        assert outside.post("/chat-state-sessions", json=body, headers=bearer(key)).status_code == status


@needs_nginx
def test_the_documents_name_the_address_outside(outside: httpx.Client, key: str) -> None:
    assert outside.get("/openapi.json").json()["servers"] == [{"url": "https://localhost"}]


@needs_nginx
def test_a_listed_page_may_call_and_no_other_one(outside: httpx.Client, key: str) -> None:
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}
    allowed = outside.options("/chat-state-sessions", headers={"Origin": ORIGIN, **asking})
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    for origin in ("https://evil.example", "http://www.example.org", "null", f"{ORIGIN}.evil.example"):
        refused = outside.options("/chat-state-sessions", headers={"Origin": origin, **asking})
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers


@needs_nginx
def test_the_audit_log_has_the_clients_address_and_nobody_can_fake_it(
    machine: Machine, outside: httpx.Client, key: str
) -> None:
    spoofed = {"X-Forwarded-For": "203.0.113.7", "Forwarded": "for=203.0.113.7", "X-Real-IP": "203.0.113.7"}
    assert outside.get("/chat-state-sessions", headers=spoofed).status_code == 401
    line = json.loads((machine.root / "var/log/chatstate/audit.jsonl").read_text().splitlines()[-1])
    assert (line["result"], line["address"]) == ("unauthorized", "127.0.0.1")


@needs_nginx
def test_the_audit_log_is_found_by_its_id_and_moved_away(machine: Machine, outside: httpx.Client, key: str) -> None:
    log = machine.root / "var/log/chatstate/audit.jsonl"
    outside.get("/chat-state-sessions/session_12345", headers=bearer(key))
    find = next(block for block in blocks("bash") if "audit-id" in block)
    assert json.loads(machine.shell(find).splitlines()[-1])["what"] == "load"
    log.rename(log.with_suffix(".1"))
    outside.get("/chat-state-sessions/session_12345", headers=bearer(key))
    assert len(log.read_text().splitlines()) == 1
    if logrotate := shutil.which("logrotate", path=f"{os.environ['PATH']}:/usr/sbin"):
        (machine.root / "logrotate").write_text(
            machine.here(blocks("logrotate")[0]).replace("su chatstate chatstate", "")
        )
        subprocess.run([logrotate, "--debug", machine.root / "logrotate"], check=True, capture_output=True)


@needs_nginx
def test_the_back_end_gets_tokens(machine: Machine, outside: httpx.Client, key: str) -> None:
    code = machine.here(blocks("python")[0]) + "\nprint(json.dumps([session_token('visitor-1'), session_token()]))\n"
    done = subprocess.run(
        [sys.executable, "-c", code], env=machine.environment | {"CHATSTATE_KEY": key}, capture_output=True, check=True
    )
    named, new = json.loads(done.stdout)
    assert named["user_session_id"] == "visitor-1"
    assert len(new["user_session_id"]) == 32
    mine = outside.get("/chat-state-sessions/visitor-1", headers=bearer(named["token"]))
    other = outside.get("/chat-state-sessions/visitor-1", headers=bearer(new["token"]))
    assert mine.json() == other.json()
    assert mine.json()["code"] == "session_not_found"


@needs_nginx
def test_the_page_saves_loads_and_renews(machine: Machine, outside: httpx.Client, key: str) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is missing; on Debian: apt-get install nodejs")
    made = outside.post(
        "/tokens", json={"user_session_id": "visitor-2", "ttl_seconds": 100}, headers=bearer(key)
    ).json()
    code = f"""{machine.here(blocks("js")[0])}
    (async () => {{
      session = {json.dumps(made)};
      const first = session.token;
      console.log((await save({{step: "language"}})).status, first === session.token);
      console.log(await (await load()).text());
      const kept = fetch;  // the site's own route: it is not there, so it answers here, as the page says
      globalThis.fetch = (place, options) =>
        place == "/my/session-token" ? Response.json({json.dumps(made)}) : kept(place, options);
      session = {{...session, token: session.token + "x", expires_at: "2000-01-01T00:00:00Z"}};
      console.log((await load()).status, session.token === first);
    }})();
    """
    done = subprocess.run([node, "-e", code], env=machine.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first == "201 false", "it was renewed before it was used, for it had less than five minutes"
    assert json.loads(second)["chat_state"] == '{"step":"language"}'
    assert third == "200 true", "what cannot be renewed any more comes from the back end again"


@needs_nginx
def test_keys_are_rotated_while_everything_runs(machine: Machine, outside: httpx.Client, key: str) -> None:
    rotate, tokens = (next(b for b in blocks("bash") if word in b) for word in ("keys rotate", "tokens rotate"))
    token = outside.post("/tokens", headers=bearer(key)).json()["token"]
    printed = machine.shell(rotate.replace("KEY_ID", key.split("_")[1]))
    (newer,) = re.findall(r"^cs_\w+$", printed, re.MULTILINE)
    machine.shell(tokens)
    path = "/chat-state-sessions/visitor-1"
    for credential in (key, newer, token):
        assert poll_until(lambda c=credential: outside.get(path, headers=bearer(c)).status_code in (200, 404), 5)


def test_the_unit_is_one_that_systemd_understands(tmp_path: Path) -> None:
    text = blocks("systemd")[0]
    assert re.search(r"^User=chatstate$", text, re.MULTILINE)
    analyze = shutil.which("systemd-analyze")
    if analyze is None:  # other systems have other ways; nginx and the rest of the page do not depend on it
        return
    unit = tmp_path / "chatstate.service"
    unit.write_text(text.replace("/opt/chatstate/bin/chatstate", sys.executable))
    done = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, check=False)
    mistakes = [line for line in done.stderr.splitlines() if "chatstate.service" in line]
    assert mistakes == [], done.stderr


def test_everything_of_the_page_is_run() -> None:
    """A block that is added finds its test."""
    known: dict[str, Any] = {"bash": 8, "ini": 1, "systemd": 1, "nginx": 1, "python": 1, "js": 1, "logrotate": 1}
    fences = re.findall(r"^```(\w+)$", PAGE, re.MULTILINE)
    assert {language: fences.count(language) for language in fences} == known
