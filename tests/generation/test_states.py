"""Models with layers that carry a state write what one whole pass per token gives, edited or not."""

from __future__ import annotations

import pytest
import torch

import mechrep
from mechrep.interventions.apply import logits
from mechrep.models.model import Model
from tests.families.words import worded
from tests.families.zoo import text

PROMPTS, NEW = [[0, *text(5)], [0, *text(9, seed=2)]], 5


def one_by_one(model: Model, row: list[int], cut: mechrep.Heads | None) -> list[int]:
    """Greedy decoding of one text alone, without a cache."""
    begin = torch.tensor([len(row) - 1])
    for _ in range(NEW):
        row = [*row, int(logits(model, torch.tensor([row]), cut, starts=begin)[0, -1].argmax())]
    return row


@pytest.mark.parametrize(
    "name", ["LFM2", *(pytest.param(n, marks=pytest.mark.slow) for n in ("Jamba", "Qwen3-Next", "Bamba", "Falcon-H1"))]
)
def test_states(name: str) -> None:
    model = worded(name)
    corpus = mechrep.Corpus.from_tokens(PROMPTS, model=model)
    (head,) = model.anatomy.attention_layers[:1]
    for cut in (None, mechrep.Heads([(head, 1)], when="last")):
        written = mechrep.generate(model, corpus, max_new_tokens=NEW, interventions=cut, progress=False)
        assert [written.row(i) for i in range(2)] == [one_by_one(model, row, cut) for row in PROMPTS]
