"""Whether chunks are packed on their way between hosts, and what packed chunks look like on the wire."""
