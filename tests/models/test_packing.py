"""Rows that share a row must not know of each other."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhfkit.models.attention import additive_masks
from rlhfkit.padding import pack
from tests.tiny import PAD, WINDOW, Directory, load

ROWS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [8, 9, 7], [9, 3, 2, 3, 8, 4, 6, 2], [6, 4], [3]]
LEARNT_FROM = [4, 1, 0, 1, 0]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "mistral", "gemma2", "opt"])
def test_loss_of_packed_rows_is_that_of_each_row_alone(family, directory_of: Directory):
    model = load(directory_of(family))
    assert max(map(len, ROWS)) > WINDOW
    rows = pack(ROWS, LEARNT_FROM, max_tokens=16, pad=PAD)
    assert rows.ids.shape == (2, 16)
    masks = additive_masks(model.config, rows.allowed(), rows.position_ids, rows.position_ids, model.dtype)
    loss = -model.packed_logprobs(rows, masks).sum()
    loss.backward()
    packed_gradients = {name: p.grad for name, p in model.causal_lm.named_parameters() if p.grad is not None}

    alone = AutoModelForCausalLM.from_pretrained(directory_of(family), attn_implementation="eager")
    expected, num_learnt = torch.zeros(()), 0
    for row, start in zip(ROWS, LEARNT_FROM, strict=True):
        start = max(start, 1)
        logits = alone(torch.tensor([row])).logits[0, start - 1 : -1]
        logits = logits.index_fill(-1, torch.tensor(PAD), -torch.inf)
        targets = torch.tensor(row[start:], dtype=torch.long)
        expected = expected - logits.log_softmax(-1).gather(1, targets[:, None]).sum()
        num_learnt += len(targets)
    expected.backward()
    assert int(rows.targets.sum()) == num_learnt == 7 + 2 + 7 + 1 + 0
    torch.testing.assert_close(loss / num_learnt, expected / num_learnt, rtol=0, atol=1e-5)
    scale = max(float(gradient.abs().max()) for gradient in packed_gradients.values())
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(packed_gradients[name], parameter.grad, rtol=0, atol=1e-5 * scale, msg=name)
