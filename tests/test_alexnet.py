"""AlexNet against a convolution written out in numpy, and the reader of its published weights."""

import datetime

import mindspore as ms
import numpy as np
import pytest
from helpers import fails, options
from mindspore import ops

from src import networks
from src.exported import exporting
from src.networks import alexnet
from src.networks.pretrained import load_initial
from src.ops import accelerate
from src.setup import settings as experiment

# Of Caffe's bvlc_alexnet: (height, width, inputs of a group, outputs), groups, stride.
SHAPES = {
    "conv1": ((11, 11, 3, 96), 1, 4),
    "conv2": ((5, 5, 48, 256), 2, 1),
    "conv3": ((3, 3, 256, 384), 1, 1),
    "conv4": ((3, 3, 192, 384), 2, 1),
    "conv5": ((3, 3, 192, 256), 2, 1),
}
HIDDEN = 24  # in place of 4096 where the size is not the point


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setattr(alexnet, "HIDDEN", HIDDEN)


def settings_of(**keys):
    return experiment.load(options(method="masf", network="alexnet", **keys))


def build(twice=False, **keys):
    """The untrained network with seven classes."""
    return networks.build(settings_of(**keys), 7, twice)


def load(network, path):
    """Start from a published file, by the name of its key that users of the published code know."""
    load_initial(network, settings_of(bvlc_path=path))


def parameter(network, name):
    return {p.name: p.asnumpy().copy() for p in network.get_parameters()}[name]


def published(seed=0):
    """What bvlc_alexnet.npy holds, with random numbers and HIDDEN units."""
    rng = np.random.default_rng(seed)
    shapes = {name: shape for name, (shape, *_) in SHAPES.items()}
    shapes |= {"fc6": (9216, HIDDEN), "fc7": (HIDDEN, HIDDEN), "fc8": (HIDDEN, 1000)}
    return {
        name: [
            (rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32),
            rng.normal(0, 0.1, shape[-1]).astype(np.float32),
        ]
        for name, shape in shapes.items()
    }


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "bvlc_alexnet.npy"
        np.save(path, content, allow_pickle=True)
        return path

    return write


# The network in numpy's float64, images as (N, H, W, C), weights as in the file.


def convolve(x, weights, biases, groups, stride):
    """TensorFlow's 'same' convolution and ReLU."""
    size, outputs = weights.shape[0], weights.shape[3]
    count = -(-x.shape[1] // stride)
    missing = max(0, (count - 1) * stride + size - x.shape[1])
    before = missing // 2
    x = np.pad(x, ((0, 0), (before, missing - before), (before, missing - before), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]
    inputs, each = weights.shape[2], outputs // groups
    parts = [
        np.einsum(
            "nhwcij,ijco->nhwo",
            windows[..., g * inputs : (g + 1) * inputs, :, :],
            weights[..., g * each : (g + 1) * each],
            optimize=True,
        )
        for g in range(groups)
    ]
    return np.maximum(np.concatenate(parts, -1) + biases, 0)


def normalise(x):
    squares = np.pad(x**2, ((0, 0), (0, 0), (0, 0), (2, 2)))
    total = sum(squares[..., shift : shift + x.shape[-1]] for shift in range(5))
    return x / (1 + 1e-5 * total) ** 0.75


def pool(x):
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))[:, ::2, ::2]
    return windows.max((4, 5))


def forward(images, content, means=(104, 117, 123)):
    """fc7 of images (N, 3, 227, 227), RGB in [0, 1]; and the shapes on the way. means: of B, G, R."""
    x, shapes = images[:, ::-1].transpose(0, 2, 3, 1).astype(np.float64) * 255 - means, []
    for name, (_, groups, stride) in SHAPES.items():
        x = convolve(x, *(part.astype(np.float64) for part in content[name]), groups, stride)
        shapes.append(x.shape[1:])
        if name in ("conv1", "conv2"):
            x = normalise(x)
        if name in ("conv1", "conv2", "conv5"):
            x = pool(x)
    shapes.append(x.shape[1:])
    for name in ("fc6", "fc7"):
        x = np.maximum(x.reshape(len(x), -1) @ content[name][0] + content[name][1], 0)
    return x, shapes


@pytest.fixture
def images():
    return np.random.default_rng(7).random((2, 3, 227, 227), np.float32)


@pytest.mark.parametrize("twice", [False, True], ids=["first order", "second order"])
def test_published_weights_give_the_features_of_numpy(place, narrow, file, images, twice):
    content = published()
    network = build(twice).set_train(False)
    load(network, file(content))
    expected, shapes = forward(images, content)
    assert shapes == [(57, 57, 96), (28, 28, 256), (13, 13, 384), (13, 13, 384), (13, 13, 256), (6, 6, 256)]
    accelerate(network, second_order=twice)
    features = network.features(ms.Tensor(images))
    np.testing.assert_allclose(features.asnumpy(), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    logits = features.asnumpy() @ parameter(network, "classifier.weight").T
    logits += parameter(network, "classifier.bias")
    assert logits.shape == (2, 7)
    np.testing.assert_allclose(network(ms.Tensor(images)).asnumpy(), logits, rtol=1e-4, atol=1e-6)


def test_the_means_of_masf_s_authors(place, narrow, file, images):
    content = published()
    network = build(image_means="vgg").set_train(False)
    load(network, file(content))
    expected, _ = forward(images, content, (103.939, 116.779, 123.68))
    other, _ = forward(images, content)
    features = network.features(ms.Tensor(images)).asnumpy()
    tolerance = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=tolerance)
    assert np.abs(other - expected).max() > 10 * tolerance


def test_every_weight_goes_to_its_place_and_the_classifier_stays(narrow, file):
    content, network = published(), build()
    before = parameter(network, "classifier.weight")
    load(network, file(content))
    loaded = {parameter.name: parameter.asnumpy() for parameter in network.get_parameters()}
    assert np.array_equal(loaded.pop("classifier.weight"), before)
    assert loaded.pop("classifier.bias").shape == (7,)
    assert set(loaded) == {f"{n}.{kind}" for n in (*SHAPES, "fc6", "fc7") for kind in ("weight", "bias")}
    for name in SHAPES:
        assert loaded[f"{name}.weight"][5, 2, 1, 0] == content[name][0][1, 0, 2, 5]
        assert np.array_equal(loaded[f"{name}.bias"], content[name][1])
    # Unit 3, channel 100 at row 4 and column 5: in the file rows come first, channels last.
    assert loaded["fc6.weight"][3, 100 * 36 + 4 * 6 + 5] == content["fc6"][0][(4 * 6 + 5) * 256 + 100, 3]
    assert np.array_equal(loaded["fc7.weight"], content["fc7"][0].T)


def test_full_size():
    network = build()
    counts = [int(np.prod(shape)) + shape[-1] for shape, *_ in SHAPES.values()]
    counts += [9216 * 4096 + 4096, 4096 * 4096 + 4096, 4096 * 7 + 7]
    assert sum(parameter.size for parameter in network.trainable_params()) == sum(counts) == 56_896_903
    assert network.feature_size == 4096 and network.masks == (((4096,), 0.5), ((4096,), 0.5))


def test_dropout_masks_lie_over_both_hidden_layers(narrow, images):
    network, image = build(), ms.Tensor(images[:1])
    accelerate(network)
    zeros, ones = (ms.Tensor(np.full((1, HIDDEN), value, np.float32)) for value in (0, 1))
    plain = network(image).asnumpy()
    assert np.array_equal(network(image, ones, ones).asnumpy(), plain)
    bias = parameter(network, "classifier.bias")[None]
    assert np.array_equal(network(image, ones, zeros).asnumpy(), bias)
    expected = np.maximum(parameter(network, "fc7.bias"), 0)[None]
    np.testing.assert_allclose(network.features(image, zeros).asnumpy(), expected, atol=1e-7)


@pytest.mark.parametrize("file_format", ["MINDIR", "ONNX"])
def test_export(place, narrow, monkeypatch, tmp_path, file_format):
    """Of 67x67, which leaves one place of 256 channels: the layers are the same, and much quicker."""
    monkeypatch.setattr(alexnet, "POOLED", (256, 1, 1))
    network = build()
    rng = np.random.default_rng(0)
    for parameter in network.get_parameters():  # logits that differ from image to image
        scale = 1 / np.sqrt(np.prod(parameter.shape[1:]))
        ops.assign(parameter, ms.Tensor(rng.normal(0, scale, parameter.shape), ms.float32))
    images = rng.random((2, 3, 67, 67), np.float32)
    assert network(ms.Tensor(images)).asnumpy().std(0).min() > 1e-2
    _, difference = exporting.export(network, images, tmp_path / "net", file_format)
    assert difference <= 1e-4


def change(**layers):
    return {**published(), **layers}


@pytest.mark.parametrize(
    "content, parts",
    [
        (change(fc7=datetime.date(2020, 1, 1)), ["datetime"]),
        ({name: layer for name, layer in published().items() if name != "conv4"}, ["conv4"]),
        (change(conv2=published()["conv3"]), ["conv2", "(256, 48, 5, 5)"]),
        (change(fc6=[np.zeros((9215, HIDDEN), np.float32), np.zeros(HIDDEN, np.float32)]), ["fc6"]),
        (change(conv1=[np.zeros((11, 11, 3, 96), np.float32)]), ["conv1"]),
        (change(conv1=["weights", "biases"]), ["conv1"]),
        ([1, 2, 3], ["dictionary"]),
    ],
    ids=["object", "no layer", "other shape", "other input", "no biases", "texts", "list"],
)
def test_files_that_are_something_else_are_refused_and_change_nothing(narrow, file, content, parts):
    network = build()
    before = [parameter.asnumpy().copy() for parameter in network.get_parameters()]
    path = file(np.array(content, dtype=object))
    fails(lambda: load(network, path), path, *parts)
    after = [parameter.asnumpy() for parameter in network.get_parameters()]
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))


def test_a_missing_file_and_another_network_are_refused(narrow, tmp_path):
    fails(lambda: load(build(), tmp_path / "nowhere.npy"), "nowhere.npy")
    other = settings_of(bvlc_path="some.npy").replace(network="digits")
    fails(lambda: load_initial(None, other), "pretrained: some.npy", "no other format is known")
