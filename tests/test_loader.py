"""Batches: who sees which sample, how often, and in what form."""

import types

import numpy as np
import pytest
from helpers import demo_config
from hypothesis import given, settings
from hypothesis import strategies as st

from model_utils.errors import UserError
from src.data import augment, pairs
from src.data import load as load_data
from src.data.loader import TestLoader, TrainLoader, fit, split_validation, to_float
from src.data.split import Split
from src.evaluation.evaluate import Evaluator


def numbered(count, size=2):
    """A split whose images say which sample they are: pixels 0 and 1 hold the number."""
    images = np.zeros((count, size, size), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.arange(count) % 256, np.arange(count) // 256
    return Split(images, np.arange(count, dtype=np.int32) % 10)


def numbers(images):
    pixels = np.rint(images[:, 0] * 255).astype(int)
    return (pixels[:, 0, 0] + 256 * pixels[:, 0, 1]).tolist()


def loader(count, batch_size, rank=0, world=1, **changes):
    return TrainLoader(numbered(count), batch_size, 5, "source", 1, 2, rank=rank, world=world, **changes)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 5), st.integers(0, 3))
def test_an_epoch_sees_each_sample_at_most_once_over_all_ranks(count, batch_size, world, epoch):
    if count < batch_size * world:
        with pytest.raises(UserError, match="batch_size"):
            loader(count, batch_size, 0, world)
        return
    loaders = [loader(count, batch_size, rank, world) for rank in range(world)]
    steps = loaders[0].steps_per_epoch
    assert {one.steps_per_epoch for one in loaders} == {count // (batch_size * world)}
    seen = []
    for one in loaders:
        for step in range(epoch * steps, (epoch + 1) * steps):
            images, labels = one.batch(step)
            assert images.shape == (batch_size, 1, 2, 2)
            assert [n % 10 for n in numbers(images)] == labels.tolist()
            seen += numbers(images)
    assert len(seen) == len(set(seen)) == steps * batch_size * world
    assert set(seen) <= set(range(count))


def test_epochs_differ_in_order_and_so_do_seeds_and_domains():
    one = loader(64, 32)
    orders = [numbers(one.batch(step)[0]) for step in range(0, 8, 2)]
    assert len({tuple(order) for order in orders}) == 4
    other = TrainLoader(numbered(64), 32, 5, "target", 1, 2)
    assert numbers(other.batch(0)[0]) != orders[0]
    assert numbers(TrainLoader(numbered(64), 32, 6, "source", 1, 2).batch(0)[0]) != orders[0]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.sampled_from(augment.CHOICES))
def test_a_batch_is_a_function_of_the_step_alone(steps, name):
    split = Split(np.random.default_rng(0).integers(0, 256, (40, 28, 28, 3)).astype(np.uint8), np.arange(40))
    used = TrainLoader(split, 8, 1, "source", augment=augment.build(name))
    for step in steps:
        images, labels = used.batch(step)
        fresh = TrainLoader(split, 8, 1, "source", augment=augment.build(name)).batch(step)
        np.testing.assert_array_equal(images, fresh[0])
        np.testing.assert_array_equal(labels, fresh[1])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", augment.CHOICES)
def test_augmentations_keep_range_shape_and_type(name, channels):
    shape = (16, channels, 28, 28)
    images = np.random.default_rng(1).random(shape, dtype=np.float32)
    images[0], images[1] = 0, 1
    before = images.copy()
    function = augment.build(name)
    result = images if function is None else function(images, np.random.default_rng(2))
    assert result.shape == shape and result.dtype == np.float32
    assert result.min() >= 0 and result.max() <= 1
    np.testing.assert_array_equal(images, before)
    assert (name == "none") == np.array_equal(result, before)


def test_intensity_maps_background_and_stroke_to_two_tones_of_each_channel():
    mask = np.zeros((50, 3, 4, 4), np.float32)
    mask[:, :, 1:3, 1:3] = 1
    result = augment.intensity(mask, np.random.default_rng(0))
    for image in result.reshape(150, 16):
        assert len(np.unique(image)) == 2
    assert 0 < (result[:, 0, 0, 0] > result[:, 0, 1, 1]).mean() < 1  # some are inverted


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(0, 220), st.integers(0, 5))
def test_validation_and_training_parts_are_disjoint_and_complete(count, size, seed):
    if size >= count:
        with pytest.raises(UserError, match="validation_size"):
            split_validation(numbered(count), size, seed)
        return
    kept, held = split_validation(numbered(count), size, seed)
    parts = [kept] if held is None else [kept, held]
    assert (held is None) == (size == 0) and (held is None or len(held.labels) == size)
    seen = [number for part in parts for number in numbers(to_float(part.images, 1))]
    assert sorted(seen) == list(range(count))
    for part in parts:
        assert [n % 10 for n in numbers(to_float(part.images, 1))] == part.labels.tolist()
    again = split_validation(numbered(count), size, seed)[0]
    np.testing.assert_array_equal(kept.images, again.images)


class Counting(Evaluator):
    """Predicts the sample's number modulo 10 and remembers what it was shown."""

    def __init__(self, totals):
        self.device = types.SimpleNamespace(all_sum=lambda *own: totals.append(own) or own)
        self.shown = []

    def predict(self, images):
        self.shown += numbers(images)
        return np.array([number % 10 for number in numbers(images)])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 64), st.integers(1, 5), st.integers(0, 9))
def test_evaluation_counts_every_image_once(count, batch_size, world, wrong):
    split = numbered(count)
    labels = split.labels.copy()
    labels[labels == wrong] = (wrong + 1) % 10  # what the predictor will get wrong
    totals = []
    for rank in range(min(world, count)):
        part = TestLoader(split._replace(labels=labels), batch_size, 1, 2, rank, world)
        assert part.total == count
        assert len(part) == sum(1 for _ in part)
        Counting(totals).accuracy(part)
    hits, counted = np.sum(totals, 0)
    assert counted == count
    assert hits == (split.labels != wrong).sum()


def test_uint8_becomes_float_in_0_to_1_channels_first():
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    three = to_float(grey, 3)
    assert three.shape == (1, 3, 16, 16) and three.dtype == np.float32
    assert three.min() == 0 and three.max() == 1
    np.testing.assert_array_equal(three[:, 0], three[:, 2])
    colour = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3)).astype(np.uint8)
    np.testing.assert_allclose(to_float(colour, 3)[1, 2, 3, 4], colour[1, 3, 4, 2] / 255, rtol=1e-6)


def test_fit_resizes_and_turns_colour_to_luma():
    colour = np.zeros((1, 28, 28, 3), np.uint8)
    colour[..., 1] = 200
    grey = fit(colour, 1, 28)
    assert grey.shape == (1, 28, 28) and (grey == round(200 * 0.587)).all()
    assert fit(colour, 3, 32).shape == (1, 32, 32, 3)
    assert fit(colour, 3, 28) is colour


def test_target_labels_change_nothing_a_method_is_given(place, monkeypatch):
    settings = demo_config(target_augment="intensity")
    honest, held = pairs.train_loaders(settings, place)
    labels_read = load_data("demo_photos", "", "train").labels

    def poisoned(name, root, split, download=False):
        loaded = load_data(name, root, split, download)
        return loaded._replace(labels=9 - loaded.labels) if name == "demo_photos" else loaded

    monkeypatch.setattr(pairs.data, "load", poisoned)
    lied_to, held_lied = pairs.train_loaders(settings, place)
    assert len(np.unique(labels_read)) == 10
    np.testing.assert_array_equal(honest["target"].batch(0)[0], lied_to["target"].batch(0)[0])
    assert honest["target"].batch(0)[1] is None and lied_to["target"].batch(0)[1] is None
    for (images, labels), (same, also) in zip(held["target"], held_lied["target"], strict=True):
        np.testing.assert_array_equal(images, same)
        np.testing.assert_array_equal(labels, also)
        assert (labels == -1).all()
