"""The links that applications open: LIVE/NAME/current and previous, and the record of why they point where they do.

Steps 7 and 8 of an activation (PROTOCOL.md section 5) are here, and nowhere else is `current` written. This file must
not know whether a version ought to be active; it is told.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from modelsync.core import canonical
from modelsync.core.errors import BadName, LayoutCorrupt, MalformedMessage
from modelsync.core.ids import Digest, EntryId, ModelName, model_name, version
from modelsync.edges.disk import durable
from modelsync.edges.disk.durable import local_faults
from modelsync.ports import ActiveRecord


class Live:
    """The live directory of one node. Its methods block; call them from a thread."""

    def __init__(self, live_dir: Path, trees: Path, state_dir: Path) -> None:
        # Resolved, since a relative link is followed from where its directory really is: LIVE or STATE may themselves
        # lie behind symbolic links (as systemd's DynamicUser= makes of /var/lib/NAME).
        self._live = Path(os.path.realpath(live_dir))
        self._trees = Path(os.path.realpath(trees))
        self._records = state_dir / "active"

    def open(self) -> None:
        """Make the directories and sweep temporary links. Raises DiskFull, DiskFailed."""
        with local_faults(self._live, "open the live directory"):
            durable.make_directories(self._live)
            durable.make_directories(self._records)
            for model in os.scandir(self._live):
                if model.is_dir(follow_symlinks=False):
                    self._sweep(Path(model.path))

    @staticmethod
    def _sweep(directory: Path) -> None:
        for entry in os.scandir(directory):
            if entry.is_symlink() and entry.name.endswith(".tmp"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.path)

    def active(self, name: ModelName) -> Digest | None:
        """The digest that `current` points to now; None if there is no link of ours."""
        return self._target(self._live / name / "current", name)

    def _target(self, link: Path, name: ModelName) -> Digest | None:
        try:
            target = Path(os.path.normpath(link.parent / os.readlink(link)))
            if target.parent != self._trees / name:
                return None
            return Digest.parse("b3:" + target.name)
        except (OSError, BadName):
            return None

    def switch(self, record: ActiveRecord) -> None:
        """Make a whole, durable tree the one that `current` means.

        Raises: DiskFull, DiskFailed: `current` still points to the old tree, or to the new one; either is whole.
        """
        directory = self._live / record.model
        with local_faults(directory, "switch current"):
            self.write_record(record)  # (7)
            durable.make_directories(directory)
            durable.replace_symlinks(directory, self._links(directory, record))  # (8)

    def flip(self, record: ActiveRecord) -> None:
        """Step 8 of a switch that the whole fleet makes together: renames, and nothing to wait for; ``settle`` follows.

        A crash in between leaves a whole tree behind `current` and the record of the earlier one, as a crash just
        before the signal would: what the catalog wants is then activated once more.

        Raises: DiskFull, DiskFailed: `current` still points to the old tree, or to the new one; either is whole.
        """
        directory = self._live / record.model
        with local_faults(directory, "switch current"):
            durable.make_directories(directory)
            durable.switch_symlinks(directory, self._links(directory, record))

    def settle(self, record: ActiveRecord) -> None:
        """Make a flip durable: its record, then its links. Raises DiskFull, DiskFailed."""
        directory = self._live / record.model
        with local_faults(directory, "switch current"):
            self.write_record(record)
            durable.fsync_directory(directory)

    def _links(self, directory: Path, record: ActiveRecord) -> list[tuple[str, str]]:
        links = [("current", self._relative(directory, record.model, record.digest))]
        if record.previous_digest is not None:
            # First, so that a crash in between leaves a `current` that is not yet as the record says: it is done
            # again, and with it this link.
            links.insert(0, ("previous", self._relative(directory, record.model, record.previous_digest)))
        return links

    def clear(self, name: ModelName) -> None:
        """Take a model out of use: links first, then the record. Raises DiskFailed."""
        directory = self._live / name
        with local_faults(directory, "take a model out of use"):
            for link in ("current", "previous"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(directory / link)
            with contextlib.suppress(FileNotFoundError):
                durable.fsync_directory(directory)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._records / f"{name}.json")
            durable.fsync_directory(self._records)

    def _relative(self, directory: Path, name: ModelName, digest: Digest) -> str:
        return os.path.relpath(self._trees / name / digest.hex, directory)

    # --- the record -------------------------------------------------------------------------------------------------

    def write_record(self, record: ActiveRecord) -> None:
        """Persist the intent. Raises DiskFull, DiskFailed."""
        value = {
            "model": record.model,
            "version": record.version,
            "digest": str(record.digest),
            "id": str(record.id),
            "since_ms": record.since_ms,
            "previous_version": record.previous_version,
            "previous_digest": str(record.previous_digest) if record.previous_digest else None,
            "unsettled": record.unsettled,
        }
        durable.replace_file(self._records / f"{record.model}.json", canonical.encode(value))

    def records(self) -> dict[ModelName, ActiveRecord]:
        """Every model's record. Raises LayoutCorrupt, DiskFailed."""
        found = {}
        with local_faults(self._records, "read"):
            for entry in os.scandir(self._records):
                if entry.name.endswith(".json"):
                    record = self._parse(Path(entry.path))
                    found[record.model] = record
        return found

    @staticmethod
    def _parse(path: Path) -> ActiveRecord:
        try:
            value = canonical.decode(path.read_bytes(), "active record")
            previous = value["previous_digest"]
            return ActiveRecord(
                model=model_name(value["model"]),
                version=version(value["version"]),
                digest=Digest.parse(value["digest"]),
                id=EntryId.parse(value["id"]),
                since_ms=value["since_ms"],
                previous_version=version(value["previous_version"]) if value["previous_version"] else None,
                previous_digest=Digest.parse(previous) if previous else None,
                unsettled=str(value.get("unsettled", "")),
            )
        except (BadName, MalformedMessage, KeyError, TypeError, AttributeError) as error:
            reason = f"{error}; remove it: the daemon then activates what the fleet wants"
            raise LayoutCorrupt(path=str(path), reason=reason) from error
