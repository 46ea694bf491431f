"""How structlog is set up: console lines for a terminal, JSON lines for journald and everything else."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys

import structlog


class Stderr(io.TextIOBase):
    """Standard error without a buffer, whose failures are nobody's: a full disk under it must not end the daemon."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="backslashreplace"))
        return len(text)


def set_up(*, level: str = "info", console: bool | None = None) -> None:
    """Configure logging once for the process; everything goes to stderr.

    Args:
        level: debug, info, warning or error.
        console: None: a person's form if stderr is a terminal, else JSON.
    """
    stream = Stderr()
    human = sys.stderr.isatty() if console is None else console
    threshold = getattr(logging, level.upper())
    render: structlog.types.Processor = (
        # plain_traceback: the default prints local variables, and a token may be among them.
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        if human
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=stream),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=max(threshold, logging.WARNING), stream=stream, format="%(name)s: %(message)s")
