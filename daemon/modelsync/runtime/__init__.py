"""Async loops that gather events, step the core and run its effects. Nothing here imports an edge."""
