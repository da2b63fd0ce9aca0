"""The critic: a head on the policy's trunk, or a network of its own."""

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhfkit.machine.fast_paths import FastPaths
from rlhfkit.models.frozen_layers import Stem
from rlhfkit.models.hidden_states import predicting_hidden
from rlhfkit.models.reward_model import score_head
from rlhfkit.padding import Sequences

__all__ = ["ValueHead", "ValueNetwork"]


class ValueHead(nn.Module):
    """Value of a state, linear in its hidden state; float32 and zero at the start."""

    def __init__(self, width: int, device: torch.device) -> None:
        """A head for hidden states of size `width`."""
        super().__init__()
        self.linear = nn.Linear(width, 1, device=device, dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(N,) values of hidden states (N, H)."""
        values: Tensor = self.linear(hidden.float())
        return values.squeeze(-1)


class ValueNetwork(nn.Module):
    """A trunk and a head of its own, made from a sequence-classification model with one output."""

    def __init__(self, classifier: PreTrainedModel | PeftModel, *, mean: float = 0.0, std: float = 1.0) -> None:
        """Take the trunk of `classifier`, and (score - mean) / std as the head's start.

        A reward model's score is the value of a finished text, so a value function that starts there knows what is
        good before it has seen a return (Stiennon et al. 2020, arXiv 2009.01325).
        """
        super().__init__()
        self.classifier = classifier
        self.stem: Stem | None = None  # what it begins with, in common with the policy
        self.paths = FastPaths()
        score = score_head(classifier)
        self.head = ValueHead(score.in_features, score.weight.device)
        with torch.no_grad():
            self.head.linear.weight.copy_(score.weight.float() / std)
            self.head.linear.bias.fill_(-mean / std)
        score.requires_grad_(False)

    def forward(self, sequences: Sequences) -> Tensor:
        """(N,) values of the states before the N sampled tokens, in row-major order."""
        values: Tensor = self.head(predicting_hidden(self.classifier, sequences, self.stem, paths=self.paths))
        return values.clone()  # a view is nothing that FSDP can hang its hooks on
