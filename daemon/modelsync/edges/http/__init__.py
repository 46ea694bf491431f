"""The HTTP face of a daemon, and the client of its control traffic."""
