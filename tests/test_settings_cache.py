"""WanGP's step skipping in settings: what is told, what a model without constants does, and that the rule runs."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from wanlab import GenerationSpec, caches, models, open_settings
from wanlab.caches.fixed import Fixed
from wanlab.compat._cache import METHODS, SPEEDUPS
from wanlab.errors import WanlabError
from wanlab.registry import CACHES
from wanlab.settings import Settings

KEYS = ("skip_steps_cache_type", "skip_steps_multiplier", "skip_steps_start_step_perc")
SMALL = {"type": "WanGP v8.6", "model_type": "t2v_1.3B", "settings_version": 2.74, "prompt": "a kite", "seed": 7}


def asking(word: str, speedup: float = 2, start: float = 0, **others: Any) -> dict[str, Any]:
    return {**SMALL, **dict(zip(KEYS, (word, speedup, start), strict=True)), **others}


def said(settings: Settings) -> tuple[Any, ...]:
    """What WanGP would read; nothing may warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = settings.to_wangp()
    return tuple(found[key] for key in KEYS)


def test_a_file_and_back(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(asking("mag", 2.25, 10)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings = open_settings(tmp_path / "a.json")
        assert settings.not_yet == {}
        assert settings.spec.cache.method == "magcache"
        again = open_settings(settings.with_(seed=8).save(tmp_path / "b.json", form="wangp"))
        alone = open_settings(Settings(settings.spec).save(tmp_path / "c.json", form="wangp"))
    assert again.spec == settings.spec.with_(seed=8)
    assert alone.spec == settings.spec
    assert said(again) == said(alone) == ("mag", 2.25, 10)
    assert [type(value) for value in said(alone)] == [str, float, int]


def test_methods_and_speedups_are_those_of_the_caches() -> None:
    for method in METHODS.values():
        field = CACHES.get(method).Options.model_fields["speedup"]
        assert (field.metadata[0].ge, field.metadata[1].le) == SPEEDUPS


@pytest.mark.parametrize("word", ["spectrum", "first_block", "another"])
def test_caches_that_are_not_there_are_told_and_kept(word: str) -> None:
    settings = Settings.of(asking(word, 2, 10))
    assert settings.spec.cache.method == "none"
    assert settings.not_yet == dict.fromkeys(KEYS, f"cache {word} is not there")
    assert said(settings) == said(settings.with_(num_steps=9)) == (word, 2, 10)
    assert set(Settings.of(asking(word, 1.75)).not_yet) == {KEYS[0]}, "defaults are not told"
    chosen = settings.with_(cache={"method": "teacache", "speedup": 1.5})
    assert (chosen.not_yet, said(chosen)) == ({}, ("tea", 1.5, 0))
    none = settings.with_(cache="none")
    assert (none.not_yet, said(none)[0]) == ({}, "")


@pytest.mark.parametrize("word", ["tea", "mag"])
def test_speedups_and_starts_out_of_range_are_told(word: str) -> None:
    for speedup in (1.5, 2.5):
        assert Settings.of(asking(word, speedup, 100)).spec.cache.options["speedup"] == speedup
    for wrong in (1.49, 2.51, 0, 0.08, -1):
        settings = Settings.of(asking(word, wrong))
        assert (settings.spec.cache.method, set(settings.not_yet)) == ("none", set(KEYS[:2]))
        assert f"{wrong:g}" in settings.not_yet[KEYS[1]]
        assert said(settings) == (word, wrong, 0)
    for wrong in (-1, 101):
        settings = Settings.of(asking(word, 2, wrong))
        assert (settings.spec.cache.method, set(settings.not_yet)) == ("none", {KEYS[0], KEYS[2]})
    assert Settings.of(asking("", 9, 900)).not_yet == {}, "nothing is asked for"


@pytest.mark.parametrize(
    ("cache", "written", "lost"),
    [
        ({"method": "teacache", "threshold": 0.1}, "", ["cache,", "cache.threshold"]),
        ({"method": "magcache", "threshold": 0.1, "max_skip": 4}, "", ["cache,", "cache.max_skip"]),
        ({"method": "fixed", "mask": [True, False] * 25}, "", ["cache,", "cache.mask"]),
        ({"method": "magcache", "speedup": 2.0, "max_skip": 4}, "mag", ["cache.max_skip"]),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("before", ["", "tea", "mag", "spectrum"])
def test_what_wangp_cannot_say_is_told(cache: dict[str, Any], written: str, lost: list[str], before: str) -> None:
    settings = Settings.of(asking(before)).with_(cache=cache)
    with pytest.warns(UserWarning, match="WanGP has no setting for") as caught:
        found = settings.to_wangp()
    assert len(caught) == 1
    assert all(name in str(caught[0].message) for name in lost)
    assert ("cache," in str(caught[0].message)) == ("cache," in lost)
    assert found[KEYS[0]] == written
    assert settings.not_yet == {}


def test_a_model_without_constants_opens_and_is_refused_when_it_runs() -> None:
    for model_type, word in (("t2v_2_2", "tea"), ("flux", "mag"), ("flux", "tea")):
        spec = Settings.of({**asking(word), "model_type": model_type}).spec
        assert spec.cache.method == METHODS[word]
        model = models.describe(spec)
        with pytest.raises(WanlabError, match=r"needs constants|depends on content"):
            caches.check(model, spec.resolve(model))
    assert Settings.of({**asking("tea"), "model_type": "nobody"}).spec.cache.method == "teacache"


def test_settings_saved_before_a_spec_could_say_it(tmp_path: Path) -> None:
    """The spec stays what it was, and WanGP's keys too; opening tells that they differ."""
    path = Settings.of(asking("mag")).save(tmp_path / "a.json")
    document = json.loads(path.read_text())
    document["spec"]["cache"] = {"method": "none", "options": {}}
    path.write_text(json.dumps(document))
    with pytest.warns(UserWarning, match="saved without a cache"):
        old = open_settings(path)
    assert old.spec.cache.method == "none"
    assert set(old.not_yet) == {KEYS[0]}
    assert said(old) == ("mag", 2, 0)
    for changed in (old.with_(seed=8), old.with_(cache="none")):
        assert (changed.not_yet, said(changed)[0]) == ({}, ""), "a change makes them follow the spec"
    chosen = old.with_(cache={"method": "magcache", "speedup": 1.5})
    assert (chosen.not_yet, said(chosen)) == ({}, ("mag", 1.5, 0))


def test_the_rule_runs() -> None:
    """30 steps, twice as quick: half of them compute, the first three and the next one among them."""
    settings = Settings.of(asking("mag", 2, 10, num_inference_steps=30))
    spec: GenerationSpec = settings.spec
    model = models.describe(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", caches.ConstantsWarning)
        cache = caches.prepared(model, spec.resolve(model))
    assert isinstance(cache, Fixed)
    mask = cache.options.mask
    assert (len(mask), sum(mask)) == (30, 15)
    assert all(mask[:4])
    assert "".join("01"[x] for x in mask).find("000") == -1, "two in a row at most"
