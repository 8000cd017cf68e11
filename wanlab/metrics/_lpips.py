"""LPIPS with AlexNet, from two files that the user has; nothing is downloaded and torchvision is not needed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wanlab.errors import WanlabError, shorten
from wanlab.metrics._frames import Array, check_pair
from wanlab.weights import read_header

if TYPE_CHECKING:
    from torch import Tensor

# Of each convolution: number in torchvision's `features`, kernel, stride, padding, whether a max-pool precedes.
_CONVOLUTIONS = (
    (0, 11, 4, 2, False),
    (3, 5, 1, 2, True),
    (6, 3, 1, 1, True),
    (8, 3, 1, 1, False),
    (10, 3, 1, 1, False),
)
_POOL, _POOL_STRIDE = 3, 2
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of RGB in [-1, 1]
_EPSILON = 1e-10  # added to the norm of a position's features
_SMALLEST = 31  # pixels of a side; below, the second max-pool has no window

Weights = Mapping[str, "Tensor"]
PathLike = str | os.PathLike[str]


def lpips(
    reference: Array, other: Array, *, trunk: PathLike, heads: PathLike, spatial: bool = True, device: str = "cpu"
) -> float:
    """LPIPS 0.1 of a clip with AlexNet: the mean over frames; 0 is equal, lower is closer.

    trunk: torchvision's AlexNet ("features.0.weight", ..; other entries are not read). heads: the lpips package's
    weights/v0.1/alex.pth ("lin0.model.1.weight", ..). Either as safetensors, or as .pth through torch's reader that
    runs no code. spatial: the mean of the map at the frames' size, as TeaCache's and VideoSys' scripts take it; False
    is the paper's mean of each layer. Raises WanlabError for files that are missing, unsafe or of another network, and
    for a side under 31 pixels. Source: Zhang et al. 2018; repository richzhang/PerceptualSimilarity at commit 082bb24.
    """
    return float(lpips_per_frame(reference, other, trunk=trunk, heads=heads, spatial=spatial, device=device).mean())


def lpips_per_frame(
    reference: Array, other: Array, *, trunk: PathLike, heads: PathLike, spatial: bool = True, device: str = "cpu"
) -> Array:
    """LPIPS of each frame, (T,) float64, computed in float32, one frame at a time. As `lpips`."""
    import torch

    check_pair(reference, other)
    height, width = reference.shape[1:3]
    if min(height, width) < _SMALLEST:
        raise WanlabError(f"LPIPS needs frames of at least {_SMALLEST} x {_SMALLEST} pixels, got {width} x {height}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a word it does not know, or a device that is not here
        raise WanlabError(f"LPIPS cannot run on device {shorten(device)}: {str(error).splitlines()[0]}") from None
    layers, lines = _trunk(Path(trunk), device), _heads(Path(heads), device)
    _check_sizes(layers, lines, Path(trunk), Path(heads))
    with torch.inference_mode():
        pairs = zip(reference, other, strict=True)
        return np.array([_distance(_scaled(x, device), _scaled(y, device), layers, lines, spatial) for x, y in pairs])


def _scaled(frame: Array, device: str) -> Tensor:
    """(1, 3, H, W) float32: RGB in [-1, 1], then shifted and scaled."""
    import torch

    rgb = torch.from_numpy(np.ascontiguousarray(frame)).to(device).permute(2, 0, 1)[None].float() / 127.5 - 1
    shift, scale = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (_SHIFT, _SCALE))
    return (rgb - shift) / scale


def _distance(x: Tensor, y: Tensor, layers: list[tuple[Tensor, Tensor]], lines: list[Tensor], spatial: bool) -> float:
    import torch.nn.functional as F

    total = 0.0
    for p, q, line in zip(_features(x, layers), _features(y, layers), lines, strict=True):
        found = F.conv2d((_unit(p) - _unit(q)) ** 2, line)
        if spatial:
            found = F.interpolate(found, size=x.shape[2:], mode="bilinear", align_corners=False)
        total += float(found.mean())
    return total


def _features(x: Tensor, layers: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """What each convolution gives after its ReLU."""
    import torch.nn.functional as F

    found = []
    for (weight, bias), (_, _, stride, padding, is_pooled) in zip(layers, _CONVOLUTIONS, strict=True):
        x = F.max_pool2d(x, _POOL, _POOL_STRIDE) if is_pooled else x
        x = F.relu(F.conv2d(x, weight, bias, stride=stride, padding=padding))
        found.append(x)
    return found


def _unit(x: Tensor) -> Tensor:
    """Features of length 1 at each position."""
    return x / (x.square().sum(1, keepdim=True).sqrt() + _EPSILON)


def _trunk(path: Path, device: str) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of each convolution, float32."""
    weights = _read(path, "trunk")
    names = [(f"features.{number}.weight", f"features.{number}.bias") for number, *_ in _CONVOLUTIONS]
    return [(_tensor(weights, w, path, device), _tensor(weights, b, path, device)) for w, b in names]


def _heads(path: Path, device: str) -> list[Tensor]:
    """The weights (1, C, 1, 1) of each layer's channels, float32."""
    weights = _read(path, "heads")
    return [_tensor(weights, f"lin{i}.model.1.weight", path, device) for i in range(len(_CONVOLUTIONS))]


def _tensor(weights: Weights, name: str, path: Path, device: str) -> Tensor:
    if name not in weights:
        raise WanlabError(
            f"{path} has no {name!r}; it holds {shorten(sorted(weights)[:5])}",
            remedy="trunk is torchvision's AlexNet, heads is the lpips package's weights/v0.1/alex.pth.",
        )
    return weights[name].to(device).float()


def _check_sizes(layers: list[tuple[Tensor, Tensor]], lines: list[Tensor], trunk: Path, heads: Path) -> None:
    """Raises WanlabError unless kernels are AlexNet's and channels fit one another."""
    channels = 3
    for (weight, bias), line, (number, kernel, *_) in zip(layers, lines, _CONVOLUTIONS, strict=True):
        if tuple(weight.shape[1:]) != (channels, kernel, kernel) or tuple(bias.shape) != tuple(weight.shape[:1]):
            raise WanlabError(
                f"{trunk} is no AlexNet: features.{number}.weight is {tuple(weight.shape)}, expected "
                f"(channels, {channels}, {kernel}, {kernel})"
            )
        channels = weight.shape[0]
        if tuple(line.shape) != (1, channels, 1, 1):
            raise WanlabError(f"{heads} does not fit {trunk}: {tuple(line.shape)} weighs {channels} channels")


def _read(path: Path, what: str) -> Weights:
    header = read_header(path, allow_pickle=True)
    if header.tensors is not None:
        return header.tensors
    if header.kind != "safetensors":
        raise WanlabError(f"{path} is {header.kind}; the {what} of LPIPS is read as safetensors or .pth")
    from safetensors.torch import load_file

    return load_file(path)
