"""How a network says which of its cells follow each other."""

from mindspore import nn


class Chain(nn.Cell):
    """Cells applied one after the other, as nn.SequentialCell does, but owned by another cell.

    The cells keep their names and stay in their owner's training mode; the chain only tells accelerate()
    that they follow each other. It holds no parameters of its own.
    """

    def __init__(self, *cells):
        super().__init__()
        # Past nn.Cell's bookkeeping, which would list (and rename) the owner's parameters a second time.
        object.__setattr__(self, "cell_list", list(cells))

    def construct(self, x):
        for cell in self.cell_list:
            x = cell(x)
        return x
