"""The network of DANN (Ganin & Lempitsky 2015, arXiv 1409.7495) for 28x28 digits: 176,752 parameters."""

from mindspore import nn

from model_utils.key import Key
from src import networks
from src.data.preparation import Preparation
from src.networks.input_norm import KEYS, InputNorm
from src.ops.chain import Chain
from src.ops.twice_differentiable import max_pool

SIZE = 28
FEATURES = 800  # 50 channels of 4x4
FEATURE_MAP = (50, 8, 8)  # where the backbone's dropout sits
HIDDEN = 100


class Backbone(nn.Cell):
    """Two convolutions; float32 (N, 3, 28, 28) in [0, 1] -> features (N, 800).

    `keep` is the dropout mask from `model_utils.noise.keep_mask`, (N, 50, 8, 8) or, to drop whole channels,
    (N, 50, 1, 1); None for no dropout.
    """

    def __init__(self, input_norm="none", dropout=0.5, dropout_kind="element", twice=False):
        super().__init__()
        self.norm = InputNorm(input_norm)
        self.conv1 = nn.Conv2d(3, 64, 5, pad_mode="valid", has_bias=True)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 50, 5, pad_mode="valid", has_bias=True)
        self.bn2 = nn.BatchNorm2d(50)
        self.pool = max_pool(2, 2, twice)
        self.relu = nn.ReLU()
        self.flatten = nn.Flatten()
        # Which cells follow each other: on a CPU each chain runs as one operator (src/ops).
        self.stage1 = Chain(self.conv1, self.bn1, self.pool, self.relu)
        self.stage2 = Chain(self.conv2, self.bn2)
        self.feature_size = FEATURES
        shape = (FEATURE_MAP[0], 1, 1) if dropout_kind == "channel" else FEATURE_MAP
        self.masks, self.head_dropout = ((shape, dropout),), dropout

    def construct(self, images, keep=None):
        x = self.stage2(self.stage1(self.norm(images)))
        if keep is not None:
            x = x * keep
        return self.flatten(self.relu(self.pool(x)))


class ClassClassifier(nn.Cell):
    """Features (N, 800) -> class logits (N, K); `keep` is a dropout mask (N, 100) or None."""

    def __init__(self, classes=10, dropout=0.5):
        super().__init__()
        self.fc1 = nn.Dense(FEATURES, HIDDEN)
        self.bn1 = nn.BatchNorm1d(HIDDEN)
        self.fc2 = nn.Dense(HIDDEN, HIDDEN)
        self.bn2 = nn.BatchNorm1d(HIDDEN)
        self.fc3 = nn.Dense(HIDDEN, classes)
        self.relu = nn.ReLU()
        self.masks, self.classes = (((HIDDEN,), dropout),), classes

    def construct(self, features, keep=None):
        x = self.relu(self.bn1(self.fc1(features)))
        if keep is not None:
            x = x * keep
        x = self.relu(self.bn2(self.fc2(x)))
        return self.fc3(x)


class Family(networks.Family):
    """Network `dann`."""

    keys = {
        **KEYS,
        "dropout_kind": Key(
            "element",
            "what the backbone's dropout drops: single elements, or whole channels (Tompson et al. 2015)",
            choices=("element", "channel"),
        ),
    }
    prefixes = ("backbone.", "class_classifier.")

    def preparation(self, variant, config):
        return Preparation(SIZE)

    def backbone(self, variant, config, preparation, twice=False):
        networks.check_size("dann", preparation, SIZE)
        return Backbone(config.input_norm, config.dropout, config.dropout_kind, twice)

    def head(self, backbone, classes, config):
        return ClassClassifier(classes, config.dropout)
