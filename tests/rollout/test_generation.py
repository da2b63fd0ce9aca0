import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, TopKLogitsWarper, TopPLogitsWarper

from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.errors import ConfigError, GenerationError
from rlhfkit.models.language import LanguageModel
from rlhfkit.models.layers import layers_of, recompute_layers
from rlhfkit.padding import Sequences
from rlhfkit.rollout.generation import Response, generate
from rlhfkit.rollout.sampling import draw, nucleus, truncated
from tests.tiny import CONTEXT, EOS, FAMILIES, MORE_FAMILIES, PAD, Directory, load

NUM_PROMPTS = 12
# One token in eight ends a response, so that slots are freed at different times.
ENDS = [EOS, *range(0, 256, 8)]


def some_prompts(num: int = NUM_PROMPTS) -> list[list[int]]:
    """Prompts of 1 to 20 tokens."""
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, 21, (num,), generator=generator).tolist()
    return [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]


def ending_early(model: LanguageModel) -> LanguageModel:
    assert model.causal_lm.generation_config is not None
    model.causal_lm.generation_config.eos_token_id = ENDS
    return model


def logprobs_of(model: LanguageModel, prompts: list[list[int]], responses: list[Response], temperature: float):
    sequences = Sequences.join(prompts, [response.ids for response in responses], pad=PAD)
    with torch.no_grad():
        return model.logprobs(sequences, temperature=temperature), sequences.mask


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_sampler_and_training_pass_agree_on_every_logprob(family, directory_of: Directory):
    model = ending_early(load(directory_of(family)))
    config = RolloutConfig(max_response_tokens=14, temperature=0.7, slots=4)
    responses = generate(model, some_prompts(), config, seeds=range(NUM_PROMPTS))
    expected, mask = logprobs_of(model, some_prompts(), responses, 0.7)
    found = torch.cat([torch.tensor(response.logprobs) for response in responses])
    assert len({len(response.ids) for response in responses}) > 3
    torch.testing.assert_close(found, expected[mask], rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_layers_that_are_computed_a_second_time_sample_the_same(family, directory_of: Directory):
    config = RolloutConfig(max_response_tokens=8, slots=4)
    plain, recomputing = (ending_early(load(directory_of(family))) for _ in range(2))
    recompute_layers(recomputing.causal_lm)
    found = generate(recomputing, some_prompts(), config, seeds=range(NUM_PROMPTS))
    assert found == generate(plain, some_prompts(), config, seeds=range(NUM_PROMPTS))
    assert all(layer.training for layer in layers_of(recomputing.causal_lm))  # as before


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_responses_are_those_of_transformers(family, directory_of: Directory):
    model = ending_early(load(directory_of(family)))
    responses = generate(model, some_prompts(), RolloutConfig(max_response_tokens=14, slots=4), seeds=None)
    theirs = AutoModelForCausalLM.from_pretrained(directory_of(family))
    theirs.generation_config.eos_token_id = ENDS
    for prompt, response in zip(some_prompts(), responses, strict=True):
        ids = torch.tensor([prompt])
        expected = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=14, suppress_tokens=[PAD]
        )
        assert response.ids == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "mistral"])
def test_response_depends_on_its_prompt_and_seed_alone(family, directory_of: Directory):
    model = ending_early(load(directory_of(family)))
    prompts, seeds = some_prompts(), list(range(100, 100 + NUM_PROMPTS))

    def ids(rows: list[int], slots: int) -> list[list[int]]:
        config = RolloutConfig(max_response_tokens=10, slots=slots)
        responses = generate(model, [prompts[row] for row in rows], config, seeds=[seeds[row] for row in rows])
        return [response.ids for response in responses]

    everything = list(range(NUM_PROMPTS))
    together = ids(everything, slots=64)
    assert [ids([row], slots=64)[0] for row in everything] == together
    assert ids(everything[::-1], slots=64)[::-1] == together
    for slots in (1, 3, 8):
        assert ids(everything, slots) == together


def test_a_seed_decides_the_response_and_another_seed_another_one(directory_of: Directory):
    model = load(directory_of("llama"))
    config = RolloutConfig(max_response_tokens=8)
    prompts = [[1, 2, 3]] * 4
    first, again, other, last = generate(model, prompts, config, seeds=[7, 7, 8, 9])
    assert first.ids == again.ids
    assert len({tuple(response.ids) for response in (first, other, last)}) == 3


def test_finish_reason_says_what_ended_a_response(directory_of: Directory):
    model = load(directory_of("llama"))
    assert model.causal_lm.generation_config is not None
    model.causal_lm.generation_config.eos_token_id = [3, 5]  # and the tokenizer's own, which is not in this list
    config = RolloutConfig(max_response_tokens=30, stop_tokens=("A", "\n", "s"))
    stops = model.encoder.tokenizer("A\ns")["input_ids"]
    responses = generate(model, [[1, 2]] * 200, config, seeds=range(200))
    seen = set()
    for response in responses:
        last = response.ids[-1]
        expected = "eos" if last in (3, 5, EOS) else "stop" if last in stops else "length"
        assert response.finish_reason == expected
        assert response.finished == (expected != "length")
        assert (len(response.ids) == 30) or expected != "length"
        assert not {3, 5, EOS, *stops} & set(response.ids[:-1])
        seen |= {last} if expected != "length" else {expected}
    assert {3, 5, EOS, "length"} <= seen
    assert seen & set(stops)


def test_end_at_the_very_last_token_counts_as_an_end(directory_of: Directory):
    model = load(directory_of("llama"))
    assert model.causal_lm.generation_config is not None
    model.causal_lm.generation_config.eos_token_id = list(range(256))
    (response,) = generate(model, [[1]], RolloutConfig(max_response_tokens=1), seeds=[0])
    assert (len(response.ids), response.finish_reason) == (1, "eos")


def test_stop_token_that_is_several_tokens_is_refused(directory_of: Directory):
    config = RolloutConfig(max_response_tokens=4, stop_tokens=("\n\n",))
    with pytest.raises(ConfigError, match=r"rollout.stop_tokens: '\\n\\n' is 2 tokens"):
        generate(load(directory_of("llama")), [[1]], config, seeds=[0])


@pytest.mark.parametrize("seeds", [None, range(50)])
def test_pad_is_never_sampled_however_likely_the_model_finds_it(seeds, directory_of: Directory):
    model = load(directory_of("llama"))
    prompts = [[row] for row in range(50)]
    with torch.no_grad():
        head = model.causal_lm.get_output_embeddings()
        hidden = model.trunk(torch.tensor(prompts))[:, 0]
        head.weight[PAD] = 50 * hidden.mean(0)
        assert (head(hidden).argmax(-1) == PAD).float().mean() > 0.5
    responses = generate(model, prompts, RolloutConfig(max_response_tokens=4), seeds=seeds)
    assert not any(PAD in response.ids for response in responses)
    assert min(min(response.logprobs) for response in responses) > -100


def test_prompt_and_response_beyond_the_context_are_refused_with_the_numbers(directory_of: Directory):
    model = load(directory_of("gpt2"))
    (response,) = generate(model, [[1] * 60], RolloutConfig(max_response_tokens=CONTEXT - 60), seeds=[0])
    assert len(response.ids) == 4
    with pytest.raises(ConfigError, match=r"60 tokens and rollout\.max_response_tokens = 5 .* context of 64"):
        generate(model, [[1] * 60], RolloutConfig(max_response_tokens=5), seeds=[0])


def test_logits_that_are_not_finite_stop_the_sampler(directory_of: Directory):
    model = load(directory_of("gpt2"))
    with torch.no_grad():
        next(model.causal_lm.parameters()).fill_(torch.nan)
    with pytest.raises(GenerationError, match="not finite"):
        generate(model, [[1]], RolloutConfig(max_response_tokens=4), seeds=[0])


def test_each_finished_row_is_reported_once(directory_of: Directory):
    reports: list[int] = []
    model = ending_early(load(directory_of("llama")))
    config = RolloutConfig(max_response_tokens=9, slots=5)
    generate(model, some_prompts(), config, seeds=range(NUM_PROMPTS), on_finished=reports.append)
    assert sum(reports) == NUM_PROMPTS
    assert min(reports) > 0


def test_no_prompts_give_no_responses(directory_of: Directory):
    assert generate(load(directory_of("llama")), [], RolloutConfig(), seeds=[]) == []


# ── the distribution ─────────────────────────────────────────────────────────────────────────────────────────────────


def distribution(directory_of: Directory, prompt: list[int], temperature: float) -> np.ndarray:
    """Probabilities of the next token by transformers and float64, PAD left out."""
    model = AutoModelForCausalLM.from_pretrained(directory_of("llama"))
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].double().numpy()
    logits[PAD] = -np.inf
    weights = np.exp((logits - logits.max()) / temperature)
    return weights / weights.sum()


def test_logprobs_are_those_of_the_tempered_distribution(directory_of: Directory):
    model = load(directory_of("llama"))
    for temperature in (0.5, 1.0, 1.7):
        expected = np.log(distribution(directory_of, [1, 2, 3], temperature)[:PAD])
        config = RolloutConfig(max_response_tokens=1, temperature=temperature)
        for response in generate(model, [[1, 2, 3]] * 20, config, seeds=range(20)):
            assert response.logprobs[0] == pytest.approx(expected[response.ids[0]], abs=1e-5)


def test_greedy_logprob_is_the_tempered_one_too(directory_of: Directory):
    config = RolloutConfig(max_response_tokens=1, temperature=0.5)
    (response,) = generate(load(directory_of("llama")), [[1, 2, 3]], config, seeds=None)
    expected = distribution(directory_of, [1, 2, 3], 0.5)
    assert response.ids == [int(expected.argmax())]
    assert response.logprobs[0] == pytest.approx(np.log(expected.max()), abs=1e-5)


def test_samples_follow_the_tempered_distribution(directory_of: Directory):
    num = 20_000
    config = RolloutConfig(max_response_tokens=1, temperature=0.8, slots=num)
    responses = generate(load(directory_of("llama")), [[1, 2, 3]] * num, config, seeds=range(num))
    counts = np.bincount([response.ids[0] for response in responses], minlength=PAD + 1)
    expected = num * distribution(directory_of, [1, 2, 3], 0.8)
    often = expected >= 5
    counts = np.append(counts[often], counts[~often].sum())
    expected = np.append(expected[often], expected[~often].sum())
    chi_square = ((counts - expected) ** 2 / expected).sum()
    degrees = len(counts) - 1
    assert degrees > 50
    assert abs(chi_square - degrees) < 4 * np.sqrt(2 * degrees)


LIKELIHOODS = torch.tensor([[0.05, 0.4, 0.1, 0.3, 0.15], [0.2, 0.2, 0.2, 0.2, 0.2]])


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 1}, {1}),
        ({"top_k": 3}, {1, 3, 4}),
        ({"top_k": 9}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.3}, {1}),
        ({"top_p": 0.41}, {1, 3}),
        ({"top_p": 0.8}, {1, 3, 4}),
        ({"top_p": 0.9}, {1, 3, 4, 2}),
        ({"top_k": 2, "top_p": 0.99}, {1, 3}),
        ({"top_k": 2, "top_p": 0.5}, {1}),  # 0.4 is more than half of what top_k leaves
    ],
)
def test_truncation_keeps_the_likeliest_tokens(settings, kept):
    cut = truncated(LIKELIHOODS.log(), RolloutConfig(**settings))
    assert set(cut[0].isfinite().nonzero().flatten().tolist()) == kept
    torch.testing.assert_close(cut[0, list(kept)], LIKELIHOODS[0, list(kept)].log())


def test_truncation_is_that_of_transformers():
    logits = 3 * torch.randn(50, 40, generator=torch.Generator().manual_seed(1))
    for top_k, top_p in ((0, 0.7), (10, 1.0), (10, 0.7), (3, 0.95)):
        expected = TopKLogitsWarper(top_k)(None, logits) if top_k else logits
        expected = TopPLogitsWarper(top_p)(None, expected)
        cut = truncated(logits.log_softmax(-1), RolloutConfig(top_k=top_k, top_p=top_p))
        assert torch.equal(cut.isfinite(), expected.isfinite())


@pytest.mark.parametrize("top_p", [0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("sharpness", [0.0, 1.0, 5.0, 40.0])
def test_a_token_is_in_the_nucleus_if_all_likelier_ones_have_less_than_top_p(top_p, sharpness):
    logits = sharpness * torch.randn(8, 3000, generator=torch.Generator().manual_seed(2)).round(decimals=2)
    distribution = logits.softmax(-1)
    found = nucleus(logits, top_p)
    for row, kept in zip(distribution.double(), found, strict=True):
        values, group = row.unique(return_inverse=True)  # ties stay, or go, together
        mass = torch.zeros_like(values).scatter_add(0, group, row)
        likelier = (mass.flip(0).cumsum(0).flip(0) - mass)[group]
        clear = (likelier - top_p).abs() > 1e-7  # else rounding decides
        assert clear.float().mean() > 0.9
        assert torch.equal(kept[clear], (likelier < top_p)[clear])
    assert found.any(-1).all()


def test_the_nucleus_of_next_to_nothing_is_the_likeliest_token():
    assert nucleus(torch.tensor([[0.0, 2.0, 1.0]]), 1e-14).tolist() == [[False, True, False]]


def test_draws_cover_exactly_the_tokens_that_are_left_in_proportion():
    cut = truncated(LIKELIHOODS.log(), RolloutConfig(top_k=3))[:1]
    uniforms = (torch.arange(1000) + 0.5) / 1000
    tokens = draw(cut.expand(1000, -1), uniforms)
    shares = torch.bincount(tokens, minlength=5) / 1000
    torch.testing.assert_close(shares, torch.tensor([0, 0.4, 0, 0.3, 0.15]) / 0.85, rtol=0, atol=2e-3)


def test_draw_at_either_end_of_the_interval_is_a_token_with_probability():
    log_distribution = torch.tensor([[0.0, 0.25, 0.75, 0.0]]).log().expand(3, -1)
    assert draw(log_distribution, torch.tensor([0.0, 0.25, 1 - 2**-24])).tolist() == [1, 2, 2]


def test_a_batch_shrinks_to_two_rows_where_all_but_one_end_at_once(directory_of: Directory, monkeypatch):
    model = load(directory_of("llama"))
    config = RolloutConfig(max_response_tokens=12)
    alone = generate(model, [[1]], config, seeds=[0])[0]
    end = generate(model, [[2]], config, seeds=[1])[0].ids[0]
    assert end not in alone.ids
    assert model.causal_lm.generation_config is not None
    model.causal_lm.generation_config.eos_token_id = [end]
    widths = []
    trunk = LanguageModel.trunk_with_cache

    def seen(self, ids, **options):
        widths.append(len(ids))
        return trunk(self, ids, **options)

    monkeypatch.setattr(LanguageModel, "trunk_with_cache", seen)
    responses = generate(model, [[1], *[[2]] * 7], config, seeds=[0, *[1] * 7])
    assert responses[0].ids == alone.ids
    assert [response.ids for response in responses[1:]] == [[end]] * 7
    # One token that shows the shapes, the prompts, then the eleven tokens that are left of the one row.
    assert widths == [1, 8, *[2] * 11]
