"""skops: scikit-learn models without pickle.

skops builds only types that it knows to be harmless. For any other, decision trees among them (whose state is handed to
compiled code unchecked), the model must be trusted, as for a pickle.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from modelsync.client.loaders.archive import check_archive
from modelsync.client.loaders.contract import LoadContext
from modelsync.client.loaders.library import library
from modelsync.core.errors import ModelFileRefused, PickleNotTrusted


class SkopsLoader:
    """``skops.io.dump`` files."""

    name = "skops"
    maps = False
    runs_code = False

    def matches(self, path: Path, context: LoadContext) -> bool:
        return context.only_file(".skops") is not None

    def size_bytes(self, path: Path, context: LoadContext) -> int:
        file = path / (context.only_file(".skops") or "")
        return check_archive(file, self.name)

    def load(self, path: Path, context: LoadContext) -> object:
        io = library("skops.io", self.name, path, "skops")
        file = path / (context.only_file(".skops") or "")
        check_archive(file, self.name)
        try:
            unknown = io.get_untrusted_types(file=str(file))
        except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
            raise ModelFileRefused(path=str(file), loader=self.name, reason=str(error)[:300]) from error
        if unknown and not context.trusted:
            raise PickleNotTrusted(
                reason=f"{context.name} ({file}) needs types that skops does not know to be harmless: "
                f"{', '.join(unknown[:8])}. If you trust its publisher: Client(…, trust_pickle=[{context.name!r}])"
            )
        with context.open(file) as opened:
            return io.load(opened, trusted=unknown)
