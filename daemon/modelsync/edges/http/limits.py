"""What one HTTP server lets strangers use: connections, time, bytes. Each number says where it comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Times in seconds, sizes in bytes."""

    head_timeout_s: float = 10.0
    """A request's head must be whole by then. An honest one is a single packet; a slow attack needs it."""
    idle_timeout_s: float = 75.0
    """A kept-alive connection without a request; nginx's default."""
    max_connections: int = 2000
    """Some connections for each of a few hundred peers; never more than half of the process's descriptors."""
    max_head_bytes: int = 16 << 10
    """One header line or request line: a path of 4,096 bytes, percent-encoded, and room to spare."""
    body_silence_s: float = 30.0
    """Between two reads of a body."""
    min_body_bytes_per_s: int = 4096
    """On average, judged after the first minute: nobody trains a model behind a slower line."""
    max_uploads: int = 16
    """At once; each holds two blocks of 1 MiB and a descriptor."""
    max_upload_bytes: int | None = None
    """None: as much as the disk holds beside the reserve."""
    reserve_bytes: int = 64 << 20
    """Left free by uploads, for the daemon's own files."""
    max_bodies: int = 64
    """Large downloads that leave at once: the first of a large fleet to take their shares are as many."""
    max_waiting_bodies: int = 256
    body_wait_s: float = 2.0
    """For a place among them; below the silence after which a peer gives up."""
    drain_s: float = 3.0
    """For running requests when the server stops; systemd waits 10 s for the whole daemon (FAULTS, row 13)."""
    stalled_receiver_s: float = 60.0
    """A receiver that acknowledges nothing for this long is cut off by the kernel (TCP_USER_TIMEOUT)."""
