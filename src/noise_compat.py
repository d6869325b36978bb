import numpy as np

from model_utils import noise

SAMPLED = {"mnist": 2000, "usps": 1800}


def draw(split, name, protocol, seed):
    if protocol == "full":
        return split
    key = name.lower().replace("_", "")
    chosen = np.sort(noise.generator(seed, f"protocol {key}").permutation(len(split.labels))[: SAMPLED[key]])
    return type(split)(split.images[chosen], split.labels[chosen])
