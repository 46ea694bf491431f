"""Shared mode on a real S3 server (SeaweedFS): egress, repeated loads, and the time of other clients."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from counted import Relay, counted
from payload import write_random
from report import Bar, Result
from seaweed import seaweed_server
from warm import warm

from fleet import Daemon, Fleet, until

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.integration.s3_server import KEYS  # noqa: E402  the path is set above

NODES = 4
MODEL = "large"
PATIENCE_S = 600.0


def run(size_bytes: int, runs: int, result: Result) -> None:
    """Everything about shared mode. Clients are timed without the relay, which is a Python process."""
    with Fleet() as fleet, seaweed_server() as server, counted(server) as relay:
        through = sections(fleet.root / "keys-relay", relay.url)
        direct = sections(fleet.root / "keys", server)
        publish(fleet, direct, size_bytes)
        egress(fleet, relay, through, size_bytes, result)
        beside(fleet, server, direct, size_bytes, runs, result)


def sections(keys: Path, endpoint: str) -> str:
    keys.write_text(f"{KEYS}aws_endpoint={endpoint}\n")
    keys.chmod(0o600)
    return f'[storage]\nmode = "shared"\nurl = "s3://models/bench"\ncredentials_file = "{keys}"\n'


def publish(fleet: Fleet, sections: str, size_bytes: int) -> None:
    """A version that lies in the store and on no host that is still there."""
    first = added(fleet, "publisher", sections)
    write_random(fleet.root / "source", size_bytes)
    (fleet.root / "source").rename(first.models / f"{MODEL}.bin")
    until(lambda: first.current(MODEL), "the version to be published", PATIENCE_S)
    removed(fleet, first)


def added(fleet: Fleet, name: str, sections: str) -> Daemon:
    daemon = Daemon(name, fleet.root, fleet.redis_url, sections)
    fleet.daemons.append(daemon)
    until(daemon.status, f"{name} to answer")
    return daemon


def removed(fleet: Fleet, daemon: Daemon) -> None:
    daemon.stop()
    fleet.daemons.remove(daemon)
    shutil.rmtree(daemon.root)


def egress(fleet: Fleet, relay: Relay, sections: str, size_bytes: int, result: Result) -> None:
    """Hosts of a fleet that is there are asked for a version that lies in the store only, all at once."""
    nodes = [Daemon(f"node-{n}", fleet.root, fleet.redis_url, sections + 'ahead = ["none"]\n') for n in range(NODES)]
    fleet.daemons += nodes
    names = {node.name for node in nodes}
    until(lambda: all(living(node) >= names for node in nodes), "all hosts to know each other")
    before, began_s = relay.answered_bytes, time.monotonic()
    for node in nodes:
        load(node)
    until(lambda: all(node.current(MODEL) for node in nodes), f"{NODES} hosts to have it", PATIENCE_S)
    took_s = time.monotonic() - began_s
    copies = (relay.answered_bytes - before) / size_bytes
    print(f"{NODES} hosts filled in {took_s:.1f} s, {copies:.2f} copies left the store", flush=True)
    result.figures |= {"egress_copies": copies, "fill_s": took_s}
    result.bars.append(Bar(f"copies that left the store for {NODES} hosts", copies, 1.3, "copies"))
    repeated(nodes[0], relay, result)
    for node in nodes:
        removed(fleet, node)


def living(node: Daemon) -> set[str]:
    return {each["id"] for each in node.status().get("nodes", ()) if each["state"] != "lost"}


def load(node: Daemon) -> None:
    request = urllib.request.Request(f"{node.url}/v1/models/{MODEL}/load", method="POST")
    urllib.request.urlopen(request, timeout=10).close()


def repeated(node: Daemon, relay: Relay, result: Result) -> None:
    """A load of what is here already, five times over."""
    time.sleep(1.0)
    before = relay.requests
    for _ in range(5):
        load(node)
        until(lambda: node.current(MODEL), "it to be there")
    time.sleep(1.0)
    requests = relay.requests - before
    print(f"5 repeated loads: {requests} requests to the store", flush=True)
    result.bars.append(Bar("requests to the store for repeated loads", requests, 0, "requests"))


def beside(fleet: Fleet, url: str, sections: str, size_bytes: int, runs: int, result: Result) -> None:
    """One host's pull beside `aws s3 cp` and rclone of the same object, in turns; ours verifies and fsyncs."""
    (key,) = keys_of_size(url, size_bytes)
    times: dict[str, list[float]] = {"modelsync": [], **{name: [] for name in clients()}}
    for _ in range(runs):
        with warm(size_bytes + (256 << 20)):
            times["modelsync"].append(ours(fleet, sections))
        for name, command in clients().items():
            with warm(size_bytes + (256 << 20)):
                times[name].append(theirs(command, url, key, fleet.root))
    for name, taken in times.items():
        print(f"{name:10} {' '.join(f'{each:6.1f}' for each in taken)} s", flush=True)
    result.figures["pull_s"] = times
    for name in times.keys() - {"modelsync"}:
        pairs = sorted(mine / other for mine, other in zip(times["modelsync"], times[name], strict=True))
        result.bars.append(Bar(f"a pull beside {name}", pairs[len(pairs) // 2], 1.0, "x its time"))


def ours(fleet: Fleet, sections: str) -> float:
    """From the log's own line: beginning of the pull until all bytes are verified and fsynced."""
    node = added(fleet, "puller", sections)
    until(lambda: node.current(MODEL), "it to have it", PATIENCE_S)
    line = next(line for line in node.log.read_text().splitlines() if "version.pulled" in line)
    removed(fleet, node)
    return float(line.split("took_ms")[1].lstrip('=": ').split()[0].rstrip(',"}')) / 1000


def clients() -> dict[str, list[str]]:
    """The programs that are installed. `aws` comes from an environment of its own: see --aws."""
    aws = os.environ.get("BENCH_AWS") or shutil.which("aws")
    found = {"aws s3 cp": [aws, "s3", "cp", "--quiet"]} if aws else {}
    if rclone := shutil.which("rclone"):
        found["rclone"] = [rclone, "copyto"]
    return found


def theirs(command: list[str], url: str, key: str, root: Path) -> float:
    target = root / "theirs"
    # Debian's rclone 1.60 does not start where AWS_CA_BUNDLE is set.
    environment = {
        **{key: text for key, text in os.environ.items() if key != "AWS_CA_BUNDLE"},
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "unspeakable",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url,
    }
    environment |= {f"RCLONE_CONFIG_M_{k}": v for k, v in (("TYPE", "s3"), ("PROVIDER", "Other"), ("ENDPOINT", url))}
    environment |= {"RCLONE_CONFIG_M_ENV_AUTH": "true"}
    source = f"m:models/{key}" if "copyto" in command else f"s3://models/{key}"
    began_s = time.monotonic()
    subprocess.run([*command, source, str(target)], env=environment, check=True, stdout=subprocess.DEVNULL)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    took_s = time.monotonic() - began_s
    target.unlink()
    return took_s


def keys_of_size(url: str, size_bytes: int) -> list[str]:
    import obstore  # noqa: PLC0415
    from obstore.store import S3Store  # noqa: PLC0415

    config = {"endpoint": url, "access_key_id": "test", "secret_access_key": "unspeakable", "region": "us-east-1"}
    store = S3Store("models", config=config, client_options={"allow_http": True})
    return [each["path"] for page in obstore.list(store) for each in page if each["size"] == size_bytes]
