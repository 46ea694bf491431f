"""What looks at a model inside the cage: programs of their own, never imported by the daemon."""
