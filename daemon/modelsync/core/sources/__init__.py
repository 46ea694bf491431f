"""The models directory: what its names mean, what its events say, and when what lies there is complete."""
