"""A client of the fleet's Redis as the configuration describes it: URL, password file, authorities."""

from __future__ import annotations

from typing import Any

from modelsync import config as configuration
from modelsync.config import SecuritySection
from modelsync.edges.redis.connect import connect

LEASE_TIMEOUT_S = 0.3
"""Renewals must fail long before the lease runs out; redis-py's own 5 s would not (LIBRARIES, redis)."""


def redis_client(url: str, security: SecuritySection, timeout_s: float) -> Any:
    """Connects with its first command. Raises ConfigurationFault: the URL or the password's file cannot be used."""
    password, ca_file = security.redis_password_file, security.redis_tls_ca_file
    return connect(
        url,
        timeout_s=timeout_s,
        password=configuration.read_secret(password, "security.redis_password_file") if password else None,
        tls_ca_file=str(ca_file) if ca_file else None,
    )
