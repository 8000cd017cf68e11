"""What a grid will take, told before anything is loaded: each figure against one derived by hand."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import wanlab
from wanlab import caches, runs
from wanlab.errors import WanlabError
from wanlab.models import describe
from wanlab.sites import Branch
from wanlab.spec import GenerationSpec
from wanlab.study._cards import CARDS
from wanlab.sweeps import Grid, Preview, grid

MODEL = describe("wan_tiny")
BASE = MODEL.spec(width=32, height=32, num_frames=5, num_steps=4)


@dataclass(frozen=True)
class Forecast:
    alone: int
    shared: int
    groups: tuple[tuple[int, ...], ...]
    unknown: tuple[int, ...]


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[GenerationSpec]]:
    """A forecast by another rule than the planner's: the seeds are groups, points of a group share half. The calls."""
    calls: list[list[GenerationSpec]] = []

    def forecast(model: Any, specs: Sequence[GenerationSpec]) -> Forecast:
        calls.append(list(specs))
        alone = sum(sum(map(len, caches.Run.of(model, spec.resolve(model)).branches)) for spec in specs)
        seeds = [spec.sampling.seed for spec in specs]
        groups = tuple(tuple(i for i, other in enumerate(seeds) if other == seed) for seed in dict.fromkeys(seeds))
        dynamic = tuple(i for i, spec in enumerate(specs) if spec.cache.method == "easycache")
        return Forecast(alone, alone // 2 if len(specs) > len(groups) else alone, groups, dynamic)

    monkeypatch.setattr("wanlab.sweeps._preview._forecast", forecast)
    return calls


def past_run(out: Path, name: str, spec: GenerationSpec, ran: dict[str, Any], denoise: float, **changes: Any) -> None:
    """A run folder as `generate` and `save` leave it, with a clip of 1,000 bytes."""
    record = runs.RunRecord(
        status="ok",
        spec=spec.to_dict(),
        resolved={"spec": spec.resolve(MODEL).to_dict(), "ran": ran},
        timings={"denoise": denoise},
        host=socket.gethostname(),
    )
    (out / name).mkdir(parents=True)
    runs.write_run(out / name, record.with_(**changes), {"video.mp4": bytes(1000)})


def test_forwards_are_summed_over_the_sizes(asked: list[list[GenerationSpec]]) -> None:
    made = grid(BASE, width=[32, 64], flow_shift=[2.0, 3.0], seed=[0, 1])
    found = made.preview()
    assert isinstance(found, Preview)
    assert [len(specs) for specs in asked if len(specs) > 1] == [4, 4]  # what differs in size shares nothing
    assert (found.alone, found.shared, found.unknown) == (8 * 4 * 2, 8 * 4, ())
    assert found.groups == ((0, 2), (1, 3), (4, 6), (5, 7))
    assert found.share_saved == 0.5
    assert [row["forwards"] for row in found.rows] == [8] * 8
    assert [row["id"] for row in found.rows] == list(made.ids)
    assert "64 one by one, 32 shared in 4 groups: 50% saved" in str(found)


def test_what_dynamic_caches_decide_is_unknown_and_said() -> None:
    found = grid(BASE.with_(num_steps=20), cache=["none", "easycache"]).preview()
    assert found.unknown == (1,)
    assert "1 point's cache decides only while running" in str(found)
    assert "only while running" not in str(grid(BASE).preview())


def test_seconds_are_of_earlier_runs_that_were_like_this(tmp_path: Path) -> None:
    """Medians of seconds a computed forward, 0.1, 0.2 and 0.6; what differs in anything that matters is left out."""
    ran = {"forwards": {"transformer": 8}}
    past_run(tmp_path, "a", BASE, ran, 0.8)
    past_run(tmp_path, "b", BASE.with_(seed=1, prompt="x"), ran, 4.8)
    past_run(tmp_path, "c", BASE.with_(cache="magcache"), ran | {"cache": {"computed": 4, "reused": 4}}, 0.8)
    past_run(tmp_path, "size", BASE.with_(width=64), ran, 80.0)
    past_run(tmp_path, "batched", BASE.with_(batch_branches=True), ran, 80.0)
    past_run(tmp_path, "elsewhere", BASE, ran, 80.0, host="elsewhere")
    past_run(tmp_path, "gpu", BASE, ran, 80.0, env={"gpu": "NVIDIA H100 80GB HBM3"})
    past_run(tmp_path, "failed", BASE, ran, 80.0, status="failed")
    past_run(tmp_path, "foreign", BASE, {"forwards": 3}, 80.0)
    past_run(tmp_path, "silent", BASE, {"forwards": {}}, 80.0)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_text("{")
    found = grid(BASE, flow_shift=[2.0, 3.0]).preview(out=tmp_path)
    assert found.seconds_alone == pytest.approx(16 * 0.2)
    assert found.seconds == pytest.approx(8 * 0.2)
    assert [row["seconds"] for row in found.rows] == pytest.approx([1.6, 1.6])
    assert "3.2 s one by one, 1.6 s shared; the median of 3 earlier runs" in str(found)
    batched = grid(BASE.with_(batch_branches=True)).preview(out=tmp_path)
    assert batched.seconds == pytest.approx(8 * 10 / 2)  # 8 forwards, two in each of what took 10 seconds
    on_card = grid(BASE, weights={"dtype": "float32"}).preview(out=tmp_path, card="H100")
    assert on_card.seconds == pytest.approx(80.0)  # the one run that was on it


def test_a_run_of_this_process_saved_there_is_one(tmp_path: Path) -> None:
    model = wanlab.load("wan_tiny", "cpu")
    result = wanlab.generate(model, BASE.with_(num_steps=1))
    result.save(tmp_path / "run")
    found = grid(BASE, seed=[1, 2]).preview(model=model, out=tmp_path)
    assert found.seconds_alone == pytest.approx(16 * result.seconds["denoise"] / 2)
    assert found.latents_bytes == 2 * result.latents.numel() * 4
    clip = next(a.bytes for a in runs.read_run(tmp_path / "run").artifacts if a.path == "video.mp4")
    assert found.clips.value == 2 * clip
    assert "an earlier run of this model" in str(found)


def test_a_card_gives_a_floor() -> None:
    """All products of the networks over the measured rate, from the model's own count."""
    spec = BASE.with_(weights={"dtype": "bfloat16"})
    model = describe(spec)
    flops = 8 * model.workload(spec.resolve(model), Branch("prompt", {}), "transformer").total
    found = grid(BASE, seed=[0, 1]).preview(card="H100")
    assert found.seconds_alone == pytest.approx(2 * flops / CARDS["h100"].measured)
    assert "a floor: H100 SXM at its measured rate" in str(found)
    peak = grid(BASE, seed=[0, 1]).preview(card="A100")
    assert peak.seconds_alone == pytest.approx(2 * flops / CARDS["a100"].peak)
    assert "a floor: A100 at its peak rate" in str(peak)


def test_seconds_that_nobody_knows_are_words(tmp_path: Path) -> None:
    found = grid(BASE, seed=[0, 1]).preview(out=tmp_path / "not there", card="GTX 970")
    assert found.seconds is found.seconds_alone is found.rows[0]["seconds"] is None
    assert "unknown: no earlier run of this model and size here" in found.seconds_words
    assert "GTX 970" in str(found)
    past_run(tmp_path, "a", BASE, {"forwards": {"transformer": 8}}, 0.8)
    partly = grid(BASE, width=[32, 64]).preview(out=tmp_path, card="GTX 970")
    assert partly.seconds is None  # a sum of which a part is unknown


def test_bytes_of_disk_and_cache(tmp_path: Path) -> None:
    past_run(tmp_path, "a", BASE, {"forwards": {"transformer": 8}}, 0.8)
    made = grid(BASE.with_(num_steps=20), cache=["none", "magcache", {"method": "taylorseer", "max_order": 2}])
    found = made.preview(out=tmp_path)
    channels, frames, height, width = MODEL.latent_shape(BASE.resolve(MODEL))
    assert found.latents_bytes == 3 * 4 * channels * frames * height * width
    assert found.clips.value == 3000
    assert "3 kB, guessed from 1 earlier clip" in str(found)
    held = [caches.predict_bytes(MODEL, spec) for spec in made]
    assert [row["cache_bytes"] for row in found.rows] == held
    assert found.cache_bytes == max(held) == held[1] > held[2] > held[0] == 0
    assert "at the most (cache=magcache)" in str(found)
    assert "no point has a cache" in str(grid(BASE).preview())
    assert "unknown before a run" in str(grid(BASE).preview())


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (grid(BASE, num_frames=[5, 6]), "Point num_frames=6: num_frames = 6"),
        (grid(BASE, num_steps=[2, 4]) + grid(BASE, sigmas=[[0.5, 0]]), "Point .*sigmas start at 0.5"),
        (grid(BASE, on_oom=["fail", "retry"]), "Point on_oom=retry"),
        (grid(BASE.with_(model="nobody_knows"), seed=[0, 1]), "Point seed=0: Unknown model"),
    ],
)
def test_a_point_that_would_not_run_is_named(made: Grid, words: str) -> None:
    with pytest.raises(WanlabError, match=words):
        made.preview()
    with pytest.raises(WanlabError, match=words):
        made.check()


def test_no_model_is_needed_and_a_wrong_one_is_refused() -> None:
    large = grid("wan_t2v_14b", seed=[0, 1]).preview(card="H100")  # whose weights are not on this machine
    assert large.seconds is not None
    assert large.seconds > 100
    with pytest.raises(WanlabError, match="'wan_tiny' is no loaded model"):
        grid(BASE).preview(model="wan_tiny")
    with pytest.raises(WanlabError, match="is no card"):
        grid(BASE).preview(card=3)


def test_a_preview_shows_itself() -> None:
    found = grid(BASE, prompt=["<script>", "b"], seed=range(30)).preview()
    page = found._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "10 more" in page
    assert str(found).splitlines()[0] == "60 points of wan_tiny over prompt (2), seed (30)"
    assert "40 more" in str(found)
