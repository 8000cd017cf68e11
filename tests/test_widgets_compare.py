"""wanlab.compare: one video holds all clips, messages answer views, and a notebook keeps plain HTML."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import comm
import nbformat
import numpy as np
import pytest
from comm.base_comm import BaseComm
from nbclient import NotebookClient

import wanlab
from wanlab import metrics, video
from wanlab.result import Result
from wanlab.runs import RunRecord
from wanlab.spec import GenerationSpec
from wanlab.widgets import Compare, _master
from wanlab.widgets._master import Master, encode_master

LENGTH = 12


def result(frames: np.ndarray, fps: float = 16.0, **changes: Any) -> Result:
    spec = GenerationSpec(model="wan_tiny").with_(**({"prompt": "a kite"} | changes))
    return Result(frames, None, spec, RunRecord(id="r", status="ok", spec=spec.to_dict()), fps)


def clip(seed: int, num_frames: int = LENGTH, height: int = 24, width: int = 40) -> np.ndarray:
    """Squares of 8 pixels in random colours that move by one pixel a frame."""
    rng = np.random.default_rng(seed)
    squares = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    return np.stack([np.roll(squares, t, 1) for t in range(num_frames)])


@pytest.fixture(scope="module")
def comparison() -> Compare:
    """Another clip, an equal one, a shorter one and one of another size."""
    first = clip(0)
    near = np.clip(first.astype(int) + np.random.default_rng(9).integers(-6, 7, first.shape), 0, 255).astype(np.uint8)
    return wanlab.compare(
        result(first),
        result(near, guidance_scale=1.0),
        result(first.copy(), seed=5),
        result(clip(3, num_frames=5), num_frames=5),
        result(clip(4, height=48, width=32), prompt="<img src=x onerror=alert(1)>"),
    )


@pytest.fixture(scope="module")
def master(comparison: Compare) -> Master:
    return encode_master(comparison)


@pytest.fixture(scope="module")
def decoded(master: Master, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    path = tmp_path_factory.mktemp("master") / "master.mp4"
    path.write_bytes(master.data)
    frames, fps, _ = video.read_video(path)
    assert fps == 16
    return frames


def cut(frames: np.ndarray, cell: tuple[int, int, int, int], scale: float) -> np.ndarray:
    """A cell at the clip's own size: the pixel in the middle of each enlarged one."""
    left, top, width, height = cell
    times = int(scale)
    return frames[:, top + times // 2 : top + height : times, left + times // 2 : left + width : times]


def test_master_holds_every_frame_of_every_clip_in_its_cell(
    comparison: Compare, master: Master, decoded: np.ndarray
) -> None:
    assert master.scale == 4
    assert len(decoded) == master.num_frames == LENGTH
    for shown, cell in zip(comparison.results, master.cells, strict=True):
        held = shown.frames[np.minimum(np.arange(LENGTH), len(shown.frames) - 1)]
        seen = cut(decoded, cell, master.scale)
        assert metrics.psnr_per_frame(held, seen).min() > 35
        for shift in (-1, 1):  # a neighbour in time is much further away
            assert metrics.psnr(np.roll(held, shift, 0), seen) < 25


def test_master_says_the_number_of_each_frame_in_its_blocks(master: Master, decoded: np.ndarray) -> None:
    left, top, width, height = master.code
    bits = decoded[:, top + height // 2, left + height // 2 : left + width : height, 1] > 127
    assert (bits @ (1 << np.arange(bits.shape[1])[::-1])).tolist() == list(range(LENGTH))


def test_differences_are_in_the_master_and_black_where_clips_are_equal(
    comparison: Compare, master: Master, decoded: np.ndarray
) -> None:
    assert [cell is not None for cell in master.differences] == [False, True, True, False, False]
    first, near = (comparison.results[i].frames.astype(int) for i in (0, 1))
    seen = cut(decoded, master.differences[1], master.scale).astype(float) ** 2 / 255
    assert np.abs(seen - np.abs(first - near)).mean() < 0.4
    assert cut(decoded, master.differences[2], master.scale).max() <= 1  # at a gain of 16: 1/16 of a level


def test_cells_do_not_touch_and_start_at_macroblocks(master: Master, decoded: np.ndarray) -> None:
    taken = np.zeros(decoded.shape[1:3], int)
    for left, top, width, height in [*master.cells, *filter(None, master.differences), master.code]:
        assert left % 16 == top % 16 == 0
        taken[top : top + height, left : left + width] += 1
        assert top + height <= taken.shape[0]
        assert left + width <= taken.shape[1]
    assert taken.max() == 1


def test_large_clips_are_shrunk_until_the_grid_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_master, "_FRAME_PIXELS", 60_000)
    monkeypatch.setattr(_master, "_SMALL", 0)
    master = encode_master(wanlab.compare(result(clip(0, 3, 160, 240)), result(clip(1, 3, 160, 240), seed=2)))
    assert 0.3 < master.scale < 1
    assert all(cell[2:] == (round(240 * master.scale), round(160 * master.scale)) for cell in master.cells)


def test_noise_stays_within_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_master, "MOST_BYTES", 100_000)
    noise = np.random.default_rng(0).integers(0, 256, (2, LENGTH, 64, 64, 3), dtype=np.uint8)
    assert len(encode_master(wanlab.compare(result(noise[0]), result(noise[1], seed=2))).data) < 150_000


def test_pictures_are_kept_exactly() -> None:
    from io import BytesIO

    from PIL import Image

    comparison = wanlab.compare(result(clip(0, 1)), result(clip(1, 1), seed=2))
    master = encode_master(comparison)
    assert master.mime == "image/png"
    picture = np.asarray(Image.open(BytesIO(master.data)))[None]
    for shown, cell in zip(comparison.results, master.cells, strict=True):
        assert np.array_equal(cut(picture, cell, master.scale), shown.frames)


def test_distances_per_frame(comparison: Compare) -> None:
    first, near, equal, short, other = comparison.per_frame
    assert first is short is other is None
    a, b = (comparison.results[i].frames.astype(int) for i in (0, 1))
    np.testing.assert_allclose(near.psnr, metrics.psnr_per_frame(a.astype(np.uint8), b.astype(np.uint8)), rtol=1e-6)
    np.testing.assert_allclose(near.mean_abs_diff, np.abs(a - b).mean((1, 2, 3)), rtol=1e-12)
    assert near.max_abs_diff.tolist() == np.abs(a - b).max((1, 2, 3)).tolist()
    assert np.isposinf(equal.psnr).all()
    assert not equal.mean_abs_diff.any()
    assert not equal.max_abs_diff.any()


class Wire(BaseComm):
    """A comm whose messages are kept instead of sent."""

    sent: ClassVar[list[tuple[str, dict[str, Any], list[bytes]]]] = []

    def publish_msg(self, msg_type: str, data: Any = None, metadata: Any = None, buffers: Any = None, **_: Any) -> None:
        Wire.sent.append((msg_type, data, buffers or []))


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> type[Wire]:
    monkeypatch.setattr(comm, "create_comm", Wire)
    monkeypatch.setattr(Wire, "sent", [])
    return Wire


def custom(wire: type[Wire]) -> list[tuple[dict[str, Any], list[bytes]]]:
    """The custom messages that were sent."""
    return [(d["content"], b) for kind, d, b in wire.sent if kind == "comm_msg" and d["method"] == "custom"]


def ask(player: Any, **content: Any) -> None:
    """What a view sends."""
    player._handle_msg({"content": {"data": {"method": "custom", "content": content}}, "buffers": []})


def test_media_are_sent_by_message_when_a_view_asks(comparison: Compare, wire: type[Wire]) -> None:
    player = Compare(comparison.results).player
    assert custom(wire) == []
    ask(player, type="ready")
    ask(player, type="ready")  # a second view, or a reloaded page
    (facts, buffers), again = custom(wire)
    assert again == (facts, buffers)
    assert [bytes(b[4:8]) for b in buffers] == [b"ftyp"]
    assert json.dumps(facts, allow_nan=False)
    assert (facts["type"], facts["mime"], facts["fps"], facts["numFrames"]) == ("media", "video/mp4", 16.0, LENGTH)
    assert [c["label"] for c in facts["clips"]] == comparison.labels
    assert [c["numFrames"] for c in facts["clips"]] == [LENGTH, LENGTH, LENGTH, 5, LENGTH]
    assert [c["distances"] is None for c in facts["clips"]] == [True, False, False, True, True]
    assert facts["clips"][1]["distances"]["psnr"] == np.round(comparison.per_frame[1].psnr, 2).tolist()
    assert facts["clips"][2]["distances"]["psnr"] == [None] * LENGTH  # equal


def test_pixels_are_answered_exactly(comparison: Compare, wire: type[Wire]) -> None:
    player = Compare(comparison.results).player
    ask(player, type="pixel", view="v", frame=7, x=13.5 / 40, y=20.2 / 24)
    ((answer, _),) = custom(wire)
    frames = [r.frames for r in comparison.results]
    assert answer["view"] == "v"
    assert answer["values"][:3] == [f[7, 20, 13].tolist() for f in frames[:3]]
    assert answer["values"][3] == frames[3][4, 20, 13].tolist()  # a shorter clip holds its last frame
    assert answer["values"][4] == frames[4][7, int(48 * 20.2 / 24), int(32 * 13.5 / 40)].tolist()
    ask(player, type="pixel", view="v", frame=99, x=1.0, y=-3)  # outside: the nearest
    assert custom(wire)[1][0]["values"][0] == frames[0][11, 0, 39].tolist()


def test_nothing_large_is_in_the_state_that_notebooks_save(comparison: Compare, wire: type[Wire]) -> None:
    state = Compare(comparison.results).player.get_state()
    code = {name: state.pop(name) for name in ("_esm", "_css")}
    assert len(json.dumps(state)) < 1000  # strings and numbers, no bytes
    assert sum(map(len, code.values())) < 80_000
    assert "innerHTML" not in code["_esm"]


def test_save_writes_all_clips_with_their_labels(comparison: Compare, tmp_path: Path) -> None:
    path = comparison.save(tmp_path / "side_by_side.mp4")
    frames, fps, _ = video.read_video(path)
    assert fps == 16
    assert metrics.psnr(comparison.frames, frames) > 30
    with pytest.raises(wanlab.WanlabError, match=r"\.mp4"):
        comparison.save(tmp_path / "side_by_side.gif")
    with pytest.raises(wanlab.WanlabError, match="is no path"):
        comparison.save("")
    with pytest.raises(wanlab.WanlabError, match=r"x\.png"):
        comparison.save(tmp_path / "x.png")
    pictures = wanlab.compare(result(clip(0, 1)), result(clip(1, 1), seed=2))
    assert np.array_equal(video.read_image(pictures.save(tmp_path / "x.png"))[0], pictures.frames[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["side_by_side.mp4", "x.png"]


def test_large_clips_are_made_smaller_before_labels_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[np.ndarray] = []
    monkeypatch.setattr(
        "wanlab.study.side_by_side.player", lambda frames, *_: shown.append(frames) or "<video></video>"
    )
    wanlab.compare(result(clip(0, 2, 480, 832)), result(clip(1, 2, 480, 832), seed=2))._repr_html_()
    assert shown[0].shape[2] == 2 * 480 + 4
    assert shown[0].shape[1] in (300, 301, 302)  # 277 and a line of text


CELL = """
import numpy as np
import wanlab
from wanlab.result import Result
from wanlab.runs import RunRecord
from wanlab.spec import GenerationSpec

def result(value, **changes):
    spec = GenerationSpec(model="wan_tiny").with_(prompt="a kite", **changes)
    return Result(np.full((4, 16, 16, 3), value, np.uint8), None, spec, RunRecord(id="r", status="ok", spec={}), 16.0)

wanlab.compare(result(1), result(2, seed=3))
"""
VIEW = "application/vnd.jupyter.widget-view+json"


def outputs(cell: str, folder: Path) -> list[Any]:
    """What a kernel of its own answers to a cell; fails if the cell does."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(folder)}}).execute()
    widgets = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {"state": {}})
    return [*notebook.cells[0].outputs, len(widgets["state"])]


def test_a_headless_notebook_gets_html_and_no_widget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    modules = "\nimport sys; print([m for m in ('anywidget', 'ipywidgets', 'torch') if m in sys.modules])"
    text, shown, num_models = outputs(CELL.replace("\nwanlab.compare", f"{modules}\nwanlab.compare"), tmp_path)
    assert text.text == "[]\n"
    assert set(shown.data) == {"text/html", "text/plain"}
    assert "<video" in shown.data["text/html"]
    assert "<table" in shown.data["text/html"]
    assert "<script" not in shown.data["text/html"]
    assert num_models == 0


def test_a_live_notebook_gets_the_player_between_what_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "x.ipynb"))
    static, view, table, num_models = outputs(CELL, tmp_path)
    assert num_models >= 1
    assert set(static.data) == set(table.data) == {"text/html", "text/plain"}
    assert static.data["text/html"].count("<video") == 1
    assert "<script" not in static.data["text/html"]
    assert VIEW in view.data
    assert view.data["text/plain"] == ""  # what an untrusted notebook shows instead
    assert table.data["text/html"].startswith("<table")


def test_compare_is_light_until_it_is_shown() -> None:
    code = (
        "import sys, wanlab; wanlab.compare; import wanlab.widgets; wanlab.widgets.Compare;"
        "sys.exit(str([m for m in ('torch', 'ipywidgets', 'anywidget', 'av') if m in sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stderr.strip() == "[]"
