"""The ``[storage]`` section: which hosts hold which models, and where else the bytes lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from modelsync.config.addresses import store_url
from modelsync.config.reading import Section
from modelsync.config.schema import StorageSection
from modelsync.config.secret_files import access_fault
from modelsync.core.ids import MAX_INTEGER
from modelsync.core.storage.modes import MODES, Mode


def storage_section(table: Section, homes: Mapping[str, str]) -> StorageSection:
    """Read it. ``homes``: where keys of other sections belong."""
    default = StorageSection()
    url = table.text("url", "", "the URL of an object store")
    section = StorageSection(
        mode=cast(Mode, table.choice("mode", default.mode, MODES)),
        copies=table.whole("copies", default.copies, 1, 16),
        url=table.parsed("url", "", url, store_url, "hidden" if "@" in url or "?" in url else url),
        credentials_file=table.path("credentials_file", None),
        cache_bytes=table.whole("cache_bytes", default.cache_bytes, 0, MAX_INTEGER),
        ahead=table.patterns("ahead", default.ahead),
        grace_s=table.number("grace_s", default.grace_s, 1, 31_536_000),
        replace_after_s=table.number("replace_after_s", default.replace_after_s, 1, 31_536_000),
        split_bytes=table.whole("split_bytes", default.split_bytes, 0, MAX_INTEGER),
        leaving=table.flag("leaving", False),
        moves=table.whole("moves", default.moves, 1, 1000),
    )
    if section.credentials_file is not None and (fault := access_fault(section.credentials_file)):
        table.fault("credentials_file", fault)
    table.finish(homes)
    return section
