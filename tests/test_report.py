"""Reports: one page that escapes and lacks nothing, tables for papers, distances to a reference, means over seeds."""

from __future__ import annotations

import json
import math
import re
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

import wanlab
from wanlab import metrics, runs, video
from wanlab.errors import WanlabError
from wanlab.reports import _pareto
from wanlab.spec import GenerationSpec

HOSTILE = '"><script>window.broken=1</script><img src=x onerror=window.broken=1> & \\input{x} $a_b$ | `c` % #d ~^'
BASE = GenerationSpec(model="wan_tiny").with_(prompt="a kite", width=32, height=32, num_frames=5, fps=8)


def clip(level: int, noise: int = 0) -> np.ndarray:
    frames = np.full((5, 32, 32, 3), level, np.uint8)
    if noise:
        frames = frames + np.random.default_rng(noise).integers(0, 4 * noise, frames.shape).astype(np.uint8)
    return frames


def write(out: Path, spec: GenerationSpec, name: str, frames: np.ndarray | None = None, **fields: Any) -> Path:
    """A run folder as a sweep leaves it."""
    fields = {"status": "ok", "timings": {"denoise": 1.0, "total": 1.5}, "env": {"python": "3.11.7"}} | fields
    record = runs.RunRecord(id=runs.run_id(spec.id, "weights"), spec=spec.to_dict(), **fields)
    artifacts = {} if frames is None else {"video.mp4": lambda path: video.write_video(path, frames, 8.0)}
    runs.write_run(out / name, record, artifacts)
    return out / name


def plan(out: Path, points: list[tuple[GenerationSpec, dict[str, Any], str]], **fields: Any) -> None:
    made = [{"id": s.id, "settings": given, "spec": s.to_dict(), "folder": name} for s, given, name in points]
    names = list(dict.fromkeys(name for _, given, _ in points for name in given))
    runs.write_sweep(out, runs.SweepFile(base=BASE.to_dict(), names=names, points=made, **fields))


@pytest.fixture
def caches(tmp_path: Path) -> Path:
    """Two caches and two seeds; of the cached ones, one was noisier. A fifth run waits."""
    points, seconds = [], iter((4.0, 6.0, 2.0, 3.0))
    for cache in ("none", "easycache"):
        for seed in (0, 1):
            spec = BASE.with_(seed=seed, cache=cache) if cache != "none" else BASE.with_(seed=seed)
            points.append((spec, {"cache": cache, "seed": seed}, f"{cache}{seed}"))
            frames = clip(100 + 40 * seed, 0 if cache == "none" else 1 + seed)
            write(tmp_path, spec, f"{cache}{seed}", frames, timings={"total": next(seconds)})
    points.append((BASE.with_(seed=2), {"cache": "none", "seed": 2}, "none2"))
    plan(tmp_path, points, title="Caches & seeds")
    return tmp_path


class Page(HTMLParser):
    """Tags and attributes of a page, and the text outside of scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._inside = ""
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        self._inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        self.text += "" if self._inside else data

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag]


def test_the_page_holds_what_matters_without_a_script(caches: Path) -> None:
    made = wanlab.report(caches)
    assert made.path == caches / "report.html"
    page = Page(made.path)
    assert "4 of 5 runs ok · 1 pending" in page.text
    assert "Caches & seeds" in page.text
    assert len([line for line in page.named("tr") if "data-row" in line]) == 5
    assert [v["src"] for v in page.named("video")] == [
        f"{n}/video.mp4" for n in ("none0", "none1", "easycache0", "easycache1")
    ]
    for player in page.named("video"):
        assert {"controls", "loop", "muted", "playsinline", "poster", "aria-label"} <= set(player)
        assert player["preload"] == "metadata"
        assert player["poster"].startswith("data:image/jpeg;base64,")
    assert len(page.named("circle")) == 4 + 2  # the points, and two keys of colours
    for link in page.named("a"):
        if not link["href"].startswith("#"):
            assert (caches / unquote(link["href"])).exists(), link
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {a["href"][1:] for a in page.named("a") if a["href"].startswith("#")} <= ids


def test_equal_runs_give_an_equal_page(caches: Path) -> None:
    first = wanlab.report(caches, reference={"cache": "none"}).path.read_bytes()
    assert wanlab.report(caches, reference={"cache": "none"}).path.read_bytes() == first


def test_nothing_leaves_the_page(caches: Path) -> None:
    """No address with a host, and a policy that forbids all but the page's own script and files."""
    made = wanlab.report(caches)
    page = Page(made.path)
    for tag, attrs in page.tags:
        for name in ("src", "href", "poster", "action", "srcset", "data"):
            assert not re.match(r"(?i)\s*([a-z][a-z0-9+.-]*:)?//|https?:", attrs.get(name, "")), (tag, attrs)
        assert not any(name.startswith("on") or name == "style" for name in attrs), (tag, attrs)
    (policy,) = [m["content"] for m in page.named("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert re.fullmatch(r"'sha256-[\w+/=]+'", rules["script-src"])
    assert re.fullmatch(r"'sha256-[\w+/=]+'", rules["style-src"])
    assert {*rules["img-src"].split(), *rules["media-src"].split()} == {"'self'", "file:", "data:"}
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp|WebSocket|importScripts", made.path.read_text("utf-8"))


def test_hostile_texts_are_texts(tmp_path: Path) -> None:
    out = tmp_path / "a b%?#"
    spec = BASE.with_(prompt=HOSTILE)
    name = "run <b>&'%2e#?"
    error = {"type": "Error", "message": HOSTILE, "traceback_tail": HOSTILE}
    write(out, spec, name, clip(9), metrics={HOSTILE: 1.0, "word": HOSTILE}, env={HOSTILE: HOSTILE})
    write(out, BASE, "bad:name", status="failed", error=error)
    plan(out, [(spec, {"prompt": HOSTILE}, name), (BASE, {"prompt": "a kite"}, "bad:name")], title=HOSTILE)
    made = wanlab.report(out)
    page = Page(made.path)
    assert len(page.named("script")) == 2
    assert not [i for i in page.named("img") if i["src"] == "x"]
    assert page.text.count("<script>window.broken=1</script>") >= 4
    (player,) = page.named("video")
    assert (out / unquote(player["src"])).is_file()
    assert all((out / unquote(a["href"])).exists() for a in page.named("a") if not a["href"].startswith("#"))
    inside = re.search(r'<script type="application/json" id="data">(.*?)</script>', made.path.read_text(), re.S)
    assert any(HOSTILE in text for text in json.loads(inside[1])["rows"][0]["texts"])
    assert "<" not in inside[1]
    assert "<script" not in made._repr_html_()
    latex = [line for line in made.to_latex().splitlines() if not line.startswith("%")]
    assert len(latex) == 2 + 6
    for line in latex:
        assert not re.search(r"(?<!\\)[$%#_]", line.replace(r"$\infty$", "")), line
        assert r"\input" not in line
    lines = made.to_markdown().splitlines()
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines[:4]}) == 1
    assert not re.search(r"<\w", made.to_markdown())


def test_runs_that_failed_or_cannot_be_read_are_told(tmp_path: Path) -> None:
    out = tmp_path
    write(out, BASE, "good", clip(1))
    failed = write(out, BASE.with_(seed=1), "failed", status="oom", error={"type": "OutOfMemory", "message": "20 GB"})
    (failed / "log.txt").write_text("line")
    (failed / "failed.ipynb").write_text("{}")
    torn = write(out, BASE.with_(seed=2), "torn", clip(2))
    (torn / "video.mp4").write_bytes(b"no video")
    (out / "broken").mkdir()
    (out / "broken" / "run.json").write_text('{"schema": 1, "status"')
    made = wanlab.report(out)
    page = Page(made.path)
    assert "2 of 4 runs ok · 1 oom · 1 unreadable" in page.text
    assert "OutOfMemory: 20 GB" in page.text
    links = {a["href"] for a in page.named("a")}
    assert {"failed/failed.ipynb", "failed/log.txt", "failed/run.json", "failed/"} <= links
    assert len(page.named("video")) == 2
    assert str(torn / "video.mp4") in page.text


def test_notebooks_and_their_metrics(tmp_path: Path) -> None:
    points = []
    for i, score in enumerate((0.5, 0.75)):
        points.append({"id": f"p{i}", "settings": {"steps": 4 + i}, "folder": f"n{i}"})
        record = runs.RunRecord(id=f"p{i}", status="ok", metrics={"score": score}, timings={"total": 2.0 + i})
        runs.write_run(tmp_path / f"n{i}", record, {"notebook.ipynb": b"{}"})
    base = {"steps": 8, "out": "x"}
    runs.write_sweep(tmp_path, runs.SweepFile(kind="notebook", base=base, names=["steps"], points=points))
    made = wanlab.report(tmp_path)
    assert made.columns == ("status", "steps", "score", "seconds")
    assert [(r["steps"], r["score"]) for r in made.rows] == [(4, 0.5), (5, 0.75)]
    page = Page(made.path)
    assert {"n0/notebook.ipynb", "n1/notebook.ipynb"} <= {a["href"] for a in page.named("a")}
    assert "the parameters of the notebook" in page.text
    assert [line for line in made.to_latex(["steps", "score"]).splitlines() if "&" in line] == [
        r"steps & score \\",
        r"4 & 0.5000 \\",
        r"5 & 0.7500 \\",
    ]


def test_metrics_as_they_were_logged(tmp_path: Path) -> None:
    """In their order, known measures by their own names, no column of file names; quality is plotted against cost."""
    full = {"forwards_alone": 8, "realised_speedup": 2.0, "psnr": 40.5, "forwards": 10.5, "right": 3}
    logged = ({"right": 4, "psnr": 50.5, "realised_speedup": 1.0, "forwards": 20}, full)
    for i, metrics_ in enumerate(logged):
        record = runs.RunRecord(id=f"p{i}", status="ok", metrics={**metrics_, "video": "video.mp4"})
        runs.write_run(tmp_path / f"n{i}", record, {"video.mp4": lambda path: video.write_video(path, clip(9), 8.0)})
    made = wanlab.report(tmp_path)
    names = ("forwards_alone", "realised_speedup", "psnr", "forwards", "right")
    assert made.columns == ("status", *names)
    columns = {c.name: c for c in made._columns}
    assert [columns[name].better for name in names] == ["low", "high", "high", "low", "high"]
    assert columns["forwards"].text(10.5) == "10.50"
    plot = _pareto.choose(made._columns, made.entries)
    assert plot is not None
    assert (plot.x.name, plot.y.name) == ("forwards", "psnr")


def test_distances_to_a_reference(caches: Path) -> None:
    """Each cached clip against the uncached one of its seed, as decoded from the files; by an id too."""
    made = wanlab.report(caches, reference={"cache": "none"})
    rows = made.rows
    for seed in (0, 1):
        a, b = (video.read_video(caches / f"{name}{seed}" / "video.mp4")[0] for name in ("none", "easycache"))
        assert rows[2 + seed]["reference_psnr"] == metrics.psnr(a, b)
        assert rows[2 + seed]["reference_ssim"] == metrics.ssim(a, b)
        assert rows[seed]["reference_psnr"] == math.inf
    assert rows[2]["reference_psnr"] > rows[3]["reference_psnr"]
    assert rows[4]["reference_psnr"] is None
    assert Page(made.path).text.count("reference") >= 2
    assert wanlab.report(caches, reference=rows[0]["id"]).rows == rows
    assert wanlab.report(caches, reference={"cache": {"method": "none"}}).rows == rows
    assert "reference_psnr" not in wanlab.report(caches).columns


def test_distances_are_kept_by_the_files_hashes(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = wanlab.report(caches, reference={"cache": "none"}).rows
    monkeypatch.setattr(video, "read_video", lambda path: pytest.fail("decoded again"))
    assert wanlab.report(caches, reference={"cache": "none"}).rows == rows
    monkeypatch.undo()
    for text in (
        "{",
        '{"schema": 1, "pairs": {"a:b": 3}}',
        '{"schema": 9, "pairs": {}}',
        "[]",
        '{"schema": 1, "pairs": []}',
    ):
        (caches / "report_metrics.json").write_text(text)
        assert wanlab.report(caches, reference={"cache": "none"}).rows == rows
    spec = BASE.with_(seed=0, cache="easycache")
    write(caches, spec, "easycache0", clip(100, 20), timings={"total": 2.0})
    assert wanlab.report(caches, reference={"cache": "none"}).rows[2]["reference_psnr"] < rows[2]["reference_psnr"]
    (caches / "easycache0" / "video.mp4").write_bytes(b"torn")
    made = wanlab.report(caches, reference={"cache": "none"})
    assert made.rows[2]["reference_psnr"] is None
    assert "has changed since it was written" in Page(made.path).text


def test_latents_are_compared_without_torch(tmp_path: Path) -> None:
    from safetensors.numpy import save

    latents = np.random.default_rng(0).standard_normal((1, 4, 2, 4, 4)).astype(np.float32)
    other = latents + np.float32(0.1)
    for cache, values in (("none", latents), ("easycache", other)):
        spec = BASE if cache == "none" else BASE.with_(cache=cache)
        record = runs.RunRecord(id=cache, status="ok", spec=spec.to_dict())
        runs.write_run(tmp_path / cache, record, {"latents.safetensors": save({"latents": values})})
    found = {r["id"]: r["reference_latent_psnr"] for r in wanlab.report(tmp_path, reference={"cache": "none"}).rows}
    assert found == {"none": math.inf, "easycache": metrics.latent_psnr(latents, other)}
    call = f"wanlab.report({str(tmp_path)!r}, reference={{'cache': 'none'}})"
    code = f"import sys, wanlab; {call}; print('torch' in sys.modules, 'ipywidgets' in sys.modules)"
    (tmp_path / "report_metrics.json").unlink()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(wanlab.__file__).parents[1]
    )
    assert done.stdout == "False False\n", done.stderr


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ({"cashe": "none"}, "Did you mean 'cache'"),
        ({"cache": "teacache"}, "No run that ended well has"),
        ({}, "has no settings"),
        ("nonsense", "Unknown run"),
        ({"model": "wan_tiny"}, "both have the reference's settings"),
        (3, "reference = 3"),
    ],
)
def test_wrong_references_are_told(tmp_path: Path, reference: Any, says: str) -> None:
    write(tmp_path, BASE, "a", clip(1))
    write(tmp_path, BASE, "b", clip(2))
    with pytest.raises(WanlabError, match=says):
        wanlab.report(tmp_path, reference=reference)
    assert not (tmp_path / "report.html").exists()


def test_means_say_their_spread_and_number(caches: Path) -> None:
    made = wanlab.report(caches, reference={"cache": "none"})
    none, cached = made.means
    assert none.settings == {"cache": "none"}
    assert [len(g.entries) for g in made.means] == [2, 2]
    assert (none.means["seconds"].mean, none.means["seconds"].sd) == (5.0, statistics.stdev([4.0, 6.0]))
    assert (none.means["reference_psnr"].mean, none.means["reference_psnr"].num_equal) == (None, 2)
    values = [r["reference_psnr"] for r in made.rows[2:4]]
    assert cached.means["reference_psnr"].mean == statistics.fmean(values)
    lines = made.to_markdown(["cache", "seconds"], mean=True).splitlines()
    assert lines[:4] == [
        "| cache     |   n |   total (s) |",
        "| --------- | --: | ----------: |",
        "| none      |   2 | 5.00 ± 1.41 |",
        "| easycache |   2 | 2.50 ± 0.71 |",
    ]
    assert r"none & 2 & 5.00 $\pm$ 1.41 \\" in made.to_latex(["cache", "seconds"], mean=True)
    assert "Means over seeds" in Page(made.path).text


def test_markdown_and_latex_are_exact(caches: Path) -> None:
    made = wanlab.report(caches, reference={"cache": "none"})
    lines = made.to_markdown(["cache", "seed", "seconds", "reference_psnr"]).splitlines()
    psnr = [f"{r['reference_psnr']:.2f}" for r in made.rows[2:4]]
    assert lines[:7] == [
        "| cache     | seed | total (s) | PSNR (dB) |",
        "| --------- | ---: | --------: | --------: |",
        "| none      |    0 |      4.00 |         ∞ |",
        "| none      |    1 |      6.00 |         ∞ |",
        f"| easycache |    0 |      2.00 | {psnr[0]:>9} |",
        f"| easycache |    1 |      3.00 | {psnr[1]:>9} |",
        "| none      |    2 |         – |         – |",
    ]
    notes = "\n".join(lines[8:])
    assert "4 of 5 runs ok" in notes
    assert "Base settings (the base of the sweep): model wan\\_tiny" in notes
    assert "Environment: python 3.11.7." in notes
    assert [line for line in made.to_latex(["cache", "seconds", "reference_psnr"]).splitlines() if line[0] != "%"] == [
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"cache & total (s) & PSNR (dB) \\",
        r"\midrule",
        r"none & 4.00 & $\infty$ \\",
        r"none & 6.00 & $\infty$ \\",
        rf"easycache & 2.00 & {psnr[0]} \\",
        rf"easycache & 3.00 & {psnr[1]} \\",
        r"none & -- & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    with pytest.raises(WanlabError, match="Did you mean 'seconds'"):
        made.to_markdown(["secnds"])


def test_places(caches: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A page elsewhere links back; a folder without runs, one that is not there and no page are mistakes."""
    elsewhere = tmp_path_factory.mktemp("pages") / "deep" / "mine.html"
    made = wanlab.report(caches, elsewhere)
    player = Page(made.path).named("video")[0]
    assert (elsewhere.parent / unquote(player["src"])).resolve() == (caches / "none0" / "video.mp4").resolve()
    assert not (caches / "report.html").exists()
    with pytest.raises(WanlabError, match="is a page"):
        wanlab.report(caches, elsewhere.parent / "page.pdf")
    with pytest.raises(WanlabError, match="holds no runs"):
        wanlab.report(tmp_path_factory.mktemp("empty"))
    with pytest.raises(WanlabError):
        wanlab.report(caches / "missing")


def test_rows_that_were_chosen_make_a_page_of_their_own(caches: Path) -> None:
    chosen = wanlab.runs.results(caches).filter(seed=0)
    made = wanlab.report(chosen, caches / "seed0.html", reference={"cache": "none"})
    assert [(r["cache"], r["seed"]) for r in made.rows] == [("none", 0), ("easycache", 0)]
    assert made.means == []
    assert "2 of 2 runs ok" in Page(made.path).text


def test_forty_clips_stay_small(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (1, 240, 416, 3)).astype(np.uint8).repeat(2, 0)
    source = video.write_video(tmp_path / "noise.mp4", noise, 8.0)
    for i in range(40):
        record = runs.RunRecord(id=f"r{i}", status="ok", spec=BASE.with_(seed=i).to_dict(), timings={"total": 1.0 + i})
        runs.write_run(tmp_path / "runs" / f"r{i}", record, {"video.mp4": source})
    made = wanlab.report(tmp_path / "runs")
    assert len(Page(made.path).named("video")) == 40
    assert made.path.stat().st_size < 500_000


def test_the_front_is_what_no_other_run_beats() -> None:
    rng = np.random.default_rng(0)
    points = [tuple(map(float, p)) for p in rng.integers(0, 12, (60, 2))]
    for low_x in (True, False):
        for low_y in (True, False):
            found = {points[i] for i in _pareto.front(points, low_x, low_y)}
            keys = {p: (p[0] if low_x else -p[0], p[1] if low_y else -p[1]) for p in points}
            assert found == {
                p
                for p in points
                if not any(k != keys[p] and k[0] <= keys[p][0] and k[1] <= keys[p][1] for k in keys.values())
            }


def test_ticks_are_round_numbers() -> None:
    assert _pareto.ticks(0.0, 10.0) == [0, 2, 4, 6, 8, 10]
    assert [round(v, 6) for v in _pareto.ticks(21.3, 24.9)] == [22, 23, 24]
