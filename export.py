"""Export a checkpoint: python export.py --ckpt_file FILE_OR_RUN_FOLDER --file_format MINDIR|ONNX|AIR"""

from model_utils import interrupts

if __name__ == "__main__":
    interrupts.guard()

import sys
from pathlib import Path

import numpy as np

from model_utils import cli, config
from model_utils.errors import UserError

COMPARED_IMAGES = 64
COMPARED_LARGE, LARGE = 16, 100 * 100  # of images with more pixels than that


def comparison(method, settings, place):
    """(real images float32 (N, C, H, W) to compare on, the test loader they come from, or None).

    Where a method reads image folders and no dataset_path is given, photographs that come with scikit-image
    serve: converted weights can then be exported without ImageNet.
    """
    if "crop_pct" in settings.keys and not settings.dataset_path:
        from src.data import demo_photos, image_folder

        photos = [*demo_photos.photos("train"), *demo_photos.photos("test")]
        crops = [image_folder.centre_crop(photo, settings.image_size, settings.crop_pct) for photo in photos]
        return image_folder.normalise(np.stack(crops)), None
    few = settings.replace(eval_batch_size=min(settings.eval_batch_size, COMPARED_IMAGES))
    loader = next(reversed(method.test_sets(few, place).values()))
    parts, count, wanted = [], 0, COMPARED_IMAGES
    for images, _ in loader:
        wanted = COMPARED_LARGE if images.shape[2] * images.shape[3] > LARGE else COMPARED_IMAGES
        parts.append(images)
        count += len(images)
        if count >= wanted:
            break
    return np.concatenate(parts)[:wanted], loader


def main():
    settings = config.load(sys.argv[1:], "export.py", checkpoint_key="ckpt_file")
    if settings is None:
        return 0
    from model_utils import checkpoint, run_log
    from src.exported import exporting
    from src.setup.place import set_up
    from src.train_cells import find_method

    if not settings.ckpt_file:
        raise UserError("ckpt_file: give a checkpoint, or the output_dir of a run, with --ckpt_file")
    method = find_method(settings.method)
    # An export holds MindSpore's own operators only: take the CPU setting that suits those.
    place = set_up(settings.replace(cpu_operator=False))
    run_log.setup()
    network = method.build_network(settings)
    used = checkpoint.load_network(network, settings.ckpt_file)
    images, loader = comparison(method, settings, place)
    if loader is None:
        run_log.log.info("no dataset_path: compared on photographs, and the class names stay unknown")
    path, difference = exporting.export(
        network,
        images,
        settings.file_name or Path(settings.output_dir) / settings.experiment,
        settings.file_format,
        # config.yaml's batch size is for training; only one asked for here fixes the exported batch.
        settings.batch_size if "batch_size" in settings.given else None,
        place.target,
        exporting.describe(settings, loader),
    )
    run_log.log.info("exported %s to %s", used, path)
    if difference is not None:
        run_log.log.info(
            "reloaded and compared on %d images: maximal logits difference %.2e", len(images), difference
        )
    return 0


if __name__ == "__main__":
    cli.run(main)
