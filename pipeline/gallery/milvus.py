"""Milvus as the first stage's engine: the vectors are in a server of its own, or a cluster of them, and are asked for over the wire.

Its index is FLAT, which scans all vectors: graphs and inverted lists lose candidates here (README.md beside this file).
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from pipeline.errors import PipelineError

ADDRESS = "http://localhost:19530"
TOKEN = "MILVUS_TOKEN"  # in the environment: user:password, or a key
CONNECT, SEARCH, WRITE, LOAD = 5.0, 10.0, 60.0, 60.0  # seconds at most
MOST = 16_384  # results of a query that Milvus gives
LISTED = 10_000  # ids of a filter in one request: it reads 30,000 a second
BLOCK = 5000  # vectors in one request


class MilvusIndex:
    """Vectors in partitions of a collection: `backends.VectorIndex`, except that what is written outlives the process."""

    def __init__(self, dimensions: int, address: str, collection: str, partitions: Sequence[str]):
        """
        dimensions: D; the collection and its partitions are made where there are none.
        partitions: to search; vectors are added to the first, and deleted from it.

        Raises:
            PipelineError: here and by every method: the server does not answer in time, or refuses.
        """
        try:
            import pymilvus
            from grpc import RpcError
        except ImportError as error:
            raise PipelineError("the engine milvus needs its client", "pip install 'scan-pipeline[milvus]'") from error
        self.address, self.collection, self.partitions = address, collection, list(partitions)
        self._settled = False  # whether a search has waited for all that was written until now, which takes 0.2 s
        self._errors = (pymilvus.MilvusException, RpcError)
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it prints a traceback before it raises
        with self._asking():
            self._client: Any = pymilvus.MilvusClient(address, token=os.environ.get(TOKEN, ""), timeout=CONNECT)
            if not self._client.has_collection(collection, timeout=CONNECT):
                schema = self._client.create_schema(auto_id=False)
                schema.add_field("id", pymilvus.DataType.INT64, is_primary=True)
                schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=dimensions)
                flat = self._client.prepare_index_params("vector", index_type="FLAT", metric_type="IP")
                self._client.create_collection(collection, schema=schema, index_params=flat, timeout=WRITE)
            there = self._client.list_partitions(collection, timeout=CONNECT)
            for name in set(self.partitions) - set(there):
                self._client.create_partition(collection, name, timeout=WRITE)
            self._client.load_collection(collection, timeout=LOAD)  # done already, unless the server has just started

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """See `VectorIndex`; those of a call that failed half-way may be added again."""
        self._settled = False
        for start in range(0, len(ids), BLOCK):
            block = slice(start, start + BLOCK)
            pairs = zip(ids[block].tolist(), vectors[block].astype(np.float32), strict=True)
            rows = [{"id": key, "vector": vector} for key, vector in pairs]
            with self._asking():
                self._client.upsert(self.collection, rows, partition_name=self.partitions[0], timeout=WRITE)

    def delete(self, ids: np.ndarray) -> None:
        """See `VectorIndex`."""
        self._settled = False
        for start in range(0, len(ids), BLOCK):
            some = ids[start : start + BLOCK].tolist()
            with self._asking():
                self._client.delete(self.collection, ids=some, partition_name=self.partitions[0], timeout=WRITE)

    def count(self) -> int:
        """How many vectors the partitions have, with all that was written before by anyone."""
        with self._asking():
            counted = self._client.query(
                self.collection,
                output_fields=["count(*)"],
                partition_names=self.partitions,
                consistency_level="Strong",
                timeout=WRITE,
            )
        return int(counted[0]["count(*)"])

    def ids(self) -> np.ndarray:
        """(N,) int64 of all vectors in the partitions."""
        found: list[int] = []
        with self._asking():
            pages = self._client.query_iterator(
                self.collection,
                batch_size=MOST,
                output_fields=["id"],
                partition_names=self.partitions,
                consistency_level="Strong",
                timeout=WRITE,
            )
            while page := pages.next():
                found += [row["id"] for row in page]
            pages.close()
        return np.array(found, np.int64)

    def drop(self) -> None:
        """Remove the collection from the server."""
        with self._asking():
            self._client.drop_collection(self.collection, timeout=WRITE)

    def search(self, vectors: np.ndarray, count: int, filter: np.ndarray | None = None) -> list[np.ndarray]:
        """See `VectorIndex`; never more than 16,384 results."""
        count = min(count, MOST)
        if filter is None:
            return [ids for ids, _ in self._search(vectors, count, "")]
        if len(filter) > LISTED:
            # The best of those chosen are the first of them in the order of all, where that goes far enough.
            chosen = [ids[np.isin(ids, filter)] for ids, _ in self._search(vectors, MOST, "")]
            if all(len(ids) >= count for ids in chosen):
                return [ids[:count] for ids in chosen]
        found = [(np.zeros(0, np.int64), np.zeros(0, np.float32))] * len(vectors)
        for start in range(0, len(filter), LISTED):
            more = self._search(vectors, count, f"id in {filter[start : start + LISTED].tolist()}")
            found = [_best(count, one, other) for one, other in zip(found, more, strict=True)]
        return [ids for ids, _ in found]

    def _search(self, vectors: np.ndarray, count: int, filter: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each query the ids (n,), best first, and their scores (n,)."""
        with self._asking():
            answers = self._client.search(
                self.collection,
                vectors.astype(np.float32),
                filter=filter,
                limit=count,
                partition_names=self.partitions,
                consistency_level="Bounded" if self._settled else "Strong",
                timeout=SEARCH if self._settled else LOAD,
            )
        self._settled = True
        return [(np.array(one.ids, np.int64), np.array(one.distances, np.float32)) for one in answers]

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            why = getattr(error, "message", "") or getattr(error, "details", str)() or type(error).__name__
            remedy = "start it, or keep the vectors on this machine: scan-pipeline index --backend faiss"
            raise PipelineError(f"milvus at {self.address}: {why}", remedy) from error


def _best(count: int, one: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The ids (n,) and scores (n,) of the best of two answers to one query."""
    ids, scores = (np.concatenate(parts) for parts in zip(one, other, strict=True))
    order = np.argsort(-scores, kind="stable")[:count]
    return ids[order], scores[order]
