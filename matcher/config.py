"""What a SCAN model is and how it is trained. Every field is documented where it stands."""

from dataclasses import dataclass

from matcher.attention import check_options
from matcher.errors import MatcherError


@dataclass(frozen=True)
class ModelConfig:
    """The defaults are the paper's t2i AVG model."""

    # similarity
    attention: str = "t2i"  # "t2i": words attend to regions; "i2t": regions attend to words
    normalization: str = "clipped_l2norm"  # of the scores, over the queries; or l2norm, clipped_l1norm, l1norm, …
    pooling: str = "Mean"  # of the queries' cosines: LogSumExp, Mean, Max, Sum
    softmax_temperature: float = 9.0  # λ of the attention's softmax; the paper: 9 for t2i, 4 for i2t
    lse_temperature: float = 6.0  # λ of the LogSumExp; the paper: 6 for t2i; for i2t 5 (Flickr30K) or 20 (COCO)

    # encoders
    text_encoder: str = "gru"  # or a transformers encoder: its hub name, or a folder
    feature_dim: int = 2048  # D, of the region features; taken from the stores
    embed_dim: int = 1024  # E, of the joint space
    word_dim: int = 300  # of the GRU's word embeddings
    num_layers: int = 1  # of the GRU
    bidirectional: bool = True  # GRU in both directions, outputs averaged
    image_norm: bool = True  # L2-normalise region embeddings
    text_norm: bool = True  # L2-normalise word embeddings
    image_weight_norm: bool = False  # weight-normalised image layer
    image_mlp: bool = False  # two layers beside the image layer, added to it (VSE∞, Chen et al. 2021)

    def __post_init__(self) -> None:
        check_options(self.attention, self.normalization, self.pooling)
        _at_least_one(self, "feature_dim", "embed_dim", "word_dim", "num_layers")
        if self.softmax_temperature <= 0 or self.lse_temperature <= 0:
            raise MatcherError("softmax_temperature and lse_temperature must be positive: they multiply")


@dataclass(frozen=True)
class FitConfig:
    """The defaults are the paper's Flickr30K recipe, with one epoch of warm-up on all negatives."""

    epochs: int = 30
    batch_size: int = 128  # captions per step
    optimizer: str = "adam"  # "adam", as published, or "adamw"
    weight_decay: float = 1e-4  # of adamw
    learning_rate: float = 2e-4
    text_encoder_factor: float = 0.1  # a pretrained text encoder learns at this share of the rate
    decay_epochs: tuple[int, ...] = (15,)  # the learning rate is multiplied by `decay_factor` after each of these
    decay_factor: float = 0.1
    grad_clip: float = 2.0  # largest gradient norm; 0: no clipping
    margin: float = 0.2  # of the hinge
    hardest_negatives: bool = True  # else the sum over all negatives
    warmup_epochs: int = 1  # epochs on all negatives first: hardest negatives alone can sit on their plateau for long
    validate_every: int = 500  # steps; and always at an epoch's end
    early_stopping: int = 0  # stop after so many validations without improvement; 0: never
    region_dropout: float = 0.0  # share of each image's regions left out of a step, at most; 0.2 in VSE∞
    word_dropout: float = 0.0  # chance of each word (not start and end) to be left out of a step
    word_vectors: str = ""  # text file of "word number number …" (GloVe) to start the word embeddings from
    precision: str = "float32"  # "float32", "bf16" or "fp16" (autocast)
    min_word_count: int = 4  # rarer words of train and dev are unknown
    seed: int = 0
    log_every: int = 10  # steps between rows of metrics.jsonl

    def __post_init__(self) -> None:
        _at_least_one(self, "epochs", "batch_size", "validate_every", "log_every", "min_word_count")
        if self.precision not in ("float32", "bf16", "fp16"):
            raise MatcherError(f"precision {self.precision!r}: expected float32, bf16 or fp16")
        if self.optimizer not in ("adam", "adamw"):
            raise MatcherError(f"optimizer {self.optimizer!r}: expected adam or adamw")
        for name in ("region_dropout", "word_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise MatcherError(f"{name} {getattr(self, name)}: expected 0 to less than 1")
        if self.batch_size < 2:
            raise MatcherError("batch_size 1: a lone caption has no negatives; expected at least 2")
        if self.learning_rate <= 0:
            raise MatcherError(f"learning_rate {self.learning_rate}: expected a positive number")


def _at_least_one(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise MatcherError(f"{name} {getattr(config, name)}: expected at least 1")
