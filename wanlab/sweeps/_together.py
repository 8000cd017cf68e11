"""Denoise several specs that begin alike: what they have in common is computed once, to the bits of single runs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Hashable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from wanlab import stages
from wanlab.caches import Cache, Cohort
from wanlab.errors import WanlabError
from wanlab.sampling import Velocity, sample
from wanlab.sites import Conditions
from wanlab.spec import GenerationSpec
from wanlab.stages import Note, TextEmbeddings
from wanlab.sweeps._checkpoint import Checkpoint
from wanlab.sweeps._node import Node
from wanlab.sweeps._variant import Variant, partition
from wanlab.watch import Interrupts, Watch

Finished = tuple[str, Tensor, dict[str, Any]]
"""A variant's key, its clean latents as `denoise` returns them, and what ran, as `denoise_recorded` does.

`ran` counts forwards as the variant alone would have run them; "shared" says how many steps were taken together, with
whom, and in "seconds" how long its steps took ("denoise") and those of them that were taken together ("shared").
"""


def denoise_together(
    model: Any,
    variants: Mapping[str, GenerationSpec],
    text: TextEmbeddings,
    conditions: Conditions,
    *,
    watch: Watch | None = None,
    checkpoint: Checkpoint | None = None,
) -> Together:
    """Denoise specs of one `group_key`; steps that several take alike run once. Latents equal those of `denoise` in
    every bit.

    An iterator over (key, latents, ran), each as soon as it is there, so that the caller can go on with it; between two
    nothing is attached or held, and the iterator may be left at any time. `text` and `conditions` are those of all: the
    negative prompt's embeddings are in `text` if the guidance of one needs them. `watch` gets `on_step` for every step
    that runs, and its `check` stops the run. With a `checkpoint` states are kept on the way, and found again; its keys
    have to stand for the same specs. Raises WanlabError for specs that cannot share, and where something was attached
    to the model by hand.
    """
    return Together(model, [Variant(model, k, s) for k, s in variants.items()], text, conditions, watch, checkpoint)


class Together(Iterator[Finished]):
    """The iterator of `denoise_together`: depth first, so that few states are kept.

    After an exception, an interrupt or a cancelled watch, `lost` names the variants that it happened to; `next` goes on
    with the others.
    """

    def __init__(
        self,
        model: Any,
        variants: list[Variant],
        text: TextEmbeddings,
        conditions: Conditions,
        watch: Watch | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self._model, self._text, self._conditions = model, text, conditions
        self._watch, self._checkpoint = watch, checkpoint
        self._ready: deque[Finished] = deque()
        self._given: list[str] = []
        self.executed = 0
        """Forwards that were run so far, one for each branch."""
        self.lost: tuple[str, ...] = ()
        """Keys of the variants that the last exception ended."""
        _check(model, variants, text)
        self._pending = self._starts(variants)

    def __next__(self) -> Finished:
        self._drop()
        self.lost = ()
        if not self._ready and self._pending:
            self._run()
        if not self._ready:
            raise StopIteration
        found = self._ready.popleft()
        self._given.append(found[0])
        return found

    def _drop(self) -> None:
        """What was given before has been taken care of, or the caller would not ask for more."""
        if self._checkpoint is not None and self._given:
            self._checkpoint.drop(self._given)
        self._given = []

    def _starts(self, variants: list[Variant]) -> list[Node]:
        """Where to begin: at what was saved, else at the noise."""
        found, fresh = list[Node](), list[Variant]()
        by_state: dict[int, tuple[Any, list[Variant]]] = {}
        for variant in variants:
            state = None if self._checkpoint is None else self._checkpoint.load(variant.key)
            if state is None:
                fresh.append(variant)
            else:
                by_state.setdefault(id(state), (state, []))[1].append(variant)
        for state, members in by_state.values():
            node = Node.of_state(state, members, self._model)
            found += [] if node is None else [node]
            fresh += [v for v in members if node is None or v not in node.variants]
        first: dict[Hashable, list[Variant]] = {}
        for variant in sorted(fresh, key=variants.index):
            first.setdefault(variant.signatures[0], []).append(variant)
        states: dict[
            float, Any
        ] = {}  # the noise is that of all: a hundred first steps that differ begin with one tensor
        for members in first.values():
            head = members[0]
            if head.start not in states:
                states[head.start] = stages.begun(self._model, head.spec, head.sampler, self._conditions, None)
            found.append(Node(states[head.start], members, Note(self._model)))
        return sorted(found, key=lambda node: len(node.variants), reverse=True)  # the last is taken first

    # Running

    @torch.no_grad()
    def _run(self) -> None:
        """Run until variants are finished; what is then attached or held is given back."""
        model, spec = self._model, self._pending[-1].variants[0].asked
        check = None if self._watch is None else self._watch.check
        with Interrupts() as interrupts, stages.held(model, spec, interrupts, check), ExitStack() as stack:
            check_bare(model)
            stack.enter_context(model.lock.sampling())
            stack.enter_context(model.unloading(spec.memory.unload))
            stack.enter_context(stages.equipped(model, spec))
            if check is not None:
                stack.enter_context(model.checking(check))
            while not self._ready and self._pending:
                self._visit(interrupts)

    def _visit(self, interrupts: Interrupts) -> None:
        """Take the last node to where its variants differ, or to the end."""
        node = self._pending.pop()
        parts = partition(node.variants, node.state.index)
        if len(parts) > 1:  # the smallest goes first, so that few wait while the largest runs
            self._pending += [node.fork(part) for part in sorted(parts, key=len, reverse=True)]
            return
        self.lost = tuple(variant.key for variant in node.variants)
        try:
            self._pending += self._segment(node, interrupts)
        except Exception:
            if self._checkpoint is not None:  # they begin anew if they are run again
                self._checkpoint.drop(list(self.lost))
            raise
        self.lost = ()
        if node.state.index < node.variants[0].num_steps:
            self._pending.append(node)
        else:
            self._ready.extend(self._finished(node))

    def _segment(self, node: Node, interrupts: Interrupts) -> list[Node]:
        """Run the steps that the variants take together; returns nodes of those that parted."""
        model, head = self._model, node.variants[0]
        node.to(model.device)
        caches, text = node.executors(), stages.shared_text(self._text, node.state)
        velocity = stages.velocity_of(model, head.spec, head.sampler, text, self._conditions)
        try:
            with Cohort(list(caches.values())).attach(model), model.on_begin(node.note), interrupts.let_through():
                parted = self._steps(node, velocity, caches)
            node.learn(caches)
        finally:
            for cache in caches.values():
                cache.reset()
                cache.siblings.clear()
        return parted

    def _steps(self, node: Node, velocity: Velocity, caches: Mapping[str, Cache]) -> list[Node]:
        """Run steps up to the next one that the variants take differently, or to one in which some parted."""
        head, told = node.variants[0], None if self._watch is None else self._watch.on_step
        on_step = stages.finished(self._model, self._conditions, told)
        while True:
            before = node.copy()
            before.learn({name: cache for name, cache in caches.items() if cache.siblings})
            step, started = node.state.index, time.perf_counter()
            node.state = sample(head.sampler, velocity, node.state, stop=step + 1, on_step=on_step)
            self.executed += _computed(head, step, caches)
            parted = [before.only(cache.parted) for cache in caches.values() if cache.parted]
            node.leave([variant for other in parted for variant in other.variants])
            node.took(time.perf_counter() - started)
            is_last = step + 1 == head.num_steps
            if not is_last:
                self._save(node, caches)
            if is_last or parted or len(partition(node.variants, step + 1)) > 1:
                return parted

    def _save(self, node: Node, caches: Mapping[str, Cache]) -> None:
        """Keep the state that a node has now, where that is due."""
        if self._checkpoint is not None and self._checkpoint.due(node.state.index):
            saved = node.copy()
            saved.learn(caches)
            self._checkpoint.save(node.state.index, saved.to_state(), [variant.key for variant in node.variants])

    def _finished(self, node: Node) -> Iterator[Finished]:
        latents = self._model.finish(node.state.latents, self._conditions)
        for variant in node.variants:
            cache = node.executor(variant)
            ran = node.note.ran(variant.asked, cache)
            if cache is not None:
                cache.reset()
            (number, company), (denoise, together) = node.shared, node.seconds
            ran["shared"] = {
                "prefix_steps": number,
                "with": [key for key in company if key != variant.key],
                "seconds": {"denoise": denoise, "shared": together},
            }
            yield variant.key, latents, ran


def _computed(variant: Variant, step: int, caches: Mapping[str, Cache]) -> int:
    """Forwards of a step whose blocks ran, those of one batch one by one; all caches say the same."""
    for cache in caches.values():
        return cache.computed(step)
    return sum(name.count("+") + 1 for name in variant.forwards[step])


def _check(model: Any, variants: list[Variant], text: TextEmbeddings) -> None:
    """Raise WanlabError for variants that cannot share, and for text that one of them lacks."""
    if not variants:
        raise WanlabError("There is nothing to denoise", remedy="Give at least one variant")
    check_bare(model)
    other = next((v for v in variants if v.group != variants[0].group), None)
    if other is not None:
        differ = ", ".join(variants[0].spec.diff(other.spec)) or "what is compiled"
        raise WanlabError(
            f"{variants[0].key} and {other.key} cannot share steps: they differ in {differ}",
            remedy="Put specs of one sweeps.group_key together",
        )
    lacking = [v.key for v in variants if v.needs_negative and "negative_prompt" not in text]
    if lacking:
        raise WanlabError(
            f"The guidance of {lacking[0]} needs the negative prompt's embeddings, and the text has none",
            remedy=f"Encode the text with the spec of {lacking[0]}; the others can use it too",
        )


def check_bare(model: Any) -> None:
    """Raise WanlabError where something was attached by hand: some variants would see it otherwise than others.

    What is attached while another thread generates is its own; ask again once the model is held.
    """
    if not model.lock.held_elsewhere and (found := model.attachments()):
        raise WanlabError(
            f"{len(found)} things are attached to {model.id} by hand, such as {found[0]}",
            remedy="Remove them first: a sweep's results are told apart by their specs alone",
        )
