"""Every error that modelsync raises on purpose, split by whose fault it is.

The class says whom to blame and whether a retry can help; the fields say what to act on; the docstring is the sentence
that an operator reads. A retry asks the type, never the message. A broken invariant of our own is none of these: it is
an ``AssertionError`` and ends the process.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar


@dataclass(eq=False)
class ModelsyncError(Exception):
    """The root. ``exit_code`` is what a command ends with (INTERFACE: 1 the thing asked for failed)."""

    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __str__(self) -> str:
        return f"{self.sentence()} [{', '.join(f'{k}={v}' for k, v in self.details().items())}]"

    def sentence(self) -> str:
        """What went wrong and what to do, for a person: the first paragraph of the class's docstring."""
        return " ".join((type(self).__doc__ or type(self).__name__).split("\n\n")[0].split())

    def details(self) -> dict[str, object]:
        """The typed fields, for logs and JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


# --- configuration faults: the operator's file or command line -------------------------------------------------


@dataclass(eq=False)
class ConfigurationFault(ModelsyncError):
    """The configuration cannot be used; correct the keys named here."""

    exit_code: ClassVar[int] = 3
    source: str
    faults: tuple[str, ...]
    """All of them at once, each ``dotted.key: what is wrong and what would be right``."""

    def __str__(self) -> str:
        return f"{self.source}: " + "; ".join(self.faults)


@dataclass(eq=False)
class BadName(ModelsyncError):
    """This is not a legal name."""

    exit_code: ClassVar[int] = 2
    kind: str
    value: str
    rule: str

    def __str__(self) -> str:
        return f"{self.value} is not a legal {self.kind}: {self.rule}"


# --- local faults: this host's disk and kernel -------------------------------------------------------------------


@dataclass(eq=False)
class LocalFault(ModelsyncError):
    """This host could not do it; its disk, memory or permissions need attention."""

    retryable: ClassVar[bool] = True


@dataclass(eq=False)
class DiskFull(LocalFault):
    """The disk is full: free space or lower `keep`; what is active goes on unchanged."""

    path: str
    needed_bytes: int | None = None
    free_bytes: int | None = None


@dataclass(eq=False)
class DiskFailed(LocalFault):
    """The disk reported an error; the file was discarded and nothing was activated. Check the kernel log."""

    path: str
    operation: str
    errno_name: str


@dataclass(eq=False)
class DiskReadOnly(DiskFailed):
    """The file system is read-only, often after an error: what is active is served on; check the kernel log."""


@dataclass(eq=False)
class OutOfDescriptors(DiskFailed):
    """No further file can be opened: raise LimitNOFILE or lower `transfer.concurrency`; it is tried again."""


@dataclass(eq=False)
class NotPermitted(DiskFailed):
    """Permission was denied: the state and live directories must belong to the user that the daemon runs as."""


@dataclass(eq=False)
class LayoutCorrupt(LocalFault):
    """A file in the state directory is not what modelsync wrote; the message says which, and how to recover."""

    retryable: ClassVar[bool] = False
    path: str
    reason: str


@dataclass(eq=False)
class StateInUse(LocalFault):
    """Another modelsync daemon runs on this state directory; stop it, or give this one a directory of its own."""

    exit_code: ClassVar[int] = 75
    retryable: ClassVar[bool] = False
    path: str
    holder: str


@dataclass(eq=False)
class EmbeddedRedisFailed(LocalFault):
    """The embedded Redis did not start; its last words and its log say why. Where its port is taken, remove the file
    `redis/port` below the state directory: then it takes the one two above the daemon's."""

    reason: str
    log: str


@dataclass(eq=False)
class CannotListen(LocalFault):
    """The address cannot be listened on: another process has it, or it is not of this host; see `listen`."""

    retryable: ClassVar[bool] = False
    address: str
    reason: str


@dataclass(eq=False)
class LibraryMissing(LocalFault):
    """A library that this needs is not installed; the named extra has it."""

    retryable: ClassVar[bool] = False
    library: str
    extra: str
    """As in ``pip install 'modelsync[EXTRA]'``; empty where no extra has it."""


@dataclass(eq=False)
class WatchUnavailable(LocalFault):
    """The kernel gave no watch on the models directory; it is scanned every few seconds instead."""

    path: str
    reason: str


# --- source faults: what lies in the models directory or was uploaded ---------------------------------------------


@dataclass(eq=False)
class NotAModel(ModelsyncError):
    """What was put there is not a model, so it was not published; nothing else changed."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(eq=False)
class SourceChanged(ModelsyncError):
    """The file changed while it was read; it will be read again when it has settled."""

    retryable: ClassVar[bool] = True
    path: str


# --- uploads under way -----------------------------------------------------------------------------------------------


@dataclass(eq=False)
class NoSuchUpload(ModelsyncError):
    """There is no such upload here: it was finished, given up after a day, or is another host's. Begin a new one."""

    upload: str


@dataclass(eq=False)
class WrongOffset(ModelsyncError):
    """An upload goes on where it stopped, and nowhere else; the offset to go on from is given."""

    offset_bytes: int
    offered_bytes: int


@dataclass(eq=False)
class UploadIncomplete(ModelsyncError):
    """Some of what was planned has not arrived, so nothing was published; ask what is missing and send it."""

    missing_bytes: int


@dataclass(eq=False)
class UploadsFull(ModelsyncError):
    """As many uploads as are kept at once are under way; try again when one of them has ended."""

    retryable: ClassVar[bool] = True
    uploads: int
    most: int


# --- client faults: what an application asked of a model ------------------------------------------------------------


@dataclass(eq=False)
class NoSuchModel(ModelsyncError):
    """Nothing is offered under this name: the host has no active version of such a model."""

    model: str
    live_dir: str
    reason: str


@dataclass(eq=False)
class ModelFileRefused(ModelsyncError):
    """A model's file cannot be loaded: it is damaged, or not what its name says. What was served is served on."""

    exit_code: ClassVar[int] = 4
    path: str
    loader: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: not loaded as {self.loader}: {self.reason}"


@dataclass(eq=False)
class LoaderUnavailable(ModelsyncError):
    """A library that this format needs is not installed; install the package named here."""

    path: str
    loader: str
    package: str


@dataclass(eq=False)
class NotPredicting(ModelsyncError):
    """This model is data, or a library's object without `predict`: take it from `with handle.lease() as model`."""

    model: str
    type: str


@dataclass(eq=False)
class WarmUpFailed(ModelsyncError):
    """The application's warm-up refused a version that was loaded; what was served is served on."""

    model: str
    version: int
    reason: str


@dataclass(eq=False)
class ClientClosed(ModelsyncError):
    """The client was closed; make a new one."""


# --- remote faults: peers and Redis --------------------------------------------------------------------------------


@dataclass(eq=False)
class RemoteFault(ModelsyncError):
    """Another host did not do its part; it is tried again."""

    exit_code: ClassVar[int] = 5
    retryable: ClassVar[bool] = True


@dataclass(eq=False)
class RedisUnavailable(RemoteFault):
    """Redis did not answer; models go on being served, publishing waits until it is back."""

    operation: str
    reason: str


@dataclass(eq=False)
class RedisRefused(RemoteFault):
    """Redis answered with an error: look at its permissions, memory and role."""

    operation: str
    reason: str


@dataclass(eq=False)
class PeerUnavailable(RemoteFault):
    """A daemon or server did not answer: does it run, and is its port open to this host?"""

    peer: str
    reason: str


@dataclass(eq=False)
class PeerBrokeOff(PeerUnavailable):
    """A daemon broke off in the middle, so what was asked of it may have been done: look before asking again."""


@dataclass(eq=False)
class PeerRefused(RemoteFault):
    """A peer answered with a refusal; its reason is given."""

    peer: str
    status: int
    reason: str


@dataclass(eq=False)
class ObjectStoreUnavailable(RemoteFault):
    """The object store did not answer; what is held here goes on, the rest is tried again."""

    operation: str
    reason: str


@dataclass(eq=False)
class ObjectStoreRefused(RemoteFault):
    """The object store refused: look at its credentials, its permissions and the bucket; it is tried again."""

    operation: str
    reason: str


@dataclass(eq=False)
class NoPrimary(RemoteFault):
    """No primary is known just now; the fleet may be electing one. Try again shortly."""

    fleet: str


@dataclass(eq=False)
class NoSuchFleet(RemoteFault):
    """This Redis knows nothing of a fleet of that name: is it the right one (--fleet), and the right Redis?"""

    exit_code: ClassVar[int] = 1
    fleet: str


@dataclass(eq=False)
class TimedOut(RemoteFault):
    """It was not done within the time limit, and may yet be done; what had been reached is given."""

    what: str
    reached: str


@dataclass(eq=False)
class CatalogBehind(RemoteFault):
    """Redis has lost changes that this primary made; they are written back before anything new."""

    after: str
    """The last change that this primary made."""


# --- integrity faults: bytes that are not what they should be -------------------------------------------------------


@dataclass(eq=False)
class IntegrityFault(ModelsyncError):
    """Bytes are not what their digest says; they were refused."""

    exit_code: ClassVar[int] = 4


@dataclass(eq=False)
class DigestMismatch(IntegrityFault):
    """Bytes do not match their digest and are discarded: a pull asks another host, an upload has to be sent again."""

    retryable: ClassVar[bool] = True
    path: str
    chunk: int | None
    expected: str
    actual: str
    source: str


@dataclass(eq=False)
class MalformedMessage(IntegrityFault):
    """A document from outside (manifest, Redis value, HTTP body) does not have the form that PROTOCOL.md gives."""

    what: str
    reason: str


@dataclass(eq=False)
class VersionConflict(IntegrityFault):
    """One version number with two contents: a version never changes, so the second is refused."""

    model: str
    version: int
    known: str
    offered: str


# --- gates: a version that this host will not run ---------------------------------------------------------------------


@dataclass(eq=False)
class VersionRejected(ModelsyncError):
    """A version did not pass its gate on this host, which goes on with what it ran; ask for it again to try again."""

    exit_code: ClassVar[int] = 6
    model: str
    version: int
    gate: str
    """``validate``, ``command``, ``servers`` or ``health``; ``signature``, ``manifest``: not what was signed."""
    reason: str

    def __str__(self) -> str:
        return f"version {self.version} of {self.model} was rejected by its gate ({self.gate}): {self.reason}"


@dataclass(eq=False)
class HookFailed(ModelsyncError):
    """A server was told of a version and did not take it."""

    retryable: ClassVar[bool] = True
    hook: str
    reason: str

    def __str__(self) -> str:
        return f"{self.hook}: {self.reason}"


# --- authority lost --------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class AuthorityLost(ModelsyncError):
    """This node is not, or no longer, the primary; the operation was refused."""

    exit_code: ClassVar[int] = 5
    retryable: ClassVar[bool] = True


@dataclass(eq=False)
class LeaseLost(AuthorityLost):
    """The lease is held by another node or has run out; this node stepped down."""

    epoch: int
    holder: str


@dataclass(eq=False)
class StaleEpoch(AuthorityLost):
    """A message carries an epoch below the highest one accepted here; its sender is no longer primary."""

    offered: int
    accepted: int


# --- policy refusals -----------------------------------------------------------------------------------------------


@dataclass(eq=False)
class PolicyRefusal(ModelsyncError):
    """It could be done, but an operator's order or a rule of the fleet forbids it."""

    exit_code: ClassVar[int] = 6
    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(eq=False)
class TargetBehind(PolicyRefusal):
    """The node that is to take over has not said yet that it has all of this term; it may do so any moment."""


@dataclass(eq=False)
class NoSuchVersion(PolicyRefusal):
    """The fleet has no such version."""

    exit_code: ClassVar[int] = 1
    reason: str


@dataclass(eq=False)
class PickleNotTrusted(PolicyRefusal):
    """Loading this format runs code of whoever published it, and the client was not told to trust this model."""

    reason: str


@dataclass(eq=False)
class BudgetExceeded(PolicyRefusal):
    """The model does not fit into the client's budget; raise `budget_bytes`, or end leases and pins."""

    reason: str
