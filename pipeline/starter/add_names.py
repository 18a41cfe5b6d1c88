"""How the shipped run came to know ImageNet's classes: their names join the embeddings of a run trained on the starter's windows.

    python -m pipeline.starter.add_names RUN OUTPUT --features features/dev --captions CAPTIONS

Nothing is trained: see `matcher.encoders.ClassNames`. OUTPUT becomes a run folder, calibrated on the photos of the store; its recalls
on them are printed.

Letters: B captions, L word pieces, H width of the text encoder, C classes.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from detector.windows import LITE0, imagenet_names, load_network
from matcher.calibration import calibrate
from matcher.checkpoint import model_sha256, save_model
from matcher.collection import collection_similarity
from matcher.encoders import ClassNames
from matcher.errors import MatcherError
from matcher.matcher import Matcher, pad
from matcher.methods import make_matcher
from matcher.metrics import ranks, recalls
from matcher.transformer import TransformerEncoder
from pipeline.config import save_config
from pipeline.files import read_json, write_json
from pipeline.inputs.dataset import load_dataset
from pipeline.inputs.splits import all_splits
from pipeline.runs import BEST, CALIBRATION, CONFIG, DATA, load_run

SHARE = 0.3  # of every product; less is better on Flickr8k, more on other photos
TEMPERATURE = 15.0  # λ of the attention; with the 4 of training a window looks at all words nearly alike
CHANGED = ("embed_dim", "classes", "class_dim", "class_share", "softmax_temperature")
USUAL = 3000  # captions whose mean state says nothing


@torch.inference_mode()
def mean_states(model: Matcher, captions: Sequence[str]) -> Tensor:
    """The mean of the text encoder's states over the pieces of each caption, marks included: (B, H)."""
    encoder = model.text_encoder
    if not isinstance(encoder, TransformerEncoder) or encoder.frozen is None:
        raise MatcherError(f"text_encoder {model.config.text_encoder}: expected a frozen transformers encoder")
    means = []
    for start in range(0, len(captions), 100):
        tokens, lengths = pad([model.vocabulary.encode(caption) for caption in captions[start : start + 100]])
        states = encoder.frozen.states(tokens, lengths, kept=False)
        real = torch.arange(tokens.shape[1]) < lengths[:, None]
        means.append((states * real[..., None]).sum(1) / lengths[:, None])
    return torch.cat(means)


def add_names(
    trained: Matcher, captions: Sequence[str], share: float = SHARE, temperature: float = TEMPERATURE
) -> Matcher:
    """A matcher of the starter's windows that has the names of ImageNet's classes beside what it learned.

    Args:
        captions: some of those it was trained on.
        share: of every product that the names make, where the class is certain.
        temperature: λ of the attention's softmax.

    Raises:
        MatcherError: its text encoder is not a frozen one, or it has the names already.
    """
    names = mean_states(trained, [f"a photo of a {name}" for name in imagenet_names()])
    names = torch.nn.functional.normalize(names, dim=-1)
    C, H = names.shape
    if trained.config.classes:
        raise MatcherError("the run has names of classes already")
    config = replace(
        trained.config,
        embed_dim=trained.config.embed_dim + H,
        classes=C,
        class_dim=H,
        class_share=share,
        softmax_temperature=temperature,
    )
    model = make_matcher(config, trained.vocabulary).eval()
    model.load_state_dict(trained.state_dict(), strict=False)
    part, text = model.image_encoder.class_names, model.text_encoder
    assert isinstance(part, ClassNames)
    assert isinstance(text, TransformerEncoder)
    assert text.usual is not None
    part.names.copy_(torch.nn.functional.normalize(names - names.mean(0), dim=-1))
    part.classifier.load_state_dict(load_network(LITE0).get_classifier().state_dict())
    text.usual.copy_(mean_states(trained, captions).mean(0))
    return model


def main(arguments: Sequence[str] | None = None) -> None:
    """Read a run, write another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--features", required=True, help="store of held-out photos, with its captions")
    parser.add_argument("--captions", type=Path, required=True, help="training captions, a photo and a caption a line")
    parser.add_argument("--held-out", action="append", default=[], help="captions of the held-out photos")
    parser.add_argument("--share", type=float, default=SHARE, help="of the names, of every product")
    parser.add_argument("--temperature", type=float, default=TEMPERATURE, help="λ of the attention's softmax")
    options = parser.parse_args(arguments)
    run = load_run(options.run, torch.device("cpu"))
    lines = options.captions.read_text(encoding="utf-8").splitlines()[:USUAL]
    model = add_names(run.model, [line.split("\t", 1)[1] for line in lines], options.share, options.temperature)
    images = all_splits(load_dataset([Path(options.features)], options.held_out)).images
    similarity = collection_similarity(model, images.source, images.rows, images.captions, progress=True)
    print(recalls(ranks(similarity, images.image_of_caption)))

    options.output.mkdir(parents=True, exist_ok=True)
    save_model(options.output / BEST, model)
    data = read_json(options.run / DATA, "a run's identity")
    data["config"]["model"] |= {key: getattr(model.config, key) for key in CHANGED}
    write_json(options.output / DATA, data)
    save_config(replace(run.config, model=model.config), options.output / CONFIG)
    found = calibrate(similarity, images.image_of_caption)
    assert found is not None
    write_json(options.output / CALIBRATION, found.to_file(model_sha256(options.output / BEST)))


if __name__ == "__main__":
    main()
