"""Ordinary tokens of pretrained vocabularies: no slots without training, and what plain distances say of a sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechrep.text.token_kinds import draw_tokens, ordinary_ids, token_kinds, untrained_rows
from tests.real.conftest import Real

pytestmark = pytest.mark.real


def test_unused_slots_and_marks_are_not_ordinary_and_words_are(real: Real) -> None:
    vocabulary = real.model.tokenizer.get_vocab()
    ids, kinds = set(ordinary_ids(real.model).tolist()), token_kinds(real.model)
    slots = {number for token, number in vocabulary.items() if token.startswith(("<unused", "<jupyter_", "<0x"))}
    assert slots and not slots & ids and len(ids) > 0.95 * (len(vocabulary) - len(slots))
    assert {real.model.decode([token]).strip() for token in kinds["frequent"]} >= {"the", "and", "of", "was"}
    assert all(len(ids) > 70 for ids in kinds.values()) and len(draw_tokens(real.model, 50)) == 200


def test_rows_are_untrained_where_they_lie_on_another(real: Real) -> None:
    weight: Any = real.model.plain.get_input_embeddings().weight.detach().float()
    found = untrained_rows(weight)
    sample = torch.randperm(len(weight), generator=torch.Generator().manual_seed(1))[:100]
    sample = torch.cat([sample, found.nonzero().flatten()[:40]])
    distances = torch.cdist(weight[sample], weight)
    distances[torch.arange(len(sample)), sample] = torch.inf
    nearest = distances.min(1).values
    usual = float(nearest[:100].median())
    assert nearest[found[sample]].max() < 0.12 * usual and nearest[~found[sample]].min() > 0.08 * usual
