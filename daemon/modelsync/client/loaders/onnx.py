"""ONNX models, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelsync.client.loaders.contract import LoadContext
from modelsync.client.loaders.library import library
from modelsync.core.errors import ModelFileRefused

_FOLDED_BYTES = 64 << 20
"""How large a constant may become that is worked out at loading, where the file is smaller: a few hundred bytes can ask
for gigabytes. Larger ones are worked out by each request that needs them. Older onnxruntimes know no limit."""


class OnnxModel:
    """An onnxruntime session with a ``predict``. ``session`` is the session itself."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.input_names = tuple(item.name for item in session.get_inputs())
        self.output_names = tuple(item.name for item in session.get_outputs())

    def predict(self, X: Any) -> Any:
        """Run the model.

        Args:
            X: the only input's array, or a mapping of input names to arrays.
        Returns:
            The first output for an array, all outputs by name for a mapping.
        """
        if isinstance(X, Mapping):
            return dict(zip(self.output_names, self.session.run(None, dict(X)), strict=True))
        if len(self.input_names) != 1:
            raise TypeError(f"this model has the inputs {self.input_names}: hand in a mapping")
        return self.session.run([self.output_names[0]], {self.input_names[0]: X})[0]


class OnnxLoader:
    """One ``.onnx`` file, with its external data beside it if it has any."""

    name = "onnx"
    maps = False
    runs_code = False

    def matches(self, path: Path, context: LoadContext) -> bool:
        return context.only_file(".onnx") is not None

    def size_bytes(self, path: Path, context: LoadContext) -> int:
        return sum(context.files.values())

    def load(self, path: Path, context: LoadContext) -> object:
        runtime = library("onnxruntime", self.name, path)
        file = path / (context.only_file(".onnx") or "")
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # its warnings about hostile files would go to the application's stderr
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads take nobody's processor
        folded_bytes = max(_FOLDED_BYTES, file.stat().st_size)
        options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(folded_bytes))
        try:
            session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            file.stat()  # a version that was removed meanwhile is no damaged file
            raise ModelFileRefused(path=str(file), loader=self.name, reason=str(error)[:300]) from error
        return OnnxModel(session)
