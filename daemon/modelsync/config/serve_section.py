"""The ``[serve]`` section: what ``modelsync-serve`` is told. The daemon reads past it."""

from __future__ import annotations

from typing import Literal

from modelsync.config.addresses import listen_address
from modelsync.config.reading import Section
from modelsync.config.schema import ServeSection
from modelsync.core import ids
from modelsync.core.ids import MAX_INTEGER

_DEFAULT_LISTEN = "127.0.0.1:8462"
_MAX_TRUSTED = 10_000


def serve_section(table: Section) -> ServeSection:
    """Check the section's table."""
    default = ServeSection()
    section = ServeSection(
        listen=table.parsed(
            "listen", default.listen, table.text("listen", _DEFAULT_LISTEN, "HOST:PORT"), listen_address
        ),
        budget_bytes=table.whole("budget_bytes", default.budget_bytes, 0, MAX_INTEGER),
        trust_pickle=table.parsed("trust_pickle", default.trust_pickle, table.raw("trust_pickle"), _trusted),
        preload=table.patterns("preload", default.preload),
        workers=table.whole("workers", default.workers, 1, 256),
        threads=table.whole("threads", default.threads, 1, 1024),
        queue=table.whole("queue", default.queue, 1, 1_000_000),
        max_body_bytes=table.whole("max_body_bytes", default.max_body_bytes, 1024, 1 << 40),
        drain_s=table.number("drain_s", default.drain_s, 0, 3600),
        batch_rows=table.whole("batch_rows", default.batch_rows, 0, 1_000_000),
        batch_delay_s=table.number("batch_delay_s", default.batch_delay_s, 0, 10),
    )
    table.finish()
    return section


def _trusted(value: object) -> frozenset[str] | Literal["all"]:
    right = 'a list of models, such as ["fraud"], or "all", would be right'
    if value is None:
        return frozenset()
    if value == "all":
        return "all"
    if not isinstance(value, list) or len(value) > _MAX_TRUSTED:
        raise ValueError(right)
    return frozenset(ids.model_name(each) for each in value)
