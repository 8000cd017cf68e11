"""Faults: one error that says what to do, nothing half-written or attached, and a next run equal to a fresh one."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import wanlab
from tests.tiny import tiny_wan
from wanlab.runs import read_run

STEPS = 4
SPEC = {
    "prompt": "a red fox",
    "num_steps": STEPS,
    "width": 48,
    "height": 32,
    "num_frames": 5,
    "seed": 1,
    "attention": "math",
    "cache": {"method": "fixed", "mask": [True, False, True, True]},
}


@pytest.fixture(scope="module")
def definition(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_wan(tmp_path_factory.mktemp("wan"), experts=2)[1]


@pytest.fixture(scope="module")
def model(definition: dict[str, Any]) -> Any:
    return wanlab.load(definition, device="cpu")


@pytest.fixture(scope="module")
def fresh(definition: dict[str, Any]) -> Any:
    """The first run of a model that never saw a fault."""
    return wanlab.generate(wanlab.load(definition, device="cpu"), **SPEC)


def attached(model: Any) -> list[str]:
    """Names of the sites that carry something."""
    stacks = model.stacks.values()
    sites = [s.site for s in stacks]
    sites += [site for s in stacks for e in s for site in (e.site, *e.linears.values(), *e.attentions.values())]
    return [site.name for site in sites if site.layers]


def assert_like_fresh(model: Any, fresh: Any) -> None:
    assert attached(model) == []
    assert not model.lock.owner
    again = wanlab.generate(model, **SPEC)
    assert torch.equal(again.latents, fresh.latents)
    assert np.array_equal(again.frames, fresh.frames)


def raising(error: BaseException, at: int) -> Callable[..., None]:
    def on_step(step: int, *_: Any) -> None:
        if step == at:
            raise error

    return on_step


@contextmanager
def raising_in(module: torch.nn.Module, error: BaseException) -> Iterator[None]:
    """The module raises when it is called."""

    def hook(*_: Any) -> None:
        raise error

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_interrupted_after_any_step(model: Any, fresh: Any, kind: type[BaseException]) -> None:
    for at in range(STEPS):
        with pytest.raises(kind):
            wanlab.generate(model, **SPEC, on_step=raising(kind("stop"), at))
        assert attached(model) == []
    assert_like_fresh(model, fresh)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_interrupted_inside_any_forward(model: Any, fresh: Any, kind: type[BaseException]) -> None:
    """Deep in the network, in the middle of a step, of each expert and at each of its calls."""
    for stack in model.stacks.values():
        site = stack[1].site
        seen: list[int] = []
        with site.wrap(lambda call, *args, seen=seen, **kw: seen.append(1) or call(*args, **kw), layer="edit"):
            wanlab.generate(model, **SPEC)
        assert len(seen) >= 2
        for at in range(len(seen)):
            calls = 0

            def count(call: Any, *args: Any, at: int = at, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == at + 1:
                    raise kind("stop")
                return call(*args, **kwargs)

            with site.wrap(count, layer="edit"), pytest.raises(kind):
                wanlab.generate(model, **SPEC)
    assert_like_fresh(model, fresh)


@pytest.mark.usefixtures("interruptible")
def test_a_real_interrupt_at_any_moment(model: Any, fresh: Any) -> None:
    """SIGINT while something is attached, runs or is detached; which instruction it hits is a matter of chance."""
    seconds, interrupted = wanlab.generate(model, **SPEC).seconds["total"], 0
    main = threading.main_thread().ident
    assert main is not None
    chance = random.Random(0)
    for _ in range(30):
        timer = threading.Timer(chance.uniform(0, 1.2 * seconds), signal.pthread_kill, (main, signal.SIGINT))
        try:
            timer.start()
            try:
                wanlab.generate(model, **SPEC)
            finally:
                timer.cancel()
                timer.join()
        except KeyboardInterrupt:
            interrupted += 1
        assert attached(model) == []
        assert not model.lock.owner
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert interrupted > 5
    assert_like_fresh(model, fresh)


@pytest.mark.parametrize("part", ["text_encoder", "vae"])
def test_interrupted_while_encoding_and_decoding(model: Any, fresh: Any, part: str) -> None:
    with model.resident(part) as module:
        inner = module.decoder.mid_block if part == "vae" else module
        with raising_in(inner, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
            wanlab.generate(model, **SPEC)
    assert_like_fresh(model, fresh)


def test_nan_names_the_step(model: Any, fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = model.velocity
    for at in (0, 2):

        def poisoned(latents: Any, ctx: Any, branch: Any, at: int = at) -> Any:
            velocity = real(latents, ctx, branch)
            return velocity * float("nan") if ctx.step == at else velocity

        monkeypatch.setattr(model, "velocity", poisoned)
        with pytest.raises(wanlab.WanlabError, match=f"step {at} of {STEPS}"):
            wanlab.generate(model, **SPEC)
        monkeypatch.undo()
    assert_like_fresh(model, fresh)


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """Writes beyond `num_bytes` of any file fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", ["x.mp4", "run"])
def test_full_disk_leaves_what_was_there(fresh: Any, tmp_path: Path, name: str) -> None:
    with file_size_limit(256), pytest.raises(wanlab.WanlabError, match="space"):
        fresh.save(tmp_path / name)
    assert contents(tmp_path) == {}
    fresh.save(tmp_path / name)
    before = contents(tmp_path)
    with file_size_limit(256), pytest.raises(wanlab.WanlabError, match="space"):
        fresh.save(tmp_path / name)
    assert contents(tmp_path) == before
    assert wanlab.open_result(tmp_path / name).spec == fresh.spec


def num_calls(monkeypatch: pytest.MonkeyPatch, name: str, action: Callable[[], Any]) -> int:
    """How often `action` calls os.`name`."""
    real, calls = getattr(os, name), []
    monkeypatch.setattr(os, name, lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs))
    action()
    monkeypatch.undo()
    return len(calls)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("name", ["x.mp4", "run"])
def test_enospc_at_the_last_moment(
    fresh: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: str
) -> None:
    """At the n-th call that touches the disk, for every n: old or new, never torn."""
    fresh.save(tmp_path / name)
    before = contents(tmp_path)
    real = getattr(os, call)
    total = num_calls(monkeypatch, call, lambda: fresh.save(tmp_path / name))
    assert total >= 1
    for at in range(1, total + 1):
        calls = 0

        def full(*args: Any, at: int = at, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **kwargs)

        monkeypatch.setattr(os, call, full)
        with suppress(wanlab.WanlabError):  # a folder that cannot be synchronised is no error
            fresh.save(tmp_path / name)
        monkeypatch.undo()
        assert calls >= at
        assert not [n for n in contents(tmp_path) if ".part" in n]
        if "run.json" in os.listdir(tmp_path / name if name == "run" else tmp_path):
            assert read_run(tmp_path / name).status == "ok"
        fresh.save(tmp_path / name)
        assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_stepz": 3}, ["num_stepz", "num_steps"]),
        ({"num_steps": 0}, ["num_steps", "1"]),
        ({"guidance_scale": float("nan")}, ["guidance_scale", "nan"]),
        ({"flow_shift": float("inf")}, ["flow_shift", "inf"]),
        ({"prompt": "x" * 100_000}, ["prompt", "20"]),
        ({"sampler": "eular"}, ["eular", "euler"]),
        ({"cache": "fixd"}, ["fixd", "fixed"]),
        ({"width": 50}, ["50", "48"]),
        ({"height": 7}, ["7", "16"]),
        ({"num_frames": 6}, ["6", "5", "9"]),
        ({"memory": {"method": "resident", "on_oom": "retry"}}, ["retry", "fail"]),
        ({"dtype": "bfloat16"}, ["bfloat16", "float32"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_setting_that_cannot_be(model: Any, fresh: Any, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(wanlab.WanlabError) as error:
        wanlab.generate(model, **{**SPEC, **changes})
    assert all(word in str(error.value) for word in words), str(error.value)
    assert len(str(error.value)) < 1500
    assert attached(model) == []


def test_an_unknown_model() -> None:
    with pytest.raises(wanlab.WanlabError, match="Did you mean 'wan_t2v_14b'"):
        wanlab.load("wan_t2v_14x")


def test_a_spec_of_another_model(model: Any) -> None:
    with pytest.raises(wanlab.WanlabError, match="another"):
        wanlab.generate(model, model.spec().with_(model="another"))


def test_after_all_of_it(model: Any, fresh: Any) -> None:
    assert_like_fresh(model, fresh)
