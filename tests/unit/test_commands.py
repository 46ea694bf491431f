"""Commands as people type them, and what is typed to do harm."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.test_catalog import record

from modelsync.core import commands
from modelsync.core.commands import Command
from modelsync.core.errors import BadName, NoSuchVersion, PolicyRefusal
from modelsync.core.ids import EntryId, ModelName

FRAUD = ModelName("fraud")
NOW = EntryId(9, 1)


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("update fraud", Command("update", FRAUD)),
        ("  UPDATE\tfraud  13\n", Command("update", FRAUD, target=13)),
        ("update fraud stable", Command("update", FRAUD, target="stable")),
        ("pin fraud 12", Command("pin", FRAUD, target=12)),
        ("unpin fraud", Command("unpin", FRAUD)),
        ("rollback fraud", Command("rollback", FRAUD)),
        ("rollback fraud 9", Command("rollback", FRAUD, target=9)),
        ("rollout fraud 9", Command("rollout", FRAUD, target=9)),
        ("rollout fraud stable together", Command("rollout", FRAUD, target="stable", strategy="together")),
        ("rollout fraud 9 --strategy waves", Command("rollout", FRAUD, target=9, strategy="waves")),
        ("rollout fraud 9 --strategy=each", Command("rollout", FRAUD, target=9, strategy="each")),
        ("rollout status fraud", Command("rollout", FRAUD, action="status")),
        ("rollout abort fraud", Command("rollout", FRAUD, action="abort")),
        ('{"command": "rollout abort", "model": "fraud"}', Command("rollout", FRAUD, action="abort")),
        (
            '{"command": "rollout", "model": "fraud", "version": 9, "strategy": "waves"}',
            Command("rollout", FRAUD, target=9, strategy="waves"),
        ),
        ("alias fraud stable 12", Command("alias", FRAUD, target=12, alias="stable")),
        ("alias fraud old stable", Command("alias", FRAUD, target="stable", alias="old")),
        ("delete fraud 3", Command("delete", FRAUD, target=3)),
        ("switchover", Command("switchover")),
        ("switchover gpu-02", Command("switchover", node="gpu-02")),
        ("pause", Command("pause")),
        ("resume", Command("resume")),
        ("forget gpu-02", Command("forget", node="gpu-02")),
        ('{"command": "pin", "model": "fraud", "version": 12}', Command("pin", FRAUD, target=12)),
        ('{"version": "stable", "model": "fraud", "command": "PIN"}', Command("pin", FRAUD, target="stable")),
        (' {"command": "rollback", "model": "fraud", "version": null}', Command("rollback", FRAUD)),
        ('{"command":"alias","model":"fraud","alias":"a","version":1}', Command("alias", FRAUD, target=1, alias="a")),
        ('{"command": "switchover", "node": "gpu-02"}', Command("switchover", node="gpu-02")),
    ],
)
def test_what_people_type(text: str, command: Command) -> None:
    assert commands.parse(text) == command
    assert commands.parse(str(command)) == command


FORMS = "update NAME [VERSION]; pin NAME VERSION; unpin NAME; rollback NAME [VERSION]; alias NAME ALIAS VERSION; "
NAME = "1 to 128 of A-Z a-z 0-9 . _ -, beginning with a letter or digit"
OBJECT = 'an object with "command", "model", "version"'
ROLLOUT = "rollout NAME VERSION [each|together|waves]; rollout status NAME; rollout abort NAME"
REST = f"delete NAME VERSION; {ROLLOUT}; switchover [NODE]; pause; resume; forget NODE"


@pytest.mark.parametrize(
    ("text", "kind", "rule"),
    [
        ("rollout abort fraud 9", "command", "rollout abort NAME"),
        ("rollout fraud 9 all", "strategy", "each or together or waves"),
        ("rollout fraud 9 --strategy each waves", "command", ROLLOUT),
        ("rollout fraud", "command", ROLLOUT),
        ("", "command", FORMS + REST),
        ("reboot", "command", FORMS + REST),
        ("pin fraud", "command", "pin NAME VERSION"),
        ("pin fraud 1 2", "command", "pin NAME VERSION"),
        ("pause now", "command", "pause"),
        ("unpin fraud 3", "command", "unpin NAME"),
        ("update ../../etc 1", "model name", NAME),
        ("update -rf 1", "model name", NAME),
        ("update \x1b[2Jfraud 1", "model name", NAME),
        ("update fraud\u202e 1", "model name", NAME),
        ("update fraud.tmp", "model name", "a name may not end like a temporary file"),
        ("update " + "x" * 129, "model name", NAME),
        ("pin fraud 012", "version", "a whole number from 1 to 2^53-1, without leading zeros"),
        ("pin fraud 0", "version", "a whole number from 1 to 2^53-1, without leading zeros"),
        ("pin fraud 9007199254740992", "version", "a whole number from 1 to 2^53-1, without leading zeros"),
        ("pin fraud " + "9" * 4000, "version", "a whole number from 1 to 2^53-1, without leading zeros"),
        ("pin fraud -1", "alias", NAME),
        ("pin fraud \u0661\u0662", "alias", NAME),  # digits, but not ASCII
        ("alias fraud 12 12", "alias", "an alias may not be a number"),
        ("switchover a/b", "node id", NAME),
        ("pin fraud " + "1" * 5000, "command", "at most 4096 bytes"),
        ("\U0001f600" * 1025, "command", "at most 4096 bytes"),
        ("{", "command", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ('{"command": "pin", "command": "delete"}', "command", "a key stands twice in one object"),
        ('{"command": "pin", "model": "fraud", "version": 1.5}', "command", "1.5 is not a whole number"),
        ('{"command": "pin", "model": "fraud", "version": NaN}', "command", "NaN is not a whole number"),
        ('{"command": "pin", "model": "\\ud800", "version": 1}', "command", "a lone surrogate, which is not text"),
        ('{"command": "pin", "model": ' + "[" * 2000 + "}", "command", "nested too deeply"),
        ("{}", "command", OBJECT),
        ('{"command": 1}', "command", OBJECT),
        ('{"command": "pause", "force": true}', "command", OBJECT),
        ('{"command": "pin", "model": {"$ne": 1}, "version": 1}', "model name", NAME),
        ('{"command": "pin", "model": "fraud", "version": [1]}', "alias", NAME),
        ('{"command": "pin fraud 1"}', "command", FORMS + REST),
    ],
)
def test_what_is_refused(text: str, kind: str, rule: str) -> None:
    with pytest.raises(BadName) as caught:
        commands.parse(text)
    assert (caught.value.kind, caught.value.rule) == (kind, rule)
    assert len(caught.value.value) <= 170


@given(st.text(max_size=60) | st.text('{}[]":, \\udpin0123456789fraud', max_size=60))
def test_any_text_is_a_command_or_refused(text: str) -> None:
    try:
        command = commands.parse(text)
    except BadName:
        return
    assert commands.parse(str(command)) == command


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("update fraud", {"desired": 3}),
        ("update fraud 2", {"desired": 2}),
        ("pin fraud 1", {"pinned": 1}),
        ("rollback fraud", {"desired": 1}),
        ("alias fraud new 3", {"aliases": {"stable": 1, "new": 3}}),
        ("delete fraud 2", {"deleted": {2}}),
    ],
)
def test_what_they_do(text: str, fields: dict[str, Any]) -> None:
    before = record(1, 2, 3, desired=3 if "rollback" not in text else 2, aliases={"stable": 1})
    after = commands.applied(commands.parse(text), before, NOW)
    assert {key: getattr(after, key) for key in fields} == fields
    assert after.id == NOW


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        ("unpin fraud", PolicyRefusal, "fraud is not pinned"),
        ("pin fraud 9", NoSuchVersion, "fraud has no version 9; known (newest 8): 1, 2"),
        ("pin fraud best", NoSuchVersion, "fraud has no alias 'best'"),
        ("delete fraud stable", PolicyRefusal, "version 1 of fraud cannot be deleted: an alias names it"),
    ],
)
def test_what_they_may_not_do(text: str, kind: type[PolicyRefusal], reason: str) -> None:
    with pytest.raises(PolicyRefusal) as caught:
        commands.applied(commands.parse(text), record(1, 2, aliases={"stable": 1}), NOW)
    assert (type(caught.value), str(caught.value)) == (kind, reason)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("alias fraud good 2", {"alias": "good", "version": 2}),
        ("delete fraud 1", {"deleted": 1}),
        ("rollback fraud", {}),
    ],
)
def test_what_is_said_of_them(text: str, told: dict[str, Any]) -> None:
    command = commands.parse(text)
    assert commands.told(command, commands.applied(command, record(1, 2, 3), NOW)) == told
