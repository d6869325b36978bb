"""What every method owes the loop, eval.py and export.py. Methods and configurations are found by themselves:
a new one adds tests/tiny/<method>.yaml, tests/tiny/<method>.phases.yaml, perhaps tests/tiny/<method>.py for
its data, and no line here.
"""

import functools
import types

import mindspore as ms
import numpy as np
import pytest
from helpers import ROOT, TINY, build, build_network, test_sets, tiny_config, tiny_phases, train, values
from mindspore import nn

from model_utils import checkpoint, config
from model_utils.errors import UserError
from model_utils.keys import COMMON
from src.evaluation.evaluate import Evaluator
from src.exported import exporting
from src.setup import settings as experiment
from src.train_cells import find_method, method_names

CONFIGS = sorted([*(ROOT / "configs").glob("*.yaml"), *TINY.glob("*[!s].yaml")])


def methods():
    """Every method; those that are supervised training under another name only where tests are thorough."""
    for name in method_names():
        renamed = name != "supervised" and issubclass(find_method(name), find_method("supervised"))
        yield pytest.param(name, marks=pytest.mark.thorough) if renamed else name


@pytest.fixture(scope="module", params=methods())
def run(request, place, tmp_path_factory):
    """One whole tiny training: its cell, what it logged, and its state at the start, at cuts, at ends."""
    settings = tiny_config(request.param, mode="graph")
    cell = build(settings, place)
    folder = tmp_path_factory.mktemp(request.param)
    ends = np.cumsum([phase.steps for phase in cell.phases]).tolist()
    cuts = [ends[0] - 1, ends[-1] - 1]  # inside the first and inside the last phase
    logged, snapshots, done = [], {0: values(cell)}, 0
    for stop in sorted({*cuts, *ends}):
        logged += train(cell, done, stop)
        snapshots[stop] = values(cell)
        checkpoint.save_state(cell.state(), {"step": stop, "config": settings.as_dict()}, at(folder, stop))
        done = stop
    return types.SimpleNamespace(
        method=find_method(request.param),
        settings=settings,
        cell=cell,
        folder=folder,
        ends=ends,
        cuts=cuts,
        logged=logged,
        snapshots=snapshots,
        tests=test_sets(settings, place),
        place=place,
        # With other initial weights: all that counts has to come out of the checkpoint. Compiled once.
        other=functools.cache(lambda: build(settings, place, seed=settings.seed + 7)),
    )


class Batches(list):
    """A loader of what is in the list."""

    batch_size = 16


def at(folder, step):
    return folder / f"step-{step:08d}.ckpt"


def some_images(run, count):
    return next(iter(next(iter(run.tests.values()))))[0][:count]


def evaluated(run):
    """A plain network, as eval.py and export.py build it, with the run's last weights."""
    network = build_network(run.settings, run.place)
    checkpoint.load_network(network, at(run.folder, run.ends[-1]))
    return network.set_train(False)


def test_every_step_gives_finite_scalars_and_a_loss(run):
    assert len(run.logged) == run.ends[-1] >= 2 * len(run.ends)
    for _, scalars in run.logged:
        assert "loss" in scalars
        assert all(np.isfinite(value) for value in scalars.values())
    assert {name for name, _ in run.logged} == {phase.name for phase in run.cell.phases}


def test_each_phase_trains_all_it_should_and_nothing_else(run):
    """Weights, and the running statistics of the batch norms among them."""
    trains = tiny_phases(run.settings.method)
    assert set(trains) == {phase.name for phase in run.cell.phases}
    optimizers = tuple(f"{n}/" for n, c in run.cell.state().items() if isinstance(c, nn.Optimizer))
    for phase, begin, end in zip(run.cell.phases, [0, *run.ends], run.ends, strict=False):
        before, after = run.snapshots[begin], run.snapshots[end]
        weights = [name for name in before if not name.startswith(optimizers)]
        moved = {name for name in weights if not np.array_equal(before[name], after[name])}
        wanted = {name for name in weights if name.startswith(tuple(trains[phase.name]))}
        assert wanted, phase.name
        assert moved == wanted, (phase.name, sorted(moved ^ wanted))


def test_same_seed_gives_the_same_initial_weights_and_another_seed_others(run):
    again = values(build(run.settings, run.place))
    other = values(build(run.settings, run.place, seed=run.settings.seed + 1))
    first = run.snapshots[0]
    assert all(np.array_equal(first[name], again[name]) for name in first)
    differ = any(not np.array_equal(first[name], other[name]) for name in first)
    assert differ != bool(run.method.GOES_ON_WITH), "unless the weights come from a checkpoint"


def test_pynative_mode_computes_what_graph_mode_computes(run):
    settings = run.settings.replace(mode="pynative")
    steps = min(3, run.ends[0])
    begin = run.ends[-2] if len(run.ends) > 1 else 0
    eager = build(settings, run.place)
    compare(train(eager, 0, steps), run.logged[:steps])
    if begin:  # of several phases the last one, too
        checkpoint.restore_state(eager.state(), checkpoint.read(at(run.folder, begin))[0], "")
    begin = begin or steps
    compare(train(eager, begin), run.logged[begin:])
    images = ms.Tensor(some_images(run, 8))
    eager_logits = eager.network.set_train(False)(images).asnumpy()
    np.testing.assert_allclose(eager_logits, evaluated(run)(images).asnumpy(), rtol=2e-3, atol=2e-3)


def compare(eager, compiled):
    for (_, left), (_, right) in zip(eager, compiled, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            assert left[name] == pytest.approx(right[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("which", [0, 1], ids=["in the first phase", "in the last phase"])
def test_a_resumed_run_ends_bit_identical(run, which):
    if which and run.cuts[0] == run.cuts[1]:
        pytest.skip("one phase: it was cut in the other case")
    cut = run.cuts[which]
    cell = run.other()
    restored, meta = checkpoint.read(at(run.folder, cut))
    checkpoint.restore_state(cell.state(), restored, "test")
    assert meta["step"] == cut
    assert train(cell, cut) == run.logged[cut:]
    ended = values(cell)
    wanted = run.snapshots[run.ends[-1]]
    assert ended.keys() == wanted.keys()
    assert [name for name in wanted if not np.array_equal(wanted[name], ended[name])] == []


def test_checkpoint_holds_the_network_under_its_own_names(run):
    stored, _ = checkpoint.read(at(run.folder, run.ends[-1]))
    network = build_network(run.settings, run.place)
    own = {p.name: tuple(p.shape) for p in network.get_parameters()}
    assert {n: v.shape for n, v in stored.items() if checkpoint.PREFIXED not in n} == own


def test_evaluating_twice_gives_the_same_and_leaves_the_network_as_it_was(run):
    before = values(run.cell)
    run.cell.network.set_train(True)
    evaluator = Evaluator(run.cell.network, run.settings, run.place)
    first = evaluator.accuracies(run.tests)
    assert evaluator.accuracies(run.tests) == first
    assert run.cell.network.training
    assert all(np.array_equal(before[name], value) for name, value in values(run.cell).items())
    network = evaluated(run)
    for domain, loader in run.tests.items():
        few = Batches((images[:16], labels[:16]) for images, labels in loader)
        hits = [network(ms.Tensor(images)).asnumpy().argmax(1) == labels for images, labels in few]
        assert evaluator.accuracies({domain: few})[domain] == np.concatenate(hits).mean()


def test_validation_changes_no_weight(run):
    before = values(run.cell)
    for phase in run.cell.phases:
        assert all(np.isfinite(float(value)) for value in run.cell.validate(phase).values())
    assert all(np.array_equal(before[name], value) for name, value in values(run.cell).items())


def test_no_target_label_reaches_the_train_cell(run):
    for phase in run.cell.phases:
        targets = {"target", run.cell.task.form.target.name} if run.cell.task.form.target else set()
        for domain, (images, labels) in phase.batch(0).items():
            assert images.dtype == np.float32 and images.ndim == 4
            blind = labels is None or phase.loaders[domain].numbered
            assert blind == (domain.removesuffix("_strong") in targets)
            if labels is not None and blind:
                assert np.array_equal(labels, places_of(images, run.cell)), "places, and no labels"


def places_of(images, cell):
    """The place of each of some images among those that `Task.blind_target` has."""
    every, places = next(iter(cell.task.blind_target(cell.preparation, 10**6, numbered=True)))
    known = {image.tobytes(): int(place) for image, place in zip(every, places, strict=True)}
    return [known[image.tobytes()] for image in images]


def test_no_label_comes_with_what_is_shown_or_measured_of_the_target(run):
    if run.cell.task.form.target is None:
        pytest.skip("there is no target")
    loader = run.cell.task.blind_target(run.cell.preparation, 100)
    assert loader.count and all((labels == -1).all() for _, labels in loader)


def test_log_line_is_one_line_for_each_phase(run):
    for phase in run.cell.phases:
        scalars = next(scalars for name, scalars in run.logged if name == phase.name)
        line = run.cell.log_line(phase, scalars)
        assert line and "\n" not in line


@pytest.mark.parametrize(
    "file_format, batch_size",
    [
        pytest.param("MINDIR", None, id="MINDIR-free batch"),
        pytest.param("MINDIR", 3, id="MINDIR-batch of 3", marks=pytest.mark.thorough),
        pytest.param("ONNX", None, id="ONNX-free batch", marks=pytest.mark.thorough),
        pytest.param("ONNX", 3, id="ONNX-batch of 3"),
    ],
)
def test_export_reloads_to_the_same_logits(run, file_format, batch_size, tmp_path):
    images = some_images(run, 6)
    network = evaluated(run)
    expected = network(ms.Tensor(images)).asnumpy()
    path, difference = exporting.export(network, images, tmp_path / "net", file_format, batch_size)
    assert 0 <= difference <= 1e-4
    reload = exported_mindir if file_format == "MINDIR" else exported_onnx
    sizes = [batch_size] if batch_size else [6, 5, 1]
    for size in sizes:
        np.testing.assert_allclose(reload(path)(images[:size]), expected[:size], atol=1e-4)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]


@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_every_image_is_compared_and_nan_is_no_agreement(batch_size, tmp_path, monkeypatch):
    network, images = nn.Dense(2, 2), np.arange(14, dtype=np.float32).reshape(7, 2)
    wrong = []  # the first value of the image whose logits come out wrong

    def run_wrong(path):
        def run(batch):
            logits = network(ms.Tensor(batch)).asnumpy().copy()
            logits[np.isin(batch[:, 0], wrong)] = np.nan
            return logits

        return run

    monkeypatch.setattr(exporting, "_mindir_runner", run_wrong)
    arguments = (network, images, tmp_path / "net", "MINDIR", batch_size)
    assert exporting.export(*arguments)[1] == 0
    for value in images[:, 0]:
        wrong[:] = [value]
        with pytest.raises(RuntimeError, match="nan"):
            exporting.export(*arguments)


@pytest.mark.parametrize("name", [".", "/", "folder/"])
def test_export_needs_the_name_of_a_file(name):
    with pytest.raises(UserError, match="file_name"):
        exporting.export(nn.Dense(2, 2), np.zeros((2, 2), np.float32), name, "MINDIR")


def exported_mindir(path):
    graph = nn.GraphCell(ms.load(str(path)))
    return lambda images: graph(ms.Tensor(images)).asnumpy()


def exported_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"images": images})[0]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_files_resolve(path):
    settings = experiment.load([f"--config={path}"])
    assert settings.method in method_names()
    names = experiment.aliases(settings.method)
    for name, value in config.read_yaml(path).items():
        own = names.get(name, name)
        key, wanted = (own, value) if isinstance(own, str) else (own.key, own.convert(name, value, path))
        assert settings.as_dict()[key] == wanted


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_files_set_nothing_that_their_method_refuses(path):
    settings = experiment.load([f"--config={path}"])
    method = find_method(settings.method)
    refused = [*method.OWN_STEP, *method.INSTEAD, *(method.ON_IMAGES if settings.cache_features else ())]
    assert [n for n in refused if getattr(settings, n) != settings.keys[n].default] == []


def test_config_yaml_holds_every_common_key_and_the_recipe_of_its_method():
    base, settings = config.read_yaml(ROOT / "config.yaml"), experiment.load([])
    assert set(base) == set(settings.keys)
    for name, key in COMMON.items():
        assert getattr(settings, name) == key.default or name in ("experiment", "output_dir", "method"), name
