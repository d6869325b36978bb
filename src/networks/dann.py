"""The networks of DANN (Ganin & Lempitsky 2015, arXiv 1409.7495) for 28x28 digits.

176,752 parameters without the domain classifier.
"""

from mindspore import nn, ops

from src.ops.chain import Chain

FEATURES = 800  # 50 channels of 4x4
FEATURE_MAP = (50, 8, 8)  # where the backbone's dropout sits
HIDDEN = 100


class InputNorm(nn.Cell):
    """Images in [0, 1] -> network input, inside the network so that an exported model needs no recipe.

    Args:
        kind: "none" maps [0, 1] to [-1, 1]; "instance" subtracts each image's mean and divides by its
            standard deviation, per channel (Ulyanov et al. 2016, arXiv 1607.08022, without affine part).

    Inputs and outputs: float32 (N, C, H, W).
    """

    def __init__(self, kind):
        super().__init__()
        self.instance = kind == "instance"

    def construct(self, images):
        if not self.instance:
            return images * 2.0 - 1.0
        centred = images - ops.mean(images, (2, 3), True)
        variance = ops.mean(centred * centred, (2, 3), True)
        return centred / ops.sqrt(variance + 1e-4)


class Backbone(nn.Cell):
    """Two convolutions; float32 (N, 3, 28, 28) in [0, 1] -> features (N, 800).

    `keep` is the dropout mask from `model_utils.noise.keep_mask`, (N, 50, 8, 8) or, to drop whole channels,
    (N, 50, 1, 1); None for no dropout.
    """

    def __init__(self, input_norm="none"):
        super().__init__()
        self.norm = InputNorm(input_norm)
        self.conv1 = nn.Conv2d(3, 64, 5, pad_mode="valid", has_bias=True)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 50, 5, pad_mode="valid", has_bias=True)
        self.bn2 = nn.BatchNorm2d(50)
        self.pool = nn.MaxPool2d(2, 2)
        self.relu = nn.ReLU()
        self.flatten = nn.Flatten()
        # Which cells follow each other: on a CPU each chain runs as one operator (src/ops).
        self.stage1 = Chain(self.conv1, self.bn1, self.pool, self.relu)
        self.stage2 = Chain(self.conv2, self.bn2)

    def construct(self, images, keep=None):
        x = self.stage2(self.stage1(self.norm(images)))
        if keep is not None:
            x = x * keep
        return self.flatten(self.relu(self.pool(x)))


class ClassClassifier(nn.Cell):
    """Features (N, 800) -> class logits (N, 10); `keep` is a dropout mask (N, 100) or None."""

    def __init__(self, classes=10):
        super().__init__()
        self.fc1 = nn.Dense(FEATURES, HIDDEN)
        self.bn1 = nn.BatchNorm1d(HIDDEN)
        self.fc2 = nn.Dense(HIDDEN, HIDDEN)
        self.bn2 = nn.BatchNorm1d(HIDDEN)
        self.fc3 = nn.Dense(HIDDEN, classes)
        self.relu = nn.ReLU()

    def construct(self, features, keep=None):
        x = self.relu(self.bn1(self.fc1(features)))
        if keep is not None:
            x = x * keep
        x = self.relu(self.bn2(self.fc2(x)))
        return self.fc3(x)


class DomainClassifier(nn.Cell):
    """Features (N, 800) -> domain logits (N, 2): column 0 source, column 1 target."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Dense(FEATURES, HIDDEN)
        self.bn1 = nn.BatchNorm1d(HIDDEN)
        self.fc2 = nn.Dense(HIDDEN, 2)
        self.relu = nn.ReLU()

    def construct(self, features):
        return self.fc2(self.relu(self.bn1(self.fc1(features))))


class DANN(nn.Cell):
    """Backbone and class classifier: float32 (N, 3, 28, 28) in [0, 1] -> class logits (N, 10)."""

    def __init__(self, input_norm="none"):
        super().__init__()
        self.backbone = Backbone(input_norm)
        self.class_classifier = ClassClassifier()

    def construct(self, images):
        return self.class_classifier(self.backbone(images))
