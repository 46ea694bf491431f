"""Keeps what lives as long as this process out of the garbage collector's way.

A full collection looks at every object of the process while nobody else runs. Most of them are the libraries': 83 ms
beside scikit-learn, a tenth of it without. So what is there is set aside once the server has started, and again when a
load has brought in a library (decisions/, "a load beside requests").
"""

from __future__ import annotations

import gc
import sys

LIBRARY_MODULES = 50
"""New modules that make it worth while: scikit-learn brings hundreds, a model's own code a few."""


class Collecting:
    """Sets objects aside, seldom: what is garbage at that moment is never collected."""

    def __init__(self) -> None:
        self._modules = -LIBRARY_MODULES

    def settled(self) -> bool:
        """Call when the server has started, and after a load. Returns whether anything was set aside."""
        modules = len(sys.modules)
        if modules - self._modules < LIBRARY_MODULES:
            return False
        self._modules = modules
        gc.freeze()
        return True
