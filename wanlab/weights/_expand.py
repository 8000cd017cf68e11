"""From the bytes of a stored tensor to floats, on the device that they are on.

Products are formed in float32 and rounded once, to the wanted dtype; in slices, so that an 8-bit table of 256,000
words needs no float32 copy of itself.
Source of the GGML blocks: ggml, ggml-common.h and ggml-quants.c; the order of operations is that of gguf-py 0.19.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wanlab.weights._dtypes import DTYPES
from wanlab.weights._gguf import BLOCKS

_SLICE = 1 << 24  # elements that are expanded at once: 64 MiB in float32


def expand(word: str, shape: tuple[int, ...], raw: Tensor, factor: Tensor | None, dtype: torch.dtype | None) -> Tensor:
    """The tensor `raw` (bytes, 1-D) stands for.

    `word` is the stored format, `factor` (float) multiplies all of it, or each its row. `dtype` None keeps a stored
    float's own. Integers without a factor stay integers.
    """
    if word in _DECODE:
        return _in_slices(raw.view(-1, BLOCKS[word][1]), BLOCKS[word][0], _DECODE[word], dtype or torch.float32).view(
            shape
        )
    numbers = raw.view(DTYPES[word]).view(shape)
    if factor is not None:
        return _scaled(numbers, factor, dtype or factor.dtype)
    if dtype is None or not (numbers.is_floating_point() or word in ("F8_E4M3", "F8_E5M2")):
        return numbers
    return numbers.to(dtype)


def _scaled(numbers: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    rows = numbers.reshape(numbers.shape[0] if numbers.ndim else 1, -1)
    factor = factor.reshape(-1, 1).float().expand(rows.shape[0], 1)
    out = torch.empty(rows.shape, dtype=dtype, device=numbers.device)
    step = max(1, _SLICE // max(1, rows.shape[1]))
    for start in range(0, rows.shape[0], step):
        part = slice(start, start + step)
        out[part] = rows[part].float() * factor[part]
    return out.view(numbers.shape)


def _in_slices(blocks: Tensor, elements: int, decode: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
    out = torch.empty((blocks.shape[0], elements), dtype=dtype, device=blocks.device)
    step = _SLICE // elements
    for start in range(0, blocks.shape[0], step):
        part = slice(start, start + step)
        out[part] = decode(blocks[part]).view(-1, elements)
    return out


def _half(blocks: Tensor, start: int) -> Tensor:
    """The float16 at byte `start` of each block, as float32 (n, 1)."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _bits(packed: Tensor, shifts: list[int], mask: int, width: int) -> Tensor:
    """Fields of packed bytes (n, k): groups of `width` bytes give all their first fields, then all their second."""
    groups = packed.view(packed.shape[0], -1, 1, width)
    return (groups >> _shifts(shifts, packed).view(1, 1, -1, 1)) & mask


def _shifts(shifts: list[int], like: Tensor) -> Tensor:
    return torch.tensor(shifts, dtype=torch.uint8, device=like.device)


def _q8_0(b: Tensor) -> Tensor:
    return _half(b, 0) * b[:, 2:].view(torch.int8).float()


def _nibbles(b: Tensor, start: int) -> Tensor:
    """32 numbers of 4 bits in the 16 bytes at `start`, low halves first."""
    return _bits(b[:, start : start + 16].contiguous(), [0, 4], 15, 16).reshape(-1, 32)


def _fifth(b: Tensor, start: int) -> Tensor:
    """32 numbers of 5 bits: their high bits in 4 bytes at `start`, the rest in the 16 bytes after."""
    high = (b[:, start : start + 4].unsqueeze(-1) >> _shifts(list(range(8)), b)) & 1
    return _nibbles(b, start + 4) | (high.reshape(-1, 32) << 4)


def _q4_0(b: Tensor) -> Tensor:
    return _half(b, 0) * (_nibbles(b, 2).float() - 8)


def _q4_1(b: Tensor) -> Tensor:
    return _half(b, 0) * _nibbles(b, 4).float() + _half(b, 2)


def _q5_0(b: Tensor) -> Tensor:
    return _half(b, 0) * (_fifth(b, 2).float() - 16)


def _q5_1(b: Tensor) -> Tensor:
    return _half(b, 0) * _fifth(b, 4).float() + _half(b, 2)


def _scales_and_mins(b: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight minima of 6 bits in the 12 bytes at 4, times the block's own two: each (n, 8, 1)."""
    first, second, both = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scales = torch.cat([first & 63, (both & 15) | ((first >> 2) & 48)], dim=1)
    minima = torch.cat([second & 63, (both >> 4) | ((second >> 2) & 48)], dim=1)
    return (_half(b, 0) * scales.float()).unsqueeze(-1), (_half(b, 2) * minima.float()).unsqueeze(-1)


def _q4_k(b: Tensor) -> Tensor:
    scales, minima = _scales_and_mins(b)
    numbers = _bits(b[:, 16:].contiguous(), [0, 4], 15, 32).reshape(-1, 8, 32)
    return scales * numbers.float() - minima


def _q5_k(b: Tensor) -> Tensor:
    scales, minima = _scales_and_mins(b)
    high = _bits(b[:, 16:48].contiguous(), list(range(8)), 1, 32).reshape(-1, 8, 32)
    low = _bits(b[:, 48:].contiguous(), [0, 4], 15, 32).reshape(-1, 8, 32)
    return scales * (low | (high << 4)).float() - minima


def _q6_k(b: Tensor) -> Tensor:
    low = _bits(b[:, :128].contiguous(), [0, 4], 15, 64).reshape(-1, 8, 32)
    high = _bits(b[:, 128:192].contiguous(), [0, 2, 4, 6], 3, 32).reshape(-1, 8, 32)
    numbers = (low | (high << 4)).view(-1, 16, 16).float() - 32
    scales = _half(b, 208) * b[:, 192:208].contiguous().view(torch.int8).float()
    return scales.unsqueeze(-1) * numbers


def _q2_k(b: Tensor) -> Tensor:
    scales = _half(b, 80) * (b[:, :16] & 15).float()
    minima = _half(b, 82) * (b[:, :16] >> 4).float()
    numbers = _bits(b[:, 16:80].contiguous(), [0, 2, 4, 6], 3, 32).reshape(-1, 16, 16)
    return scales.unsqueeze(-1) * numbers.float() - minima.unsqueeze(-1)


def _q3_k(b: Tensor) -> Tensor:
    low = ((b[:, None, 96:104] >> _shifts([0, 4], b).view(1, -1, 1)) & 15).reshape(-1, 16)
    high = ((b[:, None, 104:108] >> _shifts([0, 2, 4, 6], b).view(1, -1, 1)) & 3).reshape(-1, 16)
    scales = _half(b, 108) * ((low | (high << 4)).float() - 32)
    numbers = _bits(b[:, 32:96].contiguous(), [0, 2, 4, 6], 3, 32).reshape(-1, 16, 16)
    absent = _bits(b[:, :32].contiguous(), list(range(8)), 1, 32).reshape(-1, 16, 16) ^ 1
    return scales.unsqueeze(-1) * (numbers.float() - 4 * absent.float())


_DECODE: dict[str, Callable[[Tensor], Tensor]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
