"""One look at the object store for what no version needs, and its removal. What is garbage is core.condemned's.

This file alone orders the reading: the log before the claims, the claims before the objects. Any fault ends a round
with nothing more removed; a round may end anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from modelsync.core.errors import BadName, LayoutCorrupt, MalformedMessage, ObjectStoreUnavailable
from modelsync.core.ids import Digest, ModelName, model_name
from modelsync.core.ids import version as version_number
from modelsync.core.storage import claims, condemned
from modelsync.core.storage.condemned import Claimed, Judgement, Listed, Name, Wanted
from modelsync.edges.objectstore.client import ObjectStore, claim_key
from modelsync.ports import Clock, Swept

ROUND_S = 600.0
"""So long after its beginning a round removes nothing more: what it has read is old."""
DELETED_AT_ONCE = 100
LOG_TRIES = 5
"""A cache of a mount may hide for a while what another host has just written."""


@dataclass(slots=True)
class _Read:
    """What need not be read twice: a claim by its tag, a manifest by its digest."""

    claims: dict[str, tuple[str, Claimed]] = field(default_factory=dict)
    named: dict[Digest, frozenset[Digest]] = field(default_factory=dict)


class Sweeper:
    """Implements ports.DepotSweeper. One round at a time."""

    def __init__(self, store: ObjectStore, clock: Clock) -> None:
        self._store = store
        self._bucket = store.bucket
        self._clock = clock
        self._seen_s: dict[Name, float] = {}
        self._read = _Read()

    def sweep(self, kept: Callable[[], Mapping[ModelName, Wanted]], grace_s: float, *, dry_run: bool) -> Swept:
        """One round.

        Args:
            kept: what the catalog keeps, as it is when called; raises NoPrimary where this host may not say.
        Raises:
            ObjectStoreUnavailable, ObjectStoreRefused, LayoutCorrupt, MalformedMessage, NoPrimary, DiskFailed;
            PolicyRefusal: another fleet publishes there.
        """
        began_s = self._clock.boottime_s()
        self._note_condemned(began_s)
        wanted = kept()
        claimed = list(self._claims())
        condemned.require_alone(claimed, self._store.fleet)
        going = condemned.dropped(claimed, wanted)
        staying = [each for each in claimed if each not in going]
        if not dry_run:
            self._drop(going)
        referenced = self._referenced(staying, wanted)
        judgement = self._judged(referenced, began_s, grace_s)
        if not dry_run:
            self._condemn(judgement)
            self._delete(judgement, began_s, kept)
        return Swept(
            versions=[(each.model, each.version) for each in going],
            missing=condemned.missing(staying, wanted),
            condemned=len(judgement.condemn),
            waiting=len(judgement.waiting),
            deleted=len(judgement.delete),
            deleted_bytes=sum(each.size_bytes for each in judgement.delete),
            garbage_bytes=sum(each.size_bytes for each in (*judgement.condemn, *judgement.waiting)),
        )

    def _note_condemned(self, now_s: float) -> None:
        log = self._store.condemned()
        for (kind, hexadecimal), turn in log.turns.items():
            for each in range(turn):
                self._seen_s.setdefault(Name(kind, hexadecimal, each), now_s)

    # --- what is needed ----------------------------------------------------------------------------------------------

    def _claims(self) -> Iterator[Claimed]:
        listed = {held.key: held.tag for held in self._bucket.listed("versions/")}
        self._read.claims = {key: read for key, read in self._read.claims.items() if key in listed}
        for key, found in zip(listed, self._bucket.in_parallel(lambda item: self._claim(*item), listed.items()),
                              strict=True):  # fmt: skip
            if found is not None:
                self._read.claims[key] = (listed[key], found)
                yield found

    def _claim(self, key: str, tag: str) -> Claimed | None:
        known = self._read.claims.get(key)
        if known is not None and known[0] == tag:
            return known[1]
        found = self._bucket.read(key, claims.MAX_BYTES)
        if found is None:
            return None  # removed since it was listed
        try:
            _, name, number = key.split("/")
            return Claimed(model_name(name), version_number(number), claims.decode(found[0]))
        except (ValueError, BadName) as error:
            raise MalformedMessage(what=f"claim {key}", reason="its key is none of a version") from error

    def _drop(self, going: list[Claimed]) -> None:
        self._bucket.delete([claim_key(each.model, each.version) for each in going])

    def _referenced(self, staying: list[Claimed], wanted: Mapping[ModelName, Wanted]) -> set[Digest]:
        """Everything that a claimed version names, or one that the catalog keeps as far as the store has it.

        Raises LayoutCorrupt where a claimed version's manifest is gone: then nobody knows what it needs.
        """
        claimed = {each.claim.digest for each in staying}
        kept = {digest for one in wanted.values() if one.shared for digest in one.kept.values()}
        digests = sorted(claimed | kept)
        named = dict(zip(digests, self._bucket.in_parallel(self._named, digests), strict=True))
        gone = next((digest for digest in claimed if not named[digest]), None)
        if gone is not None:
            raise LayoutCorrupt(path=f"manifests/{gone.hex}", reason="a claimed version's manifest is gone")
        self._read.named = {digest: names for digest, names in named.items() if names}
        return {name for names in named.values() for name in names} | claimed | kept

    def _named(self, digest: Digest) -> frozenset[Digest]:
        known = self._read.named.get(digest)
        if known is not None:
            return known
        manifest = self._store.manifest(digest)
        return manifest.referenced() if manifest is not None else frozenset()

    # --- what is not -------------------------------------------------------------------------------------------------

    def _judged(self, referenced: set[Digest], began_s: float, grace_s: float) -> Judgement:
        now = self._bucket.now()
        listed = (
            Listed(name, held.size_bytes, (now - held.modified).total_seconds())
            for prefix in ("objects/", "manifests/")
            for held in self._bucket.listed(prefix)
            if (name := condemned.parse_name(held.key)) is not None
        )
        relied_on = self._store.relied_on()
        return condemned.judged(listed, referenced, relied_on, self._store.condemned(), self._seen_s, began_s, grace_s)

    def _condemn(self, judgement: Judgement) -> None:
        """Write names into the log, each document after what others wrote meanwhile."""
        names = [each.name for each in judgement.condemn]
        for at in range(0, len(names), condemned.MAX_NAMES):
            data = condemned.encode(names[at : at + condemned.MAX_NAMES])
            self._write_log(data)
        self._note_condemned(self._clock.boottime_s())

    def _write_log(self, data: bytes) -> None:
        """The next document, after those that others have written meanwhile."""
        for _ in range(LOG_TRIES):
            if self._bucket.create(condemned.log_key(self._store.condemned().read), data):
                return
        raise ObjectStoreUnavailable(operation="condemn", reason="its log grows, and cannot be read yet")

    def _delete(self, judgement: Judgement, began_s: float, kept: Callable[[], Mapping[ModelName, Wanted]]) -> None:
        keys = [str(each.name) for each in judgement.delete]
        for at in range(0, len(keys), DELETED_AT_ONCE):
            if self._clock.boottime_s() - began_s > ROUND_S:
                return
            kept()  # raises where this host is primary no more
            self._bucket.delete(keys[at : at + DELETED_AT_ONCE])
