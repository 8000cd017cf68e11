"""The doctor: what it finds here, what it calls broken, and that a broken section stays one line."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import wanlab
from wanlab.cli import main
from wanlab.doctor import Fact, Report, Section, _machine, _methods, _notebooks, _packages, _proof, _workspace, examine
from wanlab.errors import WanlabError
from wanlab.registry import ATTENTION

ROOT = Path(__file__).resolve().parent.parent
MODULES = {  # packages of the extras -> the module that they are imported as, where it is called otherwise
    "imageio-ffmpeg": "imageio_ffmpeg",
    "flip-evaluator": "flip_evaluator",
    "opencv-python-headless": "cv2",
}


@pytest.fixture(scope="module")
def report() -> Report:
    return examine(generate=False)


def by_name(facts: Any) -> dict[str, Fact]:
    return {fact.name: fact for fact in facts}


def test_this_installation_is_well(report: Report) -> None:
    assert report.ok, report
    facts = {section.title: by_name(section.facts) for section in report.sections}
    assert facts["Installation"]["wanlab"].data["version"] == wanlab.__version__
    assert facts["Installation"]["packages"].data["torch"] == metadata.version("torch")
    assert "jupyterlab" not in facts["Installation"]["packages"].data
    assert facts["Notebooks"]["packages"].data["jupyterlab"] == metadata.version("jupyterlab")
    assert facts["Notebooks"]["kernel"].status == "ok"
    assert set(facts["Attention backends"]) == set(ATTENTION.names())
    assert facts["Attention backends"]["sdpa"].data["error"] < 1e-5
    assert set(facts["Optional packages"]) == set(_methods.PURPOSES)
    assert facts["Video and pictures"]["H.264"].data["psnr"] > 40
    assert facts["Models"]["wan_tiny"].status == "ok"
    assert facts["Models"]["not here"].status == facts["Models"]["not yet"].status == "absent"
    assert "wan_t2v_14b" in facts["Models"]["not here"].data["models"]


def test_the_text_is_narrow_and_says_what_to_do(report: Report) -> None:
    narrow = [line for line in str(report).splitlines() if max(map(len, line.split()), default=0) < 60]
    assert max(map(len, narrow)) <= 100
    for section in report.sections:
        for fact in section.facts:
            assert fact.remedy or fact.status in ("ok", "note"), fact
    assert str(report).endswith("Everything required works.")
    assert report._repr_html_().startswith("<pre>Installation")


def test_it_ends_with_a_generation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    proof = text[text.index("\nProof\n") :]
    assert "wan_tiny made 9 frames of 96x96" in proof
    assert "the same spec gave the same frames" in " ".join(proof.split())
    assert proof.endswith("Everything required works.\n")


def test_json_holds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--no-generate", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["failed"]) == (True, [])
    assert [section["title"] for section in found["sections"]][:2] == ["Installation", "Device"]


def test_a_section_that_crashes_is_one_line_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash() -> Any:
        yield Fact("first", "ok", "found before")
        raise RuntimeError("the driver\nis upset")

    monkeypatch.setattr(_machine, "device", crash)
    assert main(["doctor", "--no-generate"]) == 1
    out, err = capsys.readouterr()
    assert "found before" in out
    assert "RuntimeError: the driver\n" in out
    assert "upset" not in out
    assert "Traceback" not in out + err
    assert "Everything" not in out
    assert "Not well: Device (error)." in out
    assert "\nModels\n" in out


def test_without_a_required_package_it_still_reports(tmp_path: Path) -> None:
    """It imports nothing but the standard library by itself, and says what to install."""
    code = (
        "import sys; sys.modules['pydantic'] = None; import wanlab.doctor; "
        "assert not {'torch', 'numpy', 'packaging'} & set(sys.modules); "
        "from wanlab.cli import main; sys.exit(main(['doctor', '--no-generate']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert "-> pip install --force-reinstall pydantic" in done.stdout
    assert "H.264" in done.stdout
    assert done.stderr == ""


def test_an_old_and_a_missing_package_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.1.0", "av": None}
    genuine = _packages.installed
    monkeypatch.setattr(_packages, "installed", lambda need: versions.get(need.name, genuine(need)))
    found = by_name(_machine.installation())
    assert found["torch"].status == found["av"].status == "failed"
    assert found["torch"].text == "2.1.0 is here, >=2.11 is needed"
    assert found["av"].text == "av is missing"
    assert found["av"].remedy == 'pip install --upgrade "av>=15"'
    assert found["packages"].status == "note"


def test_gpus_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's answers of a machine that has one; nothing is computed there."""
    answers = {
        "is_available": True,
        "device_count": 1,
        "mem_get_info": (79_000_000_000, 85_000_000_000),
        "get_device_capability": (9, 0),
        "get_device_name": "NVIDIA H100 80GB HBM3",
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    found = by_name(_machine.device())
    assert found["cuda:0"].text == "NVIDIA H100 80GB HBM3, 79.0 GB of 85.0 GB free, capability 9.0, CUDA 12.8"
    assert found["auto"].data == {"device": "cuda", "dtype": "bfloat16"}
    assert "gpu" not in found


@pytest.mark.parametrize(
    ("driver", "cuda", "status", "words"),
    [
        (None, None, "note", "no NVIDIA driver"),
        ("/bin/nvidia-smi", None, "absent", "built without CUDA"),
        ("/bin/nvidia-smi", "12.8", "absent", "built for CUDA 12.8 and finds no GPU"),
    ],
)
def test_no_gpu_is_explained(
    driver: str | None, cuda: str | None, status: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr("shutil.which", lambda name: driver)
    found = by_name(_machine.device())
    assert found["gpu"].status == status
    assert words in found["gpu"].text
    assert bool(found["gpu"].remedy) == (status == "absent")


@pytest.mark.parametrize(("name", "status"), [("sdpa", "failed"), ("extra", "absent")])
def test_a_backend_that_cannot_run_says_why(name: str, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise WanlabError("sage needs sageattention", remedy='pip install "wanlab[attention]"')

    monkeypatch.setitem(ATTENTION._entries, name, refuse)
    found = by_name(_methods.attention())
    assert (found[name].status, found[name].text) == (status, "sage needs sageattention")
    assert found[name].remedy == 'pip install "wanlab[attention]"'
    assert found["math"].status == "ok"


@pytest.mark.parametrize("change", [lambda x: x * 1.1, lambda x: x.flip(1), lambda x: x * float("nan")])
def test_a_backend_that_gives_wrong_numbers_fails(change: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = ATTENTION.get("sdpa")
    monkeypatch.setitem(ATTENTION._entries, "extra", lambda *a: change(genuine(*a)))
    found = by_name(_methods.attention())
    assert found["extra"].status == "failed"
    assert "wrong numbers" in found["extra"].text
    assert found["sdpa"].status == "ok"


def test_a_backend_may_change_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = ATTENTION.get("sdpa")

    def careless(q: Any, k: Any, v: Any, site: Any, mask: Any) -> Any:
        out = genuine(q, k, v, site, mask)
        k.zero_()
        return out

    monkeypatch.setitem(ATTENTION._entries, "careless", careless)
    assert {fact.status for fact in _methods.attention()} == {"ok"}


def test_extras_are_described_and_planned_ones_are_really_unused() -> None:
    """When a method starts to import a package, its extra leaves `PLANNED`."""
    assert set(_methods.PURPOSES) == set(_packages.optional())
    planned = [need.name for extra in _methods.PLANNED for need in _packages.optional()[extra]]
    modules = {MODULES.get(name, name) for name in planned}
    imported = set()
    for path in (ROOT / "wanlab").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported |= {name.split(".")[0] for name in names}
    assert not imported & modules


def test_an_extra_is_looked_up_and_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"mmgp": "3.8.1", "sageattention": "2.0.0", "imageio-ffmpeg": "0.6", "flip-evaluator": None}
    genuine = _packages.installed
    monkeypatch.setattr(_packages, "installed", lambda need: versions.get(need.name, genuine(need)))
    found = by_name(_methods.extras())
    assert (found["memory"].status, found["memory"].data) == ("ok", {"mmgp": "3.8.1"})
    assert found["attention"].text.startswith("sageattention 2.0.0 is not ==1.0.6")
    assert found["metrics"].text.startswith("flip-evaluator not installed")
    assert found["metrics"].remedy == 'pip install "wanlab[metrics]"'
    assert "mmgp" not in sys.modules


def test_an_installed_wheel_is_asked_through_its_metadata(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from_checkout = _packages.required(), _packages.optional()
    project = [f"{need}" for need in from_checkout[0]]
    for extra, needs in from_checkout[1].items():
        project += [f'{need}; extra == "{extra}"' for need in needs]
    monkeypatch.setattr(_packages, "_PROJECT", tmp_path / "pyproject.toml")
    monkeypatch.setattr(metadata, "requires", lambda _: project)
    monkeypatch.setattr(metadata, "metadata", lambda _: _Extras(from_checkout[1]))
    assert [need.name for need in _packages.required()] == [need.name for need in from_checkout[0]]
    found = {extra: [need.name for need in needs] for extra, needs in _packages.optional().items()}
    assert found == {extra: [need.name for need in needs] for extra, needs in from_checkout[1].items()}


class _Extras(dict[str, Any]):
    def get_all(self, _: str) -> list[str]:
        return list(self)


def test_a_kernel_of_another_python_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

    def found(program: str) -> Fact:
        spec = KernelSpec(argv=[program, "-m", "ipykernel_launcher"], resource_dir=str(tmp_path))
        monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda *_: spec)
        return _notebooks._kernel()

    assert found(sys.executable).status == found("python").status == "ok"
    wrong = found("/usr/lib/other/bin/python3")
    assert wrong.status == "failed"
    assert "ipykernel install" in wrong.remedy


def test_the_workspace_is_counted_and_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "user's data folder" in by_name(_workspace.workspace())["root"].text
    (tmp_path / "wanlab.toml").write_text('[checkpoints]\npaths = ["models"]\n')
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "media").mkdir()
    (tmp_path / "models" / "a").mkdir(parents=True)
    facts = list(_workspace.workspace())
    found = by_name(facts)
    assert found["root"].data == {"root": str(tmp_path)}
    assert "holds wanlab.toml" in found["root"].text
    assert found["runs"].text.endswith("1 runs")
    assert "media, 0 pictures" in found["media"].text
    assert "finetunes" in found["not yet"].text
    assert [fact.text.rpartition(", ")[2] for fact in facts if fact.name == "checkpoints"] == ["not there", "1 models"]
    (tmp_path / "wanlab.toml").write_text("[checkpoint]\n")
    section = next(s for s in examine(generate=False).sections if s.title == "Workspace")
    assert section.facts[-1].status == "failed"
    assert "Did you mean 'checkpoints'" in section.facts[-1].remedy


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda clip, n: replace(clip, frames=np.full_like(clip.frames, 128)), "one colour"),
        (lambda clip, n: replace(clip, latents=clip.latents * float("nan")), "NaN"),
        (lambda clip, n: replace(clip, frames=clip.frames ^ np.uint8(n)), "another clip"),
        (lambda clip, n: replace(clip, latents=clip.latents + n), "another clip"),
    ],
)
def test_a_proof_that_proves_nothing_fails(
    change: Callable[..., Any], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = wanlab.generate(wanlab.load("wan_tiny", device="cpu"), prompt="a red circle", num_steps=1, num_frames=5)
    clips = iter([change(clip, 0), change(clip, 1)])
    monkeypatch.setattr(wanlab, "generate", lambda *_: next(clips))
    with pytest.raises(WanlabError, match=match):
        list(_proof.proof())


def test_a_verdict_names_what_is_wrong() -> None:
    bad = Section("Device", (Fact("cuda:0", "failed", "no memory", "Free some"), Fact("cpu", "note", "x")))
    report = Report((bad,))
    assert not report.ok
    assert report.verdict == "Not well: Device (cuda:0)."
    assert "  FAILED  cuda:0  no memory\n" in str(report)
    assert " " * 18 + "-> Free some" in str(report)
