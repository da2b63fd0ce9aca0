"""What serves models gets the model: a Modelfile that says what the chat template says, a directory for vLLM."""

import json

import pytest

from rlhfkit.errors import ConfigError
from rlhfkit.handover.export import export_to
from rlhfkit.handover.ollama import ChatPieces, chat_pieces, modelfile
from tests.report.conftest import write_fake_run

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LAST_DIFFERS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}\n"
    "{% else %}<|assistant|>{{ m['content'] }}{{ eos_token if loop.last else '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NUMBERED = "{% for m in messages %}{{ loop.index }}. {{ m['content'] }}\n{% endfor %}"
TRIMMED = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | upper }}{% endfor %}"


def test_the_pieces_of_a_chat_template_are_found_by_rendering_it():
    pieces = chat_pieces(CHATML, bos="", eos="<|im_end|>", adds_bos=False)
    around = {role: (f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ("user", "assistant", "system")}
    assert (pieces.start, pieces.around, pieces.response) == ("", around, "<|im_start|>assistant\n")


@pytest.mark.parametrize(("adds_bos", "start"), [(False, "<s>"), (True, "")])
def test_bos_is_written_once(adds_bos, start):
    pieces = chat_pieces(LAST_DIFFERS, bos="<s>", eos="</s>", adds_bos=adds_bos)
    assert pieces.start == start and pieces.around["user"] == ("<|user|>", "\n")
    assert pieces.around["assistant"] == ("<|assistant|>", "\n") and pieces.response == "<|assistant|>"


@pytest.mark.parametrize("template", [NUMBERED, TRIMMED], ids=["numbered", "changed"])
def test_a_template_that_does_more_is_refused(template):
    with pytest.raises(ConfigError, match="does more than write something around each message"):
        chat_pieces(template, bos="", eos="</s>", adds_bos=False)


def test_a_modelfile_is_written_in_ollamas_language():
    pieces = ChatPieces("S", {"user": ("U{{", '"""'), "assistant": ("A\n", "\n")}, "R")
    sampling = {"temperature": 0.7, "top_k": 0, "top_p": 1.0}
    text = modelfile("m.gguf", pieces, stops=['<"end">'], sampling=sampling, context_tokens=64)
    assert text == (
        "FROM ./m.gguf\n"
        'TEMPLATE """S{{ range .Messages }}{{ if eq .Role "user" }}U{{ "{{" }}{{ .Content }}{{ "\\"\\"\\"" }}'
        '{{ else if eq .Role "assistant" }}A\n{{ .Content }}\n{{ end }}{{ end }}R"""\n'
        'PARAMETER stop "<\\"end\\">"\nPARAMETER temperature 0.7\nPARAMETER top_k 0\nPARAMETER top_p 1\n'
        "PARAMETER min_p 0\nPARAMETER repeat_penalty 1\nPARAMETER num_ctx 64\n"
    )
    plain = modelfile("m.gguf", None, stops=[], sampling={}, context_tokens=64)
    assert 'TEMPLATE """{{ .Prompt }}"""' in plain


def test_vllm_gets_the_files_of_the_model_and_the_command(tmp_path):
    run = write_fake_run(tmp_path / "run")
    run.recipe.write_text("")
    policy = run.model("policy")
    policy.mkdir(exist_ok=True)
    (policy / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 128}))
    (policy / "model.safetensors").write_bytes(b"weights")
    (policy / "notes.db").write_bytes(b"votes")
    made = export_to("vllm", run.path, directory=tmp_path / "out")
    assert {"config.json", "model.safetensors"} <= set(made.files) and "notes.db" not in made.files
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"weights"
    assert made.follow == f"vllm serve {tmp_path / 'out'} --served-model-name run --max-model-len 128"
    with pytest.raises(ConfigError, match="is there already; remove it"):
        export_to("vllm", run.path, directory=tmp_path / "out")
    with pytest.raises(ConfigError, match=r"ppo.iterations=3 has no effect on a model"):
        export_to("vllm", run.path, ["ppo.iterations=3"], directory=tmp_path / "other")
