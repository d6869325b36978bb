"""The configuration keys of data, in their three forms: set of domains, pair of domains, folder."""

import dataclasses

from model_utils.key import Key
from src.data import augment
from src.data.domains import TARGET_SPLITS
from src.data.sets import SETS


def _place(meaning, default=""):
    return Key(default, meaning, path=True, volatile=True)


DATA_SETS = (
    "data set: mnist, mnist_m, usps, svhn, demo_digits, demo_photos; folder, list, or empty: as its root is"
)

KEYS = {
    # A pair of domains
    "source_dataset_name": Key("", f"labelled {DATA_SETS}"),
    "source_image_root": _place("folder of the source data set, image folder, or list of `path label`"),
    "target_dataset_name": Key("", f"unlabelled {DATA_SETS}"),
    "target_image_root": _place(
        "folder of the target data set, image folder with or without labels, or list"
    ),
    "validation_size": Key(
        1000,
        "digit sets: images held out of each training split for the validation figures (the target's "
        "without labels); image folders: see holdout",
        low=0,
    ),
    "source_augment": Key("none", "digit sets: augmentation of source images", choices=augment.CHOICES),
    "target_augment": Key("none", "digit sets: augmentation of target images", choices=augment.CHOICES),
    "protocol": Key(
        "full",
        "full: all training images; sampled: 2,000 of MNIST and 1,800 of USPS, drawn by seed",
        choices=("full", "sampled"),
    ),
    "digit_resize": Key(
        "area",
        "digit sets of another size than the network's: area averages when shrinking and is linear when "
        "growing; corners: linear between grids whose corners coincide; origin: linear between grids whose "
        "first pixels coincide, as the authors of ADDA have it",
        choices=("area", "corners", "origin"),
    ),
    # A set of domains
    "domain_set": Key(
        "",
        "rotated_mnist: MNIST at 0 to 75 degrees; digits: mnist, mnist_m, usps; pacs: folders with its "
        "seven classes; folders: any <domain>/<class>/* of images; demo: digits that need no files; empty: "
        "no set",
        choices=("", *SETS),
    ),
    "target_domain": Key("art_painting", "the domain of the set that is the target"),
    "source_domains": Key("", "names with commas between: only these are sources; empty: all others"),
    "domains_image_root": _place("pacs, folders: folder of <domain>/<class>/* images; empty: pacs data/pacs"),
    "kfold_root": _place(
        "pacs, folders: folder of the official <domain>_{train,crossval,test}_kfold.txt split lists, seen "
        "from domains_image_root; empty: split by holdout"
    ),
    "mnist_image_root": _place("rotated_mnist, digits: folder of MNIST", "data/mnist"),
    "mnist_m_image_root": _place("digits: folder of MNIST-M", "data/mnist_m"),
    "usps_image_root": _place("digits: folder of USPS", "data/usps"),
    "train_size_per_domain": Key(0, "training images of each source domain, drawn by seed; 0: all", low=0),
    "augment": Key(
        "none",
        "augmentation of training images of sets of domains and of image folders; flip mirrors each image "
        "with probability 1/2",
        choices=("flip", *augment.CHOICES),
    ),
    # Image folders
    "dataset_path": _place(
        "folder that relative *_image_root folders are looked up in, empty: this one; image folders: the "
        "folder of train/ and val/"
    ),
    "holdout": Key(
        0.1,
        "share of a source's images (sets of digits: training images) kept for validation figures and, in "
        "image folders without a split, for testing",
        low=0,
        below=1,
    ),
    "target_split": Key(
        "transductive",
        "a target's image folder without a split: transductive trains on all images without labels and "
        "tests on all; holdout tests on the share holdout and trains on the rest",
        choices=TARGET_SPLITS,
    ),
    "list_root": _place("lists: folder that their paths are seen from; empty: the list's, or the one above"),
    "list_classes": _place(
        "lists with numbers as labels: text file of the classes' names, one a line, in order"
    ),
    "crop_scale_min": Key(
        0.0,
        "training on image folders: smallest share of an image's area that is cut out; 1: the view of the "
        "evaluation; 0: the network's own",
        low=0,
        high=1,
    ),
    "flip": Key(
        "auto",
        "training on image folders: mirror each image with probability 1/2; auto: as the network's",
        choices=("auto", "true", "false"),
    ),
    "color_jitter": Key(
        0.0,
        "training on image folders: brightness, contrast and saturation times 1 - j to 1 + j",
        low=0,
        below=1,
    ),
    "strict": Key(False, "stop at an unreadable or missing image or a stray file, instead of naming it"),
    # How they are read
    "num_parallel_workers": Key(
        0, "threads that decode, at most one per processor; 0: as many", low=0, volatile=True
    ),
    "cache": Key(
        "none",
        "memory: keep decoded images of folders, as many as fit",
        choices=("none", "memory"),
        volatile=True,
    ),
    "download": Key(
        False,
        "fetch data that are missing into their folder: MNIST, USPS, SVHN, and Imagenette into a "
        "dataset_path called imagenette2-160; checksums are checked",
        volatile=True,
    ),
}


def keys(**defaults):
    """All keys of data, with a method's defaults in place of the general ones."""
    unknown = sorted(set(defaults) - set(KEYS))
    assert not unknown, f"no keys of data: {unknown}"
    changed = {name: dataclasses.replace(KEYS[name], default=value) for name, value in defaults.items()}
    return {**KEYS, **changed}
