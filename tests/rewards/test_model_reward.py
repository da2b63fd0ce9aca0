from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from rlhfkit.config.rewards import RewardModelRewardConfig
from rlhfkit.errors import ConfigError, ModelError
from rlhfkit.models.reward_model import Normalization, read_normalization
from rlhfkit.records import Message, Prompt
from rlhfkit.rewards.model import ClassifierReward, RewardModelReward
from rlhfkit.rewards.source import RewardSource, ScoredText
from tests.tiny import Directory, builder, byte_tokenizer, save_family

TEXTS = [("Once upon ", "a time", True), ("x", "y", False), ("The old man and ", "the sea, once more.", True)]


def episodes(texts=TEXTS) -> list[ScoredText]:
    return [ScoredText(Prompt(prompt), prompt, response, finished) for prompt, response, finished in texts]


def chat(*turns: tuple[str, str], prompt_text: str = "as the policy read it", response: str = "Hello.") -> ScoredText:
    return ScoredText(Prompt(tuple(Message(*turn) for turn in turns)), prompt_text, response)


def source(directory: Path, tmp_path: Path, **config) -> RewardSource:
    made = builder(directory, tmp_path)
    return made.reward(RewardModelRewardConfig(type="reward_model", path=str(directory), **config))


# ── reward models of ours ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """A reward model whose tokenizer is unlike the policies': words where they have bytes."""
    path = tmp_path_factory.mktemp("own")
    words = [
        "<pad>",
        "</s>",
        "<unk>",
        "Once",
        "upon",
        "a",
        "time",
        "The",
        "old",
        "man",
        "and",
        "the",
        "sea",
        ",",
        "more",
    ]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    save_family("llama", path, tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special))
    model = builder(path, path).fresh_reward_model(name="reward_model")
    model.save(path, normalization=Normalization(mean=0.5, std=2.0))
    return path


def test_score_is_the_normalised_one_of_its_own_tokens(own, tmp_path):
    reward = source(own, tmp_path)
    assert isinstance(reward, RewardModelReward)
    tokenizer = AutoTokenizer.from_pretrained(own)
    model = AutoModelForSequenceClassification.from_pretrained(own)
    scores = reward.score(episodes())
    for score, (prompt, response, finished) in zip(scores, TEXTS, strict=True):
        ids = tokenizer(prompt + response)["input_ids"] + ([tokenizer.eos_token_id] if finished else [])
        with torch.no_grad():
            raw = model(torch.tensor([ids])).logits.item()
        assert float(score) == pytest.approx((raw - 0.5) / 2.0, abs=1e-5)


def test_neither_order_nor_batch_changes_a_score(own, tmp_path):
    many = episodes([("Once " * count, "upon a time", count % 2 == 0) for count in (1, 9, 3, 5, 2, 7)])
    together = source(own, tmp_path).score(many)
    torch.testing.assert_close(source(own, tmp_path).score(many[::-1]).flip(0), together, rtol=0, atol=1e-5)
    torch.testing.assert_close(source(own, tmp_path, batch_tokens=1).score(many), together, rtol=0, atol=1e-5)
    assert together.unique().numel() == 6


def test_a_long_sequence_loses_its_beginning(own, tmp_path):
    short = source(own, tmp_path, max_tokens=4)
    end = ScoredText(Prompt("the sea "), "the sea ", "once more")  # four words
    lengthy = ScoredText(Prompt("The old man and the sea "), "The old man and the sea ", "once more")
    assert short.score([lengthy])[0] == short.score([ScoredText(Prompt("sea "), "sea ", "once more")])[0]
    assert short.score([lengthy])[0] != source(own, tmp_path).score([lengthy])[0]
    assert short.score([end])[0] == short.score([lengthy])[0]


def test_normalization_is_kept_beside_the_weights(own, directory_of: Directory):
    assert read_normalization(own) == Normalization(mean=0.5, std=2.0)
    assert read_normalization(directory_of("llama")) is None


# ── somebody else's ──────────────────────────────────────────────────────────────────────────────────────────────────


def words_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """Words between [CLS] and [SEP]."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "once", "upon", "a", "time", "the", "old", "man", "and", "sea", "more"]
    words += ["human", "assistant", "hello"]
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=24,
    )


@pytest.fixture(scope="module")
def sentiment(tmp_path_factory) -> Path:
    """A BERT with two labels, whose tokenizer has no EOS."""
    path = tmp_path_factory.mktemp("sentiment")
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "bert",
        vocab_size=17,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=24,
        initializer_range=0.3,
    )
    config.id2label = {0: "NEGATIVE", 1: "POSITIVE"}
    AutoModelForSequenceClassification.from_config(config).save_pretrained(path)
    words_tokenizer().save_pretrained(path)
    return path


def test_one_of_several_outputs_must_be_chosen_and_must_exist(sentiment, tmp_path):
    with pytest.raises(ConfigError, match=r"has 2 outputs \(0=NEGATIVE, 1=POSITIVE\); set reward\.label"):
        source(sentiment, tmp_path)
    with pytest.raises(ConfigError, match=r"reward\.label = 2, but .* has outputs 0 to 1"):
        source(sentiment, tmp_path, label=2)


@pytest.mark.parametrize("label", [0, 1])
def test_score_of_a_classifier_is_the_log_probability_of_the_label(label, sentiment, tmp_path):
    reward = source(sentiment, tmp_path, label=label)
    assert isinstance(reward, ClassifierReward)
    tokenizer = AutoTokenizer.from_pretrained(sentiment)
    model = AutoModelForSequenceClassification.from_pretrained(sentiment)
    found = reward.score(episodes())
    for score, (prompt, response, _) in zip(found, TEXTS, strict=True):
        with torch.no_grad():
            probabilities = model(**tokenizer(prompt + response, return_tensors="pt")).logits.softmax(-1)
        assert float(score) == pytest.approx(float(probabilities[0, label].log()), abs=1e-5)


def test_neither_order_nor_batch_changes_what_a_classifier_says(sentiment, tmp_path):
    many = episodes([("once " * count, "upon a time", True) for count in (1, 9, 3, 5, 2, 7)])
    together = source(sentiment, tmp_path, label=1).score(many)
    torch.testing.assert_close(source(sentiment, tmp_path, label=1).score(many[::-1]).flip(0), together)
    torch.testing.assert_close(source(sentiment, tmp_path, label=1, batch_tokens=1).score(many), together)
    assert together.unique().numel() == 6


def test_a_text_beyond_what_the_classifier_reads_loses_its_beginning(sentiment, tmp_path):
    reward = source(sentiment, tmp_path, label=1)
    prompt = "the old man " * 20
    long, other_beginning = episodes([(prompt, "and the sea", True), ("sea " * 5 + prompt, "and the sea", True)])
    (other_end,) = episodes([(prompt, "and the sea once", True)])
    assert reward.score([long])[0] == reward.score([other_beginning])[0]
    assert reward.score([long])[0] != reward.score([other_end])[0]
    assert reward._ids(long)[0] == 2  # [CLS]
    assert len(reward._ids(long)) == 24


def test_a_conversation_without_chat_template_is_a_transcript(sentiment, tmp_path):
    reward = source(sentiment, tmp_path, label=1)
    transcript = "\n\nhuman: once\n\nassistant: hello".replace("human", "Human").replace("assistant", "Assistant")
    assert reward._ids(chat(("user", "once"), response="hello")) == reward.tokenizer(transcript)["input_ids"]


def test_a_conversation_goes_through_the_models_own_template_which_writes_the_special_tokens(tmp_path):
    tokenizer = byte_tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<|pad|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}{{ eos_token }}{% endfor %}"
    )
    directory = classifier(tmp_path / "model", tokenizer)
    reward = source(directory, tmp_path)
    ids = reward._ids(chat(("user", "Hi"), response="Hello."))
    assert reward.tokenizer.decode(ids) == "<s>u:Hi</s>a:Hello.</s>"
    assert reward.tokenizer.decode(reward._ids(episodes()[1])) == "<s>xy"


def classifier(path: Path, tokenizer: PreTrainedTokenizerFast, family: str = "llama") -> Path:
    """Somebody's reward model on a decoder, saved without a word about PAD."""
    save_family(family, path, tokenizer=tokenizer)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
    model.config.pad_token_id = None
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_decoder_that_knows_no_pad_scores_a_batch_like_single_rows(family, tmp_path):
    directory = classifier(tmp_path / "model", byte_tokenizer(eos_token="<|endoftext|>"), family)
    found = source(directory, tmp_path).score(episodes())
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory)
    for score, (prompt, response, _) in zip(found, TEXTS, strict=True):
        with torch.no_grad():
            expected = model(tokenizer(prompt + response, return_tensors="pt").input_ids).logits.item()
        assert float(score) == pytest.approx(expected, abs=1e-5)


def test_a_language_model_is_no_reward_model(directory_of: Directory, tmp_path):
    with pytest.raises(ModelError, match=r"score\.weight"):
        source(directory_of("llama"), tmp_path)


def test_no_episodes_have_no_scores(own, sentiment, tmp_path):
    assert source(own, tmp_path).score([]).shape == (0,)
    assert source(sentiment, tmp_path, label=0).score([]).shape == (0,)


# ── lengths ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("family", "settings", "longest"),
    [
        ("roberta", {"pad_token_id": 1}, 20),
        ("xlm-roberta", {"pad_token_id": 1}, 20),
        ("camembert", {"pad_token_id": 1}, 20),
        ("mpnet", {"pad_token_id": 1}, 20),
        ("bert", {}, 22),
    ],
)
def test_a_text_of_an_encoder_is_cut_to_the_positions_that_it_has(family, settings, longest, tmp_path):
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = AutoConfig.for_model(family, vocab_size=258, max_position_embeddings=22, num_labels=1, **shape, **settings)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "judge")
    byte_tokenizer().save_pretrained(tmp_path / "judge")
    reward = source(tmp_path / "judge", tmp_path)
    assert reward.max_tokens == longest
    (ended,) = reward.score(episodes([("x" * 500, " the end of what is said", True)])).tolist()
    (alone,) = reward.score(episodes([("", " the end of what is said"[-longest:], True)])).tolist()
    assert ended == pytest.approx(alone, abs=1e-5)


def test_a_reward_model_reads_as_much_as_it_was_trained_on(own, tmp_path, directory_of: Directory):
    made = builder(directory_of("llama"), tmp_path)
    trained = tmp_path / "trained"
    made.fresh_reward_model(name="reward_model").save(trained, normalization=Normalization(), max_tokens=40)
    assert source(trained, tmp_path).max_tokens == 40
    assert source(trained, tmp_path, max_tokens=40).max_tokens == 40
    with pytest.raises(ConfigError, match=r"max_tokens = 16 of a reward, but .* was trained on sequences of up to 40"):
        source(trained, tmp_path, max_tokens=16)
