"""Small networks from scratch, for generalisation over digits and over little photographs."""

from mindspore import nn

from src.ops.twice_differentiable import max_pool


class Backbone(nn.Cell):
    """Convolutions, each with 2x2 max pooling and ReLU, and one hidden layer.

    float32 (N, 3, S, S) in [0, 1] -> the hidden layer, features (N, width).

    Args:
        layers: (input channels, output channels, kernel, stride, padding) of each convolution.
        flat: values per image behind the last pooling.
        width: units of the hidden layer.
        dropout: probability with which the class head drops them.
        twice: whether gradients of gradients will be asked for.
    """

    masks = ()

    def __init__(self, layers, flat, width, dropout, twice=False):
        super().__init__()
        self.stages = nn.SequentialCell(
            [
                nn.SequentialCell(
                    nn.Conv2d(
                        inputs, outputs, kernel, stride, pad_mode="pad", padding=padding, has_bias=True
                    ),
                    max_pool(2, 2, twice),
                    nn.ReLU(),  # the same result as before pooling, for a quarter of the work
                )
                for inputs, outputs, kernel, stride, padding in layers
            ]
        )
        self.flatten = nn.Flatten()
        self.hidden = nn.Dense(flat, width)
        self.relu = nn.ReLU()
        self.feature_size, self.head_dropout = width, dropout

    def construct(self, images):
        return self.relu(self.hidden(self.flatten(self.stages(images * 2.0 - 1.0))))
