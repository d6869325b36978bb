"""DeepAll: plain training on the joined source domains, what domain generalisation is compared with.

Every step takes `batch_size` images of each source domain, joins them into one batch and minimises their mean
cross-entropy. The network, its initial weights (by seed), the batches and the number of steps are those of
MASF with the same keys: only what is done with them differs. The name and the comparison are those of Dou et
al. 2019 (arXiv 1910.13580).
"""

import dataclasses

from model_utils.key import Key
from src.data import domains
from src.evaluation.evaluate import Evaluator, held_out_accuracies
from src.networks import generalisation
from src.train_cells import Phase
from src.train_cells import _supervised as supervised

# Of the supervised recipe, what comparable methods leave out is off.
DEFAULTS = {
    "optimizer": "adam",
    "weight_decay": 0.0,
    "label_smooth_factor": 0.0,
    "lr_max": 1e-3,
    "warmup_epochs": 0,
    "lr_decay_mode": "constant",
}

KEYS = {
    **domains.keys(),
    **generalisation.keys(),
    **{name: key for name, key in supervised.KEYS.items() if name != "pre_ckpt_path"},
    **{name: dataclasses.replace(supervised.KEYS[name], default=value) for name, value in DEFAULTS.items()},
    "batch_size": Key(32, "images per source domain, step and process; export.py: fixed batch size", low=1),
    "train_iterations": Key(300, "training steps", low=0),
}


build_network = generalisation.build
test_sets = domains.test_sets


def build(config, device):
    """The train cell of a run."""
    return DeepAllTrainCell(config, device)


class DeepAllTrainCell(supervised.SupervisedTrainCell):
    """Supervised training on all source domains at once."""

    def __init__(self, config, device):
        images = config.batch_size * config.gradient_accumulation
        loaders = domains.build_loaders(config, device, images)
        self.held_out = domains.held_out(config, device)
        network = build_network(config)
        generalisation.load_initial(network, config)
        super().__init__(
            network,
            Phase("train", config.train_iterations, max(1, config.train_iterations), loaders),
            config,
            device,
            dropout=[(shape, config.dropout) for shape in network.dropout_shapes],
            head=network.classifier,
        )
        self._evaluator = Evaluator(self.network, config, device)

    def validate(self, phase):
        """{"held_out_<domain>_accuracy"} of each source domain; nothing of the domain left out."""
        return held_out_accuracies(self._evaluator, self.held_out)

    def features(self, images):
        """(N, 3, S, S) -> hidden layer (N, D)."""
        return self.network.features(images)
