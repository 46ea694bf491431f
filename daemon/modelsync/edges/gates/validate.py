"""Step 6: a version is looked at in a cage before anything visible changes.

This file turns a ``Check`` into caged programs; what they look at, ``checks`` knows.
"""

from __future__ import annotations

import json
import sys

from modelsync.core.errors import VersionRejected
from modelsync.core.gates import Check, shortened
from modelsync.edges.gates import cage
from modelsync.edges.gates.cage import Ended, Limits
from modelsync.ports import Candidate

VALIDATOR_PROCESSES = 64


class CagedValidator:
    """Implements ports.Validator."""

    async def validate(self, candidate: Candidate, check: Check) -> None:
        """Raises VersionRejected, LocalFault."""
        if check.check != "none":
            samples = {"inputs": check.inputs, "expected": check.expected, "tolerance": check.tolerance}
            program = (sys.executable, "-I", "-m", "modelsync.edges.gates.checks", check.check, str(candidate.tree))
            ended = await self._run((*program, json.dumps(samples)), candidate, check, network=False)
            _judge(candidate, check.check, ended)
        if check.command:
            _judge(candidate, "command", await self._run(check.command, candidate, check, network=True))

    @staticmethod
    async def _run(argv: tuple[str, ...], candidate: Candidate, check: Check, *, network: bool) -> Ended:
        limits = Limits(check.timeout_s, check.memory_bytes, VALIDATOR_PROCESSES, network=network)
        return await cage.run(argv, environment(candidate), limits, cwd=candidate.tree)


def environment(candidate: Candidate) -> dict[str, str]:
    """What a command is told of a version."""
    return {
        "MODELSYNC_MODEL": candidate.model,
        "MODELSYNC_VERSION": str(candidate.version),
        "MODELSYNC_DIGEST": str(candidate.digest),
        "MODELSYNC_TREE": str(candidate.tree),
        "OMP_NUM_THREADS": "1",  # a check may not take every processor from the servers beside it
    }


def _judge(candidate: Candidate, gate: str, ended: Ended) -> None:
    if ended.why is not None:
        reason = shortened(ended.why)
        raise VersionRejected(model=candidate.model, version=candidate.version, gate=gate, reason=reason)
