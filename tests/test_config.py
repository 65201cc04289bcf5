"""The table of settings: where a value comes from, and what is said about one that cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from chatstate.config import MOST_VERSIONS, SETTINGS, Setting, Settings, load_settings
from chatstate.errors import InvalidSetting
from chatstate.model import MAX_EXPIRES_IN

BY_NAME = {setting.name: setting for setting in SETTINGS}

GOOD = {
    "store": ("sqlite:///one.db", "sqlite:///two.db", "sqlite:///three.db"),
    "host": ("localhost", "127.0.0.1", "::1"),
    "port": (1, 8080, 65535),
    "max_state_bytes": (1, 1000, 1 << 40),
    "require_json": (True, False, True),
    "require_preconditions": (True, False, True),
    "history": (1, 20, MOST_VERSIONS),
    "idle_expiry_seconds": (1, 86_400, MAX_EXPIRES_IN),
    "pool_size": (1, 2, 100),
    "allow_unsafe_durability": (True, False, True),
}
"""For each setting a value for the flag, one for the environment and one for `.env`."""

NUMBERS = ("0", "-1", "+1", "1.5", "1e3", "0x10", "abc", "1 000", "½", "²", "٣", "000")
BAD = {
    "host": ("0.0.0.0", "::", "192.168.1.5", "example.com", "127.0.0.2", "LOCALHOST", "localhost:3000", "[::1]"),
    "port": (*NUMBERS, "65536", "99999999999999999999999999"),
    "max_state_bytes": NUMBERS,
    "history": (*(number for number in NUMBERS if number.strip("0")), str(MOST_VERSIONS + 1), "9" * 30),
    "idle_expiry_seconds": (*NUMBERS, str(MAX_EXPIRES_IN + 1), "9" * 30),
    "pool_size": NUMBERS,
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
    return getattr(settings, setting.name)


def test_the_table_is_complete() -> None:
    assert list(BY_NAME) == list(Settings.__struct_fields__) == list(GOOD)
    assert set(BAD) == set(GOOD) - {"store"}


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
    assert value_of(load_settings({}, tmp_path, {}), setting) == setting.default


@EVERY
def test_the_file_wins_over_the_default(setting: Setting, tmp_path: Path) -> None:
    _, _, in_file = GOOD[setting.name]
    for variable in setting.variables:
        assert value_of(loaded(tmp_path, file=f"{variable}={in_file}\n"), setting) == in_file


@EVERY
def test_the_environment_wins_over_the_file(setting: Setting, tmp_path: Path) -> None:
    _, in_environment, in_file = GOOD[setting.name]
    ours, *_ = setting.variables
    for variable in setting.variables:
        settings = loaded(tmp_path, environment={variable: str(in_environment)}, file=f"{ours}={in_file}\n")
        assert value_of(settings, setting) == in_environment


@EVERY
def test_the_flag_wins_over_the_environment(setting: Setting, tmp_path: Path) -> None:
    flag, in_environment, in_file = GOOD[setting.name]
    ours, *_ = setting.variables
    given = flag if isinstance(flag, bool) else str(flag)
    settings = loaded(tmp_path, {setting.name: given}, {ours: str(in_environment)}, f"{ours}={in_file}\n")
    assert value_of(settings, setting) == flag


@EVERY
def test_an_empty_value_is_none(setting: Setting, tmp_path: Path) -> None:
    _, _, in_file = GOOD[setting.name]
    ours, *_ = setting.variables
    empty = dict.fromkeys(setting.variables, "")
    assert value_of(loaded(tmp_path, environment=empty, file=f"{ours}=\n"), setting) == setting.default
    assert value_of(loaded(tmp_path, environment=empty, file=f"{ours}={in_file}\n"), setting) == in_file
    assert value_of(loaded(tmp_path, {setting.name: None}, empty, f"{ours}\n"), setting) == setting.default


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
        assert caught.value.message.startswith(f"{source}={value!r} must be "), caught.value.message


def test_a_bad_value_that_is_overruled_does_not_matter(tmp_path: Path) -> None:
    settings = loaded(tmp_path, {"port": "3001"}, {"CHATSTATE_PORT": "bad"}, "PORT=worse\n")
    assert settings.port == 3001


@pytest.mark.parametrize("content", [b"PORT=\xff\n", "PORT=3001\n".encode("utf-16")])
def test_a_file_that_is_not_utf_8_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(content)
    with pytest.raises(InvalidSetting, match=r"\.env is not UTF-8\. Save it as UTF-8"):
        load_settings({}, tmp_path, {})


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xef\xbb\xbfPORT=3001\n")
    assert load_settings({}, tmp_path, {}).port == 3001
