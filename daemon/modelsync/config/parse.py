"""From the text of a configuration file to a checked ``Config``, or to everything that is wrong with it at once.

This file alone decides which keys exist, their ranges, and which combinations make no sense. It asks for this
host's name and looks at the secret files that the document names; it writes nothing.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

from modelsync.config import redis_urls
from modelsync.config.addresses import advertised_url, derived_url, listen_address
from modelsync.config.document import parsed_toml, read_text
from modelsync.config.model_section import model_sections
from modelsync.config.reading import Faults, Section, dotted
from modelsync.config.schema import (
    Address,
    Config,
    FleetSection,
    LeaseSection,
    ModelsSection,
    NodeSection,
    SecuritySection,
    StorageSection,
    TransferSection,
)
from modelsync.config.secret_files import access_fault, secret_fault
from modelsync.config.serve_section import serve_section
from modelsync.config.storage_section import storage_section
from modelsync.core import ids
from modelsync.core.compression.frames import Compression
from modelsync.core.errors import ConfigurationFault
from modelsync.core.ids import MAX_INTEGER, FleetName, ModelName, NodeId
from modelsync.core.signing import PublicKey
from modelsync.core.storage.modes import Mode

_DEFAULT_LISTEN = "127.0.0.1:8461"
_SECTIONS = ("fleet", "node", "models", "lease", "transfer", "storage", "pins", "model", "security", "serve")
_HOMES = {
    field.name: section
    for section, schema in (
        ("fleet", FleetSection),
        ("node", NodeSection),
        ("models", ModelsSection),
        ("lease", LeaseSection),
        ("transfer", TransferSection),
        ("storage", StorageSection),
        ("security", SecuritySection),
    )
    for field in fields(schema)
}
"""Where a key that was written into the wrong section belongs."""


def load(path: Path) -> Config:
    """Read and check a configuration file.

    Raises:
        ConfigurationFault: the file cannot be read, or anything in it is wrong; all faults at once.
    """
    text, mode = read_text(path)
    config = parse(text, str(path))
    if mode & stat.S_IROTH and redis_urls.has_password(config.fleet.redis):
        raise ConfigurationFault(
            source=str(path),
            faults=(
                "fleet.redis: holds a password and everyone can read this file; chmod 640, or "
                "security.redis_password_file, would be right",
            ),
        )
    return config


def parse(text: str, source: str, hostname: str | None = None) -> Config:
    """Check the text of a configuration.

    Args:
        text: the TOML document.
        source: what to call it in a fault.
        hostname: this host's name, for the defaults of ``node.id`` and ``node.advertise``; None asks the kernel.
    Raises:
        ConfigurationFault: everything that is wrong.
    """
    return build(parsed_toml(text, source), source, hostname)


def build(document: Mapping[str, Any], source: str, hostname: str | None = None) -> Config:
    """Check a document that is already a dictionary, for instance one made from command-line options.

    Raises:
        ConfigurationFault: everything that is wrong.
    """
    faults = Faults()
    top = Section(faults, (), dict(document))
    tables = {name: top.raw(name) for name in _SECTIONS}
    top.finish(_HOMES)

    def section(name: str) -> Section:
        return Section(faults, (name,), tables[name])

    config = Config(
        fleet=_fleet(section("fleet")),
        node=_node(section("node"), socket.gethostname() if hostname is None else hostname),
        models=_models(section("models")),
        lease=_lease(section("lease")),
        transfer=_transfer(section("transfer")),
        storage=storage_section(section("storage"), _HOMES),
        security=_security(section("security")),
        pins=_pins(section("pins")),
        model=model_sections(section("model")),
        serve=serve_section(section("serve")),
    )
    _check_directories(config, faults)
    _check_redis_secrets(config, faults)
    _check_modes(config, faults)
    faults.raise_if_any(source)
    return config


# --- sections ----------------------------------------------------------------------------------------------------


def _fleet(table: Section) -> FleetSection:
    name = table.required_text("name", 'a name that all nodes of the fleet share, such as "prod",')
    redis = table.required_text("redis", redis_urls.RIGHT)
    shown = None if redis is None else redis_urls.without_password(redis)
    section = FleetSection(
        name=table.parsed("name", FleetName(""), name, ids.fleet_name) if name is not None else FleetName(""),
        redis=table.parsed("redis", "", redis, redis_urls.checked, shown) if redis is not None else "",
        poll_s=table.number("poll_s", 5.0, 0.1, 3600),
    )
    table.finish(_HOMES)
    return section


def _node(table: Section, hostname: str) -> NodeSection:
    name = hostname.partition(".")[0]
    listen = table.parsed("listen", Address("", 0), table.text("listen", _DEFAULT_LISTEN, "HOST:PORT"), listen_address)
    if table.given("advertise"):
        advertise = table.parsed("advertise", "", table.text("advertise", "", "a URL"), advertised_url)
    else:
        table.raw("advertise")
        advertise = table.parsed("advertise", "", hostname, lambda _: derived_url(listen, hostname))
    section = NodeSection(
        id=table.parsed("id", NodeId(""), table.text("id", name), ids.node_id),
        listen=listen,
        advertise=advertise,
        state_dir=table.path("state_dir", Path("/var/lib/modelsync/state")),
        live_dir=table.path("live_dir", Path("/var/lib/modelsync/live")),
        view_dir=table.path("view_dir", Path("/var/lib/modelsync/views")),
        role=cast(Literal["auto", "replica"], table.choice("role", "auto", ("auto", "replica"))),
        priority=table.whole("priority", 100, 0, 1_000_000),
        nofailover=table.flag("nofailover", False),
        serve_url=_serve_url(table),
        rack=_label(table, "rack"),
        zone=_label(table, "zone"),
        labels=table.patterns("labels", ()),
    )
    table.finish(_HOMES)
    return section


def _label(table: Section, key: str) -> str:
    text = table.text(key, "", 'a name such as "a7"')
    return table.parsed(key, "", text, ids.place_label) if text else ""


def _serve_url(table: Section) -> str:
    text = table.text("serve_url", "", "a URL")
    return table.parsed("serve_url", "", text, advertised_url) if text else ""


def _models(table: Section) -> ModelsSection:
    default = ModelsSection()
    section = ModelsSection(
        watch=table.path("watch", None),
        settle_s=table.number("settle_s", default.settle_s, 0.05, 3600),
        keep=table.whole("keep", default.keep, 1, 10_000),
        keep_days=table.number("keep_days", default.keep_days, 0, 100_000),
        scrub_days=table.number("scrub_days", default.scrub_days, 0, 3650),
        scrub_bytes_per_s=table.whole("scrub_bytes_per_s", default.scrub_bytes_per_s, 1 << 16, MAX_INTEGER),
        include=table.patterns("include", default.include),
        exclude=table.patterns("exclude", default.exclude),
    )
    table.finish(_HOMES)
    return section


def _lease(table: Section) -> LeaseSection:
    default = LeaseSection()
    section = LeaseSection(
        ttl_s=table.number("ttl_s", default.ttl_s, 0.1, 600),
        heartbeat_s=table.number("heartbeat_s", default.heartbeat_s, 0.01, 150),
    )
    if section.ttl_s < 4 * section.heartbeat_s:
        # Three renewals in a row may be lost before a healthy primary would be taken for a dead one.
        table.fault(
            "ttl_s",
            f"is {section.ttl_s:g} with lease.heartbeat_s {section.heartbeat_s:g}; "
            f"at least four heartbeats, {4 * section.heartbeat_s:g}, would be right",
        )
    table.finish(_HOMES)
    return section


def _transfer(table: Section) -> TransferSection:
    default = TransferSection()
    section = TransferSection(
        rate_limit_bytes_per_s=table.whole("rate_limit_bytes_per_s", default.rate_limit_bytes_per_s, 0, MAX_INTEGER),
        concurrency=table.whole("concurrency", default.concurrency, 1, 64),
        compression=cast(Compression, table.choice("compression", "auto", ("auto", "never", "always"))),
    )
    table.finish(_HOMES)
    return section


def _security(table: Section) -> SecuritySection:
    section = SecuritySection(
        token_file=table.path("token_file", None),
        redis_password_file=table.path("redis_password_file", None),
        redis_tls_ca_file=table.path("redis_tls_ca_file", None),
        signing_key_file=table.path("signing_key_file", None),
        trusted_keys=_trusted_keys(table),
    )
    signing = section.signing_key_file
    if signing is not None and (fault := access_fault(signing)):
        table.fault("signing_key_file", fault)
    for key, path in (("token_file", section.token_file), ("redis_password_file", section.redis_password_file)):
        if path is not None and (fault := secret_fault(path)):
            table.fault(key, fault)
    authority = section.redis_tls_ca_file
    if authority is not None and not (authority.is_file() and os.access(authority, os.R_OK)):
        table.fault("redis_tls_ca_file", f"{authority} is not a file that this user can read")
    table.finish(_HOMES)
    return section


def _trusted_keys(table: Section) -> tuple[PublicKey, ...]:
    key, right = "trusted_keys", 'a list of public keys, such as ["ed25519:… gpu-01"],'
    texts = table.patterns(key, (), right)
    if not texts and table.given(key):  # an emptied list is not to mean that nobody is asked for a signature any more
        table.fault(key, f"names no key, so that nothing could be run; {right} would be right, or no such line")
    return tuple(found for text in texts if (found := table.parsed(key, None, text, PublicKey.parse)) is not None)


def _pins(table: Section) -> Mapping[ModelName, int | str]:
    pins: dict[ModelName, int | str] = {}
    for key in list(table.names()):
        name = table.parsed(key, None, key, ids.model_name)
        pin = table.parsed(key, None, table.raw(key), _pin)
        if name is not None and pin is not None:
            pins[name] = pin
    return MappingProxyType(pins)


def _pin(value: object) -> int | str:
    if isinstance(value, str):
        if value.isdecimal():
            raise ValueError(f"a version without quotes, {value[:20]}, would be right")
        return ids.alias_name(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int(ids.version(value))
    if isinstance(value, dict):
        raise ValueError('a version or an alias would be right; a name with a dot is quoted: "a.b" = 3')
    raise ValueError('a version, such as 12, or an alias, such as "stable", would be right')


# --- rules across sections -----------------------------------------------------------------------------------------


def _check_directories(config: Config, faults: Faults) -> None:
    """No directory may lie in another: modelsync would publish its own store, or sweep what it serves."""
    node = config.node
    places = [("node.state_dir", node.state_dir), ("node.live_dir", node.live_dir), ("node.view_dir", node.view_dir)]
    if config.models.watch is not None:
        places.append(("models.watch", config.models.watch))
    for index, (key, path) in enumerate(places):
        for other_key, other in places[:index]:
            if path.is_relative_to(other) or other.is_relative_to(path):
                faults.add(key, f"{path} and {other_key}, {other}, are one within the other; apart would be right")


def _check_redis_secrets(config: Config, faults: Faults) -> None:
    url, security = config.fleet.redis, config.security
    if security.redis_password_file is not None and redis_urls.names_password(url):
        faults.add("security.redis_password_file", "fleet.redis gives a password too; one of them would be right")
    if security.redis_tls_ca_file is not None and url and not redis_urls.asks_for_tls(url):
        faults.add("security.redis_tls_ca_file", "is only used with rediss://… or sentinel://…?tls=true in fleet.redis")


def _check_modes(config: Config, faults: Faults) -> None:
    """A model that lies in an object store needs one."""
    sections: list[tuple[str, Mode | None]] = [("storage.mode", config.storage.mode)]
    sections += [(f"model.{dotted(name)}.mode", own.mode) for name, own in config.model.items()]
    for key, mode in sections:
        if mode == "shared" and not config.storage.url:
            faults.add(key, 'is "shared", and storage.url names no object store; s3://BUCKET/PREFIX would be right')
