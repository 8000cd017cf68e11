"""The parts of a GenerationSpec: every setting that decides an outcome, with its bounds and its description."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from wanlab.errors import WanlabError
from wanlab.registry import ATTENTION, CACHES, GUIDANCE, SAMPLERS
from wanlab.spec.media_ref import MediaRef
from wanlab.spec.method_part import MethodPart, NameIn
from wanlab.spec.part import HashDefault, Part

Prompt = Annotated[str, Field(max_length=20_000)]
DType = Literal["auto", "float32", "bfloat16", "float16"]
Pixels = Annotated[int, Field(ge=1, le=16_384)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class WeightsSpec(Part):
    """How the weights are held; fixed when a model is loaded."""

    dtype: DType = "auto"
    """Number format of the diffusion network. auto: float32 on a CPU, bfloat16 on a GPU that has it, else float16."""
    quantisation: Literal["none"] = "none"
    """How linear weights are compressed."""
    vae_dtype: DType = "auto"
    """Number format of the VAE; auto as for `dtype`."""
    stored_as: Annotated[Literal["auto", "float", "int8", "fp8", "gguf"], HashDefault("auto")] = "auto"
    """Which file of a checkpoint that comes in several is read: 16- or 32-bit floats, int8, fp8 or GGUF blocks. They
    become `dtype` while they are read. auto: the first kind that is on this machine, floats first."""


class TextSpec(Part):
    """What the text encoder reads."""

    prompt: Prompt = ""
    """What the video shows."""
    negative_prompt: Prompt = ""
    """What guidance moves away from."""
    max_text_tokens: PositiveInt | None = None
    """Length that text is padded or cut to, in tokens; None is the model's own. Another length is another model."""


class MediaSpec(Part):
    """Images, video and sound that the result starts from or follows."""

    image: MediaRef | None = None
    """First frame."""
    last_image: MediaRef | None = None
    """Last frame."""
    video: MediaRef | None = None
    """Video to continue, edit or follow."""
    mask: MediaRef | None = None
    """Where `video` may change: white may, black is kept."""
    video_2: Annotated[MediaRef | None, HashDefault(None)] = None
    """Second control video (VACE)."""
    mask_2: Annotated[MediaRef | None, HashDefault(None)] = None
    """Where `video_2` may change."""
    pose_video: Annotated[MediaRef | None, HashDefault(None)] = None
    """Drawn poses that the person in `image` follows (Animate)."""
    face_video: Annotated[MediaRef | None, HashDefault(None)] = None
    """Face crops that the person in `image` follows (Animate)."""
    audio: MediaRef | None = None
    """Speech or music to move to."""
    references: tuple[MediaRef, ...] = ()
    """Pictures of people or things that should appear."""
    keyframes: Annotated[tuple[MediaRef, ...], HashDefault(())] = ()
    """Pictures that the video shows at `keyframe_positions`."""
    keyframe_positions: Annotated[tuple[int, ...], HashDefault(())] = ()
    """Frame of each keyframe, from 0; negative counts from the end."""
    fit: Annotated[Literal["crop", "pad", "stretch"], HashDefault("crop")] = "crop"
    """How media of another shape come to the video's size: crop the edges, pad to the whole picture, or stretch."""
    control_scale: Annotated[tuple[float, ...], HashDefault((1.0,)), Field(min_length=1)] = (1.0,)
    """Strength of the control video: one number, or one for each control layer of the network."""
    control_scale_2: Annotated[tuple[float, ...], HashDefault((1.0,)), Field(min_length=1)] = (1.0,)
    """Strength of `video_2`, as `control_scale`."""

    @model_validator(mode="after")
    def _check_keyframes(self) -> Self:
        if len(self.keyframes) != len(self.keyframe_positions):
            raise WanlabError(
                f"{len(self.keyframes)} keyframes and {len(self.keyframe_positions)} keyframe_positions",
                remedy="Give both together, one position for each picture.",
            )
        return self


class SizeSpec(Part):
    """Shape of the result; None stands for the model's own value and is made concrete when a model makes the spec."""

    width: Pixels | None = None
    """Pixels."""
    height: Pixels | None = None
    """Pixels."""
    num_frames: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Frames of the video; 1 for images."""
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Frames a second at which the video plays."""


class SamplingSpec(Part):
    """The way from noise to data."""

    sampler: Annotated[str, NameIn("sampler", SAMPLERS)] = "unipc"
    """The solver."""
    num_steps: Annotated[int, Field(ge=1, le=10_000)] = 30
    """Steps of the solver; each runs the network once per guidance branch."""
    flow_shift: PositiveFloat = 5.0
    """More than 1 moves steps toward high noise. Wan2.1's README: 3.0 for 480P, 5.0 for 720P."""
    seed: Seed = 0
    """Decides the initial noise, drawn on the CPU."""
    sigmas: tuple[Fraction, ...] | None = None
    """Explicit noise levels, falling from at most 1 to 0, one more than steps; replaces what flow_shift would give."""
    expert_boundary: Fraction | None = None
    """Noise level below which the second expert takes over; None is the model's own."""
    denoising_strength: Annotated[Fraction, HashDefault(1.0)] = 1.0
    """How far a given `video` is taken back to noise: 1 is all the way, 0.5 runs the second half of the steps."""
    masking_strength: Annotated[Fraction, HashDefault(1.0)] = 1.0
    """Share of num_steps, from the first that runs, in which what `mask` keeps is put back; 1 is all."""
    riflex: Annotated[Literal["off", "on", "auto"], HashDefault("off")] = "off"
    """RIFLEx: a slower rotary frequency in time, against repetition in clips longer than the model was trained on.
    auto: for clips of more than 6 seconds."""

    ar_step: Annotated[int, Field(ge=0, le=10_000), HashDefault(0)] = 0
    """Diffusion forcing: steps by which each block of frames lags behind the one before it; 0 is all together."""
    causal_block_size: Annotated[PositiveInt | None, HashDefault(None)] = None
    """Diffusion forcing: latent frames in a block. With more than 1, frames see their own and earlier blocks only.
    None is the model's own."""

    @property
    def num_run(self) -> int:
        """Steps of the solver that run: those that denoising_strength leaves, as diffusers' WanVideoToVideoPipeline."""
        return int(self.num_steps * self.denoising_strength)

    @model_validator(mode="after")
    def _check_sigmas(self) -> Self:
        sigmas = self.sigmas
        if sigmas is None:
            return self
        if len(sigmas) < 2 or sigmas[-1] != 0 or any(a <= b for a, b in itertools.pairwise(sigmas)):
            raise WanlabError("sigmas do not fall strictly to 0", remedy="Give for example [1.0, 0.7, 0.3, 0.0].")
        if len(sigmas) != self.num_steps + 1:
            raise WanlabError(
                f"{len(sigmas)} sigmas are {len(sigmas) - 1} steps, but num_steps = {self.num_steps}",
                remedy="Give sigmas alone, or sigmas=None with num_steps.",
            )
        return self


class GuidanceSpec(MethodPart):
    """How the predictions with and without the prompt are combined."""

    method: Annotated[str, NameIn("guidance", GUIDANCE)] = "cfg"
    """Rule that combines predictions."""
    guidance_scale: float = 5.0
    """Strength of the prompt; 1 leaves the prediction as it is and halves the cost under cfg."""
    guidance_scale_2: float | None = None
    """guidance_scale of the second (low-noise) expert; None is the same."""
    phase_boundaries: Annotated[tuple[Fraction, ...], HashDefault(())] = ()
    """Falling noise levels at which the guidance scale changes to the next of `phase_scales`."""
    phase_scales: Annotated[tuple[float, ...], HashDefault(())] = ()
    """Guidance scales of the phases, one more than boundaries; they replace guidance_scale and guidance_scale_2."""
    batch_branches: bool = False
    """Run the branches as one batch: quicker on a GPU, more memory, results equal to rounding."""

    @model_validator(mode="after")
    def _check_phases(self) -> Self:
        scales, boundaries = self.phase_scales, self.phase_boundaries
        if not scales and not boundaries:
            return self
        if len(scales) != len(boundaries) + 1:
            raise WanlabError(
                f"{len(scales)} phase_scales and {len(boundaries)} phase_boundaries",
                remedy="Give one scale more than boundaries, e.g. phase_scales=[3.5, 1], phase_boundaries=[0.9].",
            )
        if any(a < b for a, b in itertools.pairwise(boundaries)):
            raise WanlabError("phase_boundaries rise", remedy="Noise falls from 1 to 0: give for example [0.965, 0.8].")
        return self


class CacheSpec(MethodPart):
    """Reuse of earlier steps' work."""

    method: Annotated[str, NameIn("cache", CACHES, "none")] = "none"
    """Rule that decides which steps run the blocks; none runs all."""


class AttentionSpec(MethodPart):
    """The attention function."""

    method: Annotated[str, NameIn("attention", ATTENTION, "auto")] = "auto"
    """Backend at every attention site; auto is the best exact one that the device has."""


class LoraSpec(Part):
    """Low-rank changes of the weights."""

    loras: Annotated[tuple[str, ...], Field(max_length=0)] = ()
    """None can be given yet."""


class MemorySpec(MethodPart):
    """Where weights live while they are not needed."""

    method: Annotated[str, NameIn("memory", None, "resident")] = "resident"
    """resident: everything that was used stays on the device."""
    unload: Annotated[Literal["keep", "switch", "after_use"], HashDefault("keep")] = "keep"
    """When a network leaves the device: never; when another one is needed; or at the end of the stage that used it."""
    on_oom: Literal["fail", "retry"] = "fail"
    """What to do when memory runs out: fail, or retry with a cheaper way, which the result records."""


class CompileSpec(Part):
    """torch.compile."""

    compile_mode: Literal["none", "blocks"] = "none"
    """blocks: compile the transformer's blocks; the first run waits for the compiler."""


class WindowSpec(MethodPart):
    """Long videos made of overlapping windows."""

    method: Annotated[str, NameIn("window", None, "none")] = "none"
    """none: the whole video at once."""


class PostSpec(Part):
    """What happens to decoded frames; nothing yet."""


class OutputSpec(Part):
    """How the result is written."""

    crf: Annotated[int, Field(ge=0, le=51)] = 18
    """H.264 quality: 0 is lossless, 18 looks so, 28 is small."""
    strip_prompt: bool = False
    """Leave prompts out of the written file's metadata."""
