"""`x += y` in the networks of others, which MindSpore's ONNX writer can't write."""

import contextlib

from mindspore.ops.composite.multitype_ops import add_impl


@contextlib.contextmanager
def written_out():
    """Within the block, `x += y` of two tensors compiles to what `x = x + y` does.

    MindSpore 2.10 compiles it to an addition in place, for which ONNX has no form. Where a version of
    MindSpore knows no such addition, nothing is changed.
    """
    addition = getattr(add_impl, "_tensor_add_tensor", None)
    in_place = getattr(add_impl, "_tensor_add_tensor_augassign", None)
    if addition is None or in_place is None:
        yield
        return
    register = add_impl.augassign_add.register("Tensor", "Tensor")
    register(addition)
    try:
        yield
    finally:
        register(in_place)
