"""Real daemons that compress what they give each other, and stop doing so when they are told to."""

from __future__ import annotations

import json
import random
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.daemons import Daemon, Fleet, sha256_of, until

pytest.importorskip("zstandard", reason="a node without it sends and receives bytes as they are")

SIZE = 17 << 20
LIMITED = "[transfer]\nrate_limit_bytes_per_s = 15000000\n"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    made.close()


def text(seed: int) -> bytes:
    draw = random.Random(seed)
    words = [draw.randbytes(6).hex() for _ in range(2000)]
    return " ".join(draw.choices(words, k=SIZE // 12)).encode()[:SIZE]


def metric(daemon: Daemon, name: str) -> int:
    with urllib.request.urlopen(f"{daemon.url}/metrics", timeout=5) as response:
        found = re.search(rf"^modelsync_{name}_total (\S+)", response.read().decode(), re.MULTILINE)
        assert found, name
        return int(float(found[1]))


def last_pull(daemon: Daemon) -> dict[str, Any]:
    lines = [json.loads(line) for line in daemon.log.read_text().splitlines() if '"version.pulled"' in line]
    return lines[-1]


def reconfigured(daemon: Daemon, sections: str) -> None:
    before = daemon.log.read_text().count('"config.reloaded"')
    daemon.config.write_text(daemon.base + sections)
    until(lambda: daemon.log.read_text().count('"config.reloaded"') > before, "the edit to be taken on")


def test_a_compressible_model_moves_fewer_bytes_until_somebody_says_never(fleet: Fleet) -> None:
    primary, replica = fleet.add("a"), fleet.add("b", LIMITED)
    until(lambda: len(primary.status()["nodes"]) == 2, "both seen")

    def publish(number: int) -> tuple[int, int]:
        primary.put("words.bin", text(number))
        until(lambda: replica.active("words") == number, f"version {number}", 30)
        assert sha256_of(replica.tree("words")) == sha256_of(primary.tree("words"))  # type: ignore[arg-type]
        line = last_pull(replica)
        assert line["version"] == number and line["blamed"] == []
        return line["wire_bytes"], line["content_bytes"]

    wire, content = publish(1)
    assert wire < 0.7 * SIZE <= SIZE <= content
    assert metric(replica, "received_bytes") == wire == metric(primary, "sent_bytes")
    assert metric(replica, "received_content_bytes") == content == metric(primary, "sent_content_bytes")
    reconfigured(replica, LIMITED + 'compression = "never"\n')
    assert publish(2) == (SIZE, SIZE)
    reconfigured(replica, LIMITED + 'compression = "always"\n')
    assert publish(3)[0] < 0.7 * SIZE
    reconfigured(primary, '[transfer]\ncompression = "never"\n')
    assert publish(4) == (SIZE, SIZE)
