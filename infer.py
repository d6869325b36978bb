"""Classify images with a trained model, or a whole labelled folder.

    python infer.py --model outputs/x/net.onnx photo.jpg    the best five classes of each image
    python infer.py --model outputs/x --images phone/ --csv predictions.csv    a table of all images
    python infer.py --model net.mindir --dataset_path DIR --result_dir DIR    result files, acc.log

The model is an .onnx or .mindir file that export.py wrote, a .ckpt file or a run's folder.
"""

from model_utils import interrupts

if __name__ == "__main__":
    interrupts.guard()

import argparse
import logging
import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

import model_utils
from model_utils import cli, paths
from model_utils.checkpoint import atomic
from model_utils.errors import UserError, shortened

RESULTS = "result_Files"


def arguments(argv=None):
    """The parsed command line."""
    parser = cli.Parser(
        prog="infer.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="files, folders (searched to the bottom), patterns"
    )
    parser.add_argument("--images", dest="more", nargs="+", default=[], metavar="IMAGE", help="the same")
    parser.add_argument(
        "--model", "--model_path", required=True, help=".onnx, .mindir, .ckpt or a run's folder"
    )
    parser.add_argument("--version", action="version", version=model_utils.named_version())
    parser.add_argument("--config", help="configuration of a .ckpt that holds none")
    parser.add_argument(
        "--top", type=cli.positive, default=5, help="classes shown for each image (default 5)"
    )
    parser.add_argument(
        "--class_names",
        metavar="FILE",
        help="names to show: one per line in the order of the classes, or lines `folder name`",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object per image and line")
    form.add_argument(
        "--csv", metavar="FILE", help="write a table: path, class, probability, second_class, …"
    )
    parser.add_argument("--batch_size", type=cli.positive, default=16, help="images at once (default 16)")
    parser.add_argument("--device_target", choices=("auto", "Ascend", "GPU", "CPU"), default="auto")
    parser.add_argument("--device_id", type=int, default=0)
    folder = parser.add_argument_group("a labelled folder, DIR/val/<class>/* or DIR/<class>/*")
    folder.add_argument("--dataset_path", metavar="DIR")
    folder.add_argument("--result_dir", metavar="DIR", help=f"folder to make {RESULTS}/ and acc.log in")
    folder.add_argument("--strict", action="store_true", help="stop at an image that can't be read")
    options = parser.parse_args(argv)
    options.images += options.more
    for name in ("model", "config", "class_names", "dataset_path", "result_dir", "csv"):
        value = getattr(options, name)
        setattr(options, name, value and paths.expanded(value, name))
    if bool(options.images) == bool(options.dataset_path):
        parser.error("give images, or a labelled folder with --dataset_path")
    if bool(options.dataset_path) != bool(options.result_dir):
        parser.error("--dataset_path and --result_dir belong together")
    if options.csv and options.dataset_path:
        parser.error("--csv goes with images; --dataset_path writes result files")
    if options.csv and Path(options.csv).is_dir():
        parser.error(f"--csv {options.csv} is a folder; give the name of a file")
    return options


def show_images(model, options):
    """Print the best classes of each image file, or write them to a table.

    Raises:
        UserError: at the end, if some could not be read; or the table can't be written.
    """
    from src.data.files import shown
    from src.data.reading import Reader
    from src.exported import answers

    files, reader = options.images, Reader(options.images)
    if options.csv:
        try:
            with (
                atomic(options.csv) as temporary,
                open(temporary, "w", newline="", encoding="utf-8") as handle,
            ):
                table = answers.Table(handle, options.top)
                for answer in best_classes(model, reader, options):
                    table.add(*answer)
        except OSError as error:
            raise UserError(
                f"csv: {options.csv} could not be written: {error.strerror or error}; choose another place"
            ) from error
        log(f"{len(files) - len(reader.bad)} images in {options.csv}")
    else:
        line = answers.as_json if options.json else answers.as_text
        for answer in best_classes(model, reader, options):
            print(line(*answer), flush=True)
    if reader.bad:
        names = [f"{shown(files[index])} ({reader.bad[index]})" for index in sorted(reader.bad)]
        raise UserError(f"{len(names)} of {len(files)} images could not be read: {shortened(names, 5)}")


def best_classes(model, reader, options):
    """Yield (path, [(class, probability)], class names or None) of each image that can be read, in order."""
    from src.exported import inference

    names, first = None, True
    quiet = not sys.stderr.isatty() or (not options.csv and sys.stdout.isatty())
    with tqdm(total=len(reader.files), unit="image", disable=quiet, dynamic_ncols=True) as bar:
        for index, logits in inference.predictions(model, reader, options.batch_size):
            if first:
                names, first = inference.class_names(model, len(logits), options.class_names), False
                if names is None:
                    log("class names are not known: numbers are shown; --class_names FILE gives names")
            shares = inference.probabilities(logits)
            best = [(int(i), float(shares[i])) for i in inference.ranking(logits, options.top)]
            bar.update(index + 1 - bar.n)
            yield reader.files[index], best, names


def classify_folder(model, options):
    """Write result_dir/acc.log and result_Files/<class>/<image>.txt there: `class probability` per rank."""
    from src.data.domains import find_parts
    from src.data.files import LeftOut, scan
    from src.data.reading import Reader
    from src.exported import inference

    root = Path(options.dataset_path)
    if not root.is_dir():
        raise UserError(f"dataset_path: {root} is no folder; give the one of val/<class>/* or of <class>/*")
    left_out = LeftOut(options.strict)
    folder = scan(find_parts(root).get("test", root), left_out)
    labels = labels_for(model, folder)
    results = Path(options.result_dir) / RESULTS
    if results.exists() and any(results.iterdir()):
        raise UserError(
            f"result_dir: {results} holds results already; remove it, or choose another --result_dir"
        )
    reader, score, names = Reader(folder.files, left_out=left_out), inference.Score(), None
    reader.group(folder.labels, folder.classes)
    begun = time.perf_counter()
    for index, logits in inference.predictions(model, reader, options.batch_size):
        if names is None:
            names = names_for(model, folder, len(logits), options.class_names)
        score.add(logits[None], labels[[index]])
        write_result(results, folder, index, logits, names, options.top)
    seconds = time.perf_counter() - begun
    lines = [f"Total data: {score.count}" + (f" ({len(reader.bad)} could not be read)" if reader.bad else "")]
    lines.append(
        f"'acc': {round(score.accuracies()['top-1'], 6)}"
    )  # the line users of the published model grep
    lines += [f"{name} accuracy: {round(value, 6)}" for name, value in score.accuracies().items()]
    with atomic(results.parent / "acc.log") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    print(
        f"{score.count} images in {seconds:.1f} s, batch {model.batch_size or options.batch_size}; {results}"
    )


def labels_for(model, folder):
    """The folder's labels in the order of the model's classes; UserError unless both have the same names."""
    import numpy as np

    from src.data.forms import compared

    if model.names is None:
        log(f"{model.path} does not name its classes: only their number is checked")
        return folder.labels
    different = compared(folder.classes, model.names)
    if different:
        raise UserError(
            f"dataset_path: {folder.root} has other classes than {model.path} ({different}); give data with "
            "the classes it was trained on"
        )
    return np.array([model.names.index(name) for name in folder.classes])[folder.labels]


def names_for(model, folder, count, names_file):
    """Class names to write; UserError unless the folder has as many classes as the model."""
    from src.exported import inference

    if count != len(folder.classes):
        raise UserError(
            f"dataset_path: {folder.root} has {len(folder.classes)} class folders, the model {count} "
            "classes; give the folder of the data set it was trained on"
        )
    return inference.class_names(model, count, names_file) or list(folder.classes)


def write_result(results, folder, index, logits, names, top):
    """The result file of one image."""
    from src.data.files import shown
    from src.exported import inference

    shares = inference.probabilities(logits)
    lines = [f"{shown(names[i])} {shares[i]:.6f}" for i in inference.ranking(logits, top)]
    path = results / os.path.relpath(folder.files[index], folder.root)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + ".txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def log(line):
    print(line, file=sys.stderr, flush=True)


def main():
    options = arguments()
    if options.images:
        from src.data.files import find

        options.images = find(options.images)  # before a model is loaded in vain
    from src.exported import model_files

    logging.getLogger("run").addHandler(logging.StreamHandler(sys.stderr))
    model = model_files.open_model(options.model, options.device_target, options.device_id, options.config)
    log(f"{model.path}: {model.place}")
    if options.dataset_path:
        classify_folder(model, options)
    else:
        show_images(model, options)
    return 0


if __name__ == "__main__":
    cli.run(main)
