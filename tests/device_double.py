"""A stand-in for MindSpore's device layer that behaves as that of 2.10 does with a GPU or an Ascend.

    machine = DeviceDouble(GPU=4)  # a machine with four GPUs and no Ascend
    machine.install(monkeypatch)  # mindspore.set_device, init, get_rank, get_group_size, the driver
    machine.first_operator()  # what the first operator of a program does
    machine.physical  # (target, number of the device in the machine)

Rules taken over from mindspore/device_manager.py and communication/management.py: a second `set_device` must
repeat the first; none is allowed once the runtime has begun; without an id it is 0, under msrun the process's
rank on its host; ids count the visible devices; `init` needs the backend of the target and several processes.
"""

import os

TARGETS = ("CPU", "GPU", "Ascend")
BACKENDS = {"Ascend": "hccl", "GPU": "nccl", "CPU": "mccl"}
VISIBLE = {"GPU": "CUDA_VISIBLE_DEVICES", "Ascend": "ASCEND_RT_VISIBLE_DEVICES"}


class DeviceDouble:
    """A machine with so many devices of each kind; one process of MindSpore on it."""

    def __init__(self, **devices):
        self.devices = {"CPU": 1, "GPU": 0, "Ascend": 0, **devices}
        self.chosen = None  # (target, id as given or as it follows)
        self.running = self.joined = False
        self.calls = []

    def install(self, monkeypatch):
        """Put this in MindSpore's place; a target with devices has a driver."""
        import mindspore
        from mindspore import communication

        from model_utils import device

        monkeypatch.setattr(mindspore, "set_device", self.set_device)
        monkeypatch.setattr(mindspore, "set_seed", lambda seed: None)
        for name in ("init", "get_rank", "get_group_size"):
            monkeypatch.setattr(communication, name, getattr(self, name))
        monkeypatch.setattr(device, "_has_driver", lambda target: self.devices[target] > 0)
        for name in (*VISIBLE.values(), "MS_WORKER_NUM", "MS_ROLE", "RANK_ID"):
            monkeypatch.delenv(name, raising=False)
        return self

    def visible(self, target):
        """The machine's numbers of the devices that this process sees, in its order."""
        every = list(range(self.devices[target]))
        text = os.environ.get(VISIBLE.get(target, ""))
        if text is None:
            return every
        seen = []
        for word in text.split(","):
            if not word.strip().isdigit() or int(word) not in every:
                break
            seen.append(int(word))
        return seen

    def set_device(self, device_target, device_id=None):
        """As mindspore.set_device."""
        self.calls.append((device_target, device_id))
        if device_target not in TARGETS:
            raise ValueError(f"The argument 'device_target' must be one of {list(TARGETS)}")
        if not self.visible(device_target):
            raise RuntimeError(f"The device target {device_target} is not available: no driver or library")
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
        launched = int(os.environ.get("MS_WORKER_NUM") or 1) > 1
        return int(os.environ.get("RANK_ID", "0")) if launched and self.chosen is None else 0

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

    def init(self, backend_name=None):
        """As mindspore.communication.init."""
        target = self.chosen[0] if self.chosen else "CPU"
        if backend_name != BACKENDS[target]:
            raise RuntimeError(f"the argument 'backend_name' should be '{BACKENDS[target]}'")
        if int(os.environ.get("MS_WORKER_NUM") or 1) < 2:
            raise RuntimeError("Environment variables RANK_ID and MS_WORKER_NUM are not exported")
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
