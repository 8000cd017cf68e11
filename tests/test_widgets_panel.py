"""GeneratePanel without a browser: its spec, its jobs, what it says, what it keeps and what comes back."""

from __future__ import annotations

import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import wanlab
from tests.tiny import tiny_wan
from wanlab import notebook, runs
from wanlab.errors import WanlabError
from wanlab.widgets import GeneratePanel
from wanlab.widgets._activity import animated
from wanlab.widgets._history import entries

SPEC = {"prompt": "a red fox", "num_steps": 4, "width": 32, "height": 32, "num_frames": 5, "seed": 1}
WAIT = 60  # seconds, only ever used up by a failure
HOSTILE = '<img src=x onerror="window.pwned=1">'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return wanlab.load(tiny_wan(tmp_path_factory.mktemp("wan"))[1], device="cpu")


def until(claim: Any) -> None:
    """Wait for what another thread does."""
    end = time.monotonic() + WAIT
    while not claim():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


class Gate:
    """Holds a panel's jobs after their first step until it is opened."""

    def __init__(self, panel: GeneratePanel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        look = panel._look_at_step

        def gated(*arguments: Any) -> None:
            look(*arguments)
            self.reached.set()
            assert self.opened.wait(WAIT)

        monkeypatch.setattr(panel, "_look_at_step", gated)


def test_untouched_it_returns_what_it_was_given(model: Any) -> None:
    spec = model.spec(**SPEC, cache={"method": "fixed", "mask": [True] * 4})
    assert GeneratePanel(model, spec).spec == spec
    assert GeneratePanel(model, spec, seed=9).spec == spec.with_(seed=9)
    assert GeneratePanel(model, **SPEC).spec == model.spec(**SPEC)
    assert GeneratePanel("wan_tiny").spec == wanlab.load("wan_tiny", device="cpu").spec()


def test_headless_generate_is_the_button_and_writes_nothing(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    panel = GeneratePanel(model, **SPEC)
    result = panel.generate()
    assert panel.result is result
    assert np.array_equal(result.frames, wanlab.generate(model, **SPEC).frames)
    until(lambda: not panel._jobs)
    assert list(tmp_path.iterdir()) == []


def test_runs_are_kept_where_asked_and_shown_in_the_history(model: Any, tmp_path: Path) -> None:
    panel = GeneratePanel(model, runs=tmp_path / "runs", **SPEC)
    first, second = panel.generate(), panel.generate()
    assert first.path.parent == tmp_path / "runs"
    assert first.path != second.path
    assert "a-red-fox_seed1" in first.path.name
    assert np.array_equal(wanlab.open_result(first.path).latents, first.latents)
    found = entries(tmp_path / "runs", model.id)
    assert {entry.folder for entry in found} == {first.path, second.path}
    assert found[0].spec == first.spec
    assert entries(tmp_path / "runs", "another") == []
    panel._history.refresh(tmp_path / "runs")
    assert len(panel._history._box.children) == 2
    panel.spec = model.spec(seed=77)
    panel._load_entry(found[1])
    assert panel.spec == first.spec


def test_a_press_while_a_clip_runs_queues(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """First in, first out over two panels; the button says what it does; a queued one can be taken out."""
    one, two = GeneratePanel(model, **SPEC), GeneratePanel(model, **SPEC)
    gate = Gate(one, monkeypatch)
    order: list[int] = []
    one._press()
    assert gate.reached.wait(WAIT)
    until(lambda: one._generate.description == "Add to queue")
    assert not one._cancel.disabled
    for panel, seed in ((two, 2), (one, 3), (two, 4)):
        panel.spec = panel.spec.with_(seed=seed)
        panel._press()
    jobs = [*one._jobs, *two._jobs]
    for job in jobs:
        job.on_end(lambda job: order.append(job.spec.sampling.seed))
    until(lambda: len(one._activity._queue.children) == 1)
    assert "seed 3" in one._activity._queue.children[0].children[1].value
    one._activity._queue.children[0].children[0].click()
    gate.opened.set()
    until(lambda: len(order) == 4)
    assert order == [3, 1, 2, 4]
    until(lambda: not one._jobs and not two._jobs and one._generate.description == "Generate")
    assert one._activity.layout.display == "none"
    assert one._cancel.disabled


def test_cancel_ends_within_a_step_and_the_next_run_is_as_fresh(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = wanlab.generate(model, **SPEC)
    panel = GeneratePanel(model, **SPEC)
    gate = Gate(panel, monkeypatch)
    panel._generate.click()
    assert gate.reached.wait(WAIT)
    [job] = panel._jobs
    panel._cancel.click()
    gate.opened.set()
    until(job.done)
    assert job.status == "cancelled"
    assert job.progress.step == 1
    until(lambda: "Cancelled" in panel._message.value)
    assert panel.result is None
    assert np.array_equal(panel.generate().frames, fresh.frames)


def test_what_is_wrong_is_said_and_cannot_be_pressed(model: Any) -> None:
    panel = GeneratePanel(model, **SPEC)
    panel._form.field("size.width").widget.value = "33"
    assert panel._generate.disabled
    assert 'role="alert"' in panel._message.value
    assert "width = 33 is not legal" in panel._message.value
    with pytest.raises(WanlabError, match="width"):
        panel.submit()
    panel._form.field("size.width").widget.value = "48"
    assert not panel._generate.disabled
    assert panel._message.value == ""
    panel._form.field("sampling.sigmas").widget.value = HOSTILE
    assert panel._generate.disabled
    assert "<img" not in panel._message.value
    with pytest.raises(WanlabError, match="sigmas"):
        _ = panel.spec


def test_defaults_and_new_seed(model: Any) -> None:
    panel = GeneratePanel(model, **SPEC, guidance_scale=9.0)
    panel._defaults.click()
    assert panel.spec == model.spec(prompt="a red fox")
    seeds = set()
    for _ in range(3):
        panel._dice.click()
        seeds.add(panel.spec.sampling.seed)
    assert len(seeds) == 3
    assert panel.spec == model.spec(prompt="a red fox", seed=panel.spec.sampling.seed)


def test_the_last_settings_come_back(model: Any, live: Path) -> None:
    first = GeneratePanel(model, **SPEC)
    first._press()
    until(lambda: first.result is not None)
    again = GeneratePanel(model)
    assert again.spec == model.spec(**SPEC)
    assert "last settings" in again._message.value
    assert GeneratePanel(model, restore=False).spec == model.spec()
    assert GeneratePanel(model, model.spec(seed=5)).spec == model.spec(seed=5)
    again._defaults.click()
    assert again.spec == model.spec(prompt="a red fox")
    assert first.result.path.parent == live / "runs"


def test_settings_become_the_users_defaults(model: Any, live: Path) -> None:
    """What was changed but prompt and seed; forms, `load` and the Defaults button start from it, a spec does not."""
    chosen = {"guidance_scale": 9.0, "num_steps": 3, "cache": {"method": "fixed", "mask": [True, False, True]}}
    panel = GeneratePanel(model, prompt="a red fox", seed=1, **chosen)
    panel._keep.click()
    file = live / "configs" / f"{model.id}.json"
    assert json.loads(file.read_text()) == {
        "schema": 1,
        "sampling": {"num_steps": 3},
        "guidance": {"guidance_scale": 9.0},
        "cache": {"method": "fixed", "options": {"mask": [True, False, True], "branch_masks": {}}},
    }
    assert str(file) in panel._message.value
    again = wanlab.load(model.definition, device="cpu")
    assert again.spec() == GeneratePanel(again).spec == model.spec(**chosen)
    assert again.default_spec == model.default_spec
    panel._form.field("guidance.guidance_scale").write(2.0)
    panel._defaults.click()
    assert panel.spec == again.spec(prompt="a red fox")
    file.unlink()
    assert wanlab.load(model.definition, device="cpu").spec() == model.spec()


def test_headless_nothing_comes_back(model: Any, live: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panel = GeneratePanel(model, **SPEC)
    panel._press()
    until(lambda: panel.result is not None)
    monkeypatch.setattr(notebook, "is_live", lambda: False)
    assert GeneratePanel(model).spec == model.spec()


def test_stripped_prompts_are_not_kept(model: Any, live: Path) -> None:
    panel = GeneratePanel(model, **SPEC, strip_prompt=True)
    panel._press()
    until(lambda: panel.result is not None)
    assert "red fox" not in (live / "configs" / f"{model.id}.last.json").read_text()
    assert "red" not in panel.result.path.name


def test_progress_of_the_job_before_is_never_in_sight(model: Any) -> None:
    panel = GeneratePanel(model, **SPEC)
    panel._activity._stages.value = "denoise 12.7 s"
    seen: list[str] = []
    panel._activity.layout.observe(
        lambda change: seen.append(panel._activity._stages.value) if change["new"] is None else None, "display"
    )
    panel.generate()
    assert seen
    assert "12.7" not in seen[0]


def test_previews_are_shown_and_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of the estimate at the panel's own pace; afterwards the widget holds no picture."""
    panel = GeneratePanel(wanlab.load("wan_tiny", device="cpu"), num_frames=9, num_steps=3)
    seen: list[bytes] = []
    panel._activity._preview.observe(lambda change: seen.append(change["new"]), "value")
    gate = Gate(panel, monkeypatch)
    panel._press()
    assert gate.reached.wait(WAIT)
    until(lambda: seen)
    with Image.open(io.BytesIO(seen[0])) as picture:
        assert (picture.format, picture.size, picture.n_frames) == ("WEBP", (12, 12), 3)
    assert panel._activity._preview.layout.display is None
    gate.opened.set()
    until(lambda: panel.result is not None and not panel._jobs)
    until(lambda: panel._activity._preview.value == b"")


def test_animated_pictures_keep_their_frames_and_their_pace() -> None:
    frames = np.zeros((3, 8, 16, 3), np.uint8)
    frames[:, :, :, 0] = np.array([0, 128, 255])[:, None, None]
    with Image.open(io.BytesIO(animated(frames, 4.0))) as picture:
        assert picture.size == (16, 8)
        reds = []
        for i in range(picture.n_frames):
            picture.seek(i)
            reds.append(np.asarray(picture.convert("RGB"))[..., 0].mean())
            assert picture.info["duration"] == 250
    assert np.allclose(reds, [0, 128, 255], atol=6)


def test_nothing_large_is_synced(model: Any, tmp_path: Path) -> None:
    """What a saved notebook would hold of the panel's widgets is a few kilobytes, and no picture but thumbnails."""
    panel = GeneratePanel(model, runs=tmp_path, **{**SPEC, "prompt": HOSTILE})
    panel.generate()
    until(lambda: not panel._jobs)
    panel._history.refresh(tmp_path)
    state = _states(panel)
    assert sum(len(json.dumps(s, default=repr)) for s in state) < 120_000
    page = "".join(s["value"] for s in state if s["_model_name"] == "HTMLModel")
    assert "onerror" in page
    assert "<img src=x" not in page


def _states(widget: Any) -> list[dict[str, Any]]:
    """The state of a widget and of all inside it."""
    found = [widget.get_state()]
    for child in getattr(widget, "children", ()):
        found += _states(child)
    return found


def test_wrong_arguments(model: Any) -> None:
    with pytest.raises(WanlabError, match="is no model"):
        GeneratePanel(7)
    with pytest.raises(WanlabError, match="Unknown model"):
        GeneratePanel("wan_tinny")
    with pytest.raises(WanlabError, match="GeneratePanel\\('wan_tiny'"):
        GeneratePanel(model, wanlab.load("wan_tiny", device="cpu").spec())
    with pytest.raises(WanlabError, match="num_steps"):
        GeneratePanel(model, num_stepz=3)
    with pytest.raises(WanlabError, match="'a red fox' is not a spec"):
        GeneratePanel(model, "a red fox")
    with pytest.raises(WanlabError, match="is not a spec"):
        GeneratePanel(model).spec = {"prompt": "a red fox"}


def test_crashed_runs_are_in_the_history(model: Any, tmp_path: Path) -> None:
    folder, _ = runs.new_folder(tmp_path, "a")
    record = runs.RunRecord(id="0" * 12, spec=model.spec(**SPEC).to_dict())
    runs.begin_run(folder, record)
    data = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**data, "pid": 2**22 + 1}))
    [entry] = entries(tmp_path, model.id)
    assert entry.record.status == "crashed"
    assert entry.spec == model.spec(**SPEC)
