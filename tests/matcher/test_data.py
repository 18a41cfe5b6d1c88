import threading

import numpy as np
import pytest
import torch

from matcher.config import FitConfig
from matcher.data import Batches, CaptionedImages
from matcher.distributed import ProcessGroup
from matcher.errors import MatcherError
from matcher.vocabulary import Vocabulary
from tests.toy import ArraySource, toy_world


def batches(size: int = 7, images: int = 10) -> Batches:
    world = toy_world(images)
    return Batches(world, Vocabulary.build(world.captions, 1), FitConfig(batch_size=size, seed=3))


def test_an_epoch_shows_every_caption_once_with_its_own_image() -> None:
    made = batches()
    world, words = made.data, Vocabulary.build(made.data.captions, 1).words
    seen = []
    for batch in made.epoch(0):
        assert batch.features.dtype == torch.float16
        assert len(batch.features) == len(batch.image_of_caption.unique())
        for row, (tokens, length) in enumerate(zip(batch.tokens, batch.lengths, strict=True)):
            assert not tokens[length:].any()
            text = " ".join(words[token] for token in tokens[1 : length - 1])
            caption = world.captions.index(text)
            image = world.image_of_caption[caption]
            if world.captions.count(text) == 1:
                np.testing.assert_array_equal(
                    batch.features[batch.image_of_caption[row]], world.source.gather(np.array([image]))[0]
                )
            seen.append(text)
    assert sorted(seen) == sorted(world.captions)


def test_order_depends_on_seed_and_epoch_alone_and_can_be_entered_anywhere() -> None:
    def tokens(epoch: int, start: int = 0) -> list[list[int]]:
        return [batch.tokens.tolist() for batch in batches().epoch(epoch, start)]

    assert tokens(1) == tokens(1)
    assert tokens(0) != tokens(1)
    assert tokens(1, start=2) == tokens(1)[2:]


@pytest.mark.parametrize(("size", "steps"), [(20, 1), (19, 1), (18, 2), (7, 3), (64, 1)])
def test_a_last_batch_of_one_caption_is_left_out(size: int, steps: int) -> None:
    made = batches(size)
    assert len(made) == steps == len(list(made.epoch(0)))


def test_dropout_leaves_out_some_words_and_regions_but_never_start_and_end() -> None:
    world = toy_world(10)
    plain = Batches(world, Vocabulary.build(world.captions, 1), FitConfig(batch_size=20, seed=3))
    dropped = Batches(
        world,
        Vocabulary.build(world.captions, 1),
        FitConfig(batch_size=20, seed=3, region_dropout=0.5, word_dropout=0.5),
    )
    counts = set()
    for epoch in range(20):
        whole, part = next(plain.epoch(epoch)), next(dropped.epoch(epoch))
        assert (part.lengths <= whole.lengths).all()
        assert part.lengths.sum() < whole.lengths.sum()
        for row, (tokens, length) in enumerate(zip(part.tokens, part.own_lengths, strict=True)):
            kept, everything = tokens[:length].tolist(), iter(whole.tokens[row].tolist())
            assert (kept[0], kept[-1]) == (1, 2)
            assert all(token in everything for token in kept)  # in order
        counts.add(part.features.shape[1])
        for image, regions in enumerate(part.features):  # each a region of the same image, none twice
            same = (regions[:, None] == whole.features[image][None]).all(-1)
            assert (same.sum(1) == 1).all()
            assert (same.sum(0) <= 1).all()
    assert counts == {3, 4, 5}


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_a_batch(size: int) -> None:
    world = toy_world(10)
    vocabulary = Vocabulary.build(world.captions, 1)
    whole = next(Batches(world, vocabulary, FitConfig(batch_size=7, seed=3)).epoch(0))
    parts = [
        next(Batches(world, vocabulary, FitConfig(batch_size=7, seed=3), group=ProcessGroup(rank, size)).epoch(0))
        for rank in range(size)
    ]
    torch.testing.assert_close(torch.cat([part.features for part in parts]), whole.features)
    torch.testing.assert_close(torch.cat([part.tokens for part in parts]), whole.tokens)
    for part in parts:
        torch.testing.assert_close(part.lengths, whole.lengths)
        torch.testing.assert_close(part.image_of_caption, whole.image_of_caption)
        assert sum(part.caption_counts) == 7
    lonely = next(Batches(world, vocabulary, FitConfig(batch_size=2, seed=3), group=ProcessGroup(4, 8)).epoch(0))
    assert lonely.caption_counts == [2]  # too few to share: everybody does all


def test_an_epoch_left_early_stops_its_thread() -> None:
    for _ in batches().epoch(0):
        break
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_an_error_while_reading_reaches_the_caller() -> None:
    class Broken(ArraySource):
        def gather(self, rows: np.ndarray) -> np.ndarray:
            raise OSError("disk gone")

    world = toy_world(10)
    broken = CaptionedImages(Broken(world.source.features), world.captions, world.image_of_caption, world.rows)  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="disk gone"):
        list(Batches(broken, Vocabulary.build(world.captions, 1), FitConfig(batch_size=4, seed=0)).epoch(0))


@pytest.mark.parametrize(
    ("owners", "message"), [([0, 0, 0], "4 captions"), ([0, 0, 1, 2], "beyond the 2"), ([0, 0, 0, -1], "beyond")]
)
def test_owners_are_checked(owners: list[int], message: str) -> None:
    with pytest.raises(MatcherError, match=message):
        CaptionedImages(ArraySource(np.zeros((2, 1, 1))), list("abcd"), np.array(owners), np.arange(2))
