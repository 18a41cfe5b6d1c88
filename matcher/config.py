"""What a model is and how it is trained. A field's help, choices and range stand with it, and every value is checked."""

import dataclasses
from typing import Literal, get_args

from configs.fields import check_limits, knob
from matcher.attention import Attention, Normalization, Pooling
from matcher.errors import MatcherError

HEADS = 8  # of the attention between regions
Method = Literal["scan", "chan", "vse", "naaf"]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The defaults are the paper's t2i AVG model."""

    matcher: str = knob("scan", "Method: what the similarity is.", choices=get_args(Method))

    # similarity
    attention: str = knob(
        "t2i",
        "t2i: words attend to regions; i2t: regions attend to words.",
        choices=get_args(Attention),
        of={"matcher": ("scan",)},
    )
    normalization: str = knob(
        "clipped_l2norm", "Of the scores, over the queries.", choices=get_args(Normalization), of={"matcher": ("scan",)}
    )
    pooling: str = knob("Mean", "Of the queries' cosines.", choices=get_args(Pooling), of={"matcher": ("scan", "chan")})
    softmax_temperature: float = knob(
        9.0,
        "λ of the attention's softmax; the paper: 9 for t2i, 4 for i2t.",
        above=0,
        max=1000,
        of={"matcher": ("scan", "naaf")},
    )
    lse_temperature: float = knob(
        6.0,
        "λ of the LogSumExp; the paper: 6 for t2i; for i2t 5 (Flickr30K) or 20 (COCO).",
        above=0,
        max=1000,
        of={"pooling": ("LogSumExp",)},
    )

    # encoders
    text_encoder: str = knob("gru", "gru, or a transformers encoder: hub name, folder, or package:NAME (installed).")
    text_encoder_frozen: bool = knob(False, "A transformers encoder is not trained, and outside of the model's file.")
    feature_dim: int = knob(2048, "D, of the region features; taken from the stores.", min=1, max=65536)
    embed_dim: int = knob(1024, "E, of the joint space.", min=1, max=65536)
    word_dim: int = knob(300, "Of the GRU's word embeddings.", min=1, max=65536, of={"text_encoder": ("gru",)})
    num_layers: int = knob(1, "Of the GRU.", min=1, max=100, of={"text_encoder": ("gru",)})
    bidirectional: bool = knob(True, "GRU in both directions, outputs averaged.", of={"text_encoder": ("gru",)})
    image_norm: bool = knob(True, "L2-normalise region embeddings.")
    text_norm: bool = knob(True, "L2-normalise word embeddings.")
    image_weight_norm: bool = knob(False, "Weight-normalised image layer.")
    image_mlp: bool = knob(False, "Two layers beside the image layer, added to it, as in VSE∞.")
    image_attention: bool = knob(False, "Self-attention of 8 heads over the regions, as in CHAN with a GRU.")
    classes: int = knob(0, "Classes whose names join the embeddings (ConSE); 0: none.", min=0, max=65536)
    class_dim: int = knob(0, "The part of embed_dim that they take: the text encoder's width.", min=0, max=65536)
    class_share: float = knob(0.3, "Their part of every product, where the class is certain.", above=0, below=1)

    @property
    def variant(self) -> str:
        """A name for what is trained, such as t2i_mean."""
        return f"{self.attention}_{self.pooling.lower()}" if self.matcher == "scan" else self.matcher

    def __post_init__(self) -> None:
        check_limits(self, MatcherError)
        if self.text_encoder_frozen and self.text_encoder == "gru":
            raise MatcherError("text_encoder_frozen: a GRU starts from nothing; expected a transformers text_encoder")
        if bool(self.classes) != bool(self.class_dim) or self.class_dim >= self.embed_dim:
            raise MatcherError(
                f"classes {self.classes}, class_dim {self.class_dim}, embed_dim {self.embed_dim}: expected class_dim below "
                "embed_dim, and 0 where there are no classes"
            )
        if self.classes and (self.text_encoder == "gru" or not (self.image_norm and self.text_norm)):
            raise MatcherError("classes: expected a transformers text_encoder, image_norm=true and text_norm=true")
        if self.image_attention and (self.embed_dim - self.class_dim) % HEADS:
            raise MatcherError(f"embed_dim {self.embed_dim}: expected a multiple of {HEADS} where image_attention=true")


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """The defaults are the paper's Flickr30K recipe, with one epoch of warm-up on all negatives."""

    epochs: int = knob(30, "Passes over the captions.", min=1, max=100_000)
    batch_size: int = knob(128, "Captions per step; one alone has no negatives.", min=2, max=65536)
    optimizer: str = knob("adam", "adam, as published, or adamw.", choices=("adam", "adamw"))
    weight_decay: float = knob(1e-4, "Of adamw.", min=0, max=1, of={"optimizer": ("adamw",)})
    learning_rate: float = knob(2e-4, "Of the first epochs.", above=0, max=10)
    text_encoder_factor: float = knob(
        0.1, "A pretrained text encoder learns at this share of the rate.", min=0, max=100
    )
    learning_rate_warmup: int = knob(0, "Steps in which the learning rate rises from zero.", min=0)
    schedule: str = knob(
        "step", "step (decay_epochs), as published, or cosine to zero at the end.", choices=("step", "cosine")
    )
    decay_epochs: tuple[int, ...] = knob(
        (15,),
        "The learning rate is multiplied by `decay_factor` after each of these.",
        min=0,
        of={"schedule": ("step",)},
    )
    decay_factor: float = knob(0.1, "See `decay_epochs`.", above=0, max=1, of={"schedule": ("step",)})
    grad_clip: float = knob(2.0, "Largest gradient norm; 0: no clipping.", min=0)
    ema: float = knob(
        0.0, "Validate and keep an average of the weights that decays so; 0: the last ones; e.g. 0.999.", min=0, below=1
    )
    loss: str = knob("hinge", "hinge, as published, or infonce (softmax over the batch).", choices=("hinge", "infonce"))
    infonce_temperature: float = knob(
        0.05, "Of infonce at the start; learned, at least 0.01.", min=0.01, max=1, of={"loss": ("infonce",)}
    )
    margin: float = knob(0.2, "Of the hinge.", min=0, max=100, of={"loss": ("hinge",)})
    hardest_negatives: bool = knob(True, "Of the hinge; else the sum over all negatives.", of={"loss": ("hinge",)})
    warmup_epochs: int = knob(
        1,
        "Of the hinge: epochs on all negatives first, as hardest ones alone can stay on a plateau for long.",
        min=0,
        of={"loss": ("hinge",)},
    )
    validate_every: int = knob(500, "Steps; a validation also ends every epoch.", min=1)
    early_stopping: int = knob(0, "Stop after so many validations without improvement; 0: never.", min=0)
    checkpoint_minutes: float = knob(5.0, "Time between checkpoints; each validation writes one too.", min=0)
    region_dropout: float = knob(
        0.0, "Largest share of each image's regions left out of a step; 0.2 in VSE∞.", min=0, below=1
    )
    word_dropout: float = knob(0.0, "Chance of each word (not start and end) to be left out of a step.", min=0, below=1)
    word_vectors: str = knob("", 'Text file of "word number number …" (GloVe) to start the word embeddings from.')
    precision: str = knob("float32", "float32, or bf16 or fp16 (autocast).", choices=("float32", "bf16", "fp16"))
    min_word_count: int = knob(4, "Rarer words of train and dev are unknown.", min=1)
    seed: int = knob(0, "Of parameters, order and dropout.", min=0, max=2**63 - 1)
    log_every: int = knob(10, "Steps between rows of metrics.jsonl.", min=1)

    def __post_init__(self) -> None:
        check_limits(self, MatcherError)
