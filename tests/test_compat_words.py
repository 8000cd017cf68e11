"""WanGP's letters, little languages, LoRA multipliers and presets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wanlab.compat import (
    Attachment,
    AudioPrompt,
    ImagePrompt,
    Letters,
    Outpainting,
    PromptEnhancer,
    VideoPrompt,
    Windows,
    apply_lset,
    apply_profile,
    evaluate,
    kept_frames,
    media_leaves,
    merge_loras,
    parse_multipliers,
    parse_positions,
    place,
    source_frames,
    switch_steps,
)
from wanlab.compat.grammars import format_positions
from wanlab.errors import WanlabError

KINDS = [ImagePrompt, VideoPrompt, AudioPrompt, PromptEnhancer]


@pytest.mark.parametrize("kind", KINDS)
@given(code=st.text(max_size=12))
def test_any_code_comes_back_exactly(kind: type[Letters], code: str) -> None:
    assert kind.parse(code).code == code
    assert kind.of(*kind.parse(code).words).code == code


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_one_per_letter(kind: type[Letters]) -> None:
    assert len(set(kind.table.values())) == len(kind.table)
    assert kind.parse("".join(kind.table)).words == tuple(kind.table.values())


def test_what_a_video_prompt_says() -> None:
    follow = VideoPrompt.parse("PDVXNAKI")
    assert follow.processes == ("pose", "depth")
    assert follow.outside == "inpaint"
    assert "mask_negated" in follow
    assert "background_first" in follow
    assert VideoPrompt.parse("UVZA").outside is None, "Z is accepted and never applied"
    assert VideoPrompt.parse("UV").processes == ("identity",)
    assert follow.without("pose").with_("canny", "depth").code == "DVXNAKIE"
    assert VideoPrompt.parse(None).words == ()
    assert not VideoPrompt.parse("")


def test_a_word_that_does_not_exist_is_refused_with_the_nearest() -> None:
    with pytest.raises(WanlabError, match="Did you mean 'first_frame'"):
        ImagePrompt.of("frist_frame")
    with pytest.raises(WanlabError):
        ImagePrompt.of("S")  # a letter that has a word


def test_positions() -> None:
    assert parse_positions("1 L,49 l") == (1, "L", 49, "L")
    assert format_positions(parse_positions("1 L,49")) == "1 L 49"
    assert place((1, "L", 49), 81) == (0, 80, 48)
    # windows of 81 that overlap by 9 and lose 4: they end at 80, 80 - 13 + 81, the last frame, and beyond it
    assert place(("L", "L", "L", "L"), 200, Windows(81, 9, 4)) == (80, 148, 199, 267)
    for wrong in ("0", "-1", "x", "1.5", "٣"):
        with pytest.raises(WanlabError, match="frames_positions"):
            parse_positions(wrong)


def test_kept_frames() -> None:
    assert kept_frames("", 3) == (True, True, True)
    assert [i for i, kept in enumerate(kept_frames("1:20 -1", 81)) if kept] == [*range(20), 80]
    assert kept_frames("4:9", 5) == (False, False, False, True, True)
    assert kept_frames("-2:-1", 4) == (False, False, True, True)
    assert kept_frames("3:2", 4) == (False,) * 4
    for wrong in ("0", "a", "1:", "1:2:3", "1.0", "9" * 12):
        with pytest.raises(WanlabError, match="keep_frames"):
            kept_frames(wrong, 5)
    assert [source_frames(text, 50) for text in ("", "20", "-5", "90", "-90")] == [50, 20, 45, 50, 0]
    with pytest.raises(WanlabError, match="keep_frames_video_source"):
        source_frames("all", 5)


def test_outpainting() -> None:
    assert Outpainting.parse("#10 10 0 0") is None
    assert Outpainting.parse("0 0 0 0") is None
    assert Outpainting.parse("") is None
    found = Outpainting.parse("0 10 25 30")
    assert found == Outpainting(0, 10, 25, 30)
    assert found is not None
    assert found.text == "0 10 25 30"
    assert found.canvas(480, 800) == (528, 1240)
    assert Outpainting.parse("0 0 0 0", "16:9") == Outpainting(ratio="16:9")
    assert Outpainting(ratio="2:1").canvas(100, 100) == (100, 200)
    assert Outpainting(ratio="1:2").canvas(100, 100) == (200, 100)
    for wrong in ("0;0;10;10", "1 2 3", "a b c d"):
        with pytest.raises(WanlabError, match="four percents"):
            Outpainting.parse(wrong)


def test_the_three_examples_of_multipliers() -> None:
    (one,) = parse_multipliers("0.9,0.8;1.2,1.1,1", 1)
    assert evaluate(one, 8, [3]) == [0.9, 0.9, 0.8, 1.2, 1.2, 1.1, 1.1, 1.0]
    several = [evaluate(m, 6, [2]) for m in parse_multipliers("1;0 0;1 0.8,0.7,0.5", 3)]
    assert several == [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1], [0.8, 0.8, 0.7, 0.7, 0.5, 0.5]]
    phases = [evaluate(m, 8, [1, 5]) for m in parse_multipliers("0;1;0 0;0;1", 2, num_phases=3)]
    assert phases == [[0, 1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1]]


def test_steps_are_shared_out_as_wangp_rounds_or_evenly() -> None:
    (multiplier,) = parse_multipliers("1,2,3", 1)
    assert [evaluate(multiplier, 30).count(v) for v in (1, 2, 3)] == [11, 9, 10]
    assert [evaluate(multiplier, 30, sharing="even").count(v) for v in (1, 2, 3)] == [10, 10, 10]


def test_tokens_lines_comments_bar_and_padding() -> None:
    text = "# of the accelerator\n1;0|0.5\r\n# mine\n0.2 9"
    assert [evaluate(m, 2, [1]) for m in parse_multipliers(text, 4)] == [[1, 0], [0.5] * 2, [0.2] * 2, [9.0] * 2]
    assert [evaluate(m, 1) for m in parse_multipliers("0.5", 3)] == [[0.5], [1], [1]]
    assert parse_multipliers("0.5 nonsense", 1) == parse_multipliers([0.5], 1)
    assert parse_multipliers("", 0) == ()
    two = parse_multipliers("1;0", 1, num_phases=3)[0]
    assert evaluate(two, 3, [1, 2]) == [1, 0, 0]
    assert evaluate(parse_multipliers("1;0", 1, num_phases=3, model_switch_phase=2)[0], 3, [1, 2]) == [1, 1, 0]
    (branched,) = parse_multipliers("1:0.5;0.2", 1, branches=2)
    assert [evaluate(branched, 2, [1], branch=b) for b in (0, 1)] == [[1, 0.2], [0.5, 0.2]]


@pytest.mark.parametrize("wrong", ["1  2", "1 |2", "x", "1,,2", "1;", "1;2;3", "1|2|3", "nan", "1_0", "1\t2", "1:2"])
def test_wrong_multipliers(wrong: str) -> None:
    with pytest.raises(WanlabError, match="LoRA multiplier"):
        parse_multipliers(wrong, 3)


def test_phases_begin_at_or_under_the_threshold() -> None:
    assert switch_steps([1000, 965, 800, 400], [965, 800]) == [1, 2]
    assert switch_steps([1000, 900], [100]) == [2]


def test_merging_loras() -> None:
    assert merge_loras(["u"], "0.8", ["fast_high", "fast_low"], "1;0 0;1", "accelerator") == (
        ["fast_high", "fast_low", "u"],
        "1;0 0;1|0.8",
    )
    both = ["f", "u", "v"], "1|0.8 0.5"
    assert merge_loras(*both, ["w"], "0.3", "user") == (["f", "w"], "1|0.3")
    assert merge_loras(*both, ["g", "u"], "0.1 0.2", "accelerator") == (["g", "u", "v"], "0.1|0.2 0.5")
    assert merge_loras(*both, ["x", "y"], "2|3", "user") == (["f", "y"], "1|3")
    assert merge_loras([], "", ["f"], "", "accelerator") == (["f"], "1|")
    with pytest.raises(WanlabError, match="more than one"):
        merge_loras([], "1|2|3", [], "", "user")


def test_presets_and_profiles() -> None:
    mine: dict[str, Any] = {
        "model_type": "t2v_2_2",
        "prompt": "# old note\na fox",
        "activated_loras": ["mine"],
        "loras_multipliers": "0.7",
        "num_inference_steps": 30,
        "settings_version": 2.3,
    }
    profile = {
        "num_inference_steps": 8,
        "guidance_phases": 3,
        "activated_loras": ["high", "low"],
        "loras_multipliers": "0;1;0 0;0;1",
        "help": "text",
    }
    fast = apply_profile(mine, profile)
    assert (fast["num_inference_steps"], fast["guidance_phases"], fast["prompt"]) == (8, 3, mine["prompt"])
    assert (fast["activated_loras"], fast["loras_multipliers"]) == (["high", "low", "mine"], "0;1;0 0;0;1|0.7")
    assert "help" not in fast
    assert fast["settings_version"] == 2.3
    assert set(fast) - set(mine) == {"guidance_phases"}
    preset = {"loras": ["theirs"], "loras_mult": "0.4", "prompt": "# say zwx", "full_prompt": False}
    found = apply_lset(fast, preset)
    assert found["prompt"] == "# say zwx\na fox"
    assert (found["activated_loras"], found["loras_multipliers"]) == (["high", "low", "theirs"], "0;1;0 0;0;1|0.4")
    assert apply_lset(fast, {**preset, "full_prompt": True})["prompt"] == "# say zwx"
    assert mine["activated_loras"] == ["mine"]
    with pytest.raises(WanlabError, match="preset"):
        apply_lset(mine, {"loras": "x"})


def test_attachments_and_the_media_they_are() -> None:
    assert Attachment.parse("a|b.mp4|start_frame=2,end_frame=9,audio_track_no=1") == Attachment("a|b.mp4", 2, 9, 1)
    assert Attachment.parse("a|b.mp4") == Attachment("a|b.mp4")
    settings = {
        "image_prompt_type": "SE",
        "image_start": ["first.png"],
        "image_end": "last.png",
        "video_prompt_type": "VAFI",
        "video_guide": "dance.mp4",
        "video_mask": "mask.mp4",
        "image_refs": ["one.png", "two.png", "face.png"],
        "frames_positions": "1 L",
    }
    found = media_leaves(settings, 81)
    assert {leaf: found[leaf].path for leaf in ("image", "last_image", "video", "mask")} == {
        "image": "first.png",
        "last_image": "last.png",
        "video": "dance.mp4",
        "mask": "mask.mp4",
    }
    assert [a.path for a in found["keyframes"]] == ["one.png", "two.png"]
    assert found["keyframe_positions"] == (0, 80)
    assert [a.path for a in found["references"]] == ["face.png"]
    assert media_leaves({**settings, "video_prompt_type": "", "image_prompt_type": "T"}) == {}
    with pytest.raises(WanlabError, match="image_refs"):
        media_leaves({**settings, "image_refs": [1]})
