"""What graphics cards can do in bfloat16: the makers' dense peaks, and matrix products as they were measured."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from wanlab.errors import WanlabError, shorten


@dataclass(frozen=True)
class Card:
    """Floating-point operations a second in bfloat16, without sparsity, sums in float32."""

    name: str
    peak: float
    """By its maker."""
    source: str
    measured: float | None = None
    """Of large matrix products, one after another; None where nobody measured it for wanlab."""
    measured_source: str = ""

    def __post_init__(self) -> None:
        for rate in (self.peak, self.measured):
            if rate is not None and not 0 < rate < float("inf"):
                raise WanlabError(f"{shorten(rate)} operations a second of {self.name}", remedy="Give a number above 0")


_HOPPER = "NVIDIA's H100 datasheet, half of the figure with sparsity"
CARDS = {
    "h100": Card(
        "H100 SXM", 989.4e12, _HOPPER, 743e12, "large bfloat16 matrix products, median, H100 80GB HBM3, torch 2.11"
    ),
    "h100 pcie": Card("H100 PCIe", 756e12, _HOPPER),
    "h100 nvl": Card("H100 NVL", 835e12, _HOPPER),
    "h200": Card("H200", 989.4e12, "NVIDIA's H200 datasheet, half of the figure with sparsity"),
    "a100": Card("A100", 312e12, "NVIDIA's A100 datasheet"),
    "l40s": Card("L40S", 362e12, "NVIDIA's L40S datasheet"),
    "rtx 3090": Card("RTX 3090", 71e12, "NVIDIA's GA102 whitepaper, appendix A, sums in float32"),
    "rtx 4090": Card("RTX 4090", 165.2e12, "NVIDIA's Ada whitepaper, appendix A, sums in float32"),
    "rtx 5090": Card("RTX 5090", 209.5e12, "NVIDIA's RTX Blackwell whitepaper, appendix A, sums in float32"),
}
"""Cards by what is left of the names that drivers give them."""
_BESIDE = re.compile(r"\b(nvidia|geforce|tensor core|gpu|sxm\d?|\d+ ?gb|hbm\d?e?)\b")
_SHORT = {"3090": "rtx 3090", "4090": "rtx 4090", "5090": "rtx 5090", "a100 pcie": "a100"}


def find_card(name: str) -> Card | None:
    """The card of a name such as "H100", "4090" or "NVIDIA A100-SXM4-80GB"; None for one that is not in the table."""
    words = _BESIDE.sub(" ", re.sub(r"[-_]", " ", name.lower())).split()
    found = " ".join(words)
    return CARDS.get(_SHORT.get(found, found))


def chosen_card(card: str | Card | None, device: torch.device) -> tuple[Card | None, str]:
    """The card that is meant, and a line where there is none; without a name the GPU of `device`, else the present one.

    Raises WanlabError for what is no name.
    """
    if isinstance(card, Card):
        return card, ""
    if card is None:
        if device.type != "cuda" and not torch.cuda.is_available():
            return None, f"There is no GPU here, and a CPU has no entry; card= takes {_names()} or a wanlab.study.Card"
        card = torch.cuda.get_device_name(device if device.type == "cuda" else None)
    if not isinstance(card, str) or not card.strip():
        raise WanlabError(f"{shorten(card)} is no card", choices=[c.name for c in CARDS.values()])
    found = find_card(card)
    return found, "" if found else f"Nothing is known of the speed of {shorten(card)}; known: {_names()}"


def _names() -> str:
    return ", ".join(card.name for card in CARDS.values())
