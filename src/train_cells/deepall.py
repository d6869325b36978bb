"""DeepAll: plain training on the joined source domains, what domain generalisation is compared with.

The network, its initial weights (by seed), the batches and the number of steps are those of MASF with the
same keys: only what is done with them differs. The name and the comparison are those of Dou et al. 2019
(arXiv 1910.13580).
"""

from model_utils.key import Key
from src.train_cells import supervised


class Method(supervised.Method):
    """Supervised training on several source domains at once, one of them left out."""

    LEAST_SOURCES, SEES_TARGET = 2, False
    COUNTS_TOP5 = False
    # Parts of the supervised recipe that the methods it is compared with lack are switched off.
    DEFAULTS = {
        "network": "alexnet",
        "domain_set": "pacs",
        "cache": "memory",
        "optimizer": "adam",
        "weight_decay": 0.0,
    }
    KEYS = {
        **supervised.Method.KEYS,
        "batch_size": Key(
            32, "images per source domain, step and process; export.py: fixed batch size", low=1
        ),
        "train_iterations": Key(300, "training steps", low=0),
        "label_smooth_factor": Key(0.0, "share of each label spread over all classes", low=0, below=1),
        "lr_init": Key(0.0, "learning rate that the warm-up starts from", low=0),
        "lr_max": Key(1e-3, "learning rate after the warm-up", above=0),
        "warmup_epochs": Key(0, "epochs of linear warm-up, part of all epochs; one_cycle has its own", low=0),
        "lr_decay_mode": Key(
            "constant",
            supervised.Method.KEYS["lr_decay_mode"].help,
            choices=supervised.Method.KEYS["lr_decay_mode"].choices,
        ),
    }

    @staticmethod
    def accuracy_lines(top1, top5):
        """None: the common lines are all there is."""
        return []
