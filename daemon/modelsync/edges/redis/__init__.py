"""Redis: connections, the lease, the catalog, the subscription, and the embedded server."""
