"""Traces: arrays, frames, heat maps, token videos, kept tensors within their budget, folders."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import wanlab
from tests.tiny import tiny_wan
from wanlab import probe
from wanlab.errors import WanlabError
from wanlab.models import Model
from wanlab.probe import Keep
from wanlab.probe._words import words

STEPS = 3
PROMPT = "a cat on a mat"
NUMBERS = ("blocks.*.out", "blocks.*.change", "stack.ratio", "blocks.*.self.mass", "blocks.*.cross.entropy")
TENSOR_BYTES = 18 * 24 * 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return wanlab.load(tiny_wan(tmp_path_factory.mktemp("wan"))[1], device="cpu")


@pytest.fixture(autouse=True)
def nothing_left(model: Model) -> Any:
    yield
    assert model.attachments() == []


def run(model: Model, **changes: Any) -> Tensor:
    spec = model.spec(**{"prompt": PROMPT, "num_steps": STEPS, "max_text_tokens": 64, **changes})
    return wanlab.denoise(model, spec, wanlab.encode_text(model, spec), wanlab.encode_conditions(model, spec))


@pytest.fixture(scope="module")
def trace(model: Model) -> probe.Trace:
    maps = ("blocks.*.cross.text_map", "blocks.2.tensor")
    with probe.record(model, *NUMBERS, *maps, prompt=PROMPT) as found:
        run(model)
    return found


def test_arrays_name_their_axes(trace: probe.Trace) -> None:
    change = trace.array("blocks.*.change")
    assert change.axes == {
        "step": (0, 1, 2),
        "block": tuple(f"blocks.{i}" for i in range(4)),
        "branch": ("cond", "uncond"),
        "norm": ("l1", "l2"),
    }
    assert change.dtype == np.float32
    assert np.isnan(change[0]).all()
    assert np.array_equal(trace.array("blocks.3.change")[:, 0], change[:, 3], equal_nan=True)
    mass = trace.array("blocks.*.attn1.mass")
    assert mass.axes["distance"] == (0, 1, 2)
    assert mass.axes["block"][1] == "blocks.1.attn1"
    assert trace.array("blocks.*.cross.entropy").axes["head"] == (0, 1)
    assert trace.array("blocks.*.cross.text_map").shape == (3, 4, 2, 64, 3, 2, 3)
    assert "Named(3 step x 4 block x 2 branch x 2 norm" in repr(change)
    assert change[1:].axes == {}
    assert type(change + 1) is np.ndarray
    assert isinstance(np.nanmean(change), np.floating)


def test_wrong_names_are_errors(trace: probe.Trace) -> None:
    with pytest.raises(WanlabError, match=r"Did you mean 'blocks.\*.change'"):
        trace.array("blocks.*.chance")
    with pytest.raises(WanlabError, match=r"several quantities\. Choices: change, out, tensor"):
        trace.array("blocks.*.*")
    with pytest.raises(WanlabError, match=r"Unknown name in this trace 'blocks\.9\.out'"):
        trace.array("blocks.9.out")


def test_different_shapes_in_one_array_are_an_error(model: Model) -> None:
    with probe.record(model, "blocks.*.self.mass") as found:
        run(model)
        run(model, num_frames=5)
    with pytest.raises(WanlabError, match="different shapes"):
        found.array("blocks.*.self.mass")


def test_the_frame_holds_every_number(trace: probe.Trace) -> None:
    frame = trace.frame
    assert not {"text_map", "tensor"} & set(frame.quantity)
    sizes = {name: int(np.isfinite(trace.array(name)).sum()) for name in NUMBERS}
    assert len(frame) == sum(sizes.values())
    row = frame.query("site == 'blocks.1' and quantity == 'change' and step == 2 and branch == 'uncond'")
    assert row.label.tolist() == ["l1", "l2"]
    assert np.allclose(row.value, trace.array("blocks.1.change")[2, 0, 1])


def test_heat_maps_show_blocks_against_steps(trace: probe.Trace) -> None:
    figure = trace.heat_map("blocks.*.change", label="l2")
    panels = [axes for axes in figure.axes if axes.images]
    assert [panel.get_title() for panel in panels] == ["cond", "uncond"]
    shown = panels[1].images[0].get_array()
    assert np.allclose(shown.filled(np.nan), trace.array("blocks.*.change")[1:, :, 1, 1].T, equal_nan=True)
    assert figure._repr_png_().startswith(b"\x89PNG")
    one = trace.heat_map("blocks.*.cross.entropy", branch="cond")
    shown = next(axes for axes in one.axes if axes.images).images[0].get_array()
    assert np.allclose(shown, trace.array("blocks.*.cross.entropy")[:, :, 0].mean(-1).T)
    with pytest.raises(WanlabError, match="Unknown branch in this trace 'con'"):
        trace.heat_map("blocks.*.out", branch="con")
    with pytest.raises(WanlabError, match="Unknown label of change 'l3'"):
        trace.heat_map("blocks.*.change", label="l3")


def test_words_are_found_among_pieces() -> None:
    pieces = ["▁A", "▁", "Red", "▁cir", "cle", ",", "▁a", "▁red", "-", "box", ".", "</s>"]
    assert words(pieces) == {"a": (0, 6), "red": (2,), "circle": (3, 4), "redbox": (7, 9)}


def test_a_token_video_is_the_map(trace: probe.Trace, model: Model) -> None:
    assert trace.pieces == tuple(model.pieces(PROMPT))
    cat = words(trace.pieces)["cat"]
    assert len(cat) == 3
    clip = trace.token_video("blocks.1.cross", word="cat", steps=[1, 2])
    assert clip.shape == (9, 32, 48, 3)
    assert clip.dtype == np.uint8
    maps = trace.array("blocks.1.cross.text_map")[1:, 0, 0][:, list(cat)].sum(1).mean(0)
    bright = clip.astype(int).sum(-1)[[0, 1, 5]][:, 8::16, 8::16]  # a frame of each latent frame, the tokens' middles
    order, wanted = np.argsort(bright.ravel()), np.argsort(np.asarray(maps).ravel())
    assert order[-1] == wanted[-1]
    assert np.corrcoef(bright.ravel(), np.asarray(maps).ravel())[0, 1] > 0.9
    assert np.array_equal(clip[1], clip[4])
    assert not np.array_equal(clip[4], clip[5])
    assert "<video" in clip._repr_html_()
    assert str(clip) == "Clip('cat, blocks.1.cross', (9, 32, 48, 3))"
    single = trace.token_video("blocks.*.cross", token=2, branch="uncond")
    assert not np.array_equal(single, clip)
    over = trace.token_video("blocks.1.cross", word="cat", steps=[1, 2], over=np.full((9, 32, 48, 3), 255, np.uint8))
    assert np.allclose(np.asarray(over, int), (np.asarray(clip, int) + 255) / 2, atol=1)


def test_what_a_token_video_needs(trace: probe.Trace, model: Model) -> None:
    with pytest.raises(WanlabError, match="Unknown word of the prompt 'dog'"):
        trace.token_video("blocks.1.cross", word="dog")
    with pytest.raises(WanlabError, match="One token or one word"):
        trace.token_video("blocks.1.cross")
    with pytest.raises(WanlabError, match="token 64 was not kept"):
        trace.token_video("blocks.1.cross", token=64)
    with pytest.raises(WanlabError, match="Unknown name in this trace"):
        trace.token_video("blocks.1.self", token=0)
    with pytest.raises(WanlabError, match="over takes frames, got list"):
        trace.token_video("blocks.1.cross", token=0, over=[])
    with pytest.raises(WanlabError, match="No map of"):
        trace.token_video("blocks.1.cross", token=0, steps=[7])
    with (
        pytest.raises(WanlabError, match="The prompt is not known"),
        probe.record(model, "blocks.1.cross.text_map", keep=Keep(tokens=["cat"])),
    ):
        pass
    with probe.record(model, "blocks.1.cross.text_map", prompt=PROMPT, keep=Keep(tokens=["cat"])) as found:
        run(model)
    assert found.array("blocks.1.cross.text_map").axes["token"] == words(found.pieces)["cat"]
    assert np.array_equal(
        found.token_video("blocks.1.cross", word="cat"), trace.token_video("blocks.1.cross", word="cat")
    )
    with pytest.raises(WanlabError, match="The map of token 0 was not kept"):
        found.token_video("blocks.1.cross", token=0)


def test_tensors_are_the_activations(trace: probe.Trace, model: Model) -> None:
    seen: list[Tensor] = []
    with probe.edit(model, "blocks.2.out", lambda x, ctx: seen.append(x) or x):
        run(model)
    kept = trace.array("blocks.2.tensor")
    assert list(kept.axes) == ["step", "block", "branch", "sample", "position", "channel"]
    assert np.array_equal(kept[:, 0].reshape(6, 18, 24), torch.cat(seen).numpy())


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_budget_refuses_what_cannot_fit_and_ends_what_does_not(model: Model, tmp_path: Path, on_disk: bool) -> None:
    folder = tmp_path / "trace" if on_disk else None
    least = 4 * STEPS * TENSOR_BYTES  # of one branch
    with (
        pytest.raises(WanlabError, match=rf"12 of transformer.block.tensor .* brings what is kept to {least:,} bytes"),
        probe.record(model, "blocks.*.tensor", keep=Keep(max_bytes=least - 1, folder=folder)),
    ):
        run(model)
    folder = tmp_path / "second" if on_disk else None
    keep = Keep(max_bytes=least + TENSOR_BYTES - 1, folder=folder)
    with (
        pytest.warns(UserWarning, match="Keeping tensors ended before transformer.blocks.0.tensor at step 1, uncond"),
        probe.record(model, "blocks.*.tensor", "blocks.*.out", keep=keep) as trace,
    ):
        run(model)
    kept = trace.array("blocks.*.tensor")
    assert np.isfinite(kept).sum() * 4 == least
    assert np.isfinite(kept[0]).all()
    assert np.isfinite(trace.array("blocks.*.out")).all(), "numbers go on"
    assert "ended before" in repr(trace)
    if folder is not None:
        files = list((folder / "kept").iterdir())
        assert len(files) == 12
        assert np.array_equal(probe.open_trace(folder).array("blocks.*.tensor"), kept, equal_nan=True)


def test_steps_and_branches_to_keep(model: Model) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keep = Keep(max_bytes=2 * TENSOR_BYTES, steps=[0, 2], branches=["uncond"])
        with probe.record(model, "blocks.1.tensor", keep=keep) as trace:
            run(model)
    kept = trace.array("blocks.1.tensor")
    assert kept.axes["branch"] == ("uncond",)
    assert np.isfinite(kept).all((1, 2, 3, 4, 5)).tolist() == [True, False, True]
    with pytest.raises(WanlabError, match="max_bytes = 0"), probe.record(model, "stack.out", keep=Keep(max_bytes=0)):
        pass


def test_a_trace_survives_its_folder(trace: probe.Trace, tmp_path: Path) -> None:
    folder = trace.save(tmp_path / "a")
    again = probe.open_trace(folder)
    assert json.loads((folder / "trace.json").read_text())["schema"] == 1
    for name in (*NUMBERS, "blocks.*.cross.text_map", "blocks.2.tensor"):
        before, after = trace.array(name), again.array(name)
        assert before.axes == after.axes
        assert np.array_equal(before, after, equal_nan=True), name
    assert again.frame.equals(trace.frame)
    assert again.names == trace.names
    assert repr(again) == repr(trace)
    assert np.array_equal(
        again.token_video("blocks.1.cross", word="mat"), trace.token_video("blocks.1.cross", word="mat")
    )
    with pytest.raises(WanlabError, match="holds a trace already"):
        trace.save(folder)
    assert np.array_equal(
        probe.open_trace(again.save(tmp_path / "b")).array("blocks.2.tensor"), trace.array("blocks.2.tensor")
    )


def test_damaged_folders_are_errors(trace: probe.Trace, tmp_path: Path, model: Model) -> None:
    folder = trace.save(tmp_path / "a")
    index = json.loads((folder / "trace.json").read_text())
    for change in ({"schema": 2}, {"series": [{}]}, {"recorded": 3}, {"stride": None}):
        (folder / "trace.json").write_text(json.dumps({**index, **change}))
        with pytest.raises(WanlabError, match=r"schema 1|damaged trace"):
            probe.open_trace(folder)
    series = [{**entry, "files": ["../../x.safetensors"]} if "files" in entry else entry for entry in index["series"]]
    (folder / "trace.json").write_text(json.dumps({**index, "series": series}))
    with pytest.raises(WanlabError, match="refused"):
        probe.open_trace(folder)
    with pytest.raises(WanlabError, match="Cannot read"):
        probe.open_trace(tmp_path / "nowhere")
    with (
        pytest.raises(WanlabError, match="is not empty"),
        probe.record(model, "stack.out", keep=Keep(folder=folder)),
    ):
        pass


def test_an_interrupted_recording_on_disk_is_readable(model: Model, tmp_path: Path) -> None:
    def stop(x: Tensor, ctx: Any) -> Tensor:
        if ctx.step == 1:
            raise KeyboardInterrupt
        return x

    keep = Keep(folder=tmp_path / "trace")
    with (
        pytest.raises(KeyboardInterrupt),
        probe.edit(model, "blocks.3.out", stop),
        probe.record(model, "blocks.0.tensor", "blocks.*.out", keep=keep),
    ):
        run(model)
    found = probe.open_trace(tmp_path / "trace")
    assert found.array("blocks.0.tensor").shape[0] == 2
    assert np.isfinite(found.array("blocks.0.tensor")[0]).all()


def test_wan_tiny_looks_at_the_circle_for_its_word() -> None:
    """The trained model: where "circle" is seen from is where the circle is."""
    model = wanlab.load("wan_tiny", device="cpu")
    prompt = "a red circle moves right on a black background"
    spec = model.spec(prompt=prompt, seed=7, num_steps=8, num_frames=9)
    keep = Keep(tokens=["red", "circle", "background"], branches=["cond"])
    with probe.record(model, "blocks.*.cross.text_map", prompt=prompt, keep=keep) as trace:
        clip = wanlab.generate(model, spec)
    lit = np.asarray(clip.frames, float).max(-1) > 100
    assert 0.02 < lit.mean() < 0.5
    for word in ("red", "circle"):
        video = trace.token_video("blocks.*.cross", word=word)
        assert video.shape == clip.frames.shape
        heat = np.asarray(video, float).sum(-1)
        assert heat[lit].mean() > 2 * heat[~lit].mean(), word
