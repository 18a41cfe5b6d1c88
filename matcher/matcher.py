"""What a matcher is: the one place that training, evaluation, search and explanation know of it.

A method is a subclass that gives a `score`, an `explain`, and encoders where those of SCAN do not serve; an entry in
`matcher/methods.py` and its name in `ModelConfig.matcher` make it known to every command. `matcher/chan.py` is the shortest.

Letters: B batch, N images, M captions, K regions, L words, T words of some captions together, D feature dimensions, E joint space.
"""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from matcher.attention import Attention
from matcher.config import ModelConfig
from matcher.encoders import GruEncoder, ImageEncoder
from matcher.errors import MatcherError
from matcher.similarity import RegionEmbeddings, WordEmbeddings, batch_similarity, similarity_matrix
from matcher.transformer import Tokens, TransformerEncoder
from matcher.vocabulary import Vocabulary


class PairExplanation(NamedTuple):
    """What explains the score of one image and one caption."""

    score: Tensor  # ()
    attention: Tensor  # (L, K); rows sum to one where words attend to regions, columns where regions attend to words
    contributions: Tensor  # (L, K) what each word and region adds to the score


class Matcher(nn.Module):
    """Both encoders and the similarity between what they give: a set of vectors a side, or one vector a side."""

    # K = L = 1: the similarity is a dot product, which any vector index finds exactly
    one_vector: ClassVar[bool] = False
    observes: ClassVar[bool] = False  # training shows it each batch's similarity

    def __init__(self, config: ModelConfig, vocabulary: Tokens):
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self.image_encoder = ImageEncoder(config)
        self.text_encoder: GruEncoder | TransformerEncoder
        if isinstance(vocabulary, Vocabulary):
            self.text_encoder = GruEncoder(config, len(vocabulary))
        else:
            self.text_encoder = TransformerEncoder(config, vocabulary)

    # What a method defines.

    @abstractmethod
    def score(self, regions: Tensor, packed: Tensor, groups: list[tuple[int, int]]) -> Tensor:
        """The similarity of encoded images and captions, differentiable.

        regions: (N, K, E); packed: (T, E), the words of M captions one after another, shortest captions first.
        groups: (captions, words in each) of each length. Returns (M, N) float32, larger is better.
        """

    def score_photos(self, regions: Tensor, packed: Tensor, groups: list[tuple[int, int]]) -> Tensor:
        """As `score`, of photos to photos: packed are their regions, (M K, E)."""
        return self.score(regions, packed, groups)

    @abstractmethod
    def explain(self, regions: Tensor, words: Tensor, direction: Attention | None = None) -> PairExplanation:
        """What makes the score of one image and one caption.

        regions: (K, E) of `image_parts`; words: (L, E) of `caption_parts`.
        direction: in place of the model's own. Raises MatcherError where it has but one.
        """

    @property
    def direction(self) -> Attention:
        """Which side attends to the other."""
        return "t2i"

    # What methods with encoders of their own redefine.

    def encode_images(self, features: Tensor) -> Tensor:
        """Region features (B, K, D) -> embeddings (B, K, E); (B, 1, E) of one vector."""
        return self.image_encoder(features)

    def encode_tokens(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Token ids (B, L) and lengths (B,) on the CPU -> word embeddings (B, L, E); (B, 1, E) of one vector."""
        return self.text_encoder(tokens.to(self.device, non_blocking=True), lengths)

    def image_parts(self, features: Tensor) -> Tensor:
        """Features (K, D) of one image -> (K, E), a vector for each region, for `explain`."""
        return self.encode_images(features[None])[0]

    def caption_parts(self, caption: str) -> Tensor:
        """One caption -> (L, E), a vector for each word, start and end included, for `explain`."""
        return self.encode_captions([caption])[0][0]

    def observe(
        self, regions: Tensor, words: Tensor, lengths: Tensor, similarity: Tensor, image_of_caption: Tensor
    ) -> None:
        """Learn from a training batch what no gradient teaches, where `observes`: as of `similarity`, and (M,) right images."""

    # What callers use; the same for every method.

    def remember(self, captions: Iterable[np.ndarray], *, progress: bool = False) -> None:
        """Encode captions, each as its token ids (L,), before training meets them again and again: where the text encoder is frozen."""
        if isinstance(self.text_encoder, TransformerEncoder) and self.text_encoder.frozen:
            self.text_encoder.frozen.remember(captions, self.device, progress=progress)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.image_encoder.fc.bias.device

    def encode_captions(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions -> word embeddings (B, L, E) and lengths (B,) on the CPU, start and end included."""
        tokens, lengths = pad([self.vocabulary.encode(caption) for caption in captions])
        return self.encode_tokens(tokens, lengths), self.embedded_lengths(lengths)

    def embedded_lengths(self, lengths: Tensor) -> Tensor:
        """Vectors of each caption, from its number of tokens (B,)."""
        return torch.ones_like(lengths) if self.one_vector else lengths

    def similarity(self, regions: Tensor, words: Tensor, lengths: Tensor) -> Tensor:
        """Embeddings (N, K, E), (M, L, E) and lengths (M,) in tokens -> similarity (N, M), differentiable."""
        return batch_similarity(regions, words, self.embedded_lengths(lengths), self.score)

    def similarities(
        self, regions: RegionEmbeddings, words: WordEmbeddings, *, between_photos: bool = False, **options: Any
    ) -> np.ndarray:
        """`similarity` of whole collections: (N, M) float32.

        Args:
            regions: (N, K, E) of images.
            words: of M captions, or with `between_photos` the regions of M photos.
            options: of `matcher.similarity.similarity_matrix`.
        """
        return similarity_matrix(regions, words, self.score_photos if between_photos else self.score, **options)


def only_direction(model: Matcher, direction: Attention | None) -> None:
    """Refuse a direction that a method has not. Raises MatcherError."""
    if direction not in (None, model.direction):
        raise MatcherError(
            f"attention {direction}: {model.config.matcher} has {model.direction} attention alone; leave it out"
        )


def pad(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token id lists -> (B, L) padded with 0, and lengths (B,)."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return pad_sequence(list(map(torch.tensor, sequences)), batch_first=True), lengths
