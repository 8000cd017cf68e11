"""`shrink`: every model of the catalogue that runs has a tiny one that takes, refuses and does the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import wanlab
from tests.tiny_video import film, frames_of, picture
from wanlab import catalog
from wanlab.catalog import Definition
from wanlab.errors import WanlabError
from wanlab.models import shrink
from wanlab.registry import FAMILIES
from wanlab.spec import GenerationSpec
from wanlab.weights import Checkpoint, Component

FRAMES = 9
SPEC = {"num_steps": 1, "num_frames": FRAMES, "height": 48, "width": 64, "prompt": "a red circle"}
RUNS = [row.id for row in catalog.catalogue() if not row.missing and row.family != "flux"]
PHANTOM = catalog.find("phantom_1_3b").with_(family="phantom", missing="")


def mask() -> np.ndarray:
    pixels = np.zeros((FRAMES, 48, 64), np.uint8)
    pixels[:, :, 32:] = 255
    return pixels


def given(model: Any, seed: int = 0) -> dict[str, Any]:
    """Media for all that the model takes, as far as they go together."""
    clip = frames_of(film(seed, FRAMES, 64, 48))
    every = {
        "image": picture(seed + 1),
        "last_image": picture(seed + 2),
        "video": clip,
        "mask": 255 - mask() if seed else mask(),
        "references": [picture(seed + 3)],
        "keyframes": [picture(seed + 4)],
        "keyframe_positions": [4],
        "pose_video": frames_of(film(seed + 5, FRAMES, 64, 48)),
        "face_video": frames_of(film(seed + 6, FRAMES)),
    }
    names = set(model.accepts) & set(every)
    if "image" in names and model.family != "wan_animate":  # starts from pictures or from a video
        names -= {"video", "mask"}
    return {name: every[name] for name in every if name in names}


def latents(model: Any, **settings: Any) -> torch.Tensor:
    spec = model.spec(**{**SPEC, **settings})
    text = wanlab.encode_text(model, spec)
    return wanlab.denoise(model, spec, text, wanlab.encode_conditions(model, spec))


def unloaded(definition: Definition) -> Any:
    """The model at its real size, without weights."""
    components = {n: Component(n, (), c, Path(definition.id)) for n, c in definition.architecture.items()}
    spec = GenerationSpec.of({**definition.spec, "model": definition.id})
    family = FAMILIES.get(definition.family)
    return family(definition, Checkpoint(definition.id, components), torch.device("cpu"), spec.weights)


def loaded(what: Any, folder: Path) -> Any:
    return wanlab.load(shrink(what, folder), device="cpu")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_most_of_the_catalogue_can_be_shrunk() -> None:
    assert {catalog.find(name).family for name in RUNS} >= {"wan", "vace", "skyreels_df", "wan_animate"}
    assert len(RUNS) >= 24


@pytest.mark.parametrize("what", [*RUNS, PHANTOM], ids=lambda d: d if isinstance(d, str) else f"{d.id} as {d.family}")
def test_takes_what_the_real_one_takes(what: Any, tmp_path: Path) -> None:
    tiny, real = loaded(what, tmp_path), unloaded(catalog.find(what))
    assert tiny.accepts == real.accepts
    assert tiny.needs == real.needs
    assert tiny.experts_present == real.experts_present
    assert tiny.offers.unused == real.offers.unused
    assert tiny.offers.choices == real.offers.choices
    assert tiny.geometry.frame_stride == real.geometry.frame_stride
    assert tiny.geometry.max_frames == real.geometry.max_frames
    assert getattr(tiny, "num_control_layers", 0) == getattr(real, "num_control_layers", 0)
    ours, theirs = tiny.default_spec, real.default_spec
    assert {name.partition(".")[0] for name in theirs.diff(ours)} <= {"model", "size", "sampling"}
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 5e6


@pytest.mark.parametrize("what", [*RUNS, PHANTOM], ids=lambda d: d if isinstance(d, str) else f"{d.id} as {d.family}")
def test_runs(what: Any, tmp_path: Path) -> None:
    """One step with everything that the model takes, two where there are two experts; frames of the size asked for."""
    model = loaded(what, tmp_path)
    spec = model.spec(**{**SPEC, "num_frames": 5, "num_steps": len(model.experts_present)}, **_five(given(model)))
    result = wanlab.generate(model, spec)
    assert result.frames.shape == (5, 48, 64, 3)
    assert result.frames.std() > 1


def _five(media: dict[str, Any]) -> dict[str, Any]:
    return {name: value[:5] if isinstance(value, np.ndarray) else value for name, value in media.items()}


@pytest.mark.parametrize(
    "what",
    [PHANTOM, "skyreels_df_1_3b", "vace_14b", "wan22_i2v_a14b", "wan22_ti2v_5b", "wan_animate_14b",
     "wan_flf2v_720p_14b", "wan_i2v_480p_14b", "wan_t2v_1_3b"],
    ids=lambda d: d if isinstance(d, str) else d.id,
)  # fmt: skip
def test_every_input_shows(what: Any, tmp_path: Path) -> None:
    model = loaded(what, tmp_path)
    media, others = given(model), given(model, 50)
    settings = {"num_steps": 2, "guidance_scale": 3.0, **media}
    plain = latents(model, **settings)
    changes = [{name: others[name]} for name in media if name != "keyframe_positions"]
    for change in [*changes, {"prompt": "a big green star"}, {"seed": 1}]:
        moved = float((latents(model, **settings | change) - plain).norm() / plain.norm())
        assert moved >= 1e-2, (list(change), moved)


def test_the_same_weights_each_time_and_the_global_state_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    models = [loaded("wan22_t2v_a14b", tmp_path / name) for name in ("a", "b")]
    assert torch.equal(torch.rand(3), wanted)
    assert models[0].fingerprint == models[1].fingerprint
    high, low = ((tmp_path / "a" / f"{name}.safetensors").read_bytes() for name in ("transformer", "transformer_2"))
    assert high != low


def test_the_definition_is_json_and_the_library_of_a_workspace_takes_it(tmp_path: Path) -> None:
    definition = shrink("i2v", tmp_path)  # WanGP's id of wan_i2v_480p_14b
    assert definition["id"] == "wan_i2v_480p_14b_shrunk"
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(definition))
    wanted = wanlab.load(definition, device="cpu").fingerprint
    assert wanlab.load(path, device="cpu").fingerprint == wanted
    assert wanlab.load(tmp_path / "definition.json", device="cpu").fingerprint == wanted
    assert wanlab.load(str(tmp_path / "definition.json"), device="cpu").fingerprint == wanted


@pytest.mark.parametrize(
    ("what", "match"),
    [
        ("flux_dev", "no relative of wan_tiny"),
        ("multitalk_480p_14b", "cannot run yet"),
        ("wan_i2v", "Unknown model"),
    ],
)
def test_what_cannot_be_shrunk_says_why_and_writes_nothing(what: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(WanlabError, match=match):
        shrink(what, tmp_path / "x")
    assert not (tmp_path / "x").exists()
