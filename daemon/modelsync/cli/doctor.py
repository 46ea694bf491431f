"""``modelsync doctor``: whether this host can do its part, and what to do where it cannot."""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from modelsync.access import Target, access
from modelsync.cli.keys import sealing_fault
from modelsync.cli.output import json_option, print_json, printable
from modelsync.config import Config, SecuritySection
from modelsync.core.errors import ModelsyncError, RemoteFault
from modelsync.core.ids import NodeId

SLOW_REDIS_S = 0.05
SLOW_REDIS_ADVICE = "renewals give up after 0.3 s; bring it nearer, or find what keeps it busy"
CLOCK_OFF_S = 5.0
CLOCK_ADVICE = "times in the history will not agree, nothing else depends on clocks; start an NTP client"
MIN_REDIS = (6, 2)
LOOK_AT_DAEMON = "systemctl status modelsyncd; journalctl -u modelsyncd"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``advice`` is empty where it is well; ``bad`` where the host cannot work so."""

    what: str
    found: str
    advice: str = ""
    bad: bool = False


@click.command("doctor")
@json_option
@click.pass_obj
def doctor_command(target: Target, as_json: bool) -> None:
    """Check this host, and say what to do about what is wrong.

    Exit code 1 if something keeps it from working. With --redis URL --fleet NAME the Redis and the hosts of that fleet
    are looked at, as they are seen from here.
    """
    findings = asyncio.run(_examine(target))
    if as_json:
        print_json([{"what": f.what, "found": f.found, "advice": f.advice, "bad": f.bad} for f in findings])
    else:
        for finding in findings:
            mark = "FAIL" if finding.bad else "note" if finding.advice else "ok"
            click.echo(printable(f"{mark:5} {finding.what}: {finding.found}"))
            if finding.advice:
                click.echo(printable(f"      -> {finding.advice}"))
    if any(finding.bad for finding in findings):
        raise click.exceptions.Exit(1)


async def _examine(target: Target) -> list[Finding]:
    if target.redis is not None:
        redis = [finding async for finding in _redis(target.redis, SecuritySection())]
        return [*redis, *[finding async for finding in _fleet(target, None)]]
    try:
        config = target.config()
    except ModelsyncError as error:
        return [Finding("configuration", str(error), "correct the keys named here; modelsync config check FILE", True)]
    findings = [Finding("configuration", f"{target.config_file} is good"), *_host(config)]
    findings += [finding async for finding in _redis(config.fleet.redis, config.security)]
    return findings + [finding async for finding in _fleet(target, config.node.id)]


def _host(config: Config) -> Iterator[Finding]:
    node = config.node
    for what, path in (("state_dir", node.state_dir), ("live_dir", node.live_dir), ("view_dir", node.view_dir)):
        yield _directory(what, path, needed=what != "view_dir")
    if config.models.watch is not None:
        readable = os.access(config.models.watch, os.R_OK | os.X_OK)
        there = config.models.watch.is_dir()
        wrong = (
            "let the user that modelsyncd runs as read it (group modelsync)" if there else "it is not there: make it"
        )
        yield Finding("models.watch", str(config.models.watch), "" if readable else wrong, not readable)
    yield _space(node.state_dir)
    yield _kernel()
    yield _signing(config)


def _signing(config: Config) -> Finding:
    security = config.security
    if not security.trusted_keys and security.signing_key_file is None:
        return Finding("signing", "off: whoever can publish, or write to Redis, decides what runs")
    keys = len(security.trusted_keys)
    found = f"{keys} trusted {'key' if keys == 1 else 'keys'}" if keys else "signatures are not asked for"
    try:
        return Finding("signing", found, sealing_fault(config) or "")
    except ModelsyncError as error:
        return Finding("signing", str(error), "the daemon does not start so", True)


def _directory(what: str, path: Path, *, needed: bool) -> Finding:
    place = next(parent for parent in (path, *path.parents) if parent.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        advice = f"as user {os.geteuid()} it cannot be written: run doctor as the daemon's user, or chown {place}"
        return Finding(what, f"{path} cannot be written", advice, bad=needed)
    return Finding(what, str(path) if place == path else f"{path} is not there yet and can be made")


def _space(path: Path) -> Finding:
    place = next(parent for parent in (path, *path.parents) if parent.exists())
    stat = os.statvfs(place)
    share = stat.f_bavail / max(1, stat.f_blocks)
    advice = "free space, or lower models.keep; a pull that does not fit is refused" if share < 0.1 else ""
    return Finding("disk", f"{stat.f_bavail * stat.f_frsize >> 20} MiB free, {share:.0%}", advice)


def _kernel() -> Finding:
    """What cages and watches need: filters of system calls, lists of children, inotify."""
    from modelsync.edges.gates import seccomp  # noqa: PLC0415  only this command needs it

    lacking = []
    status = Path("/proc/self/status").read_text()
    if not seccomp.available() or "Seccomp:" not in status:
        lacking.append("seccomp: a check's or hook's program can open sockets and signal the daemon")
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        lacking.append("CONFIG_PROC_CHILDREN: what a hook leaves behind is not killed")
    limit = Path("/proc/sys/fs/inotify/max_user_watches")
    if limit.exists() and int(limit.read_text()) < 8192:
        lacking.append("fs.inotify.max_user_watches below 8192: large models directories are scanned instead")
    return Finding("kernel", f"{platform.release()} {platform.machine()}", "; ".join(lacking))


async def _redis(url: str, security: SecuritySection) -> AsyncIterator[Finding]:
    if url == "embedded":
        yield Finding("redis", "embedded in this host's daemon")
        return
    from modelsync.redis_client import redis_client  # noqa: PLC0415  imports redis-py

    client = redis_client(url, security, 2.0)
    try:
        started_s = time.monotonic()
        await client.ping()
        took_s = time.monotonic() - started_s
        slow = took_s > SLOW_REDIS_S
        yield Finding("redis", f"answers in {1000 * took_s:.1f} ms", SLOW_REDIS_ADVICE if slow else "")
        yield _redis_version(await client.info("server"))
        seconds, micros = await client.time()
        off_s = abs(float(seconds) + float(micros) / 1e6 - time.time())
        yield Finding("clock", f"{off_s:.1f} s from Redis's", CLOCK_ADVICE if off_s > CLOCK_OFF_S else "")
    except Exception as error:  # whatever redis-py raises: this command is to say it, not to end by it
        text = str(error) or type(error).__name__
        yield Finding("redis", text[:300], "see fleet.redis, its password, and whether the host can be reached", True)
    finally:
        await client.aclose()


def _redis_version(info: dict[str, object]) -> Finding:
    text = str(info.get("valkey_version") or info.get("redis_version") or "unknown")
    digits = [int(part) for part in text.split(".")[:2] if part.isdigit()]
    old = len(digits) == 2 and tuple(digits) < MIN_REDIS
    return Finding("redis version", text, "6.2 or later is needed" if old else "", old)


async def _fleet(target: Target, this: NodeId | None) -> AsyncIterator[Finding]:
    """What the fleet says of this host, where it is one of it, and whether the others answer."""
    try:
        async with access(target, 3.0) as fleet:
            status = await fleet.status()
    except (RemoteFault, ModelsyncError) as error:
        yield Finding("daemon", str(error), LOOK_AT_DAEMON, True)
        return
    if this is not None:
        yield _own(next((node for node in status["nodes"] if node["id"] == this), None), this)
    primary = status["primary"] or ""
    yield Finding("primary", primary or "none", "" if primary else "an election may be going on; see modelsync status")
    for node in status["nodes"]:
        if node["id"] != this:
            yield await _peer(str(node["id"]), str(node["url"]))


def _own(own: dict[str, object] | None, this: NodeId) -> Finding:
    if own is None:
        return Finding("daemon", f"{this} has not reported", "systemctl start modelsyncd", True)
    state = str(own["state"])
    if state == "lost":
        return Finding("daemon", f"{this} is lost", LOOK_AT_DAEMON, True)
    why = str(own.get("error") or "see modelsync status")
    return Finding("daemon", f"{this} is {state}", "" if state == "ok" else why)


async def _peer(name: str, url: str) -> Finding:
    from modelsync.edges.http.control import ControlClient  # noqa: PLC0415  imports aiohttp

    started_s = time.monotonic()
    try:
        async with ControlClient(None, 3.0) as control:
            await control.models(url)
    except ModelsyncError as error:
        return Finding(
            f"peer {name}", f"{url}: {error}", f"open the port of {url} to this host; see node.advertise there"
        )
    return Finding(f"peer {name}", f"{url} answers in {1000 * (time.monotonic() - started_s):.1f} ms")


COMMANDS = (doctor_command,)
