"""Milvus as the first stage's engine: the vectors are in a server of its own, or a cluster of them, and are asked for over the wire.

Its index is FLAT, which scans all vectors: graphs and inverted lists lose candidates here (README.md beside this file).

Letters: N vectors, Q queries, C results a query, D dimensions.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import PipelineError
from pipeline.files import read_json, write_json
from pipeline.gallery.backends import Engine

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
        self.address, self.collection, self.partitions = address, collection, list(partitions)
        self._settled = False  # whether a search has waited for all that was written until now, which takes 0.2 s
        self._client = connect(address)
        import pymilvus

        with _asking(address):
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
            with _asking(self.address):
                self._client.upsert(self.collection, rows, partition_name=self.partitions[0], timeout=WRITE)

    def delete(self, ids: np.ndarray) -> None:
        """See `VectorIndex`."""
        self._settled = False
        for start in range(0, len(ids), BLOCK):
            some = ids[start : start + BLOCK].tolist()
            with _asking(self.address):
                self._client.delete(self.collection, ids=some, partition_name=self.partitions[0], timeout=WRITE)

    def count(self) -> int:
        """How many vectors the partitions have, with all that was written before by anyone."""
        with _asking(self.address):
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
        with _asking(self.address):
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
        with _asking(self.address):
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


class MilvusRows:
    """The photos of a collection by their rows, found by Milvus; once it fails, their vectors are scanned on this machine."""

    def __init__(self, index: MilvusIndex, keys: np.ndarray, scan: Callable[[], Engine], report: Callable[[str], Any]):
        """keys: (N,) int64, the id of each row in `index`. scan: makes the engine of this machine. report: takes a line to print."""
        self._index, self._keys, self._scan, self._report = index, keys, scan, report
        self._order = np.argsort(keys)
        self._local: Engine | None = None

    def search(self, vectors: np.ndarray, count: int, filter: np.ndarray | None = None) -> list[np.ndarray]:
        """See `Engine`."""
        if self._local is None:
            try:
                return self._found(vectors, min(count, MOST), filter)
            except PipelineError as error:
                self._report(
                    f"note: {error.message}; the vectors are scanned on this machine until they are opened again"
                )
                self._local = self._scan()
        return self._local.search(vectors, count, filter)

    def _found(self, vectors: np.ndarray, count: int, filter: np.ndarray | None) -> list[np.ndarray]:
        """The rows of what Milvus finds; an error where it has lost vectors, or has those of other photos."""
        expected = min(count, len(self._keys if filter is None else filter))
        rows = []
        for ids in self._index.search(vectors, count, None if filter is None else self._keys[filter]):
            places = np.searchsorted(self._keys, ids, sorter=self._order)
            found = self._order[np.minimum(places, len(self._order) - 1)]
            if len(ids) != expected or not np.array_equal(self._keys[found], ids):
                what = f"{self._index.collection} does not have the vectors of these photos"
                raise PipelineError(f"milvus at {self._index.address}: {what}", "scan-pipeline index")
            rows.append(found)
        return rows


def connect(address: str) -> Any:
    """A client of the server, which has answered.

    Raises:
        PipelineError: it does not, or the client is not installed.
    """
    try:
        import pymilvus
    except ImportError as error:
        raise PipelineError("the engine milvus needs its client", "pip install 'scan-pipeline[milvus]'") from error
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it prints a traceback before it raises
    with _asking(address):
        return pymilvus.MilvusClient(address, token=os.environ.get(TOKEN, ""), timeout=CONNECT)


def drop(address: str, collection: str) -> None:
    """Remove a collection from the server."""
    client = connect(address)
    with _asking(address):
        client.drop_collection(collection, timeout=WRITE)


def shard_keys(store: str, sha256: str, photos: int) -> np.ndarray:
    """(n,) int64, ids of a shard's photos: its checksum, so that another shard never has them, and their places in it.

    Raises:
        PipelineError: a shard of more than 524,288 photos.
    """
    if photos > 1 << 19:
        raise PipelineError(
            f"a shard of {photos:,} photos, milvus takes {1 << 19:,}", "extract with a smaller shard_size"
        )
    return (int(hashlib.sha256(f"{store}/{sha256}".encode()).hexdigest()[:11], 16) << 19) + np.arange(photos)


def fill(index: MilvusIndex, keys: np.ndarray, parts: Sequence[np.ndarray], mark: Path) -> None:
    """Make a partition have these vectors and no others, whatever it had.

    Args:
        index: of one partition.
        keys, parts: (N,) ids of the vectors, and these, (n, D) of each shard.
        mark: file that says what the partition was filled with; where it says so and the number is right, nothing is compared.

    Raises:
        PipelineError: as by `MilvusIndex`; or another process writes to the partition.
    """
    checksum = hashlib.sha256(keys.tobytes()).hexdigest()
    filled = {"address": index.address, "collection": index.collection, "keys": checksum}
    with suppress(PipelineError):
        if read_json(mark, "the mark of a partition") == filled and index.count() == len(keys):
            return
    with suppress(OSError):
        mark.unlink(missing_ok=True)
    there = index.ids()
    missing = ~np.isin(keys, there)
    index.delete(np.setdiff1d(there, keys))
    if missing.any():
        index.add(keys[missing], np.concatenate(parts)[missing])
    count = index.count()
    if count != len(keys):
        what = f"milvus at {index.address}: {count:,} vectors in {index.partitions[0]} of {index.collection}, expected {len(keys):,}"
        raise PipelineError(what, "scan-pipeline index, when no other process writes to it")
    with suppress(PipelineError):  # an index that can only be read: they are compared the next time
        write_json(mark, filled)


@contextmanager
def _asking(address: str) -> Iterator[None]:
    import pymilvus
    from grpc import RpcError

    try:
        yield
    except (pymilvus.MilvusException, RpcError) as error:
        why = getattr(error, "message", "") or getattr(error, "details", str)() or type(error).__name__
        remedy = f"start it, check {TOKEN}, or keep the vectors on this machine: scan-pipeline index --backend faiss"
        raise PipelineError(f"milvus at {address}: {why}", remedy) from error


def _best(count: int, one: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The ids (n,) and scores (n,) of the best of two answers to one query."""
    ids, scores = (np.concatenate(parts) for parts in zip(one, other, strict=True))
    order = np.argsort(-scores, kind="stable")[:count]
    return ids[order], scores[order]
