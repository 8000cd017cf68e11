"""The command line: what it writes where, what it refuses before the work, and that Ctrl-C leaves nothing behind."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import wanlab
from wanlab import catalog
from wanlab.caches._static import Static
from wanlab.cli import main
from wanlab.cli._models import _CACHES, details
from wanlab.cli._progress import ProgressLine, bar
from wanlab.cli._settings import read_settings, request
from wanlab.errors import WanlabError
from wanlab.files import resource
from wanlab.registry import CACHES
from wanlab.runs import RunRecord, write_run
from wanlab.watch import Progress

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "a red circle moves right on a black background"
SHORT = ["num_steps=2", "num_frames=5"]
HEAVY = ("torch", "diffusers", "transformers", "pydantic", "numpy", "av", "jupyterlab")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def generate(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """Run `wanlab generate ... --json` and return what it printed."""
    capsys.readouterr()
    assert main(["generate", *words, *SHORT, "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"path", "run_id", "spec_id", "seconds"}
    return found


def test_help_and_version_are_quick_and_import_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time; start = time.perf_counter(); from wanlab.cli import main; status = main([sys.argv[1]]); "
        f"print(status, time.perf_counter() - start, [m for m in {HEAVY} if m in sys.modules])"
    )
    for option, shown in {"--help": "doctor", "--version": wanlab.__version__}.items():
        seconds = []
        for _ in range(3):
            done = subprocess.run([sys.executable, "-c", code, option], capture_output=True, text=True, check=True)
            status, spent, heavy = done.stdout.splitlines()[-1].split(" ", 2)
            assert (status, heavy) == ("0", "[]")
            assert shown in done.stdout
            seconds.append(float(spent))
        assert min(seconds) < 0.3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["generate", "models", "lab", "doctor"])
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"usage: wanlab {name}" in capsys.readouterr().out


def test_the_words_of_a_command_line_mean_a_spec() -> None:
    words = ["seed=7", "prompt=a red=circle", "cache.mask=[true, false]", "guidance.method=cfg", "sigmas=null"]
    assert read_settings(words) == {
        "seed": 7,
        "prompt": "a red=circle",
        "cache.mask": [True, False],
        "guidance.method": "cfg",
        "sigmas": None,
    }
    texts = {"prompt=7": "7", "text.prompt=true": "true", 'prompt="7"': "7", "prompt=[wide] a": "[wide] a"}
    for word, text in texts.items():
        assert list(read_settings([word]).values()) == [text]


def test_a_generation_is_that_of_python(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "wan_tiny", f"prompt={PROMPT}", "seed=7", *SHORT, "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    path, summary = out.splitlines()
    assert "denoise" in err
    assert "done" in err
    result = wanlab.open_result(path)
    assert path == f"runs/a-red-circle-moves-right-on-a-black_seed7_{result.run_id}"
    assert all(word in summary for word in ("5 frames of 96x96", "seed 7", "cpu", result.run_id, result.spec.id))
    model = wanlab.load("wan_tiny", device="cpu")
    expected = wanlab.generate(model, prompt=PROMPT, seed=7, num_steps=2, num_frames=5)
    assert result.spec == expected.spec
    assert np.array_equal(result.latents, expected.latents)
    assert {p.name for p in Path(path).iterdir()} == {"run.json", "video.mp4", "latents.safetensors"}


def test_every_form_of_a_spec_starts_another_run(capsys: pytest.CaptureFixture[str]) -> None:
    first = generate(capsys, "wan_tiny", f"prompt={PROMPT}", "seed=7", "--out", "clip.mp4")
    folder = generate(capsys, "--spec", "clip.mp4", "--out", "run")
    spec = wanlab.open_result("run").spec
    Path("spec.json").write_text(spec.to_json())
    for source in ("run", "run/run.json", "spec.json"):
        again = generate(capsys, "wan_tiny", "--spec", source)
        assert (again["spec_id"], again["run_id"]) == (first["spec_id"], folder["run_id"])
    names = sorted(path.name for path in Path("runs").iterdir())
    stem = f"a-red-circle-moves-right-on-a-black_seed7_{first['run_id']}"
    assert names == [stem, f"{stem}-2", f"{stem}-3"]
    assert generate(capsys, "--spec", "run", "seed=8")["spec_id"] == spec.with_(seed=8).id
    write_run(Path("failed"), RunRecord(status="failed", spec=spec.to_dict()), {})
    assert generate(capsys, "--spec", "failed")["spec_id"] == spec.id


def test_settings_of_wangp_start_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Of its model, by our name; what a spec does not say is told, and files that are named must be given."""
    settings = {"type": "WanGP v8.6", "model_type": "t2v_1.3B", "settings_version": 2.74, "prompt": "a kite", "seed": 7}
    Path("kite.json").write_text(json.dumps(settings))
    definition, spec = request(["num_steps=3"], "kite.json")
    assert definition.id == spec.model == "wan_t2v_1_3b"
    assert (spec.text.prompt, spec.sampling.seed, spec.sampling.num_steps) == ("a kite", 7, 3)
    assert capsys.readouterr().err == ""
    Path("odd.json").write_text(json.dumps({**settings, "nobody_knows": 1}))
    assert request([], "odd.json")[1].text.prompt == "a kite"
    assert "nobody_knows" in capsys.readouterr().err
    with pytest.raises(WanlabError, match="of wan_t2v_1_3b, not of wan_tiny"):
        request(["wan_tiny"], "kite.json")
    first = {"model_type": "i2v", "image_prompt_type": "S", "image_start": ["a.png"]}
    Path("image.json").write_text(json.dumps({**settings, **first}))
    with pytest.raises(WanlabError, match=r"does not hold: image\..*image=PATH"):
        request([], "image.json")
    assert request(["image=null"], "image.json")[1].media.image is None
    Image.new("RGB", (16, 16)).save("a.png")  # beside it now
    assert request([], "image.json")[1].media.image.name == "a.png"
    Path("queue.json").write_text(json.dumps([{"params": settings}, {"params": {**settings, "seed": 8}}]))
    assert request([], "queue.json", 2)[1].sampling.seed == 8
    Path("preset.json").write_text(json.dumps({"guidance_scale": 3.5, "num_inference_steps": 6}))
    assert request(["wan_t2v_14b"], "preset.json")[1].sampling.num_steps == 6
    with pytest.raises(WanlabError, match="name no model"):
        request([], "preset.json")


def test_the_users_defaults_hold_here_too(live: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalog.write_user_defaults("wan_tiny", {"num_steps": 3})
    assert request(["wan_tiny"], None)[1] == wanlab.load("wan_tiny", device="cpu").spec(num_steps=3)
    assert main(["models", "wan_tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["num_steps"] == 3


def test_methods_are_named_as_in_a_spec(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cache.method=fixed", "cache.mask=[true,false]", "guidance.method=cfg", "attention=math"]
    found = generate(capsys, "wan_tiny", *words, "--out", "run")
    result = wanlab.open_result(found["path"])
    assert result.skipped_forwards == 2
    assert result.ran["attention"] == "math"


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["generat"], "Did you mean 'generate'"),
        (["--nonsense"], "nonsense"),
        (["generate"], "No model is named. Choices: wan_tiny"),
        (["generate", "wan_tny"], "Did you mean 'wan_tiny'"),
        (["generate", "wan_tiny", "promt=a"], "Did you mean 'prompt'"),
        (["generate", "wan_tiny", "seed"], "'seed' is not setting=value"),
        (["generate", "wan_tiny", "=7"], "not setting=value"),
        (["generate", "wan_tiny", "seed=7", "seed=8"], "given twice"),
        (["generate", "wan_tiny", "seed=x"], "Give a whole number"),
        (["generate", "wan_tiny", "guidance_scale=NaN"], "finite"),
        (["generate", "wan_tiny", "width=97"], "width = 97 is not legal"),
        (["generate", "wan_tiny", "cache=fixd"], "Did you mean 'fixed'"),
        (["generate", "wan_tiny", "self=1"], "Unknown setting 'self'"),
        (["generate", "wan_tiny", "model=flux_dev"], "flux_dev"),
        (["generate", "wan_tiny", "--device", "tpu"], "no device 'tpu'"),
        (["generate", "wan_tiny", "--ot", "x"], "--ot"),
        (["generate", "wan_tiny", "--out", "x.gif"], r"Cannot save as 'x\.gif'"),
        (["generate", "wan_tiny", "--out", "x.png"], r"Save it as x\.mp4"),
        (["generate", "wan_tiny", "--out", "full"], "no run folder"),
        (["generate", "wan_tiny", "--out", "file/x.mp4"], "Nothing can be written"),
        (["generate", "wan_tiny", "--out", "dir.mp4"], "is a folder"),
        (["generate", "wan_tiny", "--out", "file"], "is no run folder"),
        (["generate", "wan_tiny", "--out", "old.mp4"], "holds a result already.*--force"),
        (["generate", "wan_tiny", "--spec", "absent.mp4"], "absent.mp4"),
        (["generate", "wan_tiny", "--spec", "absent.json"], "absent.json"),
        (["generate", "wan_tiny", "--spec", "full"], "full"),
        (["generate", "wan_tiny", "--spec", "flux.json"], "is a spec of flux_dev"),
        (["models", "wan_tny"], "Did you mean 'wan_tiny'"),
        (["doctor", "now"], "now"),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_paragraph(words: list[str], match: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("full").mkdir()
    Path("full/other.txt").touch()
    Path("dir.mp4").mkdir()
    Path("file").touch()
    Path("old.mp4").touch()
    Path("flux.json").write_text(wanlab.GenerationSpec(model="flux_dev").to_json())
    before = sorted(Path().rglob("*"))
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    with pytest.raises(WanlabError, match=match):
        raise WanlabError(err)
    assert sorted(Path().rglob("*")) == before


def test_debug_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "wan_tny", "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "Did you mean 'wan_tiny'" in err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_one_line_on_a_terminal_and_few_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [Progress("denoise", step, 30, step / 10, 3 - step / 10, 0.03 * step) for step in range(30)]
    terminal, plain = Terminal(), io.StringIO()
    monkeypatch.setenv("COLUMNS", "60")
    for stream in (terminal, plain):
        line = ProgressLine(stream)
        for progress in steps:
            line.show(progress)
        line.close()
    assert terminal.getvalue().count("\n") == 1
    shown = terminal.getvalue().rstrip("\n").split("\r\x1b[K")[1:]
    assert len(shown) == 30
    assert all(len(text) < 60 for text in shown)
    assert "denoise 29/30" in shown[-1]
    assert plain.getvalue() == "denoise 0/30, 0.0 s, about 3 s left\n"
    assert [bar(fraction).count("=") for fraction in (0, 0.5, 1)] == [0, 12, 24]


def test_ctrl_c_ends_within_a_step_and_leaves_nothing(tmp_path: Path) -> None:
    words = ["generate", "wan_tiny", "num_steps=2000", "--out", "out/clip", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "wanlab.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell's child ignores it
    )
    try:
        assert process.stderr is not None
        assert next(line for line in process.stderr if line.startswith("denoise"))
        started = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
        seconds = time.monotonic() - started
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, err
    assert seconds < 15  # a step takes a quarter of a second
    assert out == ""
    assert "Traceback" not in err
    assert "Stopping" in err
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_saved_leaves_no_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise WanlabError("Disk full")

    monkeypatch.setattr("wanlab.runs.write_run", fail)
    assert main(["generate", "wan_tiny", *SHORT, "--device", "cpu"]) == 2
    assert "Disk full" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_models_says_what_is_here_and_how_to_get_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    Path("wanlab.toml").touch()
    place = Path("checkpoints/wan_t2v_1_3b")
    place.mkdir(parents=True)
    (place / "model_index.json").write_text("{}")
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    assert "wan_t2v_1_3b wan in part" in " ".join(text.split())
    assert f"in {Path.cwd() / place}" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 100 + len(str(Path.cwd()))
    assert main(["models", "--json"]) == 0
    rows = {row["id"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["wan_tiny"]["on_disk"], rows["wan_tiny"]["lacks"]) == (True, [])
    assert "vae/config.json" in rows["wan_t2v_1_3b"]["lacks"]
    assert "model_index.json" not in rows["wan_t2v_1_3b"]["lacks"]
    assert "--download wan_t2v_14b` fetches it from Wan-AI" in rows["wan_t2v_14b"]["remedy"]


def test_one_model_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "t2v_1.3B"]) == 0
    text = capsys.readouterr().out
    for words in ("wan_t2v_1_3b", "not on this machine", f"{'num_steps':19} 50", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"):
        assert words in text
    assert main(["models", "wan_tiny", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["folder"] == str(resource("assets", "wan_tiny"))
    assert found["size"] > 20e6
    assert found["settings"] == json.loads(json.dumps(wanlab.load("wan_tiny", device="cpu").default_spec.flat()))


def test_a_reader_who_leaves_early_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "wanlab.cli", "models"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")


def test_broken_finetunes_and_models_in_single_files_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    Path("wanlab.toml").touch()
    Path("finetunes").mkdir()
    Path("finetunes/bad.json").write_text("{")
    components = {"vae": {"variants": [{"path": str(Path.cwd() / "vae.safetensors")}]}}
    files = {"id": "files", "family": "wan", "architecture": {"vae": {}}, "weights": {"components": components}}
    Path("finetunes/files.json").write_text(json.dumps(files))
    assert main(["models"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "bad is broken." in text
    assert f"{Path.cwd() / 'finetunes/bad.json'} is not valid JSON" in text
    assert "vace_14b_cocktail vace no VACE Cocktail, 14B (cannot run yet)" in text
    assert main(["models", "bad"]) == 2
    assert "not valid JSON" in capsys.readouterr().err
    assert main(["models", "files"]) == 0
    assert f"lacks vae {Path.cwd() / 'vae.safetensors'}" in " ".join(capsys.readouterr().out.split())
    Path("vae.safetensors").write_bytes(b"12")
    assert main(["models", "files"]) == 0
    assert f"vae {Path.cwd() / 'vae.safetensors'}" in " ".join(capsys.readouterr().out.split())
    assert main(["models", "--json"]) == 0
    rows = {row["id"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["files"]["on_disk"], rows["files"]["size"], rows["bad"]["on_disk"]) == (True, 2, False)


def test_a_download_needs_a_model_and_says_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--download"]) == 2
    assert "needs a MODEL" in capsys.readouterr().err
    assert main(["models", "vace_14b", "--download", "--stored-as", "int9"]) == 2
    assert "Choices: auto, float, fp8, gguf, int8" in capsys.readouterr().err
    assert main(["models", "vace_14b", "--stored-as", "int8"]) == 2
    assert "Give --download too" in capsys.readouterr().err
    assert main(["models", "wan_tiny", "--download"]) == 0
    assert str(resource("assets", "wan_tiny")) in capsys.readouterr().out


def test_the_page_of_a_model_says_what_it_takes_and_the_two_ways_to_its_files(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("wanlab.toml").write_text('[checkpoints]\nwangp = "gp"\ncomfyui = "comfy"\nhub = "hub"\n')
    Path("hub").mkdir()
    assert main(["models", "vace_14b"]) == 0
    text = capsys.readouterr().out
    folder, files = text.split("\nAs a folder\n")[1].split("\nOr as single files\n")
    assert f"{Path.cwd() / 'checkpoints/vace_14b'}" in folder
    assert "lacks" not in folder
    files, searched = (" ".join(part.split()) for part in files.split("\nLooked for in\n"))
    assert f"{Path.cwd() / 'checkpoints/Wan2.1_VAE.safetensors'} from DeepBeepMeep/Wan2.1" in files
    for root in ("checkpoints (checkpoints)", "gp/ckpts (WanGP)", "comfy/models (ComfyUI)"):
        assert f"{Path.cwd() / root}: not there" in searched
    assert f"{Path.cwd() / 'hub'} (hub's cache): searched" in searched
    assert "control video (video)" in text
    assert main(["models", "vace_14b_cocktail"]) == 0
    assert "--download" not in capsys.readouterr().out
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {bool(row["remedy"]) for row in rows if row["missing"]} == {False}
    assert any(row["missing"] for row in rows)
    for name in (row["id"] for row in rows):
        takes = details(name)["takes"]
        assert takes[0] == "text (prompt)"
        assert all("(" in words for words in takes), "every mode has words"


def test_the_page_of_a_model_says_which_caches_have_constants_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    for name, words in (
        ("wan_t2v_1_3b", "magcache, teacache"),
        ("wan22_t2v_a14b", "magcache"),
        ("wan_t2v_14b_fusionix", "magcache (measured on wan_t2v_14b), teacache (measured on wan_t2v_14b)"),
        ("vace_14b", "magcache, teacache (measured on wan_t2v_14b)"),
        ("phantom_1_3b", "teacache (measured on wan_t2v_1_3b)"),
        ("vace_14b_2_2", "none"),
    ):
        assert main(["models", name]) == 0
        lines = [line.split(None, 2) for line in capsys.readouterr().out.splitlines()]
        assert [line[2] for line in lines if line[:2] == ["cache", "constants"]] == [words], name
    assert details("wan_t2v_1_3b")["caches"] == {"magcache": "wan_t2v_1_3b", "teacache": "wan_t2v_1_3b"}


def test_every_cache_that_needs_constants_is_looked_for() -> None:
    """The page knows them by a table, since asking the caches imports torch."""
    methods = {name: CACHES.get(name) for name in CACHES.names()}
    assert {method.key: name for name, method in methods.items() if issubclass(method, Static)} == _CACHES


def test_the_page_of_a_users_model_names_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("wanlab.toml").touch()
    Path("finetunes").mkdir()
    file = Path.cwd() / "finetunes" / "my.json"
    file.write_text(json.dumps({"family": "wan", "base": "wan_t2v_14b"}))
    assert main(["models", "my", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["defined_in"] == str(file)
    assert main(["models", "my"]) == 0
    assert f"defined in {file}" in " ".join(capsys.readouterr().out.split())
    assert main(["models"]) == 0
    assert "Wan 2.1 text to video, 14B (yours)" in capsys.readouterr().out
    assert details("wan_tiny")["defined_in"] == ""
