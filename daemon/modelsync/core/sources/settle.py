"""When what lies in the models directory is complete, and when to look again.

This file alone decides that. Time is handed in; what happened is handed in as events; what is there now as facts. It
knows paths only as text and files only as a signature that is equal or not.

    renamed into place, whole                           complete at once
    a marker that is not older than any file            complete at once
    neither changed nor held open for `settle_s`        complete
    held open for writing                               never complete, however long the pauses
    the same files as last announced                    nothing new

"Changed" is what events said and, since events can be lost, also what the files' own times say. "Held open" is what the
kernel says where it can be asked (a read lease), and what events said (written, not closed) where it cannot.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace

from modelsync.core.sources.events import Adjusted, Closed, Created, FileEvent, Removed, Renamed, Written
from modelsync.core.sources.names import as_number, is_ignored, is_marker

# --- what a look at an item can end in -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Complete:
    """To be announced. ``arrived``: ``event`` or ``scan``."""

    arrived: str


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The same as last announced."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Not complete yet: it changed a moment ago, or ``holder``, a path, is open for writing."""

    holder: str = ""


Verdict = Complete | Unchanged | Waiting


@dataclass(frozen=True, slots=True)
class Writers:
    """What the kernel said about who has the files of an item open for writing."""

    held: tuple[str, ...] = ()
    """Paths that are open for writing for certain."""
    unknown: frozenset[str] = frozenset()
    """Paths for which it could not be asked: events decide."""
    unreadable: tuple[tuple[str, str], ...] = ()
    """Paths that this daemon may not read, each with the reason: the item is refused."""
    changed: tuple[str, ...] = ()
    """Paths that are no longer what the scan saw: it was outrun by a writer who has finished since."""


@dataclass(frozen=True, slots=True)
class Facts:
    """An item as a scan saw it."""

    key: str
    signature: Hashable
    newest_ns: int
    marked: bool


@dataclass(frozen=True, slots=True)
class _Touch:
    """What happened to an entry, or to a numbered directory in it, since it was last at rest."""

    changed_s: float
    whole: bool = False
    """It came as a whole by a rename, and nothing in it changed since."""
    writers: frozenset[str] = frozenset()
    arrived: str = "event"
    look_s: float | None = None
    """When to look at it; None: nothing is pending."""


_NOTHING = _Touch(changed_s=0.0)


class Settling:
    """Everything under the models directory that has not come to rest, and what was announced of the rest."""

    def __init__(self, settle_s: float, announced: Mapping[str, Hashable]) -> None:
        self._settle_s = settle_s
        self._announced: dict[str, Hashable] = dict(announced)
        self._seen: dict[str, Hashable] = {}
        self._touches: dict[str, _Touch] = {}

    # --- events -------------------------------------------------------------------------------------------------------

    def hear(self, event: FileEvent, now_s: float) -> None:
        """Take in one event, seen at ``now_s`` (CLOCK_BOOTTIME)."""
        match event:
            case Created(path):
                self._change(path, now_s, at_once=is_marker(path))
            case Adjusted(path):
                self._change(path, now_s)
            case Written(path):
                self._change(path, now_s, adds=(path,))
            case Closed(path):
                self._close(path, now_s)
            case Removed(path):
                self._remove(path, now_s)
            case Renamed(source, target):
                moved = self._take_writers(source)
                if source:
                    self._remove(source, now_s)
                if target:
                    self._arrive(target, now_s, {target + path[len(source) :] for path in moved})

    def _change(self, path: str, now_s: float, *, adds: Iterable[str] = (), at_once: bool = False) -> None:
        bucket = bucket_of(path)
        old = self._touches.get(bucket, _NOTHING)
        look_s = now_s if at_once else now_s + self._settle_s
        self._put(bucket, _Touch(now_s, False, old.writers | frozenset(adds), look_s=look_s))

    def _put(self, bucket: str, touch: _Touch) -> None:
        """Keep a touch, where it tells anything. Nothing hidden or temporary is looked at, but its writers may move."""
        kept = replace(touch, look_s=None) if is_ignored(entry_of(bucket)) else touch
        if kept.look_s is None and not kept.writers:
            self._touches.pop(bucket, None)
        else:
            self._touches[bucket] = kept

    def _close(self, path: str, now_s: float) -> None:
        """The last writer of something that was renamed while open makes it complete; others start the wait."""
        bucket = bucket_of(path)
        old = self._touches.get(bucket, _NOTHING)
        look_s = now_s if old.whole or is_marker(path) else now_s + self._settle_s
        self._put(bucket, _Touch(now_s, old.whole, old.writers - {path}, look_s=look_s))

    def _take_writers(self, source: str) -> set[str]:
        """The open files at or under a path, which go where it goes."""
        if not source:
            return set()
        return {
            path
            for bucket, touch in self._touches.items()
            if _related(bucket, source)
            for path in touch.writers
            if path == source or path.startswith(source + "/")
        }

    def _remove(self, path: str, now_s: float) -> None:
        if is_bucket(path):
            self._drop(path)
        old = self._touches.get(bucket_of(path), _NOTHING)
        left = frozenset(writer for writer in old.writers if not _is_under(writer, path))
        # Of a whole entry that is gone there is nothing to wait for: what it stood in the way of is looked at now.
        look_s = now_s + self._settle_s if "/" in path else now_s
        self._put(bucket_of(path), _Touch(now_s, False, left, look_s=look_s))

    def _arrive(self, path: str, now_s: float, writers: set[str]) -> None:
        if not is_bucket(path):
            self._change(path, now_s, adds=writers, at_once=is_marker(path))
            return
        self._drop(path)
        for bucket in {path, *(bucket_of(writer) for writer in writers)}:
            own = frozenset(writer for writer in writers if bucket_of(writer) == bucket)
            self._put(bucket, _Touch(now_s, True, own, look_s=now_s))

    def _drop(self, path: str) -> None:
        for bucket in [bucket for bucket in self._touches if _is_under(bucket, path)]:
            del self._touches[bucket]

    def lose(self, now_s: float) -> None:
        """Events were lost: what they said of renames and writers counts no longer, only files and the kernel do."""
        for bucket, touch in list(self._touches.items()):
            self._put(bucket, replace(touch, changed_s=now_s, whole=False, writers=frozenset()))

    # --- looking ------------------------------------------------------------------------------------------------------

    def due(self, now_s: float) -> frozenset[str]:
        """The entries (first parts of paths) to be scanned and looked at now."""
        return frozenset(
            entry_of(bucket) for bucket, t in self._touches.items() if t.look_s is not None and t.look_s <= now_s
        )

    def next_look_s(self) -> float | None:
        """When something is due next; None: not before an event."""
        return min((touch.look_s for touch in self._touches.values() if touch.look_s is not None), default=None)

    def begin(self, entry: str) -> None:
        """An entry is about to be scanned: only what happens from here on, or a wait, makes it due again."""
        for bucket, touch in self._touches.items():
            if entry_of(bucket) == entry:
                self._touches[bucket] = replace(touch, look_s=None)

    def look(self, facts: Facts, writers: Writers | None, now_s: float, wall_ns: int, found: str) -> Verdict:
        """Judge an item that was just scanned.

        Args:
            found: what it counts as where no event told of it: ``scan`` if it lay there when the watch began.
            writers: None: not asked yet. Ask only if the answer is Complete, and then look again with the answer.
            now_s: CLOCK_BOOTTIME. wall_ns: unix nanoseconds, only compared with the files' own times.
        """
        if self._announced.get(facts.key) == facts.signature:
            self._seen.pop(facts.key, None)
            return Unchanged()
        touch = self._touch_of(facts.key) or _Touch(now_s - self._settle_s, arrived=found)
        again_s = self._not_before(facts, touch, now_s, wall_ns)
        if again_s is not None:
            self._wait(facts.key, touch, again_s)
            return Waiting()
        open_path = _open_path(touch, writers)
        if open_path is not None or (writers is not None and writers.changed):
            self._wait(facts.key, touch, now_s + self._settle_s)
            return Waiting(open_path or "")
        return Complete(touch.arrived)

    def announce(self, facts: Facts) -> None:
        """Remember that an item was announced with this signature, when nobody had it open for writing."""
        self._announced[facts.key] = facts.signature
        self._seen.pop(facts.key, None)
        for bucket, touch in self._touches.items():
            if _is_under(bucket, facts.key):
                self._touches[bucket] = replace(touch, writers=frozenset())

    def rest(self, entry: str) -> None:
        """Everything in an entry was announced, unchanged or refused: forget how it came about, but not its writers."""
        for bucket, touch in list(self._touches.items()):
            if entry_of(bucket) == entry:
                self._put(bucket, touch)

    def again(self, key: str, arrived: str, now_s: float) -> None:
        """Have an item looked at now and announced once more, as having come the way it did."""
        self._announced.pop(key, None)
        self._wait(key, _Touch(now_s - self._settle_s, arrived=arrived), now_s)

    def keep_only(self, entries: frozenset[str], limit: int) -> None:
        """Drop what is remembered of entries that are gone, where more than ``limit`` items are remembered.

        Up to the limit it is kept: a directory that was unmounted and comes back is not published again.
        """
        self._seen = {key: value for key, value in self._seen.items() if entry_of(key) in entries}
        if len(self._announced) > limit:
            self._announced = {key: value for key, value in self._announced.items() if entry_of(key) in entries}

    def _not_before(self, facts: Facts, touch: _Touch, now_s: float, wall_ns: int) -> float | None:
        """When it can be complete at the earliest; None: as soon as nobody writes."""
        if touch.whole or facts.marked:
            return None
        quiet_s = now_s - touch.changed_s
        age_s = (wall_ns - facts.newest_ns) / 1e9
        if age_s < 0:  # times in the future: what counts is that two looks, settle_s apart, see the same
            seen = self._seen.get(facts.key)
            self._seen[facts.key] = facts.signature
            age_s = self._settle_s if seen == facts.signature else 0.0
        rest_s = self._settle_s - min(quiet_s, age_s)
        return now_s + rest_s if rest_s > 0 else None

    def _touch_of(self, key: str) -> _Touch | None:
        """Everything that happened to an item, as one."""
        own = [touch for bucket, touch in self._touches.items() if _is_under(bucket, key)]
        parent = self._touches.get(entry_of(key)) if not own else None
        if parent is not None and parent.whole:
            own = [parent]
        if not own:
            return None
        return _Touch(
            changed_s=max(touch.changed_s for touch in own),
            whole=all(touch.whole for touch in own) and (key in self._touches or parent is not None),
            writers=frozenset[str]().union(*(touch.writers for touch in own)),
            arrived="event" if any(touch.arrived == "event" for touch in own) else "scan",
        )

    def _wait(self, key: str, touch: _Touch, look_s: float) -> None:
        # What happened below the key keeps its own writers: a second copy of them would never be told of their end.
        old = self._touches.get(key) or replace(touch, writers=frozenset(), look_s=None)
        soonest_s = look_s if old.look_s is None else min(old.look_s, look_s)
        self._put(key, replace(old, look_s=soonest_s))


def entry_of(path: str) -> str:
    """The name in the models directory itself that a path lies under."""
    return path.partition("/")[0]


def bucket_of(path: str) -> str:
    """What an event at a path counts for: a numbered directory by itself, anything else its whole entry."""
    parts = path.split("/", 2)
    return "/".join(parts[:2]) if len(parts) > 1 and as_number(parts[1]) is not None else parts[0]


def is_bucket(path: str) -> bool:
    """Whether a path is itself what arrives whole: an entry or a numbered directory."""
    return bucket_of(path) == path


def _is_under(path: str, root: str) -> bool:
    return path == root or path.startswith(root + "/")


def _related(bucket: str, path: str) -> bool:
    return _is_under(bucket, path) or _is_under(path, bucket)


def _open_path(touch: _Touch, writers: Writers | None) -> str | None:
    """A path that somebody has open for writing, as far as anybody can say."""
    if writers is None:
        return None
    return writers.held[0] if writers.held else min(touch.writers & writers.unknown, default=None)
