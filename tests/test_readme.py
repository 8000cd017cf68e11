"""The README's examples run, and its figures are the catalogue's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import wanlab
from tests.tiny_video import film, frames_of, picture, tiny_i2v, tiny_vace
from wanlab.catalog import find
from wanlab.registry import CACHES, FAMILIES, GUIDANCE
from wanlab.video import write_video
from wanlab.workspace import find_workspace

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def block(language: str, word: str) -> str:
    [found] = [text for text in blocks(language) if word in text]
    return found


def test_the_models_are_counted() -> None:
    rows = list(wanlab.catalogue())
    lacking = sum(bool(row.missing) for row in rows)
    assert f"{len(rows)} definitions ship: {len(rows) - lacking} can run, {lacking} are listed" in README
    table = re.findall(r"^\| (`.*?) \|.*\| (`.*?) \|$", README[README.index("| family |") :], re.M)
    named = {name: family.replace("`", "").split(", ") for family, ids in table for name in re.findall(r"`(\w+)`", ids)}
    named = {name: families for name, families in named.items() if "_" in name and name in {row.id for row in rows}}
    assert len(named) >= 15
    for name, families in named.items():
        assert find(name).family in families, name
        assert not find(name).missing, name
    ours = {family for families in named.values() for family in families}
    assert ours == set(FAMILIES.names())


def test_the_guidance_rules_are_all_there() -> None:
    [row] = [line for line in README.splitlines() if line.startswith("| Guidance |")]
    assert set(re.findall(r"`(\w+)`", row)) == set(GUIDANCE.names())


def test_the_example_of_wanlab_toml_is_legal(tmp_path: Path) -> None:
    (tmp_path / "wanlab.toml").write_text(block("toml", "[checkpoints]"))
    kinds = [root.kind for root in find_workspace(tmp_path).roots]
    assert kinds.count("folder") == 2
    assert {"wangp", "comfyui", "hub"} <= set(kinds)


def test_variants_and_defaults_are_written_as_it_says(live: Path) -> None:
    [variant] = re.findall(r'`(\{"base".*?\})`', README)
    [defaults] = re.findall(r'`(\{"num_steps".*?\})`', README)
    for folder, name, text in (("finetunes", "mine", variant), ("configs", "wan_tiny", defaults)):
        (live / folder).mkdir()
        (live / folder / f"{name}.json").write_text(text)
    assert find("mine").spec["sampling"]["num_steps"] == 12
    assert find("mine").family == "vace"
    assert wanlab.load("wan_tiny", device="cpu").spec().sampling.num_steps == 20


def test_the_example_of_probes_and_studies_runs(live: Path) -> None:
    model = wanlab.load("wan_tiny", device="cpu")
    spec = model.spec(
        prompt="a red circle moves right on a black background", num_steps=12, width=48, height=48, num_frames=9
    )
    scope: dict[str, Any] = {"wanlab": wanlab, "model": model, "spec": spec}
    exec(block("python", "from wanlab import metrics, probe, study"), scope)
    blocks, heads = 8, 4
    assert len(scope["trace"].frame) == 2 * blocks * (11 + 12 * heads)  # a ratio needs a step before it
    assert scope["quick"].skipped_forwards is not None
    assert not model.attachments()


def test_the_example_of_sweeps_runs(live: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = wanlab.load("wan_tiny", device="cpu")
    spec = model.spec(
        prompt="a red circle moves right on a black background", num_steps=20, width=48, height=48, num_frames=5
    )
    scope: dict[str, Any] = {"wanlab": wanlab, "model": model, "spec": spec}
    exec(block("python", "wanlab.run_sweep(grid, "), scope)
    assert scope["results"].counts() == {"ok": 2 * 5}
    assert (live / "runs" / "which_cache" / "report.html").is_file()
    assert "magcache" in capsys.readouterr().out


def test_the_figures_of_sharing_are_those_measured() -> None:
    folder = Path(__file__).parent.parent / "experiments" / "sweep_sharing"
    found = json.loads((folder / "results" / "h100.json").read_text())
    forecast, summary = found["forecast"], found["summary"]
    assert found["shared"]["forwards"] == forecast["shared"]
    assert found["shared"]["sha256"] == found["alone"]["sha256"]
    for text in (README, (folder / "README.md").read_text()):
        assert f"{forecast['shared']} of {forecast['alone']:,} forwards" in text
        assert all(f"{summary[name]:.3f}" in text for name in ("speedup", "ideal"))


def test_the_experiments_that_it_names_are_there() -> None:
    for path in set(re.findall(r"wanlab sweep (experiments/\w+)", README)):
        assert (Path(__file__).parent.parent / path / "run.ipynb").is_file(), path


def test_the_caches_are_all_there() -> None:
    [row] = [line for line in README.splitlines() if line.startswith("| Caches |")]
    assert {"none", *CACHES.names()} - {"every_third"} <= set(re.findall(r"`(\w+)`", row))


def test_the_examples_with_pictures_and_videos_run(
    live: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tiny models in place of the checkpoints."""
    genuine, made = wanlab.load, {"wan_i2v_480p_14b": tiny_i2v, "vace_1_3b": tiny_vace}

    def load(name: str, **_: Any) -> Any:
        definition = made[name](tmp_path_factory.mktemp(name))[1]
        definition["spec"]["sampling"]["num_steps"] = 2
        return genuine(definition, device="cpu")

    monkeypatch.setattr(wanlab, "load", load)
    picture(1).save("kite.png")
    picture(2).save("boat.png")
    write_video(Path("motion.mp4"), frames_of(film(1)), 16, crf=18)
    Image.new("L", (48, 32), 255).save("where.png")
    scope: dict[str, Any] = {"wanlab": wanlab}
    exec(block("python", "wan_i2v_480p_14b"), scope)
    assert scope["clip"].spec.media.control_scale == (0.8,)
    assert len(list((live / "runs" / "boat" / "media").iterdir())) == 3
    assert wanlab.open_settings("runs/boat").spec == scope["clip"].spec
