"""MCC, information maximisation, AdaMatch and SHOT against numpy; adapted batch statistics; refusals."""

import math

import mindspore as ms
import numpy as np
import pytest
from helpers import (
    build,
    command,
    fails,
    make_data,
    open_task,
    options,
    refused,
    same_at_every_call,
    tiny_config,
    train,
)
from mindspore import nn

from model_utils import checkpoint
from src.losses.adamatch import AdaMatchLoss
from src.losses.confusion import class_confusion, information_loss
from src.setup import settings as experiment
from src.train_cells import find_method
from src.train_cells.adamatch import ramp
from src.train_cells.mcc import ConfusionLoss
from src.train_cells.shot import TargetLoss, centroid_labels
from src.training import run_folder
from src.training.batch_norm import batch_norms


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def entropies(p):
    return np.array([-sum(value * math.log(value) for value in row) for row in p])


def confusion(logits, temperature):
    """Jin et al. 2020, element by element."""
    p = softmax(logits.astype(np.float64) / temperature)
    rows, classes = p.shape
    certainty = 1 + np.exp(-entropies(p))
    weights = rows * certainty / certainty.sum()
    matrix = np.zeros((classes, classes))
    for j in range(classes):
        for k in range(classes):
            matrix[j, k] = sum(p[i, j] * weights[i] * p[i, k] for i in range(rows))
    matrix = matrix / matrix.sum(1, keepdims=True)
    return sum(matrix[j, k] for j in range(classes) for k in range(classes) if j != k) / classes


def information(logits):
    p = softmax(logits.astype(np.float64))
    mean = p.mean(0)
    return entropies(p).mean() + sum(value * math.log(value) for value in mean)


def some_logits(rows, classes=4, seed=0):
    return np.random.default_rng(seed).normal(0, 2, (rows, classes)).astype(np.float32)


@pytest.mark.parametrize("temperature", (1.0, 2.5))
def test_class_confusion(temperature):
    logits = some_logits(7)
    found = float(class_confusion(ms.Tensor(logits), temperature))
    assert found == pytest.approx(confusion(logits, temperature), rel=1e-5)
    sure = 50 * np.eye(4, dtype=np.float32)
    assert float(class_confusion(ms.Tensor(sure))) == pytest.approx(0, abs=1e-6)
    assert float(class_confusion(ms.Tensor(np.zeros((5, 4), np.float32)))) == pytest.approx(0.75, rel=1e-5)


def test_confusion_s_weights_get_no_gradient():
    logits, temperature, step = some_logits(5), 2.5, 1e-3
    gradient = ms.grad(lambda x: class_confusion(x, temperature))(ms.Tensor(logits)).asnumpy()
    p = softmax(logits.astype(np.float64) / temperature)
    certainty = 1 + np.exp(-entropies(p))
    weights = len(p) * certainty / certainty.sum()

    def with_these_weights(x):
        q = softmax(x / temperature)
        matrix = (q * weights[:, None]).T @ q
        matrix /= matrix.sum(1, keepdims=True)
        return (matrix.sum() - np.trace(matrix)) / matrix.shape[0]

    for place in ((0, 0), (3, 2), (4, 1)):
        moved = [logits.astype(np.float64).copy() for _ in range(2)]
        moved[0][place] += step
        moved[1][place] -= step
        slope = (with_these_weights(moved[0]) - with_these_weights(moved[1])) / (2 * step)
        assert gradient[place] == pytest.approx(slope, rel=1e-3, abs=1e-6)


def test_information_loss():
    logits = some_logits(9, seed=3)
    assert float(information_loss(ms.Tensor(logits))) == pytest.approx(information(logits), rel=1e-4)
    sure_and_diverse = 50 * np.eye(4, dtype=np.float32)
    assert float(information_loss(ms.Tensor(sure_and_diverse))) == pytest.approx(-math.log(4), rel=1e-5)


class Linear(nn.Cell):
    """A network without masks: logits = images · weight."""

    def __init__(self, weight):
        super().__init__()
        self.weight = ms.Parameter(ms.Tensor(weight), name="weight")

    def construct(self, images):
        return ms.ops.matmul(images, self.weight)


def test_the_loss_of_mcc():
    rng = np.random.default_rng(1)
    weight, images = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=(10, 3)).astype(np.float32)
    labels = np.array([0, 3, 2, 1, 1], np.int32)
    config = tiny_config("mcc", mcc_weight=0.7, information_weight=0.2, label_smooth_factor=0.1)
    total, scalars = ConfusionLoss(Linear(weight), True, config)(ms.Tensor(images), ms.Tensor(labels))
    logits = images.astype(np.float64) @ weight
    logs = np.log(softmax(logits[:5]))
    wanted = 0.9 * np.eye(4)[labels] + 0.1 / 4
    class_loss = -(wanted * logs).sum(1).mean()
    parts = class_loss, confusion(logits[5:], 2.5), information(logits[5:])
    np.testing.assert_allclose([float(value) for value in scalars[:3]], parts, rtol=1e-4)
    assert float(total) == pytest.approx(parts[0] + 0.7 * parts[1] + 0.2 * parts[2], rel=1e-4)
    assert float(scalars[3]) == (logits[:5].argmax(1) == labels).mean()


def test_the_loss_of_adamatch():
    rng = np.random.default_rng(2)
    half, count, classes = 4, 6, 3
    weight = rng.normal(size=(5, classes)).astype(np.float32) * 2
    images = rng.normal(size=(2 * half + 2 * count, 5)).astype(np.float32)
    labels, mixing = np.array([0, 2, 1, 1], np.int32), rng.random((2 * half, classes)).astype(np.float32)
    loss = AdaMatchLoss(Linear(weight), 0.9)
    inputs = [ms.Tensor(array) for array in (images, labels, mixing)]
    total, (class_loss, cost, used, hits) = loss(*inputs, ms.Tensor(0.6, ms.float32))
    logits = images.astype(np.float64) @ weight  # without batch normalisation both passes give the same
    weak, strong = softmax(logits[:half]), softmax(logits[half : 2 * half])
    seen, unseen = softmax(logits[8:14]), softmax(logits[14:])
    expected = -np.log([weak[i, k] for i, k in enumerate(labels)]).mean()
    expected -= np.log([strong[i, k] for i, k in enumerate(labels)]).mean()
    aligned = seen * (weak.mean(0) / seen.mean(0))
    aligned /= aligned.sum(1, keepdims=True)
    mask = aligned.max(1) >= 0.9 * weak.max(1).mean()
    assert 0 < mask.sum() < count, "the example has to have both"
    pseudo = sum(m * -(a * np.log(u)).sum() for m, a, u in zip(mask, aligned, unseen, strict=True)) / count
    assert float(class_loss) == pytest.approx(expected, rel=1e-4)
    assert float(cost) == pytest.approx(pseudo, rel=1e-4)
    assert float(used) == pytest.approx(mask.mean())
    assert float(total) == pytest.approx(expected + 0.6 * pseudo, rel=1e-4)
    assert float(hits) == (weak.argmax(1) == labels).mean()


def test_the_interpolation_of_adamatch_mixes_both_passes():
    """With batch normalisation the source alone gives other logits than beside the target."""
    norm = nn.BatchNorm1d(3).set_train(True)

    class Normalised(nn.Cell):
        def construct(self, images):
            return norm(images)

    images = np.random.default_rng(4).normal(size=(12, 3)).astype(np.float32)
    images[8:] += 5
    labels = ms.Tensor([0, 1, 2, 0], ms.int32)
    found = {}
    for share in (0.0, 0.5, 1.0):
        mixing = ms.Tensor(np.full((8, 3), share, np.float32))
        loss = AdaMatchLoss(Normalised(), 0.9)(ms.Tensor(images), labels, mixing, ms.Tensor(0.0, ms.float32))
        found[share] = float(loss[1][0])
    normal = (images - images.mean(0)) / np.sqrt(images.var(0) + norm.eps)
    alone = (images[:8] - images[:8].mean(0)) / np.sqrt(images[:8].var(0) + norm.eps)
    for share, value in found.items():
        logs = np.log(softmax(share * normal[:8].astype(np.float64) + (1 - share) * alone))
        expected = -sum(logs[i, k] + logs[i + 4, k] for i, k in enumerate([0, 1, 2, 0])) / 4
        assert value == pytest.approx(expected, rel=1e-3), share


def test_the_weight_of_adamatch_s_target_loss():
    assert [round(ramp(step, 8), 6) for step in (0, 2, 4, 6, 8)] == [0, 0.5, 1, 1, 1]


def test_the_loss_of_shot():
    weight = np.random.default_rng(5).normal(size=(3, 4)).astype(np.float32)
    images = np.random.default_rng(6).normal(size=(6, 3)).astype(np.float32)
    labels = np.array([3, 0, 1, 2, 2, 0], np.int32)
    total, (first, second) = TargetLoss(Linear(weight), 0.3, 0.8)(ms.Tensor(images), ms.Tensor(labels))
    logits = images.astype(np.float64) @ weight
    cost = -np.log(softmax(logits)[np.arange(6), labels]).mean()
    assert float(first) == pytest.approx(information(logits), rel=1e-4, abs=1e-5)
    assert float(second) == pytest.approx(cost, rel=1e-4)
    assert float(total) == pytest.approx(0.8 * information(logits) + 0.3 * cost, abs=1e-5)


def test_pseudo_labels_follow_the_clusters_and_not_single_predictions():
    rng = np.random.default_rng(7)
    centres, owner = 6 * np.eye(3), np.repeat([0, 1, 2], 20)
    features = centres[owner] + rng.normal(0, 0.3, (60, 3))
    probabilities = np.full((60, 4), 0.1)
    probabilities[np.arange(60), owner] = 0.7
    probabilities[0] = [0.1, 0.7, 0.1, 0.1]  # a wrong prediction inside the first cluster
    labels = centroid_labels(features, probabilities)
    assert labels.tolist() == owner.tolist() and labels.dtype == np.int32
    # By hand: one round, two classes, distances by cosine of features with a 1 appended.
    features = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.5]])
    shares = np.array([[0.9, 0.1], [0.2, 0.8], [0.45, 0.55]])
    unit = np.array([[1, 0, 1] / np.sqrt(2), [0, 1, 1] / np.sqrt(2), [0.6, 0.5, 1] / np.sqrt(1.61)])
    centroids = [sum(shares[i, k] * unit[i] for i in range(3)) / shares[:, k].sum() for k in range(2)]
    cosines = [[row @ c / np.linalg.norm(c) for c in centroids] for row in unit]
    assert centroid_labels(features, shares, 1).tolist() == np.argmax(cosines, 1).tolist()


def test_adapted_statistics_are_those_of_the_target(place):
    settings = tiny_config("mcc")
    cell = build(settings, place)
    train(cell)
    loader = open_task(settings, place).blind_target(cell.preparation, 64)
    images = loader.sample(2048, settings.seed)[0]
    cell.adapt_statistics(cell.phases[0])
    norm, network = cell.network.neck.norm, cell.network
    whole = len(images) // 64 * 64
    features = np.concatenate(
        [network.backbone(ms.Tensor(images[i : i + 64])).asnumpy() for i in range(0, whole, 64)]
    )
    before = network.neck.dense(ms.Tensor(features)).asnumpy()
    np.testing.assert_allclose(norm.moving_mean.asnumpy(), before.mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(norm.moving_variance.asnumpy(), before.var(0), rtol=2e-2)
    again = norm.moving_variance.asnumpy().copy()
    cell.adapt_statistics(cell.phases[0])
    np.testing.assert_array_equal(norm.moving_variance.asnumpy(), again)


def test_refusals_of_adapted_statistics(place):
    fails(lambda: build(tiny_config("mcc", bottleneck=0), place), "adapt_batch_norm", "--bottleneck 256")
    keys = {"adapt_batch_norm": True, "bottleneck": 8, "target_dataset_name": ""}
    fails(lambda: build(tiny_config("supervised", **keys), place), "does not see the target")
    fails(lambda: build(tiny_config("shot", adapt_batch_norm=True), place), "adapt_batch_norm", "shot")
    keys = {"adapt_batch_norm": True, "n_epoch": 0}
    fails(lambda: build(tiny_config("dann", **keys), place), "does not see the target in any step")
    cell = build(tiny_config("mcc", network="dann", batch_norm="frozen", bottleneck=0), place)
    kept = batch_norms(cell.network.backbone)
    assert kept and cell.adapted.norms == batch_norms(cell.network.head)


def test_adamatch_has_no_statistics_by_domain(place):
    fails(lambda: build(tiny_config("adamatch", batch_norm="per_domain"), place), "per_domain", "adamatch")


def test_shot_takes_network_and_classes_from_the_checkpoint(place):
    made = make_data("shot", tuple("0123456789"), network="lenet", bottleneck=16)
    chosen = options(method="shot", target_dataset_name="demo_photos", **made)
    settings = experiment.load(chosen)
    assert (settings.network, settings.bottleneck, settings.pretrained) == (
        "lenet",
        16,
        str(made["pretrained"]),
    )
    assert experiment.load([*chosen, "--network=digits"]).network == "digits"
    cell = build(settings, place)
    assert cell.task.classes == tuple("0123456789") and list(cell.test_sets()) == ["target"]


def test_shot_resumes_without_the_network_it_began_with(place, tmp_path):
    made = make_data("shot", tuple("0123456789"), network="lenet", bottleneck=16)
    chosen = options(method="shot", target_dataset_name="demo_photos", output_dir=tmp_path, **made)
    began = experiment.load(chosen)
    meta = {"step": 1, "seconds": 1.0, "trained": [1, 1.0], "oracle": {}, "config": began.as_dict()}
    path = checkpoint.step_path(tmp_path, 1)
    checkpoint.save_state({"network": nn.Dense(1, 1)}, {**meta, "classes": list("0123456789")}, path)
    made["pretrained"].unlink()
    fails(lambda: experiment.load(chosen), "does not exist")
    resumed = experiment.load([*chosen, "--resume=true"])
    run_folder.check_same_settings(meta["config"], resumed, path)
    assert find_method("shot").known_classes(resumed) == tuple("0123456789")


@pytest.mark.slow
def test_shot_refuses_in_one_line(tmp_path):
    keys = {"method": "shot", "target_dataset_name": "demo_photos", "output_dir": tmp_path / "run"}
    refused(command("train.py", **keys), "pretrained", "run folder or checkpoint")
    refused(command("train.py", **keys, pretrained=tmp_path / "no.ckpt"), "does not exist")
    made = make_data("shot", tuple("0123456789"), network="lenet", bottleneck=0)
    refused(command("train.py", **keys, **made, freeze_backbone="true"), "nothing is left to train")
    assert not list(tmp_path.rglob("*.ckpt"))


def test_information_does_not_depend_on_how_mindspore_shares_out_the_work():
    same_at_every_call(information_loss, lambda rng: rng.normal(size=(16, 10)))
