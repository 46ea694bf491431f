"""``modelsyncd --release``: gives back the lease that a dead daemon of this host still holds.

systemd runs it after a kill, and until it is done the fleet has no primary. So it is a file of its own that imports
little: with all that the daemon needs, the interpreter alone would take most of a second.
"""

from __future__ import annotations

import asyncio

from modelsync.config import Config
from modelsync.edges.redis_lease import RedisLease
from modelsync.edges.state_file import StateFile
from modelsync.edges.store import Store
from modelsync.ports import Authority
from modelsync.redis_client import LEASE_TIMEOUT_S, redis_client


async def release_dead(config: Config) -> None:
    """Give the lease back, if this host's last daemon left it held: candidates need not wait for it to run out.

    Holding the state directory's lock is the proof that it is dead. Raises StateInUse, LayoutCorrupt, DiskFailed,
    RedisUnavailable, RedisRefused.
    """
    path = config.node.state_dir / "state.json"
    if config.fleet.redis == "embedded" or not path.exists():
        return  # an embedded Redis died with its daemon
    store = Store(config.node.state_dir)
    await asyncio.to_thread(store.lock)
    try:
        await _release(config, StateFile(path))
    finally:
        store.close()


async def _release(config: Config, ledger: StateFile) -> None:
    if ledger.holder != config.node.id:
        return
    client = redis_client(config.fleet.redis, config.security, LEASE_TIMEOUT_S)
    lease = RedisLease(client, config.fleet.name, config.node.id, config.node.advertise)
    try:
        await lease.release(Authority(ledger.epoch, config.node.id, ledger.nonce))
    finally:
        await lease.close()
