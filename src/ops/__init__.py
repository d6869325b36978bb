"""CPU operators of our own: convolutions that let oneDNN choose its memory layouts.

MindSpore's CPU convolution hands oneDNN plain NCHW tensors, for which it has slow kernels only. The operators
here call the oneDNN library that MindSpore ships, with the layouts it prefers. They exist in memory only: a
checkpoint holds nothing of them, and `plain` takes them out for an export.

    prepare()             once per process, before the first operator runs
    accelerate(network)   after a network is built
    with plain(network):  around an export

DA_CPU_OPS=0 turns them off, DA_CPU_OPS=conv leaves single convolutions only; DA_CPU_THREADS (else
OMP_NUM_THREADS) sets their number of threads.
"""

import contextlib
import logging
import os

from src.ops import _library

__all__ = ["accelerate", "plain", "prepare", "strip", "tune_plain"]

_log = logging.getLogger(__name__)
_line = None
_ready = False


def prepare():
    """Build or load the operators and choose oneDNN's instruction set; call before the first operator runs.

    It never raises for what a machine lacks. Without a compiler, with DA_CPU_OPS=0, or when building, loading
    or the self-check fails, MindSpore's own operators stay in use. A value of ONEDNN_MAX_CPU_ISA that the
    user has set is kept. Calling it again returns the same line.

    Returns:
        One line that says which operators are in use, and why.
    """
    global _line, _ready
    if _line is None:
        _wait_asleep()
        reason = None
        if os.environ.get("DA_CPU_OPS", "1") == "0":
            reason = "DA_CPU_OPS=0"
        else:
            try:
                how = _library.load()
                _ready = True
                _line = f"CPU operator: oneDNN blocked layouts ({how})"
            except _library.Unavailable as missing:
                reason = str(missing)
            except (_library.Broken, OSError) as fault:
                reason = str(fault)
                _log.warning("the CPU operators could not be used: %s", reason)
        if reason is not None:
            _line = f"CPU operator: plain MindSpore, because {reason}{_choose_plain_isa()}"
    return _line


def tune_plain():
    """The same settings for a process that uses MindSpore's own operators only, in place of `prepare`."""
    _wait_asleep()
    _choose_plain_isa()


def _wait_asleep():
    """MindSpore hands a compiled step to another thread and then spins on a core until it is done; with this
    setting the calling thread runs the step itself, and leaves the core to the operators."""
    os.environ.setdefault("MS_DEV_JIT_PIPELINE", "0")


def _choose_plain_isa():
    """With AVX-512 MindSpore's own convolution takes oneDNN's reference kernel: forty times slower."""
    chosen = os.environ.get("ONEDNN_MAX_CPU_ISA")
    if chosen:
        return f"; ONEDNN_MAX_CPU_ISA={chosen} as set"
    if "avx512f" not in _library.cpu_flags():
        return ""
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
    return "; oneDNN limited to AVX2, where its plain convolution is faster"


def accelerate(network, second_order=False):
    """Let the eligible cells of `network` compute through the CPU operators, in place.

    Every nn.Conv2d is eligible, and so are the cells of src/ops/twice_differentiable.py. Where an
    nn.SequentialCell or a `chain.Chain` has a convolution followed by BatchNorm2d, MaxPool2d (pad_mode
    "valid"), ReLU or ReLU6, these run as one operator, which saves most of their time; so does such a row
    with a depthwise 3x3 or 5x5 convolution, its BatchNorm2d and its activation behind it.

    Parameters, their names and order, requires_grad and training mode stay what they are, and so does every
    checkpoint. Does nothing on Ascend or GPU, or unless prepare() succeeded.

    Args:
        network: any nn.Cell.
        second_order: whether gradients of gradients will be asked for. Without it, asking raises.

    Returns:
        The number of convolutions that changed.
    """
    import mindspore as ms

    if not _ready or ms.get_context("device_target") != "CPU":
        return 0
    from src.ops import _conv, _pool, _response, _separable, _stage

    cells = [cell for _, cell in network.cells_and_names() if _conv.eligible(cell)]
    for cell in cells:
        _conv.convert(cell, second_order)
    for kind in (_pool, _response):
        for cell in [cell for _, cell in network.cells_and_names() if kind.eligible(cell)]:
            kind.convert(cell)
    if os.environ.get("DA_CPU_OPS") != "conv":
        containers = _containers(network)
        for container in containers:
            _stage.fuse(container)
        for container in containers:
            _separable.fuse(container)
    return len(cells)


def _containers(network):
    """The cells of `network` that say which cells follow each other."""
    from mindspore import nn

    from src.ops.chain import Chain

    kinds = (nn.SequentialCell, Chain)
    return [cell for _, cell in network.cells_and_names() if type(cell) in kinds]


def strip(network):
    """Undo `accelerate`: the cells of `network` compute through MindSpore's own operators again.

    Returns:
        What puts the operators back when called, for `plain`.
    """
    from mindspore import nn

    from src.ops import _conv, _pool, _response, _stage
    from src.ops.twice_differentiable import LocalResponseNorm, MaxPool2d

    own = {_conv.Conv2d: nn.Conv2d, _pool.Pool: MaxPool2d, _response.Response: LocalResponseNorm}
    cells = [(cell, type(cell)) for _, cell in network.cells_and_names() if type(cell) in own]
    containers = [(container, _stage.restore(container)) for container in _containers(network)]
    for cell, kind in cells:
        cell.__class__ = own[kind]

    def back():
        for container, fused in containers:
            object.__setattr__(container, "cell_list", fused)
        for cell, kind in cells:
            cell.__class__ = kind

    return back


@contextlib.contextmanager
def plain(network):
    """Within the block, `network` computes with MindSpore's own operators: for export, and for comparison."""
    back = strip(network)
    try:
        yield network
    finally:
        back()
