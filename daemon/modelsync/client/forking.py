"""Loading before forking: a server's workers share what their parent loaded, page by page, until somebody writes.

gunicorn ``--preload`` (also with uvicorn's worker class) forks its workers from a process that has imported the
application. Trees and other models that no file can be mapped for are then in memory once. A child has none of its
parent's threads, so each client gets new ones in it: workers, and the watch on ``current``.

A worker that imports the application itself (gunicorn without ``--preload``; uvicorn and its ``--workers``, which are
new interpreters) shares mapped files only, and nothing tells it that it is one; its first request does.
"""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from modelsync.client import switching, taking_apart
from modelsync.client.giving_back import heaps

if TYPE_CHECKING:
    from modelsync.client.client import Client

_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_held: list[Client] = []


def register(client: Client) -> None:
    """Have a client follow the process through forks."""
    _clients.add(client)


def forget(client: Client) -> None:
    _clients.discard(client)


def preload(live_dir: str | os.PathLike[str], names: Iterable[str] | None = None, **options: Any) -> Client:
    """Load models in the parent of a preforking server, to be called while the application is imported.

    The parent itself does not follow switches of ``current``, so that it has no threads to fork: its children do, from
    the moment they are forked, and a child that is forked late catches up at once. So does a process that nobody forks,
    from its first request on. What is loaded is taken out of the garbage collector's sight
    (``gc.freeze``), since marking it would copy its pages in every child.

    Args:
        names: all that the live directory offers, if not given.
        options: as for ``Client``.

    Raises: what ``Client.load`` raises.
    """
    from modelsync.client.client import Client  # noqa: PLC0415  the client imports this file

    client = Client(live_dir, **options, watch=False)
    for name in client.names() if names is None else names:
        client.load(name)
    client.watch_when_asked()
    gc.collect()
    gc.freeze()
    return client


def _before() -> None:
    _held[:] = list(_clients)
    for client in _held:
        client.hold_for_fork()


def _in_parent() -> None:
    for client in _held:
        client.resume_after_fork()
    _held.clear()


def _in_child() -> None:
    switching.after_fork()
    taking_apart.after_fork()
    heaps.forget()
    for client in _held:
        client.restart_in_child()
        client.resume_after_fork()
    _held.clear()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
