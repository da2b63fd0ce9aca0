"""Supervised fine-tuning learns the response and its EOS, and nothing else."""

import json
import math

import pytest
import torch

from rlhfkit.config.training import OptimConfig, SftConfig
from rlhfkit.errors import DataError, TrainingError
from rlhfkit.machine.progress import Progress
from rlhfkit.models.encoder import Encoder
from rlhfkit.padding import pack
from rlhfkit.records import Demonstration, Message, Prompt
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.checkpoint import Checkpoints
from rlhfkit.training.sft import LearntText, encode_demonstrations, encode_texts, train_sft
from rlhfkit.training.supervised import split_validation
from tests.training import tiny

# With an epsilon this large, AdamW moves the weights by the negative gradient: rate * m / (sqrt(v) + eps) = gradient.
PLAIN = OptimConfig(learning_rate=1e7, adam_eps=1e7, schedule="constant", max_grad_norm=1e9)

TEXTS = [
    LearntText([2, 3, 4, 5, 1], 2),
    LearntText([6, 7, 1], 1),
    LearntText([2, 2, 3, 8, 9, 10, 4, 1], 4),
    LearntText([5, 5, 1], 2),
    LearntText([11, 12, 13, 2, 1], 1),
    LearntText([9, 1], 1),
]


def settings(**changes):
    usual = {"minibatch_sequences": 6, "max_tokens": 12, "validation_share": 0.0, "optim": PLAIN}
    return SftConfig(**{**usual, **changes})


def train(model, texts, config, directory, *, seed=0, progress=None):
    run = RunDir(directory)
    checkpoints = Checkpoints(run.checkpoints / "sft", warn=pytest.fail)
    with RunLog(run) as log:
        result = train_sft(
            model,
            texts,
            config,
            stage="sft",
            seed=seed,
            log=log,
            checkpoints=checkpoints,
            progress=progress or Progress(quiet=True),
        )
    return result, [json.loads(line) for line in run.metrics.read_text().splitlines()]


def negative_log_likelihoods(model, text):
    """Of the learnt tokens of one text, from whole logits, without packing or padding."""
    logits = model.causal_lm(input_ids=torch.tensor([text.ids])).logits[0]
    logits = torch.cat([torch.full_like(logits[:, :1], -1e9), logits[:, 1:]], dim=1)  # PAD stands in no text
    logprobs = logits.log_softmax(-1)
    return [-logprobs[place - 1, text.ids[place]] for place in range(text.learnt_from, len(text.ids))]


def plain_loss(model, texts):
    return torch.stack([nll for text in texts for nll in negative_log_likelihoods(model, text)]).mean()


def step_of(config, directory):
    """Weights before less weights after one update: the gradient."""
    model = tiny.language_model()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    _, (row,) = train(model, TEXTS, config, directory)
    return row["loss"], {name: before[name] - weight.detach() for name, weight in model.named_parameters()}


# ── loss and gradient ────────────────────────────────────────────────────────────────────────────────────────────────


def test_loss_and_gradient_are_of_the_mean_over_the_learnt_tokens(tmp_path):
    model = tiny.language_model()
    expected = plain_loss(model, TEXTS)
    torch.autograd.backward(expected)
    loss, step = step_of(settings(), tmp_path)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert max(float(gradient.abs().max()) for gradient in step.values()) > 0.1
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(step[name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("microbatch_tokens", [1, 12, 24, 4096])
def test_packing_and_microbatches_do_not_change_loss_and_gradient(tmp_path, packing, microbatch_tokens):
    loss, step = step_of(settings(), tmp_path / "whole")
    other_loss, other = step_of(settings(packing=packing, microbatch_tokens=microbatch_tokens), tmp_path / "parts")
    assert other_loss == pytest.approx(loss, rel=1e-5)
    for name, gradient in step.items():
        torch.testing.assert_close(other[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_without_packing_each_row_of_a_pass_holds_one_sequence(tmp_path):
    for packing, num_sequences in ((False, {1}), (True, {1, 2, 3, 4})):
        model, seen = tiny.language_model(), []
        computed = model.packed_logprobs

        def watched(rows, masks, computed=computed, seen=seen):
            seen.extend(int(row.max()) for row in rows.segments)
            return computed(rows, masks)

        model.packed_logprobs = watched
        train(model, TEXTS, settings(packing=packing), tmp_path / str(packing))
        assert set(seen) <= num_sequences
        assert len(seen) == 6 if not packing else len(seen) < 6


def test_validation_loss_is_of_the_rows_held_out_and_they_are_not_learnt(tmp_path):
    config = settings(validation_share=0.5, minibatch_sequences=3)
    kept, held_out = split_validation(6, 0.5, seed=0)
    assert sorted(kept + held_out) == list(range(6))
    model = tiny.language_model()
    result, (row,) = train(model, TEXTS, config, tmp_path)
    assert result == {"validation/loss": pytest.approx(row["validation/loss"], rel=1e-5)}
    assert result["validation/loss"] == pytest.approx(plain_loss(model, [TEXTS[i] for i in held_out]).item(), rel=1e-5)
    assert row["loss"] == pytest.approx(plain_loss(tiny.language_model(), [TEXTS[i] for i in kept]).item(), rel=1e-5)


def test_every_epoch_sees_every_row_in_another_order(tmp_path):
    model = tiny.language_model()
    orders = []
    trained = model.packed_logprobs
    model.packed_logprobs = lambda rows, masks: orders.append(rows.ids[0].tolist()) or trained(rows, masks)
    config = settings(epochs=3, minibatch_sequences=1, packing=False, optim=OptimConfig(learning_rate=1e-9))
    _, rows = train(model, TEXTS, config, tmp_path)
    assert len(rows) == 18
    epochs = [orders[:6], orders[6:12], orders[12:]]
    assert [sorted(epoch) for epoch in epochs] == [sorted(text.ids for text in TEXTS)] * 3
    assert epochs[0] != epochs[1] != epochs[2]


def test_at_least_one_row_is_trained_on():
    assert split_validation(1, 1.0, seed=0) == ([0], [])
    assert [len(side) for side in split_validation(100, 0.05, seed=0)] == [95, 5]


# ── what is learnt ───────────────────────────────────────────────────────────────────────────────────────────────────


def demonstration(prompt, response):
    return Demonstration(Prompt(prompt), response)


def test_response_and_its_eos_are_learnt_and_the_prompt_is_not():
    (text,), num_cut, _ = encode_demonstrations(
        [demonstration("abc", "de")], tiny.encoder(), max_prompt_tokens=8, max_tokens=12
    )
    assert text == LearntText([2, 3, 4, 5, 6, tiny.EOS], learnt_from=3)
    assert num_cut == 0


def test_overlong_responses_lose_their_end_and_are_counted():
    demonstrations = [demonstration("abc", "defghi"), demonstration("abc", "d"), demonstration("abcdefghi", "a")]
    texts, num_cut, num_without_end = encode_demonstrations(
        demonstrations, tiny.encoder(), max_prompt_tokens=5, max_tokens=6
    )
    assert texts[0] == LearntText([2, 3, 4, 5, 6, 7], learnt_from=3)
    assert texts[1] == LearntText([2, 3, 4, 5, tiny.EOS], learnt_from=3)
    assert texts[2] == LearntText([6, 7, 8, 9, 10, 2], learnt_from=5)  # the prompt lost its beginning, and the EOS
    assert num_cut == num_without_end == 2


def test_a_prompt_that_is_cut_leaves_the_end_of_its_response():
    (text,), num_cut, num_without_end = encode_demonstrations(
        [demonstration("abcdefghi", "a")], tiny.encoder(), max_prompt_tokens=5, max_tokens=8
    )
    assert text.ids == [6, 7, 8, 9, 10, 2, tiny.EOS]
    assert (num_cut, num_without_end) == (1, 0)


def test_a_prompt_that_leaves_no_room_for_a_response_is_left_out_and_counted():
    texts, num_cut, _ = encode_demonstrations(
        [demonstration("abcdef", "a"), demonstration("a", "b")], tiny.encoder(), max_prompt_tokens=8, max_tokens=6
    )
    assert [text.ids for text in texts] == [[2, 3, tiny.EOS]]
    assert num_cut == 1


def test_a_conversation_is_learnt_from_where_the_assistant_speaks():
    (text,), *_ = encode_demonstrations(
        [Demonstration(Prompt((Message("user", "ab"),)), "cd")], speaking(), max_prompt_tokens=8, max_tokens=12
    )
    assert text == LearntText([2, 3, 13, 4, 5, tiny.EOS], learnt_from=3)


def speaking() -> Encoder:
    """A template that writes "l" before the assistant speaks and "k" after it spoke, but for the last time."""
    return Encoder(
        tiny.encoder().tokenizer,
        chat_template="{% for m in messages %}{{ 'l' if m['role'] == 'assistant' else '' }}{{ m['content'] }}"
        "{{ eos_token if m['role'] == 'assistant' else '' }}{% endfor %}{{ 'l' if add_generation_prompt else '' }}",
    )


def test_all_turns_of_the_assistant_are_learnt_or_the_last_alone():
    talk = (Message("user", "ab"), Message("assistant", "cd"), Message("user", "e"))
    demonstrations = [Demonstration(Prompt(talk), "f")]
    ids = [2, 3, 13, 4, 5, tiny.EOS, 6, 13, 7, tiny.EOS]
    (text,), *_ = encode_demonstrations(demonstrations, speaking(), max_prompt_tokens=12, max_tokens=12)
    assert text == LearntText(ids, learnt_from=8, earlier=((3, 6),))
    (last,), *_ = encode_demonstrations(demonstrations, speaking(), max_prompt_tokens=12, max_tokens=12, turns="last")
    assert last == LearntText(ids, learnt_from=8)
    (packed,) = [
        pack([row.ids], [row.learnt_from], earlier=[row.earlier], max_tokens=10, pad=tiny.PAD).targets[0].tolist()
        for row in (text,)
    ]
    assert [token for token, is_learnt in zip(ids, packed, strict=True) if is_learnt] == [4, 5, tiny.EOS, 7, tiny.EOS]


def test_of_a_whole_text_every_token_but_the_first_is_learnt():
    texts, num_cut = encode_texts(["abc", "abcdef"], tiny.encoder(), max_tokens=5)
    assert texts == [LearntText([2, 3, 4, tiny.EOS], 1), LearntText([2, 3, 4, 5, 6], 1)]
    assert num_cut == 1


def test_demonstrations_are_learnt_by_heart(tmp_path):
    model = tiny.language_model()
    optim = OptimConfig(learning_rate=2e-2)
    _, rows = train(model, TEXTS, settings(epochs=60, minibatch_sequences=2, optim=optim), tmp_path)
    assert rows[0]["loss"] > 2
    assert plain_loss(model, TEXTS).item() < 0.2


# ── trouble ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_rows_are_an_error(tmp_path):
    with pytest.raises(DataError, match="the stage sft has no rows to learn from"):
        train(tiny.language_model(), [], settings(), tmp_path)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path):
    model = tiny.language_model()
    with torch.no_grad():
        model.causal_lm.model.norm.weight[0] = math.nan
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with pytest.raises(TrainingError, match="loss of stage sft is nan in iteration 0, whose update was not made"):
        train(model, TEXTS, settings(), tmp_path)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.detach(), before[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kill_after", [1, 4, 8])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, kill_after):
    config = settings(
        epochs=3, minibatch_sequences=2, validation_share=0.2, checkpoint_minutes=1e-9, optim=OptimConfig()
    )
    whole, resumed = tiny.language_model(), tiny.language_model()
    result, rows = train(whole, TEXTS, config, tmp_path / "whole")
    assert len(rows) == 9
    with pytest.raises(KeyboardInterrupt):
        interrupted = tiny.Interrupting("sft", kill_after)
        train(tiny.language_model(), TEXTS, config, tmp_path / "killed", progress=interrupted)
    assert train(resumed, TEXTS, config, tmp_path / "killed") == (result, rows)
    for name, weight in whole.named_parameters():
        assert torch.equal(dict(resumed.named_parameters())[name], weight), name


def test_rows_of_a_prompt_are_on_one_side_of_the_validation_split():
    groups = [f"prompt {row % 25}" for row in range(100)]
    train, held_out = split_validation(100, 0.2, seed=3, groups=groups)
    assert sorted(train + held_out) == list(range(100))
    assert len(held_out) == 20
    assert not {groups[row] for row in train} & {groups[row] for row in held_out}
    assert (train, held_out) == split_validation(100, 0.2, seed=3, groups=groups)
    assert (train, held_out) != split_validation(100, 0.2, seed=4, groups=groups)


def test_one_prompt_is_not_parted_for_the_validation():
    assert split_validation(10, 0.3, seed=0, groups=["same"] * 10) == (list(range(10)), [])
