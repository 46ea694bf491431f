"""What an inference request can be refused for, each with the status that the protocol's error travels under.

Split by whose fault it is: the request's (400, 404, 413, 415), the load's (429, 503), the model's (500, 503).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from modelsync.core.errors import ModelsyncError


@dataclass(eq=False)
class InferenceFault(ModelsyncError):
    """The request could not be answered."""

    status: ClassVar[int] = 500

    def __str__(self) -> str:
        return self.sentence()


@dataclass(eq=False)
class BadRequest(InferenceFault):
    """The request is not of the form that the protocol gives."""

    status: ClassVar[int] = 400
    reason: str

    def sentence(self) -> str:
        return self.reason


@dataclass(eq=False)
class BadTensor(InferenceFault):
    """A tensor of the request is not what it says, or not what the model takes."""

    status: ClassVar[int] = 400
    tensor: str
    reason: str

    def sentence(self) -> str:
        return f"tensor {self.tensor!r}: {self.reason}"


@dataclass(eq=False)
class UnknownModel(InferenceFault):
    """This host offers no such model, or not that version of it."""

    status: ClassVar[int] = 404
    reason: str

    def sentence(self) -> str:
        return self.reason


@dataclass(eq=False)
class TooLarge(InferenceFault):
    """The body is larger than this server takes; see `serve.max_body_bytes`."""

    status: ClassVar[int] = 413
    limit_bytes: int

    def sentence(self) -> str:
        return f"the body is larger than {self.limit_bytes} bytes, the most that is taken (serve.max_body_bytes)"


@dataclass(eq=False)
class UnknownEncoding(InferenceFault):
    """The body is compressed in a way that this server does not read."""

    status: ClassVar[int] = 415
    encoding: str

    def sentence(self) -> str:
        return f"Content-Encoding {self.encoding!r}: identity, gzip or deflate would be right"


@dataclass(eq=False)
class ModelBusy(InferenceFault):
    """Too many requests wait for this model already; try again shortly, or ask another host."""

    status: ClassVar[int] = 429
    retryable: ClassVar[bool] = True
    model: str
    waiting: int

    def sentence(self) -> str:
        return f"model {self.model!r}: {self.waiting} requests wait for it already; try again shortly"


@dataclass(eq=False)
class ServerBusy(InferenceFault):
    """Too much is under way on this server already; try again shortly, or ask another host."""

    status: ClassVar[int] = 503
    retryable: ClassVar[bool] = True
    reason: str

    def sentence(self) -> str:
        return f"this server is busy: {self.reason}; try again shortly"


@dataclass(eq=False)
class ModelUnavailable(InferenceFault):
    """The model is offered here and cannot be used just now; the reason is given."""

    status: ClassVar[int] = 503
    retryable: ClassVar[bool] = True
    model: str
    reason: str

    def sentence(self) -> str:
        return f"model {self.model!r} cannot be used: {self.reason}"


@dataclass(eq=False)
class InferenceFailed(InferenceFault):
    """The model raised an error over tensors that fit its description."""

    status: ClassVar[int] = 500
    model: str
    reason: str

    def sentence(self) -> str:
        return f"model {self.model!r} failed: {self.reason}"
