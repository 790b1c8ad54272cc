"""What half precision changes on a pretrained model: loss, ranking of heads, sink, greedy texts, against float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mechrep.generation import sample_prompts
from mechrep.models import tiny
from mechrep.models.load import load_model
from mechrep.text.windows import windows_of_text
from tests.numerics.behaviour import Behaviour, behaviour, compared
from tests.numerics.measure import LOW, ROUNDINGS, UNIT, cast
from tests.real.conftest import FOLDER, SMALL

TEXTS = 4


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_are_those_of_float64(dtype: str, trust: Any) -> None:
    """float16 is left out: processors compute it a hundred times more slowly."""
    path = FOLDER / SMALL
    if not path.is_dir():
        pytest.skip("no SmolLM2: make real-models fetches it")
    smollm2 = load_model(path)
    windows = windows_of_text(smollm2, tiny.held_out_text(), length=48, limit=TEXTS)
    prompts = sample_prompts(smollm2, TEXTS)

    def asked_in(*kinds: torch.dtype) -> Behaviour:
        module: Any = load_model(path, check=False).plain
        model = load_model(cast(module, *kinds), tokenizer=smollm2.tokenizer, check=False)
        return behaviour(model, prompts, windows, new_tokens=30, drawn=False)

    found = compared(asked_in(LOW[dtype]), asked_in(LOW[dtype], torch.float64))
    # With all roundings in one direction 30 layers of bfloat16 may be off by more than everything, which asks nothing:
    # roundings in random directions add up like the root of their number.
    asked = math.sqrt(ROUNDINGS * smollm2.anatomy.n_layers) * UNIT[dtype]
    loss, heads = found["loss, nats per token"], found["five best induction heads that stay"]
    trust(section="numerics", what=f"SmolLM2-135M in {dtype}: loss, nats per token", asked=f"{asked:.1e}",
          measured=f"{loss:.1e} off; {5 * heads:.0f} of 5 induction heads stay; sink ratio off by "
          f"{found['sink ratio, share']:.1e}; {found['greedy texts that are the same']:.0%} of {TEXTS} greedy texts "
          "of 30 tokens are the same", holds=loss <= asked)  # fmt: skip
    assert loss <= asked and heads >= 0.8
    assert found["sink layer is the same"] == 1.0 and found["sink ratio, share"] <= asked
