"""A module with the part of vLLM's interface that rlhfkit uses, over transformers: slow, plain and without any cache.

It holds a model of its own, made of the config.json that it is given, and knows nothing of ours.
"""

import itertools
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM


class SamplingParams(SimpleNamespace):
    """Whatever it is given."""


class LLM:
    """As vllm.LLM with `load_format="dummy"`, in this process."""

    made: list["LLM"] = []  # noqa: RUF012

    def __init__(self, **settings: Any) -> None:
        assert settings["load_format"] == "dummy" and settings["logprobs_mode"] == "processed_logprobs"
        self.settings = settings
        torch.manual_seed(settings["seed"])
        torch.set_num_threads = lambda num: None  # as vLLM does on a CPU
        config = AutoConfig.from_pretrained(Path(settings["model"]))
        assert len(config.architectures) == 1
        self.model = AutoModelForCausalLM.from_config(config).to(getattr(torch, settings["dtype"])).eval()
        self.is_shut_down = False
        self.noise = 0.0
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self._shutdown))
        self.made.append(self)

    def _shutdown(self) -> None:
        self.is_shut_down = True

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> list[None]:
        assert method == "reload_weights"
        weights = dict(kwargs["weights_iterator"])
        expected = dict(self.model.named_parameters()).keys()
        if weights.keys() != expected:
            raise ValueError(f"weights {sorted(weights.keys() ^ expected)} do not fit")
        self.model.load_state_dict(weights, strict=False)
        return [None]

    def apply_model(self, function: Callable[[torch.nn.Module], None]) -> list[None]:
        return [function(self.model)]

    @torch.no_grad()
    def generate(self, prompts: list[dict[str, Any]], params: list[SamplingParams], use_tqdm: bool) -> list[Any]:
        assert len(prompts) == len(params) and not use_tqdm and len(prompts) > 0
        return [
            SimpleNamespace(outputs=[self._one(prompt["prompt_token_ids"], wanted)])
            for prompt, wanted in zip(prompts, params, strict=True)
        ]

    def _one(self, prompt: list[int], params: SamplingParams) -> SimpleNamespace:
        assert 0 <= params.temperature <= 2
        assert params.ignore_eos and params.logprobs == 0 and not params.detokenize
        assert len(prompt) + params.max_tokens <= self.settings["max_model_len"]
        generator = torch.Generator().manual_seed(params.seed or 0)
        ids: list[int] = []
        logprobs = []
        for _ in itertools.repeat(None, params.max_tokens):
            logits = self.model(torch.tensor([[*prompt, *ids]])).logits[0, -1].float()
            for token, bias in params.logit_bias.items():
                logits[token] += min(100.0, max(-100.0, bias))
            logits += self.noise * torch.randn(logits.shape, generator=generator)
            distribution = (logits / (params.temperature or 1.0)).log_softmax(-1)
            drawn = torch.multinomial(distribution.exp(), 1, generator=generator)
            token = int(drawn if params.temperature else distribution.argmax())
            ids.append(token)
            logprobs.append({token: SimpleNamespace(logprob=float(distribution[token]))})
            if token in params.stop_token_ids:
                return SimpleNamespace(token_ids=ids, logprobs=logprobs, finish_reason="stop")
        return SimpleNamespace(token_ids=ids, logprobs=logprobs, finish_reason="length")


def modules() -> dict[str, ModuleType]:
    """What belongs into sys.modules."""
    vllm, distributed = ModuleType("vllm"), ModuleType("vllm.distributed")
    vllm.__spec__ = ModuleSpec("vllm", None)
    vllm.LLM, vllm.SamplingParams = LLM, SamplingParams
    distributed.cleanup_dist_env_and_memory = lambda: None
    return {"vllm": vllm, "vllm.distributed": distributed}
