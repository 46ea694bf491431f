"""The routes that change something without a large body: commands, the models' verbs, promises.

This file alone decides how JSON becomes a command in plain words; what a command may be, ``core.commands`` decides.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from modelsync.core.errors import BadName, MalformedMessage
from modelsync.core.ids import MAX_INTEGER, ModelName, NodeId, alias_name, model_name, node_id, version
from modelsync.edges.http.answers import json_answer, to_primary
from modelsync.edges.http.bodies import BodyPace, json_body
from modelsync.edges.http.limits import HttpLimits
from modelsync.ports import NodeApi

_VERBS: dict[str, tuple[str, ...]] = {
    "update": ("version",),
    "pin": ("version",),
    "unpin": (),
    "rollback": ("version",),
    "alias": ("alias", "version"),
}
"""A model's verbs, each with the fields of its body in the order of its words."""
MAX_NONCE_CHARS = 256


class CommandRoutes:
    """Commands go to the primary; promises are every node's own."""

    def __init__(self, api: NodeApi, *, fleet: str, limits: HttpLimits) -> None:
        self._api = api
        self._fleet = fleet
        self._pace = BodyPace(silence_s=limits.body_silence_s, min_bytes_per_s=limits.min_body_bytes_per_s)

    def add_to(self, app: web.Application) -> None:
        app.router.add_post("/v1/command", self.command)
        app.router.add_post("/v1/promise", self.promise)
        app.router.add_post("/v1/models/{name}/{what:load|unload}", self.load)
        app.router.add_post(f"/v1/models/{{name}}/{{verb:{'|'.join(_VERBS)}}}", self.verb)

    async def command(self, request: web.Request) -> web.StreamResponse:
        """``{"command": "switchover gpu-02", "by": "alice"}``; ``by`` may be left out."""
        body = await json_body(request, self._pace)
        _require_keys(body, {"command", "by"})
        text = body.get("command")
        if not isinstance(text, str):
            raise MalformedMessage(what="request body", reason='"command" is not text')
        if not self._api.runs_here(text):
            return to_primary(request, self._api, self._fleet)
        return json_answer(await self._api.command(text, by=_by(request, body)))

    async def verb(self, request: web.Request) -> web.StreamResponse:
        """``POST /v1/models/fraud/pin`` with ``{"version": 12}``; an empty body where no field is needed."""
        name, verb = model_name(request.match_info["name"]), request.match_info["verb"]
        if not self._api.is_primary:
            return to_primary(request, self._api, self._fleet)
        body = await json_body(request, self._pace)
        _require_keys(body, {"by", *_VERBS[verb]})
        return json_answer(await self._api.command(_words(verb, name, body), by=_by(request, body)))

    async def load(self, request: web.Request) -> web.Response:
        """Hold a model on the host that is asked, or no longer than it must; an empty body."""
        name = model_name(request.match_info["name"])
        return json_answer(await self._api.load(name, wanted=request.match_info["what"] == "load"))

    async def promise(self, request: web.Request) -> web.Response:
        """``{"epoch", "holder", "nonce"}`` to what this node promised. It changes durable state, so it is a write."""
        body = await json_body(request, self._pace)
        epoch, holder, nonce = _promise_of(body)
        promise = await self._api.promise(epoch, holder, nonce)
        return json_answer(
            {
                "node": promise.node,
                "granted": promise.granted,
                "epoch": promise.epoch,
                "holder": promise.holder,
                "nonce": promise.nonce,
                "applied": str(promise.applied),
            }
        )


def _require_keys(body: dict[str, Any], allowed: set[str]) -> None:
    unknown = body.keys() - allowed
    if unknown:
        raise MalformedMessage(what="request body", reason=f"unknown keys {sorted(unknown)}; known: {sorted(allowed)}")


def _words(verb: str, name: ModelName, body: dict[str, Any]) -> str:
    """Each field goes through its parser, so that none can smuggle in a second word."""
    words = [verb, str(name)]
    if "alias" in _VERBS[verb]:
        words.append(alias_name(body.get("alias")))
    target = body.get("version")
    if target is not None:
        words.append(_target(target))
    return " ".join(words)


def _target(value: object) -> str:
    if isinstance(value, str) and not value.isdigit():
        return alias_name(value)
    return str(version(value))


def _by(request: web.Request, body: dict[str, Any]) -> str:
    """Who asked, for the history: what they say of themselves, and where they asked from."""
    name = body.get("by", "")
    if not isinstance(name, str) or len(name) > 128 or not (name == "" or name.isprintable()):
        raise BadName(kind="name of a person", value=repr(name)[:80], rule="at most 128 printable characters")
    origin = f"http {request.remote or 'unknown'}"
    return f"{name} ({origin})" if name else origin


def _promise_of(body: dict[str, Any]) -> tuple[int, NodeId, str]:
    _require_keys(body, {"epoch", "holder", "nonce"})
    epoch, nonce = body.get("epoch"), body.get("nonce")
    if type(epoch) is not int or not 1 <= epoch <= MAX_INTEGER:
        raise MalformedMessage(what="promise", reason="epoch is not a whole number from 1 to 2^53-1")
    if not isinstance(nonce, str) or not 1 <= len(nonce) <= MAX_NONCE_CHARS or not nonce.isprintable():
        raise MalformedMessage(what="promise", reason=f"nonce is not 1 to {MAX_NONCE_CHARS} printable characters")
    return epoch, node_id(body.get("holder")), nonce
