"""The form with methods of one's own: whatever their options are, what was not touched stays as it was."""

from __future__ import annotations

import enum
import threading
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest

import wanlab
from tests.tiny import tiny_wan
from wanlab.caches import Cache
from wanlab.errors import WanlabError
from wanlab.registry import ATTENTION, CACHES
from wanlab.spec import GenerationSpec
from wanlab.spec.part import HashDefault, Part
from wanlab.widgets import SpecForm


class Mode(enum.Enum):
    A = "a"
    B = "b"


class Sub(Part):
    x: int = 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return wanlab.load(tiny_wan(tmp_path_factory.mktemp("wan"))[1], device="cpu")


@pytest.fixture(autouse=True)
def tidy() -> Iterator[None]:
    yield
    CACHES._entries.pop("mine", None)
    ATTENTION._entries.pop("mine", None)


def register(knob: Any, default: Any = ...) -> None:
    """A cache "mine" with an option `knob` and another one; without a default it must be given."""
    fields = {} if default is ... else {"knob": default}
    options = type("Options", (Part,), {"__annotations__": {"knob": knob, "other": int}, "other": 3, **fields})
    CACHES.register("mine")(type("Mine", (Cache,), {"Options": options, "decide": lambda self, ctx: True}))


@pytest.mark.parametrize(
    ("knob", "default", "value"),
    [
        (tuple[int, int], (1, 2), [3, 4]),
        (tuple[bool, ...], (), [True]),
        (tuple[Sub, ...], (), [{"x": 2}]),
        (tuple[Any, ...], (), [1, None, "a"]),
        (dict[str, int], {}, {"a": 1}),
        (Mode, Mode.A, "b"),
        (Mode | None, None, "b"),
        (Sub, Sub(), {"x": 5}),
        (Sub | None, None, {"x": 5}),
        (Literal["a", "b"] | None, None, "b"),
        (Literal["only"], "only", "only"),
        (Literal[1, 2], 1, 2),
        (bool | None, None, False),
        (int | float, 1, 1.5),
        (float, 1e-7, 1e22),
        (int, 2**60, -(2**62)),
        (str | None, None, "é\nx"),
        (Any, None, {"a": [1, None]}),
    ],
)
def test_options_of_any_type_stay_what_they_were(model: Any, knob: Any, default: Any, value: Any) -> None:
    register(knob, default)
    for options in ({}, {"knob": value}):
        spec = model.spec(cache={"method": "mine", **options})
        form = SpecForm(spec, model.offers)
        assert form.spec == spec
        form._options["cache"]["other"].write(7)
        assert form.spec == spec.with_(**{"cache.other": 7})
        form.spec = model.spec()
        form.spec = spec
        assert form.spec == spec


def test_an_option_without_a_default_is_asked_for(model: Any) -> None:
    register(tuple[float, float])
    form = SpecForm(model.spec(), model.offers)
    form.field("cache.method").widget.value = "mine"
    with pytest.raises(WanlabError, match=r"cache\.knob is empty"):
        _ = form.spec
    form._options["cache"]["knob"].widget.value = "[1, 2.5]"
    assert form.spec == model.spec(cache={"method": "mine", "knob": [1.0, 2.5]})


def test_an_option_that_came_later_means_what_it_meant(model: Any) -> None:
    """A spec from before the option: the form shows how it ran then, not today's default."""
    register(Annotated[int, HashDefault(1)], 2)
    nested = model.spec(cache={"method": "mine", "other": 5}).to_dict()
    del nested["cache"]["options"]["knob"]
    spec = GenerationSpec.from_json(nested)
    form = SpecForm(spec, model.offers)
    assert form.spec is spec
    assert form._options["cache"]["knob"].read() == 1
    form._options["cache"]["other"].write(6)
    assert form.spec.cache.options == {"knob": 1, "other": 6}


def test_options_of_another_method_are_refused_and_nothing_changes(model: Any) -> None:
    nested = model.spec(cache={"method": "fixed", "mask": [True] * 4}).to_dict()
    nested["cache"]["options"]["threshold"] = 0.1
    spec = GenerationSpec.from_json(nested)
    with pytest.raises(WanlabError, match="threshold"):
        SpecForm(spec, model.offers)
    before = model.spec(seed=3)
    form = SpecForm(before, model.offers)
    with pytest.raises(WanlabError, match="threshold"):
        form.spec = spec
    assert form.spec == before


def test_methods_registered_later_are_offered(model: Any) -> None:
    assert "mine" not in model.offers.choices["attention.method"]
    ATTENTION.register("mine")(lambda q, k, v, site, mask=None: q)
    assert "mine" in SpecForm(model.spec(), model.offers).field("attention.method").widget.options


def test_inputs_of_options_are_used_again_or_closed(model: Any) -> None:
    """ipywidgets keeps every widget until it is closed."""
    form = SpecForm(model.spec(cache={"method": "fixed", "mask": [True] * 4}), model.offers)
    mask = form._options["cache"]["mask"]
    form.spec = model.spec(cache={"method": "fixed", "mask": [True, False] * 2})
    assert form._options["cache"]["mask"] is mask
    form.spec = model.spec()
    assert mask.widget.comm is None
    assert mask.widget.layout.comm is None


def test_a_form_is_narrowed_while_it_is_written_and_read(model: Any) -> None:
    """As where the model loads in the background: what was written last is there."""
    specs = [model.spec(seed=i, cache={"method": "fixed", "mask": [True] * (2 + i)}) for i in range(4)]
    for _ in range(5):
        form = SpecForm(model.spec())
        thread = threading.Thread(target=form.narrow, args=(model.offers,))
        thread.start()
        for spec in specs:
            form.spec = spec
            assert form.spec == spec
        thread.join()
        assert form.spec == specs[-1]
        assert form._options["cache"]["mask"].widget.value == "11111"
