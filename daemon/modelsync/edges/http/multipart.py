"""multipart/form-data, parsed as it arrives: bytes in, events out, nothing held but one part's head.

This file alone knows the format (RFC 7578, RFC 2046 section 5.1). aiohttp's reader was weighed and left: it strips what
makes a path absolute before anybody can refuse it, and reads a body that ends early as one that ended. No I/O here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser

from modelsync.core.errors import MalformedMessage

MAX_HEAD_BYTES = 16 << 10
"""Of one part: a path of 4,096 bytes, each written as three characters, and room to spare."""
MAX_PREAMBLE_BYTES = 1024

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")
"""RFC 2046, section 5.1.1."""
_PLAIN_ENCODINGS = ("binary", "8bit", "7bit")


@dataclass(frozen=True, slots=True)
class PartStarted:
    """``filename`` None: a form field; otherwise a file, under the path that the sender gave, still unchecked."""

    name: str
    filename: str | None


@dataclass(frozen=True, slots=True)
class PartData:
    data: bytes


@dataclass(frozen=True, slots=True)
class PartEnded:
    pass


Event = PartStarted | PartData | PartEnded


def boundary_of(content_type: str) -> bytes:
    """The boundary of a Content-Type header. Raises MalformedMessage."""
    message = Message()
    message["Content-Type"] = content_type
    boundary = message.get_param("boundary")
    if not isinstance(boundary, str) or _BOUNDARY.fullmatch(boundary) is None:
        raise _malformed("Content-Type names no boundary of 1 to 70 characters")
    return boundary.encode()


class MultipartParser:
    """Feed it bytes in any pieces; it yields the same events for all of them.

    Every ``PartStarted`` is followed by any number of ``PartData`` and one ``PartEnded``. ``finish`` says whether the
    closing boundary came.
    """

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._buffer = bytearray(b"\r\n")  # so that the first boundary, at the very start, looks like the others
        self._step = self._preamble

    def feed(self, data: bytes) -> Iterator[Event]:
        """Take more bytes. Raises MalformedMessage; the parser is of no use after that."""
        self._buffer += data
        while True:
            before = self._step, len(self._buffer)
            yield from self._step()
            if (self._step, len(self._buffer)) == before:
                return

    def finish(self) -> None:
        """The body is at its end. Raises MalformedMessage if it was cut short."""
        if self._step != self._epilogue:
            raise _malformed("it ends before its closing boundary")

    def _preamble(self) -> Iterator[Event]:
        at = self._buffer.find(self._delimiter)
        if (at if at >= 0 else len(self._buffer) - len(self._delimiter)) > MAX_PREAMBLE_BYTES:
            raise _malformed("it does not begin with its boundary")
        if at >= 0:
            del self._buffer[: at + len(self._delimiter)]
            self._step = self._after_boundary
        yield from ()

    def _after_boundary(self) -> Iterator[Event]:
        if self._buffer.startswith(b"--"):
            self._buffer.clear()
            self._step = self._epilogue
            return
        end = self._buffer.find(b"\r\n")
        padding = self._buffer[: end if end >= 0 else len(self._buffer)].rstrip(b"\r")
        if bytes(padding.strip(b" \t")) not in (b"", b"-") or len(padding) > MAX_PREAMBLE_BYTES:
            raise _malformed("text follows a boundary on its line")
        if end >= 0:
            # This line's end stays, so that a part without headers also has the blank line that ends them.
            del self._buffer[:end]
            self._step = self._head
        yield from ()

    def _head(self) -> Iterator[Event]:
        end = self._buffer.find(b"\r\n\r\n")
        if (end if end >= 0 else len(self._buffer) - 4) > MAX_HEAD_BYTES:
            raise _malformed(f"the head of a part is larger than {MAX_HEAD_BYTES} bytes")
        if end >= 0:
            head = bytes(self._buffer[2 : end + 2])
            del self._buffer[: end + 4]
            self._step = self._data
            yield _part_of(head)

    def _data(self) -> Iterator[Event]:
        at = self._buffer.find(self._delimiter)
        keep = len(self._delimiter) - 1
        end = at if at >= 0 else len(self._buffer) - keep
        if end > 0:
            yield PartData(bytes(memoryview(self._buffer)[:end]))
            del self._buffer[:end]
        if at >= 0:
            del self._buffer[: len(self._delimiter)]
            self._step = self._after_boundary
            yield PartEnded()

    def _epilogue(self) -> Iterator[Event]:
        self._buffer.clear()
        yield from ()


def _part_of(head: bytes) -> PartStarted:
    # As Latin-1 every byte is one character and comes back as that byte; read as ASCII, raw UTF-8 would be lost.
    headers = HeaderParser().parsestr(head.decode("latin-1"))
    encoding = headers.get("Content-Transfer-Encoding", "binary").strip().lower()
    if encoding not in _PLAIN_ENCODINGS or "Content-Encoding" in headers:
        raise _malformed("a part is encoded; parts are taken as they are")
    if headers.get_content_maintype() == "multipart":
        raise _malformed("a part is multipart itself")
    disposition = headers.get_all("Content-Disposition", [])
    if len(disposition) != 1 or headers.get_content_disposition() != "form-data":
        raise _malformed("a part has not exactly one Content-Disposition: form-data")
    return PartStarted(name=_parameter(headers, "name") or "", filename=_parameter(headers, "filename"))


def _parameter(headers: Message, name: str) -> str | None:
    value = headers.get_param(name, header="Content-Disposition")
    if value is None:
        return None
    if isinstance(value, tuple):  # RFC 5987: charset, language, and the text, percent-decoded as Latin-1
        charset, _, value = value
        if (charset or "utf-8").lower() not in ("utf-8", "us-ascii"):
            raise _malformed("a file name in another charset than UTF-8")
    data = value.encode("latin-1")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _malformed("a file name that is not UTF-8") from error


def _malformed(reason: str) -> MalformedMessage:
    return MalformedMessage(what="multipart body", reason=reason)
