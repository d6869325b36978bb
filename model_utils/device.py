"""The one place for device choice, CPU settings, seeds and distribution."""

import dataclasses
import logging
import os

from model_utils.errors import UserError

log = logging.getLogger("run")

COLLECTIVES = {"Ascend": "HCCL", "GPU": "NCCL", "CPU": "MCCL"}


@dataclasses.dataclass(frozen=True)
class Device:
    """Where this process runs: target Ascend, GPU or CPU; its rank among `world` processes."""

    target: str
    rank: int = 0
    world: int = 1
    notes: tuple = ()

    @property
    def is_main(self):
        """Whether this process writes results."""
        return self.rank == 0

    def all_sum(self, *numbers):
        """The sums of Python numbers over all ranks (float64 in, exact for counts below 2**24)."""
        if self.world == 1:
            return numbers
        import mindspore as ms
        from mindspore import ops

        return tuple(float(total) for total in ops.AllReduce()(ms.Tensor(numbers, ms.float32)).asnumpy())


def _limit_cpu_isa():
    """Select oneDNN's fast convolution on AVX-512 hosts, where it otherwise takes its reference kernels.

    Only while the user has not chosen; has to happen before the first operator runs.
    """
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")


def _prepare_cpu(config):
    """CPU settings of this process; returns a line that says which convolution is in use."""
    if config.cpu_operator:
        from src import ops

        return ops.prepare()
    _limit_cpu_isa()
    return "CPU operator: plain MindSpore operators (cpu_operator is false)"


def _present(target):
    """Whether MindSpore can use `target` here. Asks MindSpore quietly: its probes print pages."""
    import mindspore as ms

    level = os.environ.get("GLOG_v")
    try:
        ms.set_device(target)
    except (RuntimeError, ValueError):
        return False
    finally:
        if level is not None:
            os.environ["GLOG_v"] = level
    return True


def _choose(wanted, device_id):
    import mindspore as ms

    candidates = ("Ascend", "GPU", "CPU") if wanted == "auto" else (wanted,)
    for target in candidates:
        # A node without the driver's device file cannot have the device; asking MindSpore anyway would
        # print pages of loader errors.
        if target == "CPU" or (_has_driver(target) and _present(target)):
            ms.set_device(target, device_id if target != "CPU" else 0)
            return target
    raise UserError(
        f"device_target: {wanted} was asked for, but MindSpore finds none on this machine; "
        f"check its driver and toolkit, or use --device_target CPU"
    )


def _has_driver(target):
    patterns = {"Ascend": ("/dev/davinci_manager", "/dev/davinci0"), "GPU": ("/dev/nvidiactl", "/dev/dxg")}
    return any(os.path.exists(path) for path in patterns[target])


def _distribute(target):
    """(rank, world) under msrun, else (0, 1)."""
    if int(os.environ.get("MS_WORKER_NUM", "1")) <= 1:
        return 0, 1
    from mindspore.communication import get_group_size, get_rank, init

    try:
        init(COLLECTIVES[target].lower())
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"could not join the other processes over {COLLECTIVES[target]}: {first}") from error
    return get_rank(), get_group_size()


def setup(config):
    """Choose the device, seed everything, join the other processes; call once, before any network is built.

    Raises:
        UserError: the device asked for is not there, or the other processes can't be joined.
    """
    import mindspore as ms

    ms.set_seed(config.seed)
    target = _choose(config.device_target, config.device_id)
    notes = [f"device: {target}" + (" (device_target auto)" if config.device_target == "auto" else "")]
    if target == "CPU":
        notes.append(_prepare_cpu(config))
    rank, world = _distribute(target)
    if world > 1:
        notes.append(f"process {rank} of {world} over {COLLECTIVES[target]}")
    return Device(target, rank, world, tuple(notes))


def gradient_reducer(parameters, device):
    """Averages a tuple of gradients over the ranks; the identity on one process."""
    if device.world == 1:
        return _identity
    from mindspore import nn

    return nn.DistributedGradReducer(parameters, True, device.world)


def _identity(gradients):
    return gradients


def broadcast_parameters(cells, device):
    """Give every rank the parameter values of rank 0. cells: iterable of nn.Cell."""
    if device.world == 1:
        return
    from mindspore import ops

    send = ops.Broadcast(0)
    for cell in cells:
        for parameter in cell.get_parameters():
            parameter.set_data(send((parameter,))[0])


def jit(function, config):
    """Compile `function` in graph mode, leave it as it is in PyNative mode."""
    if config.mode == "pynative":
        return function
    import mindspore as ms

    return ms.jit(function)
