"""Models of a few hundred weights over a dozen letters, so that every test of a loop takes a fraction of a second."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from rlhfkit.config.ppo import PpoConfig, RolloutConfig
from rlhfkit.envs.text import TextStep
from rlhfkit.machine.progress import Progress, StageProgress
from rlhfkit.models.attention import WRITTEN_OUT
from rlhfkit.models.encoder import EncodedPrompt, Encoder
from rlhfkit.models.language import LanguageModel, TextPolicy
from rlhfkit.models.reward_model import RewardModel
from rlhfkit.models.value import ValueHead, ValueNetwork
from rlhfkit.padding import Sequences
from rlhfkit.ppo import FixedKL
from rlhfkit.records import Prompt
from rlhfkit.rewards.source import RewardSource, ScoredText
from rlhfkit.rollout.text import TextRollout
from rlhfkit.training.ppo import PpoTrainer, optimizers_for

LETTERS = "abcdefghijkl"
PAD, EOS = 0, 1
WIDTH = 16
CPU = torch.device("cpu")


def encoder() -> Encoder:
    """One token a letter; PAD 0, EOS 1, "a" 2, and so on."""
    vocabulary = {token: index for index, token in enumerate(["<|pad|>", "<|eos|>", *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return Encoder(PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|eos|>"))


def _config(num_layers: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=2 + len(LETTERS),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        max_position_embeddings=64,
        eos_token_id=EOS,
        pad_token_id=PAD,
        bos_token_id=None,
        initializer_range=0.3,  # of this width, 0.02 would make every distribution uniform and every check pass
        num_labels=1,
        attn_implementation=WRITTEN_OUT,
    )


def language_model(seed: int = 0, *, num_layers: int = 1, dtype: torch.dtype = torch.float32) -> LanguageModel:
    torch.manual_seed(seed)
    return LanguageModel(LlamaForCausalLM(_config(num_layers)).to(dtype).eval(), encoder())


def reward_model(seed: int = 0) -> RewardModel:
    torch.manual_seed(seed)
    return RewardModel(LlamaForSequenceClassification(_config(1)).eval(), encoder())


def policy(seed: int = 0, *, critic: str | None = "separate", temperature: float = 1.0) -> TextPolicy:
    model = language_model(seed)
    torch.manual_seed(seed + 1)
    made = {
        "separate": lambda: ValueNetwork(LlamaForSequenceClassification(_config(1)).eval()),
        "shared": lambda: ValueHead(WIDTH, CPU),
        None: lambda: None,
    }[critic]()
    return TextPolicy(model, made, temperature=temperature)


def reference(seed: int = 0, *, temperature: float = 1.0) -> Callable[[Sequences], torch.Tensor]:
    """The frozen model that `policy(seed)` starts from."""
    frozen = language_model(seed).requires_grad_(False)
    return lambda sequences: frozen.logprobs(sequences, temperature=temperature)


def prompts(num: int = 8) -> list[EncodedPrompt]:
    """Prompts of 1 to 4 letters."""
    texts = ["".join(LETTERS[(3 * row + place) % len(LETTERS)] for place in range(1 + row % 4)) for row in range(num)]
    return [encoder().encode(Prompt(text), max_tokens=8) for text in texts]


class Scripted:
    """A reward that is a plain function of the response's text."""

    def __init__(self, function: Callable[[str], float]) -> None:
        self.function = function
        self.num_calls = 0

    def score(self, episodes: Sequence[ScoredText]) -> torch.Tensor:
        self.num_calls += 1
        return torch.tensor([self.function(episode.response) for episode in episodes], dtype=torch.float32)


def count_a() -> Scripted:
    return Scripted(lambda text: float(text.count("a")))


def count_vowels(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward function for recipes."""
    return [float(sum(letter in "aeiou" for letter in response)) for response in responses]


class Won:
    """An environment of one turn that is always won."""

    def reset(self, seed: int) -> str:
        return "abc"

    def step(self, response: str) -> TextStep:
        return TextStep("", 1.0, terminated=True, won=True)


def trainer(
    config: PpoConfig,
    *,
    reward: RewardSource | None = None,
    seed: int = 0,
    policy_seed: int = 0,
    reference_seed: int | None = None,
    rollout: RolloutConfig | None = None,
) -> PpoTrainer:
    """A trainer as the pipeline builds it, of tiny models."""
    settings = rollout or RolloutConfig(max_response_tokens=8)
    critic = config.value.network if config.estimator == "gae" else None
    acting = policy(policy_seed, critic=critic, temperature=settings.temperature)
    return PpoTrainer(
        policy=acting,
        rollout=TextRollout(
            acting,
            reference(policy_seed if reference_seed is None else reference_seed, temperature=settings.temperature),
            reward or count_a(),
            prompts(),
            rollout=settings,
            ppo=config,
            seed=seed,
        ),
        config=config,
        optimizers=optimizers_for(acting, config, seed=0),
        seed=seed,
        kl=FixedKL(config.kl.coef),
        kl_coef=config.kl.coef,
    )


class Interrupting(Progress):
    """Interrupts, as Ctrl-C does, when so many units of a stage are done."""

    def __init__(self, name: str, completed: int) -> None:
        super().__init__(quiet=True)
        self.name, self.completed = name, completed

    @contextmanager
    def stage(self, name: str, *, total: int, unit: str, completed: int = 0) -> Iterator[StageProgress]:
        with super().stage(name, total=total, unit=unit, completed=completed) as stage:
            advance = stage.advance

            def advance_or_stop(amount: int = 1, detail: str = "") -> None:
                advance(amount, detail)
                if name == self.name and stage.completed >= self.completed:
                    raise KeyboardInterrupt

            stage.advance = advance_or_stop  # type: ignore[method-assign]
            yield stage
