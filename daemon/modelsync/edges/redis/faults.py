"""redis-py's exceptions in our words: whose fault each is, here and nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

from redis import exceptions as faults

from modelsync.core.errors import MalformedMessage, RedisRefused, RedisUnavailable


@contextlib.asynccontextmanager
async def redis_faults(operation: str) -> AsyncIterator[None]:
    """Translate redis-py's exceptions. Raises RedisUnavailable, RedisRefused, MalformedMessage.

    Refused credentials are subclasses of redis-py's ConnectionError; for an operator they are a refusal.

    A cancellation that redis-py lost is raised here after all: it sends through ``asyncio.wait_for``, which before
    Python 3.12 returns its result instead where both come in one turn of the loop (CPython issue 86296), and the task
    would go on for good.
    """
    task = asyncio.current_task()
    asked = task.cancelling() if task else 0
    try:
        yield
    except (faults.AuthenticationError, faults.AuthorizationError) as error:
        raise RedisRefused(operation=operation, reason=reason_of(error)) from error
    except (faults.ConnectionError, faults.TimeoutError, OSError) as error:  # OSError: also the built-in TimeoutError
        raise RedisUnavailable(operation=operation, reason=reason_of(error)) from error
    except faults.InvalidResponse as error:
        reason = f"{reason_of(error)}; is it a Redis that listens there?"
        raise MalformedMessage(what=f"reply to {operation}", reason=reason) from error
    except (UnicodeError, ValueError) as error:
        raise MalformedMessage(what=f"reply to {operation}", reason=reason_of(error)) from error
    except faults.RedisError as error:
        raise RedisRefused(operation=operation, reason=reason_of(error)) from error
    finally:
        if task is not None and task.cancelling() > asked:
            raise asyncio.CancelledError


def reason_of(error: BaseException) -> str:
    """What a person reads of an exception of redis-py's."""
    return f"{type(error).__name__}: {error}"[:200] + _tls_advice(error)


def _tls_advice(error: BaseException) -> str:
    """What to look at where the connection could not be encrypted; redis-py raises that as an error of connecting."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "; see security.redis_tls_ca_file, and the host in fleet.redis"
        if isinstance(cause, ssl.SSLError):
            return "; does Redis speak TLS at this port?"
        cause = cause.__cause__ or cause.__context__
    return ""
