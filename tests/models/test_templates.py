"""Prompt and response join as the templates of 22 kinds of models write them, in every stage.

The oracle is transformers: `apply_chat_template` renders, and the tokenizer encodes what it has rendered.
"""

from datetime import datetime

import pytest
from transformers import AutoTokenizer

from rlhfkit.config.model import PretrainedModelConfig
from rlhfkit.errors import DataError
from rlhfkit.models.encoder import Encoder
from rlhfkit.models.joins import remarks_on_rows
from rlhfkit.models.loading import load_tokenizer
from rlhfkit.models.reward_model import reward_ids
from rlhfkit.records import Demonstration, Message, Prompt
from rlhfkit.rewards.model import classifier_template, written_by
from rlhfkit.rollout.generation import stop_token_ids
from rlhfkit.training.sft import encode_demonstrations
from tests import tiny
from tests.models.chat_templates import TEMPLATES, Format, tokenizer_of

TALK = (Message("user", "Is it so?"), Message("assistant", "It is, yes."), Message("user", "And\nnow?"))
ANSWER = "Not any more."
NAMES = sorted(TEMPLATES)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def encoders() -> dict[str, Encoder]:
    return {name: Encoder(tokenizer_of(form)) for name, form in TEMPLATES.items()}


def conversation(form: Format, turns: tuple[Message, ...], *, system: bool = True) -> Prompt:
    first = (Message("system", "Be brief."),) if system and form.system else ()
    return Prompt((*first, *turns), origin="rows.jsonl:1")


def rendered(encoder: Encoder, prompt: Prompt, *answers: str, generation: bool = False) -> str:
    """What transformers renders."""
    assert not isinstance(prompt.content, str)
    messages = [message._asdict() for message in prompt.content]
    messages += [{"role": "assistant", "content": answer} for answer in answers]
    return str(encoder.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation))


def ids_of(encoder: Encoder, text: str) -> list[int]:
    return list(encoder.tokenizer(text, add_special_tokens=False)["input_ids"])


def finished(encoder: Encoder, form: Format, prompt: Prompt, answer: str) -> list[int]:
    """The whole conversation up to the end of the assistant's turn, as transformers renders and encodes it."""
    text = rendered(encoder, prompt, answer)
    if form.ending is None:
        return ids_of(encoder, f"{text}{form.next_turn}")
    last = text.index(form.ending, text.rindex(answer)) + len(form.ending)
    return ids_of(encoder, text[:last])


@pytest.mark.parametrize("system", [False, True])
def test_prompt_is_what_transformers_renders_and_encodes(name, encoders, system):
    encoder, prompt = encoders[name], conversation(TEMPLATES[name], TALK, system=system)
    assert encoder.prompt_text(prompt) == rendered(encoder, prompt, generation=True)
    assert encoder.prompt_ids(prompt) == ids_of(encoder, rendered(encoder, prompt, generation=True))


@pytest.mark.parametrize("turns", [TALK[:1], TALK], ids=["one turn", "three turns"])
def test_prompt_and_response_are_the_templates_own_conversation(name, encoders, turns):
    encoder, form = encoders[name], TEMPLATES[name]
    prompt = conversation(form, turns)
    before, after = encoder.joined(prompt, ANSWER)
    whole = finished(encoder, form, prompt, ANSWER)
    text = encoder.tokenizer.decode([*before, *after])
    assert text == encoder.tokenizer.decode(whole)
    asked = encoder.prompt_ids(prompt)
    if encoder.turns.opened:  # a finished conversation lacks the <think> that the prompt ends with
        assert name == "deepseek-r1"
        assert before == asked[: len(before)]
        assert [*before, *after] == whole
    else:
        assert before == asked
        # Where one token would cover the end of the prompt and the beginning of the response, there are two.
        assert [*before, *after] == whole or name in ("qwen3.5", "nemotron-3")
    assert encoder.response_ids(prompt, ANSWER) == after


def test_a_response_that_is_not_finished_is_the_same_without_its_ending(name, encoders):
    encoder, form = encoders[name], TEMPLATES[name]
    prompt = conversation(form, TALK[:1])
    whole, part = encoder.response_ids(prompt, ANSWER), encoder.response_ids(prompt, ANSWER, finished=False)
    assert whole[: len(part)] == part
    assert encoder.tokenizer.decode(part).endswith(ANSWER)
    assert whole[-1] == encoder.eos_ids[0]


def test_a_response_ends_with_the_templates_ending(name, encoders):
    encoder, form = encoders[name], TEMPLATES[name]
    expected = [form.ending or form.next_turn, form.eos]
    assert encoder.eos_ids == tuple(dict.fromkeys(encoder.tokenizer.convert_tokens_to_ids(expected)))


def test_sft_and_reward_model_read_the_same_ids(name, encoders):
    encoder = encoders[name]
    prompt = conversation(TEMPLATES[name], TALK)
    before, after = encoder.joined(prompt, ANSWER)
    (text,), num_cut, _ = encode_demonstrations(
        [Demonstration(prompt, ANSWER)], encoder, max_prompt_tokens=500, max_tokens=600
    )
    assert (text.ids, text.learnt_from, num_cut) == ([*before, *after], len(before), 0)
    assert reward_ids(encoder, prompt, ANSWER, finished=True, max_tokens=600) == [*before, *after]


def test_sft_learns_all_turns_of_the_assistant_and_their_endings(name, encoders):
    encoder, form = encoders[name], TEMPLATES[name]
    demonstration = Demonstration(conversation(form, TALK), ANSWER)
    (text,), *_ = encode_demonstrations([demonstration], encoder, max_prompt_tokens=500, max_tokens=600)
    ((start, end),) = text.earlier
    said = encoder.tokenizer.decode(text.ids[start:end])
    ending = {"gpt-oss": "<|end|>", "llama-2": " </s>"}.get(name, form.ending or form.next_turn)
    ending = "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>" if name == "cohere-2" else ending
    head = {"gpt-oss": "<|channel|>final<|message|>", "cohere-2": "<|START_RESPONSE|>"}.get(name, "")
    head = {"glm-4-moe": "\n<think></think>\n", "smollm3": "<think>\n\n</think>\n\n"}.get(name, head)
    head = "\n\n</think>\n\n" if name == "nemotron-3" else head  # one token covers the end of the prompt too
    assert said.removeprefix(head).strip() == f"{TALK[1].content}{ending}"
    assert said.startswith(head)
    (last,), *_ = encode_demonstrations([demonstration], encoder, max_prompt_tokens=500, max_tokens=600, turns="last")
    assert (last.ids, last.earlier) == (text.ids, ())


def test_a_conversation_in_an_environment_reads_as_the_template_writes_it(name, encoders):
    encoder, form = encoders[name], TEMPLATES[name]
    first, longer = conversation(form, TALK[:1]), conversation(form, TALK)
    sampled = encoder.response_ids(first, TALK[1].content)
    ids = [*encoder.prompt_ids(first), *sampled, *encoder.observation_ids(first, "And\nnow?", after=sampled)]
    text, expected = encoder.tokenizer.decode(ids), encoder.tokenizer.decode(encoder.prompt_ids(longer))
    if name == "gpt-oss":  # the last turn ends with another token than earlier ones, and it is the one that is sampled
        text = text.replace("<|return|>", "<|end|>")
    if name in ("qwen3", "qwen3.5"):  # what was thought is left out of earlier turns, and it was sampled
        text, expected = (part.replace("<think>\n\n</think>\n\n", "", 1) for part in (text, expected))
    if name == "deepseek-r1":
        text = text.replace("<think>\n", "", 1)
    assert text == expected


# A template without endings, a conversation of three turns as it has to be read, and where the response in it ends.
WITHOUT_ENDINGS = {
    "glm-4-moe": (
        "[gMASK]<sop><|user|>\nIs it so?<|assistant|>\n<think></think>\nIt is, yes.<|user|>\nAnd\nnow?<|assistant|>",
        "<|user|>",
    ),
    "falcon": (
        "User: Is it so?\nAssistant: It is, yes.<|endoftext|>\nUser: And\nnow?\nAssistant:",
        "<|endoftext|>",
    ),
}


@pytest.mark.parametrize("name", WITHOUT_ENDINGS)
def test_where_a_template_writes_no_ending_all_that_reads_a_conversation_ends_turns_alike(name, encoders, tmp_path):
    encoder = encoders[name]
    whole, end = WITHOUT_ENDINGS[name]
    expected = ids_of(encoder, whole)
    first, longer = Prompt(TALK[:1]), Prompt(TALK)
    sampled = encoder.response_ids(first, TALK[1].content)
    in_an_environment = [
        *encoder.prompt_ids(first),
        *sampled,
        *encoder.observation_ids(first, "And\nnow?", after=sampled),
    ]
    (text,), *_ = encode_demonstrations([Demonstration(longer, ANSWER)], encoder, max_prompt_tokens=500, max_tokens=600)
    encoder.tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    served = saved.apply_chat_template([turn._asdict() for turn in TALK], add_generation_prompt=True, return_dict=False)
    assert encoder.prompt_ids(longer) == expected  # as PPO and the evaluation prompt
    assert in_an_environment == expected
    assert text.ids[: text.learnt_from] == expected
    assert served == expected
    (end_id,) = ids_of(encoder, end)
    assert sampled[-1] == text.ids[-1] == encoder.eos_ids[0] == end_id
    ((_, stop),) = text.earlier
    assert text.ids[stop - 1] == end_id
    assert Encoder(saved).chat_template == encoder.chat_template  # what has endings gets no others


def test_a_template_that_gets_endings_keeps_what_is_not_said():
    tokenizer = tokenizer_of(
        Format("\n{% for m in messages %}{{ m['content'] }}.{{ m['tool_calls'] }}\n{% endfor %}", "E")
    )
    Encoder(tokenizer)
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "c", "tool_calls": "t"}]
    turns += [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": None}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "\nq.\nc.t\naE.\n.\n"


def test_the_saved_template_is_the_models_own_and_writes_the_day_of_its_use(tmp_path):
    form = TEMPLATES["llama-3"]
    encoder = Encoder(tokenizer_of(form), now=datetime(2021, 3, 4))
    assert "Today Date: 04 Mar 2021" in encoder.prompt_text(Prompt(TALK[:1]))
    encoder.tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved.chat_template == form.template
    served = saved.apply_chat_template([TALK[0]._asdict()], tokenize=False)
    assert f"Today Date: {datetime.now():%d %b %Y}" in served


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama-3", ["the chat template writes the date: ", "; the saved template still writes that of the day"]),
        ("falcon", ["nothing that ends a turn: <|endoftext|> ends the assistant's, in the saved template too"]),
        ("qwen2.5", []),
    ],
)
def test_what_differs_between_training_and_the_saved_template_is_said_once(name, words, tmp_path):
    tokenizer_of(TEMPLATES[name]).save_pretrained(tmp_path / "model")
    building = tiny.builder(tmp_path / "model", tmp_path / "run")
    for _ in range(2):
        building.encoder(PretrainedModelConfig(path=str(tmp_path / "model")))
    assert len(building.notes) == bool(words)
    assert all(part in building.notes[0] for part in words)


def test_a_conversation_goes_on_where_a_response_reached_the_limit_or_ended_with_eos(name, encoders):
    encoder, form = encoders[name], TEMPLATES[name]
    first = conversation(form, TALK[:1])
    words = encoder.response_ids(first, "It", finished=False)
    after = encoder.tokenizer.decode(encoder.observation_ids(first, "Oh", after=words))
    assert after.startswith(encoder.turns.between.lstrip() if form.spaced else encoder.turns.between)
    assert "Oh" in after


def test_saved_tokenizer_gives_the_ids_of_training(name, encoders, tmp_path):
    encoder, form = encoders[name], TEMPLATES[name]
    encoder.tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    prompt = conversation(form, TALK)
    messages = [message._asdict() for message in prompt.content]
    asked = saved.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert asked == encoder.prompt_ids(prompt)


def test_sampled_words_are_the_answer_alone(name, encoders):
    encoder = encoders[name]
    prompt = conversation(TEMPLATES[name], TALK[:1])
    for finished_ in (True, False):
        assert encoder.decode(encoder.response_ids(prompt, ANSWER, finished=finished_)).strip() == ANSWER


def test_channels_before_the_last_are_no_part_of_the_answer(encoders):
    encoder = encoders["gpt-oss"]
    sampled = ids_of(
        encoder,
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>",
    )
    assert encoder.decode(sampled) == "Yes."


def test_the_date_is_the_runs(name, encoders):
    form = TEMPLATES[name]
    prompt = conversation(form, TALK[:1])
    then = Encoder(tokenizer_of(form), now=datetime(2021, 3, 4))
    text = then.prompt_text(prompt)
    assert ("2021" in text) == ("strftime_now" in form.template)
    assert text == Encoder(tokenizer_of(form), now=datetime(2021, 3, 4)).prompt_text(prompt)


def test_special_tokens_that_a_person_spells_are_letters(name, encoders):
    encoder, form = encoders[name], TEMPLATES[name]
    plain, spelled = (conversation(form, (Message("user", f"a{words}b"),)) for words in ("", form.eos))
    ids, longer = encoder.prompt_ids(plain), encoder.prompt_ids(spelled)
    assert longer.count(encoder.eos_id) == ids.count(encoder.eos_id)
    assert f"a{form.eos}b" in encoder.prompt_text(spelled)
    assert f"a{form.eos}b" in encoder.tokenizer.decode(longer)
    answer = encoder.response_ids(plain, f"x{form.eos}y")
    assert answer.count(encoder.eos_id) == encoder.response_ids(plain, "xy").count(encoder.eos_id)


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_that_join_are_not_remarked_upon(name, encoders):
    encoder = encoders[name]
    demonstration = Demonstration(conversation(TEMPLATES[name], TALK), ANSWER)
    remarks = list(remarks_on_rows(encoder, [demonstration]))
    if name == "deepseek-r1":
        assert "prompt ends with '<think>\\n', which a finished conversation has not" in remarks[0]
    elif name in ("qwen3.5", "nemotron-3"):
        assert remarks[0].startswith("rows.jsonl:1: one token of the tokenizer would cover the end of the prompt")
    else:
        assert remarks == []


def test_a_text_that_holds_marks_of_the_template_is_named_with_its_row(encoders):
    text = "<|im_start|>user\nWhat is red?<|im_end|>\n<|im_start|>assistant\n"
    rows = [Prompt("What is red?", origin="a.jsonl:1"), Prompt(text, origin="a.jsonl:2")]
    (remark,) = remarks_on_rows(encoders["qwen2.5"], rows)
    assert remark.startswith("a.jsonl:2: the prompt is text that holds '<|im_start|>'")
    assert "(1 of 2 rows), which is read as letters; give messages instead" in remark


def test_a_template_without_a_generation_prompt_gets_the_header_of_its_finished_conversations():
    form = Format(_without_generation_prompt(), "<|im_end|>", ("<|im_start|>", "<|im_end|>"))
    encoder = Encoder(tokenizer_of(form))
    prompt = Prompt(TALK[:1])
    assert encoder.prompt_text(prompt) == "<|im_start|>user\nIs it so?<|im_end|>\n<|im_start|>assistant\n"
    whole = rendered(encoder, prompt, ANSWER).removesuffix("\n")
    assert [*encoder.prompt_ids(prompt), *encoder.response_ids(prompt, ANSWER)] == ids_of(encoder, whole)
    (remark,) = remarks_on_rows(encoder, [prompt])
    assert "ignores add_generation_prompt, so prompts end with '<|im_start|>assistant\\n'" in remark


def _without_generation_prompt() -> str:
    return (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    )


# ── cutting, stopping, PAD ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_reward_models_cut_keeps_bos_the_head_of_the_template_and_the_last_words(name, encoders):
    encoder, form = encoders[name], TEMPLATES[name]
    long = conversation(form, (Message("user", "It rains. " * 60 + "Is it so?"),), system=False)
    whole = encoder.joined(conversation(form, TALK[:1], system=False), ANSWER)
    ids = reward_ids(encoder, long, ANSWER, finished=True, max_tokens=len(whole[0]) + len(whole[1]) + 30)
    assert len(ids) <= len(whole[0]) + len(whole[1]) + 30
    text, head = encoder.tokenizer.decode(ids), rendered(encoder, conversation(form, TALK[:1], system=False))
    assert text.startswith(head.partition(TALK[0].content)[0].strip())
    assert "Is it so?" in text
    assert ids[-len(whole[1]) :] == whole[1]


def test_a_stop_token_stops_at_tokens_that_hold_it_too(encoders):
    encoder = encoders["qwen2.5"]
    one, two = (encoder.tokenizer.convert_tokens_to_ids(token) for token in ("Ċ", "ĊĊ"))
    assert stop_token_ids(encoder, ["\n"]) == {one, two}
    end = encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert stop_token_ids(encoder, ["<|im_end|>"]) == {end}


@pytest.mark.parametrize(
    ("pad", "why"),
    [
        ("!", "PAD '!', which is a token of texts too"),
        ("<s>", "PAD equal to BOS"),
        ("</s>", "PAD equal to EOS"),
        ("[INST]", "PAD '[INST]', which its chat template writes"),
        (None, "no PAD"),
    ],
)
def test_a_pad_that_texts_hold_is_replaced_and_no_token_of_a_text_is_lost(tmp_path, pad, why):
    tokenizer = tokenizer_of(TEMPLATES["mistral-v3"])
    tokenizer.pad_token = pad
    tokenizer.save_pretrained(tmp_path)
    loaded, (note,) = load_tokenizer(PretrainedModelConfig(path=str(tmp_path)))
    assert why in note
    encoder = Encoder(loaded)
    assert encoder.tokenizer.pad_token == "<|pad|>" and encoder.pad_id not in (encoder.eos_id, loaded.bos_token_id)
    text = "Stop! Is 3! = 6?"
    assert loaded.decode(encoder.prompt_ids(Prompt(text))) == f"<s>{text}"
    assert encoder.decode(encoder.response_ids(Prompt("q"), text)) == text


def test_a_pad_of_its_own_stays(tmp_path):
    tokenizer_of(TEMPLATES["mistral-v3"]).save_pretrained(tmp_path)
    loaded, notes = load_tokenizer(PretrainedModelConfig(path=str(tmp_path)))
    assert (loaded.pad_token, notes) == ("<|pad|>", [])


def test_a_conversation_that_a_reward_models_template_refuses_is_named_with_that_model():
    template = classifier_template(tokenizer_of(TEMPLATES["gemma-2"]), now=None)
    prompt = Prompt((Message("system", "Be brief."), *TALK[:1]), origin="rows.jsonl:1")
    with pytest.raises(
        DataError, match=r"rows\.jsonl:1 does not fit the chat template of judge \(System role.*'system'"
    ):
        written_by(template, prompt, ANSWER, whose="judge")
