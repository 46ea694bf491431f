"""A configuration file's bytes into a TOML document. This file knows TOML and files, and none of modelsync's keys."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

from modelsync.core.errors import ConfigurationFault

MAX_FILE_BYTES = 1024 * 1024
_POSITION = re.compile(r"(.*?) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)


def read_text(path: Path) -> tuple[str, int]:
    """The file's text and mode.

    Raises:
        ConfigurationFault: it cannot be read, is no regular file, larger than 1 MiB, or not UTF-8.
    """

    def fault(text: str) -> ConfigurationFault:
        return ConfigurationFault(source=str(path), faults=(text,))

    try:
        # O_NONBLOCK: a FIFO in its place must not hang a reload.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode):
                raise fault("it is not a regular file")
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(MAX_FILE_BYTES + 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else str(error)
        raise fault(f"the file cannot be read: {reason}") from error
    if len(data) > MAX_FILE_BYTES:
        raise fault("the file is larger than 1 MiB")
    try:
        return data.decode("utf-8-sig"), info.st_mode
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise fault(f"line {line}: byte {error.start} is not UTF-8") from error


def parsed_toml(text: str, source: str) -> dict[str, Any]:
    """The document as tomllib reads it. Raises ConfigurationFault with line and column."""
    if not text.strip():
        raise ConfigurationFault(source=source, faults=("the file is empty",))
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigurationFault(source=source, faults=("the document is nested too deeply",)) from None
    except ValueError as error:
        raise ConfigurationFault(source=source, faults=(_syntax_fault(str(error)),)) from error


def _syntax_fault(message: str) -> str:
    """tomllib's message with its position first, and in an operator's words where it speaks of its internals."""
    match = _POSITION.fullmatch(message)
    what, line, column = match.groups() if match else (message, None, None)
    if what.startswith(("Cannot overwrite", "Cannot declare", "Cannot mutate")):
        what = f"this key or section was given before ({what})"
    where = f"line {line}, column {column}" if line else "at the end of the file" if match else "syntax"
    return f"{where}: {what}"
