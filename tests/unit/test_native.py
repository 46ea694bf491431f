"""A library's loops stay in the loading thread while it loads, and nowhere else."""

from __future__ import annotations

import threading

import pytest

from modelsync.client.loaders.native import one_thread


def test_only_the_calling_thread_is_limited_and_only_meanwhile() -> None:
    lightgbm = pytest.importorskip("lightgbm")
    native = lightgbm.basic._LIB
    before = native.omp_get_max_threads()
    native.omp_set_num_threads(3)  # also where there is one processor
    try:
        elsewhere: list[int] = []
        with pytest.raises(ValueError, match="refused"), one_thread(native):
            assert native.omp_get_max_threads() == 1
            other = threading.Thread(target=lambda: elsewhere.append(native.omp_get_max_threads()))
            other.start()
            other.join()
            raise ValueError("refused")
        assert (native.omp_get_max_threads(), elsewhere) == (3, [before])
    finally:
        native.omp_set_num_threads(before)


def test_a_library_without_openmp_is_left_as_it_is() -> None:
    with one_thread(object()):
        pass
