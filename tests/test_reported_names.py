"""Class names beside a model, as reported of other projects: it knows them, and data are compared by name.

Three coloured classes; `other` has the same pictures with one class named differently. What is trained is a
small network in place of HarDNet: what happens to names is the same code, in a tenth of the time.
"""

import json
import logging
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import command, fails, open_task, refused, stop_after
from PIL import Image

import eval as eval_program
import eval_onnx
import export
import infer
from model_utils import checkpoint, run_log
from src import networks
from src.data import tasks
from src.exported import exporting, model_files, trained
from src.setup import settings as experiment
from src.train_cells import find_method
from src.training import whole_run

COLOURS = {"blue": (30, 40, 220), "green": (30, 200, 40), "red": (220, 30, 30), "violet": (150, 20, 200)}
NAMES = ["blue", "green", "red"]
KEYS = {
    "method": "supervised",
    "network": "dann",
    "batch_size": 8,
    "eval_batch_size": 4,
    "epoch_size": 6,
    "warmup_epochs": 0,
    "lr_max": 0.01,
    "tensorboard": "false",
    "device_target": "CPU",
}
DIFFERENCE = "only in the data: violet; only in the model: blue"


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch, place):
    """The commands find the device chosen already; what they do to the log ends with the test."""
    monkeypatch.setattr("src.setup.place.set_up", lambda config, exact=False: place)
    monkeypatch.setattr(model_files, "_set_up", lambda *_, **__: None)
    monkeypatch.setattr("src.evaluation.plots.curves", lambda folder: None)
    log = logging.getLogger("run")
    before = (list(log.handlers), log.level, log.propagate)
    yield
    log.handlers[:], log.level, log.propagate = before


def make(root, names):
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name in names:
            folder = Path(root, split, name)
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.array(COLOURS[name]) + rng.normal(0, 6, (48, 48, 3))
                image = Image.fromarray(np.clip(pixels, 0, 255).astype("u1"))
                image.save(folder / f"{index:03d}.jpg", quality=95)


@pytest.fixture(scope="module")
def made(tmp_path_factory, place):
    """A folder with `rgb`, `other`, and of a run on `rgb` its folder `run`, `net.onnx` and `net.mindir`."""
    root = tmp_path_factory.mktemp("names")
    make(root / "rgb", NAMES)
    make(root / "other", ("green", "red", "violet"))
    settings = configured(root / "rgb", output_dir=root / "run")
    patch = pytest.MonkeyPatch()
    patch.setattr("src.evaluation.plots.curves", lambda folder: None)
    with patch.context():
        assert whole_run.run(lambda: built(settings, place), settings, place, time.perf_counter()) == 0
    patch.undo()
    run_log.log.handlers.clear()
    assert json.loads((root / "run" / "result.json").read_text())["accuracy"] == {"val": 1.0}
    loaded = trained.load(settings, root / "run")
    images = loaded.network.preparation.to_network(np.zeros((3, 28, 28, 3), np.uint8))
    about = exporting.describe(settings, loaded.network.preparation, loaded.names)
    for file_format in ("ONNX", "MINDIR"):
        exporting.export(loaded.network, images, root / "net", file_format, about=about)
    return root


def configured(data, **changes):
    keys = {**KEYS, "dataset_path": data, **changes}
    return experiment.load([f"--{name}={value}" for name, value in keys.items()])


def built(settings, place):
    task = open_task(settings, place)
    cell = find_method(settings.method)(settings, place, task)
    return cell, task.test(cell.preparation)


MODELS = ("run", "net.onnx", "net.mindir")


@pytest.fixture
def called(monkeypatch, capsys):
    """A function that runs a program's `main` in this process: what it prints; it raises what that raises."""

    def run(program, *words, **keys):
        options = [f"--{name}={value}" for name, value in keys.items()]
        monkeypatch.setattr("sys.argv", [program.__name__, *map(str, words), *options])
        capsys.readouterr()
        assert program.main() == 0
        return "".join(capsys.readouterr())

    return run


def best(printed):
    """The best class of each image that infer.py printed."""
    return [line.split()[1] for line in printed.splitlines() if "%" in line]


# The four reproductions, as commands


def test_reported_evaluation_on_other_classes_is_refused_and_names_them(made):
    done = command("eval.py", ckpt_path=made / "run", dataset_path=made / "other", device_target="CPU")
    refused(done, "dataset_path", DIFFERENCE)


def test_reported_export_beside_other_classes_is_refused(made, tmp_path):
    keys = {"ckpt_file": made / "run", "file_format": "ONNX", "file_name": tmp_path / "net"}
    refused(command("export.py", dataset_path=made / "other", device_target="CPU", **keys), DIFFERENCE)
    assert list(tmp_path.iterdir()) == []


def test_reported_class_folders_renamed_on_disk_change_no_answer(made, tmp_path, monkeypatch, called):
    shutil.copytree(made, tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    for split in ("train", "val"):
        Path("rgb", split, "red").rename(Path("rgb", split, "apple"))
    pictures = [f"rgb/val/{name}/000.jpg" for name in ("apple", "blue", "green")]
    for model in MODELS:
        shown = called(infer, *pictures, model=model, top=1)
        assert best(shown) == ["red", "blue", "green"], model
    done = command(
        "infer.py", "rgb/val/apple/000.jpg", model="run", device_target="CPU", top=1, cwd=os.getcwd()
    )
    assert (done.returncode, best(done.stdout)) == (0, ["red"])
    message = fails(lambda: called(eval_program, ckpt_path="run", dataset_path="rgb"), "dataset_path")
    assert "only in the data: apple; only in the model: red" in message


def test_reported_run_resumed_with_other_data_is_refused(made, tmp_path):
    keys = {**KEYS, "output_dir": tmp_path / "run", "epoch_size": 400, "dataset_path": made / "rgb"}
    status, shown, errors = stop_after("train epoch: 1,", signal.SIGTERM, **keys)
    assert (status, errors) == (143, ""), shown
    keys |= {"resume": "true"}
    done = command("train.py", **{**keys, "dataset_path": made / "other"})
    refused(done, "resume", checkpoint.listed(tmp_path / "run")[0].name, DIFFERENCE)
    status, shown, _ = stop_after("train epoch: ", signal.SIGTERM, **keys)
    assert status == 143 and "resuming from" in shown


# Whatever reads data beside a model


@pytest.mark.parametrize("model", MODELS)
def test_reported_inference_on_a_folder_compares_names(made, tmp_path, model, called):
    keys = {"model": made / model, "result_dir": tmp_path}
    fails(
        lambda: called(infer, dataset_path=made / "other", **keys),
        "dataset_path",
        DIFFERENCE,
        "net" if model != "run" else "step-",
    )
    assert list(tmp_path.iterdir()) == []
    assert "'acc': 1.0" in called(infer, dataset_path=made / "rgb", **keys)


def test_reported_onnx_evaluation_compares_names(made, called):
    keys = {"onnx_path": made / "net.onnx", "device_target": "CPU"}
    fails(lambda: called(eval_onnx, dataset_path=made / "other", **keys), "dataset_path", DIFFERENCE)
    assert "top-1 accuracy: 1.0" in called(eval_onnx, dataset_path=made / "rgb", **keys)


def test_reported_data_with_fewer_classes_are_refused_too(made, tmp_path, called):
    make(tmp_path / "less", ("blue", "red"))
    keys = {"ckpt_path": made / "run", "dataset_path": tmp_path / "less"}
    fails(lambda: called(eval_program, **keys), "only in the model: green")


def test_reported_target_of_a_pair_is_compared_as_well(made, place):
    pair = {"method": "dann", "source_dataset_name": "folder", "source_image_root": made / "rgb"}
    settings = experiment.load(
        [f"--{k}={v}" for k, v in {**pair, "target_image_root": made / "other"}.items()]
    )
    fails(lambda: tasks.open_task(settings, place, tuple(NAMES)), "target", "only in the data: violet")


def test_reported_names_in_another_order_are_mapped(made, place, tmp_path, called):
    """By name: the data's order, sorted or that of a list, is not the model's."""
    order = ("red", "green", "blue")
    task = tasks.open_task(configured(made / "rgb"), place, order)
    (loader,) = task.test(networks.preparation(configured(made / "rgb"))).values()
    labels = np.concatenate([labels for _, labels in loader])
    assert [order[label] for label in labels] == [name for name in NAMES for _ in range(4)]

    model = onnx.load(str(made / "net.onnx"))  # its last layer with the rows of two classes exchanged
    values = {entry.key: entry.value for entry in model.metadata_props}
    values["class_names"] = json.dumps(order)
    exchanged = 0
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        for axis in [axis for axis, size in enumerate(array.shape) if size == len(NAMES)]:
            if array.ndim <= 2:
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.flip(array, axis).copy(), tensor.name))
                exchanged += 1
    assert exchanged == 2  # weights and biases
    onnx.helper.set_model_props(model, values)
    onnx.save(model, str(tmp_path / "turned.onnx"))
    keys = {"dataset_path": made / "rgb", "device_target": "CPU"}
    shown = called(eval_onnx, onnx_path=tmp_path / "turned.onnx", **keys)
    assert "top-1 accuracy: 1.0" in shown
    shown = called(infer, model=tmp_path / "turned.onnx", result_dir=tmp_path / "r", **keys)
    assert "'acc': 1.0" in shown
    lines = (tmp_path / "r" / "result_Files" / "red" / "000.jpg.txt").read_text().split()
    assert lines[0] == "red"


def test_reported_export_without_its_data_keeps_the_names_and_says_what_it_compared_on(
    made, tmp_path, called
):
    keys = {"ckpt_file": made / "run", "file_format": "ONNX", "device_target": "CPU"}
    shown = called(export, file_name=tmp_path / "a", dataset_path=tmp_path / "absent", **keys)
    assert "the test data are not there" in shown
    assert "compared on 9 photographs that come with scikit-image" in shown
    assert list(model_files.open_model(tmp_path / "a.onnx", "CPU").names) == NAMES
    shown = called(export, file_name=tmp_path / "b", **keys)
    assert "compared on 12 test images of val" in shown


def test_reported_every_file_of_a_run_names_its_classes(made):
    for path in (made / "run" / "network.ckpt", *checkpoint.listed(made / "run")):
        assert checkpoint.read(path)[1]["classes"] == NAMES
    for model in MODELS:
        assert list(model_files.open_model(made / model, "CPU").names) == NAMES


# Initial weights


@pytest.mark.parametrize("data, fits", [("rgb", True), ("other", False)])
def test_reported_class_head_of_other_classes_is_no_start(made, place, caplog, data, fits):
    caplog.set_level(logging.INFO, "run")
    settings = configured(made / data, pretrained=made / "run")
    stored = checkpoint.newest(made / "run")[1]
    network = built(settings, place)[0].network
    same = [np.array_equal(p.asnumpy(), stored[p.name]) for p in network.head.get_parameters()]
    assert all(same) if fits else not all(same)
    assert all(np.array_equal(p.asnumpy(), stored[p.name]) for p in network.backbone.get_parameters())
    assert (DIFFERENCE in caplog.text) == (not fits)


# Files of earlier releases, which hold no names


@pytest.fixture
def earlier(made, tmp_path):
    """A copy of `made` as an earlier release would have written it."""
    root = tmp_path / "earlier"
    shutil.copytree(made, root)
    settings = configured(root / "rgb")
    loaded = trained.load(settings, made / "run")
    path, _, meta = checkpoint.newest(made / "run")
    meta = {key: value for key, value in meta.items() if key != "classes"}
    meta["config"] = {**meta["config"], "dataset_path": str(root / "rgb")}
    shutil.rmtree(root / "run" / "checkpoints")
    checkpoint.save_state({"network": loaded.network}, meta, root / "run" / "checkpoints" / path.name)
    model = onnx.load(str(made / "net.onnx"))
    values = {entry.key: entry.value for entry in model.metadata_props if entry.key != "class_names"}
    onnx.helper.set_model_props(model, values)
    onnx.save(model, str(root / "net.onnx"))
    about = json.loads(exporting.sidecar(made / "net.mindir").read_text())
    del about["class_names"]
    exporting.sidecar(root / "net.mindir").write_text(json.dumps(about))
    return root


UNNAMED = "does not name its classes: only their number"


def test_reported_earlier_checkpoint_is_evaluated_by_number_and_says_so(earlier, tmp_path, called):
    keys = {"ckpt_path": earlier / "run"}
    shown = called(eval_program, dataset_path=earlier / "rgb", **keys)
    assert UNNAMED in shown and "accuracy:{'acc':1.0}" in shown
    make(tmp_path / "four", COLOURS)
    fails(
        lambda: called(eval_program, dataset_path=tmp_path / "four", **keys),
        "4 classes (blue, green, red, violet)",
        "the model has 3",
    )


def test_reported_earlier_checkpoint_takes_the_names_of_its_data_and_says_so(earlier):
    picture = earlier / "rgb" / "val" / "red" / "000.jpg"
    done = command("infer.py", picture, model=earlier / "run", device_target="CPU", top=1)
    assert (done.returncode, best(done.stdout)) == (0, ["red"])
    assert UNNAMED in done.stderr and "as in its data today" in done.stderr
    aside = shutil.move(picture, earlier)
    shutil.rmtree(earlier / "rgb")
    done = command("infer.py", aside, model=earlier / "run", device_target="CPU", top=1)
    assert (done.returncode, best(done.stdout)) == (0, ["class"])
    assert "its data do not name them either" in done.stderr and "numbers are shown" in done.stderr


@pytest.mark.parametrize("model", ["net.onnx", "net.mindir"])
def test_reported_earlier_exports_work_by_number_and_say_so(earlier, tmp_path, model, called):
    picture = earlier / "rgb" / "val" / "red" / "000.jpg"
    shown = called(infer, picture, model=earlier / model, top=1)
    assert "  class 2" in shown and "class names are not known" in shown
    keys = {"model": earlier / model, "result_dir": tmp_path / "r"}
    shown = called(infer, dataset_path=earlier / "rgb", **keys)
    assert UNNAMED in shown and "'acc': 1.0" in shown
    if model == "net.onnx":
        keys = {"onnx_path": earlier / model, "device_target": "CPU"}
        shown = called(eval_onnx, dataset_path=earlier / "rgb", **keys)
        assert UNNAMED in shown and "top-1 accuracy: 1.0" in shown
        make(tmp_path / "four", COLOURS)
        fails(
            lambda: called(eval_onnx, dataset_path=tmp_path / "four", **keys),
            "4 classes",
        )


def test_reported_export_of_an_earlier_checkpoint_says_where_names_come_from(earlier, tmp_path, called):
    keys = {"ckpt_file": earlier / "run", "file_format": "ONNX", "device_target": "CPU"}
    shown = called(export, file_name=tmp_path / "a", **keys)
    assert UNNAMED in shown and "the class names are taken from the data as they are today" in shown
    assert list(model_files.open_model(tmp_path / "a.onnx", "CPU").names) == NAMES
    shown = called(export, file_name=tmp_path / "b", dataset_path="", **keys)
    assert "the class names stay unknown" in shown
    assert model_files.open_model(tmp_path / "b.onnx", "CPU").names is None


# Checkpoints in parts, and names that are damaged or odd


def test_reported_checkpoint_in_two_files_names_its_classes(place, tmp_path, caplog):
    settings = experiment.load(["--method=dann"])
    network = networks.build(settings, 3)
    files = {}
    for key, part, names in (
        ("backbone_ckpt_file", network.backbone, NAMES),
        ("classifier_ckpt_file", network.head, NAMES),
        ("other", network.head, ["green", "red", "violet"]),
        ("old_backbone", network.backbone, None),
        ("old_head", network.head, None),
    ):
        files[key] = tmp_path / f"{key}.ckpt"
        checkpoint.save_cell(part, files[key], {"format": 1, "classes": names} if names else None)

    def load(backbone, head):
        given = {"backbone_ckpt_file": str(files[backbone]), "classifier_ckpt_file": str(files[head])}
        return trained.load_parts(settings.replace(num_classes=3, **given), find_method("dann"))

    assert load("backbone_ckpt_file", "classifier_ckpt_file").names == tuple(NAMES)
    fails(lambda: load("backbone_ckpt_file", "other"), "of models with different classes")
    assert load("old_backbone", "classifier_ckpt_file").names == tuple(NAMES)
    caplog.clear()
    assert load("old_backbone", "old_head").names is None
    assert UNNAMED in caplog.text


@pytest.mark.parametrize("names", [["red", "red", "blue"], ["red", "blue"], "rgb", [1, 2, 3]], ids=str)
def test_reported_names_that_cannot_be_are_refused(made, tmp_path, names, called):
    path, _, meta = checkpoint.newest(made / "run")
    settings = configured(made / "rgb")
    network = trained.load(settings, path).network
    checkpoint.save_state({"network": network}, {**meta, "classes": names}, tmp_path / "a.ckpt")
    fails(lambda: trained.load(settings, tmp_path / "a.ckpt"), "a.ckpt", "use another one")
    shutil.copy(made / "net.mindir", tmp_path / "a.mindir")
    about = json.loads(exporting.sidecar(made / "net.mindir").read_text()) | {"class_names": names}
    exporting.sidecar(tmp_path / "a.mindir").write_text(json.dumps(about))
    picture = made / "rgb" / "val" / "red" / "000.jpg"
    fails(lambda: called(infer, picture, model=tmp_path / "a.mindir"), "again")


def test_reported_class_folder_whose_name_is_no_text(made, tmp_path, called):
    """Its name goes through checkpoint, export and inference, and is shown with its bytes as escapes."""
    shutil.copytree(made / "rgb", tmp_path / "rgb")
    odd = b"r\xe9d"
    for split in ("train", "val"):
        folder = os.fsencode(tmp_path / "rgb" / split)
        os.rename(folder + b"/red", folder + b"/" + odd)
    settings = configured(tmp_path / "rgb")
    path, _, meta = checkpoint.newest(made / "run")
    names = ["blue", "green", os.fsdecode(odd)]
    network = trained.load(settings, path).network
    meta |= {"classes": names, "config": {**meta["config"], "dataset_path": str(tmp_path / "rgb")}}
    checkpoint.save_state({"network": network}, meta, tmp_path / "a.ckpt")
    for file_format, ending in (("ONNX", "onnx"), ("MINDIR", "mindir")):
        keys = {"ckpt_file": tmp_path / "a.ckpt", "file_format": file_format, "device_target": "CPU"}
        called(export, file_name=tmp_path / "a", **keys)
        assert list(model_files.open_model(tmp_path / f"a.{ending}", "CPU").names) == names
    picture = os.fsdecode(os.fsencode(tmp_path / "rgb" / "val") + b"/" + odd + b"/000.jpg")
    shown = called(infer, picture, model=tmp_path / "a.onnx", top=1)
    assert best(shown) == ["r\\xe9d"] and "val/r\\xe9d/000.jpg" in shown
    done = command("infer.py", picture, "--json", model=tmp_path / "a.onnx", device_target="CPU", top=1)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert (row["image"], row["top"][0]["class"]) == (picture, names[2])
    shown = called(
        infer,
        model=tmp_path / "a.onnx",
        dataset_path=tmp_path / "rgb",
        result_dir=tmp_path / "results",
    )
    assert "'acc': 1.0" in shown
    text = next((tmp_path / "results" / "result_Files").glob("r*d/000.jpg.txt")).read_text()
    assert text.startswith("r\\xe9d ")
