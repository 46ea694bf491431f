"""The lease in Redis: the four scripts of PROTOCOL.md section 4, on a connection that nothing else uses.

This file alone knows the lease's keys and replies. Every reply is parsed as hostile input: whoever can write to Redis
can write anything there, and a key of the wrong type must look like a fault, never like a dead holder.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from importlib.resources import files
from typing import Any

from redis import exceptions as faults

from modelsync.core.election.lease import HANDOFF, LEASE_STATES, NO_LEASE, RELEASED
from modelsync.core.errors import BadName, MalformedMessage
from modelsync.core.ids import MAX_INTEGER, FleetName, NodeId, node_id
from modelsync.core.messages import announcement
from modelsync.edges.redis.connect import connect
from modelsync.edges.redis.faults import redis_faults
from modelsync.ports import Authority, LeaseView

TIMEOUT_S = 0.3
"""A tenth of the default ttl: a renewal that takes longer is tried again while the lease still lasts."""
MAX_FIELD_BYTES = 1024
MAX_FIELDS = 64
_WHOLE_DIGITS = 16
"""Digits of 2^53 - 1: longer numbers are not even parsed."""
_NEEDED = ("epoch", "holder", "nonce", "seq", "state")


class RedisLease:
    """``ports.Coordinator`` for one node of one fleet.

    Args:
        url_or_client: a URL, for which a connection with ``TIMEOUT_S`` is made, or a client that is used as it is.
        url: where this node listens, told to whoever reads the lease.
    """

    def __init__(self, url_or_client: Any, fleet: FleetName, holder: NodeId, url: str) -> None:
        made = connect(url_or_client, timeout_s=TIMEOUT_S) if isinstance(url_or_client, str) else url_or_client
        self._redis = made
        self._fleet = fleet
        self._holder = holder
        self._url = url
        prefix = f"modelsync:{{{fleet}}}:"
        self._lease, self._epoch, self._log, self._events = (prefix + k for k in ("lease", "epoch", "log", "events"))

    async def close(self) -> None:
        await self._redis.aclose()

    async def read(self) -> LeaseView:
        """The lease, ``NO_LEASE`` where there is none. Raises RedisUnavailable, RedisRefused, MalformedMessage."""
        async with redis_faults("read the lease"):
            reply: Any = await self._redis.hgetall(self._lease)
            if not isinstance(reply, dict):
                raise ValueError("not a hash")
            return lease_view([part for pair in reply.items() for part in pair])

    async def acquire(self, observed: LeaseView, nonce: str, min_epoch: int) -> int | LeaseView:
        """The granted epoch, or the lease that stood in the way. Raises as ``read``; then it may have been granted."""
        args = (self._holder, nonce, self._url, observed.epoch, observed.nonce, observed.seq, min_epoch)
        done, rest = await self._run(_ACQUIRE, (self._lease, self._epoch, self._log), args)
        if not done:
            return lease_view(rest)
        return _whole(rest[0] if len(rest) == 1 else None, "granted epoch")

    async def renew(self, authority: Authority, seq: int) -> LeaseView | None:
        """None: renewed. ``NO_LEASE``: there is none. Any other view: whose it is now. Raises as ``read``."""
        done, rest = await self._run(_RENEW, (self._lease,), (*_grant(authority), seq))
        return None if done else lease_view(rest)

    async def reassert(self, authority: Authority, seq: int) -> LeaseView | None:
        """None: written back. A view: Redis has something newer. Raises as ``read``."""
        args = (*_grant(authority), seq, self._url)
        done, rest = await self._run(_REASSERT, (self._lease, self._epoch, self._log), args)
        return None if done else lease_view(rest)

    async def release(self, authority: Authority, successor: str = "") -> None:
        """Give the lease back; harmless where it is no longer ours. Raises as ``read``."""
        state = HANDOFF if successor else RELEASED
        fields = {"node": authority.holder, "successor": successor}
        text = announcement("lease.released", self._fleet, authority.epoch, "", **fields)
        await self._run(_RELEASE, (self._lease, self._events), (*_grant(authority), successor, state, text))

    async def _run(self, script: _Script, keys: Sequence[str], args: Sequence[str | int]) -> tuple[bool, list[Any]]:
        async with redis_faults(script.name):
            try:
                reply = await self._redis.evalsha(script.sha, len(keys), *keys, *args)
            except faults.NoScriptError:
                reply = await self._redis.eval(script.text, len(keys), *keys, *args)
            if not isinstance(reply, list) or not reply or reply[0] not in (1, 0, -1):
                raise ValueError(f"{str(reply)[:80]!r} is not an answer of this script")
            return reply[0] == 1, reply[1:]


class _Script:
    def __init__(self, name: str) -> None:
        self.name = name
        self.text = (files("modelsync.edges.redis") / "lua" / f"{name}.lua").read_text()
        self.sha = sha1(self.text.encode(), usedforsecurity=False).hexdigest()


_ACQUIRE, _RENEW, _REASSERT, _RELEASE = map(_Script, ("acquire", "renew", "reassert", "release"))


def _grant(authority: Authority) -> tuple[int, str, str]:
    return authority.epoch, authority.holder, authority.nonce


def lease_view(flat: Sequence[Any]) -> LeaseView:
    """A lease from field, value, field, value… as Redis sent them. Raises MalformedMessage."""
    if not flat:
        return NO_LEASE
    if len(flat) % 2 or len(flat) > 2 * MAX_FIELDS:
        raise MalformedMessage(what="lease", reason=f"{len(flat)} parts")
    texts = [_text(part) for part in flat]
    fields = dict(zip(texts[::2], texts[1::2], strict=True))
    if missing := [name for name in _NEEDED if name not in fields]:
        raise MalformedMessage(what="lease", reason=f"no field {', '.join(missing)}")
    epoch, seq = _whole(fields["epoch"], "epoch"), _whole(fields["seq"], "seq")
    if epoch == 0 or fields["state"] not in LEASE_STATES:
        raise MalformedMessage(what="lease", reason="epoch 0 or an unknown state")
    return LeaseView(
        epoch=epoch,
        holder=_node(fields["holder"]),
        nonce=fields["nonce"],
        seq=seq,
        state=fields["state"],
        successor=_node(fields["successor"]) if fields.get("successor") else "",
        url=fields.get("url", ""),
    )


def _text(value: Any) -> str:
    if not isinstance(value, bytes) or len(value) > MAX_FIELD_BYTES:
        raise MalformedMessage(what="lease", reason="a field is not a short text")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise MalformedMessage(what="lease", reason="a field is not UTF-8") from error


def _whole(value: Any, what: str) -> int:
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    if not isinstance(text, str) or not (text.isascii() and text.isdigit()) or len(text) > _WHOLE_DIGITS:
        raise MalformedMessage(what="lease", reason=f"{what} is not a whole number below 2^53")
    if int(text) > MAX_INTEGER:
        raise MalformedMessage(what="lease", reason=f"{what} is above 2^53 - 1")
    return int(text)


def _node(text: str) -> NodeId:
    try:
        return node_id(text)
    except BadName as error:
        raise MalformedMessage(what="lease", reason=str(error)[:200]) from error
