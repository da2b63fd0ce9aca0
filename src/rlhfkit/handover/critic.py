"""The critic as a model of its own, for tools that read one from a directory: what its first values are, exactly."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhfkit.errors import ModelError
from rlhfkit.handover.files import made_free

if TYPE_CHECKING:
    from rlhfkit.handover.subject import Subject

__all__ = ["write_critic"]

HEADS = ("score", "classifier")
"""What token classifiers call their head."""


def write_critic(subject: "Subject") -> Path:
    """A token classifier with one output in critic/, whose values are those that the critic here begins with.

    Its trunk is the reward model's, and its value (score - mean) / deviation; or the policy's, with a head of zeros.
    Raises: ModelError where transformers has no token classifier of the family.
    """
    import torch
    from transformers import AutoConfig, AutoTokenizer

    from rlhfkit.models.loading import quiet_transformers

    from_reward = subject.critic_starts_from_reward_model
    trusted = bool(subject.setting("model.trust_remote_code"))
    source = subject.critic_path
    with quiet_transformers(), torch.no_grad():
        trunk_of = _loaded(source, is_classifier=from_reward, trusted=trusted)
        config = AutoConfig.from_pretrained(source, trust_remote_code=trusted)
        config.num_labels, config.architectures = 1, None
        try:
            critic = _classifier(config, trunk_of.dtype, trusted=trusted)
        except ValueError as error:
            raise ModelError(
                f"transformers has no token classifier of the family {config.model_type}, which the other tool reads a "
                "critic as; choose a model of another family, such as Llama, Qwen, Mistral or Gemma"
            ) from error
        critic.base_model.load_state_dict(trunk_of.base_model.state_dict())
        head = next(getattr(critic, name) for name in HEADS if hasattr(critic, name))
        head.weight.zero_()
        if head.bias is not None:
            head.bias.zero_()
        if from_reward:
            mean, std = subject.critic_normalization or (0.0, 1.0)
            head.weight.copy_(trunk_of.score.weight / std)
            _set_bias(head, -mean / std, config.model_type)
        place = made_free(subject.directory / "critic", for_links=False)
        critic.save_pretrained(place)
        AutoTokenizer.from_pretrained(subject.policy_path, trust_remote_code=trusted).save_pretrained(place)
    return place


def _set_bias(head: Any, value: float, family: str) -> None:
    if head.bias is None and value:
        raise ModelError(
            f"the head of {family} token classifiers has no bias for the mean of the reward model's scores; set "
            'ppo.value.init = "policy"'
        )
    if head.bias is not None:
        head.bias.fill_(value)


def _classifier(config: Any, dtype: Any, *, trusted: bool) -> Any:
    from transformers import AutoModelForTokenClassification

    return AutoModelForTokenClassification.from_config(  # type: ignore[no-untyped-call]
        config, dtype=dtype, trust_remote_code=trusted
    )


def _loaded(source: str, *, is_classifier: bool, trusted: bool) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM
    return kind.from_pretrained(source, dtype="auto", trust_remote_code=trusted)
