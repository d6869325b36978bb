"""Export a checkpoint: python export.py [--ckpt_file FILE_OR_RUN_FOLDER] [--file_format MINDIR|ONNX|AIR]

Without --ckpt_file it is the newest one of output_dir.
"""

from model_utils import interrupts

if __name__ == "__main__":
    interrupts.guard()

import sys
from pathlib import Path

from model_utils import cli
from model_utils.errors import UserError

COMPARED_IMAGES = 64
COMPARED_LARGE, LARGE = 16, 100 * 100  # of images with more pixels than that


def comparison(settings, place, loaded, method):
    """(real images float32 (N, C, S, S) to compare on, what they are in words, class names or None).

    The images are of the test data; where these are not there, photographs that come with scikit-image
    serve: weights can then be exported without the data they were trained on.

    Raises:
        UserError: the data are there, and have other classes than the model.
    """
    from model_utils.run_log import log
    from src.data import demo_photos
    from src.data.forms import OtherClasses
    from src.data.tasks import open_task

    preparation = loaded.network.preparation
    count = COMPARED_LARGE if preparation.size**2 > LARGE else COMPARED_IMAGES
    try:
        task = open_task(settings, place, loaded.classes, method.LEAST_SOURCES)
        test_sets = task.test(preparation)
        if not test_sets:
            raise UserError("the data have no labelled test images")
        name, loader = list(test_sets.items())[-1]
        images = loader.sample(count, settings.seed)[0]
    except OtherClasses as error:
        raise UserError(f"{error}, or a path without data: then photographs are compared on") from error
    except UserError as error:
        log.info("the test data are not there (%s)", error)
        if loaded.names is None:
            log.info("the class names stay unknown")
        return demo_photos.prepared(preparation), "photographs that come with scikit-image", loaded.names
    if loaded.names is None:
        log.info("the class names are taken from the data as they are today")
    return images, f"test images of {name}", loaded.names or task.classes


def main():
    from src.setup import settings as experiment

    settings = experiment.load(sys.argv[1:], "export.py", checkpoint_key="ckpt_file")
    if settings is None:
        return 0
    from model_utils import modelarts, run_log
    from src.exported import exporting, trained
    from src.setup.place import set_up
    from src.train_cells import find_method

    settings = modelarts.prepare(settings)
    # An export holds MindSpore's own operators only: take the CPU setting that suits those. The file is
    # compared with the network, which must not round more than what runs the file.
    place = set_up(settings.replace(cpu_operator=False), exact=True)
    run_log.setup()
    method = find_method(settings.method)
    loaded = trained.find(settings, method, "ckpt_file")
    images, what, names = comparison(settings, place, loaded, method)
    path, difference = exporting.export(
        loaded.network,
        images,
        settings.file_name or Path(settings.output_dir) / settings.experiment,
        settings.file_format,
        # config.yaml's batch size is for training; only one asked for here fixes the exported batch.
        settings.batch_size if "batch_size" in settings.given else None,
        place.target,
        exporting.describe(settings, loaded.network.preparation, names),
    )
    run_log.log.info("exported %s to %s", loaded.path, path)
    if difference is not None:
        run_log.log.info(
            "reloaded and compared on %d %s: maximal logits difference %.2e", len(images), what, difference
        )
    return 0


if __name__ == "__main__":
    cli.run(main)
