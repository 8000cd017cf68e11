"""Wan's time embedding alone: a few tensors of the checkpoint, whatever its layout, without building the network.

Source: diffusers 0.42.1, transformer_wan.py, WanTimeTextImageEmbedding; ali-vilab/TeaCache 7c10efc4 and Wan2.1's own
code keep it in float32, whatever the network's number format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn

from wanlab import weights
from wanlab.errors import WanlabError

if TYPE_CHECKING:
    from wanlab.models.wan import Wan

_PLACE = "condition_embedder."


@torch.no_grad()
def time_embeddings(model: Wan, timesteps: Tensor, expert: str, projected: bool) -> Tensor:
    """(N, D) of timesteps (N,), or (N, 6 D) projected to a block's modulation; float32 on the CPU."""
    config = model.config(expert)
    if projected and config.get("inject_sample_info"):
        raise WanlabError(
            f"The modulation of {model.id} depends on frames a second too", remedy="Use the embedding, not projected"
        )
    names = ["time_embedder.linear_1", "time_embedder.linear_2", *(["time_proj"] if projected else [])]
    state = _tensors(model, expert, [f"{name}.{kind}" for name in names for kind in ("weight", "bias")])
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    embedder = TimestepEmbedding(in_channels=config["freq_dim"], time_embed_dim=dim)
    prefix = "time_embedder."
    embedder.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, assign=True)
    frequencies = model.frequencies(config["freq_dim"])
    time = cast(Tensor, embedder(frequencies(timesteps.detach().cpu().float()).float()))
    if not projected:
        return time
    return nn.functional.linear(nn.functional.silu(time), state["time_proj.weight"], state["time_proj.bias"])


def _tensors(model: Wan, expert: str, names: list[str]) -> dict[str, Tensor]:
    """The embedder's tensors, float32 on the CPU: those of the network if it is in memory, else of its files."""
    part = model.parts[expert]
    if part.loaded:
        module: Any = part.module.condition_embedder
        return {name: module.get_parameter(name).detach().to("cpu", torch.float32) for name in names}
    if not part.component.files:
        raise WanlabError(
            f"The plan needs the time embedding of {model.id}, which is read from its weights, and they are not here",
            remedy=f"Load the model: wanlab.load({model.id!r})",
        )
    cls = model.component_class(expert)
    found = weights.load_tensors(cls, part.component, [_PLACE + name for name in names], part.dtype, check=model.check)
    return {name.removeprefix(_PLACE): value.float() for name, value in found.items()}
