"""pydantic's list of errors as one WanlabError: field, value, bound, remedy."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from wanlab.errors import WanlabError, shorten

_SHOWN = 5  # problems repeated in one message

STORE = "Give a MediaRef: spec.with_(...) and model.spec(...) take a file, a picture or frames, store it and hold one."
_REMEDIES: dict[str, Callable[[dict[str, Any]], str]] = {
    "greater_than": lambda c: f"Give more than {c['gt']}",
    "greater_than_equal": lambda c: f"Give {c['ge']} or more",
    "less_than": lambda c: f"Give less than {c['lt']}",
    "less_than_equal": lambda c: f"Give at most {c['le']}",
    "int_type": lambda c: "Give a whole number, without quotes",
    "int_from_float": lambda c: "Give a whole number",
    "float_type": lambda c: "Give a number, without quotes",
    "bool_type": lambda c: "Give true or false, without quotes",
    "string_type": lambda c: "Give text",
    "string_unicode": lambda c: "Give text that UTF-8 can write",
    "tuple_type": lambda c: "Give a list",
    "dict_type": lambda c: "Give a dict",
    "model_type": lambda c: (
        STORE.rstrip(".") if c["class_name"] == "MediaRef" else f"Give a {c['class_name']} or a dict of its fields"
    ),
}

_ELSEWHERE = {
    "strength": "denoising_strength",
    "num_inference_steps": "num_steps",
    "steps": "num_steps",
    "frames": "num_frames",
    "guidance": "guidance_scale",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "shift": "flow_shift",
    "scheduler": "sampler",
    "negative": "negative_prompt",
    "reference_images": "references",
    "conditioning_scale": "control_scale",
    "last_frame": "last_image",
    "last_frame_image": "last_image",
}
"""What diffusers and other programs call our settings."""


def nearest(name: str, names: Iterable[str]) -> str:
    """`Did you mean 'x'?` for the closest of `names`, or what they call `name` here; else an empty string."""
    names = set(names)
    if (ours := _ELSEWHERE.get(name)) in names:
        return f"Did you mean {ours!r}?"
    near = difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.6)
    return f"Did you mean {near[0]!r}?" if near else ""


def explain(error: ValidationError, cls: type[BaseModel], prefix: str = "") -> WanlabError:
    """One WanlabError for all that pydantic found wrong while it made a `cls`."""
    problems = [_problem(dict(e), cls, prefix) for e in error.errors(include_url=False)]
    if len(problems) == 1:
        return problems[0]
    texts = [f"{p.problem} ({p.remedy.rstrip('.')})" if p.remedy else p.problem for p in problems[:_SHOWN]]
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return WanlabError(f"{len(problems)} settings are wrong: {'; '.join(texts)}{more}")


def _problem(error: dict[str, Any], cls: type[BaseModel], prefix: str) -> WanlabError:
    kind, loc, value, context = error["type"], error["loc"], error["input"], error.get("ctx", {})
    name = _dotted(loc, prefix)
    if kind == "extra_forbidden":
        fields = _fields_at(cls, loc[:-1])
        return WanlabError(f"Unknown setting {name!r}", choices=fields, remedy=nearest(str(loc[-1]), fields))
    if kind == "missing":
        return WanlabError(f"{name} is missing", remedy=f"Give {name}. {_meaning(cls, loc)}".rstrip())
    if kind == "value_error" and isinstance(context.get("error"), WanlabError):
        inner = context["error"]
        return WanlabError(f"{name}: {inner.problem}", choices=inner.choices, remedy=inner.remedy)
    if kind == "string_too_long":
        most = f"{context['max_length']:,}"
        return WanlabError(f"{name} has {len(value):,} characters, at most {most} are allowed", remedy="Shorten it.")
    if kind == "too_long" and context.get("max_length") == 0:
        return WanlabError(f"{name} = {shorten(value)} is not possible yet", remedy="Leave it empty.")
    message = error["msg"].removeprefix("Input ").removeprefix("Value error, ").rstrip(".")
    remedy = _REMEDIES[kind](context) + "." if kind in _REMEDIES else ""
    return WanlabError(f"{name} = {shorten(value)} is not allowed: it {message}", remedy=remedy)


def _dotted(loc: tuple[int | str, ...], prefix: str) -> str:
    text = prefix
    for step in loc:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text or "The value"


def _fields_at(cls: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Names that are legal at `loc` inside `cls`; empty where a step is not a plain nested record."""
    here: Any = cls
    for step in loc:
        if isinstance(step, str):
            field = here.model_fields.get(step)
            here = field and _record(field.annotation)
        if here is None:
            return []
    return sorted(f.alias or n for n, f in here.model_fields.items())


def _meaning(cls: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """The text under the field at `loc` of `cls` itself; empty deeper down or where there is none."""
    field = cls.model_fields.get(loc[0]) if len(loc) == 1 and isinstance(loc[0], str) else None
    return (field.description or "") if field else ""


def _record(annotation: Any) -> type[BaseModel] | None:
    """The record class inside an annotation such as `MediaRef | None` or `tuple[MediaRef, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, (_record(a) for a in getattr(annotation, "__args__", ()))), None)
