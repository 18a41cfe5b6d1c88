"""What a detector is: the network's shape, its box geometry, its thresholds. Travels inside its weights file."""

from dataclasses import dataclass
from itertools import pairwise

from configs.fields import check_limits, knob
from detector.errors import DetectorError

STRIDE = 16  # pixels of the resized image per cell of the res4 feature map
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@dataclass(frozen=True)
class DetectorConfig:
    """The defaults are the published Visual Genome network (bottom-up attention, ResNet-101 C4)."""

    # network
    depth: int = knob(101, "of the ResNet: 18, 34 (basic blocks), 50, 101, 152 (bottlenecks)", choices=tuple(BLOCKS))
    width: int = knob(64, "channels of the stem; every stage scales with it", min=1, max=4096)
    stride_in_1x1: bool = knob(
        True, "of bottlenecks: in their first 1x1 convolution (Caffe), else in the 3x3 (torchvision)"
    )
    res5_dilation: int = knob(2, "res5 keeps its stride at 1 and dilates instead", min=1, max=16)
    rpn_channels: int = knob(512, "of the region proposal head", min=1, max=1 << 16)
    anchor_sizes: tuple[float, ...] = knob((64.0, 128.0, 256.0, 512.0), "pixels of the resized image", above=0, max=1e6)
    anchor_ratios: tuple[float, ...] = knob((0.5, 1.0, 2.0), "height / width", above=0, max=1e3)
    pooled_size: int = knob(14, "RoIPool output, cells a side", min=1, max=256)
    num_objects: int = knob(1600, "without background", min=1, max=1_000_000)
    num_attributes: int = knob(400, 'without "no attribute"; 0: no attribute head', min=0, max=1_000_000)
    class_embedding_dim: int = knob(256, "of the attribute head", min=1, max=1 << 16)
    attribute_hidden_dim: int = knob(512, "of the attribute head", min=1, max=1 << 16)

    # geometry
    geometry: str = knob(
        "continuous",
        "boxes: continuous (width = x2 - x1) or inclusive (Caffe: x2 - x1 + 1)",
        choices=("continuous", "inclusive"),
    )
    background: str = knob("last", "column of the background class", choices=("last", "first"))
    box_weights: tuple[float, ...] = knob((10.0, 10.0, 5.0, 5.0), "of the class box deltas", above=0, max=1e6)

    # proposals
    rpn_pre_nms: int = knob(6000, "proposals kept before NMS", min=1, max=10_000_000)
    rpn_post_nms: int = knob(300, "proposals kept after NMS", min=1, max=1_000_000)
    rpn_nms_threshold: float = knob(0.7, "intersection over union", min=0, below=1)
    rpn_min_size: float = knob(0.0, "pixels of the original image", min=0, max=1e6)

    # input
    min_size: int = knob(600, "the short side is resized to this …", min=1, max=100_000)
    max_size: int = knob(1000, "… unless the long side would exceed this", min=1, max=100_000)
    pixel_mean: tuple[float, ...] = knob((102.9801, 115.9465, 122.7717), "BGR", min=-1e6, max=1e6)

    def __post_init__(self) -> None:
        check_limits(self, DetectorError)

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
    steps: int = knob(190_000, "Updates.", min=1, max=1_000_000_000)
    batch_size: int = knob(16, "Images a step, over all processes.", min=1, max=100_000)
    optimizer: str = knob("sgd", "sgd or adamw", choices=OPTIMIZERS)
    learning_rate: float = knob(8e-3, "5e-4 an image", above=0)
    momentum: float = knob(0.9, "of sgd", min=0, below=1)
    weight_decay: float = knob(5e-4, "of all layers but the norms", min=0, max=1e6)
    schedule: str = knob("step", "step: times decay_factor at decay_at; cosine: down to zero", choices=SCHEDULES)
    decay_at: tuple[float, ...] = knob((0.667, 0.889), "as fractions of all steps")
    decay_factor: float = knob(0.1, "see schedule", above=0, max=1e6)
    warmup_steps: int = knob(1000, "steps of a rising learning rate", min=0, max=1_000_000_000)
    grad_clip: float = knob(35.0, "norm of all gradients; 0: not clipped", min=0, max=1e12)
    precision: str = knob("float32", "of backbone and region head; fp16 needs CUDA", choices=PRECISIONS)
    seed: int = knob(0, "of weights, order and samples", min=0, max=2**32 - 1)

    # network
    norm: str = knob("FrozenBN", "BN or SyncBN (over processes) to train from scratch", choices=NORMS)
    frozen_stages: int = knob(2, "parts of the backbone that do not learn: 1 the stem, 2 also res2, …", min=0, max=5)

    # proposals and their samples
    rpn_batch_size: int = knob(256, "anchors an image", min=1, max=1_000_000)
    rpn_positive_fraction: float = knob(0.5, "of these anchors", min=0, max=1)
    rpn_pre_nms: int = knob(12_000, "proposals kept before NMS", min=1, max=10_000_000)
    rpn_post_nms: int = knob(2000, "proposals kept after NMS", min=1, max=1_000_000)
    roi_batch_size: int = knob(128, "proposals an image", min=1, max=1_000_000)
    roi_positive_fraction: float = knob(0.25, "of these proposals", min=0, max=1)
    attribute_weight: float = knob(0.5, "of the attribute loss beside the others", min=0, max=1e6)
    flip: bool = knob(True, "half of the images are mirrored")

    # housekeeping
    checkpoint_every: int = knob(2500, "steps", min=1, max=1_000_000_000)
    evaluate_every: int = knob(20_000, "steps; 0: at the end only", min=0, max=1_000_000_000)

    def __post_init__(self) -> None:
        check_limits(self, DetectorError, "training.")
        bounds = (0.0, *self.decay_at, 1.0)
        if any(left >= right for left, right in pairwise(bounds)):
            raise DetectorError(
                f"training.decay_at {list(self.decay_at)}: expected ascending fractions of the run, such as [0.667, 0.889]"
            )
