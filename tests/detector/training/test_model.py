"""What a detector learns from: anchors, samples and losses; and that what was learnt is what is saved."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detector.boxes import apply_deltas, continuous_cell_anchors, grid_anchors
from detector.config import DetectorConfig, DetectorFitConfig
from detector.detectron2_compat import detectron2_ready
from detector.errors import DetectorError
from detector.model import BoxPredictor, FasterRCNN
from detector.training.fit import build
from detector.training.model import Samples, TrainableDetector, head_losses, initialize, plain_state
from detector.training.trainer import make_optimizer, make_schedule

with detectron2_ready():
    from detectron2.structures import Boxes, ImageList, Instances
    from detectron2.utils.events import EventStorage

CONFIG = DetectorConfig(
    depth=18, width=16, num_objects=3, num_attributes=4, rpn_channels=16, class_embedding_dim=6, attribute_hidden_dim=10,
    anchor_sizes=(16.0, 32.0), pooled_size=4, rpn_pre_nms=200, rpn_post_nms=20,
)  # fmt: skip
RECIPE = DetectorFitConfig(norm="BN", frozen_stages=0, rpn_pre_nms=200, rpn_post_nms=50, roi_batch_size=16)


def record(boxes: list[list[float]], classes: list[int], *, size: tuple[int, int] = (64, 96)) -> dict[str, Any]:
    """An image whose boxes stand out, with the attribute of each class."""
    generator = torch.Generator().manual_seed(sum(classes) + size[1])
    pixels = 20 * torch.randn(3, *size, generator=generator)
    for (x1, y1, x2, y2), kind in zip(np.array(boxes, int).reshape(-1, 4), classes, strict=True):
        pixels[kind, y1:y2, x1:x2] += 120
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    instances.gt_attributes = torch.eye(4, dtype=torch.bool)[instances.gt_classes]
    return {"image": pixels, "instances": instances, "image_id": 0, "height": size[0], "width": size[1], "scale": 1.0}


BATCH = [record([[8, 8, 40, 40], [50, 20, 90, 60]], [0, 2]), record([[4, 4, 36, 28]], [1], size=(48, 80))]
EMPTY = [record([], []), record([], [])]


def detector(**changes: Any) -> TrainableDetector:
    torch.manual_seed(0)
    recipe = DetectorFitConfig(**{**RECIPE.__dict__, **changes})
    return build(CONFIG, recipe, None)


def losses(model: nn.Module, batch: list[dict]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    with EventStorage():
        return model(batch)


def test_trains_on_the_anchors_that_it_is_extracted_with() -> None:
    model = detector()
    (anchors,) = model.rpn.anchor_generator([torch.zeros(1, 8, 2, 3)])
    cells = continuous_cell_anchors(CONFIG.anchor_sizes, CONFIG.anchor_ratios)
    torch.testing.assert_close(anchors.tensor, grid_anchors(cells, 2, 3, 16))
    names = [name for name, _ in model.named_parameters()]
    assert len(names) == len(set(names))
    assert all(name.startswith("model.") for name in names)


@torch.no_grad()
def test_the_proposals_of_training_are_those_of_extraction() -> None:
    """detectron2 decodes the ones, our own code the others."""
    model = detector(rpn_pre_nms=200, rpn_post_nms=20).eval()
    features = torch.randn(1, 64, 4, 6, generator=torch.Generator().manual_seed(3)).mul(5).relu()
    images = ImageList(torch.zeros(1, 3, 64, 96), [(64, 96)])
    (theirs,), _ = model.rpn(images, {"res4": features})
    (ours,) = model.model.proposals(features, [(64, 96)], [1.0])
    torch.testing.assert_close(theirs.proposal_boxes.tensor, ours, rtol=1e-4, atol=1e-3)


def test_anchors_are_labelled_by_their_overlap() -> None:
    model = detector()
    cells = grid_anchors(model.model.cell_anchors, 4, 6, 16)
    true = Instances((64, 96))
    true.gt_boxes = Boxes(cells[[37]] + torch.tensor([[1.0, 0, 1, 0]]))  # moved a pixel from an anchor of 16 pixels
    with EventStorage():
        ((labels,), (matched,)) = model.rpn.label_and_sample_anchors([Boxes(cells)], [true])
    assert torch.nonzero(labels == 1)[:, 0].tolist() == [37]
    torch.testing.assert_close(matched[37], true.gt_boxes.tensor[0])
    assert int((labels == 0).sum()) == len(cells) - 1 - int((labels == -1).sum())
    assert int((labels >= 0).sum()) <= RECIPE.rpn_batch_size
    none = Instances((64, 96))
    none.gt_boxes = Boxes(torch.zeros(0, 4))
    with EventStorage():
        ((labels,), _) = model.rpn.label_and_sample_anchors([Boxes(cells)], [none])
    assert not (labels == 1).any()


def head() -> BoxPredictor:
    torch.manual_seed(2)
    predictor = BoxPredictor(CONFIG)
    for parameter in predictor.parameters():
        nn.init.normal_(parameter, std=0.3)
    return predictor


def samples() -> Samples:
    """Four proposals: class 0 with two attributes, background, class 2 with none, class 1 with one."""
    proposals = torch.tensor([[0.0, 0, 10, 20], [5, 5, 9, 9], [2, 2, 12, 6], [1, 1, 5, 9]])
    boxes = proposals + torch.tensor([[1.0, -1, 3, 2], [0, 0, 0, 0], [-1, 0, 1, 1], [0, 0, 2, 2]])
    attributes = torch.zeros(4, 4, dtype=torch.bool)
    attributes[0, 1] = attributes[0, 3] = attributes[3, 2] = True
    attributes[1, 0] = True  # of a background proposal: must not count
    return Samples(proposals, torch.tensor([0, 3, 2, 1]), boxes, attributes)


def test_losses_of_the_head_by_hand() -> None:
    predictor, given = head(), samples()
    features = torch.randn(4, CONFIG.feature_dim, generator=torch.Generator().manual_seed(4))
    found = head_losses(predictor, features, given, CONFIG, 0.5)
    assert set(found) == {"loss_cls", "loss_box_reg", "loss_attr"}

    logits = predictor.cls_score(features).double()
    expected = -sum(logits.log_softmax(1)[row, kind] for row, kind in enumerate([0, 3, 2, 1])) / 4
    torch.testing.assert_close(found["loss_cls"].double(), expected, rtol=1e-4, atol=1e-5)

    deltas = predictor.bbox_pred(features).view(4, 3, 4)
    total = 0.0
    for row, kind in ((0, 0), (2, 2), (3, 1)):
        (x1, y1, x2, y2), (u1, v1, u2, v2) = given.proposals[row].tolist(), given.boxes[row].tolist()
        w, h, tw, th = x2 - x1, y2 - y1, u2 - u1, v2 - v1
        wanted = [
            10 * ((u1 + u2) - (x1 + x2)) / 2 / w, 10 * ((v1 + v2) - (y1 + y2)) / 2 / h, 5 * math.log(tw / w), 5 * math.log(th / h),
        ]  # fmt: skip
        for have, want in zip(deltas[row, kind].tolist(), wanted, strict=True):
            error = abs(have - want)
            total += 0.5 * error**2 if error < 1 else error - 0.5
    assert float(found["loss_box_reg"].detach()) == pytest.approx(total / 4, rel=1e-4)

    total = 0.0
    for row, kind, labels in ((0, 0, (1, 3)), (3, 1, (2,))):
        hidden = torch.cat([features[row], predictor.cls_embedding.weight[kind]])  # the true class, not the guessed one
        scores = predictor.attr_score(predictor.fc_attr(hidden).relu()).log_softmax(0)  # over 4 and "none of them"
        total -= sum(float(scores[label].detach()) for label in labels)
    assert float(found["loss_attr"].detach()) == pytest.approx(0.5 * total / 3, rel=1e-4)


def test_the_deltas_asked_for_lead_to_the_true_box() -> None:
    """The loss is zero where `apply_deltas`, which the extraction uses, gives the object's own box."""
    predictor, given = head(), samples()
    nn.init.zeros_(predictor.bbox_pred.weight)
    one = Samples(given.proposals[:1], given.classes[:1], given.boxes[:1], given.attributes[:1])
    features = torch.zeros(1, CONFIG.feature_dim)
    optimizer = torch.optim.LBFGS(predictor.bbox_pred.parameters(), max_iter=100)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = head_losses(predictor, features, one, CONFIG, 0.5)["loss_box_reg"]
        loss.backward()
        return loss

    optimizer.step(step)
    with torch.no_grad():
        moved = apply_deltas(one.proposals, predictor.bbox_pred(features), CONFIG.box_weights, 0.0)[:, 0]
    torch.testing.assert_close(moved, one.boxes, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("rows", [[1], [2], []], ids=["background", "no-attribute", "nothing"])
def test_every_parameter_of_the_head_gets_a_gradient(rows: list[int]) -> None:
    predictor, given = head(), samples()
    part = Samples(given.proposals[rows], given.classes[rows], given.boxes[rows], given.attributes[rows])
    found = head_losses(predictor, torch.ones(len(rows), CONFIG.feature_dim), part, CONFIG, 0.5)
    assert all(torch.isfinite(loss) for loss in found.values())
    assert float(found["loss_attr"].detach()) == 0.0
    sum(found.values()).backward()
    assert all(parameter.grad is not None for parameter in predictor.parameters())


def test_without_attributes_there_is_no_loss_of_them() -> None:
    config = DetectorConfig(**{**CONFIG.__dict__, "num_attributes": 0})
    given = samples()
    given.attributes = given.attributes[:, :0]
    found = head_losses(BoxPredictor(config), torch.ones(4, config.feature_dim), given, config, 0.5)
    assert set(found) == {"loss_cls", "loss_box_reg"}


@pytest.mark.parametrize("batch", [BATCH, EMPTY, [BATCH[0], EMPTY[0]]], ids=["objects", "no-object", "both"])
def test_every_parameter_of_the_network_gets_a_gradient(batch: list[dict]) -> None:
    """Or several processes would wait for each other for ever."""
    model = detector()
    found = losses(model, batch)
    assert set(found) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_attr"}
    assert all(torch.isfinite(loss) for loss in found.values())
    sum(found.values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_padding_changes_no_image_but_at_its_border() -> None:
    """Boxes and sizes are each image's own, though a batch is as large as its largest."""
    model = detector().eval()
    with torch.no_grad():
        together = model(BATCH)
        alone = [model([one])[0] for one in BATCH]
    assert [one["instances"].image_size for one in together] == [(64, 96), (48, 80)]
    torch.testing.assert_close(together[0]["attribute_scores"], alone[0]["attribute_scores"], rtol=1e-3, atol=1e-4)
    assert together[1]["attribute_scores"].shape == (1, 4)
    for one in together:
        height, width = one["instances"].image_size
        boxes = one["instances"].pred_boxes.tensor
        assert len(boxes)
        assert (boxes <= torch.tensor([width, height, width, height])).all()


@torch.no_grad()
def test_images_without_objects_are_judged_too() -> None:
    found = detector().eval()(EMPTY)
    assert [one["attribute_scores"].shape for one in found] == [(0, 4), (0, 4)]


@torch.no_grad()
def test_detections_are_in_pixels_of_the_original_image() -> None:
    model = detector().eval()
    (small,) = model([BATCH[0]])
    (large,) = model([BATCH[0] | {"height": 128, "width": 192, "scale": 0.5}])
    torch.testing.assert_close(2 * small["instances"].pred_boxes.tensor, large["instances"].pred_boxes.tensor)


def test_frozen_stages_do_not_learn() -> None:
    torch.manual_seed(0)
    start = plain_state(FasterRCNN(CONFIG))
    model = build(CONFIG, DetectorFitConfig(**{**RECIPE.__dict__, "norm": "FrozenBN", "frozen_stages": 2}), start)
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    optimizer = make_optimizer(model, DetectorFitConfig(learning_rate=0.1))
    sum(losses(model.train(), BATCH).values()).backward()
    optimizer.step()
    after = model.model.state_dict()
    same = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    assert {name for name in before if name.startswith(("backbone.stem", "backbone.res2"))} <= same
    assert {name for name in before if ".norm." in name} <= same
    learnt = [name for name in before if name.endswith(("conv1.weight", "conv2.weight")) and "res2" not in name]
    assert not same & {name for name in learnt if "stem" not in name}
    assert not any(name.startswith(("roi_heads.box_predictor", "proposal_generator")) for name in same)


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_what_is_saved_detects_as_what_was_trained(norm: str) -> None:
    torch.manual_seed(0)
    start = plain_state(FasterRCNN(CONFIG)) if norm == "FrozenBN" else None
    frozen = 0 if norm == "BN" else 2
    model = build(CONFIG, DetectorFitConfig(**{**RECIPE.__dict__, "norm": norm, "frozen_stages": frozen}), start)
    for _ in range(3):  # statistics that are not those of a fresh network
        sum(losses(model.train(), BATCH).values()).backward()
    model.eval()
    saved = plain_state(model.model)
    assert not any("num_batches_tracked" in name for name in saved)
    fresh = FasterRCNN(CONFIG)
    fresh.load_state_dict(saved)
    again = TrainableDetector(fresh.eval(), RECIPE).eval()
    with torch.no_grad():
        for left, right in zip(model(BATCH), again(BATCH), strict=True):
            torch.testing.assert_close(left["attribute_scores"], right["attribute_scores"], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(
                left["instances"].pred_boxes.tensor, right["instances"].pred_boxes.tensor, rtol=1e-4, atol=1e-3
            )


def test_bfloat16_gives_the_losses_of_float32() -> None:
    exact, rough = (losses(detector(precision=precision), BATCH) for precision in ("float32", "bf16"))
    for name, loss in exact.items():
        assert rough[name].dtype == torch.float32
        assert float(rough[name].detach()) == pytest.approx(float(loss.detach()), rel=0.1, abs=0.02), name
    with torch.no_grad():
        (found,) = detector(precision="bf16").eval()(BATCH[:1])
    assert found["instances"].scores.dtype == torch.float32


def test_regions_are_pooled_where_they_are_under_low_precision() -> None:
    """bfloat16 has no 1,003: as a coordinate it would be 1,004, and another cell."""
    model = FasterRCNN(CONFIG).eval()
    features = torch.zeros(1, 32, 4, 80)
    features[0, 0] = torch.arange(80.0)
    rois = torch.tensor([[0.0, 1003.0, 0.0, 1003.0, 10.0]])
    seen: list[Tensor] = []
    model.roi_heads.res5 = nn.Sequential(nn.Identity())
    model.roi_heads.res5.register_forward_hook(lambda module, given, out: seen.append(out))
    with torch.autocast("cpu", torch.bfloat16):
        model.region_features(features.bfloat16(), rois)
    assert seen[0][0, 0].float().max() == round(1003 / 16)


def test_losses_fall() -> None:
    model = detector()
    optimizer = make_optimizer(model, DetectorFitConfig(optimizer="adamw", learning_rate=2e-3, weight_decay=0.01))
    totals = []
    for _ in range(20):
        total = sum(losses(model.train(), BATCH).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.5 * totals[0]


def test_geometry_that_cannot_be_trained_is_refused() -> None:
    caffe = FasterRCNN(DetectorConfig(**{**CONFIG.__dict__, "geometry": "inclusive", "background": "first"}))
    with pytest.raises(DetectorError, match="inclusive boxes with background first cannot be trained"):
        TrainableDetector(caffe, RECIPE)


def test_layers_that_no_file_has_begin_small() -> None:
    model = FasterRCNN(CONFIG)
    initialize(model)
    box = model.roi_heads.box_predictor
    assert float(box.bbox_pred.weight.detach().std()) == pytest.approx(0.001, rel=0.2)
    assert float(box.cls_score.weight.detach().std()) == pytest.approx(0.01, rel=0.2)
    assert not box.cls_score.bias.any()


def test_the_optimizer_decays_neither_norms_nor_biases_and_clips() -> None:
    model = detector()
    optimizer = make_optimizer(model, DetectorFitConfig(learning_rate=1.0, momentum=0.0, weight_decay=0.0, grad_clip=2))
    decayed, others = optimizer.param_groups
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert others["weight_decay"] == 0
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = [(new.detach() - old).square().sum() for new, old in zip(model.parameters(), before, strict=True)]
    assert float(sum(moved)) ** 0.5 == pytest.approx(2.0, rel=1e-3)


def test_schedules() -> None:
    step = make_schedule(DetectorFitConfig(steps=1000, warmup_steps=100, decay_at=(0.5, 0.75), decay_factor=0.1))
    values = [step(where) for where in (0.0, 0.05, 0.1, 0.49, 0.51, 0.76)]
    assert values == pytest.approx([0.001, 0.5005, 1.0, 1.0, 0.1, 0.01])
    cosine = make_schedule(DetectorFitConfig(steps=1000, warmup_steps=0, schedule="cosine"))
    assert [cosine(where) for where in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])
    for steps in (1, 2, 3):  # however short
        assert make_schedule(DetectorFitConfig(steps=steps))(0.9) == pytest.approx(0.01)
    assert make_schedule(DetectorFitConfig(steps=10, warmup_steps=0, decay_at=()))(0.9) == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adam"}, "training.optimizer 'adam': expected one of sgd, adamw"),
        ({"precision": "int8"}, "expected one of float32, bf16, fp16"),
        ({"steps": 0}, "training.steps 0: expected at least 1"),
        ({"frozen_stages": -1}, "training.frozen_stages -1: expected at least 0"),
        ({"decay_at": (0.8, 0.5)}, "expected ascending fractions"),
        ({"decay_at": (0.5, 60000.0)}, "expected ascending fractions"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(DetectorError, match=message):
        DetectorFitConfig(**changes)
