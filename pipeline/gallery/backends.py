"""Engines that find the photos whose vectors have the largest inner products with a query's.

Letters: N vectors, Q queries, C results a query, D dimensions.
"""

from typing import Any, Protocol

import numpy as np

from pipeline.errors import PipelineError


class Engine(Protocol):
    """What the first stage asks while it answers."""

    def search(self, vectors: np.ndarray, count: int, filter: np.ndarray | None = None) -> list[np.ndarray]:
        """The ids of the largest inner products, best first.

        vectors: (Q, D) float32. count: C, or all that there are. filter: (n,) int64, ids to choose among; None: all.
        """
        ...


class VectorIndex(Engine, Protocol):
    """An engine that takes vectors."""

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """ids: (N,) int64, none of them there yet; vectors: (N, D) int8."""
        ...

    def delete(self, ids: np.ndarray) -> None:
        """ids: (N,) int64; those that are not there are passed over."""
        ...


class FaissIndex:
    """A flat scan over int8 vectors in memory: nothing is lost, N · D bytes, time in proportion.

    Graphs and inverted lists lose candidates here: queries lie off the distribution of the photos' vectors.
    """

    def __init__(self, dimensions: int):
        try:
            import faiss
        except ImportError as error:
            raise PipelineError("the index of many photos needs faiss", "pip install faiss-cpu") from error
        self._faiss: Any = faiss  # its stubs lack what SWIG adds
        # Trained on this range its codes are the int8 themselves. (QT_8bit_direct_signed would round the query as well.)
        flat = faiss.IndexScalarQuantizer(dimensions, faiss.ScalarQuantizer.QT_8bit_uniform, faiss.METRIC_INNER_PRODUCT)
        flat.train(np.repeat(np.array([[-127.0], [128.0]], np.float32), dimensions, axis=1))
        self._index: Any = faiss.IndexIDMap2(flat)

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """See `VectorIndex`."""
        self._index.add_with_ids(vectors.astype(np.float32), ids.astype(np.int64))

    def delete(self, ids: np.ndarray) -> None:
        """See `VectorIndex`."""
        self._index.remove_ids(ids.astype(np.int64))

    def search(self, vectors: np.ndarray, count: int, filter: np.ndarray | None = None) -> list[np.ndarray]:
        """See `VectorIndex`."""
        available, parameters = self._index.ntotal, None
        if filter is not None:
            available = min(available, len(filter))
            chosen = np.zeros(max(int(filter.max(initial=-1)) + 1, 1), bool)
            chosen[filter] = True
            bits = np.packbits(chosen, bitorder="little")  # held until the search is over
            selector = self._faiss.IDSelectorBitmap(len(bits), self._faiss.swig_ptr(bits))
            parameters = self._faiss.SearchParameters(sel=selector)
        if not available:
            return [np.zeros(0, np.int64)] * len(vectors)
        count = min(count, available)
        asked, are_told = min(count + 1, available), False
        # Copies of a photo score alike: where they reach the end of what was asked for, any of them may be missing
        while not are_told:
            scores, found = self._index.search(vectors.astype(np.float32), asked, params=parameters)
            are_told = asked == available or bool((scores[:, -1] < scores[:, count - 1]).all())
            asked = min(2 * asked, available)
        best = [np.lexsort((ids, -own))[:count] for ids, own in zip(found, scores, strict=True)]
        return [ids[order][ids[order] >= 0] for ids, order in zip(found, best, strict=True)]
