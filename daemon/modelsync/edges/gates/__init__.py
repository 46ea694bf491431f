"""What a version has to pass on a host, and the servers that are told of it."""
