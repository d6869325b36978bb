"""The networks of ADDA (Tzeng et al. 2017, arXiv 1702.05464) for 28x28 grey digits."""

from mindspore import nn, ops

from src.networks.dann import InputNorm

CLASSES = 10
HIDDEN = 500


class LeNet(nn.Cell):
    """The paper's LeNet: float32 (N, 1, 28, 28) in [0, 1] -> class logits (N, 10); 431,080 parameters.

    Convolution 5x5 to 20 channels, pooling, convolution 5x5 to 50, pooling, 500 hidden units, 10 logits.
    Source and target network are two of these.

    Args:
        input_norm: "none" maps [0, 1] to [-1, 1], "instance" gives each image mean 0 and deviation 1.
    """

    def __init__(self, input_norm="none"):
        super().__init__()
        self.norm = InputNorm(input_norm)
        self.conv1 = nn.Conv2d(1, 20, 5, pad_mode="valid", has_bias=True)
        self.conv2 = nn.Conv2d(20, 50, 5, pad_mode="valid", has_bias=True)
        self.fc1 = nn.Dense(50 * 4 * 4, HIDDEN)
        self.fc2 = nn.Dense(HIDDEN, CLASSES)
        self.pool = nn.MaxPool2d(2, 2)
        self.relu = nn.ReLU()
        self.flatten = nn.Flatten()

    def features(self, images):
        """(N, 1, 28, 28) -> the hidden layer (N, 500)."""
        # ReLU after pooling gives what ReLU before it does, from a quarter of the values.
        x = self.relu(self.pool(self.conv1(self.norm(images))))
        x = self.relu(self.pool(self.conv2(x)))
        return self.relu(self.fc1(self.flatten(x)))

    def construct(self, images):
        return self.fc2(self.features(images))


class Discriminator(nn.Cell):
    """Class logits (N, 10) -> domain logits (N, 2), column 0 source, column 1 target: 500-500-2, ReLU."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Dense(CLASSES, HIDDEN)
        self.fc2 = nn.Dense(HIDDEN, HIDDEN)
        self.fc3 = nn.Dense(HIDDEN, 2)
        self.relu = nn.ReLU()

    def construct(self, logits):
        return self.fc3(self.relu(self.fc2(self.relu(self.fc1(logits)))))

    def frozen(self, logits):
        """The same values; gradients reach `logits` but none of this cell's parameters."""
        x = self.relu(_frozen_dense(logits, self.fc1.weight, self.fc1.bias))
        x = self.relu(_frozen_dense(x, self.fc2.weight, self.fc2.bias))
        return _frozen_dense(x, self.fc3.weight, self.fc3.bias)


def _frozen_dense(inputs, weight, bias):
    return ops.matmul(inputs, ops.stop_gradient(weight).T) + ops.stop_gradient(bias)
