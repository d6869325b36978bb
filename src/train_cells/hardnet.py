"""HarDNet, the Harmonic DenseNet (Chao et al. 2019, arXiv 1909.00948): supervised, on image folders.

This is supervised training with the published recipe as its defaults, and the published names of its keys.
"""

import numpy as np

from model_utils.key import Alias, Key
from src.train_cells import supervised


class Method(supervised.Method):
    """Supervised training of one of the variants."""

    DEFAULTS = {**supervised.Method.DEFAULTS, "crop_scale_min": 0.08}
    KEYS = {
        **supervised.Method.KEYS,
        "batch_size": Key(
            256,
            "images per batch and process; evaluation takes no more at once; export.py: fixed batch size",
            low=1,
        ),
    }
    ALIASES = {"variant": Alias("network", lambda variant: f"hardnet{variant}")}

    @staticmethod
    def evaluation_batch(config):
        """At most the batch size of training, which a user may have lowered to save memory."""
        return min(config.batch_size, config.eval_batch_size)

    def log_line(self, phase, values):
        """The line of MindSpore's own LossMonitor: epoch and step count from 1."""
        epoch, step = divmod(phase.step, phase.steps_per_epoch)
        return f"epoch:{epoch + 1} step:{step + 1}, loss is {np.float32(values['loss'])!s}"
