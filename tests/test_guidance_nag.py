"""Normalized attention guidance: the arithmetic against the paper, and Wan against diffusers' network with processors
of our own making."""

import pytest
import torch
import torch._dynamo as dynamo
from torch._dynamo.utils import counters

import wanlab
from tests.test_guidance import rule, texts
from tests.tiny import tiny_wan
from tests.tiny_video import film, frames_of, quiet, tiny_i2v, tiny_vace
from wanlab.attention import normalized_guidance
from wanlab.errors import WanlabError
from wanlab.sites import NO_CONDITIONS, Branch, Conditions, StepContext, compiling

NUMBERS = (11.0, 2.5, 0.25)
ROUNDING = 5e-5  # float32's, which the extrapolation multiplies by 11 in every block
SPEC = {"prompt": "a red fox", "negative_prompt": "ugly dog", "num_steps": 3, "num_frames": 5, "seed": 1}


def rel(a, b):
    return float((a - b).norm() / b.norm())


def rand(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def paper(z_pos, z_neg, scale, tau, alpha):
    """Equations of the paper, token by token; the result and whether any token was shortened, and any was not."""
    z_pos, z_neg = z_pos.double(), z_neg.double()
    out, shortened = torch.empty_like(z_pos), set()
    for index in torch.cartesian_prod(*(torch.arange(n) for n in z_pos.shape[:-1])):
        place = tuple(index.tolist())
        plus, minus = z_pos[place], z_neg[place]
        extrapolated = plus + (scale - 1) * (plus - minus)
        ratio = float(extrapolated.abs().sum() / plus.abs().sum())
        shortened.add(ratio > tau)
        out[place] = alpha * extrapolated * min(ratio, tau) / ratio + (1 - alpha) * plus
    return out, shortened


Z_POS = rand(2, 9, 24, seed=1)
Z_NEG = 0.9 * Z_POS + torch.linspace(0, 1, 9).view(1, 9, 1) * rand(2, 9, 24, seed=2)


def test_the_arithmetic_is_the_papers():
    expected, shortened = paper(Z_POS, Z_NEG, 5.0, 2.5, 0.25)
    assert shortened == {True, False}, "both cases occur"
    assert rel(normalized_guidance(Z_POS.double(), Z_NEG.double(), 5.0, 2.5, 0.25), expected) < 1e-12
    assert rel(normalized_guidance(Z_POS, Z_NEG, 5.0, 2.5, 0.25).double(), expected) < 1e-6
    as_tensors = torch.tensor([5.0, 2.5, 0.25]).unbind()
    assert rel(normalized_guidance(Z_POS, Z_NEG, *as_tensors).double(), expected) < 1e-6
    for changed in ((6.0, 2.5, 0.25), (5.0, 2.0, 0.25), (5.0, 2.5, 0.3)):
        assert rel(normalized_guidance(Z_POS, Z_NEG, *changed).double(), expected) > 1e-2


def test_its_ends():
    assert torch.equal(normalized_guidance(Z_POS, Z_NEG, 5.0, 2.5, 0.0), Z_POS)
    torch.testing.assert_close(normalized_guidance(Z_POS, Z_NEG, 1.0, 1.0, 0.25), Z_POS)
    zeros = torch.zeros(1, 2, 4)
    assert torch.equal(normalized_guidance(zeros, zeros, 5.0, 2.5, 0.25), zeros)


def test_bfloat16_loses_little_although_it_extrapolates():
    near = (Z_POS.bfloat16(), (Z_POS + 0.05 * rand(2, 9, 24, seed=3)).bfloat16())
    ours = normalized_guidance(*near, 11.0, 2.5, 1.0)
    assert ours.dtype == torch.bfloat16
    assert rel(ours.double(), paper(*near, 11.0, 2.5, 1.0)[0]) < 5e-3


def test_the_rule_hands_the_negative_prompt_to_the_conditional_branch():
    text = texts()
    cond, uncond = rule("nag", 5.0).branches(StepContext(0, 4, 1.0), text, NO_CONDITIONS)
    assert cond.nag == NUMBERS
    assert torch.equal(cond.text["embeds"], text["prompt"]["embeds"])
    assert torch.equal(cond.text["negative_embeds"], text["negative_prompt"]["embeds"])
    assert uncond == Branch("uncond", text["negative_prompt"], NO_CONDITIONS)
    (alone,) = rule("nag", 1.0).branches(StepContext(0, 4, 1.0), text, NO_CONDITIONS)
    assert alone.nag == NUMBERS
    assert rule("nag", 1.0).needs_negative(4)
    with pytest.raises(WanlabError, match="negative prompt"):
        rule("nag", 1.0).branches(StepContext(0, 4, 1.0), {"prompt": text["prompt"]}, NO_CONDITIONS)


class Reference:
    """Cross-attention for diffusers' network, written from the paper: softmax by hand, no code of ours."""

    def __init__(self, negative, numbers):
        self.negative, self.numbers = negative, numbers

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, rotary_emb=None):
        num_image = 0 if attn.add_k_proj is None else encoder_hidden_states.shape[1] - 512
        image, text = encoder_hidden_states[:, :num_image], encoder_hidden_states[:, num_image:]
        q = attn.norm_q(attn.to_q(hidden_states))

        def attend(k, v):
            heads = [x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v)]
            weights = (heads[0] @ heads[1].transpose(2, 3) / heads[0].shape[-1] ** 0.5).softmax(-1)
            return (weights @ heads[2]).transpose(1, 2).flatten(2)

        plus, minus = (attend(attn.norm_k(attn.to_k(c)), attn.to_v(c)) for c in (text, self.negative))
        scale, tau, alpha = self.numbers
        guided = plus * scale - minus * (scale - 1)
        ratio = guided.abs().sum(-1, keepdim=True) / plus.abs().sum(-1, keepdim=True)
        out = alpha * guided * ratio.clamp(max=tau) / ratio + (1 - alpha) * plus
        if num_image:
            out = out + attend(attn.norm_added_k(attn.add_k_proj(image)), attn.add_v_proj(image))
        return attn.to_out[0](out)


@pytest.fixture(scope="module", params=["t2v", "i2v"])
def both(request, tmp_path_factory):
    """(our model, diffusers' network with the same weights, a branch's conditions, the same as its arguments)."""
    import diffusers

    folder = tmp_path_factory.mktemp(request.param)
    folder, definition = tiny_wan(folder) if request.param == "t2v" else tiny_i2v(folder)
    network = diffusers.WanTransformer3DModel.from_pretrained(folder / "transformer")
    conditions, image = NO_CONDITIONS, None
    if request.param == "i2v":
        image = rand(1, 5, 32, seed=8)
        conditions = Conditions(channels=rand(1, 20, 2, 4, 6, seed=9), tokens={"image": image})
    return wanlab.load(definition, device="cpu"), network, conditions, image


def text_of(model, **changes):
    return model.encode_text(model.spec(**{**SPEC, "guidance_scale": 2.0, **changes}))


@torch.no_grad()
def forward(model, branch, latents):
    ctx = StepContext(1, 4, 0.8, timestep=800.0)
    model.begin(ctx)
    return model.velocity(latents, ctx, branch)


@torch.no_grad()
def theirs(network, text, latents, conditions, image, numbers=NUMBERS):
    negative = network.condition_embedder.text_embedder(text["negative_prompt"]["embeds"])
    for block in network.blocks:
        block.attn2.set_processor(Reference(negative.expand(len(latents), -1, -1), numbers))
    batch = len(latents)
    if conditions.channels is not None:
        latents = torch.cat([latents, conditions.channels.expand(batch, -1, -1, -1, -1)], 1)
    embeds = text["prompt"]["embeds"].expand(batch, -1, -1)
    image = image if image is None else image.expand(batch, -1, -1)
    time = torch.full((batch,), 800.0)
    return network(latents, time, embeds, encoder_hidden_states_image=image).sample


def nag_branch(text, conditions, numbers=NUMBERS):
    both = {"embeds": text["prompt"]["embeds"], "negative_embeds": text["negative_prompt"]["embeds"]}
    return Branch("cond", both, conditions, nag=numbers)


@pytest.mark.parametrize("batch", [1, 2])
def test_wan_is_diffusers_network_with_the_papers_attention(both, batch):
    model, network, conditions, image = both
    text, latents = text_of(model), rand(batch, 16, 2, 4, 6, seed=5)
    ours = forward(model, nag_branch(text, conditions), latents)
    assert rel(ours, theirs(network, text, latents, conditions, image)) < ROUNDING

    plain = forward(model, Branch("cond", text["prompt"], conditions), latents)
    assert rel(ours, plain) > 1e-2
    other = forward(model, nag_branch(text_of(model, negative_prompt="calm sea"), conditions), latents)
    assert rel(other, ours) > 1e-2
    for numbers in ((5.0, 2.5, 0.25), (11.0, 1.5, 0.25), (11.0, 2.5, 0.5)):
        changed = forward(model, nag_branch(text, conditions, numbers), latents)
        assert rel(changed, theirs(network, text, latents, conditions, image, numbers)) < ROUNDING
        assert rel(changed, ours) > 1e-2
    again = forward(model, Branch("cond", text["prompt"], conditions), latents)
    assert torch.equal(again, plain), "nothing stays behind"


def test_hint_blocks_of_vace_are_guided_too(tmp_path):
    import diffusers

    folder, definition = tiny_vace(tmp_path)
    pipe, model = quiet(diffusers.WanVACEPipeline.from_pretrained(folder)), wanlab.load(definition, device="cpu")
    spec = model.spec(**{**SPEC, "num_frames": 9}, video=frames_of(film(1)), guidance="nag", guidance_scale=1.0)
    network = pipe.transformer

    def reference(hinted):
        with torch.no_grad():
            negative = network.condition_embedder.text_embedder(model.encode_text(spec)["negative_prompt"]["embeds"])
        for block in (*network.blocks, *(network.vace_blocks if hinted else ())):
            block.attn2.set_processor(Reference(negative, NUMBERS))
        settings = {"num_frames": 9, "width": 48, "height": 32, "num_inference_steps": 3, "guidance_scale": 1.0}
        generator = torch.Generator().manual_seed(1)
        return pipe(SPEC["prompt"], video=film(1), generator=generator, output_type="latent", **settings).frames

    ours, without = wanlab.generate(model, spec).latents, reference(hinted=False)
    assert rel(ours, without) > 1e-2
    assert rel(ours, reference(hinted=True)) < ROUNDING


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    return wanlab.load(tiny_wan(tmp_path_factory.mktemp("wan"))[1], device="cpu")


def test_a_negative_prompt_acts_without_guidance_and_on_top_of_it(wan):
    for scale in (1.0, 5.0):
        spec = wan.spec(**SPEC, guidance={"method": "nag", "guidance_scale": scale})
        result = wanlab.generate(wan, spec)
        assert result.ran["forwards"] == {"transformer": 3 if scale == 1 else 6}
        assert rel(wanlab.generate(wan, spec.with_(negative_prompt="calm sea")).latents, result.latents) > 1e-2
        plain = wanlab.generate(wan, spec.with_(guidance="cfg")).latents
        assert rel(result.latents, plain) > 1e-2
        for off in ({"scale": 1.0}, {"alpha": 0.0}):
            same = wanlab.generate(wan, spec.with_(guidance={"method": "nag", **off})).latents
            assert torch.equal(same, plain)


def test_nag_and_guidance_cannot_be_one_batch(wan):
    spec = wan.spec(**SPEC, guidance="nag", batch_branches=True)
    with pytest.raises(WanlabError, match="normalized attention guidance"):
        wanlab.generate(wan, spec)
    alone = wanlab.generate(wan, spec.with_(guidance_scale=1.0))
    assert alone.ran["forwards"] == {"transformer": 3}


def test_compiled_blocks_share_a_graph_whatever_the_numbers(wan):
    """One graph with and one without a negative prompt, for all blocks; other numbers need no other one."""
    text, latents = text_of(wan), rand(1, 16, 2, 4, 6, seed=5)
    branches = [nag_branch(text, NO_CONDITIONS, (s, 2.5, 0.25)) for s in (11.0, 4.0, 7.0)]
    branches += [Branch("uncond", text["negative_prompt"])]
    plain = [forward(wan, branch, latents) for branch in branches]
    dynamo.reset()
    counters.clear()
    try:
        with compiling(wan.stacks["transformer"], backend="eager"):
            compiled = [forward(wan, branch, latents) for branch in (*branches, *branches)]
        assert all(rel(a, b) < 1e-4 for a, b in zip(compiled, plain + plain, strict=True))
        assert counters["stats"].get("unique_graphs", 0) == 2
        assert not counters["graph_break"]
        assert wan.stacks["transformer"].uncompiled == set()
    finally:
        dynamo.reset()
