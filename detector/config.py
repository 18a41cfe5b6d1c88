"""What a detector is: the network's shape, its box geometry, its thresholds. Travels inside its weights file."""

from dataclasses import dataclass
from itertools import pairwise

from detector.errors import DetectorError

STRIDE = 16  # pixels of the resized image per cell of the res4 feature map
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@dataclass(frozen=True)
class DetectorConfig:
    """The defaults are the published Visual Genome network (bottom-up attention, ResNet-101 C4)."""

    # network
    depth: int = 101  # of the ResNet: 18, 34 (basic blocks), 50, 101, 152 (bottlenecks)
    width: int = 64  # channels of the stem; every stage scales with it
    stride_in_1x1: bool = True  # of bottlenecks: in their first 1x1 convolution (Caffe), else in the 3x3 (torchvision)
    res5_dilation: int = 2  # res5 keeps its stride at 1 and dilates instead
    rpn_channels: int = 512
    anchor_sizes: tuple[float, ...] = (64.0, 128.0, 256.0, 512.0)  # pixels of the resized image
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height / width
    pooled_size: int = 14  # RoIPool output, cells a side
    num_objects: int = 1600  # without background
    num_attributes: int = 400  # without "no attribute"; 0: no attribute head
    class_embedding_dim: int = 256
    attribute_hidden_dim: int = 512

    # geometry
    geometry: str = "continuous"  # boxes: "continuous" (width = x2 - x1) or "inclusive" (Caffe: x2 - x1 + 1)
    background: str = "last"  # column of the background class: "last" or "first"
    box_weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0)  # of the class box deltas

    # proposals
    rpn_pre_nms: int = 6000
    rpn_post_nms: int = 300
    rpn_nms_threshold: float = 0.7
    rpn_min_size: float = 0.0  # pixels of the original image

    # input
    min_size: int = 600  # the short side is resized to this …
    max_size: int = 1000  # … unless the long side would exceed this
    pixel_mean: tuple[float, ...] = (102.9801, 115.9465, 122.7717)  # BGR

    def __post_init__(self) -> None:
        if self.depth not in BLOCKS:
            raise DetectorError(f"depth {self.depth}: expected one of {sorted(BLOCKS)}")
        for field, choices in {"geometry": ("continuous", "inclusive"), "background": ("last", "first")}.items():
            if getattr(self, field) not in choices:
                raise DetectorError(f"{field} {getattr(self, field)!r}: expected one of {', '.join(choices)}")
        if not 0 <= self.rpn_nms_threshold < 1:
            raise DetectorError(f"rpn_nms_threshold {self.rpn_nms_threshold}: expected 0 or more, and less than 1")
        for field in ("rpn_pre_nms", "rpn_post_nms", "min_size", "max_size", "width", "num_objects"):
            if getattr(self, field) < 1:
                raise DetectorError(f"{field} {getattr(self, field)}: expected at least 1")

    @property
    def bottleneck(self) -> bool:
        return self.depth >= 50

    @property
    def feature_dim(self) -> int:
        """D: channels of res5."""
        return self.width * 8 * (4 if self.bottleneck else 1)

    @property
    def num_anchors(self) -> int:
        return len(self.anchor_sizes) * len(self.anchor_ratios)


OPTIMIZERS, SCHEDULES = ("sgd", "adamw"), ("step", "cosine")
NORMS, PRECISIONS = ("FrozenBN", "BN", "SyncBN"), ("float32", "bf16", "fp16")


@dataclass(frozen=True)
class DetectorFitConfig:
    """How a detector is trained. The defaults are those of eight GPUs, after what is known of the published training."""

    # optimisation
    steps: int = 190_000
    batch_size: int = 16  # images a step, over all processes
    optimizer: str = "sgd"  # or adamw
    learning_rate: float = 8e-3  # 5e-4 an image
    momentum: float = 0.9  # of sgd
    weight_decay: float = 5e-4
    schedule: str = "step"  # "step": times decay_factor at decay_at; "cosine": down to zero
    decay_at: tuple[float, ...] = (0.667, 0.889)  # as fractions of all steps
    decay_factor: float = 0.1
    warmup_steps: int = 1000
    grad_clip: float = 35.0  # norm of all gradients; 0: not clipped
    precision: str = "float32"  # of backbone and region head: float32, bf16, fp16 (CUDA)
    seed: int = 0

    # network
    norm: str = "FrozenBN"  # "BN" or "SyncBN" (over processes) to train from scratch
    frozen_stages: int = 2  # parts of the backbone that do not learn: 1 the stem, 2 also res2, …

    # proposals and their samples
    rpn_batch_size: int = 256  # anchors an image
    rpn_positive_fraction: float = 0.5
    rpn_pre_nms: int = 12_000
    rpn_post_nms: int = 2000
    roi_batch_size: int = 128  # proposals an image
    roi_positive_fraction: float = 0.25
    attribute_weight: float = 0.5  # of the attribute loss beside the others
    flip: bool = True  # half of the images are mirrored

    # housekeeping
    checkpoint_every: int = 2500  # steps
    evaluate_every: int = 20_000  # steps; 0: at the end only

    def __post_init__(self) -> None:
        choices = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "norm": NORMS, "precision": PRECISIONS}
        for field, known in choices.items():
            if getattr(self, field) not in known:
                raise DetectorError(f"training.{field} {getattr(self, field)!r}: expected one of {', '.join(known)}")
        least = dict.fromkeys(("steps", "batch_size", "rpn_batch_size", "roi_batch_size", "checkpoint_every"), 1)
        least |= dict.fromkeys(("warmup_steps", "evaluate_every", "grad_clip", "frozen_stages"), 0)
        for field, bound in least.items():
            if getattr(self, field) < bound:
                raise DetectorError(f"training.{field} {getattr(self, field)}: expected at least {bound}")
        bounds = (0.0, *self.decay_at, 1.0)
        if any(left >= right for left, right in pairwise(bounds)):
            raise DetectorError(
                f"training.decay_at {list(self.decay_at)}: expected ascending fractions of the run, such as [0.667, 0.889]"
            )
