"""Publishing from a Python program: an estimator, arrays or a path become the next version of a model.

``call`` is what an application imports; ``describe``, ``parameters`` and ``schema`` say what the model is, ``weights``
writes it down, and ``upload`` or ``directory`` hands it to the fleet. Like the command line this composes edges, so it
lies above them and nothing of the daemon imports it.
"""

from modelsync.publishing.call import PublishedVersion, publish

__all__ = ["PublishedVersion", "publish"]
