"""Exported HarDNets: what their files say, evaluation in onnxruntime, inference on files and folders."""

import json
import logging
import os
import shutil
import types
from pathlib import Path

import mindspore as ms
import numpy as np
import onnx
import pytest
from helpers import build_network, command, demo_config, refused, succeeded, test_sets, tiny_config, tiny_data
from mindspore import nn
from test_launch import script

import eval_onnx
import infer
from model_utils import checkpoint
from model_utils.errors import UserError
from src import networks
from src.data.files import find
from src.data.reading import Reader
from src.exported import exporting, inference, model_files
from src.setup import settings as experiment

CLASSES = [f"class{number}" for number in range(6)]


@pytest.fixture(autouse=True)
def device_is_set(monkeypatch):
    """The test process has its device already (conftest.py); the commands' own choice runs in processes."""
    monkeypatch.setattr(model_files, "_set_up", lambda *_, **__: None)


@pytest.fixture(scope="module")
def data():
    return Path(tiny_data("hardnet")["dataset_path"])


@pytest.fixture(scope="module")
def files(data):
    return sorted(str(path) for path in (data / "val").glob("*/*"))


@pytest.fixture(scope="module")
def made(place, data, tmp_path_factory):
    """A HarDNet with weights that tell images apart, as a run's folder, an ONNX and a MINDIR file."""
    folder = tmp_path_factory.mktemp("exported")
    settings = tiny_config("hardnet")
    network, rng = build_network(settings, place).set_train(False), np.random.default_rng(0)
    for parameter in network.get_parameters():
        kind = parameter.name.rsplit(".", 1)[-1]
        ranges = {"moving_mean": (-0.1, 0.1), "moving_variance": (0.1, 0.3), "beta": (-0.2, 0.2)}
        if kind in ranges:
            values = rng.uniform(*ranges[kind], parameter.shape)
            ms.ops.assign(parameter, ms.Tensor(values, ms.float32))
    images = np.concatenate([images for images, _ in test_sets(settings, place)["val"]])
    # Equally likely classes: without it, one class takes all images.
    features = network.features(ms.Tensor(images)).asnumpy()
    directions = rng.standard_normal((len(CLASSES), features.shape[1]))
    directions /= np.linalg.norm((features - features.mean(0)) @ directions.T, axis=0)[:, None]
    ms.ops.assign(network.head.dense.weight, ms.Tensor(10 * directions, ms.float32))
    ms.ops.assign(network.head.dense.bias, ms.Tensor(-10 * directions @ features.mean(0), ms.float32))
    meta = {"step": 1, "seconds": 0, "trained": [], "oracle": {}, "config": settings.as_dict()}
    meta["classes"] = CLASSES
    checkpoint.save_state({"network": network}, meta, checkpoint.step_path(folder / "run", 1))
    about = exporting.describe(settings, network.preparation, CLASSES)
    for file_format in ("ONNX", "MINDIR"):
        exporting.export(network, images, folder / "net", file_format, about=about)
    logits = network(ms.Tensor(images)).asnumpy()
    assert len(np.unique(logits.argmax(1))) > 2 and np.ptp(logits, 0).min() > 0.5  # a wrong image would show
    return types.SimpleNamespace(folder=folder, network=network, images=images, logits=logits, about=about)


def opened(made, name):
    return model_files.open_model(made.folder / name, "CPU")


# What files say of themselves


def test_exported_files_carry_the_recipe_and_how_images_are_prepared(made):
    for name in ("net.onnx", "net.mindir"):
        about = opened(made, name).about
        assert about == made.about
        assert about["class_names"] == CLASSES
        assert (about["method"], about["settings"]["network"]) == ("hardnet", "hardnet39ds")
        prepared = about["preparation"]
        assert (prepared["size"], prepared["crop_pct"]) == (32, 0.875)
        assert prepared["mean"] == [0.485, 0.456, 0.406]
    assert model_files.onnx_about(made.folder / "net.onnx") == made.about
    assert opened(made, "run").about == made.about


def test_what_a_file_says_is_of_the_model_and_not_of_the_machine(place):
    settings = demo_config()
    about = exporting.describe(settings, networks.preparation(settings))
    assert set(about) == {"method", "experiment", "settings", "preparation"}
    assert about["settings"]["source_dataset_name"] == "demo_digits"
    assert "output_dir" not in about["settings"]


@pytest.mark.parametrize(
    "change",
    [
        {"preparation": {"size": "32"}},
        {"preparation": {"size": 10**9}},
        {"preparation": {"crop_pct": 0}},
        {"preparation": {"std": [0, 0, 0]}},
        {"preparation": []},
        {"class_names": [1, 2]},
        {"class_names": ["a", "a"]},
        {"settings": []},
        {"method": None},
    ],
    ids=str,
)
def test_descriptions_from_anywhere_are_checked(made, tmp_path, change):
    shutil.copy(made.folder / "net.mindir", tmp_path / "a.mindir")
    inside = change.get("preparation")
    changed = {"preparation": made.about["preparation"] | inside} if isinstance(inside, dict) else change
    about = {**made.about, **changed}
    exporting.sidecar(tmp_path / "a.mindir").write_text(json.dumps(about))
    with pytest.raises(UserError, match="damaged"):
        model_files.open_model(tmp_path / "a.mindir")
    model = onnx.load(str(made.folder / "net.onnx"))
    onnx.helper.set_model_props(
        model,
        {
            k: v if isinstance(v, str) and k in exporting.PLAIN_TEXT else json.dumps(v)
            for k, v in about.items()
        },
    )
    if "method" not in change:  # in metadata every method is a text
        onnx.save(model, str(tmp_path / "a.onnx"))
        with pytest.raises(UserError, match="damaged"):
            model_files.onnx_about(tmp_path / "a.onnx")


def test_metadata_that_are_no_json_are_refused(made, tmp_path):
    model = onnx.load(str(made.folder / "net.onnx"))
    onnx.helper.set_model_props(model, {"method": "hardnet", "settings": "[" * 100_000})
    onnx.save(model, str(tmp_path / "a.onnx"))
    with pytest.raises(UserError, match="damaged"):
        model_files.open_model(tmp_path / "a.onnx")


# Opening models


@pytest.mark.parametrize("name", ["absent.onnx", "absent.mindir", "absent.ckpt", "absent"])
def test_a_missing_model_is_one_line(tmp_path, name):
    with pytest.raises(UserError, match=f"{name} does not exist"):
        model_files.open_model(tmp_path / name)


@pytest.mark.parametrize("ending", ["onnx", "mindir", "ckpt", "pth"])
@pytest.mark.parametrize(
    "content", [b"", b"no model", bytes(range(256)) * 40], ids=["empty", "text", "bytes"]
)
def test_files_that_are_no_models_are_one_line(tmp_path, ending, content):
    path = tmp_path / f"bad.{ending}"
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged|no known format"):
        model_files.open_model(path, "CPU")


@pytest.mark.parametrize("name", ["net.onnx", "net.mindir"])
def test_files_cut_short_are_one_line(made, tmp_path, name):
    path = tmp_path / name
    content = (made.folder / name).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged"):
        model_files.open_model(path, "CPU")


def test_devices_that_onnxruntime_lacks(made):
    assert model_files.onnx_providers("CPU") == model_files.onnx_providers("auto") == ["CPUExecutionProvider"]
    with pytest.raises(UserError, match="onnxruntime-gpu"):
        model_files.open_model(made.folder / "net.onnx", "GPU")
    with pytest.raises(UserError, match="MINDIR"):
        model_files.open_model(made.folder / "net.onnx", "Ascend")


# From files to logits


@pytest.mark.parametrize("name", ["net.onnx", "net.mindir", "run"])
@pytest.mark.parametrize("batch_size", [1, 7, 30])
def test_every_format_classifies_files_as_evaluation_does(made, files, name, batch_size):
    found = list(inference.predictions(opened(made, name), Reader(files), batch_size))
    assert [index for index, _ in found] == list(range(len(files)))
    np.testing.assert_allclose([logits for _, logits in found], made.logits, atol=1e-4)


def fixed(made, batch, folder, file_format):
    about = {**made.about, "settings": made.about["settings"]}
    path, _ = exporting.export(made.network, made.images[:5], folder / "b", file_format, batch, about=about)
    return model_files.open_model(path, "CPU")


@pytest.mark.parametrize("file_format", ["ONNX", "MINDIR"])
def test_a_fixed_batch_is_filled_up(made, tmp_path, file_format):
    model = fixed(made, 4, tmp_path, file_format)
    assert (model.batch_size, model.size) == (4, 32)
    for count in (1, 4, 6):
        np.testing.assert_allclose(model.logits(made.images[:count]), made.logits[:count], atol=1e-4)


def test_logits_that_are_no_numbers_or_no_logits_are_refused():
    images = np.zeros((2, 3, 32, 32), np.float32)
    for answer in (
        np.full((2, 5), np.nan),
        np.full((2, 5), np.inf),
        np.zeros((2, 5, 1, 1)),
        np.zeros((1, 5)),
    ):
        with pytest.raises(UserError, match="model: x"):
            model_files.Model(Path("x"), lambda _, answer=answer: answer, {}).logits(images)


def test_files_that_cannot_be_read_are_left_out(made, files, tmp_path):
    (tmp_path / "no.jpg").write_text("no image")
    (tmp_path / "cut.jpg").write_bytes(Path(files[1]).read_bytes()[:300])
    mixed = [str(tmp_path / "no.jpg"), files[0], str(tmp_path / "cut.jpg"), files[2]]
    reader = Reader(mixed)
    found = list(inference.predictions(opened(made, "net.onnx"), reader, 2))
    assert [index for index, _ in found] == [1, 3]
    np.testing.assert_allclose([logits for _, logits in found], made.logits[[0, 2]], atol=1e-4)
    assert sorted(reader.bad) == [0, 2]


def test_a_foreign_file_gets_the_usual_preparation_and_says_so(made, files, tmp_path, caplog, monkeypatch):
    model = onnx.load(str(made.folder / "net.onnx"))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "foreign.onnx"))
    foreign = model_files.open_model(tmp_path / "foreign.onnx")
    assert foreign.about == {}
    monkeypatch.setattr(logging.getLogger("run"), "propagate", True)
    found = [logits for _, logits in inference.predictions(foreign, Reader(files), 30)]
    assert "the middle 32 x 32, the short side at 36" in caplog.text
    np.testing.assert_allclose(found, made.logits, atol=1e-4)


def test_a_model_of_any_network_gets_its_images_as_it_was_trained_with_them(files):
    settings = experiment.load(["--method=adda"])
    about = exporting.describe(settings, networks.preparation(settings))
    asked = []

    def run(images):
        asked.append(images)
        return np.zeros((len(images), 10), np.float32)

    model = model_files.Model(Path("x.onnx"), run, about)
    assert len(list(inference.predictions(model, Reader(files[:3]), 2))) == 3
    assert [images.shape for images in asked] == [(2, 1, 28, 28), (1, 1, 28, 28)]
    assert 0 <= min(map(np.min, asked)) and max(map(np.max, asked)) <= 1


# Ranking, names


def test_score_counts_by_hand():
    logits = np.array([[5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5], [7, 7, 7, 7, 7, 7]], np.float32)
    score = inference.Score()
    score.add(logits[:2], [0, 0])
    score.add(logits[2:], [4])
    assert (score.count, score.top1, score.top5) == (3, 1, 2)
    assert score.accuracies() == {"top-1": 1 / 3, "top-5": 2 / 3}
    few = inference.Score()
    few.add(logits[:, :5], [0, 1, 2])
    assert few.accuracies() == {"top-1": 1 / 3}


def test_probabilities_are_those_of_softmax():
    logits = np.log(np.array([[1, 2, 5], [1, 1, 2]])) + 900
    np.testing.assert_allclose(inference.probabilities(logits), [[0.125, 0.25, 0.625], [0.25, 0.25, 0.5]])


def names(model, text, tmp_path, count=6):
    (tmp_path / "names.txt").write_bytes(text)
    return inference.class_names(model, count, tmp_path / "names.txt")


def test_class_names_from_a_file(made, tmp_path):
    model = opened(made, "net.onnx")
    assert inference.class_names(model, 6) == CLASSES
    assert names(model, "a\nb b\n\nc\nd\ne\nümlaut\n".encode(), tmp_path) == [
        "a",
        "b b",
        "c",
        "d",
        "e",
        "ümlaut",
    ]
    shuffled = [f"{name} the {index}" for index, name in enumerate(CLASSES)][::-1]
    text = "\n".join(["other x", *shuffled]).encode()
    assert names(model, text, tmp_path) == [f"the {index}" for index in range(6)]
    assert inference.class_names(model_files.Model(Path("x"), None, {}), 6) is None


def test_class_names_that_do_not_fit(made, tmp_path):
    model = opened(made, "net.onnx")
    with pytest.raises(UserError, match="has 2 names, but the model has 6"):
        names(model, b"a\nb", tmp_path)
    with pytest.raises(UserError, match="UTF-8"):
        names(model, b"caf\xe9", tmp_path)
    with pytest.raises(UserError, match="No such file"):
        inference.class_names(model, 6, tmp_path / "absent.txt")
    with pytest.raises(UserError, match="has 7 logits, but names 6"):
        inference.class_names(model, 7)


# infer.py


def test_files_folders_and_patterns(data, files, tmp_path, monkeypatch):
    monkeypatch.chdir(data)
    assert find(["val"]) == [os.path.relpath(path, data) for path in files]
    assert find(["val/class1/*.png", "val/class1/00.png"]) == [
        "val/class1/00.png",
        "val/class1/03.png",
    ]
    assert find(["val/class1/01.jpg", "val/class0/00.png"]) == [
        "val/class1/01.jpg",
        "val/class0/00.png",
    ]
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd[1].jpg").touch()
    assert find([str(tmp_path / "odd[1].jpg")]) == [str(tmp_path / "odd[1].jpg")]
    for word in ("absent.jpg", "val/*.jpg", str(tmp_path / "empty")):
        with pytest.raises(UserError, match="no such file|no image"):
            find([word])


def test_a_person_sees_names_and_shares(made, files, capsys):
    infer.show_images(opened(made, "net.onnx"), infer.arguments(["--model=x", "--top=3", *files[:2]]))
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[4]] == files[:2] and len(lines) == 8
    shares = inference.probabilities(made.logits[0])
    best = np.argsort(-shares)[:3]
    assert lines[1:4] == [f"  {shares[index]:7.2%}  class{index}" for index in best]


def test_a_program_gets_json(made, files, capsys):
    infer.show_images(opened(made, "run"), infer.arguments(["--model=x", "--json", *files]))
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["image"] for row in rows] == files
    for row, logits in zip(rows, made.logits, strict=True):
        shares = inference.probabilities(logits)
        assert [entry["index"] for entry in row["top"]] == np.argsort(-shares)[:5].tolist()
        assert row["top"][0]["class"] == f"class{logits.argmax()}"
        assert row["top"][0]["probability"] == pytest.approx(shares.max(), abs=1e-4)


def test_numbers_stand_for_unknown_names(made, files, capsys):
    model = opened(made, "net.onnx")
    model.about = {key: value for key, value in model.about.items() if key != "class_names"}
    infer.show_images(model, infer.arguments(["--model=x", files[0]]))
    shown = capsys.readouterr()
    assert f"class {made.logits[0].argmax()}" in shown.out
    assert "not known" in shown.err


def test_the_good_images_are_shown_and_the_bad_ones_named(made, files, tmp_path, capsys):
    (tmp_path / "no.jpg").write_text("no image")
    options = infer.arguments(["--model=x", str(tmp_path / "no.jpg"), files[3]])
    with pytest.raises(UserError, match="1 of 2 images could not be read: .*no.jpg"):
        infer.show_images(opened(made, "net.onnx"), options)
    assert files[3] in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, part",
    [
        (["photo.jpg"], "--model"),
        (["--model=x"], "give images"),
        (["--model=x", "a.jpg", "--dataset_path=d", "--result_dir=r"], "give images"),
        (["--model=x", "--dataset_path=d"], "belong together"),
        (["--model=x", "--top=0", "a.jpg"], "--top"),
        (["--model=x", "--colour", "a.jpg"], "--colour"),
    ],
)
def test_wrong_options_are_one_line(words, part):
    with pytest.raises(UserError, match=part):
        infer.arguments(words)


def folder_options(data, results, **more):
    extra = [f"--{key}={value}" for key, value in more.items()]
    return infer.arguments(["--model=x", f"--dataset_path={data}", f"--result_dir={results}", *extra])


def content(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*.*"))}


def test_a_folder_gives_result_files_and_acc_log_whatever_the_batch(made, data, files, tmp_path):
    model = opened(made, "net.mindir")
    infer.classify_folder(model, folder_options(data, tmp_path / "one", batch_size=1))
    infer.classify_folder(model, folder_options(data / "val", tmp_path / "many", batch_size=7))
    written = content(tmp_path / "one")
    labels = np.repeat(np.arange(6), 5)
    order = np.argsort(-made.logits, 1)
    top1, top5 = (order[:, 0] == labels).sum(), (order[:, :5] == labels[:, None]).any(1).sum()
    assert written["acc.log"].splitlines() == [
        "Total data: 30",
        f"'acc': {round(top1 / 30, 6)}",
        f"top-1 accuracy: {round(top1 / 30, 6)}",
        f"top-5 accuracy: {round(top5 / 30, 6)}",
    ]
    for index, file in enumerate(files):
        text = written[f"result_Files/{os.path.relpath(file, data / 'val')}.txt"]
        assert [line.split()[0] for line in text.splitlines()] == [f"class{i}" for i in order[index, :5]]
    assert len(written) == 31
    assert content(tmp_path / "many").keys() == written.keys()
    assert content(tmp_path / "many")["acc.log"] == written["acc.log"]


def test_a_folder_that_does_not_fit_is_refused(made, data, tmp_path):
    model = opened(made, "net.onnx")
    (tmp_path / "r" / "result_Files").mkdir(parents=True)
    (tmp_path / "r" / "result_Files" / "old.txt").touch()
    with pytest.raises(UserError, match="holds results already"):
        infer.classify_folder(model, folder_options(data, tmp_path / "r"))
    shutil.copytree(data / "val", tmp_path / "other")
    (tmp_path / "other" / "class5").rename(tmp_path / "other" / "klasse5")
    with pytest.raises(UserError, match="only in the data: klasse5; only in the model: class5"):
        infer.classify_folder(model, folder_options(tmp_path / "other", tmp_path / "s"))
    shutil.rmtree(tmp_path / "other" / "klasse5")
    with pytest.raises(UserError, match="only in the model: class5"):
        infer.classify_folder(model, folder_options(tmp_path / "other", tmp_path / "t"))
    model.about = {key: value for key, value in model.about.items() if key != "class_names"}
    with pytest.raises(UserError, match="5 class folders, the model 6"):
        infer.classify_folder(model, folder_options(tmp_path / "other", tmp_path / "t"))
    with pytest.raises(UserError, match="no folder"):
        infer.classify_folder(model, folder_options(tmp_path / "absent", tmp_path / "u"))


# eval_onnx.py


def test_the_file_brings_its_recipe_and_the_command_line_wins(made, tmp_path):
    path = made.folder / "net.onnx"
    _, settings = eval_onnx.load([f"--onnx_path={path}", "--dataset_path=d"])
    assert (settings.method, settings.num_classes, settings.image_size) == ("hardnet", 6, 32)
    assert settings.experiment == made.about["experiment"]
    (tmp_path / "my.yaml").write_text("method: hardnet\ncrop_pct: 0.5\nclass_num: 8\n")
    options = [f"--onnx_path={path}", f"--config={tmp_path / 'my.yaml'}", "--class_num=7"]
    _, settings = eval_onnx.load(options)
    assert (settings.crop_pct, settings.num_classes, settings.image_size) == (0.5, 7, 32)
    with pytest.raises(UserError, match="trained with method hardnet, not dann"):
        eval_onnx.load([f"--onnx_path={path}", "--method=dann"])
    with pytest.raises(UserError, match="unknown key"):
        eval_onnx.load([f"--onnx_path={path}", "--dataset_pth=d"])
    with pytest.raises(UserError, match="--onnx_path"):
        eval_onnx.load(["--dataset_path=d"])


def test_a_model_of_another_method_is_evaluated_as_well(tmp_path):
    settings = demo_config()
    network, images = nn.SequentialCell(nn.Flatten(), nn.Dense(3 * 28 * 28, 10)), np.zeros((2, 3, 28, 28))
    about = exporting.describe(settings, networks.preparation(settings), list("0123456789"))
    path, _ = exporting.export(network, images.astype(np.float32), tmp_path / "net", "ONNX", about=about)
    done = command("eval_onnx.py", onnx_path=path, result=tmp_path / "result.json")
    shown = succeeded(done)
    assert "source top-1 accuracy: " in shown and "target top-5 accuracy: " in shown
    assert set(json.loads((tmp_path / "result.json").read_text())["accuracy"]) == {"source", "target"}


def test_onnx_accuracy_is_that_of_eval_to_the_last_image(made, data, tmp_path):
    keys = {"dataset_path": data, "batch_size": 8, "device_target": "CPU"}
    eval_result, onnx_result = tmp_path / "eval.json", tmp_path / "onnx.json"
    succeeded(command("eval.py", ckpt_path=made.folder / "run", result=eval_result, **keys))
    done = command("eval_onnx.py", onnx_path=made.folder / "net.onnx", result=onnx_result, **keys)
    lines = succeeded(done).splitlines()
    left, right = (json.loads(path.read_text()) for path in (eval_result, onnx_result))
    for name in ("accuracy", "top5_accuracy", "experiment", "method"):
        assert left[name] == right[name], name
    assert f"top-1 accuracy: {round(left['accuracy']['val'], 6)}" in lines
    assert f"top-5 accuracy: {round(left['top5_accuracy']['val'], 6)}" in lines
    assert 0 < left["accuracy"]["val"] < 1


# The commands in processes of their own


def test_run_infer_310_as_a_user_types_it(made, data, tmp_path):
    shutil.copy(made.folder / "net.mindir", tmp_path / "a b.mindir")
    shutil.copy(exporting.sidecar(made.folder / "net.mindir"), exporting.sidecar(tmp_path / "a b.mindir"))
    (tmp_path / "d").symlink_to(data)
    words = ["a b.mindir", "d", "0", "--device_target", "CPU", "--result_dir", "out", "--batch_size", "4"]
    done = script("run_infer_310", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    right = made.logits.argmax(1) == np.repeat(np.arange(6), 5)
    assert f"'acc': {round(right.mean(), 6)}" in (tmp_path / "out" / "acc.log").read_text()
    assert len(list((tmp_path / "out" / "result_Files").rglob("*.txt"))) == 30


@pytest.mark.thorough
def test_export_without_a_data_set_compares_on_photographs(made, files, tmp_path):
    keys = {"ckpt_file": made.folder / "run", "file_format": "ONNX", "file_name": tmp_path / "net"}
    keys |= {"dataset_path": tmp_path / "absent"}
    shown = succeeded(command("export.py", batch_size=2, device_target="CPU", **keys))
    assert "the test data are not there" in shown and "compared on 9 photographs that come with" in shown
    model = model_files.open_model(tmp_path / "net.onnx")
    assert model.batch_size == 2
    assert list(model.names) == CLASSES
    found = [logits for _, logits in inference.predictions(model, Reader(files), 7)]
    np.testing.assert_allclose(found, made.logits, atol=1e-4)


def test_errors_of_the_commands_are_one_line(made, tmp_path):
    refused(command("infer.py", tmp_path / "absent.jpg", model=made.folder / "net.onnx"), "absent.jpg")
    refused(
        command("export.py", ckpt_file=made.folder / "run", file_format="AIR", device_target="CPU"),
        "AIR is written by Ascend only",
    )
