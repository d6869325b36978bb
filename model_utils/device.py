"""The one place for device choice, CPU settings, seeds and distribution."""

import contextlib
import dataclasses
import logging
import os

from model_utils.errors import PeerError, UserError
from model_utils.quiet import hide_errors

log = logging.getLogger("run")

COLLECTIVES = {"Ascend": "HCCL", "GPU": "NCCL", "CPU": "MCCL"}
COMPILE_CACHE = "MS_COMPILER_CACHE_ENABLE"
VISIBLE = {"Ascend": "ASCEND_RT_VISIBLE_DEVICES", "GPU": "CUDA_VISIBLE_DEVICES"}


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
        """The sums of numbers over all ranks; all ranks must call it. Exact for counts below 2**24."""
        if self.world == 1:
            return numbers
        import mindspore as ms
        from mindspore import ops

        return tuple(float(total) for total in ops.AllReduce()(ms.Tensor(numbers, ms.float32)).asnumpy())

    @contextlib.contextmanager
    def together(self):
        """A block that every rank must enter, and leaves only when all ranks have ended it.

        An error on one rank becomes an error on every rank. Otherwise the others would wait for the failed
        rank in their next collective operation, for minutes if it is on another host. No collective may be
        called inside.

        Raises:
            Exception: this rank's own.
            PeerError: this rank did not fail; it names the ranks that did.
        """
        own = None
        try:
            yield
        except Exception as error:
            own = error
        if self.world > 1:
            failed = [0.0] * self.world
            failed[self.rank] = float(own is not None)
            ranks = [rank for rank, count in enumerate(self.all_sum(*failed)) if count]
            if ranks and own is None:
                raise PeerError(f"stopped because of an error on rank {', '.join(map(str, ranks))}")
        if own is not None:
            raise own


def _refusal(target, device_id):
    """Why MindSpore can't use a device here, in one line; None if it can, and then it is chosen for good.

    MindSpore's choice of a device is final: a second call with another id raises. So this calls once, with
    the id. device_id: None leaves the id to MindSpore, which gives each process of msrun its own.
    """
    import mindspore as ms

    try:
        with hide_errors():  # its probes print pages
            ms.set_device(target, *(() if device_id is None else (device_id,)))
    except (RuntimeError, ValueError) as error:
        return _reason(error)
    return None


def _reason(error):
    """The first line of MindSpore's error that says something."""
    lines = [line.strip("- ") for line in str(error).splitlines() if line.strip("- ")]
    return lines[0] if lines else type(error).__name__


def _choose(wanted, device_id):
    """(target, notes): the device this process uses from now on."""
    notes, refusals = [], []
    for target in ("Ascend", "GPU", "CPU") if wanted == "auto" else (wanted,):
        own = None if target == "CPU" or _launched() else device_id
        # A node without the driver's device file cannot have the device; asking MindSpore anyway would
        # print pages of loader errors.
        if target != "CPU" and not _has_driver(target):
            continue
        if target != "CPU" and not is_scheduler():
            _check_visible(target, own)
        refusal = _refusal(target, own)
        if refusal is None:
            chosen = f"device: {target}" + (f" {own}" if own else "")
            notes.append(chosen + (" (device_target auto)" if wanted == "auto" else ""))
            if device_id and own is None:
                reason = "there is one CPU" if target == "CPU" else "msrun gives each process its own"
                notes.append(f"device_id {device_id} is not used: {reason}")
            return target, (*refusals, *notes)
        refusals.append(f"{target} is not used: {refusal}")
    said = f" ({refusals[0]})" if refusals else ""
    raise UserError(
        f"device_target: {wanted} was asked for, but MindSpore finds none on this machine{said}; "
        f"check its driver and toolkit, or use --device_target CPU"
    )


def _check_visible(target, device_id):
    """UserError where the variable that limits the visible devices leaves none of this number.

    device_id: None for a process of msrun, which gets the device of its number on its host.
    """
    variable = VISIBLE[target]
    if variable not in os.environ:
        return
    listed = [name.strip() for name in os.environ[variable].split(",")]
    # As the drivers read it: what follows the first invalid entry, or one given before, does not count.
    invalid = (index for index, name in enumerate(listed) if name in ("", "-1", *listed[:index]))
    cut = next(invalid, len(listed))
    number = os.environ.get("DEVICE_ID", "") if device_id is None else str(device_id)
    if number.isdigit() and int(number) >= cut:
        left = f"leaves devices 0 to {cut - 1}, counted anew" if cut else "leaves no device"
        what = "device_id:" if device_id is not None else f"process {number} of this host needs device"
        raise UserError(
            f"{what} {number}, but {variable}={os.environ[variable]} {left}; change one of the two"
        )


def _has_driver(target):
    patterns = {"Ascend": ("/dev/davinci_manager", "/dev/davinci0"), "GPU": ("/dev/nvidiactl", "/dev/dxg")}
    return any(os.path.exists(path) for path in patterns[target])


def _launched():
    """Whether msrun started this process as one of several."""
    return os.environ.get("MS_WORKER_NUM", "1") not in ("", "0", "1")


def is_scheduler():
    """Whether this is msrun's scheduler: it runs the same command, but never comes back from `setup`."""
    return _launched() and os.environ.get("MS_ROLE") == "MS_SCHED"


def _distribute(target):
    """(rank, world) under msrun, else (0, 1)."""
    if not _launched():
        return 0, 1
    from mindspore.communication import get_group_size, get_rank, init

    try:
        init(COLLECTIVES[target].lower())
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"could not join the other processes over {COLLECTIVES[target]}: {_reason(error)}"
        ) from error
    return get_rank(), get_group_size()


def setup(config, prepare_cpu, exact=False):
    """Choose the device, seed everything, join the other processes; call once, before any network is built.

    Args:
        prepare_cpu: function (config, whether this is one of several processes) -> one line; called on a
            CPU, it makes the settings of operators. `src.setup.place.set_up` passes this project's.
        exact: whether convolutions must be of float32 throughout, see `_round_nothing`.

    Raises:
        UserError: the device asked for is not there or can't be used, or the other processes can't be joined.
    """
    import mindspore as ms

    ms.set_seed(config.seed)
    target, notes = _choose(config.device_target, config.device_id)
    notes = (*notes, *_no_compile_cache())
    if target == "CPU" and not is_scheduler():
        notes = (*notes, prepare_cpu(config, _launched()))
    if exact:
        _round_nothing(target)
    rank, world = _distribute(target)
    if target != "CPU":
        _begin(target, config.device_id)
    if world > 1:
        notes = (*notes, f"process {rank} of {world} over {COLLECTIVES[target]}")
    return Device(target, rank, world, notes)


def _no_compile_cache():
    """Turn MindSpore's cache of compiled graphs off where the environment turns it on; a note, or none.

    A graph from the cache computes with weights of its own instead of ours: in the second run the first loss
    is not a number (MindSpore 2.10.0, CPU).
    """
    if os.environ.get(COMPILE_CACHE, "0") != "1":
        return ()
    os.environ[COMPILE_CACHE] = "0"
    return (f"{COMPILE_CACHE}: off, since MindSpore's cached graphs leave the weights of a run out",)


def _round_nothing(target):
    """Let convolutions on this device keep float32; before the first operator.

    Unless told otherwise, those on a GPU round their inputs to TF32 and those on Ascend to HF32, both of 10
    bits. That is good for training, but two programs that compute one network then differ in the third digit.
    """
    import mindspore as ms

    if target == "GPU":
        ms.device_context.gpu.op_precision.conv_allow_tf32(False)
    elif target == "Ascend":
        ms.device_context.ascend.op_precision.conv_allow_hf32(False)


def _begin(target, device_id):
    """Run one operator: only that shows whether the device is there. Until then MindSpore accepts any number.

    Raises:
        UserError: it can't be used.
    """
    number = os.environ.get("DEVICE_ID", device_id) if _launched() else device_id
    try:
        with hide_errors():
            _first_operator()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"device_id: {target} {number} can't be used ({_reason(error)}); give the number of a device "
            "that this machine has, counted from 0, or see whether another program holds it"
        ) from error


def _first_operator():
    import mindspore as ms

    (ms.Tensor([1.0], ms.float32) + 1.0).asnumpy()


def gradient_reducer(parameters, device):
    """A function that averages a tuple of gradients over the ranks; the identity on one process.

    parameters: sequence of Parameter, those of the gradients, in their order.
    """
    if device.world == 1:
        return _identity
    from model_utils.collectives import AverageGradients

    return AverageGradients([parameter.shape for parameter in parameters], device.world)


def _identity(gradients):
    return gradients


def broadcast_parameters(cells, device, statistics_only=False):
    """Give every rank the parameter values of rank 0.

    Args:
        cells: iterable of nn.Cell, the same on all ranks.
        statistics_only: only what no gradient reaches, such as the running statistics of batch
            normalisation, which each rank gathers from its own share of the data.
    """
    if device.world == 1:
        return
    from model_utils.collectives import broadcast

    parameters = [parameter for cell in cells for parameter in cell.get_parameters()]
    broadcast([p for p in parameters if not (statistics_only and p.requires_grad)], device.rank)


def synchronise_batch_norm(cells, config, device):
    """With `sync_bn` and several processes: let all batch normalisation in `cells` use the joined batch.

    Call it after the cells are built and before their first step.
    """
    if not config.sync_bn or device.world == 1:
        return
    from model_utils import sync_batch_norm

    for cell in cells:
        sync_batch_norm.convert(cell, device.world)


def jit(function, config):
    """Compile `function` in graph mode, leave it as it is in PyNative mode."""
    import mindspore as ms

    if config.mode == "pynative":
        # Run asynchronously, PyNative of MindSpore 2.7.0 gives other losses now and then (5 of 40 equal runs
        # of eight steps on a busy machine; none when each operator is waited for, none on 2.10.0).
        ms.runtime.launch_blocking()
        return function
    return ms.jit(function)
