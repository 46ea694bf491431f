"""LightGBM's and XGBoost's own files: text, JSON or UBJSON, none of which runs code.

Both libraries follow what stands in a file into foreign memory; so it is looked through before they see it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modelsync.client.emptying import empty_bytes
from modelsync.client.loaders.contract import LoadContext
from modelsync.client.loaders.library import library
from modelsync.client.loaders.native import one_thread
from modelsync.core.errors import ModelFileRefused

_LIGHTGBM = (".lgb", ".lgbm", ".lightgbm")
_XGBOOST = (".ubj", ".xgb")


class XgboostModel:
    """An XGBoost booster whose ``predict`` takes arrays. ``booster`` is the booster itself."""

    def __init__(self, booster: Any) -> None:
        self.booster = booster

    def predict(self, X: Any) -> Any:
        return self.booster.inplace_predict(X)


def _named(context: LoadContext, framework: str, suffixes: tuple[str, ...], general: tuple[str, ...]) -> str | None:
    """A file by its own suffix, or, when the metadata names the framework, by a suffix that says nothing."""
    found = context.only_file(*suffixes)
    stated = {str(context.metadata.get("framework", "")).lower(), str(context.metadata.get("format", "")).lower()}
    return found or (context.only_file(*general) if framework in stated else None)


class LightGbmLoader:
    """``Booster.save_model`` files: ``.lgb``, or ``.txt`` when the metadata says LightGBM."""

    name = "lightgbm"
    maps = False
    runs_code = False

    def matches(self, path: Path, context: LoadContext) -> bool:
        return self._file(context) is not None

    def size_bytes(self, path: Path, context: LoadContext) -> int:
        return sum(context.files.values())

    def load(self, path: Path, context: LoadContext) -> object:
        lightgbm = library("lightgbm", self.name, path)
        file = path / (self._file(context) or "")
        from modelsync.client.loaders import lightgbm_text  # noqa: PLC0415  it needs NumPy

        with open(file, "rb") as opened:  # it stays what it is, removed or replaced
            same = f"/proc/self/fd/{opened.fileno()}"
            try:
                data = context.read(Path(same))
                lightgbm_text.check(data, context.stand_back)
                empty_bytes(data)
                with one_thread(lightgbm.basic._LIB):
                    return lightgbm.Booster(model_file=same)  # as text it would be copied twice under Python's lock
            except (lightgbm.basic.LightGBMError, UnicodeDecodeError, ValueError) as error:
                raise ModelFileRefused(path=str(file), loader=self.name, reason=str(error)[:300]) from error

    @staticmethod
    def _file(context: LoadContext) -> str | None:
        return _named(context, "lightgbm", _LIGHTGBM, (".txt", ".model"))


class XgboostLoader:
    """``Booster.save_model`` files: ``.ubj``, ``.xgb``, or ``.json`` when the metadata says XGBoost."""

    name = "xgboost"
    maps = False
    runs_code = False

    def matches(self, path: Path, context: LoadContext) -> bool:
        return self._file(context) is not None

    def size_bytes(self, path: Path, context: LoadContext) -> int:
        return sum(context.files.values())

    def load(self, path: Path, context: LoadContext) -> object:
        xgboost = library("xgboost", self.name, path)
        file = path / (self._file(context) or "")
        data = context.read(file)
        if not data.startswith(b"{"):  # UBJSON and JSON both begin so; anything else would be the old binary format
            raise ModelFileRefused(path=str(file), loader=self.name, reason="neither JSON nor UBJSON of XGBoost")
        from modelsync.client.loaders import xgboost_document  # noqa: PLC0415  it needs NumPy

        try:
            xgboost_document.check(data, context.stand_back)
            booster = xgboost.Booster({"nthread": 1}, model_file=data)
            booster.set_param("nthread", 0)  # requests have as many as there are
            empty_bytes(data)
            return XgboostModel(booster)
        except (xgboost.core.XGBoostError, ValueError) as error:
            raise ModelFileRefused(path=str(file), loader=self.name, reason=str(error)[:300]) from error

    @staticmethod
    def _file(context: LoadContext) -> str | None:
        return _named(context, "xgboost", _XGBOOST, (".json", ".model"))
