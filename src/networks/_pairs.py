"""Which batch normalisation follows which convolution, in a network whose source does not say so.

src/ops computes a convolution and the normalisation behind it as one operator where a container tells that
they follow each other. Networks of other libraries call them as attributes instead. Their order is observed
while an image goes through the network.
"""

import contextlib

import mindspore as ms
import numpy as np
from mindspore import nn, ops


def join(model, images):
    """Put convolutions and the batch normalisations that read them into nn.SequentialCells of two, in place.

    The network computes what it did, and its parameters keep their names. Nothing changes where the output
    shows that something else reads a convolution, too.

    Args:
        model: nn.Cell in evaluation mode.
        images: what it is called with to see what happens.

    Returns:
        The output, an array.
    """
    names = [(parameter, parameter.name) for parameter in model.get_parameters()]
    with _shifted(model):
        pairs, expected = _follow(model, images)
        undo = _put_together(model, pairs)
        same = np.allclose(model(images).asnumpy(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
        if not same:
            undo()
    for parameter, name in names:  # MindSpore renames them after the cells that they are put into
        parameter.name = name
    return expected


@contextlib.contextmanager
def _shifted(model):
    """Within the block, batch normalisations have arbitrary statistics; new ones change next to nothing."""
    means = [cell.moving_mean for _, cell in model.cells_and_names() if isinstance(cell, nn.BatchNorm2d)]
    before = [mean.asnumpy().copy() for mean in means]
    for mean in means:
        ops.assign(mean, ops.full_like(mean, 0.5))
    try:
        yield
    finally:
        for mean, value in zip(means, before, strict=True):
            ops.assign(mean, ms.Tensor(value))


def _follow(model, images):
    """([(convolution, batch normalisation that reads its output)], each used once; the output, an array)."""
    kinds = (nn.Conv2d, nn.BatchNorm2d)
    cells = [cell for _, cell in model.cells_and_names() if isinstance(cell, kinds)]
    calls = []  # (cell, input, output); keeps the tensors alive, so that no other one gets the same id

    def note(cell, inputs, output):
        calls.append((cell, inputs[0], output))

    hooks = [cell.register_forward_hook(note) for cell in cells]
    try:
        result = model(images).asnumpy()
    finally:
        for hook in hooks:
            hook.remove()
    number = {id(cell): 0 for cell in cells}
    for cell, _, _ in calls:
        number[id(cell)] += 1
    once = [call for call in calls if number[id(call[0])] == 1]
    convolutions = {id(output): cell for cell, _, output in once if isinstance(cell, nn.Conv2d)}
    norms = [(cell, given) for cell, given, _ in once if isinstance(cell, nn.BatchNorm2d)]
    return [(convolutions[id(x)], norm) for norm, x in norms if id(x) in convolutions], result


def _put_together(model, pairs):
    """A pair in the convolution's place, an identity in the other's; returns what undoes it.

    Convolutions in an nn.SequentialCell stay where they are: src/ops sees there what follows them.
    """
    places, before = {}, []
    for _, parent in model.cells_and_names():
        for key, child in parent.name_cells().items():
            places.setdefault(id(child), []).append((parent, key))
    for conv, norm in pairs:
        conv_at, norm_at = places[id(conv)], places[id(norm)]
        if len(conv_at) > 1 or len(norm_at) > 1 or isinstance(conv_at[0][0], nn.SequentialCell):
            continue
        before += [(*conv_at[0], conv), (*norm_at[0], norm)]
        setattr(*conv_at[0], nn.SequentialCell(conv, norm))
        setattr(*norm_at[0], nn.Identity())

    def undo():
        for parent, key, cell in before:
            setattr(parent, key, cell)

    return undo
