"""Chat templates with the structure and the marks of those that models come with, in minimal form."""

from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

__all__ = ["TEMPLATES", "Format", "tokenizer_of"]

LOOP, END = "{%- for m in messages -%}", "{%- endfor -%}"


@dataclass(frozen=True)
class Format:
    """A template, and the tokens that its tokenizer has for it."""

    template: str
    eos: str
    marks: tuple[str, ...] = ()
    bos: str | None = None
    tags: tuple[str, ...] = ()
    """Added tokens that are not special, as <think>."""
    ending: str | None = None
    """What the template ends the assistant's turn with; None: nothing."""
    next_turn: str | None = None
    """The mark of the next turn, which is then all that ends the assistant's."""
    spaced: bool = False
    """The tokenizer puts a space before a text, as Llama 2's does."""
    system: bool = True
    """Whether the template takes a turn of the system."""
    keeps: bool = True
    """Whether an earlier turn of the assistant is written as the last one is."""


def _chatml(before: str = "", answer: str = "{{ m['content'] }}", prompt: str = "<|im_start|>assistant\\n") -> str:
    return (
        f"{before}{LOOP}"
        "{%- if m['role'] == 'assistant' -%}{{ '<|im_start|>assistant\\n' }}" + answer + "{{ '<|im_end|>\\n' }}"
        "{%- else -%}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{%- endif -%}"
        f"{END}{{%- if add_generation_prompt -%}}{{{{ '{prompt}' }}}}{{%- endif -%}}"
    )


_LAST_USER = (
    "{%- set ns = namespace(last=-1) -%}"
    + LOOP
    + "{%- if m['role'] == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}"
    + END
)
_SPLIT = (
    "{%- set text = m['content'] -%}{%- set thought = '' -%}"
    "{%- if '</think>' in text -%}"
    "{%- set thought = text.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}"
    "{%- set text = text.split('</think>')[-1].lstrip('\\n') -%}{%- endif -%}"
)
_THINKING = (
    _SPLIT + "{%- if loop.index0 > ns.last -%}{{ '<think>\\n' + thought + '\\n</think>\\n\\n' + text }}"
    "{%- else -%}{{ text }}{%- endif -%}"
)
_IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_THINK = ("<think>", "</think>")
_INST = (
    "{{ bos_token }}" + LOOP + "{%- if m['role'] == 'system' -%}{{ raise_exception('no system turns') }}"
    "{%- elif m['role'] == 'user' -%}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{%- else -%}{{ ' ' + m['content'] + eos_token }}{%- endif -%}" + END
)
_LLAMA2 = (
    "{%- set system = '' -%}"
    + LOOP
    + "{%- if m['role'] == 'system' -%}{%- set ns = 0 -%}"
    + "{%- elif m['role'] == 'user' -%}{%- if loop.index0 > 0 and messages[loop.index0 - 1]['role'] == 'system' -%}"
    + "{{ bos_token + '[INST] <<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' + m['content'] + ' [/INST]' }}"
    + "{%- else -%}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}{%- endif -%}"
    + "{%- else -%}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{%- endif -%}"
    + END
)
_LLAMA3 = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set system = messages[0]['content'] | trim -%}"
    "{%- set messages = messages[1:] -%}{%- else -%}{%- set system = '' -%}{%- endif -%}"
    "{{ '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + strftime_now('%d %b %Y') + '\\n\\n' + system"
    " + '<|eot_id|>' }}" + LOOP + "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ m['content'] | trim }}{{ '<|eot_id|>' }}" + END + "{%- if add_generation_prompt -%}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}"
)


def _gemma(system: str) -> str:
    return (
        "{{ bos_token }}" + system + LOOP + "{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
        "{{ raise_exception('roles must alternate') }}{%- endif -%}"
        "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' }}"
        "{{ (first if loop.first else '') + m['content'] | trim }}{{ '<end_of_turn>\\n' }}"
        + END
        + "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"
    )


_GEMMA2 = _gemma(
    "{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}"
    "{%- set first = '' -%}"
)
_GEMMA3 = _gemma(
    "{%- if messages[0]['role'] == 'system' -%}{%- set first = messages[0]['content'] + '\\n\\n' -%}"
    "{%- set messages = messages[1:] -%}{%- else -%}{%- set first = '' -%}{%- endif -%}"
)
_PHI3 = (
    LOOP
    + "{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}"
    + END
    + "{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- else -%}{{ eos_token }}{%- endif -%}"
)
_PHI4 = (
    LOOP
    + "{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + '<|im_end|>' }}"
    + END
    + "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant<|im_sep|>' }}{%- endif -%}"
)
_ZEPHYR = (
    LOOP
    + "{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token + '\\n' }}"
    + END
    + "{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}"
)
_DEEPSEEK = (
    "{{ bos_token }}" + LOOP + "{%- if m['role'] == 'system' -%}{{ m['content'] }}"
    "{%- elif m['role'] == 'user' -%}{{ '<|User|>' + m['content'] }}"
    "{%- else -%}{{ '<|Assistant|>' + m['content'].split('</think>')[-1] + eos_token }}{%- endif -%}"
    + END
    + "{%- if add_generation_prompt -%}{{ '<|Assistant|><think>\\n' }}{%- endif -%}"
)
_GLM = (
    "{{ '[gMASK]<sop>' }}"
    + _LAST_USER
    + LOOP
    + "{%- if m['role'] == 'assistant' -%}{{ '<|assistant|>' }}"
    + _SPLIT
    + "{{ '\\n<think>' + (thought if loop.index0 > ns.last else '') + '</think>\\n' + text.strip() }}"
    + "{%- else -%}{{ '<|' + m['role'] + '|>\\n' + m['content'] }}{%- endif -%}"
    + END
    + "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)
_GPT_OSS = (
    "{{ '<|start|>system<|message|>Today is ' + strftime_now('%Y-%m-%d') + '.<|end|>' }}"
    + LOOP
    + "{%- if m['role'] == 'system' -%}{{ '<|start|>developer<|message|>' + m['content'] + '<|end|>' }}"
    "{%- elif m['role'] == 'user' -%}{{ '<|start|>user<|message|>' + m['content'] + '<|end|>' }}"
    "{%- elif loop.last -%}{{ '<|start|>assistant<|channel|>final<|message|>' + m['content'] + '<|return|>' }}"
    "{%- else -%}{{ '<|start|>assistant<|channel|>final<|message|>' + m['content'] + '<|end|>' }}{%- endif -%}"
    + END
    + "{%- if add_generation_prompt -%}{{ '<|start|>assistant' }}{%- endif -%}"
)
_COHERE2 = (
    "{{ bos_token }}"
    + LOOP
    + "{%- if m['role'] == 'assistant' -%}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>' }}"
    "{{ m['content'] }}{{ '<|END_RESPONSE|><|END_OF_TURN_TOKEN|>' }}{%- else -%}"
    "{{ '<|START_OF_TURN_TOKEN|><|' + m['role'].upper() + '_TOKEN|>' + m['content'] + '<|END_OF_TURN_TOKEN|>' }}"
    "{%- endif -%}"
    + END
    + "{%- if add_generation_prompt -%}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{%- endif -%}"
)
_GRANITE = (
    LOOP
    + "{{ '<|start_of_role|>' + m['role'] + '<|end_of_role|>' + m['content'] + '<|end_of_text|>\\n' }}"
    + END
    + "{%- if add_generation_prompt -%}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif -%}"
)
_FALCON = (
    LOOP
    + "{%- if not loop.first -%}{{ '\\n' }}{%- endif -%}{{ m['role'].capitalize() + ': ' + m['content'].strip() }}"
    + END
    + "{%- if add_generation_prompt -%}{{ '\\nAssistant:' }}{%- endif -%}"
)
_VICUNA = (
    LOOP + "{%- if m['role'] == 'system' -%}{{ m['content'] + ' ' }}{%- elif m['role'] == 'user' -%}"
    "{{ 'USER: ' + m['content'] + ' ' }}{%- else -%}{{ 'ASSISTANT: ' + m['content'] + eos_token }}{%- endif -%}"
    + END
    + "{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"
)
_TULU = (
    LOOP + "{%- if m['role'] == 'assistant' -%}{{ '<|assistant|>\\n' + m['content'] + eos_token }}"
    "{%- if not loop.last -%}{{ '\\n' }}{%- endif -%}"
    "{%- else -%}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '\\n' }}{%- endif -%}"
    + END
    + "{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}"
)
_OPENED = _SPLIT + "{{ '<think>\\n' + thought + '\\n</think>\\n\\n' + text }}"
_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>")
_TURN = ("<start_of_turn>", "<end_of_turn>")
_COHERE_MARKS = (
    *("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    *("<|USER_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|CHATBOT_TOKEN|>"),
)
_HARMONY = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>")
_GRANITE_MARKS = ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>")
_ROLES = ("<|user|>", "<|assistant|>", "<|system|>")

TEMPLATES: dict[str, Format] = {
    "qwen2.5": Format(_chatml(), "<|im_end|>", _IM, ending="<|im_end|>"),
    "qwen3": Format(_chatml(_LAST_USER, _THINKING), "<|im_end|>", _IM, tags=_THINK, ending="<|im_end|>", keeps=False),
    "qwen3.5": Format(
        _chatml(_LAST_USER, _THINKING, "<|im_start|>assistant\\n<think>\\n"),
        *("<|im_end|>", _IM),
        tags=_THINK,
        ending="<|im_end|>",
        keeps=False,
    ),
    "llama-2": Format(_LLAMA2, "</s>", bos="<s>", ending="</s>", spaced=True),
    "llama-3": Format(_LLAMA3, "<|end_of_text|>", _HEADERS, "<|begin_of_text|>", ending="<|eot_id|>"),
    "gemma-2": Format(_GEMMA2, "<eos>", _TURN, "<bos>", ending="<end_of_turn>", system=False),
    "gemma-3": Format(_GEMMA3, "<eos>", _TURN, "<bos>", ending="<end_of_turn>"),
    "phi-3": Format(_PHI3, "<|endoftext|>", (*_ROLES, "<|end|>"), ending="<|end|>", spaced=True),
    "phi-4": Format(_PHI4, "<|endoftext|>", (*_IM, "<|im_sep|>"), ending="<|im_end|>"),
    "mistral-v1": Format(_INST, "</s>", bos="<s>", ending="</s>", spaced=True, system=False),
    "mistral-v3": Format(_INST, "</s>", ("[INST]", "[/INST]"), "<s>", ending="</s>", system=False),
    "zephyr": Format(_ZEPHYR, "</s>", bos="<s>", ending="</s>"),
    "deepseek-r1": Format(
        _DEEPSEEK, "<|eos|>", ("<|User|>", "<|Assistant|>"), "<|bos|>", tags=_THINK, ending="<|eos|>"
    ),
    "glm-4-moe": Format(_GLM, "<|endoftext|>", (*_ROLES, "[gMASK]", "<sop>"), tags=_THINK, next_turn="<|user|>"),
    "gpt-oss": Format(_GPT_OSS, "<|return|>", _HARMONY, ending="<|return|>", keeps=False),
    "cohere-2": Format(_COHERE2, "<|END_OF_TURN_TOKEN|>", _COHERE_MARKS, "<BOS>", ending="<|END_OF_TURN_TOKEN|>"),
    "granite": Format(_GRANITE, "<|end_of_text|>", _GRANITE_MARKS, ending="<|end_of_text|>"),
    "nemotron-3": Format(
        _chatml("", _OPENED, "<|im_start|>assistant\\n<think>\\n"), "<|im_end|>", _IM, tags=_THINK, ending="<|im_end|>"
    ),
    "smollm3": Format(
        _chatml("{{ '<|im_start|>system\\nDate: ' + strftime_now('%d %B %Y') + '<|im_end|>\\n' }}", _OPENED),
        *("<|im_end|>", _IM),
        tags=_THINK,
        ending="<|im_end|>",
    ),
    "falcon": Format(_FALCON, "<|endoftext|>", ending="<|endoftext|>"),  # the encoder has it write EOS
    "vicuna": Format(_VICUNA, "</s>", bos="<s>", ending="</s>", spaced=True),
    "tulu": Format(_TULU, "</s>", bos="<s>", ending="</s>"),
}


def tokenizer_of(form: Format) -> PreTrainedTokenizerFast:
    """A tokenizer of letters with the tokens that the template needs, and one token for two line breaks."""
    specials = [form.eos, *([form.bos] if form.bos else []), "<|pad|>", *form.marks]
    tokenizer = _spaced_letters() if form.spaced else _letters()
    if form.bos:
        tokenizer.add_special_tokens([form.bos])
        single = [(form.bos, tokenizer.token_to_id(form.bos))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{form.bos} $A", special_tokens=single)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in dict.fromkeys(specials)])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in form.tags])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=form.bos,
        eos_token=form.eos,
        pad_token="<|pad|>",
        chat_template=form.template,
    )


def _letters() -> Tokenizer:
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ"]
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, [("Ċ", "Ċ")]))
    lines = pre_tokenizers.Split(Regex("\n+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _spaced_letters() -> Tokenizer:
    tokens = ["<unk>", "▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = {token: index for index, token in enumerate([*tokens, *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer
