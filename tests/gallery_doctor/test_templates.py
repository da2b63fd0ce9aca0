"""A gallery of broken set-ups, each of which doctor names rightly, and of healthy ones, in which it names nothing.

The model is tiny, and has learnt to write the grammar's reviews, so that it is no stranger to its own texts.
: templates."""

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, LlamaForCausalLM

from tests.gallery_doctor.desk import CHATML, EACH, END, SAID, copy_of_model, named


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("template", "verdict", "words"),
    [
        (CHATML, "fault", "<|im_start|>, <|im_end|> are no token of this tokenizer"),
        (f"{EACH}{{{{ m['role'] }}}}:{END}assistant:", "fault", "what the user says is not in what it writes"),
        (
            f"{EACH}{{% if m['role'] == 'user' %}}{SAID}{{% endif %}}{END}\nA:",
            "fault",
            "what the assistant says is not in what it writes",
        ),
        (f"{EACH}{SAID}\n{END}", "warning", "may go on as the user"),
    ],
    ids=["another model's", "without the user", "without the assistant", "without a beginning"],
)
def test_a_wrong_template_is_named(examine, tmp_path, template, verdict, words):
    (tmp_path / "template.jinja").write_text(template)
    template_file = f"model.chat_template={tmp_path / 'template.jinja'}"
    found = examine("chat.toml", template_file, "reward.function=gallery_rewards:coin")
    assert named(found) == {"model.template": verdict}
    assert words in found["model.template"].seen


def test_a_turn_that_ends_in_another_token_than_eos_ends_a_response(examine, desk, tmp_path):
    model = copy_of_model(desk, tmp_path, "chat_model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(model)
    grown = LlamaForCausalLM.from_pretrained(model)
    grown.resize_token_embeddings(len(tokenizer))
    grown.save_pretrained(model)
    found = examine("chat.toml", f"model.path={model}", "reward.function=gallery_rewards:coin")
    assert named(found) == {}
    assert "<|im_end|> ends a response" in found["model.template"].seen


def test_a_template_that_refuses_the_data_is_named(examine, tmp_path):
    (tmp_path / "template.jinja").write_text("{{ raise_exception('no users here') }}")
    found = examine("chat.toml", f"model.chat_template={tmp_path / 'template.jinja'}")
    assert named(found).get("data.prompts") == "fault"
    assert "no users here" in found["data.prompts"].seen


def test_bos_that_stands_twice_is_named(examine, desk, tmp_path):
    model = copy_of_model(desk, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.bos_token = "a"
    number = tokenizer.convert_tokens_to_ids("a")
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="a a $A", special_tokens=[("a", number)])
    tokenizer.save_pretrained(model)
    found = examine("reviews.toml", f"model.path={model}")
    assert found["model.first_prompt"].verdict == "warning"
    assert found["model.first_prompt"].seen.startswith("BOS stands twice")
