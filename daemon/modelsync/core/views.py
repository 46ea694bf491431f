"""What inference servers are shown of a version: the text of their configuration files.

Pure. Where these files lie and how they are replaced, ``edges.gates.views`` knows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from modelsync.core.errors import HookFailed

_POLICY = re.compile(r"(?m)^[ \t]*version_policy[ \t]*:?[ \t]*\{")
_MLSERVER_RUNTIMES = {
    ".joblib": "mlserver_sklearn.SKLearnModel",
    ".pkl": "mlserver_sklearn.SKLearnModel",
    ".pickle": "mlserver_sklearn.SKLearnModel",
    ".bst": "mlserver_xgboost.XGBoostModel",
    ".ubj": "mlserver_xgboost.XGBoostModel",
    ".lgb": "mlserver_lightgbm.LightGBMModel",
}


def triton_config(template: str | None, number: int, files: Sequence[str]) -> str:
    """``config.pbtxt`` that lets Triton serve this version and no other.

    Args:
        template: the publisher's own ``config.pbtxt``, without regard to its version policy; None: Triton completes it.
        files: the version's files, to name the model's where there is only one.
    """
    text = _without_policy(template or "").rstrip()
    if template is None and len(files) == 1:
        text = f"default_model_filename: {json.dumps(files[0])}"
    policy = f"version_policy: {{ specific: {{ versions: [ {number} ] }} }}"
    return f"{text}\n{policy}\n" if text else f"{policy}\n"


def _without_policy(text: str) -> str:
    """Without the block ``version_policy { … }``, found by its braces."""
    while found := _POLICY.search(text):
        depth, at = 1, found.end()
        while depth and at < len(text):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        text = text[: found.start()] + text[at:]
    return text


def tfs_block(name: str, base_path: str, number: int) -> str:
    """One model's part of TensorFlow Serving's model config file."""
    return (
        f"  config {{\n    name: {json.dumps(name)}\n    base_path: {json.dumps(base_path)}\n"
        f'    model_platform: "tensorflow"\n'
        f"    model_version_policy {{ specific {{ versions: {number} }} }}\n  }}\n"
    )


def tfs_config(blocks: Mapping[str, str]) -> str:
    """The whole model config file, from each model's part."""
    return "model_config_list {\n" + "".join(blocks[name] for name in sorted(blocks)) + "}\n"


def mlserver_settings(template: Mapping[str, Any] | None, name: str, tree: str, files: Sequence[str]) -> str:
    """``model-settings.json`` of a version.

    It names no version: MLServer then loads the new model beside the old and exchanges the two in one step, where with
    versions it would answer requests by a model that is still loading. The tree's own path, not a link, says which
    version it is: what a link points to could change while it is read.

    Raises: HookFailed: nothing says how to load it.
    """
    settings = dict(template or {})
    parameters = dict(settings.get("parameters") or {})
    parameters.pop("version", None)
    known = [path for path in files if _suffix(path) in _MLSERVER_RUNTIMES]
    if "implementation" not in settings:
        if len(known) != 1:
            raise HookFailed(
                hook="view mlserver",
                reason="no model-settings.json, and not one file alone whose runtime follows from its name",
            )
        settings["implementation"] = _MLSERVER_RUNTIMES[_suffix(known[0])]
    given = str(parameters.get("uri") or (known[0] if len(known) == 1 else "")).removeprefix("./")
    parameters["uri"] = given if "://" in given or given.startswith("/") else f"{tree}/{given}".rstrip("/")
    return json.dumps({**settings, "name": name, "parameters": parameters}, indent=1, sort_keys=True) + "\n"


def _suffix(path: str) -> str:
    stem, dot, suffix = path.rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""
