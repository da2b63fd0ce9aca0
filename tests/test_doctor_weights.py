"""Whether weights and tokenizer end a response alike, by what will be trained and saved."""

from types import SimpleNamespace

import pytest

from rlhfkit.doctor.model import examine_vocabulary
from rlhfkit.models.encoder import Encoder
from tests.models.chat_templates import Format, tokenizer_of

MARKS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


def chatml(ending: str) -> str:
    said = "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] }}{{ " + ending + " }}{{ '\\n' }}"
    begins = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    return "{% for m in messages %}" + said + "{% endfor %}" + begins


@pytest.mark.parametrize(
    ("ending", "eos", "configured", "verdict"),
    [
        ("'<|im_end|>'", "<|im_end|>", "<|endoftext|>", "ok"),  # the template names it, so that it is what is saved
        ("'<|im_end|>'", "<|endoftext|>", "<|im_end|>", "ok"),  # turns end as the model's files say
        ("'<|im_end|>'", "<|endoftext|>", "<|endoftext|>", "ok"),
        ("eos_token", "<|im_end|>", "<|endoftext|>", "warning"),  # a template that takes any EOS is no witness
        ("''", "<|im_end|>", "<|endoftext|>", "warning"),
    ],
)
def test_an_eos_that_the_template_names_is_right_whatever_the_models_files_say(ending, eos, configured, verdict):
    encoder = Encoder(tokenizer_of(Format(chatml(ending), eos, MARKS)))
    config = SimpleNamespace(eos_token_id=encoder.tokenizer.convert_tokens_to_ids(configured))
    model = SimpleNamespace(encoder=encoder, config=config, causal_lm=SimpleNamespace(generation_config=None))
    (finding,) = examine_vocabulary(model, num_rows=len(encoder.tokenizer), num_added=0)
    assert finding.verdict == verdict, finding.seen
