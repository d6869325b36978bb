"""The CPU operators against MindSpore's own: values, gradients, state, and what happens without them."""

import os
import threading

import mindspore as ms
import numpy as np
import pytest
from helpers import quick
from hypothesis import assume, given
from hypothesis import strategies as st
from mindspore import Tensor, nn, ops

from src import ops as cpu_ops
from src.ops._separable import Separable
from src.ops._stage import Stage
from src.ops.chain import Chain

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOLERANCE = 1e-5  # of the largest magnitude


def fill(network, seed):
    """Parameters that differ from channel to channel; variances stay positive."""
    rng = np.random.default_rng(seed)
    for parameter in network.get_parameters():
        values = rng.normal(size=parameter.shape).astype(np.float32) * 0.5
        if "variance" in parameter.name:
            values = np.abs(values) + 0.5
        parameter.set_data(Tensor(values))


def pair(build, training=False, **options):
    """The same network twice: with MindSpore's own operators and accelerated."""
    networks = build(), build()
    for network in networks:
        fill(network, 1)
        network.set_train(training)
    assert cpu_ops.accelerate(networks[1], **options) > 0
    return networks


_alive = []  # jit finds its graphs by the identity of their owner, which must not be used twice


class Weighted(nn.Cell):
    """Sum of network(x) · weights; `runs` times with x halved each time, as DANN runs source and target."""

    def __init__(self, network, runs=1):
        super().__init__()
        self.network, self.runs = network, runs

    def construct(self, x, weights):
        total = ops.zeros((), ms.float32)
        for _ in range(self.runs):
            total = total + (self.network(x) * weights).sum()
            x = x * 0.5
        return total


class Step:
    """Value and gradients of x and all parameters, compiled or not."""

    def __init__(self, network, runs=1):
        _alive.append(self)
        self.loss = Weighted(network, runs)
        self.gradient = ms.value_and_grad(self.loss, 0, self.loss.trainable_params())

    def eager(self, x, weights):
        value, (dx, dps) = self.gradient(x, weights)
        return [value, dx, *dps]

    @ms.jit
    def compiled(self, x, weights):
        value, (dx, dps) = self.gradient(x, weights)
        return [value, dx, *dps]


def tensor(shape, seed=0):
    return Tensor(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def assert_close(actual, expected, what="", scale=None):
    actual, expected = actual.asnumpy(), expected.asnumpy()
    assert actual.shape == expected.shape, what
    scale = scale or max(np.abs(expected).max(initial=0), 1e-6)
    assert np.abs(actual - expected).max(initial=0) <= TOLERANCE * scale, what


def assert_same_step(networks, x, runs=1, mode="eager", least=0.0):
    """`least`: a gradient that is small because its terms cancel is compared on this share of the largest."""
    plain, fast = networks
    y = plain(x) if not plain.training else None
    shape = fast(x).shape if y is None else y.shape
    for one, other in zip(plain.get_parameters(), fast.get_parameters(), strict=True):
        other.set_data(Tensor(one.asnumpy()))
    weights = tensor(shape, 5)
    expected = getattr(Step(plain, runs), mode)(x, weights)
    actual = getattr(Step(fast, runs), mode)(x, weights)
    names = ["value", "x"] + [p.name for p in plain.trainable_params()]
    magnitude = max(np.abs(g.asnumpy()).max() for g in expected[1:])
    for name, one, other in zip(names, actual, expected, strict=True):
        # The gradient of a bias before batch normalisation is zero but for rounding: only its size counts.
        cancels = name.endswith("bias") and plain.training and len(expected) > 4
        scale = max(np.abs(other.asnumpy()).max(), magnitude * (1 if cancels else least), 1e-6)
        assert_close(one, other, name, np.abs(weights.asnumpy()).sum() if name == "value" else scale)
    for one, other in zip(fast.get_parameters(), plain.get_parameters(), strict=True):
        assert_close(one, other, one.name)


@st.composite
def convolutions(draw):
    """(constructor arguments of nn.Conv2d, input shape)"""
    sizes = st.integers
    if draw(st.booleans()):
        group = draw(sizes(1, 20))  # depthwise
        inputs = outputs = group
    else:
        group = draw(sizes(1, 3))
        inputs, outputs = group * draw(sizes(1, 9)), group * draw(sizes(1, 18))
    kernel = (draw(sizes(1, 5)), draw(sizes(1, 5)))
    stride = (draw(sizes(1, 3)), draw(sizes(1, 3)))
    dilation = draw(sizes(1, 2))
    mode = draw(st.sampled_from(["same", "valid", "pad"]))
    padding = draw(st.one_of(sizes(0, 2), st.tuples(*[sizes(0, 2)] * 4))) if mode == "pad" else 0
    span = [dilation * (k - 1) + 1 for k in kernel]
    shape = (draw(sizes(1, 3)), inputs, span[0] + draw(sizes(0, 7)), span[1] + draw(sizes(0, 7)))
    options = {
        "in_channels": inputs,
        "out_channels": outputs,
        "kernel_size": kernel,
        "stride": stride,
        "pad_mode": mode,
        "padding": padding,
        "dilation": dilation,
        "group": group,
        "has_bias": draw(st.booleans()),
    }
    return options, shape


@quick
@given(case=convolutions())
def test_convolution_equals_plain(operators, case):
    options, shape = case
    assert_same_step(pair(lambda: nn.Conv2d(**options)), tensor(shape))


@pytest.mark.parametrize(
    "options",
    [
        {"in_channels": 3, "out_channels": 20, "kernel_size": 5, "pad_mode": "valid", "has_bias": True},
        {"in_channels": 16, "out_channels": 16, "kernel_size": 3, "group": 16},
        {"in_channels": 6, "out_channels": 8, "kernel_size": 3, "stride": 2, "group": 2, "pad_mode": "pad",
         "padding": (1, 0, 2, 1), "has_bias": True},
    ],
)  # fmt: skip
def test_convolution_equals_plain_compiled(operators, options):
    networks = pair(lambda: nn.Conv2d(**options))
    assert_same_step(networks, tensor((3, options["in_channels"], 11, 9)), runs=2, mode="compiled")


def test_convolution_equals_the_definition(operators):
    """An oracle that shares nothing with MindSpore or oneDNN: the sums written out."""
    conv = nn.Conv2d(4, 6, (3, 2), (2, 1), "pad", (1, 2, 0, 1), (1, 2), group=2, has_bias=True)
    fill(conv, 3)
    assert cpu_ops.accelerate(conv) == 1
    x, w, b = tensor((2, 4, 7, 8)).asnumpy(), conv.weight.asnumpy(), conv.bias.asnumpy()
    padded = np.pad(x, ((0, 0), (0, 0), (1, 2), (0, 1))).astype(np.float64)
    out = np.zeros((2, 6, 4, 7))
    for o in range(6):
        for i in range(4):
            for j in range(7):
                patch = padded[:, o // 3 * 2 : o // 3 * 2 + 2, 2 * i : 2 * i + 3, j : j + 3 : 2]
                out[:, o, i, j] = (patch * w[o]).sum((1, 2, 3)) + b[o]
    actual = conv(Tensor(x)).asnumpy()
    assert actual.shape == out.shape
    assert np.abs(actual - out).max() <= TOLERANCE * np.abs(out).max()


TAILS = {
    "b": lambda c: nn.BatchNorm2d(c, momentum=0.8, eps=1e-3),
    "p": lambda c: nn.MaxPool2d(2, 2),
    "o": lambda c: nn.MaxPool2d(3, 2),
    "r": lambda c: nn.ReLU(),
    "6": lambda c: nn.ReLU6(),
}


def stage(tail, channels=20, **options):
    conv = nn.Conv2d(3, channels, 3, **{"pad_mode": "valid", "has_bias": True, **options})
    return nn.SequentialCell([conv] + [TAILS[kind](channels) for kind in tail])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("tail", ["b", "r", "6", "p", "o", "bp", "br", "b6", "bpr", "brp", "bo6", "ro"])
def test_stage_equals_its_cells(operators, tail, training):
    networks = pair(lambda: stage(tail, has_bias="b" not in tail or training), training)
    assert [type(cell) for cell in networks[1].cell_list] == [Stage]
    assert_same_step(networks, tensor((4, 3, 13, 12)), runs=2)


@quick
@given(
    tail=st.sampled_from(["bpr", "br", "ro", "b"]),
    channels=st.integers(1, 40),
    size=st.tuples(st.integers(1, 5), st.just(3), st.integers(5, 12), st.integers(5, 12)),
    training=st.booleans(),
)
def test_stage_shapes(operators, tail, channels, size, training):
    assume(size[0] * size[2] * size[3] > 30)  # enough values for a variance that is not all rounding
    assert_same_step(pair(lambda: stage(tail, channels), training), tensor(size))


@pytest.mark.parametrize("training", [True, False])
def test_stage_compiled(operators, training):
    """Also: switching between training and evaluation after a compilation takes effect."""
    networks = pair(lambda: stage("bpr"), training)
    assert_same_step(networks, tensor((4, 3, 12, 12)), runs=2, mode="compiled")
    for network in networks:
        network.set_train(not training)
    assert_same_step(networks, tensor((4, 3, 12, 12)), mode="compiled")


def separable(inputs=5, outputs=20, stride=1, activation=nn.ReLU6, kernel=1, depthwise=None, last=None):
    """`depthwise`: kernel, pad_mode and padding of the depthwise convolution, 3x3 if not given."""
    conv = nn.Conv2d(inputs, outputs, kernel, pad_mode="pad", padding=kernel // 2)
    first = [conv, nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.8)] + ([activation()] if activation else [])
    side, *padding = depthwise or (3, "pad", 1)
    second = [nn.Conv2d(outputs, outputs, side, stride, *padding, group=outputs), nn.BatchNorm2d(outputs)]
    return nn.SequentialCell(nn.SequentialCell(first), nn.SequentialCell(second + ([last()] if last else [])))


def separable_pair(build=separable, training=True):
    """As `pair`. What comes to the second normalisation varies in all channels: it would magnify rounding."""
    networks = pair(build, training)
    for network in networks:
        norm = next(cell for _, cell in network.cells_and_names() if isinstance(cell, nn.BatchNorm2d))
        norm.gamma.set_data(norm.gamma.abs() + 0.5)
        norm.beta.set_data(norm.beta.clip(-0.5, 0.5))
        for _, cell in network.cells_and_names():
            if isinstance(cell, nn.Conv2d) and cell.group > 1:
                cell.weight.set_data(cell.weight.abs() + 0.2)
    return networks


@quick
@given(
    options=st.fixed_dictionaries(
        {
            "inputs": st.integers(3, 20),  # with one, its gradient is all rounding
            "outputs": st.integers(1, 40),
            "stride": st.sampled_from([1, 2]),
            "activation": st.sampled_from([nn.ReLU6, nn.ReLU, None]),
            "kernel": st.sampled_from([1, 3]),
            "depthwise": st.one_of(
                st.none(),
                st.tuples(st.sampled_from([3, 5]), st.sampled_from(["same", "valid"]), st.just(0)),
                st.tuples(st.just(3), st.just("pad"), st.tuples(*[st.integers(0, 2)] * 4)),
                st.tuples(st.just(5), st.just("pad"), st.tuples(*[st.integers(0, 4)] * 4)),
            ),
            "last": st.sampled_from([nn.ReLU6, nn.ReLU, None]),
        }
    ),
    size=st.tuples(st.integers(2, 5), st.integers(1, 24), st.integers(1, 24)),
    training=st.booleans(),
)
def test_separable_equals_its_cells(operators, options, size, training):
    n, h, w = size
    side, mode, padding = options["depthwise"] or (3, "pad", 1)
    top, bottom, left, right = padding if isinstance(padding, tuple) else (padding,) * 4
    if mode == "same":
        top = left = side - 1
    rows, columns = ((s - side) // options["stride"] + 1 for s in (h + top + bottom, w + left + right))
    # Enough values for a variance that is not all rounding.
    assume(rows > 0 and columns > 0 and n * rows * columns > 100)
    networks = separable_pair(lambda: separable(**options), training)
    assert [type(cell) for cell in networks[1].cell_list] == [Separable]
    assert_same_step(networks, tensor((n, options["inputs"], h, w)), least=0.1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_separable_compiled(operators, stride, training):
    """Also: switching between training and evaluation after a compilation takes effect."""
    networks = separable_pair(
        lambda: separable(stride=stride, depthwise=(5, "same", 0), last=nn.ReLU6), training
    )
    assert_same_step(networks, tensor((4, 5, 12, 9)), runs=2, mode="compiled")
    for network in networks:
        network.set_train(not training)
    assert_same_step(networks, tensor((4, 5, 12, 9)), mode="compiled")


def test_separable_with_one_half_frozen(operators):
    """Only one of the normalisations uses statistics of the batch: each half is an operator of its own."""
    networks = separable_pair()
    for network in networks:
        network[0].set_train(False)
    assert_same_step(networks, tensor((4, 5, 12, 9)))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda: nn.Conv2d(20, 20, 3, 1, "pad", 1, group=20, has_bias=True),
        lambda: nn.Conv2d(20, 20, 3, 1, "pad", 1, group=10),
        lambda: nn.Conv2d(20, 20, 3, 1, "pad", 3, group=20),
        lambda: nn.Conv2d(20, 20, 7, 1, "pad", 3, group=20),
        lambda: nn.Conv2d(20, 20, (3, 5), 1, "same", group=20),
        lambda: nn.Conv2d(20, 20, 3, 3, "pad", 1, group=20),
        lambda: nn.Conv2d(20, 40, 3, 1, "pad", 1, group=20),
    ],
)
def test_what_is_not_separable_stays_two_stages(operators, spoil):
    def build():
        network = separable()
        second = spoil()
        return nn.SequentialCell(network[0], nn.SequentialCell(second, nn.BatchNorm2d(second.out_channels)))

    networks = separable_pair(build)
    assert [type(cell) for cell in networks[1].cell_list] == [nn.SequentialCell] * 2
    assert_same_step(networks, tensor((3, 5, 9, 8)))


def test_separable_in_a_row_of_cells(operators):
    """conv, norm, ReLU6, depthwise, norm without cells around them; and plain() sees through both fusions."""
    networks = separable_pair(lambda: nn.SequentialCell(*[cell for part in separable() for cell in part]))
    assert [type(cell) for cell in networks[1].cell_list] == [Separable]
    assert_same_step(networks, tensor((3, 5, 9, 8)))
    with cpu_ops.plain(networks[1]):
        assert [type(cell) for cell in networks[1].cell_list] == [
            type(cell) for cell in networks[0].cell_list
        ]
    assert [type(cell) for cell in networks[1].cell_list] == [Separable]


class Forward:
    def __init__(self, network):
        _alive.append(self)
        self.network = network

    @ms.jit
    def __call__(self, x):
        return self.network(x)


def test_batch_sizes_vary(operators):
    plain, fast = pair(lambda: nn.SequentialCell(stage("bpr"), nn.Conv2d(20, 4, 3, has_bias=True)))
    run = Forward(fast)
    for count in (5, 1, 3, 5):
        x = tensor((count, 3, 10, 10), count)
        assert_close(run(x), plain(x))
        assert_close(fast(x), plain(x))


def test_names_order_and_checkpoint_stay(operators, tmp_path):
    plain, fast = pair(lambda: nn.SequentialCell(stage("bpr"), nn.Conv2d(20, 4, 3, has_bias=True)), True)
    fast(tensor((4, 3, 10, 10)))
    plain(tensor((4, 3, 10, 10)))
    described = [[(p.name, p.shape, p.requires_grad) for p in n.get_parameters()] for n in (plain, fast)]
    assert described[0] == described[1]
    assert [name for name, _ in plain.cells_and_names()] == [name for name, _ in fast.cells_and_names()]
    file = str(tmp_path / "fast.ckpt")
    ms.save_checkpoint(fast, file)
    fill(plain, 9)
    assert ms.load_param_into_net(plain, ms.load_checkpoint(file), strict_load=True) == ([], [])
    fill(fast, 10)
    assert ms.load_param_into_net(fast, ms.load_checkpoint(file), strict_load=True) == ([], [])
    for network in (plain, fast):
        network.set_train(False)
    x = tensor((4, 3, 10, 10))
    assert_close(fast(x), plain(x))


def test_plain_puts_the_cells_back(operators, tmp_path):
    plain, fast = pair(lambda: nn.SequentialCell(stage("bpr"), nn.Conv2d(20, 4, 3)))
    x = tensor((2, 3, 10, 10))
    accelerated = fast(x).asnumpy()
    fused = list(fast[0].cell_list)
    with pytest.raises(KeyError), cpu_ops.plain(fast):
        assert type(fast[1]) is nn.Conv2d and type(fast[0][0]) is nn.Conv2d
        assert list(fast[0].cell_list) == list(fast[0])
        assert np.array_equal(fast(x).asnumpy(), plain(x).asnumpy())
        ms.export(fast, x, file_name=str(tmp_path / "net"), file_format="MINDIR")
        raise KeyError  # restored all the same
    assert list(fast[0].cell_list) == fused and type(fast[1]) is not nn.Conv2d
    assert np.array_equal(fast(x).asnumpy(), accelerated)
    exported = nn.GraphCell(ms.load(str(tmp_path / "net.mindir")))
    assert_close(Forward(exported)(x), plain(x))
    assert b"operators-" not in (tmp_path / "net.mindir").read_bytes()


def test_chain_is_fused_and_owns_nothing(operators):
    class Network(nn.Cell):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.stage = Chain(self.conv, self.norm, nn.ReLU())

        def construct(self, x):
            return self.stage(x)

    networks = pair(Network, True)
    assert [type(cell) for cell in networks[1].stage.cell_list] == [Stage]
    assert [p.name for p in networks[1].get_parameters()][:3] == [
        "conv.weight",
        "norm.moving_mean",
        "norm.moving_variance",
    ]
    assert_same_step(networks, tensor((3, 3, 9, 9)), mode="compiled")


class SecondOrder(nn.Cell):
    """Sum of squared first derivatives of Σ network(x)³."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.weights = ms.ParameterTuple(network.trainable_params())

    def cube(self, x):
        return (self.network(x) ** 3).sum()

    def construct(self, x):
        dx, dps = ms.grad(self.cube, 0, self.weights)(x)
        total = (dx * dx).sum()
        for dp in dps:
            total = total + (dp * dp).sum()
        return total


class SecondStep:
    def __init__(self, network):
        _alive.append(self)
        cell = SecondOrder(network)
        self.gradient = ms.grad(cell, 0, cell.trainable_params())

    @ms.jit
    def compiled(self, x):
        return self.gradient(x)

    def eager(self, x):
        return self.gradient(x)


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_second_derivatives(operators, mode):
    def build():
        return nn.Conv2d(4, 6, 3, 2, "pad", 1, group=2, has_bias=True)

    plain, fast = pair(build, second_order=True)
    x = tensor((2, 4, 7, 6))
    expected, actual = (getattr(SecondStep(network), mode)(x) for network in (plain, fast))
    assert_close(actual[0], expected[0])
    for one, other in zip(actual[1], expected[1], strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("mode", ["eager", "compiled"])
@pytest.mark.parametrize("build", [lambda: nn.Conv2d(3, 4, 3), lambda: stage("r", 4)])
def test_second_derivatives_are_refused_when_not_announced(operators, build, mode, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the graph compiler leaves a dump of what it could not compile
    network = build()
    cpu_ops.accelerate(network)
    with pytest.raises((NotImplementedError, RuntimeError)) as refusal:
        getattr(SecondStep(network), mode)(tensor((2, 3, 7, 6)))
    if mode == "eager":
        assert "second_order=True" in str(refusal.value)


def test_half_precision_takes_the_plain_path(operators):
    for build in (lambda: nn.Conv2d(3, 4, 3), lambda: stage("br")):
        plain, fast = pair(build)
        for network in (plain, fast):
            network.to_float(ms.float16)
        x = tensor((2, 3, 8, 8)).astype(ms.float16)
        expected, actual = Forward(plain)(x), Forward(fast)(x)
        assert actual.dtype == expected.dtype
        assert np.allclose(actual.asnumpy(), expected.asnumpy(), atol=2e-2)


def test_not_a_number_passes_through(operators):
    """The run must be able to see that it diverged."""
    network = stage("bpr")
    cpu_ops.accelerate(network)
    x = np.ones((1, 3, 8, 8), np.float32)
    x[0, 0, 4, 4] = np.nan
    assert np.isnan(network(Tensor(x)).asnumpy()).any()


def test_wrong_shapes_are_errors(operators):
    conv = nn.Conv2d(3, 4, 5, pad_mode="valid")
    cpu_ops.accelerate(conv)
    with pytest.raises(ValueError, match="channels"):
        conv(tensor((1, 2, 8, 8))).asnumpy()
    with pytest.raises(ValueError, match="does not fit"):
        conv(tensor((1, 3, 4, 8))).asnumpy()


def test_same_bits_whatever_the_threads_do(operators):
    network = nn.SequentialCell(stage("bpr", 30), nn.Conv2d(30, 17, 3, group=1, has_bias=True))
    fill(network, 1)
    network.set_train()
    cpu_ops.accelerate(network)
    x, weights = tensor((9, 3, 20, 20)), tensor((9, 17, 9, 9), 5)
    step = Step(network)
    stop = threading.Event()

    def disturb():
        while not stop.is_set():
            np.dot(np.ones((200, 200)), np.ones((200, 200)))

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        runs = [[g.asnumpy().tobytes() for g in step.compiled(x, weights)] for _ in range(8)]
    finally:
        stop.set()
        disturber.join()
    assert all(run == runs[0] for run in runs)


def test_without_prepare_or_off_the_cpu_nothing_changes(monkeypatch):
    monkeypatch.setattr(cpu_ops, "_ready", False)
    conv = nn.Conv2d(3, 4, 3)
    assert cpu_ops.accelerate(conv) == 0 and type(conv) is nn.Conv2d
    with cpu_ops.plain(conv) as same:
        assert same is conv
