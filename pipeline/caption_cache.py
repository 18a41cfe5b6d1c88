"""Word embeddings of captions files, encoded once and kept in the run folder.

runs/t2i_mean/cache/captions-<key>.bin   (T, E) float16, the words of all captions in their order, then its sha256

The key is made of the model's file and of the captions, so a cache is never read for others. A damaged one is rebuilt.
Letters: M captions, T words of all captions together, E joint space.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from matcher.collection import ENCODE_CAPTIONS, EncodedCaptions
from pipeline.errors import PipelineError
from pipeline.files import replacing
from pipeline.runs import TrainedRun

WORTH_KEEPING = 500  # captions; a transformer takes 3 s of a core for them, a GRU a moment
LARGEST = 8 << 30  # bytes of a cache
DIGEST = hashlib.sha256().digest_size


class StoredWords:
    """Word embeddings of captions in a cache: `matcher.similarity.WordEmbeddings`."""

    def __init__(self, words: np.ndarray, lengths: Tensor, device: torch.device):
        self.words, self.lengths, self.device = words, lengths, device
        self._starts = (lengths.cumsum(0) - lengths).numpy()

    def pack(self, captions: Tensor) -> Tensor:
        """The words of some captions, one after another: (T, E) float32."""
        spans = zip(self._starts[captions], self.lengths[captions].tolist(), strict=True)
        words = np.concatenate([self.words[start : start + length] for start, length in spans])
        return torch.from_numpy(words.astype(np.float32)).to(self.device)


def caption_embeddings(
    run: TrainedRun, captions: Sequence[str], report: Callable[[str], Any] = print
) -> EncodedCaptions | StoredWords:
    """Word embeddings of captions, from the run's cache where they are many; encodes them, with a bar, the first time."""
    encoded = EncodedCaptions(run.model, captions)
    shape = int(encoded.lengths.sum()), run.model.config.embed_dim
    if len(captions) < WORTH_KEEPING or 2 * shape[0] * shape[1] > LARGEST or run.is_shipped:
        return encoded
    path = run.folder / "cache" / f"captions-{_key(run, captions)}.bin"
    words = _read(path, shape)
    if words is None:
        try:
            path.parent.mkdir(exist_ok=True)
            _write(path, encoded)
        except (PipelineError, OSError) as error:
            report(f"note: caption embeddings are not kept: {error}")
            return encoded
        words = _read(path, shape)
    return encoded if words is None else StoredWords(words, encoded.lengths, encoded.device)


def _key(run: TrainedRun, captions: Sequence[str]) -> str:
    content = "\n".join([run.sha256, *captions])
    return hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()[:16]


def _write(path: Path, encoded: EncodedCaptions) -> None:
    count, digest = len(encoded.lengths), hashlib.sha256()
    with replacing(path) as file, tqdm(total=count, unit="caption", desc="encoding captions", leave=False) as bar:
        for some in torch.arange(count).split(ENCODE_CAPTIONS):
            content = encoded.pack(some).cpu().numpy().astype(np.float16).tobytes()
            digest.update(content)
            file.write(content)
            bar.update(len(some))
        file.write(digest.digest())


def _read(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """(T, E) float16, memory-mapped; None where there is no cache, or a damaged one."""
    try:
        content = np.memmap(path, np.uint8, mode="r")
    except (OSError, ValueError):  # none there, or an empty file
        return None
    size = 2 * shape[0] * shape[1]
    if len(content) != size + DIGEST or hashlib.sha256(content[:size].data).digest() != content[size:].tobytes():
        return None
    return content[:size].view(np.float16).reshape(shape)
