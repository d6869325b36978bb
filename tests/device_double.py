"""A stand-in for MindSpore's device layer that behaves as that of 2.10 does with a GPU or an Ascend.

    machine = DeviceDouble(GPU=4)  # a machine with four GPUs and no Ascend
    machine.install(monkeypatch)  # set_device, init, get_rank, get_group_size, precision, ops.Custom, export
    machine.first_operator()  # what the first operator of a program does
    machine.physical  # (target, number of the device in the machine)
    launched(4, local_rank=1)  # the environment of a process of msrun

Rules taken over from mindspore/device_manager.py, communication/management.py, parallel/cluster and
device_context: a second `set_device` must repeat the first; none is allowed once the runtime has begun;
without an id it is 0, under msrun the process's own on its host; ids count the visible devices; `init` needs
the backend of the target, several processes and, before it, no Tensor; msrun's scheduler never comes back
from it. Convolutions round their inputs to 10 bits (TF32, HF32) unless that is switched off. `ops.Custom` is
refused off the CPU, because its code here is a CPU's. What is computed is computed on the CPU.
"""

import os
import sys

import numpy as np

TARGETS = ("CPU", "GPU", "Ascend")
BACKENDS = {"Ascend": "hccl", "GPU": "nccl", "CPU": "mccl"}
VISIBLE = {"GPU": "CUDA_VISIBLE_DEVICES", "Ascend": "ASCEND_RT_VISIBLE_DEVICES"}
MSRUN = ("MS_WORKER_NUM", "MS_ROLE", "MS_NODE_ID", "RANK_ID", "DEVICE_ID", "RANK_TABLE_FILE")
OWN_CODE = ("src", "model_utils")


class SchedulerEnds(SystemExit):
    """msrun's scheduler stays inside `init` until the run is over, and then leaves the program."""


def launched(world, local_rank=0, rank=None, role="MS_WORKER"):
    """{variable: text} that msrun sets for one process."""
    rank = local_rank if rank is None else rank
    settings = {"MS_WORKER_NUM": world, "MS_ROLE": role, "RANK_ID": rank, "DEVICE_ID": local_rank}
    return {name: str(value) for name, value in settings.items()}


def rounded(values):
    """float32 array -> the nearest values of 10 bits after the first, as TF32 and HF32 have."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)).view(np.float32)


class DeviceDouble:
    """A machine with so many devices of each kind; one process of MindSpore on it."""

    def __init__(self, **devices):
        self.devices = {"CPU": 1, "GPU": 0, "Ascend": 0, **devices}
        self.chosen = None  # (target, id as given or as it follows)
        self.running = self.joined = False
        self.rounds = True  # convolutions, off the CPU
        self.calls = []

    # What the tests say and ask.

    def install(self, monkeypatch):
        """Put this in MindSpore's place; a target with devices has a driver."""
        import mindspore
        from mindspore import communication, nn, ops

        from model_utils import device

        replaced = ("set_device", "get_context", "export")
        self.real = {name: getattr(mindspore, name) for name in replaced}
        self.custom, self.call = ops.Custom, nn.Cell.__call__
        for name in replaced:
            monkeypatch.setattr(mindspore, name, getattr(self, name))
        monkeypatch.setattr(mindspore, "set_seed", lambda seed: None)
        for name in ("init", "get_rank", "get_group_size"):
            monkeypatch.setattr(communication, name, getattr(self, name))
        monkeypatch.setattr(ops, "Custom", self.custom_operator)
        machine = self
        monkeypatch.setattr(
            nn.Conv2d, "__call__", lambda cell, x: machine.convolution(cell, x), raising=False
        )
        settings = mindspore.device_context
        monkeypatch.setattr(settings.gpu.op_precision, "conv_allow_tf32", self.allow_rounding("GPU"))
        monkeypatch.setattr(settings.ascend.op_precision, "conv_allow_hf32", self.allow_rounding("Ascend"))
        monkeypatch.setattr(device, "_has_driver", lambda target: self.devices[target] > 0)
        monkeypatch.setattr(device, "_first_operator", self.first_operator)
        for name in (*VISIBLE.values(), *MSRUN):
            monkeypatch.delenv(name, raising=False)
        return self

    def first_operator(self):
        """Begin the runtime; the id is looked up only now."""
        target, number = self.chosen or ("CPU", 0)
        if target != "CPU" and number >= len(self.visible(target)):
            raise RuntimeError(f"Set device id {number} failed: invalid device ordinal")
        self.running = True

    @property
    def physical(self):
        """(target, number in the machine) of the chosen device."""
        target, number = self.chosen
        return target, (0 if target == "CPU" else self.visible(target)[number])

    @property
    def target(self):
        """Where operators run."""
        return self.chosen[0] if self.chosen else "CPU"

    def visible(self, target):
        """The machine's numbers of the devices that this process sees, in its order.

        What follows the first invalid entry does not count; a GPU may also be named GPU-<number>, as a
        stand-in for its long name.
        """
        every = list(range(self.devices[target]))
        text = os.environ.get(VISIBLE.get(target, ""))
        if text is None:
            return every
        seen = []
        for word in text.split(","):
            word = word.strip().removeprefix("GPU-" if target == "GPU" else "")
            if not word.isdigit() or int(word) not in every or int(word) in seen:
                break
            seen.append(int(word))
        return seen

    # What takes MindSpore's place.

    def set_device(self, device_target, device_id=None):
        """As mindspore.set_device."""
        self.calls.append((device_target, device_id))
        if device_target not in TARGETS:
            raise ValueError(f"The argument 'device_target' must be one of {list(TARGETS)}")
        if not self.visible(device_target):
            raise RuntimeError(f"The device target {device_target} is not available: no driver or library")
        if device_target == "Ascend" and os.environ.get("MS_ROLE") == "MS_SCHED":
            device_target = "CPU"
        if device_id is None:
            device_id = self._local_rank()
        if device_id < 0:
            raise ValueError("The device id must bigger than or equal to 0.")
        if self.chosen is not None:
            if self.chosen != (device_target, device_id):
                raise RuntimeError("The 'mindspore.set_device' can not be modified.")
            return
        if self.running:
            raise RuntimeError("The runtime has been initialized, please set it before")
        self.chosen = device_target, device_id

    def _local_rank(self):
        several = int(os.environ.get("MS_WORKER_NUM") or 1) > 1
        return int(os.environ.get("DEVICE_ID", "0")) if several and self.chosen is None else 0

    def get_context(self, name):
        """As mindspore.get_context."""
        return self.target if name == "device_target" else self.real["get_context"](name)

    def init(self, backend_name=None):
        """As mindspore.communication.init."""
        if os.environ.get("MS_ROLE") == "MS_SCHED":
            raise SchedulerEnds(0)
        if backend_name != BACKENDS[self.target]:
            raise RuntimeError(f"the argument 'backend_name' should be '{BACKENDS[self.target]}'")
        if int(os.environ.get("MS_WORKER_NUM") or 1) < 2:
            raise RuntimeError("Environment variables RANK_ID and MS_WORKER_NUM are not exported")
        if found := tensors_of_modules():
            raise RuntimeError(f"init() should be set before the definition of any Tensor: {found[0]}")
        self.first_operator()
        self.joined = True

    def get_rank(self):
        """As mindspore.communication.get_rank."""
        if not self.joined:
            raise RuntimeError("Distributed communication is not inited")
        return int(os.environ["RANK_ID"])

    def get_group_size(self):
        """As mindspore.communication.get_group_size."""
        if not self.joined:
            raise RuntimeError("Distributed communication is not inited")
        return int(os.environ["MS_WORKER_NUM"])

    def custom_operator(self, func, *arguments, **keys):
        """As mindspore.ops.Custom, for compiled code that is a CPU's."""
        if self.target != "CPU":
            raise RuntimeError(f"For 'Custom', {func} is compiled for a CPU and can't run on {self.target}")
        return self.custom(func, *arguments, **keys)

    def allow_rounding(self, target):
        """As conv_allow_tf32 or conv_allow_hf32 of a target."""

        def allow(value):
            if self.target != target:
                raise RuntimeError(f"this setting is one of {target}, and the device is {self.target}")
            if self.running:
                raise RuntimeError("The runtime has been initialized, please set it before")
            self.rounds = value

        return allow

    def convolution(self, cell, x):
        """A convolution called outside of a compiled graph."""
        if self.target != "CPU" and self.rounds:
            import mindspore

            x = mindspore.Tensor(rounded(x.asnumpy()))
        return self.call(cell, x)

    def export(self, network, *inputs, file_name, file_format):
        """As mindspore.export: AIR on Ascend only. What is written then stands for an AIR file."""
        if file_format != "AIR":
            return self.real["export"](network, *inputs, file_name=file_name, file_format=file_format)
        if self.target != "Ascend":
            raise ValueError("Only support export file in 'AIR' format with Ascend backend.")
        with open(file_name, "wb") as handle:
            handle.write(f"AIR of {[tuple(value.shape) for value in inputs]}".encode())
        return None


def tensors_of_modules():
    """Names of this project's modules' variables that hold a Tensor, and so exist before anything was run."""
    import mindspore

    return [
        f"{module}.{name}"
        for module, loaded in list(sys.modules.items())
        if module.split(".")[0] in OWN_CODE
        for name, value in vars(loaded).items()
        if isinstance(value, mindspore.Tensor)
    ]
