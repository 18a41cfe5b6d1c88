"""Region features and captions -> embeddings in the joint space.

Letters: B images or captions, K regions, L words, D feature dimensions, E joint space, W word embedding.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import PackedSequence

from matcher.config import HEADS, ModelConfig

NORM_EPS = 1e-8  # added to the norm, as published


def l2_normalize(vectors: Tensor) -> Tensor:
    """Vectors (…, E) divided by their length; in float32 whatever comes in."""
    vectors = vectors.float()
    return vectors / (vectors.square().sum(-1, keepdim=True).clamp_min(1e-24).sqrt() + NORM_EPS)


def beside(learned: Tensor, names: Tensor, share: float) -> Tensor:
    """Two vectors as one (…, E): the product of two such is (1 - share) of the first parts' and share of the second's."""
    return torch.cat([learned * (1 - share) ** 0.5, names * share**0.5], -1)


class ClassNames(nn.Module):
    """A region as the names of its classes, weighted by their probabilities: what the image network knows beyond the captions.

    ConSE (Norouzi et al., *Zero-Shot Learning by Convex Combination of Semantic Embeddings*, ICLR 2014). The names are
    embedded by the text encoder, where a caption's words are without any training. Nothing here is trained.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.classifier = nn.Linear(config.feature_dim, config.classes).requires_grad_(False)
        self.register_buffer("names", torch.zeros(config.classes, config.class_dim))
        self.names: Tensor

    def forward(self, features: Tensor) -> Tensor:
        """(B, K, D) -> (B, K, class_dim): of length one where one class is certain, and shorter the more there may be."""
        mean = (self.classifier(features).softmax(-1) @ self.names).float()
        return mean / mean.square().sum(-1, keepdim=True).clamp_min(1e-24) ** 0.25  # of the root of its length


class ImageEncoder(nn.Module):
    """A linear layer on every region (Lee et al. 2018, eq. 1), and what later methods add to it."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.normalize = config.image_norm
        learned = config.embed_dim - config.class_dim
        self.fc = nn.Linear(config.feature_dim, learned)
        nn.init.xavier_uniform_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
        if config.image_weight_norm:
            weight_norm(self.fc, dim=None)  # type: ignore[arg-type]  # one length for the whole matrix, as published
        self.mlp: nn.Module | None = None
        if config.image_mlp:
            hidden = learned // 2
            self.mlp = nn.Sequential(
                nn.Linear(config.feature_dim, hidden),
                nn.BatchNorm1d(hidden),
                nn.ReLU(),
                nn.Linear(hidden, learned),
            )
        self.attention: nn.MultiheadAttention | None = None
        if config.image_attention:
            self.attention_norm = nn.LayerNorm(learned)
            self.attention = nn.MultiheadAttention(learned, HEADS, batch_first=True)
        self.class_share = config.class_share
        self.class_names = ClassNames(config) if config.classes else None

    def forward(self, features: Tensor) -> Tensor:
        """(B, K, D) -> (B, K, E) float32."""
        embeddings = self.fc(features)
        if self.mlp is not None:
            embeddings = embeddings + self.mlp(features.flatten(0, 1)).view_as(embeddings)
        if self.attention is not None:
            normed = self.attention_norm(embeddings)
            embeddings = embeddings + self.attention(normed, normed, normed, need_weights=False)[0]
        embeddings = l2_normalize(embeddings) if self.normalize else embeddings.float()
        if self.class_names is not None:
            embeddings = beside(embeddings, self.class_names(features), self.class_share)
        return embeddings


class GruEncoder(nn.Module):
    """A GRU over word embeddings, both directions averaged (Lee et al. 2018, eq. 2 to 4)."""

    def __init__(self, config: ModelConfig, vocabulary_size: int):
        super().__init__()
        self.normalize = config.text_norm
        self.bidirectional = config.bidirectional
        self.embed = nn.Embedding(vocabulary_size, config.word_dim)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        self.rnn = nn.GRU(
            config.word_dim,
            config.embed_dim,
            config.num_layers,
            batch_first=True,
            bidirectional=config.bidirectional,
        )

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Token ids (B, L) padded with 0 and lengths (B,) on the CPU -> (B, L, E) float32, zero behind each length.

        The real words alone are packed, encoded, normalised and put into place. `pad_packed_sequence` would do, but its
        backward copies the whole output once for every distinct length: a third of a training step on CPU.
        """
        places, batch_sizes = _time_major(lengths, tokens.shape[1])
        places = places.to(tokens.device, non_blocking=True)
        packed = PackedSequence(self.embed(tokens.flatten()[places]), batch_sizes)
        outputs = self.rnn(packed)[0].data  # (T, E), or (T, 2 E)
        if self.bidirectional:
            forward, backward = outputs.chunk(2, dim=-1)
            outputs = (forward + backward) / 2
        outputs = l2_normalize(outputs) if self.normalize else outputs.float()
        padded = outputs.new_zeros(tokens.numel(), outputs.shape[-1]).index_copy(0, places, outputs)
        return padded.view(*tokens.shape, -1)


def _time_major(lengths: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Where the words of a packed sequence stand in the flat (B L) batch, and how many captions have a word t.

    lengths (B,) on the CPU. Returns (T,) and (max length,), both on the CPU: longest captions first, word by word.
    """
    order = torch.argsort(lengths, descending=True, stable=True)
    alive = torch.arange(int(lengths.max()))[:, None] < lengths[order]  # (max length, B)
    word, caption = alive.nonzero(as_tuple=True)
    return order[caption] * longest + word, alive.sum(1)
