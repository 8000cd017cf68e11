"""Every definition that ships: its networks' published sizes, its settings, files and names."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    SkyReelsV2Transformer3DModel,
    WanAnimateTransformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from transformers import CLIPVisionModel, UMT5EncoderModel

from wanlab.catalog import Definition, find
from wanlab.files import read_json, resource
from wanlab.spec import GenerationSpec

IDS = sorted(path.stem for path in resource("defaults").glob("*.json"))
WAN = [name for name in IDS if name not in ("flux_dev", "wan_tiny")]
NETWORKS = {
    "wan": WanTransformer3DModel,
    "vace": WanVACETransformer3DModel,
    "phantom": WanTransformer3DModel,
    "skyreels": SkyReelsV2Transformer3DModel,
    "skyreels_df": SkyReelsV2Transformer3DModel,
    "wan_animate": WanAnimateTransformer3DModel,
}
OTHERS = {"vae": AutoencoderKLWan, "text_encoder": UMT5EncoderModel, "image_encoder": CLIPVisionModel}
# Parameters, from the bytes of the 16-bit files that Comfy-Org repackages, in thousands of millions.
T2V, SMALL, I2V, VACE = 14.289, 1.419, 16.396, 17.337
SIZES = {
    "wan_t2v_14b": T2V,
    "wan_t2v_1_3b": SMALL,
    "wan_i2v_480p_14b": I2V,
    "wan_flf2v_720p_14b": I2V,
    "wan_fun_inp_1_3b": 1.564,
    "wan22_t2v_a14b": T2V,
    "wan22_i2v_a14b": T2V,
    "wan22_ti2v_5b": 5.0,
    "vace_14b": VACE,
    "vace_1_3b": 2.155,
    "vace_14b_2_2": VACE,
    "phantom_14b": T2V,
    "skyreels_t2v_14b": T2V,
    "skyreels_i2v_14b": I2V,
    "skyreels_df_14b": T2V,
    "skyreels_df_1_3b": 1.4355,  # 16 million more, for the frame rate
    "wan_animate_14b": 17.27,
}
WANGP = """
t2v t2v_1.3B i2v i2v_720p fun_inp fun_inp_1.3B flf2v_720p phantom_1.3B phantom_14B recam_1.3B t2v_2_2 i2v_2_2 ti2v_2_2
ti2v_2_2_fastwan t2v_fusionix t2v_sf moviigen i2v_fusionix vace_1.3B vace_14B vace_standin_14B standin vace_14B_fusionix
vace_14B_cocktail vace_14B_sf vace_14B_cocktail_2_2 vace_14B_lightning_3p_2_2 vace_fun_14B_2_2
vace_fun_14B_cocktail_2_2 multitalk multitalk_720p infinitetalk infinitetalk_multi i2v_2_2_multitalk vace_multitalk_14B
fantasy sky_df_1.3B sky_df_14B sky_df_720p_14B animate
""".split()


@functools.cache
def built(component: str, family: str, config: str) -> int:
    """Parameters of a network built without memory."""
    cls: Any = NETWORKS[family] if component.startswith("transformer") else OTHERS[component]
    with torch.device("meta"):
        made = (
            cls(cls.config_class(**json.loads(config))) if hasattr(cls, "config_class") else cls(**json.loads(config))
        )
    return sum(p.numel() for p in made.parameters())


def count(definition: Definition, component: str) -> int:
    config = json.dumps(definition.architecture[component])
    return built(component, definition.family if component.startswith("transformer") else "", config)


@pytest.mark.parametrize("name", WAN)
def test_its_architecture_is_that_of_the_real_class(name: str) -> None:
    """Unknown arguments raise; the counts of what all of Wan shares are those of the published files."""
    definition = find(name)
    shared = {"text_encoder": 5.681e9, "image_encoder": 0.631e9, "vae": 0.1269e9}
    if definition.architecture["vae"]["z_dim"] == 48:
        shared["vae"] = 0.7047e9
    for component in definition.architecture:
        parameters = count(definition, component)
        if component in shared:
            assert parameters == pytest.approx(shared[component], rel=2e-3), component
        if component == "transformer_2":
            assert definition.architecture[component] == definition.architecture["transformer"]


@pytest.mark.parametrize("name", SIZES)
def test_its_network_has_the_published_size(name: str) -> None:
    assert count(find(name), "transformer") / 1e9 == pytest.approx(SIZES[name], rel=2e-3)


@pytest.mark.parametrize("name", IDS)
def test_its_settings_are_legal_and_fit_its_network(name: str) -> None:
    definition = find(name)
    spec = GenerationSpec.of({**definition.spec, "model": name})
    assert len(spec.id) == 12
    frames, pixels, _ = definition.constants["vae_stride"]
    assert spec.size.width is not None
    assert spec.size.height is not None
    assert spec.size.num_frames is not None
    assert (spec.size.num_frames - 1) % frames == 0
    multiple = pixels * definition.constants["patch_size"][1]
    assert (spec.size.width % multiple, spec.size.height % multiple) == (0, 0)
    two = "transformer_2" in definition.architecture
    assert (spec.sampling.expert_boundary is not None) == two
    assert (spec.guidance.guidance_scale_2 is not None) == two
    channels = definition.architecture["vae"].get("z_dim", 16)
    assert len(definition.constants["latent_rgb"]["factors"]) == channels


@pytest.mark.parametrize("name", WAN)
def test_every_network_has_files_or_a_folder(name: str) -> None:
    definition = find(name)
    weights, networks = definition.weights, {*definition.architecture, "tokenizer"}
    assert weights.repo or set(weights.components) == networks
    if weights.components:
        assert set(weights.components) == networks
    for component in weights.components.values():
        for variants in (component.variants, *component.modules):
            assert all(v.repo and not v.is_local and v.stored_as in ("float", "int8", "fp8", "gguf") for v in variants)
            assert variants[0].stored_as == "float", "by convention the first is not quantised"
    if weights.repo:
        folders = {pattern.partition("/")[0] for pattern in weights.files}
        assert networks <= folders


def test_every_checkpoint_of_wangp_has_one_definition() -> None:
    definitions = {alias: find(alias).id for alias in WANGP}
    assert len(set(definitions.values())) == len(WANGP)
    names = [name for d in map(find, IDS) for name in (d.id, *d.aliases)]
    assert len(names) == len(set(names))


def test_what_runs_and_what_lacks_a_piece() -> None:
    """Those with a LoRA, speech or a network that diffusers lacks say so; at least 20 of Wan's run."""
    missing = {name: find(name).missing for name in WAN}
    assert sum(not text for text in missing.values()) >= 20
    for name in WAN:
        definition = find(name)
        modes = definition.constants["modes"]
        assert bool(missing[name]) == (
            bool(definition.loras) or "audio" in modes or name.startswith(("recam", "standin", "vace_standin"))
        )
        assert definition.family in NETWORKS


def test_definitions_say_only_what_is_theirs() -> None:
    """A variant refers to its base instead of repeating it, and says where each of its files comes from."""
    for name in WAN:
        data = read_json(resource("defaults", f"{name}.json"))
        assert data["sources"]
        if "base" in data:
            base = find(data["base"])
            same = [k for k, v in data.get("constants", {}).items() if base.constants.get(k) == v and k != "modes"]
            assert not same, f"{name} repeats {same}"
    assert find("vace_14b").weights.components["vae"] == find("wan_t2v_14b").weights.components["vae"]
