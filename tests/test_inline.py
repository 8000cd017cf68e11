"""How results show: a link beside the notebook, a copy within a budget, always something; no prompt runs."""

from __future__ import annotations

import base64
import re
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.test_notebook import kernel
from tests.test_result import make, names
from wanlab import inline, runs
from wanlab.errors import WanlabError
from wanlab.result import Result, open_result

NAME = "a-kite_seed0_0123456789ab"
HOSTILE = '<img src=x onerror="alert(1)"> \'"><script>alert(2)</script> &lt;'


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Own budget, and no notebook that the tests themselves may run in."""
    monkeypatch.setattr(inline, "BUDGET", inline.Budget())
    for name in ("JPY_SESSION_NAME", "JPY_PARENT_PID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the notebook that this kernel seems to belong to."""
    folder = tmp_path / "lab"
    folder.mkdir()
    kernel(monkeypatch, folder / "x.ipynb")
    return folder


def tags(page: str) -> list[tuple[str, dict[str, str | None]]]:
    """Every opening tag of a page, as a browser would read it."""
    found: list[tuple[str, dict[str, str | None]]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))  # type: ignore[method-assign]
    parser.feed(page)
    return found


def source(page: str) -> str:
    """Where the one picture or clip of a page comes from."""
    (found,) = [attributes["src"] for tag, attributes in tags(page) if tag in ("img", "video")]
    assert found is not None
    return found


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_the_first_display_saves_beside_the_notebook(lab: Path) -> None:
    clip = make()
    page = clip._repr_html_()
    folder = lab / "runs" / NAME
    assert source(page) == f"runs/{NAME}/video.mp4"
    assert clip.path == folder
    assert names(folder) == ["latents.safetensors", "run.json", "video.mp4"]
    opened = open_result(folder)
    assert opened.spec == clip.spec
    assert torch.equal(opened.latents, clip.latents)
    assert len(page) < 20_000
    (video,) = [attributes for tag, attributes in tags(page) if tag == "video"]
    assert str(video["poster"]).startswith("data:image/jpeg;base64,")
    assert {"controls", "loop", "muted", "playsinline"} <= set(video)


def test_a_second_display_writes_nothing(lab: Path) -> None:
    clip = make()
    page = clip._repr_html_()
    times = {path: path.stat().st_mtime_ns for path in lab.rglob("*")}
    assert clip._repr_html_() == page
    same = make()
    assert source(same._repr_html_()) == source(page)
    assert source(open_result(lab / "runs" / NAME)._repr_html_()) == source(page)
    assert {path: path.stat().st_mtime_ns for path in lab.rglob("*")} == times


@pytest.mark.parametrize(
    "changes",
    [
        {"frames": np.full((3, 16, 16, 3), 9, np.uint8)},
        {"latents": torch.zeros(1, 4, 1, 2, 2)},
        {"latents": None},
        {"fps": 4.0},
        {"spec": make(guidance_scale=2.0).spec},
        {"record": make(guidance_scale=2.0).record},
        {"frames": np.zeros((1, 16, 16, 3), np.uint8)},
    ],
    ids=["frames", "latents", "no latents", "fps", "spec", "record", "image"],
)
def test_another_sample_of_that_name_gets_a_number(lab: Path, changes: dict[str, Any]) -> None:
    first = make()
    assert source(first._repr_html_()) == f"runs/{NAME}/video.mp4"
    before = {path: path.read_bytes() for path in (lab / "runs" / NAME).iterdir()}
    other = replace(first, **changes)
    assert source(other._repr_html_()).startswith(f"runs/{NAME}-2/")
    assert source(replace(first, **changes)._repr_html_()).startswith(f"runs/{NAME}-2/")
    assert {path: path.read_bytes() for path in (lab / "runs" / NAME).iterdir()} == before


@pytest.mark.parametrize("damage", ["gone", "changed", "no record", "a file"])
def test_what_no_longer_holds_the_sample_is_left_alone(lab: Path, damage: str) -> None:
    clip = make()
    clip._repr_html_()
    folder = lab / "runs" / NAME
    if damage == "gone":
        (folder / "video.mp4").unlink()
    elif damage == "changed":
        (folder / "video.mp4").write_bytes(b"something else")
    elif damage == "no record":
        (folder / "run.json").write_text("{")
        (folder / "video.mp4").touch()
    else:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        folder.write_text("mine")
    before = {path: path.read_bytes() for path in (lab / "runs").rglob("*") if path.is_file()}
    assert source(clip._repr_html_()) == f"runs/{NAME}-2/video.mp4"
    assert {path: path.read_bytes() for path in before} == before
    assert open_result(clip.path or "").spec == clip.spec


def test_frames_that_were_replaced_are_shown(lab: Path) -> None:
    clip = make()
    clip._repr_html_()
    clip.frames = np.full((3, 16, 16, 3), 200, np.uint8)
    assert source(clip._repr_html_()) == f"runs/{NAME}-2/video.mp4"
    assert open_result(lab / "runs" / f"{NAME}-2").frames.mean() > 190


def test_files_that_the_page_reaches_are_linked_as_they_are(lab: Path) -> None:
    saved = make()
    saved.save(lab / "clips" / "my kite.mp4")
    assert source(saved._repr_html_()) == "clips/my%20kite.mp4"
    opened = open_result(make().save(lab / "mine"))
    assert source(opened._repr_html_()) == "mine/video.mp4"
    image = open_result(make(num_frames=1).save(lab / "kite.png"))
    assert source(image._repr_html_()) == "kite.png"
    assert names(lab) == ["clips", "kite.png", "mine"]


def test_what_lies_elsewhere_is_copied_to_the_notebook(lab: Path, tmp_path: Path) -> None:
    for place in (tmp_path / "elsewhere", tmp_path / "x.mp4", lab / ".hidden"):
        opened = open_result(make().save(place))
        assert opened.path == place
        assert source(opened._repr_html_()).startswith("runs/")
        assert opened.path.is_relative_to(lab / "runs")
    assert len(names(lab / "runs")) == 2, "the folders hold the same; the mp4 has no latents and went through H.264"


def test_a_file_that_was_written_over_is_not_taken_for_the_sample(lab: Path) -> None:
    first = make()
    first.save(lab / "x.mp4")
    replace(first, frames=noise(3, 16, 16)).save(lab / "x.mp4")
    assert source(first._repr_html_()) == f"runs/{NAME}/video.mp4"


def test_without_a_notebook_the_page_holds_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for clip, kind in ((make(), "video/mp4"), (make(num_frames=1), "image/png")):
        assert source(clip._repr_html_()).startswith(f"data:{kind};base64,")
        with pytest.raises(WanlabError, match=r"no notebook.*embed=True"):
            clip.show(embed=False)
    assert list(tmp_path.iterdir()) == []


def test_embedding_and_linking_on_request(lab: Path) -> None:
    clip = make()
    assert source(clip.show(embed=True).page).startswith("data:video/mp4")
    assert names(lab) == [], "an embedded copy writes nothing"
    assert source(clip.show(embed=False).page).startswith("runs/")
    assert repr(clip.show()) == repr(clip)


def test_a_copy_is_small() -> None:
    y, x = np.mgrid[0:480, 0:832]
    frames = np.stack([np.stack([x // 4 + t, y // 2, x // 8 + y // 8], -1).astype(np.uint8) for t in range(9)])
    page = replace(make(), frames=frames).show(embed=True).page
    data = base64.b64decode(source(page).split(",")[1])
    assert len(data) < 40_000
    assert 'width="832" height="480"' in page, "the browser enlarges it to the clip's size"
    tall = replace(make(), frames=noise(1, 960, 100).repeat(2, 0)).show(embed=True).page
    assert 'width="50" height="480"' in tall


def test_too_large_a_clip_is_a_picture_and_says_why(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inline, "EMBED_BYTES", 3000)
    large = replace(make(), frames=noise(4, 64, 64))
    page = large.show(embed=True).page
    assert source(page).startswith("data:image/jpeg")
    assert "too much to embed" in page
    assert "not saved" in page
    large.save(lab / "x.mp4")
    links = [attributes["href"] for tag, attributes in tags(large.show(embed=True).page) if tag == "a"]
    assert set(links) == {"x.mp4"}
    assert source(large.show().page) == "x.mp4"


def test_the_budget_is_the_kernels_and_a_cell_that_runs_again_gives_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = make()
    size = len(source(clip.show(embed=True).page)) * 3 // 4
    monkeypatch.setattr(inline, "BUDGET", inline.Budget())
    monkeypatch.setattr(inline, "BUDGET_BYTES", 3 * size)
    shell: SimpleNamespace = kernel(monkeypatch)

    def shows(cell: str, run: str) -> bool:
        shell.get_parent = lambda: {"header": {"msg_id": run}, "metadata": {"cellId": cell}}
        page = clip.show(embed=True).page
        assert source(page).startswith("data:video" if "used up" not in page else "data:image/jpeg")
        return "used up" not in page

    assert [shows("a", f"run {i}") for i in range(9)] == [True] * 9
    assert [shows("b", "first"), shows("b", "first"), shows("b", "first")] == [True, True, False]
    assert [shows("c", "x"), shows("b", "second"), shows("c", "y"), shows("d", "z")] == [False, True, True, False]


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow above 100 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_shows_a_copy_and_says_so(lab: Path) -> None:
    clip = make()
    with full_disk():
        page = clip._repr_html_()
        with pytest.raises(WanlabError, match="Disk full"):
            clip.show(embed=False)
    assert source(page).startswith("data:video/mp4")
    assert "Disk full" in page
    assert names(lab / "runs") == [], "no empty folder is left"
    assert source(clip._repr_html_()).startswith("runs/"), "there is room again"


def test_a_place_that_cannot_be_written_shows_a_copy_and_says_so(lab: Path) -> None:
    (lab / "runs").write_text("a file")
    page = make()._repr_html_()
    assert source(page).startswith("data:video/mp4")
    assert "Cannot write" in page
    assert names(lab) == ["runs"]


def test_runs_may_be_a_link_to_a_larger_disk(lab: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (lab / "runs").symlink_to(tmp_path / "disk")
    assert source(make()._repr_html_()) == f"runs/{NAME}/video.mp4"
    assert names(tmp_path / "disk") == [NAME]


@pytest.mark.parametrize("embed", [True, False])
def test_nothing_that_a_result_says_becomes_a_tag(lab: Path, embed: bool) -> None:
    clip = make()
    clip = replace(
        clip,
        spec=clip.spec.with_(prompt=HOSTILE, negative_prompt=HOSTILE),
        record=clip.record.with_(
            id=HOSTILE,
            timings={HOSTILE: 1.0},
            env={"platform": HOSTILE, "commit": HOSTILE, "gpu": [HOSTILE]},
            resolved={"ran": {HOSTILE: HOSTILE, "cache": {"reused": HOSTILE}}, "spec": clip.spec.to_dict()},
        ),
    )
    page = clip.show(embed=embed).page
    found = tags(page)
    assert {tag for tag, _ in found} <= set(
        "figure video figcaption br small details summary p code a b div table tbody tr th td".split()
    )
    assert not {name for _, attributes in found for name in attributes if name.startswith("on")}
    assert "color:" not in page, "black on white and white on black are the theme's to choose"
    assert re.fullmatch(r"[a-z0-9_-]+", clip.path.name) if clip.path else embed


@pytest.mark.parametrize("ran", [None, [], "x", {"cache": 3, "forwards": [1]}, {"cache": {}}])
def test_a_record_of_elsewhere_does_not_break_the_page(ran: Any) -> None:
    clip = make()
    page = replace(clip, record=clip.record.with_(resolved={"ran": ran, "spec": 7})).show().page
    assert "Settings and timings" in page


def test_what_is_told_below_the_picture(lab: Path) -> None:
    clip = make(prompt="a kite " + "over dunes " * 60, seed=7, guidance_scale=2.5)
    clip = replace(
        clip,
        record=clip.record.with_(
            timings={"denoise": 1.25, "total": 2.0},
            peak_bytes=3_000_000_000,
            env={"torch": "2.13", "commit": "ab" * 20},
        ),
    )
    page = clip._repr_html_()
    caption = page[page.index("<figcaption>") : page.index("</figcaption>")]
    assert "…" in caption
    assert len(caption) < 500
    assert "wan_tiny · 16×16 · 3 frames at 8/s · 30 steps · seed 7 · made in 2.0 s" in caption
    own, _, usual = page.partition("as the model has them")
    assert all(text in own for text in ("guidance_scale", "2.5", "1.25", "3.00 GB", "2.13", ">sdpa<", clip.spec.id))
    assert "ab" * 6 + "<" in own
    assert "strip_prompt" in usual
    assert "guidance_scale<" not in usual
    assert page.count("<details>") == 2
    assert len(page) < 20_000
    assert len(repr(clip)) < 400
    assert "\n" not in repr(clip)


def test_a_model_that_nobody_ships_is_measured_against_bare_settings() -> None:
    clip = make()
    own, _, usual = replace(clip, spec=clip.spec.with_(model="mine")).show().page.partition("as the model has them")
    assert "num_frames" in usual
    assert "mine" in own


@pytest.mark.parametrize(("num", "shown"), [(8, 8), (1, 1), (20, 9), (3, 3)])
def test_a_strip_shows_frames_from_first_to_last(num: int, shown: int) -> None:
    strip = replace(make(), frames=noise(9, 16, 24)).strip(num)
    found = [attributes for tag, attributes in tags(strip.page) if tag == "img"]
    assert len(found) == shown
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in found)
    assert ">0<" in strip.page
    assert (">8<" in strip.page) == (shown > 1)
    assert f"{shown} frame" in repr(strip)


def test_a_strip_of_no_frames_is_refused() -> None:
    for num in (0, -1, 2.0, True):
        with pytest.raises(WanlabError, match="num ="):
            make().strip(num)  # type: ignore[arg-type]


def test_folders_are_named_after_what_they_hold() -> None:
    def name(prompt: str, run: str = "0123456789ab", **changes: Any) -> str:
        return runs.folder_name(make(prompt=prompt, **changes).spec, run)

    assert name("A Red Circle, moves right!", seed=7) == "a-red-circle-moves-right_seed7_0123456789ab"
    assert name("Über Café") == "uber-cafe_seed0_0123456789ab"
    assert name("猫が走る") == name("") == name("secret", strip_prompt=True) == "seed0_0123456789ab"
    words = name("one two three four five six seven eight nine ten").split("_")[0]
    assert words == "one-two-three-four-five-six-seven-eight"
    assert name("x" * 500).split("_")[0] == "x" * 40
    assert name("../..\\con\0\n/etc") == "con-etc_seed0_0123456789ab"
    assert name("a", run="../../b c\0" + "d" * 99) == "a_seed0_bc" + "d" * 10


def test_new_folders_never_meet(tmp_path: Path) -> None:
    made = [runs.new_folder(tmp_path / "runs", "x") for _ in range(3)]
    assert [(folder.name, is_new) for folder, is_new in made] == [("x", True), ("x-2", True), ("x-3", True)]
    found, is_new = runs.new_folder(tmp_path / "runs", "x", lambda folder: folder.name == "x-2")
    assert (found.name, is_new) == ("x-2", False)
    (tmp_path / "file").write_text("")
    for root, name in ((tmp_path / "file", "x"), (tmp_path, "../x"), (tmp_path, "")):
        with pytest.raises(WanlabError):
            runs.new_folder(root, name)


def test_kept_results_are_found_again(tmp_path: Path) -> None:
    """What a queue or a command does with each result that it made."""
    clip: Result = make()
    folder = clip.keep(tmp_path / "runs")
    assert folder == clip.path == tmp_path / "runs" / NAME
    assert make().keep(tmp_path / "runs") == folder
    assert make(strip_prompt=True).keep(tmp_path / "runs").name == "seed0_0123456789ab"
