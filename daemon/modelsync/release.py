"""``modelsyncd --release``: gives back the lease that a dead daemon of this host still holds.

systemd runs it after a kill, and until it is done the fleet has no primary. So it is a file of its own that imports
little: with all that the daemon needs, the interpreter alone would take most of a second.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from modelsync.config import Config, read_secret
from modelsync.core.election.lease import Authority
from modelsync.core.ids import NodeId
from modelsync.edges.disk import state_lock
from modelsync.edges.disk.state_file import StateFile
from modelsync.edges.redis import release as redis_release


def release_dead(config: Config) -> None:
    """Give the lease back, if this host's last daemon left it held: candidates need not wait for it to run out.

    Holding the state directory's lock is the proof that it is dead. Raises StateInUse, LayoutCorrupt, DiskFailed,
    ConfigurationFault, RedisUnavailable, RedisRefused.
    """
    path = config.node.state_dir / "state.json"
    if config.fleet.redis == "embedded" or not path.exists():
        return  # an embedded Redis died with its daemon
    lock = state_lock.hold(config.node.state_dir)
    try:
        ledger = StateFile(path)
        if ledger.holder == config.node.id:
            _release(config, Authority(ledger.epoch, NodeId(ledger.holder), ledger.nonce))
    finally:
        os.close(lock)


def _release(config: Config, authority: Authority) -> None:
    if redis_release.is_plain(config.fleet.redis):
        redis_release.release(config.fleet.redis, config.fleet.name, authority, _password(config))
        return
    import asyncio  # noqa: PLC0415  both take longer to import than all of the above

    from modelsync.edges.redis.lease import RedisLease  # noqa: PLC0415
    from modelsync.redis_client import LEASE_TIMEOUT_S, redis_client  # noqa: PLC0415

    async def through_redis_py() -> None:
        client = redis_client(config.fleet.redis, config.security, LEASE_TIMEOUT_S)
        lease = RedisLease(client, config.fleet.name, config.node.id, config.node.advertise)
        try:
            await lease.release(authority)
        finally:
            await lease.close()

    asyncio.run(through_redis_py())


def _password(config: Config) -> str | None:
    named = dict(parse_qsl(urlsplit(config.fleet.redis).query)).get("password_file")
    if named is not None:
        return read_secret(Path(named), "fleet.redis")
    path = config.security.redis_password_file
    return read_secret(path, "security.redis_password_file") if path else None
