"""Leave one source out: how well a configuration generalises, judged without the target.

Each source domain is left out in turn: the configuration is trained on the others and tested on the labelled
images of the one left out. The mean accuracy is the objective of a trial (Gulrajani & Lopez-Paz 2021, arXiv
2007.01434, section 3: leave-one-domain-out cross-validation). The target is neither trained nor tested on.
"""

import json

from model_utils.errors import UserError
from src.data import sets
from src.data.files import LeftOut
from src.data.forms import rooted
from src.evaluation.result import target_accuracy
from src.train_cells import find_method

NAME = "leave_one_source_out"
KEYS = ("target_domain", "source_domains")  # what the runs differ in


def words(settings):
    """{source: words of train.py for the run that leaves it out}, of an experiment on a set of domains.

    Raises:
        UserError: it is on no set of domains, or has too few sources.
    """
    if not (settings.domain_set or settings.domains_image_root):
        raise UserError(
            f"objective: {NAME} needs a set of domains (domains_image_root or domain_set); choose another"
        )
    least = find_method(settings.method).LEAST_SOURCES
    _, sources = sets.open_set(rooted(settings), LeftOut(settings.strict), least)
    if len(sources) <= least:
        raise UserError(
            f"objective: {NAME} trains on one source fewer, and {settings.method} needs {least}; there are "
            f"{len(sources)}: give more domains, or choose another objective"
        )
    for name in sources:
        sets.check_roles([other for other in sources if other != name], name)
    return {
        name: [f"--target_domain={name}", f"--source_domains={','.join(s for s in sources if s != name)}"]
        for name in sources
    }


def accuracy(folder):
    """The accuracy in [0, 1] on the source that a finished run left out; None if it has none."""
    return target_accuracy(json.loads((folder / "result.json").read_text(encoding="utf-8")))
