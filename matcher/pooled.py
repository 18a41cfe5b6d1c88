"""One vector a photo, to find candidates by an inner product before the matcher compares their regions and words exactly.

A mean of regions forgets small things. Here a photo answers a codebook of words instead: its number for codeword c is
cos(c, Σ softmax(10 c·r) r), what stacked cross attention would say of that one word; the mean region is appended. A query is its words,
each spread over its nearest codewords, and its mean word. A bilinear form between the two is fitted to exact similarities: one weight
for the codebook and one for the means, then a ridge regression of what they leave; its best approximation of rank D gives both maps.

Where the best word alone makes the score (SCAN's t2i with Max), no sum over words follows it: each word is a query of its own then,
and a photo's score is that of the best.

Nothing here knows a method: any matcher's embeddings and similarities will do. Vectors are in units of the similarity.

Letters: N photos, M captions, K regions, T words of all captions together, E joint space, C codewords, F = C + E, D vector.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from matcher.errors import MatcherError
from matcher.similarity import PaddedWords, WordEmbeddings

# Candidates that hold .98 of the exact top ten of 6,000 drawn photos (t2i Mean): 669 with 128 numbers, 123 with 256.
CODEWORDS, DIMENSIONS = 512, 256
TEMPERATURE = 10.0  # λ of the attention of a codeword to regions
NEAREST, SPREAD = 4, 20.0  # codewords that a word is spread over, by a softmax with this λ
ROUNDS = 15  # of k-means
MOST_WORDS = 50_000  # that k-means sees
MOST_SINGLE_WORDS = 5000  # that a head for single words is fitted to
BLOCK = 64  # photos: larger temporaries leave the cache
# Ridge of the regression, in units of the mean variance. Recall@10 among 50 of 4,000 drawn photos (t2i LogSumExp): .54 without the
# regression, .46 with a ridge of .001, .65 with .1, .64 with 1.
RIDGE = 0.1
LARGEST = 127  # of int8


@dataclass(frozen=True)
class PooledHead:
    """What makes vectors; fitted by `fit_pooled`. All float32, on the CPU."""

    codewords: Tensor  # (C, E), of unit length
    center: Tensor  # (F,) of the photos that it was fitted with
    photo_map: Tensor  # (F, D)
    query_map: Tensor  # (F, D)

    @torch.inference_mode()
    def photo_vectors(self, regions: Tensor) -> np.ndarray:
        """Region embeddings (N, K, E) -> (N, D) int8."""
        codes = (photo_features(regions.cpu(), self.codewords) - self.center) @ self.photo_map
        return codes.round().clamp(-LARGEST, LARGEST).numpy().astype(np.int8)

    @torch.inference_mode()
    def query_vectors(self, words: WordEmbeddings) -> np.ndarray:
        """Word embeddings of M captions -> (M, D) float32; their inner product with a photo's is near the similarity, up to a
        number that is the same for all photos."""
        return (query_features(words, self.codewords) @ self.query_map).numpy()

    def best_word_scores(self, vectors: np.ndarray, words: WordEmbeddings) -> np.ndarray:
        """Vectors (N, D) int8 and the words of M captions -> (N, M): what each caption's best word scores.

        For a head of `fit_pooled_words`.
        """
        queries = self.query_vectors(single_words(words))  # (T, D)
        level = queries @ (self.center @ self.photo_map).numpy()  # (T,) what a word scores in the average photo
        starts = (words.lengths.cumsum(0) - words.lengths).numpy()
        best: np.ndarray = np.maximum.reduceat(vectors.astype(np.float32) @ queries.T + level, starts, axis=1)
        return best

    def state(self) -> dict[str, np.ndarray]:
        """As arrays by name."""
        return {field.name: getattr(self, field.name).numpy() for field in fields(self)}

    @classmethod
    def of_state(cls, state: Mapping[str, np.ndarray]) -> "PooledHead":
        """From what `state` returned. Raises MatcherError on anything else."""
        try:
            head = cls(**{name: torch.from_numpy(np.array(array, np.float32)) for name, array in state.items()})
            (C, E), (F, D) = head.codewords.shape, head.photo_map.shape
        except (TypeError, ValueError) as error:
            raise MatcherError(f"not the arrays of a pooled head ({error})") from error
        if head.center.shape != (C + E,) or F != C + E or head.query_map.shape != (F, D):
            raise MatcherError("the arrays of a pooled head do not fit each other")
        return head


@torch.inference_mode()
def fit_pooled(
    regions: Tensor, words: WordEmbeddings, similarity: np.ndarray, *, dimensions: int = DIMENSIONS, seed: int = 0
) -> PooledHead:
    """Fit a head to exact similarities; the same numbers give the same head.

    Args:
        regions: (N, K, E) embeddings of some photos of the gallery.
        words: of M captions, other than those that the recall is measured with.
        similarity: (N, M) between them, exact.
        dimensions: D.
        seed: of k-means' start.

    Raises:
        MatcherError: fewer than two photos, or shapes that do not fit.
    """
    if len(regions) < 2 or similarity.shape != (len(regions), len(words.lengths)):
        raise MatcherError(
            f"similarity {similarity.shape} of {len(regions)} photos and {len(words.lengths)} captions; "
            "expected one number for each pair, of two photos or more"
        )
    every = normalize(words.pack(torch.arange(len(words.lengths))).float().cpu(), dim=-1)  # (T, E)
    codewords = _spherical_kmeans(every, CODEWORDS, seed)
    photos, queries = photo_features(regions.cpu(), codewords), query_features(words, codewords)
    center = photos.mean(0)
    form = _bilinear_form(
        queries.double(), (photos - center).double(), torch.from_numpy(similarity).double(), codewords
    )
    query_map, photo_map = _factors(form, queries.double(), (photos - center).double(), dimensions)
    scale = ((photos - center).double() @ photo_map).abs().amax(0).clamp_min(1e-12) / LARGEST  # (D,)
    return PooledHead(codewords, center, (photo_map / scale).float(), (query_map * scale).float())


@torch.inference_mode()
def fit_pooled_words(
    regions: Tensor, words: WordEmbeddings, *, dimensions: int = DIMENSIONS, seed: int = 0
) -> PooledHead:
    """Fit a head to what single words find in photos, whatever the similarity; the arguments are those of `fit_pooled`."""
    every = single_words(words).words[:, 0].float().cpu()  # (T, E)
    every = normalize(
        every[torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:MOST_SINGLE_WORDS]], dim=-1
    )
    found = photo_features(regions.cpu(), every)[:, : len(every)]
    return fit_pooled(
        regions, PaddedWords(every[:, None], [1] * len(every)), found.numpy(), dimensions=dimensions, seed=seed
    )


def single_words(words: WordEmbeddings) -> PaddedWords:
    """The T words of M captions, each as a caption of one word."""
    packed = words.pack(torch.arange(len(words.lengths)))
    return PaddedWords(packed[:, None], [1] * len(packed))


def photo_features(regions: Tensor, codewords: Tensor) -> Tensor:
    """(N, K, E) and (C, E) -> (N, F): what each codeword finds in a photo, and the photo's mean region."""
    rows = []
    for block in regions.float().split(BLOCK):
        block = normalize(block, dim=-1)
        scores = (block @ codewords.T).mT  # (n, C, K)
        weights = (TEMPERATURE * scores).softmax(-1)
        squares = ((weights @ (block @ block.mT)) * weights).sum(-1)  # of the length of what is attended to
        cosines = (weights * scores).sum(-1) / squares.clamp_min(1e-12).sqrt()
        rows.append(torch.cat([cosines, normalize(block.mean(1), dim=-1)], dim=1))
    return torch.cat(rows)


def query_features(words: WordEmbeddings, codewords: Tensor) -> Tensor:
    """Words of M captions and (C, E) -> (M, F): which codewords a caption consists of, and its mean word."""
    lengths = words.lengths
    packed = normalize(words.pack(torch.arange(len(lengths))).float().cpu(), dim=-1)  # (T, E)
    nearest, places = (packed @ codewords.T).topk(min(NEAREST, len(codewords)), dim=1)
    spread = torch.zeros(len(packed), len(codewords)).scatter_(1, places, (SPREAD * nearest).softmax(1))
    caption_of = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    sums = torch.zeros(len(lengths), len(codewords) + packed.shape[1])
    sums.index_add_(0, caption_of, torch.cat([spread, packed], dim=1))
    means = sums / lengths[:, None]
    return torch.cat([means[:, : len(codewords)], normalize(means[:, len(codewords) :], dim=1)], dim=1)


def _spherical_kmeans(vectors: Tensor, count: int, seed: int) -> Tensor:
    """At most `count` centres of unit vectors (T, E), of unit length: (C, E)."""
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))
    vectors = vectors[order[:MOST_WORDS]]
    centres = torch.unique(vectors[: 4 * count], dim=0)
    centres = centres[torch.randperm(len(centres), generator=torch.Generator().manual_seed(seed))[:count]]
    for _ in range(ROUNDS):
        sums = torch.zeros_like(centres).index_add_(0, (vectors @ centres.T).argmax(1), vectors)
        lengths = sums.norm(dim=1, keepdim=True)
        centres = torch.where(lengths > 0, sums / lengths.clamp_min(1e-12), centres)
    return centres


def _bilinear_form(queries: Tensor, photos: Tensor, similarity: Tensor, codewords: Tensor) -> Tensor:
    """(F, F) that makes queries (M, F) and centred photos (N, F) give the similarity (N, M), each query's mean apart."""
    wanted = (similarity - similarity.mean(0)).T  # (M, N)
    split = len(codewords)
    parts = [queries[:, :split] @ photos[:, :split].T, queries[:, split:] @ photos[:, split:].T]
    weights = torch.linalg.lstsq(torch.stack([part.flatten() for part in parts], 1), wanted.flatten()[:, None]).solution
    diagonal = weights[:, 0].repeat_interleave(torch.tensor([split, queries.shape[1] - split]))
    rest = wanted - queries @ (diagonal[:, None] * photos.T)
    left, right = _ridged(queries.T @ queries), _ridged(photos.T @ photos)
    fitted = torch.linalg.solve(left, queries.T @ rest @ photos)
    return torch.diag(diagonal) + torch.linalg.solve(right, fitted, left=False)


def _ridged(square: Tensor) -> Tensor:
    return square + RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)


def _factors(form: Tensor, queries: Tensor, photos: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
    """Maps (F, D) of queries and photos whose product is nearest to the form, as those queries and photos are spread."""
    roots = []
    for features in (queries, photos):
        values, vectors = torch.linalg.eigh(features.T @ features / len(features))
        values = (values + 1e-4 * values.mean()).clamp_min(1e-12).sqrt()
        roots.append(((vectors * values) @ vectors.T, (vectors / values) @ vectors.T))
    (query_root, query_inverse), (photo_root, photo_inverse) = roots
    left, values, right = torch.linalg.svd(query_root @ form @ photo_root)
    D = min(dimensions, len(values))
    return query_inverse @ left[:, :D] * values[:D].sqrt(), photo_inverse @ right[:D].T * values[:D].sqrt()
