"""``modelsync.publish``: from a fitted estimator, arrays or a path to a numbered version on the fleet, in one call.

This file alone decides what its arguments mean together. Blocking, like the training script that calls it; it may be
called where an event loop runs already (a notebook), and runs a loop of its own in a thread there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from modelsync.access import Target, access, login_name
from modelsync.core.errors import NotAModel
from modelsync.core.ids import ModelName, Version, fleet_name, model_name
from modelsync.core.ids import version as version_of
from modelsync.core.sources.notes import SourceNotes
from modelsync.edges.models.directory import place, staging
from modelsync.publishing import describe, directory, weights
from modelsync.publishing.upload import await_copies, upload

T = TypeVar("T")

DEFAULT_CONFIG = "/etc/modelsync/modelsync.toml"


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """What became of a publish, as ``modelsync publish --json`` prints it."""

    model: str
    version: int | None
    """None: it lies in the models directory, and nobody was named who could say which number it gets."""
    digest: str | None
    id: str | None
    copies: int
    """How many nodes hold it; 0 where nobody was asked."""
    unchanged: bool
    """The newest version had these very bytes: it is the version, and nothing was published."""
    metadata: Mapping[str, Any]
    """As it was sent; an unchanged version keeps its own."""


@dataclass(frozen=True, slots=True)
class _Order:
    """A publish with its arguments checked and its files written."""

    model: ModelName
    path: Path
    version: Version | None
    note: str
    author: str
    metadata: Mapping[str, Any]
    wait: int | None
    timeout_s: float
    progress: Callable[[int, int], None] | None


def publish(
    name: str,
    model: Any,
    *,
    version: int | None = None,
    note: str = "",
    author: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    format: str | None = None,
    shard_bytes: int | None = None,
    unfitted: bool = False,
    redis: str | None = None,
    fleet: str = "default",
    url: str | None = None,
    config: str | None = None,
    token: str | None = None,
    models_dir: str | os.PathLike[str] | None = None,
    wait: int | None = None,
    timeout_s: float = 60.0,
    progress: Callable[[int, int], None] | None = None,
) -> PublishedVersion:
    """Publish a model as the next version of ``name`` and wait until other hosts hold it.

    The fleet is reached through ``url`` (any of its daemons), else ``redis`` and ``fleet``, else the configuration file
    of this host (``config``, MODELSYNC_CONFIG, /etc/modelsync/modelsync.toml). The weights go to the primary over HTTP;
    with ``models_dir`` they are renamed, whole, into that watched directory of the primary's instead.

    Args:
        model: a fitted estimator, any other object that joblib can write, a mapping of names to NumPy arrays, the bytes
            of an ONNX model or its ModelProto; or the path (str, Path) of a file or directory to publish as it is.
        version: the number to give it, above the newest; otherwise the next.
        note: what changed, for the history.
        author: who publishes; the login name if not given.
        metadata: further keys, or others for what was found out; JSON.
        training: about the training, kept under this key: rows, scores, where the data came from.
        format: ``joblib`` (uncompressed, so that readers map it), ``skops``, ``safetensors``, ``npz``, ``onnx``,
            ``lgb`` and ``ubj`` (LightGBM's and XGBoost's own files). Not given: safetensors (or npz, where it is not
            installed) for arrays, onnx for bytes, their own files for boosters, joblib for everything else.
        shard_bytes: for arrays in safetensors: begin another file above this size.
        unfitted: publish an estimator although it is not fitted.
        wait: return when that many nodes hold it; two if there are two; 0: do not wait.
        timeout_s: for ``wait``, and for each silence of the network.
        progress: called with (sent, total) in bytes.
    Raises:
        NotAModel: it is not fitted, cannot be written in this format, or is no model.
        LibraryMissing: what writes the format is not installed.
        TimedOut: published, but not yet held by as many nodes; it says by how many.
        PolicyRefusal, VersionConflict: the primary refused it.
        PeerUnavailable, RedisUnavailable, NoPrimary: the fleet was not reached; nothing was published (after a
            PeerBrokeOff it may have been).
    """
    checked_name = model_name(name)
    checked_version = version_of(version) if version is not None else None
    target = _target(url, redis, fleet, config, token, anywhere=models_dir is not None)
    with _scratch(checked_name, models_dir) as scratch:
        path, found = _as_files(checked_name, model, format, shard_bytes, unfitted, scratch)
        order = _Order(
            model=checked_name,
            path=path,
            version=checked_version,
            note=note,
            author=login_name() if author is None else author,
            metadata=describe.completed(found, _size_bytes(path), training, metadata),
            wait=wait,
            timeout_s=timeout_s,
            progress=progress,
        )
        if models_dir is None:
            assert target is not None
            return _run(_upload(target, order))
        return _run(_place(target, order, Path(models_dir), scratch))


@contextlib.contextmanager
def _scratch(name: ModelName, models_dir: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Where weights are written: for a models directory inside it, so that they need only be renamed."""
    if models_dir is not None:
        with staging(Path(models_dir), name) as stage:
            yield stage
        return
    with tempfile.TemporaryDirectory(prefix="modelsync-publish-") as scratch:
        yield Path(scratch)


def _target(
    url: str | None, redis: str | None, fleet: str, config: str | None, token: str | None, *, anywhere: bool
) -> Target | None:
    """Whom to ask; None: nobody, where a directory is given and this host has no configuration."""
    fleet_name(fleet)
    file = config or os.environ.get("MODELSYNC_CONFIG") or DEFAULT_CONFIG
    if anywhere and url is None and redis is None and not Path(file).exists():
        return None
    return Target(config_file=file, redis=redis, fleet=fleet, url=url, token=token)


def _as_files(
    name: ModelName, model: Any, format_: str | None, shard_bytes: int | None, unfitted: bool, scratch: Path
) -> tuple[Path, dict[str, Any]]:
    """Where the files are, and what is known of them."""
    if isinstance(model, str | os.PathLike):
        if format_ is not None or shard_bytes is not None:
            raise NotAModel(
                path=str(model), reason="files are published as they are: format and shard_bytes do nothing"
            )
        return Path(model), describe.describe_path(Path(model))
    if isinstance(model, type):
        raise NotAModel(path=model.__name__, reason="it is a class; make an instance of it and fit that")
    if model is None:
        raise NotAModel(path="None", reason="there is nothing; did the function that trains it return it?")
    if not unfitted:
        _require_fitted(model)
    chosen = format_ or weights.default_format(model)
    as_arrays = weights.is_arrays(model)
    found = (describe.describe_arrays if as_arrays else describe.describe_estimator)(model, chosen)
    return weights.write(model, chosen, scratch, name, shard_bytes), found


def _require_fitted(model: Any) -> None:
    """Raises NotAModel for a scikit-learn estimator that was never fitted; of other objects nobody knows."""
    if not (hasattr(model, "fit") and hasattr(model, "get_params")):
        return
    try:
        from sklearn.exceptions import NotFittedError  # noqa: PLC0415  not a dependency of the daemon
        from sklearn.utils.validation import check_is_fitted  # noqa: PLC0415
    except ImportError:
        return
    try:
        check_is_fitted(model)
    except NotFittedError as error:
        reason = "it is not fitted: call fit() first, or pass unfitted=True if that is meant"
        raise NotAModel(path=type(model).__name__, reason=reason) from error
    except Exception:  # noqa: S110  a stranger's estimator that scikit-learn cannot judge is not refused
        pass


def _size_bytes(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size if path.exists() else 0  # that nothing is there is said by who sends it
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


async def _upload(target: Target, order: _Order) -> PublishedVersion:
    async with access(target, timeout_s=max(10.0, order.timeout_s)) as fleet:
        answer = await upload(
            fleet,
            order.model,
            order.path,
            version=order.version,
            note=order.note,
            author=order.author,
            metadata=order.metadata,
            progress=order.progress,
        )
        return _published(await await_copies(fleet, answer, order.wait, order.timeout_s), order)


async def _place(target: Target | None, order: _Order, models_dir: Path, stage: Path) -> PublishedVersion:
    """By the models directory: renamed into place, then looked for in the catalog, if anybody can be asked."""
    notes = SourceNotes(order.note, order.author, order.metadata)
    if target is None:
        placed = place(models_dir, order.model, order.path, stage, order.version, notes)
        return PublishedVersion(order.model, placed.version, None, None, 0, False, order.metadata)
    async with access(target, timeout_s=max(10.0, order.timeout_s)) as fleet:
        before = await directory.head_of(fleet, order.model)
        placed = place(models_dir, order.model, order.path, stage, order.version, notes)
        answer = await directory.await_version(fleet, order.model, placed.content, before, order.timeout_s)
        return _published(await await_copies(fleet, answer, order.wait, order.timeout_s), order)


def _published(answer: Mapping[str, Any], order: _Order) -> PublishedVersion:
    return PublishedVersion(
        model=answer["model"],
        version=answer["version"],
        digest=answer["digest"],
        id=answer["id"],
        copies=answer["copies"],
        unchanged=answer.get("unchanged") is True,
        metadata=order.metadata,
    )


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end, in a thread of its own where this one has a running event loop (a notebook's)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    ended: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            ended.append(asyncio.run(work))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="modelsync-publish")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return ended[0]
