"""The table of settings: where a value comes from, and what is said about one that cannot be used."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import asdict

from chatstate import create_app
from chatstate.channels.whatsapp.account import WhatsAppAccount
from chatstate.config import (
    MOST_DIGITS,
    MOST_VERSIONS,
    MOST_WORKERS,
    SETTINGS,
    Setting,
    Settings,
    load_settings,
    unknown_variables,
)
from chatstate.encryption import KeyRing
from chatstate.errors import InvalidSetting
from chatstate.http.server import run
from chatstate.model import MAX_EXPIRES_IN

BY_NAME = {setting.name: setting for setting in SETTINGS}

RINGS = tuple(b64encode(bytes([number] * 32)).decode() for number in range(3))

GOOD: dict[str, tuple[Any, Any, Any]] = {
    "store": ("sqlite:///one.db", "sqlite:///two.db", "sqlite:///three.db"),
    "host": ("localhost", "0.0.0.0", "2001:db8::1"),
    "port": (1, 8080, 65535),
    "workers": (1, 2, MOST_WORKERS),
    "max_state_bytes": (1, 1000, 1 << 40),
    "require_json": (True, False, True),
    "require_preconditions": (True, False, True),
    "history": (1, 20, MOST_VERSIONS),
    "idle_expiry_seconds": (1, 86_400, MAX_EXPIRES_IN),
    "retention_days": (1, 365, MAX_EXPIRES_IN // 86_400),
    "keep_visits": (True, False, True),
    "link_page": ("https://a.example", "https://chat.example.org/", "http://localhost:5173/go?x=1"),
    "demo": (True, False, True),
    "first_key": (True, False, True),
    "allow_anonymous": (True, False, True),
    "allowed_origins": (
        ("https://chat.example.org",),
        ("https://a.example", "http://[::1]:8080"),
        ("http://localhost:5173",),
    ),
    "allowed_hosts": (("chat.example.org",), ("a.example", "10.0.0.7"), ("[::1]",)),
    "trusted_proxies": (("10.0.0.0/8",), ("127.0.0.1/32", "2001:db8::/32"), ("192.168.0.0/16",)),
    "rate_per_key": (1.0, 0.5, 1_000_000.0),
    "rate_per_session": (0.0, 20.0, 0.1),
    "rate_per_address": (0.0, 20.0, 0.1),
    "failures_per_minute": (0.0, 20.0, 0.1),
    "max_connections": (1, 1024, 100_000),
    "token_ttl_seconds": (1, 3600, 86_400),
    "token_renewable_days": (1, 30, MAX_EXPIRES_IN // 86_400),
    "watchers_per_session": (1, 5, 100_000),
    "bot": ("package.module:bot", "bots:one", "two.of:them"),
    "turn_seconds": (1, 600, 86_400),
    "turns_at_once": (1, 100, 100_000),
    "lease_seconds": (1, 30, 86_400),
    "whatsapp_app_secret": ("hunter4 of the app", "0123456789abcdef", "ünïcode ☃"),
    "whatsapp_verify_token": ("hunter5 to verify", "0123456789abcdef", "two words"),
    "whatsapp_access_token": ("hunter6 to send with", "EAAG0123456789", "x"),
    "whatsapp_phone_number_id": ("106540352242922", "1", "9" * MOST_DIGITS),
    "whatsapp_number": ("15550783881", "4915112345678", "0"),
    "whatsapp_graph_url": ("https://graph.facebook.com/v26.0", "http://localhost:4000", "http://[::1]:4000/a/b.c"),
    "encryption_keys": RINGS,
    "audit_log": ("audit.log", "/var/log/chatstate/audit.log", "two words.log"),
    "pool_size": (1, 2, 100),
    "allow_unsafe_durability": (True, False, True),
}
"""For each setting a value for the flag, one for the environment and one for `.env`."""

NUMBERS = ("0", "-1", "+1", "1.5", "1e3", "0x10", "abc", "1 000", "½", "²", "٣", "000")
DIGITS = ("+", "abc", "1.5", "0x10", "½", "²", "٣", "1a", "wa.me/15550783881", "9" * (MOST_DIGITS + 1))
RATES = ("-1", "1000001", "nan", "inf", "1 000", "20/s", "abc")
BAD = {
    "host": ("example.com", "LOCALHOST", "localhost:3000", "[::1]", "0", "10.0.0.0/8", "0.0.0.0:80", "127.1"),
    "port": (*NUMBERS, "65536", "99999999999999999999999999"),
    "workers": (*NUMBERS, "65"),
    "max_state_bytes": NUMBERS,
    "history": (*(number for number in NUMBERS if number.strip("0")), str(MOST_VERSIONS + 1), "9" * 30),
    "idle_expiry_seconds": (*NUMBERS, str(MAX_EXPIRES_IN + 1), "9" * 30),
    "retention_days": (*NUMBERS, str(MAX_EXPIRES_IN // 86_400 + 1), "9" * 30),
    "allowed_origins": (
        "*",
        "null",
        "chat.example.org",
        "https://",
        "https://a.example/path",
        "https://a,b",
        "ftp://a",
    ),
    "allowed_hosts": ("*", "https://a.example", "a.example:443", "a.example/", "::1", "a b"),
    "trusted_proxies": ("*", "proxy", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/8;10.1.0.0/16", "10.0.0.0/8,all"),
    "rate_per_key": RATES,
    "rate_per_session": RATES,
    "rate_per_address": RATES,
    "failures_per_minute": RATES,
    "max_connections": NUMBERS,
    "token_ttl_seconds": (*NUMBERS, "86401", "9" * 30),
    "token_renewable_days": (*NUMBERS, str(MAX_EXPIRES_IN // 86_400 + 1)),
    "watchers_per_session": NUMBERS,
    "turn_seconds": (*NUMBERS, "86401", "9" * 30),
    "turns_at_once": NUMBERS,
    "lease_seconds": (*NUMBERS, "86401", "9" * 30),
    "whatsapp_phone_number_id": DIGITS,
    "whatsapp_number": DIGITS,
    "whatsapp_graph_url": (
        "graph.facebook.com",
        "ftp://a.example",
        "https://",
        "https:///v26.0",
        "https://me@a.example/",
        "https://a.example/?x=1",
        "https://a.example/#x",
        "https://a.example/a b",
        "https://a.example:port/",
    ),
    "encryption_keys": ("short", RINGS[0][:-5], f"{RINGS[0]},hunter2", "!" * 44),
    "pool_size": NUMBERS,
    "keep_visits": ("2", "maybe", "ja", "-1"),
    "link_page": ("chat.example.org", "javascript:alert(1)", "https://a.example/#x", "https://me@a.example/"),
    "demo": ("2", "maybe", "ja", "-1"),
    "first_key": ("2", "maybe", "ja", "-1"),
    "allow_anonymous": ("2", "maybe", "ja", "-1"),
    "require_json": ("2", "maybe", "ja", "-1"),
    "require_preconditions": ("2", "maybe", "ja", "-1"),
    "allow_unsafe_durability": ("2", "maybe", "ja", "-1"),
}
BAD_VALUES = [(name, value) for name, values in BAD.items() for value in values]

EVERY = pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)


def loaded(
    folder: Path,
    flags: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    file: str = "",
) -> Settings:
    (folder / ".env").write_text(file)
    return load_settings(flags or {}, folder, environment or {})


def value_of(settings: Settings, setting: Setting) -> object:
    """The value; of keys, what they were given as."""
    value = getattr(settings, setting.name)
    if not isinstance(value, KeyRing):
        return value
    return next(ring for ring in RINGS if KeyRing.parse(ring).newest == value.newest)


def written(value: object) -> str:
    """As it stands in the environment or on the command line."""
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def test_the_table_is_complete() -> None:
    assert list(BY_NAME) == list(Settings.__struct_fields__) == list(GOOD)
    any_text = {"store", "audit_log", "bot"}  # what they name is looked for later
    secrets = {"whatsapp_app_secret", "whatsapp_verify_token", "whatsapp_access_token"}
    assert set(BAD) == set(GOOD) - any_text - secrets


@EVERY
def test_every_setting_is_documented(setting: Setting) -> None:
    assert setting.help.endswith(".")
    assert setting.variables[0] == f"CHATSTATE_{setting.name.upper()}"
    assert setting.flag == f"--{setting.name.replace('_', '-')}"


def test_no_variable_belongs_to_two_settings() -> None:
    variables = [variable for setting in SETTINGS for variable in setting.variables]
    assert len(variables) == len(set(variables))


@EVERY
def test_the_default_holds_without_a_file(setting: Setting, tmp_path: Path) -> None:
    assert getattr(load_settings({}, tmp_path, {}), setting.name) == setting.default


@EVERY
def test_the_file_wins_over_the_default(setting: Setting, tmp_path: Path) -> None:
    _, _, in_file = GOOD[setting.name]
    for variable in setting.variables:
        assert value_of(loaded(tmp_path, file=f"{variable}='{written(in_file)}'\n"), setting) == in_file


@EVERY
def test_the_environment_wins_over_the_file(setting: Setting, tmp_path: Path) -> None:
    _, in_environment, in_file = GOOD[setting.name]
    ours, *_ = setting.variables
    for variable in setting.variables:
        file = f"{ours}='{written(in_file)}'\n"
        settings = loaded(tmp_path, environment={variable: written(in_environment)}, file=file)
        assert value_of(settings, setting) == in_environment


@EVERY
def test_the_flag_wins_over_the_environment(setting: Setting, tmp_path: Path) -> None:
    flag, in_environment, in_file = GOOD[setting.name]
    ours, *_ = setting.variables
    given = flag if isinstance(flag, bool) else written(flag)
    file = f"{ours}='{written(in_file)}'\n"
    settings = loaded(tmp_path, {setting.name: given}, {ours: written(in_environment)}, file)
    assert value_of(settings, setting) == flag


@EVERY
def test_an_empty_value_is_none(setting: Setting, tmp_path: Path) -> None:
    _, _, in_file = GOOD[setting.name]
    ours, *_ = setting.variables
    empty = dict.fromkeys(setting.variables, "")
    assert getattr(loaded(tmp_path, environment=empty, file=f"{ours}=\n"), setting.name) == setting.default
    assert value_of(loaded(tmp_path, environment=empty, file=f"{ours}='{written(in_file)}'\n"), setting) == in_file
    assert getattr(loaded(tmp_path, {setting.name: None}, empty, f"{ours}\n"), setting.name) == setting.default


@pytest.mark.parametrize(("ours", "theirs"), [("CHATSTATE_STORE", "DATABASE_URL"), ("CHATSTATE_PORT", "PORT")])
def test_our_variable_wins_over_the_common_one(ours: str, theirs: str, tmp_path: Path) -> None:
    name = ours.removeprefix("CHATSTATE_").lower()
    one, other, _ = GOOD[name]
    both = {ours: str(one), theirs: str(other)}
    assert getattr(loaded(tmp_path, environment=both), name) == one
    assert getattr(loaded(tmp_path, file="\n".join(f"{key}={value}" for key, value in both.items())), name) == one


@pytest.mark.parametrize("written", ["DATABASE_URL={}", 'DATABASE_URL="{}"', "export DATABASE_URL='{}'  # here"])
def test_the_ways_to_write_a_file(written: str, tmp_path: Path) -> None:
    url = "postgresql://me:p%40ss@localhost:5432/bot?schema=public&connection_limit=5"
    settings = loaded(tmp_path, file=f"# Prisma\r\n\r\n{written.format(url)}\r\nPORT=3001\r\nOTHER=1\r\n")
    assert (settings.store, settings.port) == (url, 3001)


@pytest.mark.parametrize(("text", "value"), [("1", True), ("TRUE", True), ("yes", True), ("on", True)])
def test_switches_that_are_on(text: str, value: bool, tmp_path: Path) -> None:
    assert loaded(tmp_path, environment={"CHATSTATE_REQUIRE_JSON": text}).require_json is value


@pytest.mark.parametrize("text", ["0", "False", "no", "OFF"])
def test_switches_that_are_off(text: str, tmp_path: Path) -> None:
    settings = loaded(tmp_path, environment={"CHATSTATE_REQUIRE_JSON": text}, file="CHATSTATE_REQUIRE_JSON=true\n")
    assert settings.require_json is False


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_a_bad_value_names_its_source(name: str, value: str, tmp_path: Path) -> None:
    setting = BY_NAME[name]
    cases: list[tuple[str, dict[str, object], dict[str, str], str]] = [(setting.flag, {name: value}, {}, "")]
    cases += [(variable, {}, {variable: value}, "") for variable in setting.variables]
    cases += [(f"{variable} in .env", {}, {}, f"{variable}='{value}'\n") for variable in setting.variables]
    for source, flags, environment, file in cases:
        with pytest.raises(InvalidSetting) as caught:
            loaded(tmp_path, flags, environment, file)
        shown = "" if setting.secret else f"={value!r}"
        assert caught.value.message.startswith(f"{source}{shown} must be "), caught.value.message
        assert not (setting.secret and value in caught.value.message)


def test_a_bad_value_that_is_overruled_does_not_matter(tmp_path: Path) -> None:
    settings = loaded(tmp_path, {"port": "3001"}, {"CHATSTATE_PORT": "bad"}, "PORT=worse\n")
    assert settings.port == 3001
    gone = {"CHATSTATE_PORT_FILE": str(tmp_path / "gone")}
    assert loaded(tmp_path, {"port": "3001"}, gone).port == 3001


@pytest.mark.parametrize("content", [b"PORT=\xff\n", "PORT=3001\n".encode("utf-16")])
def test_a_file_that_is_not_utf_8_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(content)
    with pytest.raises(InvalidSetting, match=r"\.env is not UTF-8\. Save it as UTF-8"):
        load_settings({}, tmp_path, {})


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xef\xbb\xbfPORT=3001\n")
    assert load_settings({}, tmp_path, {}).port == 3001


# --- Values of their own kinds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("host", "2001:DB8:0::1", "2001:db8::1"),
        ("allowed_origins", " https://Chat.Example.org/ ,,http://localhost:5173", None),
        ("allowed_hosts", "A.example , b.example", ("a.example", "b.example")),
        ("trusted_proxies", "10.0.0.1, 2001:DB8::/32", ("10.0.0.1/32", "2001:db8::/32")),
        ("rate_per_session", "0.5", 0.5),
        ("whatsapp_number", "+1 (555) 078-3881", "15550783881"),
        ("whatsapp_graph_url", "http://localhost:4000/", "http://localhost:4000"),
        ("rate_per_key", "0", 0.0),
    ],
)
def test_a_value_is_brought_into_one_form(name: str, text: str, value: object, tmp_path: Path) -> None:
    expected = value or ("https://chat.example.org", "http://localhost:5173")
    found = getattr(loaded(tmp_path, environment={f"CHATSTATE_{name.upper()}": text}), name)
    assert found == (value if value is not None else expected)


@pytest.mark.parametrize(
    ("host", "is_local"), [("localhost", True), ("::1", True), ("127.0.0.2", False), ("::", False)]
)
def test_only_the_names_of_this_machine_are_local(host: str, is_local: bool, tmp_path: Path) -> None:
    assert loaded(tmp_path, {"host": host}).is_local is is_local


# --- Values that stand in files ---------------------------------------------------------------------------------------


@EVERY
def test_a_value_may_stand_in_a_file(setting: Setting, tmp_path: Path) -> None:
    value, _, _ = GOOD[setting.name]
    (tmp_path / "secret").write_text(f"{written(value)}\n")
    for variable in setting.variables:
        named = {f"{variable}_FILE": str(tmp_path / "secret")}
        assert value_of(loaded(tmp_path, environment=named), setting) == value
        assert value_of(loaded(tmp_path, file=f"{variable}_FILE={tmp_path}/secret\n"), setting) == value


def test_a_file_in_the_environment_wins_over_a_value_in_the_env_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("3001")
    environment = {"CHATSTATE_PORT_FILE": str(tmp_path / "secret")}
    assert loaded(tmp_path, environment=environment, file="CHATSTATE_PORT=3002\n").port == 3001


def test_an_empty_name_of_a_file_counts_as_not_set(tmp_path: Path) -> None:
    assert loaded(tmp_path, environment={"CHATSTATE_PORT_FILE": "", "CHATSTATE_PORT": "3001"}).port == 3001


@pytest.mark.parametrize("place", ["environment", "file"])
def test_a_value_and_a_file_with_it_are_one_too_many(place: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("sqlite:///hunter2.db")
    both = {"CHATSTATE_STORE": "sqlite:///hunter3.db", "CHATSTATE_STORE_FILE": str(tmp_path / "secret")}
    lines = "".join(f"{name}={value}\n" for name, value in both.items())
    with pytest.raises(InvalidSetting) as caught:
        loaded(tmp_path, environment=both) if place == "environment" else loaded(tmp_path, file=lines)
    where = "" if place == "environment" else " in .env"
    assert caught.value.message == f"Set either CHATSTATE_STORE or CHATSTATE_STORE_FILE{where}, not both."


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, " cannot be read: No such file or directory"), (b"hunter2\xff", " cannot be read: it is not UTF-8")]
    + [(content, " is empty") for content in (b"", b"\n", b" \r\n")],
)
@pytest.mark.parametrize("place", ["environment", "file"])
def test_a_file_that_cannot_be_read_is_named(content: bytes | None, reason: str, place: str, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    given = {"CHATSTATE_STORE_FILE": str(path)}
    with pytest.raises(InvalidSetting) as caught:
        loaded(tmp_path, environment=given) if place == "environment" else loaded(
            tmp_path, file=f"CHATSTATE_STORE_FILE={path}\n"
        )
    where = "" if place == "environment" else " in .env"
    assert caught.value.message == f"CHATSTATE_STORE_FILE={str(path)!r}{where}{reason}."
    assert "hunter2" not in caught.value.message


def test_nothing_of_a_secret_is_in_a_message(tmp_path: Path) -> None:
    """Who is told that a value in a file is wrong finds neither it nor its neighbours in the message."""
    (tmp_path / "secret").write_text(f"{RINGS[0]},hunter2")
    with pytest.raises(InvalidSetting) as caught:
        loaded(tmp_path, environment={"CHATSTATE_ENCRYPTION_KEYS_FILE": str(tmp_path / "secret")})
    assert caught.value.message.startswith("CHATSTATE_ENCRYPTION_KEYS_FILE must be keys of 32 bytes")
    assert "hunter2" not in caught.value.message
    assert RINGS[0][:12] not in caught.value.message


def test_a_bad_value_in_a_file_names_the_variable_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "port").write_text("many")
    with pytest.raises(InvalidSetting) as caught:
        loaded(tmp_path, environment={"CHATSTATE_PORT_FILE": str(tmp_path / "port")})
    assert caught.value.message == "CHATSTATE_PORT_FILE='many' must be a number from 1 up."


def test_what_is_secret_is_marked_so() -> None:
    assert [setting.name for setting in SETTINGS if setting.secret] == [
        "whatsapp_app_secret",
        "whatsapp_verify_token",
        "whatsapp_access_token",
        "encryption_keys",
    ]


@pytest.mark.parametrize("setting", [setting for setting in SETTINGS if setting.secret], ids=lambda each: each.name)
def test_a_secret_does_not_show_itself(setting: Setting, tmp_path: Path) -> None:
    for secret in GOOD[setting.name][:2]:
        settings = loaded(tmp_path, environment={setting.variables[0]: secret})
        assert value_of(settings, setting) == secret
        assert secret not in repr(settings)
        assert secret not in repr(getattr(settings, setting.name))


def test_an_account_does_not_show_its_secrets() -> None:
    account = WhatsAppAccount(app_secret="hunter4", verify_token="hunter5", access_token="hunter6", phone_number_id="1")
    assert repr(account) == "WhatsAppAccount(1)"


# --- Variables that are none of ours ----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["environment", "file"])
@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CHATSTATE_ENCRYPTION_KEY", "CHATSTATE_ENCRYPTION_KEYS"),
        ("CHATSTATE_ALLOWED_ORIGIN", "CHATSTATE_ALLOWED_ORIGINS"),
        ("CHATSTATE_ENCRYPTION_KEY_FILE", "CHATSTATE_ENCRYPTION_KEYS_FILE"),
        ("CHATSTATE_XYZ", None),
    ],
)
def test_a_mistyped_variable_is_found(name: str, meant: str | None, place: str, tmp_path: Path) -> None:
    if place == "file":
        (tmp_path / ".env").write_text(f"{name}=x\n")
    assert unknown_variables(tmp_path, {name: "x"} if place == "environment" else {}) == {name: meant}


def test_variables_of_settings_and_of_others_are_no_mistakes(tmp_path: Path) -> None:
    names = [name for setting in SETTINGS for name in setting.variables]
    given = [*names, *(f"{name}_FILE" for name in names), "CHATSTATE_KEY", "PATH", "CHATSTATE_TEST_X", "chatstate_x"]
    assert unknown_variables(tmp_path, dict.fromkeys(given, "x")) == {}


def test_an_application_does_by_default_what_the_command_line_does() -> None:
    """The defaults of `create_app` and of `run` stand beside those of the settings, for those who use no settings."""
    built_in = {name: given.default for call in (create_app, run) for name, given in signature(call).parameters.items()}
    rates = asdict(built_in["rates"])
    built_in |= {name: rates.pop(name) for name in ("failures_per_minute", "watchers_per_session")}
    built_in |= {f"rate_{name}": rate for name, rate in rates.items()}
    in_both = built_in.keys() & BY_NAME.keys() - {"store", "first_key"}  # in code a store is given, and a callable
    assert len(in_both) == 25
    assert {name: built_in[name] for name in in_both} == {name: BY_NAME[name].default for name in in_both}
