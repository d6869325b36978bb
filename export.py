"""Export a checkpoint: python export.py --ckpt_file FILE_OR_RUN_FOLDER --file_format MINDIR|ONNX|AIR"""

import sys
from pathlib import Path

from model_utils import cli, config
from model_utils.errors import UserError

COMPARED_IMAGES = 64


def main():
    settings = config.load(sys.argv[1:], "export.py", checkpoint_key="ckpt_file")
    if settings is None:
        return 0
    from model_utils import checkpoint, device, run_log
    from src import exporting
    from src.train_cells import find_method

    if not settings.ckpt_file:
        raise UserError("ckpt_file: give a checkpoint, or the output_dir of a run, with --ckpt_file")
    method = find_method(settings.method)
    # An export holds MindSpore's own operators only: take the CPU setting that suits those.
    place = device.setup(settings.replace(cpu_operator=False))
    run_log.setup()
    network = method.build_network(settings)
    used = checkpoint.load_network(network, settings.ckpt_file)
    images, _ = next(iter(next(reversed(method.test_sets(settings, place).values()))))
    path, difference = exporting.export(
        network,
        images[:COMPARED_IMAGES],
        settings.file_name or Path(settings.output_dir) / settings.experiment,
        settings.file_format,
        # config.yaml's batch size is for training; only one asked for here fixes the exported batch.
        settings.batch_size if "batch_size" in settings.given else None,
        place.target,
    )
    run_log.log.info("exported %s to %s", used, path)
    if difference is not None:
        count = len(images[:COMPARED_IMAGES])
        run_log.log.info(
            "reloaded and compared on %d images: maximal logits difference %.2e", count, difference
        )
    return 0


if __name__ == "__main__":
    cli.run(main)
