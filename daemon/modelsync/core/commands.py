"""The commands that people type, in plain words or JSON: parsed here, wherever they come from.

redis-cli, the HTTP routes and the command line all end up in ``parse``; nothing else decides what a command may be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from modelsync.core import canonical, catalog
from modelsync.core.catalog import ModelRecord
from modelsync.core.errors import BadName, MalformedMessage
from modelsync.core.ids import EntryId, ModelName, alias_name, model_name, node_id, version
from modelsync.core.rollout.record import STRATEGIES

MAX_COMMAND_BYTES = 4096

_FORMS = {
    "update": ("update NAME [VERSION]", 1, 2),
    "pin": ("pin NAME VERSION", 2, 2),
    "unpin": ("unpin NAME", 1, 1),
    "rollback": ("rollback NAME [VERSION]", 1, 2),
    "alias": ("alias NAME ALIAS VERSION", 3, 3),
    "delete": ("delete NAME VERSION", 2, 2),
    "rollout": ("rollout NAME VERSION [each|together|waves]; rollout status NAME; rollout abort NAME", 2, 4),
    "switchover": ("switchover [NODE]", 0, 1),
    "pause": ("pause", 0, 0),
    "resume": ("resume", 0, 0),
    "forget": ("forget NODE", 1, 1),
}
FLEET_VERBS = frozenset({"switchover", "pause", "resume", "forget"})
_JSON_KEYS = ("model", "alias", "node", "version", "strategy")
STATUS, ABORT = "status", "abort"


@dataclass(frozen=True, slots=True)
class Command:
    """``model`` is set for all but the fleet's verbs; ``target`` is a version or an alias."""

    verb: str
    model: ModelName | None = None
    target: int | str | None = None
    alias: str = ""
    node: str = ""
    action: str = ""
    """Of ``rollout``: status, abort, or empty to begin one."""
    strategy: str = ""
    """Of ``rollout``; empty: as the configuration says."""

    def __str__(self) -> str:
        words = (self.verb, self.action, self.model, self.alias, self.node, self.target, self.strategy)
        return " ".join(str(word) for word in words if word not in (None, ""))


def parse(text: str) -> Command:
    """Parse ``pin fraud 12`` or ``{"command": "pin", "model": "fraud", "version": 12}``.

    Raises:
        BadName: not a command, with the forms that there are; or an illegal name in it.
    """
    if len(text.encode(errors="replace")) > MAX_COMMAND_BYTES:
        raise BadName(kind="command", value=repr(text[:40]), rule=f"at most {MAX_COMMAND_BYTES} bytes")
    words = _words_of_json(text) if text.lstrip().startswith("{") else text.split()
    verb = words[0].lower() if words else ""
    if verb not in _FORMS:
        raise BadName(kind="command", value=repr(text[:80]), rule="; ".join(form for form, _, _ in _FORMS.values()))
    form, least, most = _FORMS[verb]
    if not least <= len(words) - 1 <= most:
        raise BadName(kind="command", value=repr(text[:80]), rule=form)
    return _command(verb, words[1:])


def _words_of_json(text: str) -> list[str]:
    try:
        value = canonical.decode(text.encode(errors="replace"), "command", max_bytes=MAX_COMMAND_BYTES)
    except MalformedMessage as error:
        raise BadName(kind="command", value=repr(text[:80]), rule=error.reason) from error
    unknown = value.keys() - {"command", *_JSON_KEYS}
    if unknown or not isinstance(value.get("command"), str):
        raise BadName(kind="command", value=repr(text[:80]), rule='an object with "command", "model", "version"')
    verb, _, action = value["command"].partition(" ")
    head = (verb, action) if verb == "rollout" and action in (STATUS, ABORT) else (value["command"],)
    return [*head, *(str(value[key]) for key in _JSON_KEYS if value.get(key) is not None)]


def _command(verb: str, words: list[str]) -> Command:
    if verb in ("switchover", "forget"):
        return Command(verb, node=node_id(words[0]) if words else "")
    if verb in FLEET_VERBS:
        return Command(verb)
    if verb == "rollout":
        return _rollout(words)
    model = model_name(words[0])
    if verb == "alias":
        return Command(verb, model, target=_target(words[2]), alias=alias_name(words[1]))
    return Command(verb, model, target=_target(words[1]) if len(words) > 1 else None)


def _rollout(words: list[str]) -> Command:
    if words[0] in (STATUS, ABORT):
        if len(words) != 2:
            raise BadName(kind="command", value=repr(" ".join(words)[:80]), rule=f"rollout {words[0]} NAME")
        return Command("rollout", model_name(words[1]), action=words[0])
    strategy = [word.removeprefix("--strategy=") for word in words[2:] if word != "--strategy"]
    if len(strategy) > 1 or any(word not in STRATEGIES for word in strategy):
        raise BadName(kind="strategy", value=repr(" ".join(strategy)[:80]), rule=" or ".join(STRATEGIES))
    return Command("rollout", model_name(words[0]), target=_target(words[1]), strategy="".join(strategy))


def _target(word: str) -> int | str:
    return version(word) if word.isascii() and word.isdigit() else alias_name(word)


def applied(command: Command, record: ModelRecord, at: EntryId) -> ModelRecord:
    """The record after a model's command. Raises PolicyRefusal, NoSuchVersion.

    ``at`` is the id under which the change will be written.
    """
    target = command.target
    changes: dict[str, Callable[[], ModelRecord]] = {
        "update": lambda: catalog.updated(record, target, at),
        "pin": lambda: catalog.pinned(record, _given(target), at),
        "unpin": lambda: catalog.unpinned(record, at),
        "rollback": lambda: catalog.rolled_back(record, target, at),
        "alias": lambda: catalog.aliased(record, command.alias, _given(target), at),
        "delete": lambda: catalog.deleted(record, catalog.resolve(record, _given(target)), at),
    }
    return changes[command.verb]()


def told(command: Command, record: ModelRecord) -> dict[str, object]:
    """What is to be said of a command beside what is wanted after it, which an alias or a deletion does not change."""
    if command.verb == "alias":
        return {"alias": command.alias, "version": record.aliases.get(command.alias)}
    return {"deleted": command.target} if command.verb == "delete" else {}


def _given(target: int | str | None) -> int | str:
    assert target is not None, "parse() lets no command through without its target"
    return target
