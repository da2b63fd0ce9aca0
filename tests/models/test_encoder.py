import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rlhfkit.errors import ConfigError, DataError
from rlhfkit.models.encoder import TRANSCRIPT_TEMPLATE, Encoder, read_template
from rlhfkit.records import Message, Prompt
from tests.tiny import EOS, PAD, byte_tokenizer

CHATML = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PLAIN = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    "{{ m['content'] }}{% endfor %}"
)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """Bytes, without a chat template of its own."""
    return Encoder(byte_tokenizer())


@pytest.fixture(scope="module")
def chat() -> Encoder:
    return Encoder(byte_tokenizer(), chat_template=CHATML)


def bos_tokenizer(*, ends_with_eos: bool = False) -> PreTrainedTokenizerFast:
    """Bytes after a BOS, which most tokenizers add by themselves, and before an EOS, which a few do."""
    tokenizer = byte_tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<|pad|>")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if ends_with_eos else "<s> $A", special_tokens=[("<s>", bos), ("</s>", eos)]
    )
    return tokenizer


def conversation(*turns: tuple[str, str], origin: str = "") -> Prompt:
    return Prompt(tuple(Message(role, text) for role, text in turns), origin=origin)


def text_of(encoder: Encoder, ids) -> str:
    return encoder.tokenizer.decode(ids)


# ── templates ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_text_is_taken_as_it_is(encoder):
    assert encoder.prompt_text(Prompt("Once upon")) == "Once upon"
    assert text_of(encoder, encoder.prompt_ids(Prompt("Once upon"))) == "Once upon"


def test_conversation_without_template_becomes_a_transcript(encoder):
    prompt = conversation(("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"))
    assert encoder.uses_fallback
    assert encoder.prompt_text(prompt) == (
        "Be kind.\n\nHuman: Hi\n\nAssistant: Hello<|endoftext|>\n\nHuman: Bye\n\nAssistant:"
    )


def test_response_to_a_transcript_gets_the_space_that_assistant_needs(encoder):
    prompt = conversation(("user", "Hi"))
    assert text_of(encoder, encoder.response_ids(prompt, "Hello", finished=False)) == " Hello"
    assert text_of(encoder, encoder.response_ids(prompt, " Hello", finished=False)) == " Hello"
    assert text_of(encoder, encoder.response_ids(Prompt("Hi"), "Hello", finished=False)) == "Hello"


def test_transcript_with_its_response_is_the_transcript_of_the_longer_conversation(encoder):
    prompt = conversation(("user", "Hi"))
    ids = encoder.prompt_ids(prompt) + encoder.response_ids(prompt, "Hello")
    longer = encoder.prompt_text(conversation(("user", "Hi"), ("assistant", "Hello"), ("user", "")))
    assert longer.startswith(text_of(encoder, ids) + "\n\nHuman: ")


def test_chat_template_is_used_and_its_response_gets_no_space(chat):
    prompt = conversation(("user", "Hi"))
    assert not chat.uses_fallback
    assert chat.prompt_text(prompt) == "<user>Hi</s><assistant>"
    assert text_of(chat, chat.response_ids(prompt, "Hello", finished=False)) == "Hello"


def test_response_gets_the_space_that_a_chat_template_puts_before_it():
    """As Llama 2's and Mistral's do."""
    spaced = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %}{{ ' ' + m['content'] + '</s>' }}{% endif %}{% endfor %}"
    )
    encoder = Encoder(byte_tokenizer(), chat_template=spaced)
    prompt = conversation(("user", "Hi"))
    assert encoder.prompt_text(prompt) == "[INST] Hi [/INST]"
    assert text_of(encoder, encoder.response_ids(prompt, "Hello", finished=False)) == " Hello"
    assert text_of(encoder, encoder.response_ids(Prompt("Hi"), "Hello", finished=False)) == "Hello"


def test_the_tokenizers_own_template_comes_before_transcripts():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = PLAIN
    assert Encoder(tokenizer).chat_template == PLAIN
    assert Encoder(tokenizer, chat_template=STRICT).chat_template.endswith(STRICT)


def test_template_stays_with_the_saved_tokenizer(tmp_path):
    for template in (PLAIN, None):
        encoder = Encoder(byte_tokenizer(), chat_template=template)
        encoder.tokenizer.save_pretrained(tmp_path)
        again = Encoder(PreTrainedTokenizerFast.from_pretrained(tmp_path))
        assert again.chat_template == (template or TRANSCRIPT_TEMPLATE)
        assert again.uses_fallback == encoder.uses_fallback
        assert again.template_hash == encoder.template_hash


def test_other_templates_have_other_hashes(encoder, chat):
    assert encoder.template_hash != chat.template_hash


def test_of_several_templates_the_default_is_taken_as_transformers_does():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"tools": STRICT, "default": CHATML}
    encoder = Encoder(tokenizer)
    assert encoder.prompt_text(conversation(("user", "Hi"))) == "<user>Hi</s><assistant>"


def test_a_choice_of_templates_without_a_default_is_not_ours_to_make():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"rag": CHATML, "tools": STRICT}
    with pytest.raises(ConfigError, match=r"several chat templates \(rag, tools\).*model\.chat_template"):
        Encoder(tokenizer)


def test_conversation_that_the_template_refuses_is_named():
    encoder = Encoder(byte_tokenizer(), chat_template=STRICT)
    prompt = conversation(("system", "Be kind."), ("user", "Hi"), origin="chats.jsonl:3")
    with pytest.raises(DataError, match=r"chats\.jsonl:3 does not fit the chat template \(no system turns\).*'system'"):
        encoder.encode(prompt, max_tokens=100)


def test_template_file_is_read_or_refused(tmp_path):
    (tmp_path / "good.jinja").write_text(CHATML)
    (tmp_path / "bad.jinja").write_text("\n{% for m in %}")
    assert read_template(str(tmp_path / "good.jinja")) == CHATML
    with pytest.raises(ConfigError, match=r"bad\.jinja:2 is not Jinja"):
        read_template(str(tmp_path / "bad.jinja"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_template(str(tmp_path / "none.jinja"))


# ── special tokens ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_response_ends_with_eos_where_it_is_finished(encoder):
    finished = encoder.response_ids(Prompt("a"), "b", finished=True)
    assert finished == [*encoder.response_ids(Prompt("a"), "b", finished=False), EOS]


@pytest.mark.parametrize("ends_with_eos", [False, True])
def test_bos_begins_text_and_transcripts_once_and_eos_never_ends_a_prompt(ends_with_eos):
    encoder = Encoder(bos_tokenizer(ends_with_eos=ends_with_eos))
    assert text_of(encoder, encoder.prompt_ids(Prompt("ab"))) == "<s>ab"
    assert text_of(encoder, encoder.prompt_ids(conversation(("user", "ab")))) == "<s>\n\nHuman: ab\n\nAssistant:"
    assert text_of(encoder, encoder.response_ids(Prompt("ab"), "c")) == "c</s>"


def test_bos_is_the_chat_templates_own_business():
    encoder = Encoder(bos_tokenizer(), chat_template="{{ bos_token }}" + CHATML)
    ids = encoder.prompt_ids(conversation(("user", "ab")))
    assert ids.count(encoder.tokenizer.bos_token_id) == 1
    assert text_of(encoder, ids) == "<s><user>ab</s><assistant>"


def test_bos_survives_the_cut():
    encoder = Encoder(bos_tokenizer())
    cut = encoder.encode(Prompt("one two three four five"), max_tokens=12)
    assert text_of(encoder, cut.ids) == "<s>four five"


def test_a_conversation_that_spells_out_a_special_token_keeps_its_letters(chat):
    for token in ("<|pad|>", "<|endoftext|>"):
        ids = chat.prompt_ids(conversation(("user", f"a{token}b")))
        assert text_of(chat, ids) == f"<user>a{token}b</s><assistant>"
        assert not {PAD, EOS} & set(ids)


def test_a_special_token_spelled_out_in_plain_text_is_just_characters(encoder):
    for token in (encoder.tokenizer.eos_token, encoder.tokenizer.pad_token):
        prompt, text = Prompt(f"a{token}b"), f"c{token}d"
        ids = [*encoder.prompt_ids(prompt), *encoder.response_ids(prompt, text, finished=False)]
        assert encoder.decode(ids) == f"a{token}bc{token}d"


def test_decoded_text_has_no_special_tokens(encoder):
    assert encoder.decode([*encoder.response_ids(Prompt("a"), "well , then ."), EOS]) == "well , then ."


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Puts a space before each text and drops it when it decodes, as Llama 2, Mistral and Phi-3 do."""
    steps = ["wo", "wor", "worl", "world", "▁world"]
    tokens = ["<pad>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abdehlorw", *steps]
    merges = [("w", "o"), ("wo", "r"), ("wor", "l"), ("worl", "d"), ("▁", "world")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def test_response_keeps_its_first_space_though_the_tokenizer_drops_that_of_a_text():
    encoder = Encoder(llama_tokenizer())
    world = encoder.tokenizer.convert_tokens_to_ids("▁world")
    assert encoder.tokenizer.decode([world]) == "world"
    assert encoder.decode([world, world, encoder.eos_id]) == " world world"


def test_response_gets_no_space_though_the_tokenizer_gives_one_to_a_text():
    encoder = Encoder(llama_tokenizer())
    assert encoder.tokenizer.tokenize("world") == ["▁world"]
    for response, tokens in {"world": ["world"], " world": ["▁world"], "\nworld": ["<0x0A>", "world"]}.items():
        ids = encoder.response_ids(Prompt("a"), response, finished=False)
        assert encoder.tokenizer.convert_ids_to_tokens(ids) == tokens
        assert encoder.decode(ids) == response


def test_response_gets_no_space_where_the_tokenizer_adds_one_and_keeps_it():
    """As GPT-2's with add_prefix_space, and RoBERTa's in some models."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    encoder = Encoder(tokenizer)
    assert text_of(encoder, encoder.tokenizer("yes")["input_ids"]) == " yes"
    for response in ("yes", " yes", "\nyes", "yes no"):
        ids = encoder.response_ids(Prompt("Is it?"), response, finished=False)
        assert text_of(encoder, ids) == response
        assert len(ids) == len(response)
        assert encoder.decode(ids) == response


@pytest.mark.parametrize("response", ["b c", " b", "\n\nb", "", "é\n"])
@pytest.mark.parametrize("make", [byte_tokenizer, bos_tokenizer, llama_tokenizer])
def test_response_comes_back_from_its_tokens(make, response):
    encoder = Encoder(make())
    assert encoder.decode(encoder.response_ids(Prompt("a"), response)) == response


GEMMA_LIKE = (
    "{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
)


def test_a_response_ends_with_what_the_template_writes_before_it_ends_with_eos():
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    encoder = Encoder(tokenizer, chat_template=GEMMA_LIKE)
    assert encoder.eos_ids == (tokenizer.convert_tokens_to_ids("<end_of_turn>"), EOS)


def test_without_an_ending_of_the_template_a_response_ends_with_eos(encoder):
    assert encoder.eos_ids == (EOS,)


# ── cutting ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_text_that_fits_is_whole(encoder):
    encoded = encoder.encode(Prompt("0123456789"), max_tokens=10)
    assert (encoded.text, len(encoded.ids), encoded.was_cut) == ("0123456789", 10, False)


@pytest.mark.parametrize(
    ("text", "max_tokens", "kept"),
    [
        ("one two three four", 15, "two three four"),
        ("first line\nsecond line here", 19, "second line here"),
        ("first line\nsecond line here", 17, "second line here"),
        ("no_boundary_anywhere", 8, "anywhere"),
        ("far away\nfrom the_end_of_it_all", 25, "from the_end_of_it_all"),
        ("a bcdefghijklmnopqrstuvwxyz", 20, "ghijklmnopqrstuvwxyz"),
    ],
)
def test_text_loses_its_beginning_at_a_line_or_else_a_word(encoder, text, max_tokens, kept):
    encoded = encoder.encode(Prompt(text, origin="x"), max_tokens=max_tokens)
    assert (encoded.text, encoded.was_cut) == (kept, True)
    assert text_of(encoder, encoded.ids) == kept
    assert encoded.prompt.content == kept
    assert encoded.prompt.origin == "x"


def test_conversation_loses_its_oldest_turns_in_pairs_and_keeps_system_and_tail(chat):
    prompt = conversation(
        ("system", "S"), ("user", "u1"), ("assistant", "a1"), ("user", "u2"), ("assistant", "a2"), ("user", "u3")
    )
    first, second = (f"<user>u{at}</s><assistant>a{at}<|endoftext|></s>" for at in (1, 2))
    whole = f"<system>S</s>{first}{second}<user>u3</s><assistant>"
    num = len(whole) - 2 * len("<|endoftext|>") + 2  # each letter is a token, and EOS is one
    assert chat.encode(prompt, max_tokens=num).text == whole
    cut = chat.encode(prompt, max_tokens=num - 1)
    assert cut.text == f"<system>S</s>{second}<user>u3</s><assistant>"
    assert cut.was_cut
    assert chat.encode(prompt, max_tokens=len(cut.ids) - 1).text == "<system>S</s><user>u3</s><assistant>"


def test_last_turn_that_is_too_long_loses_its_middle_at_words(chat):
    prompt = conversation(("user", "tell me a story about the old sea"))
    whole = "<user>tell me a story about the old sea</s><assistant>"
    cut = chat.encode(prompt, max_tokens=len(whole) - 10)
    assert cut.text == "<user>tell ... the old sea</s><assistant>"
    assert text_of(chat, cut.ids) == cut.text
    assert cut.share_lost == pytest.approx(1 - len(cut.text) / len(whole))


def test_the_last_words_of_the_user_are_never_cut(chat):
    question = "At what time does the museum close?"
    prompt = conversation(("system", "s" * 50), ("user", f"{'It rains. ' * 40}{question}"))
    for room in range(60, 200, 10):
        assert chat.encode(prompt, max_tokens=room + len(question)).text.endswith(f"{question}</s><assistant>")


def test_a_long_system_turn_gives_way_to_the_user(chat):
    prompt = conversation(("system", "You are a guide. " * 30 + "Be brief."), ("user", "Where?"))
    cut = chat.encode(prompt, max_tokens=100)
    assert len(cut.ids) <= 100
    assert cut.text.startswith("<system>You are")
    assert "Be brief.</s>" in cut.text


def test_a_cut_at_a_word_never_makes_more_tokens():
    """Here " realism" is one token, and "realism" is seven."""
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", -99.0),
        (" realism", -1.0),
        *((x, -10.0) for x in "abcdefgilmrs"),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>"))
    assert encoder.encode(Prompt("abcdefg realism"), max_tokens=1).text == " realism"


def test_a_prompt_without_tokens_is_refused(encoder):
    with pytest.raises(DataError, match=r"rows\.jsonl:7 has no tokens"):
        encoder.encode(Prompt("", origin="rows.jsonl:7"), max_tokens=10)


def test_a_template_that_does_not_fit_is_refused_with_the_numbers(chat):
    with pytest.raises(DataError, match=r"a\.csv:2 needs 22 tokens even when cut, and data.max_prompt_tokens is 12"):
        chat.encode(conversation(("user", "hello"), origin="a.csv:2"), max_tokens=12)


# ── an environment's words ───────────────────────────────────────────────────────────────────────────────────────────

HI = conversation(("user", "Hi"))
POCKET = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<u>{{ m['content'] }}\n"
    "{% else %}<a>{{ m['content'] }}{{ '</s>' if loop.last else '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
NUMBERED = "{% for m in messages %}{{ loop.index }}. {{ m['content'] }}\n{% endfor %}"
FORGETFUL = "{% for m in messages[-1:] %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


def marking(template: str) -> Encoder:
    return Encoder(byte_tokenizer(eos_token="</s>", pad_token="<|pad|>"), chat_template=template)


def test_words_of_an_environment_are_appended_to_text_as_they_stand(encoder):
    assert encoder.observation(Prompt("Go"), " north\n") == " north\n"
    assert text_of(encoder, encoder.observation_ids(Prompt("Go"), " north\n", after=[EOS])) == " north\n"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, "</s><user>Bye</s><assistant>"),
        (POCKET, "\n<u>Bye\n<a>"),
        (TRANSCRIPT_TEMPLATE, "</s>\n\nHuman: Bye\n\nAssistant:"),
    ],
    ids=["chatml", "pocket", "transcript"],
)
def test_words_of_an_environment_are_the_users_next_turn(template, expected):
    chat = marking(template)
    assert chat.observation(HI, "Bye") == expected
    ids = chat.observation_ids(HI, "Bye", after=chat.response_ids(HI, "Yo", finished=False))
    assert text_of(chat, ids) == expected


@pytest.mark.parametrize(
    ("template", "why"), [(FORGETFUL, "drops or rewrites earlier turns"), (NUMBERED, "depends on the turns before")]
)
def test_a_template_that_cannot_go_on_is_refused_and_says_why(template, why):
    with pytest.raises(ConfigError, match=rf"user's next turn cannot be written by the chat template: .*{why}"):
        marking(template).observation(HI, "Bye")


@pytest.mark.parametrize("template", [CHATML, POCKET, TRANSCRIPT_TEMPLATE])
def test_a_conversation_in_an_environment_reads_as_the_template_writes_it(template):
    chat = marking(template)
    longer = conversation(("user", "Hi"), ("assistant", "Yo"), ("user", "Bye"))
    response = chat.response_ids(HI, "Yo", finished=False)
    ids = [*chat.prompt_ids(HI), *response, *chat.observation_ids(HI, "Bye", after=response)]
    assert ids == chat.prompt_ids(longer)


def test_the_mark_that_ended_a_response_is_not_said_twice():
    chat = marking(CHATML)
    response = chat.response_ids(HI, "Yo")
    assert response[-1] == chat.eos_id
    assert text_of(chat, chat.observation_ids(HI, "Bye", after=response)) == "<user>Bye</s><assistant>"


def test_an_eos_that_the_template_does_not_write_stays_before_its_marks():
    chat = marking(POCKET)
    assert text_of(chat, chat.observation_ids(HI, "Bye", after=[chat.eos_id])) == "\n<u>Bye\n<a>"


def test_a_letter_that_ended_a_response_is_said_again():
    chat = marking(POCKET)
    cut = chat.response_ids(HI, "Yo\n", finished=False)  # at the length limit, where the marks begin with a line break
    assert text_of(chat, chat.observation_ids(HI, "Bye", after=cut)) == "\n<u>Bye\n<a>"


def test_a_template_that_is_not_jinja_is_reported_as_such_and_not_laid_on_the_rows():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}"
    with pytest.raises(ConfigError, match=r"template is not Jinja \(line 1: .*endfor.*correct it where it stands"):
        Encoder(tokenizer).encode(Prompt((Message("user", "Hi"),)), max_tokens=None)
