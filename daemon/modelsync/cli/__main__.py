"""``python -m modelsync.cli``."""

from modelsync.cli import main

main()
