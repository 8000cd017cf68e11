"""The parts of a GenerationSpec: every setting that decides an outcome, with its bounds and its description."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from wanlab.errors import WanlabError
from wanlab.registry import ATTENTION, CACHES, GUIDANCE, SAMPLERS
from wanlab.spec.media_ref import MediaRef
from wanlab.spec.method_part import MethodPart, NameIn
from wanlab.spec.part import Part

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
    """Where `video` may change."""
    audio: MediaRef | None = None
    """Speech or music to move to."""
    references: tuple[MediaRef, ...] = ()
    """Pictures of people or things that should appear."""


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
    batch_branches: bool = False
    """Run the branches as one batch: quicker on a GPU, more memory, results equal to rounding."""


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
