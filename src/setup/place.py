"""Where a program computes: the device of model_utils, with the CPU operators of src/ops."""

from model_utils import agreement, device
from src import ops


def set_up(config, exact=False):
    """The Device of this process; call once, before any network is built.

    exact: whether its convolutions must be of float32 throughout, for comparison with another program.

    Raises:
        UserError: as `device.setup`; or processes of the run have another configuration or other code.
    """
    place = device.setup(config, _prepare_cpu, exact)
    agreement.check(config, place)
    return place


def _prepare_cpu(config, one_of_several):
    """CPU settings of this process; returns a line that says which convolution is in use."""
    if not config.cpu_operator:
        reason = "cpu_operator is false"
    elif config.sync_bn and one_of_several:
        # The operator holds batch normalisations inside, where another process's sums cannot come in.
        reason = "sync_bn"
    elif config.amp_level != "O0":
        # It knows float32 only. MindSpore's own convolution of float16 needs the setting without it.
        reason = f"amp_level {config.amp_level}"
    else:
        return ops.prepare()
    ops.tune_plain()
    return f"CPU operator: plain MindSpore operators ({reason})"
