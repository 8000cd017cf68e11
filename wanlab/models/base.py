"""What all families share: parts, stacks, the clock, sizes, noise, and the check of a spec against the loaded model."""

from __future__ import annotations

import abc
import functools
import html
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from wanlab.catalog import Definition
from wanlab.errors import WanlabError
from wanlab.models._folder import EXPERTS
from wanlab.models._given import check_given, check_needs
from wanlab.models._media import Geometry, Media
from wanlab.models._networks import Networks
from wanlab.models._offers import Offers, offers
from wanlab.models._parts import Stacks
from wanlab.models._preview import look
from wanlab.models._resolve import resolve
from wanlab.registry import GUIDANCE, SAMPLERS
from wanlab.sites import NO_CONDITIONS, Branch, Conditions, Handle, Stack, StepContext, Streams, skipping
from wanlab.spec import GenerationSpec
from wanlab.weights import Checkpoint

TextEmbeddings = dict[str, dict[str, Tensor]]
"""{"prompt": {"embeds": (B, L, D), ...}, "negative_prompt": {...}}; the second only where guidance needs it."""
Check = Callable[[float], None]
"""Called between the parts of a stage with the share (0 to 1) that is done; may raise to stop."""
FITTED = ("image", "last_image", "video", "video_2", "pose_video", "face_video", "keyframes")
"""Media that `fit` brings to the video's size; references are padded, whatever it says."""
START_SIGMA = 0.9
"""Noise level below which pure noise is no start: the network would see more noise than it is told of."""


class Model(Networks):
    """A loaded checkpoint: networks by name, stacks of blocks by expert, and the stages that need its weights.

    A family overrides the forward in three parts (`embed`, the stack, `head`), `encode_text` and `decode_pixels`.
    """

    max_text_tokens: ClassVar[int] = 512
    nag: ClassVar[bool] = False
    """Whether cross attention takes a negative prompt of its own: normalized attention guidance, `Branch.nag`."""
    starts_from_video: ClassVar[bool] = False
    """Whether a video is what the noise is mixed with; else denoising_strength and masking_strength mean nothing."""
    references_are_frames: ClassVar[bool] = False
    """Whether the forward reads `Conditions.reference_frames`, which guidance may then leave out of a branch."""
    forces_frames: ClassVar[bool] = False
    """Whether latent frames may be at different steps (diffusion forcing); else ar_step and causal_block_size mean
    nothing."""

    def __init__(self, definition: Definition, checkpoint: Checkpoint, device: torch.device, chosen: Any) -> None:
        super().__init__(definition, checkpoint, device, chosen)
        self.defaults: Mapping[str, Any] = definition.spec
        """Settings that `spec` starts from: the definition's, with the user's own over them where `load` found some."""
        self.stacks = Stacks(self.parts, self.experts_present, self._stack)
        self._hooks: list[Callable[[StepContext], None]] = []

    @functools.cached_property
    @abc.abstractmethod
    def geometry(self) -> Geometry:
        """Strides and legal sizes, from the configurations alone."""

    @functools.cached_property
    def accepts(self) -> tuple[str, ...]:
        """Leaves of the spec's media part that this model uses."""
        return ()

    @functools.cached_property
    def needs(self) -> tuple[str, ...]:
        """Those of `accepts` without which it cannot run."""
        return ()

    @property
    def unused_settings(self) -> frozenset[str]:
        """Settings by dotted name that this family refuses to change, besides those that `offers` finds by itself."""
        return frozenset()

    @property
    def takes_guidance(self) -> bool:
        """Whether the network is told the guidance scale; the rules of the other kind are refused."""
        return False

    @property
    @abc.abstractmethod
    def text_tokens(self) -> int:
        """Length that text is padded or cut to unless the spec says otherwise."""

    # The spec

    @functools.cached_property
    def default_spec(self) -> GenerationSpec:
        """The definition's settings, the same on every machine."""
        return GenerationSpec.of({**self.definition.spec, "model": self.id})

    def spec(self, **changes: Any) -> GenerationSpec:
        """A full spec: the model's defaults, the user's own over them, then `changes`.

        An alias given as `model` becomes the id.
        """
        return self.canonical(GenerationSpec.of({**self.defaults, "model": self.id}, **changes))

    def canonical(self, spec: GenerationSpec) -> GenerationSpec:
        """The spec with this model's id in place of an alias, so that both have one `spec.id`.

        Raises WanlabError for a spec of another model.
        """
        if spec.model == self.id:
            return spec
        if spec.model not in self.definition.aliases:
            raise WanlabError(
                f"The spec is for model {spec.model!r}, and {self.id!r} is loaded",
                remedy=f"wanlab.load({spec.model!r}), or model.spec(...) for this one",
            )
        return spec.with_(model=self.id)

    def resolve(self, spec: GenerationSpec) -> GenerationSpec:
        """The spec with every `auto` and None made concrete; raises WanlabError where it disagrees with this model."""
        return resolve(self, spec)

    @property
    def offers(self) -> Offers:
        """What of a spec this model can follow now: settings without use, legal words, bounds. For forms."""
        return offers(self)

    def sigmas(self, spec: GenerationSpec) -> Tensor:
        """Noise levels, float64 on the CPU, one more than steps, falling: the spec's own, else the schedule's.

        A denoising_strength below 1 leaves out the first levels, as diffusers' WanVideoToVideoPipeline does.
        """
        sampling = spec.sampling
        if sampling.sigmas is not None:
            return torch.tensor(sampling.sigmas, dtype=torch.float64)
        levels = self._schedule(SAMPLERS.get(sampling.sampler), spec)
        return levels[sampling.num_steps - sampling.num_run :]

    def _schedule(self, sampler: Any, spec: GenerationSpec) -> Tensor:
        """The family's schedule, by one of those that the sampler's class has."""
        sigmas: Tensor = sampler.flow_sigmas(spec.sampling.num_steps, spec.sampling.flow_shift)
        return sigmas

    def timestep(self, sigma: float | Tensor) -> float | Tensor:
        """What the network is told for a noise level; samplers that truncate it do so themselves."""
        return sigma * 1000

    def experts(self, spec: GenerationSpec) -> list[str]:
        """The expert of each step: the second one below the noise level `expert_boundary`."""
        boundary = spec.sampling.expert_boundary
        levels = self.sigmas(spec)[:-1].tolist()
        if boundary is None or len(self.experts_present) == 1:
            return [self.experts_present[0]] * len(levels)
        return [EXPERTS[0] if sigma >= boundary else EXPERTS[1] for sigma in levels]

    def frame_steps(self, spec: GenerationSpec) -> Tensor | None:
        """Where latent frames do not step together: which of the sampler's steps each takes, (rows, T) on the CPU.

        -1 while a frame waits, num_steps when it is clean; a row is a step of the run. None where all step together.
        """
        return None

    def latent_shape(self, spec: GenerationSpec) -> tuple[int, int, int, int]:
        """(C, T, H, W) of the latents of a resolved spec."""
        g, size = self.geometry, spec.size
        frames = (size.num_frames - 1) // g.frame_stride + 1
        return g.channels, frames, size.height // g.pixel_stride, size.width // g.pixel_stride

    def initial_noise(self, spec: GenerationSpec, batch: int = 1) -> Tensor:
        """Noise (B, C, T, H, W), float32 on the model's device: drawn on the CPU, as diffusers' pipeline draws it.

        Raises WanlabError as `check_start` does.
        """
        self.check_start(spec)
        generator = torch.Generator("cpu").manual_seed(spec.sampling.seed)
        return torch.randn((batch, *self.latent_shape(spec)), generator=generator).to(self.device)

    def check_start(self, spec: GenerationSpec) -> None:
        """Raise WanlabError for explicit sigmas that start too low for pure noise; latents of one's own may."""
        sigmas, from_noise = spec.sampling.sigmas, spec.media.video is None or not self.starts_from_video
        if sigmas is not None and sigmas[0] < START_SIGMA and from_noise:
            raise WanlabError(
                f"sigmas start at {sigmas[0]:g}, and a generation starts from pure noise, which is at 1",
                remedy=f"Start at {START_SIGMA} to 1, or pass denoise latents that are noised to {sigmas[0]:g}",
            )

    def check_given(self, spec: GenerationSpec, conditions: Conditions, latents: Tensor) -> None:
        """Raise WanlabError for conditions or latents that are not of this resolved spec."""
        check_given(self, spec, conditions, latents)

    def needs_conditions(self, spec: GenerationSpec) -> bool:
        """Whether a run of the resolved spec reads conditions, so that `NO_CONDITIONS` would be another run."""
        return any(getattr(spec.media, name) != field.default for name, field in type(spec.media).model_fields.items())

    def start(self, spec: GenerationSpec, conditions: Conditions, noise: Tensor) -> Tensor:
        """The latents of the first step, from pure noise (B, C, T, H, W) and what the conditions know.

        A video to start from is brought to the first noise level: (1 - sigma) * video + sigma * noise.
        """
        if not self.starts_from_video or spec.media.video is None:
            return noise
        assert conditions.known is not None, "checked by `check_given`"
        sigma = float(self.sigmas(spec)[0])
        return (1 - sigma) * conditions.known.to(noise) + sigma * noise

    def place(self, latents: Tensor, ctx: StepContext, conditions: Conditions) -> Tensor:
        """The latents with what `conditions` keep put in, at the step's noise level; before each forward."""
        if conditions.known is None or conditions.free is None:
            return latents
        if conditions.kept_steps is not None and ctx.step >= conditions.kept_steps:
            return latents
        known, free = conditions.known.to(latents), conditions.free.to(latents)
        if conditions.noise is not None:
            known = (1 - ctx.sigma) * known + ctx.sigma * conditions.noise.to(latents)
        return (1 - free) * known + free * latents

    def finish(self, latents: Tensor, conditions: Conditions) -> Tensor:
        """The clean latents of the result: what is kept to the end put in, frames of reference pictures taken out."""
        if conditions.known is None or conditions.free is None or conditions.kept_steps is not None:
            return latents
        known, free = conditions.known.to(latents), conditions.free.to(latents)
        return (1 - free) * known + free * latents

    # The clock and the forward

    def on_begin(self, fn: Callable[[StepContext], None]) -> Handle:
        """Call `fn(ctx)` before each forward until the handle is removed."""
        self.lock.check("attach a clock")
        hook = functools.partial(fn)  # its own identity: the same function may be attached twice
        self._hooks.append(hook)
        return Handle(functools.partial(self._forget, hook))

    def _forget(self, hook: Callable[[StepContext], None]) -> None:
        self.lock.settle()
        self._hooks = [other for other in self._hooks if other is not hook]

    def begin(self, ctx: StepContext) -> None:
        """Tell every attachment where the run is; called before each forward, and a moment to stop."""
        self.check()
        for hook in tuple(self._hooks):
            hook(ctx)

    def attachments(self) -> list[str]:
        """Everything attached now, "transformer.blocks.3.attn1: edit"; reads no network.

        A generation attaches what its spec asks for and detaches it again, so before and after one this lists what
        was attached by hand, which no spec records.
        """
        hooks = [getattr(hook.func, "__qualname__", type(hook.func).__name__) for hook in self._hooks]
        sites = [text for stack in self.stacks.built() for text in stack.attachments()]
        return [*(f"on_begin: {name}" for name in hooks), *sites]

    def _stack(self, expert: str) -> Stack:
        stack = self._build_stack(expert)
        stack.before_block = self.check
        stack.outputs = self.outputs
        stack.enclose(functools.partial(self._forward, stack))
        return stack

    @abc.abstractmethod
    def _build_stack(self, expert: str) -> Stack:
        """The stack of an expert; reads its network."""

    @abc.abstractmethod
    def embed(self, latents: Tensor, ctx: StepContext, branch: Branch) -> Streams:
        """Latents (B, C, T, H, W), time and text as token streams."""

    @abc.abstractmethod
    def head(self, streams: Streams, ctx: StepContext) -> Tensor:
        """The velocity (B, C, T, H, W) from the last block's streams."""

    @torch.no_grad()
    def velocity(self, latents: Tensor, ctx: StepContext, branch: Branch) -> Tensor:
        """One forward of `ctx.expert`: embed, stack, head. Returns the network's dtype, shaped like `latents`."""
        with self.resident(ctx.expert):
            site = self.stacks[ctx.expert].forward
            assert site is not None, "made with the stack"
            return cast(Tensor, site(latents, ctx, branch))

    def _forward(self, stack: Stack, latents: Tensor, ctx: StepContext, branch: Branch) -> Tensor:
        streams = self.embed(latents, ctx, branch)
        with skipping(stack, branch.skip_blocks):
            streams = stack.run(streams)
        return self.head(streams, ctx)

    # Text, conditions, media

    @abc.abstractmethod
    def _encode(self, prompt: str, num_tokens: int) -> dict[str, Tensor]:
        """Embeddings of one prompt, padded or cut to `num_tokens`."""

    @abc.abstractmethod
    def _count_tokens(self, prompt: str) -> int:
        """Tokens of the whole prompt as `_encode` reads it, before it is cut."""

    def count_tokens(self, spec: GenerationSpec) -> dict[str, int]:
        """Tokens of every prompt that the spec's guidance uses, and "limit": what lies beyond it is not read.

        {"prompt": n, "negative_prompt": n, "limit": m}
        """
        spec = self.resolve(spec)
        counts = {name: self._count_tokens(prompt) for name, prompt in self._prompts(spec).items()}
        return {**counts, "limit": spec.text.max_text_tokens}

    def _prompts(self, spec: GenerationSpec) -> dict[str, str]:
        """The prompts that the guidance of a resolved spec uses, by their names."""
        rule = GUIDANCE.get(spec.guidance.method)(spec.guidance, spec.guidance.bind())
        is_needed = rule.needs_negative(len(self.experts(spec)))
        return {"prompt": spec.text.prompt, **({"negative_prompt": spec.text.negative_prompt} if is_needed else {})}

    @torch.no_grad()
    def encode_text(self, spec: GenerationSpec) -> TextEmbeddings:
        """Embeddings of the prompt and, where the spec's guidance uses it, of the negative prompt.

        Prompts of more than max_text_tokens tokens are cut, as in diffusers' pipelines, with one warning.
        """
        spec = self.resolve(spec)
        limit = spec.text.max_text_tokens
        counts = self.count_tokens(spec)
        if cut := [f"{name} has {n} tokens" for name, n in counts.items() if n > limit]:
            warnings.warn(f"Text is cut: {' and '.join(cut)}, and {self.id} reads the first {limit}", stacklevel=3)
        return {name: self._encode(prompt, limit) for name, prompt in self._prompts(spec).items()}

    def encode_conditions(self, spec: GenerationSpec, window: int | None = None, previous: Any = None) -> Conditions:
        """What steers the network besides text; nothing for text-to-video and text-to-image.

        Raises WanlabError where the spec lacks a picture or video that this model needs.
        """
        self._refuse_windows(window, previous)
        self.check_media(self.resolve(spec))
        return NO_CONDITIONS

    def _refuse_windows(self, window: int | None, previous: Any) -> None:
        if window is not None or previous is not None:
            raise WanlabError("Windows of a longer video cannot be made yet", remedy="Leave window and previous out")

    def check_media(self, spec: GenerationSpec) -> None:
        """Raise WanlabError for a spec that lacks what this model needs, or gives media that do not go together."""
        check_needs(self, spec)
        if spec.media.mask is not None and spec.media.video is None:
            raise WanlabError("A mask says where a video may change, and there is none", remedy="Give video too")
        is_kept = spec.media.mask is not None and spec.sampling.masking_strength > 0
        if self.starts_from_video and spec.media.video is not None and not is_kept and float(self.sigmas(spec)[0]) == 1:
            raise WanlabError(
                "The video has no effect: all of it is taken back to noise",
                remedy="Give denoising_strength below 1, e.g. 0.8, or a mask of what may change",
            )
        fitted = [name for name in FITTED if name in self.accepts]
        if spec.media.fit != "crop" and not any(getattr(spec.media, name) for name in fitted):
            raise WanlabError(f"fit = {spec.media.fit!r} fits nothing here", remedy=f"Give {' or '.join(fitted)} too")

    @abc.abstractmethod
    def decode_pixels(self, latents: Tensor, check: Check | None = None) -> Tensor:
        """Pixels (B, 3, T, H, W) in [-1, 1] from latents (B, C, T, H, W); `check(share done)` between parts."""

    @torch.no_grad()
    def decode(self, spec: GenerationSpec, latents: Tensor, check: Check | None = None) -> Media:
        """The media of one sample. `check(share)` is called between parts with the share done; it may raise to stop.

        Raises WanlabError for a batch of more than one, and for latents that are not finite.
        """
        spec = self.resolve(spec)
        if latents.ndim != 5 or latents.shape[0] != 1:
            raise WanlabError(f"decode takes one sample, not {tuple(latents.shape)}", remedy="Pass latents[i : i + 1]")
        if not bool(latents.isfinite().all()):
            raise WanlabError("The latents hold NaN or infinity", remedy="Use fewer extremes: guidance, dtype, steps")
        if check is not None:
            check(0.0)
        pixels = self.decode_pixels(latents.to(self.device), check)[0].float()
        unit = (pixels * 0.5 + 0.5).clamp_(0, 1).mul_(255).round_()  # as diffusers writes pictures
        return Media(unit.to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu().numpy(), float(spec.size.fps))

    def preview(self, latents: Tensor) -> np.ndarray | None:
        """A cheap look at latents (1, C, T, h, w), without the VAE: (T, h, w, 3) uint8 by the definition's linear maps.

        None where the definition has no `latent_rgb`. One small copy from the device; about 1 ms.
        """
        maps = self.constants.get("latent_rgb")
        return None if maps is None else look(latents, maps)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r}, {self.device}, {_word(self.dtype)})"

    def _repr_html_(self) -> str:
        title = html.escape(self.definition.title or self.id)
        rows = "".join(
            f'<tr><td style="text-align:left">{html.escape(p.name)}</td>'
            f"<td>{p.num_bytes / 1e6:,.1f} MB</td>"
            f"<td>{'loaded' if p.loaded else 'on disk'}</td></tr>"
            for p in self.parts.values()
        )
        return f"<b>{title}</b> ({html.escape(self.id)}) on {self.device}, {_word(self.dtype)}<table>{rows}</table>"


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
