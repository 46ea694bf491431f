"""What the names in the models directory mean: which are models, which are nothing, and which are refused and why.

This file alone decides that. It works on facts that a scan gathered and never looks at a disk; whether a model is
complete is `settle`'s question.

Three layouts are read: ``NAME/`` (a directory is a model), ``NAME/NUMBER/`` (numbered versions, as TensorFlow Serving
and Triton lay them out) and ``NAME.SUFFIX`` (a single file). A symbolic link inside a model that leads to a regular
file of the same model is published as that file's content (how Hugging Face's cache lays files out); every other link
is refused, since its content could change or vanish without anything in the model's directory saying so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from modelsync.core import ids
from modelsync.core.errors import BadName
from modelsync.core.ids import ModelName, Version
from modelsync.core.manifest import published_path
from modelsync.core.sources.names import DOCUMENTS, MARKERS, as_number, is_ignored, is_marker, model_of, shown

MAX_FILES = 100_000
"""In one model (FAULTS, row 31): beyond it the manifest itself would be too large."""
MAX_DEPTH = 64
"""Nested directories: a scan holds one descriptor open for each."""

Kind = Literal["file", "directory", "link", "fifo", "socket", "device", "problem"]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One regular file of a source as a scan saw it. Any field that differs later means that it changed."""

    path: str
    """Relative to the source's root, ``/``-separated; for a single-file model its own name."""
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    mode: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One name below the models directory as the scan saw it; undecodable bytes are surrogate escapes."""

    path: str
    """Relative to the models directory."""
    kind: Kind
    size_bytes: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0
    mode: int = 0
    target: str = ""
    """Of a link that leads to a regular file in the models directory: that file; the numbers above are then its."""
    problem: str = ""
    """Of a link that does not, and of ``problem``: why it cannot be read, as half a sentence."""


@dataclass(frozen=True, slots=True)
class Item:
    """One version of one model that lies in the models directory, complete or not."""

    key: str
    """Its path relative to the models directory: ``fraud``, ``fraud/12`` or ``fraud.joblib``."""
    model: ModelName
    version: Version | None
    base: str
    """What the files are relative to: the key, or nothing for a single file."""
    files: tuple[SourceFile, ...]
    newest_ns: int
    """The latest change of anything under it, published or not: unix nanoseconds of the kernel's clock."""
    marked: bool
    """A marker lies there that is not older than any file."""
    watched: tuple[Entry, ...]
    """Every regular file under it; temporary ones too: somebody may be writing."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a listing was understood: every model found, and every refusal as path (see ``shown``) to reason."""

    items: tuple[Item, ...]
    refusals: Mapping[str, str]


class _Refused(Exception):
    def __init__(self, path: str, reason: str) -> None:
        super().__init__(reason)
        self.path, self.reason = path, reason


def interpret(
    names: Mapping[str, Kind], top: Sequence[Entry], trees: Mapping[str, Sequence[Entry]], capacity_bytes: int
) -> Layout:
    """Understand a listing.

    Args:
        names: every name in the models directory itself, since two of them may claim one model.
        top: of these names, the entries to be understood now.
        trees: what lies below those of them that are directories, parents before children.
        capacity_bytes: the size of the file system, above which a file's size cannot be true.
    """
    contested = _contested(names, [entry.path for entry in top])
    items: list[Item] = []
    refusals: dict[str, str] = {}
    for entry in top:
        if is_ignored(entry.path) or entry.path in MARKERS:
            continue
        try:
            if entry.path in contested:
                raise _Refused(entry.path, contested[entry.path])
            for item in _items(entry, trees.get(entry.path, ()), refusals):
                _keep(item, items, refusals, capacity_bytes)
        except _Refused as refusal:
            refusals[refusal.path] = refusal.reason
    # Lower versions first: a version below the head cannot be published any more.
    return Layout(tuple(sorted(items, key=lambda item: (item.model, item.version or 0))), refusals)


# --- names -----------------------------------------------------------------------------------------------------------


_FEW = 32
"""Asked for together: few enough for one comparison with all their beginnings to be cheaper than reading each name."""


def _contested(names: Mapping[str, Kind], asked: Sequence[str]) -> dict[str, str]:
    """Of the names asked for, those of which others would be the same model, case not counting, with the reason."""
    claims: dict[str, list[str]] = {}
    for name in _possible_rivals(names, asked):
        claim = _claim(name, names[name])
        if claim is not None:
            claims.setdefault(claim.lower(), []).append(name)
    reasons: dict[str, str] = {}
    for rivals in claims.values():
        for name in rivals if len(rivals) > 1 else ():
            others = ", ".join(sorted(shown(other) for other in rivals if other != name)[:3])
            reasons[name] = f"{others} would be the same model (case does not count); keep one, or use one directory"
    return reasons


def _possible_rivals(names: Mapping[str, Kind], asked: Sequence[str]) -> Iterable[str]:
    """A look at one entry must not cost as much as a look at thousands: a rival begins with the model's name."""
    if len(asked) > _FEW:
        return names
    beginnings = tuple({(_claim(name, names[name]) or name).lower() for name in asked if name in names})
    return [name for name in names if name.lower().startswith(beginnings)]


def _claim(name: str, kind: Kind) -> str | None:
    if is_ignored(name):
        return None
    if kind == "file":
        model = model_of(name)
        return None if model is None or model.lower() in DOCUMENTS else model
    return name if kind == "directory" else None


def _legal_name(text: str, path: str) -> ModelName:
    try:
        return ids.model_name(text)
    except BadName as error:
        raise _Refused(path, f"not a legal model name: {error.rule}") from error


# --- the three layouts -----------------------------------------------------------------------------------------------


def _items(entry: Entry, tree: Sequence[Entry], refusals: dict[str, str]) -> list[Item]:
    """The items of one entry at the top; what is wrong with one of several versions goes to the refusals."""
    if entry.kind == "file":
        return [_single_file(entry)]
    if entry.kind != "directory":
        raise _Refused(entry.path, _why_not(entry))
    name = _legal_name(entry.path, entry.path)
    numbers = _numbered(entry.path, tree)
    if not numbers:
        return [_directory(entry, tree, name, None)]
    shared = [child for child in tree if is_marker(child.path) and child.path.count("/") == 1]
    below: dict[str, list[Entry]] = {}
    for other in tree:
        below.setdefault("/".join(other.path.split("/", 2)[:2]), []).append(other)
    items = []
    for number, child in numbers.items():
        try:
            items.append(_directory(child, below[child.path][1:], name, number, shared))
        except _Refused as refusal:
            refusals[refusal.path] = refusal.reason
    return items


def _single_file(entry: Entry) -> Item:
    stem = model_of(entry.path)
    if stem is None:
        raise _Refused(entry.path, "not a model by its suffix; put it into a directory that has the model's name")
    if stem.lower() in DOCUMENTS:
        raise _Refused(entry.path, "a text beside models, by its name; a model of that name needs a directory")
    name = _legal_name(stem, entry.path)
    if entry.size_bytes == 0:
        raise _Refused(entry.path, "an empty file")
    newest_ns = max(entry.mtime_ns, entry.ctime_ns)
    return Item(entry.path, name, None, "", (_source(entry, ""),), newest_ns, False, (entry,))


def _numbered(root: str, tree: Sequence[Entry]) -> dict[Version, Entry]:
    """The version directories, where numbered versions are what this directory holds; else nothing."""
    numbers: dict[Version, Entry] = {}
    for child in tree:
        name = child.path[len(root) + 1 :]
        if "/" in name or is_ignored(name) or name in MARKERS or (name == "config.pbtxt" and child.kind == "file"):
            continue
        number = as_number(name)
        if number is None or child.kind != "directory":
            return {}
        numbers[number] = child
    return numbers


def _directory(
    root: Entry, tree: Sequence[Entry], name: ModelName, version: Version | None, shared: Sequence[Entry] = ()
) -> Item:
    """One directory as one version: the files it publishes, or the first reason why it cannot be published."""
    start = len(root.path) + 1
    published = [entry for entry in tree if not _is_left_out(entry.path[start:])]
    files = tuple(sorted((_published(entry, root.path) for entry in published if entry.kind != "directory"), key=_path))
    if len(files) > MAX_FILES:
        raise _Refused(root.path, f"more than {MAX_FILES:,} files")
    if not any(file.size_bytes for file in files):
        raise _Refused(root.path, "no file in it that is not empty")
    return Item(
        key=root.path,
        model=name,
        version=version,
        base=root.path,
        files=files,
        newest_ns=max(max(entry.mtime_ns, entry.ctime_ns) for entry in (root, *tree)),
        marked=_marked([*shared, *tree], root.path, files),
        watched=tuple(entry for entry in tree if entry.kind == "file" or entry.target),
    )


def _path(file: SourceFile) -> str:
    return file.path


def _is_left_out(path: str) -> bool:
    return path in MARKERS or any(is_ignored(part) for part in path.split("/"))


def _published(entry: Entry, root: str) -> SourceFile:
    inside = entry.target.startswith(root + "/")
    if entry.kind != "file" and not (entry.kind == "link" and inside and not entry.problem):
        raise _Refused(entry.path, _why_not(entry))
    try:
        published_path(entry.path[len(root) + 1 :])
    except BadName as error:
        raise _Refused(entry.path, f"not a legal file name in a model: {error.rule}") from error
    return _source(entry, root)


def _source(entry: Entry, root: str) -> SourceFile:
    path = entry.path[len(root) + 1 :] if root else entry.path
    return SourceFile(path, entry.size_bytes, entry.mtime_ns, entry.ctime_ns, entry.inode, entry.mode)


def _marked(tree: Iterable[Entry], root: str, files: Sequence[SourceFile]) -> bool:
    """A marker older than a file says nothing about it: it is left over from the version before."""
    tops = (root, root.rpartition("/")[0])
    marks = [e.ctime_ns for e in tree if e.kind == "file" and is_marker(e.path) and e.path.rpartition("/")[0] in tops]
    return bool(marks) and max(marks) >= max(file.ctime_ns for file in files)


# --- what is refused -------------------------------------------------------------------------------------------------

_NOT_FILES = {"fifo": "a FIFO", "socket": "a socket", "device": "a device"}


def _why_not(entry: Entry) -> str:
    if entry.kind in _NOT_FILES:
        return f"{_NOT_FILES[entry.kind]}, not a file"
    if entry.kind == "link" and not entry.problem:
        return "a symbolic link that leaves the model; put the file itself there"
    return entry.problem


def _keep(item: Item, items: list[Item], refusals: dict[str, str], capacity_bytes: int) -> None:
    size_bytes = sum(file.size_bytes for file in item.files)
    if size_bytes > capacity_bytes:
        refusals[item.key] = f"says it is {size_bytes:,} bytes, more than its whole file system can hold"
    else:
        items.append(item)
