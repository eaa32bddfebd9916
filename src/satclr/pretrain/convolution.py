"""3×3 convolutions of maps a few pixels wide, on a CPU: the same sums, as matrix products.

Forward and backward, 512 → 512 channels on 2×2 maps take oneDNN three times as long as matrix products
(`benchmarks/convolution.py`). The setting `pretrain.matmul_convolutions` turns this off.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SMALL_PX = 4  # the largest side of an output map that gains
WIDE = 128 * 256  # the fewest channels, in times out, that gain at that side
_DENSE_PX = 2  # up to here every pixel of the input meets every pixel of the output


def speed_up_small_maps(model: nn.Module) -> None:
    """Replace the wide 3×3 convolutions inside `model` by `SmallMapConv2d`, for good; they keep their weights.

    Those with a bias, groups, dilation or a padding other than one zero stay. Hooks on a replaced one are lost.
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is not nn.Conv2d or child.in_channels * child.out_channels < WIDE:
                continue
            plain = child.groups == 1 and child.bias is None and child.padding_mode == "zeros"
            square = child.kernel_size == (3, 3) and child.padding == child.dilation == (1, 1)
            if plain and square and child.stride in {(1, 1), (2, 2)}:
                setattr(parent, name, SmallMapConv2d(child))


class SmallMapConv2d(nn.Conv2d):
    """A 3×3 convolution with padding 1 and without bias, faster in training on small maps; shares `like`'s weight."""

    def __init__(self, like: nn.Conv2d) -> None:
        channels, stride = (like.in_channels, like.out_channels), like.stride[0]
        super().__init__(*channels, 3, stride, padding=1, bias=False, device="meta")
        self.weight = like.weight
        self.train(like.training)

    def forward(self, x: Tensor) -> Tensor:
        """(N,C,H,W) → (N,O,⌈H/stride⌉,⌈W/stride⌉)."""
        if not self.training or max(x.shape[2:]) > SMALL_PX * self.stride[0]:
            return super().forward(x)
        w: Tensor = self.weight
        if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64:  # as autocast treats a convolution
            x, w = (part.to(torch.get_autocast_dtype("cpu")) for part in (x, w))
        y: Tensor = _Convolve.apply(x, w, self.stride[0])
        return y


class _Convolve(torch.autograd.Function):
    """x (N,C,H,W), w (O,C,3,3) → y (N,O,⌈H/stride⌉,⌈W/stride⌉), channels last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, stride: int) -> Tensor:
        ctx.stride = stride
        if stride == 1 and max(x.shape[2:]) <= _DENSE_PX:
            matrix = _matrix(w, *x.shape[2:])
            ctx.save_for_backward(x, None, matrix)
            y = x.movedim(1, -1).flatten(1) @ matrix.T
            return y.view(len(x), *x.shape[2:], len(w)).movedim(-1, 1)
        ctx.save_for_backward(x, w, None)
        return F.conv2d(x, w, stride=stride, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, w, matrix = ctx.saved_tensors
        if matrix is not None:
            by_x = (gradient.movedim(1, -1).flatten(1) @ matrix).view(x.movedim(1, -1).shape).movedim(-1, 1)
        else:
            stride, one, none = [ctx.stride] * 2, [1, 1], [0, 0]
            by_x, _, _ = torch.ops.aten.convolution_backward(
                gradient, x, w, None, stride, one, one, False, none, 1, [True, False, False]
            )
        return by_x, _by_weight(x, gradient, ctx.stride), None


def _matrix(w: Tensor, height: int, width: int) -> Tensor:
    """The convolution of a whole map at once: (HWO,HWC), for maps of at most 2×2."""
    channels_out, channels_in = w.shape[:2]
    matrix = w.new_empty(height, width, channels_out, height, width, channels_in)
    for row in range(height):
        for column in range(width):
            taps = w[:, :, 1 - row : 1 - row + height, 1 - column : 1 - column + width]
            matrix[row, column] = taps.movedim(1, -1)
    return matrix.view(height * width * channels_out, -1)


def _by_weight(x: Tensor, gradient: Tensor, stride: int) -> Tensor:
    """The loss's gradient by w (O,C,3,3): a matrix product a tap, of the pixels that it joins."""
    pixels, gradients = x.movedim(1, -1), gradient.movedim(1, -1)
    channels_in, channels_out = x.shape[1], gradient.shape[1]
    gradient_w = x.new_zeros(channels_out, 3, 3, channels_in)
    columns = list(_windows(x.shape[3], gradient.shape[3], stride))
    for i, (out_rows, in_rows) in enumerate(_windows(x.shape[2], gradient.shape[2], stride)):
        for j, (out_columns, in_columns) in enumerate(columns):
            if (outs := gradients[:, out_rows, out_columns]).numel():
                ins = pixels[:, in_rows, in_columns]
                gradient_w[:, i, j] = outs.reshape(-1, channels_out).T @ ins.reshape(-1, channels_in)
    return gradient_w.movedim(-1, 1)


def _windows(inputs: int, outputs: int, stride: int) -> Iterator[tuple[slice, slice]]:
    """Along one axis, for each of 3 taps: output pixel i meets input pixel i·stride + tap − 1, where there is one."""
    for tap in range(3):
        first = int(tap == 0)
        last = max(first, min(outputs, (inputs - tap) // stride + 1))
        start = first * stride + tap - 1
        yield slice(first, last), slice(start, start + (last - first) * stride, stride)
