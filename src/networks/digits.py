"""A small network for 28x28 digits: 140,602 parameters with ten classes."""

from src import networks
from src.data.preparation import Preparation
from src.networks._small import Backbone

SIZE = 28


class Family(networks.Family):
    """Network `digits`: convolutions 5x5 to 32 and 48 channels, 128 hidden units."""

    def preparation(self, variant, config):
        return Preparation(SIZE)

    def backbone(self, variant, config, preparation, twice=False):
        networks.check_size("digits", preparation, SIZE)
        return Backbone([(3, 32, 5, 1, 0), (32, 48, 5, 1, 0)], 48 * 4 * 4, 128, config.dropout, twice)
