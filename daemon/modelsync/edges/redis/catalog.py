"""The catalog in Redis: the fenced writes of the holder, the reads of everyone, and each node's report of itself.

Every reply is parsed as hostile input, and redis-py's exceptions end here. The lease is lease.py's.
PROTOCOL.md section 4.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from modelsync.core import canonical, catalog_fields, fleet, status
from modelsync.core.catalog import ModelRecord
from modelsync.core.errors import (
    BadName,
    CatalogBehind,
    LeaseLost,
    MalformedMessage,
    StaleEpoch,
    VersionConflict,
)
from modelsync.core.fleet import FleetRecord
from modelsync.core.ids import ZERO_ID, EntryId, FleetName, ModelName, NodeId, model_name, node_id
from modelsync.core.status import NodeReport
from modelsync.core.swarm.neighbours import Labels
from modelsync.edges.redis.faults import redis_faults
from modelsync.edges.redis.lease import lease_view
from modelsync.ports import Authority, Beats, CatalogRead, Change, Glance, LogChanges

NODE_EXPIRY_S = 3600
"""A dead node stays in the lists for an hour, so that an operator sees that it is gone."""
LOG_READ = 1000
READ_AT_ONCE = 100
MAX_HASH_FIELDS = 2000
MAX_FIELD_BYTES = 1 << 20
MAX_NODES = 10_000
MAX_BEAT_CHARS = 64
REPORTS_AT_ONCE = 500
_GLANCED = ("id", "desired", "pinned", "rollout")


class RedisCatalog:
    """One fleet's keys on one connection pool."""

    def __init__(self, client: Any, name: FleetName) -> None:
        # Any: redis-py types every reply as every command's; the parsers below are what checks them.
        self._redis = client
        self._prefix = f"modelsync:{{{name}}}:"
        scripts = files("modelsync.edges.redis") / "lua"
        self._publish = client.register_script((scripts / "publish.lua").read_text())
        self._answer = client.register_script((scripts / "answer.lua").read_text())

    def key(self, name: str) -> str:
        return self._prefix + name

    async def close(self) -> None:
        await self._redis.aclose()

    # --- reading ----------------------------------------------------------------------------------------------------

    async def tail(self) -> EntryId:
        """The id of the last change; ZERO_ID for an empty log."""
        async with redis_faults("read the log's end"):
            entries = await self._redis.xrevrange(self.key("log"), count=1)
        return _entry_id(entries[0][0]) if entries else ZERO_ID

    async def changes(self, after: EntryId) -> LogChanges:
        """The log's end, and what entries above ``after`` name, in one round trip."""
        async with redis_faults("read the log"), self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(self.key("lease"))
            pipe.xrevrange(self.key("log"), count=1)
            pipe.xrange(self.key("log"), count=1)
            pipe.xrange(self.key("log"), min=f"({after}", count=LOG_READ)
            held, newest, oldest, entries = await pipe.execute()
        lease = lease_view([part for pair in held.items() for part in pair])
        tail = _entry_id(newest[0][0]) if newest else ZERO_ID
        if not oldest or _entry_id(oldest[0][0]) > after or len(entries) == LOG_READ:
            return LogChanges(lease, tail, None)
        named = {_text(fields.get(b"model", b"")) for _, fields in entries}
        legal_names = sorted(legal for name in named if (legal := _legal(name)) is not None)
        manifests = tuple(fields[b"manifest"] for _, fields in entries if b"manifest" in fields)
        return LogChanges(lease, tail, legal_names, manifests)

    async def model_names(self) -> Sequence[ModelName]:
        async with redis_faults("read the names of models"):
            names = await self._redis.smembers(self.key("models"))
        return sorted(legal for name in names if (legal := _legal(_text(name))) is not None)

    async def read(self, names: Sequence[ModelName]) -> CatalogRead:
        """The fleet's record and these models, one round trip a hundred. An absent model is an empty record."""
        records, faults, own = [], {}, FleetRecord()
        for at in range(0, max(1, len(names)), READ_AT_ONCE):
            some = names[at : at + READ_AT_ONCE]
            async with redis_faults("read the catalog"), self._redis.pipeline(transaction=False) as pipe:
                pipe.hgetall(self.key("fleet"))
                for name in some:
                    pipe.hlen(self.key(f"model:{name}"))
                    pipe.hgetall(self.key(f"model:{name}"))
                head, *replies = await pipe.execute(raise_on_error=False)
                _raise_fault(head)
            own = fleet.from_fields(_text_fields(head))
            for name, size, fields in zip(some, replies[::2], replies[1::2], strict=True):
                try:
                    records.append(_record(name, size, fields))
                except MalformedMessage as error:
                    faults[name] = error.reason
        return CatalogRead(records, own, faults)

    async def glance(self, name: ModelName) -> Glance:
        async with redis_faults("read a rollout"), self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(self.key("lease"))
            pipe.hmget(self.key(f"model:{name}"), *_GLANCED)
            held, values = await pipe.execute()
        fields = {key: _text(value) for key, value in zip(_GLANCED, values, strict=True) if value is not None}
        seen = catalog_fields.from_fields(name, fields)
        lease = lease_view([part for pair in held.items() for part in pair])
        return Glance(lease, seen.id, seen.desired, seen.pinned, seen.rollout)

    async def log(self, count: int) -> list[dict[str, str]]:
        """The newest entries, newest first, for people."""
        async with redis_faults("read the log"):
            entries = await self._redis.xrevrange(self.key("log"), count=count)
        return [{"id": _text(entry), **_text_fields(fields)} for entry, fields in entries]

    # --- fenced writes ----------------------------------------------------------------------------------------------

    async def append(self, authority: Authority, change: Change) -> None:
        """One catalog change, all or nothing.

        Raises: LeaseLost, StaleEpoch, VersionConflict; RedisUnavailable, in which case it may or may not have been
        written: calling again with the same change is safe.
        """
        log = [text for pair in change.log.items() for text in pair]
        fields = [text for pair in change.written.items() for text in pair]
        keys = [self.key(k) for k in ("lease", "log", _record_key(change), "models", "events")]
        head = [authority.epoch, authority.holder, authority.nonce, str(change.id), change.model]
        args = [*head, change.version or "", change.digest or "", change.announcement]
        async with redis_faults("publish a change"):
            reply = await self._publish(keys=keys, args=[*args, len(log), *log, len(fields), *fields, *change.removed])
        if reply[0] == 0:
            raise _refusal(_text(reply[1]), authority, change)

    # --- nodes ------------------------------------------------------------------------------------------------------

    async def report(self, node: NodeId, fields: Mapping[str, str], beat: str, *, after: str) -> bool:
        """Write what of this node's report is new, and its beat after that; whether the rest of it is still there.

        A Redis that lost what this node wrote last, as one that took over has, shows an older beat than ``after``.
        """
        key = self.key(f"node:{node}")
        async with redis_faults("report"), self._redis.pipeline(transaction=False) as pipe:
            pipe.expire(key, NODE_EXPIRY_S)  # first: it tells whether what is not written now is there
            pipe.hget(self.key("beats"), node)
            if fields:
                pipe.hset(key, mapping=dict(fields))
            if not after:
                pipe.expire(key, NODE_EXPIRY_S)
            pipe.sadd(self.key("nodes"), node)
            pipe.hset(self.key("beats"), node, beat)
            there, last, *_ = await pipe.execute()
        return not after or (bool(there) and _text_or(last) == after)

    async def beats(self) -> Beats:
        """Who belongs to the fleet, and the beat of each that writes one."""
        async with redis_faults("read the nodes"), self._redis.pipeline(transaction=False) as pipe:
            pipe.smembers(self.key("nodes"))
            pipe.hgetall(self.key("beats"))
            names, beats = await pipe.execute()
        legal = sorted(name for raw in names if (name := _legal_node(raw)) is not None)[:MAX_NODES]
        known = {_text_or(name): _text_or(beat)[:MAX_BEAT_CHARS] for name, beat in beats.items()}
        return Beats(legal, known)

    async def reports(self, names: Sequence[str]) -> list[NodeReport]:
        """These nodes' reports; one that cannot be read has its fault in place of its state, one that is gone is not
        among them.
        """
        found = []
        for at in range(0, len(names), REPORTS_AT_ONCE):
            some = names[at : at + REPORTS_AT_ONCE]
            async with redis_faults("read the nodes"), self._redis.pipeline(transaction=False) as pipe:
                for name in some:
                    pipe.hgetall(self.key(f"node:{name}"))
                    pipe.pttl(self.key(f"node:{name}"))
                replies = await pipe.execute(raise_on_error=False)
            for name, fields, ttl in zip(some, replies[::2], replies[1::2], strict=True):
                if isinstance(fields, dict) and fields:
                    found.append(_node_report(name, fields, ttl))
        return found

    async def nodes(self) -> list[NodeReport]:
        """Every node's report, for whoever asks but once."""
        return await self.reports((await self.beats()).names)

    async def forget(self, node: NodeId) -> None:
        """Take a node that is gone for good out of the lists."""
        async with redis_faults("forget a node"):
            await self._redis.srem(self.key("nodes"), node)
            await self._redis.hdel(self.key("beats"), node)
            await self._redis.delete(self.key(f"node:{node}"))

    # --- answers ----------------------------------------------------------------------------------------------------

    async def announce(self, text: str) -> None:
        async with redis_faults("announce"):
            await self._redis.publish(self.key("events"), text)

    async def answered(self) -> frozenset[str]:
        """The names of the newest commands that were answered."""
        async with redis_faults("read what was answered"):
            return frozenset(_text(name) for name in await self._redis.lrange(self.key("answered"), 0, -1))

    async def answer(self, authority: Authority, names: Sequence[str], text: str) -> bool:
        """Say what became of a command: on ``events``, and in a list that stays for those who did not listen.

        Returns whether it had not been answered. Raises LeaseLost.
        """
        keys = [self.key(k) for k in ("lease", "answered", "answers", "events")]
        args = [authority.epoch, authority.holder, authority.nonce, text, *names]
        async with redis_faults("answer"):
            reply = await self._answer(keys=keys, args=args)
        if reply[0] == 0:
            raise LeaseLost(epoch=authority.epoch, holder="another node, or none")
        return bool(reply[0] == 1)


def _raise_fault(reply: Any) -> None:
    if isinstance(reply, Exception):
        raise reply


def _record(name: ModelName, size: Any, fields: Any) -> ModelRecord:
    """One model's replies, parsed. Raises MalformedMessage."""
    if not isinstance(size, int) or not isinstance(fields, dict):
        raise MalformedMessage(what=f"model {name}", reason=f"not a hash: {size}"[:200])
    if size > MAX_HASH_FIELDS:
        raise MalformedMessage(what=f"model {name}", reason=f"{size} fields, at most {MAX_HASH_FIELDS}")
    return catalog_fields.from_fields(name, _text_fields(fields))


def _record_key(change: Change) -> str:
    return f"model:{change.model}" if change.model else "fleet"


def _refusal(
    reason: str, authority: Authority, change: Change
) -> LeaseLost | StaleEpoch | VersionConflict | CatalogBehind:
    if reason == "conflict":
        return VersionConflict(
            model=change.model, version=int(change.version or 0), known="other bytes", offered=change.digest or ""
        )
    if reason == "behind":
        return CatalogBehind(after=change.log.get("after", ""))
    if reason == "id":
        return StaleEpoch(offered=change.id.epoch, accepted=-1)
    return LeaseLost(epoch=authority.epoch, holder="another node, or none")


def _text(value: Any) -> str:
    if not isinstance(value, bytes) or len(value) > MAX_FIELD_BYTES:
        raise MalformedMessage(what="reply of Redis", reason="not a short text")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise MalformedMessage(what="reply of Redis", reason="not UTF-8") from error


def _text_fields(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    return {_text(key): _text(value) for key, value in fields.items()}


def _entry_id(value: Any) -> EntryId:
    try:
        return EntryId.parse(_text(value))
    except BadName as error:
        raise MalformedMessage(what="log id", reason=str(error)) from error


def _legal(name: str) -> ModelName | None:
    # A name that could not be a directory is nobody's model: it is passed over, not obeyed.
    try:
        return model_name(name)
    except BadName:
        return None


def _text_or(value: Any) -> str:
    """A text of somebody's; what is none says nothing, and spoils nobody else's."""
    try:
        return _text(value)
    except MalformedMessage:
        return ""


def _legal_node(raw: Any) -> NodeId | None:
    try:
        return node_id(_text(raw))
    except (BadName, MalformedMessage):
        return None


def _node_report(name: str, raw: Mapping[bytes, bytes], ttl_ms: int) -> NodeReport:
    last_seen_s = max(0.0, NODE_EXPIRY_S - ttl_ms / 1000) if isinstance(ttl_ms, int) and ttl_ms > 0 else NODE_EXPIRY_S
    try:
        fields = _text_fields(raw)
        models = status.parse_node_models(canonical.decode(fields.get("models", "{}").encode(), "node report"))
        # The epoch is read as the first half of an id: the same limits hold for it.
        epoch = EntryId.parse(f"{fields.get('epoch', '0')}-0").epoch
        applied = EntryId.parse(fields.get("applied", "0-0"))
        extra, moving = json.loads(fields.get("extra", "{}")), json.loads(fields.get("moving", "{}"))
        if not isinstance(extra, dict) or not isinstance(moving, dict):
            raise ValueError("extra or moving is not an object")
    except (BadName, MalformedMessage, ValueError) as error:
        return NodeReport(name, "replica", "", "unreadable", last_seen_s, extra={"error": str(error)[:200]})
    return NodeReport(
        id=str(node_id(name)),
        role=fields.get("role", "replica"),
        url=fields.get("url", ""),
        state=fields.get("state", "unknown"),
        last_seen_s=last_seen_s,
        epoch=epoch,
        applied=applied,
        priority=int(fields.get("priority", "0")[:9] or 0),
        eligible=bool(fields.get("eligible")),
        models=models,
        extra={**extra, **moving},
        labels=Labels(fields.get("rack", "")[:128], fields.get("zone", "")[:128]),
        incarnation=fields.get("incarnation", ""),
    )
