"""What a detector is: the network's shape, its box geometry, its thresholds. Travels inside its weights file."""

from dataclasses import dataclass

from detector.errors import DetectorError

STRIDE = 16  # pixels of the resized image per cell of the res4 feature map
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@dataclass(frozen=True)
class DetectorConfig:
    """The defaults are the published Visual Genome network (bottom-up attention, ResNet-101 C4)."""

    # network
    depth: int = 101  # of the ResNet: 18, 34 (basic blocks), 50, 101, 152 (bottlenecks)
    width: int = 64  # channels of the stem; every stage scales with it
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
