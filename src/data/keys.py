from model_utils.key import Key
from src.data import domains, image_folder, pairs


def keys():
    own = {**pairs.keys("", "", "", ""), **domains.keys(), **image_folder.keys()}
    for n in ("image_size", "num_classes", "crop_pct"):
        own.pop(n)
    own["domain_set"] = Key("", "set", choices=("", *domains.SETS))
    own["protocol"] = Key("full", "p", choices=("full", "sampled"))
    own["crop_scale_min"] = Key(0.0, "c", low=0, high=1)
    own["flip"] = Key("auto", "f", choices=("auto", "true", "false"))
    return own
