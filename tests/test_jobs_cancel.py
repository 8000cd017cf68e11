"""Cancelling in every stage: between the blocks of every network and between tensors on disk; the model as before."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import wanlab
from tests.tiny import tiny_flux, tiny_wan
from wanlab import pipeline
from wanlab.models import _wan_vae
from wanlab.watch import Cancelled, Watch

SPEC = {"prompt": "a red fox", "num_steps": 2, "width": 48, "height": 32, "seed": 1}
STAGES = ["text", "denoise", "decode"]


class Stopper(Watch):
    """Counts its checks by stage and cancels itself at one of them."""

    def __init__(self, stage: str = "", at: int = -1) -> None:
        super().__init__()
        self.stage, self.at = stage, at
        self.counts: Counter[str] = Counter()
        self.on_check: Callable[[], None] = lambda: None

    def check(self) -> None:
        here = self.progress.stage
        if (here, self.counts[here]) == (self.stage, self.at):
            self.cancel()
        self.counts[here] += 1
        self.on_check()
        super().check()


@pytest.fixture(scope="module", params=["wan", "flux"])
def definition(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    make = {"wan": tiny_wan, "flux": tiny_flux}[request.param]
    return make(tmp_path_factory.mktemp(request.param))[1]


@pytest.fixture(scope="module")
def model(definition: dict[str, Any]) -> Any:
    return wanlab.load(definition, device="cpu")


@pytest.fixture(scope="module")
def fresh(definition: dict[str, Any]) -> Any:
    return wanlab.generate(wanlab.load(definition, device="cpu"), **SPEC)


def run(model: Any, watch: Watch) -> Any:
    with watch:
        return pipeline.run(model, model.spec(**SPEC), watch)


def hooks(model: Any) -> int:
    parts = (part.module for part in model.parts.values() if part.loaded)
    return sum(len(module._forward_pre_hooks) for part in parts for module in part.modules())


def assert_like_fresh(model: Any, fresh: Any) -> None:
    assert hooks(model) == 0
    assert model._check is None
    assert model.attachments() == []
    assert not model.lock.owner
    again = wanlab.generate(model, **SPEC)
    assert torch.equal(again.latents, fresh.latents)
    assert np.array_equal(again.frames, fresh.frames)


@contextmanager
def layers_called(note: Callable[[], None]) -> Iterator[None]:
    """Calls `note` for each linear and convolution that any module of the process runs."""

    def hook(module: nn.Module, *_: Any) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            note()

    handle = nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def test_at_most_one_block_runs_between_two_checks(model: Any, fresh: Any) -> None:
    """In every stage: no more than the layers of one block, with what stands before and after all blocks."""
    watch, since, gaps = Stopper(), [0], []

    def count() -> None:
        since[0] += 1

    def check() -> None:
        gaps.append((since[0], watch.progress.stage))
        since[0] = 0

    watch.on_check = check
    with layers_called(count):
        result = run(model, watch)
    assert np.array_equal(result.frames, fresh.frames)
    assert sum(n for n, _ in gaps) > 100, "the stages run through modules"
    assert max(gaps)[0] <= 14, sorted(gaps)[-3:]
    for stage in STAGES:
        assert watch.counts[stage] >= 8, watch.counts


@pytest.mark.parametrize("stage", STAGES)
def test_cancelled_at_any_check_the_model_is_as_before(model: Any, fresh: Any, stage: str) -> None:
    counting = Stopper()
    run(model, counting)
    total = counting.counts[stage]
    for at in {*range(0, total, 5), 1, 2, total - 1}:
        watch = Stopper(stage, at)
        with pytest.raises(Cancelled, match=stage):
            run(model, watch)
        assert watch.counts[stage] == at + 1, "it went on"
        assert hooks(model) == 0
        if at % 3 == 0:
            assert_like_fresh(model, fresh)
    assert_like_fresh(model, fresh)


def test_cancelled_in_post_and_between_stages(model: Any, fresh: Any) -> None:
    for stage in ("conditions", "post"):
        with pytest.raises(Cancelled):
            run(model, Stopper(stage, 0))
        assert_like_fresh(model, fresh)


def test_cancelled_while_weights_are_read(definition: dict[str, Any], fresh: Any) -> None:
    """Before any tensor: no part stays half-read, and the next run reads it whole."""
    counting = Stopper()
    run(wanlab.load(definition, device="cpu"), counting)
    for stage in STAGES:
        model = wanlab.load(definition, device="cpu")
        names = {"text": model.encoders, "denoise": ("transformer",), "decode": ("vae",)}[stage]
        tensors = sum(
            len(part.module.state_dict())
            for part in wanlab.load(definition, device="cpu").parts.values()
            if part.name in names
        )
        assert counting.counts[stage] > tensors, "a check for each tensor"
        for at in (0, 1, 5, 11):
            with pytest.raises(Cancelled):
                run(model, Stopper(stage, at))
            assert not model.parts[names[0]].loaded
        assert_like_fresh(model, fresh)


@pytest.mark.parametrize("way", ["frames", "tiles", "slices"])
def test_cancelled_in_other_ways_of_decoding(
    definition: dict[str, Any], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    model = wanlab.load(definition, device="cpu")
    vae = model.parts["vae"].module
    if way == "frames":
        monkeypatch.setattr(_wan_vae, "WHOLE_CLIP_BYTES", 0)
    elif way == "slices":
        vae.enable_slicing()
    else:
        vae.enable_tiling()
        vae.tile_sample_min_height = vae.tile_sample_min_width = 16
        vae.tile_sample_stride_height = vae.tile_sample_stride_width = 12
        vae.tile_sample_min_size, vae.tile_latent_min_size = 16, 8
    counting = Stopper()
    fresh = run(model, counting)
    total = counting.counts["decode"]
    assert total >= 8
    for at in (0, total // 2, total - 1):
        with pytest.raises(Cancelled):
            run(model, Stopper("decode", at))
        assert not any(torch.is_tensor(x) for x in getattr(vae, "_feat_map", None) or ()), "memory of frames is kept"
        assert_like_fresh(model, fresh)


def test_another_thread_is_not_asked(model: Any) -> None:
    """Who uses a network by hand while a job that is to stop runs with it, is not stopped in its place."""

    def cancelled() -> None:
        raise Cancelled

    failed: list[BaseException] = []

    def by_hand() -> None:
        try:
            model.encode_text(model.spec(**SPEC))
        except Cancelled as error:
            failed.append(error)

    with model.lock.hold("a test"), model.checking(cancelled):
        thread = threading.Thread(target=by_hand)
        thread.start()
        thread.join(60)
        with pytest.raises(Cancelled):
            model.encode_text(model.spec(**SPEC))
    assert failed == []
    assert hooks(model) == 0
