"""What must hold in every schedule, and the memory needed to see that it did not.

The oracle sees everything at once, which no node can. It never influences a run.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelsync.core.election.lease import Authority
from modelsync.core.ids import EntryId
from tests.sim.redis_model import Written


@dataclass(frozen=True, slots=True)
class Violation:
    at_s: float
    property: str
    what: str


class Oracle:
    """Collects violations. ``intact``: Redis has lost nothing so far; ``whole``: no disk has."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self.now_s = 0.0
        self.intact = True
        self.whole = True
        self.acknowledged: dict[int, str] = {}
        self.contents: dict[int, str] = {}
        self.writers: dict[int, str] = {}
        self.promised: dict[tuple[str, int], Authority] = {}
        self.highest: dict[str, int] = {}
        self.publishes = 0
        self.terms: list[tuple[float, int, str]] = []

    def violated(self, property: str, what: str) -> None:
        self.violations.append(Violation(round(self.now_s, 4), property, what))

    # --- one epoch, one writer ---------------------------------------------------------------------------------------

    def accepted(self, receiver: str, written: Written) -> None:
        """A receiver, the writer among them, took a version into its catalog."""
        writer = written.content.partition("#")[0]
        first = self.writers.setdefault(written.id.epoch, writer)
        if first != writer:
            self.violated("one-writer", f"{receiver} accepted epoch {written.id.epoch} of {writer}, was {first}'s")
        content = self.contents.setdefault(written.version, written.content)
        if content != written.content and self.intact:
            self.violated("one-content", f"version {written.version}: {content} and {written.content}")

    def promised_on_disk(self, node: str, grant: Authority) -> None:
        known = self.promised.setdefault((node, grant.epoch), grant)
        if known != grant:
            self.violated("one-promise", f"{node} promised epoch {grant.epoch} to {known} and to {grant}")
        if grant.epoch < self.highest.get(node, 0):
            self.violated("epochs-rise", f"{node} accepted {grant.epoch} after {self.highest[node]}")
        self.highest[node] = max(grant.epoch, self.highest.get(node, 0))

    def granted(self, node: str, grant: Authority, on_disk: Authority | None) -> None:
        """``on_disk``: what the node had accepted when it asked."""
        if on_disk is not None and on_disk != grant and grant.epoch <= on_disk.epoch:
            self.violated("grants-rise", f"{node} was granted {grant} with {on_disk} on its disk")

    # --- nothing acknowledged is lost --------------------------------------------------------------------------------

    def acknowledge(self, version: int, content: str) -> None:
        known = self.acknowledged.setdefault(version, content)
        if known != content:
            self.violated("one-content", f"version {version} was acknowledged as {known} and as {content}")

    def took_office(self, node: str, epoch: int, versions: dict[int, Written]) -> None:
        self.terms.append((self.now_s, epoch, node))
        self.kept(node, versions)

    def kept(self, node: str, versions: dict[int, Written]) -> None:
        """A primary's catalog must hold all that was ever acknowledged."""
        if not self.whole:
            return
        for version, content in self.acknowledged.items():
            written = versions.get(version)
            if written is None or written.content != content:
                self.violated("none-lost", f"{node} as primary has {written} for version {version}, not {content}")

    # --- who may write -----------------------------------------------------------------------------------------------

    def written_to_redis(self, authority: Authority, lease_allows: bool, id: EntryId) -> None:
        self.publishes += 1
        if not lease_allows:
            self.violated("fenced", f"Redis took {id} of {authority} who does not hold its lease")

    def may_write(self, holders: list[tuple[str, Authority]]) -> None:
        if len(holders) > 1 and self.intact:
            self.violated("one-holder", f"at once: {holders}")

    def knows(self, node: str, authority: Authority, highest: int) -> None:
        if highest > authority.epoch:
            self.violated("steps-down", f"{node} goes on with {authority.epoch} and knows of {highest}")
