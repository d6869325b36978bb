"""Caffe's AlexNet (Krizhevsky et al. 2012) as MASF trains it, and its weights from `bvlc_alexnet.npy`."""

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from model_utils.errors import UserError, shortened
from model_utils.key import Key
from model_utils.restricted_pickle import load_numpy_pickle
from src import networks
from src.data.preparation import Preparation
from src.ops.twice_differentiable import LocalResponseNorm, max_pool

SIZE = 227
MEANS_BGR = {  # of ImageNet's pixels, 0 to 255: blue, green, red
    "caffe": (104.0, 117.0, 123.0),
    "vgg": (103.939, 116.779, 123.68),
}
HIDDEN = 4096
POOLED = 256, 6, 6  # channels, height and width behind the last pooling
CONVOLUTIONS = {  # name: (input channels, output channels, kernel, stride, groups)
    "conv1": (3, 96, 11, 4, 1),
    "conv2": (96, 256, 5, 1, 2),
    "conv3": (256, 384, 3, 1, 1),
    "conv4": (384, 384, 3, 1, 2),
    "conv5": (384, 256, 3, 1, 2),
}


def _convolution(name):
    inputs, outputs, kernel, stride, groups = CONVOLUTIONS[name]
    return nn.Conv2d(inputs, outputs, kernel, stride, pad_mode="same", group=groups, has_bias=True)


class Backbone(nn.Cell):
    """float32 (N, 3, 227, 227) RGB in [0, 1] -> the second hidden layer, features (N, 4096).

    Five convolutions with 'same' padding, bias and ReLU; local response normalisation and then 3x3 pooling of
    stride 2 behind the first two, pooling behind the last (6x6x256); 4096 and 4096 hidden units. Turning to
    BGR, the scale to 255 and the mean are part of the network.

    Args:
        dropout: probability behind each of the two hidden layers.
        twice: whether gradients of gradients will be asked for.
        means: a name in MEANS_BGR, the means that are subtracted.
    """

    def __init__(self, dropout, twice=False, means="caffe"):
        super().__init__()
        for name in CONVOLUTIONS:
            setattr(self, name, _convolution(name))
        self.normalise = LocalResponseNorm(radius=2, alpha=1e-5, beta=0.75, bias=1.0)
        self.pool = max_pool(3, 2, twice)
        self.fc6 = nn.Dense(int(np.prod(POOLED)), HIDDEN)
        self.fc7 = nn.Dense(HIDDEN, HIDDEN)
        self.mean = ms.Tensor(np.array(MEANS_BGR[means], np.float32).reshape(1, 3, 1, 1))
        self.feature_size, self.masks, self.head_dropout = HIDDEN, (((HIDDEN,), dropout),), dropout

    def construct(self, images, keep6=None):
        """keep6: inverted-dropout mask (N, 4096) of model_utils.noise.keep_mask, or None."""
        x = ops.concat((images[:, 2:], images[:, 1:2], images[:, :1]), 1) * 255.0 - self.mean
        x = self.pool(self.normalise(ops.relu(self.conv1(x))))
        x = self.pool(self.normalise(ops.relu(self.conv2(x))))
        x = ops.relu(self.conv4(ops.relu(self.conv3(x))))
        x = self.pool(ops.relu(self.conv5(x)))
        x = ops.relu(self.fc6(ops.reshape(x, (x.shape[0], -1))))
        if keep6 is not None:
            x = x * keep6
        return ops.relu(self.fc7(x))


class Family(networks.Family):
    """Network `alexnet`."""

    weights_from = "https://www.cs.toronto.edu/~guerzhoy/tf_alexnet/bvlc_alexnet.npy"
    keys = {
        "image_means": Key(
            "caffe",
            "what is subtracted from red, green and blue, 0 to 255: caffe 123, 117, 104; vgg 123.68, "
            "116.779, 103.939, as the authors of MASF do",
            choices=tuple(MEANS_BGR),
        ),
    }

    def preparation(self, variant, config):
        return Preparation(SIZE)

    def backbone(self, variant, config, preparation, twice=False):
        networks.check_size("alexnet", preparation, SIZE)
        return Backbone(config.dropout, twice, config.image_means)

    def read_published(self, variant, path, network):
        return published(path, {p.name: tuple(p.shape) for p in network.backbone.get_parameters()})


def published(path, shapes):
    """{parameter: array} of all layers but the classifier out of `bvlc_alexnet.npy`.

    The file is a pickle of {layer: [weights, biases]}. Weights there are (height, width, input, output) and
    (input, output), the first dense layer's input in the order height, width, channel. Nothing in it is
    executed. Its fc8 is not used, because it is for other classes.

    Args:
        shapes: {parameter's name: shape} of the backbone.

    Raises:
        UserError: unreadable file, foreign objects in it, a missing layer, or another shape.
    """
    content = load_numpy_pickle(path)
    layers = (*CONVOLUTIONS, "fc6", "fc7")
    if not isinstance(content, dict):
        raise UserError(f"pretrained: {path} holds no dictionary of layers; give bvlc_alexnet.npy")
    missing = [name for name in layers if name not in content]
    if missing:
        raise UserError(f"pretrained: {path} has no layer {shortened(missing, 3)}; give bvlc_alexnet.npy")
    values = {}
    for name in layers:
        arrays = _arranged(name, content[name], path)
        for kind, ours, array in zip(("weights", "biases"), ("weight", "bias"), arrays, strict=True):
            wanted = shapes[f"{name}.{ours}"]
            if wanted != array.shape:
                raise UserError(
                    f"pretrained: {name}'s {kind} in {path} have shape {array.shape}, the network's have "
                    f"{wanted}; give bvlc_alexnet.npy"
                )
            values[f"{name}.{ours}"] = np.ascontiguousarray(array, np.float32)
    return values


def _arranged(name, entry, path):
    """[weights, biases] of one layer in MindSpore's order."""
    good = isinstance(entry, list | tuple) and len(entry) == 2
    if not good or not all(isinstance(array, np.ndarray) and array.dtype.kind == "f" for array in entry):
        raise UserError(
            f"pretrained: {name} in {path} is no pair of weights and biases; give bvlc_alexnet.npy"
        )
    weights, biases = entry
    if weights.ndim == 4:
        return weights.transpose(3, 2, 0, 1), biases
    if name == "fc6" and weights.ndim == 2 and weights.shape[0] == np.prod(POOLED):
        channels, height, width = POOLED
        by_place = weights.reshape(height, width, channels, -1)
        return by_place.transpose(3, 2, 0, 1).reshape(weights.shape[1], -1), biases
    return weights.T, biases
