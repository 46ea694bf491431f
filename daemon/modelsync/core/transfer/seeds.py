"""Which ranges of a new file lie in files that a host may hold: the publisher's map, and what a receiver does with it.

A map is a hint. What is assembled by it counts only after its chunk's digest matched, so a wrong map costs a copy and
never a byte. This file must not know how equal ranges are found, nor how bytes are copied. PROTOCOL.md, "Seeds".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from modelsync.core import canonical
from modelsync.core.errors import MalformedMessage
from modelsync.core.ids import Digest
from modelsync.core.manifest import FileEntry

MAX_SPANS = 1 << 16
"""A map of that many is about 2 MB to read; beyond it the shortest are left out."""
MAX_MAP_BYTES = 8 << 20
MAX_LAYERS = 4
"""How many versions back a host may be and still pull only what changed: the depth at which `keep` usually ends."""
MIN_SPAN_BYTES = 4 << 10
"""Shorter ranges cost a request or a copy each and save a packet."""
MAX_GAPS = 8
"""Holes of one chunk that are asked for by themselves; above, one request for the whole chunk is the cheaper one."""


@dataclass(frozen=True, slots=True)
class Span:
    """``size_bytes`` of the new file at ``offset`` stand in the object ``base`` at ``base_offset``."""

    offset: int
    size_bytes: int
    base: Digest
    base_offset: int

    @property
    def end(self) -> int:
        return self.offset + self.size_bytes

    def part(self, start: int, end: int) -> Span:
        """What of it lies between two offsets of the new file."""
        first, last = max(start, self.offset), min(end, self.end)
        return Span(first, last - first, self.base, self.base_offset + first - self.offset)


Layer = tuple[Span, ...]
"""Spans of one older version, sorted by offset, none overlapping another."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """One chunk made of local ranges, and of the holes between them that a peer is asked for."""

    index: int
    pieces: tuple[Span, ...]
    gaps: tuple[tuple[int, int], ...]
    """(offset in the file, size) in bytes."""
    listed: bool = False
    """Its one piece is a chunk of the same digest: if its bytes are not right, the disk has spoilt them."""


def covered_bytes(layer: Sequence[Span]) -> int:
    return sum(span.size_bytes for span in layer)


def trimmed(spans: Sequence[Span]) -> Layer:
    """A layer that is worth its bytes: nothing tiny, and at most ``MAX_SPANS``, the longest."""
    kept = [span for span in spans if span.size_bytes >= MIN_SPAN_BYTES]
    if len(kept) > MAX_SPANS:
        kept = sorted(kept, key=lambda span: span.size_bytes, reverse=True)[:MAX_SPANS]
    return tuple(sorted(kept, key=lambda span: span.offset))


def composed(layer: Layer, older: Layer) -> Layer:
    """The new file in terms of the base's own base.

    Args:
        layer: new file by one base object.
        older: that base by an older object.
    """
    starts, result = [span.offset for span in older], []
    for span in layer:
        at = max(0, bisect_right(starts, span.base_offset) - 1)
        while at < len(older) and older[at].offset < span.base_offset + span.size_bytes:
            part = older[at].part(span.base_offset, span.base_offset + span.size_bytes)
            if part.size_bytes > 0:
                offset = span.offset + part.offset - span.base_offset
                result.append(Span(offset, part.size_bytes, part.base, part.base_offset))
            at += 1
    return trimmed(result)


# --- the map's text ---------------------------------------------------------------------------------------------------


def encode(layers: Sequence[Layer]) -> bytes:
    """The map's canonical bytes. Raises MalformedMessage for what ``decode`` would refuse."""
    bases = sorted({span.base for layer in layers for span in layer}, key=str)
    number = {base: index for index, base in enumerate(bases)}
    rows = [[[span.offset, span.size_bytes, number[span.base], span.base_offset] for span in layer] for layer in layers]
    data = canonical.encode({"format": 1, "bases": [str(base) for base in bases], "layers": rows})
    _require(len(data) <= MAX_MAP_BYTES, f"{len(data)} bytes")
    return data


def decode(data: bytes, entry: FileEntry) -> tuple[Layer, ...]:
    """Parse a map from outside. Raises MalformedMessage: it is not of this form, or does not fit the file."""
    _require(len(data) <= MAX_MAP_BYTES, f"{len(data)} bytes")
    value = canonical.decode_canonical(data, "seed map")
    _require(isinstance(value, dict) and value.keys() == {"format", "bases", "layers"}, "its keys are not as agreed")
    _require(value["format"] == 1 and not isinstance(value["format"], bool), f"format {value['format']!r}")
    bases, layers = value["bases"], value["layers"]
    _require(isinstance(bases, list) and isinstance(layers, list), "bases or layers is not a list")
    _require(len(layers) <= MAX_LAYERS and len(bases) <= MAX_SPANS, "too many layers or bases")
    known = [Digest.parse(base) for base in bases]
    return tuple(_decode_layer(rows, known, entry.size_bytes) for rows in layers)


def _decode_layer(rows: Any, bases: Sequence[Digest], size_bytes: int) -> Layer:
    _require(isinstance(rows, list) and len(rows) <= MAX_SPANS, "a layer is not a list, or too long")
    spans, end = [], 0
    for row in rows:
        whole = isinstance(row, list) and len(row) == 4 and all(type(item) is int for item in row)
        _require(whole, "a span is not four whole numbers")
        offset, size, base, base_offset = row
        _require(offset >= end and size > 0 and base_offset >= 0, "spans overlap, are empty, or begin before zero")
        _require(0 <= base < len(bases), "a span names no base")
        end = offset + size
        _require(end <= size_bytes, "a span ends after the file")
        spans.append(Span(offset, size, bases[base], base_offset))
    return tuple(spans)


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise MalformedMessage(what="seed map", reason=reason)


# --- the receiver's plan ----------------------------------------------------------------------------------------------


def usable(layers: Sequence[Layer], held: Callable[[Digest], bool]) -> Layer:
    """The layer of which the most bytes lie in objects that are held here; only those of its spans."""
    known: dict[Digest, bool] = {}
    for layer in layers:
        for span in layer:
            if span.base not in known:
                known[span.base] = held(span.base)
    candidates = [tuple(span for span in layer if known[span.base]) for layer in layers]
    return max(candidates, key=covered_bytes, default=())


def assemblies(entry: FileEntry, missing: Collection[int], layer: Layer, *, listed: bool = False) -> list[Assembly]:
    """How to make missing chunks of local ranges, in order; a chunk of which most would be asked for is left out.

    Args:
        listed: the layer's spans are chunks of the same digest.
    """
    starts = [span.offset for span in layer]
    plans = (_assembly(entry, index, layer, starts, listed=listed) for index in sorted(missing))
    return [plan for plan in plans if plan is not None]


def _assembly(entry: FileEntry, index: int, layer: Layer, starts: Sequence[int], *, listed: bool) -> Assembly | None:
    offset, size = entry.chunk_range(index)
    position, pieces, gaps = offset, [], []
    for at in range(max(0, bisect_right(starts, offset) - 1), len(layer)):
        part = layer[at].part(offset, offset + size)
        if part.offset >= offset + size:
            break
        if part.size_bytes <= 0:
            continue
        if part.offset > position:
            gaps.append((position, part.offset - position))
        pieces.append(part)
        position = part.end
    if position < offset + size:
        gaps.append((position, offset + size - position))
    worth = 2 * sum(gap for _, gap in gaps) <= size and len(gaps) <= MAX_GAPS
    return Assembly(index, tuple(pieces), tuple(gaps), listed) if pieces and worth else None


def joined(pieces: Sequence[Span]) -> list[Span]:
    """The same ranges with neighbours that continue each other made one: one copy in the kernel for many chunks."""
    result: list[Span] = []
    for span in pieces:
        last = result[-1] if result else None
        follows = last and (last.end, last.base, last.base_offset + last.size_bytes) == (
            span.offset, span.base, span.base_offset
        )  # fmt: skip
        if last and follows:
            result[-1] = Span(last.offset, last.size_bytes + span.size_bytes, last.base, last.base_offset)
        else:
            result.append(span)
    return result
