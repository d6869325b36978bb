"""A small network for 64x64 pictures: 621,127 parameters with seven classes."""

from src import networks
from src.data.preparation import Preparation
from src.networks._small import Backbone

SIZE = 64


class Family(networks.Family):
    """Network `photos`: 5x5 of stride 2 to 32, 3x3 to 64 and 128 channels, 256 hidden units."""

    def preparation(self, variant, config):
        return Preparation(SIZE)

    def backbone(self, variant, config, preparation, twice=False):
        networks.check_size("photos", preparation, SIZE)
        layers = [(3, 32, 5, 2, 2), (32, 64, 3, 1, 1), (64, 128, 3, 1, 1)]
        return Backbone(layers, 128 * 4 * 4, 256, config.dropout, twice)
