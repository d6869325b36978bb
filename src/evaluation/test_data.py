"""The test data of a trained network: those of its configuration, or every image of a folder of classes."""

from pathlib import Path

from src.data.domains import class_names, find_parts
from src.data.tasks import open_task

WHOLE = "val"


def open_test_sets(settings, place, classes, method, preparation):
    """(Task, {domain: TestLoader}) for a trained network.

    `dataset_path` may be the folder of test images itself, <class>/*, as `…/imagenet2012/validation` in the
    published commands: every image in it is then tested, as domain "val".

    Args:
        settings, place: as resolved and set up.
        classes: the names of the network's classes, or their number.
        method: the class `Method` it was trained with.
        preparation: of the network's images.

    Raises:
        UserError: no such data, or classes that do not match.
    """
    whole = _is_whole(settings)
    if whole:
        root = str(Path(settings.dataset_path).absolute())
        settings = settings.replace(
            dataset_path="", source_image_root=root, target_image_root=root, target_split="transductive"
        )
    task = open_task(settings, place, classes, method.LEAST_SOURCES)
    test_sets = task.test(preparation, method.evaluation_batch(settings))
    return task, {WHOLE: test_sets["target"]} if whole else test_sets


def _is_whole(settings):
    """Whether `dataset_path` alone names the data, and is a folder of classes without train/ and val/."""
    others = ("domain_set", "domains_image_root", "source_dataset_name", "source_image_root")
    folder = settings.dataset_path
    if not folder or not Path(folder).is_dir() or any(getattr(settings, name) for name in others):
        return False
    return not find_parts(folder) and class_names(folder) is not None
