"""The networks of MASF and DeepAll, chosen by the key `network`, so that both train the same ones.

None has batch normalisation: MASF moves the weights back and forth within a step, and running statistics
would be gathered at weights that are then thrown away.
"""

from mindspore import nn

from model_utils.errors import UserError
from model_utils.key import Key
from src.data import domains
from src.networks import alexnet
from src.ops.twice_differentiable import max_pool

DIGITS_SIZE, PHOTOS_SIZE = 28, 64


class SmallNet(nn.Cell):
    """Convolutions, each with ReLU and 2x2 max pooling, one hidden layer, logits.

    float32 (N, 3, S, S) in [0, 1] -> (N, classes). The hidden layer (N, width) is `features`; `keep`, an
    inverted-dropout mask (N, width) from model_utils.noise.keep_mask, is laid over it, None drops nothing.

    Args:
        layers: (input channels, output channels, kernel, stride, padding) of each convolution.
        flat: numbers that the last pooling leaves of an image. width: units of the hidden layer.
        twice: whether gradients of gradients will be asked for.
    """

    def __init__(self, layers, flat, width, classes, twice=False):
        super().__init__()
        self.stages = nn.SequentialCell(
            [
                nn.SequentialCell(
                    nn.Conv2d(
                        inputs, outputs, kernel, stride, pad_mode="pad", padding=padding, has_bias=True
                    ),
                    max_pool(2, 2, twice),
                    nn.ReLU(),  # after pooling it gives what it gives before, from a quarter of the values
                )
                for inputs, outputs, kernel, stride, padding in layers
            ]
        )
        self.flatten = nn.Flatten()
        self.hidden = nn.Dense(flat, width)
        self.relu = nn.ReLU()
        self.classifier = nn.Dense(width, classes)
        self.feature_size, self.dropout_shapes = width, ((width,),)

    def features(self, images):
        """(N, 3, S, S) in [0, 1] -> the hidden layer (N, width)."""
        return self.relu(self.hidden(self.flatten(self.stages(images * 2.0 - 1.0))))

    def features_and_logits(self, images, keep=None):
        """Features before dropout (N, width), and logits (N, classes)."""
        features = self.features(images)
        return features, self.classifier(features if keep is None else features * keep)

    def construct(self, images, keep=None):
        return self.features_and_logits(images, keep)[1]


def digits(classes, twice=False):
    """For 28x28 digits: 5x5 to 32 and 48 channels, 128 hidden units; 140,602 weights with ten classes."""
    return SmallNet([(3, 32, 5, 1, 0), (32, 48, 5, 1, 0)], 48 * 4 * 4, 128, classes, twice)


def photos(classes, twice=False):
    """For 64x64 pictures: 5x5 stride 2 to 32, 3x3 to 64 and 128 channels, 256 hidden units.

    621,127 weights with seven classes.
    """
    layers = [(3, 32, 5, 2, 2), (32, 64, 3, 1, 1), (64, 128, 3, 1, 1)]
    return SmallNet(layers, 128 * 4 * 4, 256, classes, twice)


NETWORKS = {
    "alexnet": (alexnet.AlexNet, alexnet.SIZE),
    "digits": (digits, DIGITS_SIZE),
    "photos": (photos, PHOTOS_SIZE),
}


def keys():
    """The configuration keys of the network."""
    return {
        "network": Key(
            "alexnet",
            "alexnet: Caffe's, 227x227; digits: two convolutions for 28x28; photos: three for 64x64",
            choices=tuple(NETWORKS),
        ),
        "dropout": Key(0.5, "dropout probability of the hidden layers", low=0, below=1),
        "bvlc_path": Key("", "bvlc_alexnet.npy: published weights that network alexnet starts from"),
    }


def build(config, twice=False):
    """The untrained network of a configuration with `domains.keys()` and `keys()`.

    It maps images (N, 3, S, S) in [0, 1], and masks of `dropout_shapes`, to logits (N, classes). With `twice`
    it is made of operators that have second derivatives; its parameters are the same.

    Raises:
        UserError: image_size is not the network's.
    """
    make, size = NETWORKS[config.network]
    given = domains.image_size(config)
    if given != size:
        raise UserError(
            f"image_size: {given}, but network {config.network} takes {size}; set image_size to {size} or "
            "choose another network"
        )
    return make(domains.class_count(config), twice)


def load_initial(network, config):
    """Fill the network from `bvlc_path`, if it is given; UserError where the network is another."""
    if not config.bvlc_path:
        return
    if config.network != "alexnet":
        raise UserError(f"bvlc_path: holds AlexNet's weights, and network is {config.network}; leave one out")
    alexnet.load_published(network, config.bvlc_path)
