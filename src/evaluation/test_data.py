"""The test data of a trained network: those of its configuration, or every image of a folder of classes."""

from pathlib import Path

from model_utils.errors import UserError
from src.data.domains import Opening, class_names, find_parts
from src.data.files import LeftOut, scan
from src.data.forms import Form, agreed
from src.data.tasks import Task, open_task


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
        UserError: no such data, none with labels, or classes that do not match.
    """
    if _is_whole(settings, method):
        task = _whole_folder(settings, place, classes)
    else:
        task = open_task(settings, place, classes, method.LEAST_SOURCES)
    test_sets = task.test(preparation, method.evaluation_batch(settings))
    if not test_sets:
        raise UserError(f"{task.form.key}: there are no labelled images to test on; give a folder of classes")
    return task, test_sets


def _is_whole(settings, method):
    """Whether `dataset_path` alone names the data, and is a folder of classes without train/ and val/."""
    others = ["domain_set", "domains_image_root", "source_dataset_name", "source_image_root"]
    if method.LEAST_SOURCES == 0:  # a target alone is data enough
        others += ["target_dataset_name", "target_image_root"]
    folder = settings.dataset_path
    if not folder or not Path(folder).is_dir() or any(getattr(settings, name) for name in others):
        return False
    return not find_parts(folder) and class_names(folder) is not None


def _whole_folder(settings, place, classes):
    """The Task of a folder of classes that is tested whole."""
    folder, left_out = settings.dataset_path, LeftOut(settings.strict)
    opening = Opening(settings, left_out, "dataset_path", "val")
    parts = {"test": lambda: opening.announced(scan(folder, left_out), folder)}
    form = Form("dataset_path", [opening.domain(folder, class_names(folder), parts)])
    return Task(form, agreed(form, classes, settings), settings, place, left_out)
