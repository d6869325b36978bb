"""The network of ADDA (Tzeng et al. 2017, arXiv 1702.05464) for 28x28 grey digits: 431,080 parameters."""

from mindspore import nn

from src import networks
from src.data.preparation import Preparation
from src.networks.input_norm import KEYS, InputNorm
from src.ops.twice_differentiable import max_pool

SIZE = 28
HIDDEN = 500


class Backbone(nn.Cell):
    """The paper's LeNet up to its hidden layer: float32 (N, 1, 28, 28) in [0, 1] -> features (N, 500).

    Convolution 5x5 to 20 channels, pooling, convolution 5x5 to 50, pooling, 500 hidden units.
    """

    masks, head_dropout = (), 0.0

    def __init__(self, input_norm="none", twice=False):
        super().__init__()
        self.norm = InputNorm(input_norm)
        self.conv1 = nn.Conv2d(1, 20, 5, pad_mode="valid", has_bias=True)
        self.conv2 = nn.Conv2d(20, 50, 5, pad_mode="valid", has_bias=True)
        self.fc1 = nn.Dense(50 * 4 * 4, HIDDEN)
        self.pool = max_pool(2, 2, twice)
        self.relu = nn.ReLU()
        self.flatten = nn.Flatten()
        self.feature_size = HIDDEN

    def construct(self, images):
        # ReLU after pooling gives the same result as before it, for a quarter of the work.
        x = self.relu(self.pool(self.conv1(self.norm(images))))
        x = self.relu(self.pool(self.conv2(x)))
        return self.relu(self.fc1(self.flatten(x)))


class Family(networks.Family):
    """Network `lenet`."""

    keys = KEYS
    prefixes = ("", "fc2.")

    def preparation(self, variant, config):
        return Preparation(SIZE, channels=1)

    def backbone(self, variant, config, preparation, twice=False):
        networks.check_size("lenet", preparation, SIZE)
        return Backbone(config.input_norm, twice)
