"""``modelsync keys``: a host's key for signing versions, and the line that makes others trust it."""

from __future__ import annotations

import socket
from pathlib import Path

import click

from modelsync.cli.output import json_option, print_json, printable
from modelsync.config import Config
from modelsync.config.secret_files import access_fault
from modelsync.core import signing
from modelsync.core.errors import ConfigurationFault
from modelsync.core.signing import PublicKey


@click.group("keys")
def keys_group() -> None:
    """Make and show the keys with which versions are signed."""


_FILE = click.argument("file", type=click.Path(path_type=Path))


@keys_group.command("new")
@_FILE
@json_option
def new_command(file: Path, as_json: bool) -> None:
    """Write a new private key to FILE (mode 0600) and print its public line, for security.trusted_keys.

    FILE is then what security.signing_key_file names on this host. A file that is there already is never written over.
    """
    from modelsync.edges.host import ed25519  # noqa: PLC0415  only this command needs it

    if not file.absolute().parent.is_dir():
        raise click.BadParameter(f"{file.parent} is no directory", param_hint="FILE")
    _show(file, ed25519.new_key(file), as_json)


@keys_group.command("show")
@_FILE
@json_option
def show_command(file: Path, as_json: bool) -> None:
    """Print the public line of the private key in FILE."""
    from modelsync.edges.host import ed25519  # noqa: PLC0415  only this command needs it

    if fault := access_fault(file):
        raise ConfigurationFault(source=str(file), faults=(f"FILE: {fault}",))
    _show(file, ed25519.load_signer(file, "FILE").public, as_json)


def _show(file: Path, key: PublicKey, as_json: bool) -> None:
    line = f"{key} {socket.gethostname()}"
    if as_json:
        print_json({"file": str(file), "id": key.id, "public": line})
    else:
        click.echo(printable(line))


def sealing_fault(config: Config) -> str | None:
    """Why a host of this configuration could publish nothing as primary, though it may become one; None if it can.

    Raises ConfigurationFault: its key's file is no key.
    """
    path, own = config.security.signing_key_file, None
    if path is not None:
        from modelsync.edges.host import ed25519  # noqa: PLC0415  only where there is a key

        own = ed25519.load_signer(path).public
    may_be_primary = config.node.role != "replica"
    return signing.sealing_fault(own, config.security.trusted_keys) if may_be_primary else None


COMMANDS = (keys_group,)
