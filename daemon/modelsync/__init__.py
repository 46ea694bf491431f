"""modelsync keeps machine-learning model weights in step across plain Linux hosts."""

__version__ = "0.1.0"
