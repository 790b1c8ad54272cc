"""float32, bfloat16 and float16 against float64, statistic by statistic; see measure.py for oracle and bound.

``IN_STEPS`` are decided by which of some nearly equal tokens is first, or by where a curve that may be flat passes a
threshold: a change moves them by a step, which no bound on rounding knows.  ``ROUNDING`` are what rounding leaves of a
zero, so their own size is what counts.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from tests.families.zoo import build, families
from tests.numerics.analyzers import MAKERS, TINY
from tests.numerics.behaviour import of_dtype
from tests.numerics.measure import LOW, Row, analyzed, bound, cast, error, model_of, rows_of, tensors

SLOW = ("CopySuppression", "RouterShift", "TextKindContrast")
FAST = tuple(name for name in MAKERS if name not in SLOW)
NAMES = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]

ROUNDING = {"identity_error", "same_value_error", "bound_excess"}
IN_STEPS = {"cs", "qk", "qk_adjusted", "functional", "chance", "ov", "rank", "correct", "embedding", "biases", "heads",
            "mlps", "reached", "rate"}  # fmt: skip
STEP = 0.25  # of the largest entry, at most, for statistics in steps
GUARANTEED = 2  # times the bound, which ratios over standard errors can pass by a little


@functools.cache
def rows(name: str, dtype: str, model: str = TINY) -> list[Row]:
    """All statistics of an analyzer, with those that only exist as the rounding of a zero left out."""
    if name == "RouterShift":
        return routed(dtype)
    found = rows_of(name, dtype, analyzed(MAKERS[name]), model=model, unrounded=False)
    return [row for row in found if row.statistic not in ROUNDING]


def routed(dtype: str) -> list[Row]:
    """Of a mixture of experts; grouped products are not made for float64, so one expert is computed at a time."""
    # Means: a window of one token, or of one token again and again, is sent elsewhere as a whole.
    read = analyzed(MAKERS["RouterShift"])
    found, right = (read(model_of("Mixtral", *kinds)) for kinds in ((LOW[dtype],), (LOW[dtype], torch.float64)))
    own, others = tensors(found), tensors(right)
    off = {key: float((own[key] - others[key]).abs().nanmean()) for key in own}
    return [Row(f"RouterShift.{key}, mean", dtype, each, each) for key, each in off.items()]


def worst(found: list[Row]) -> Row:
    """The statistic that is farthest off."""
    return max(found, key=lambda row: row.error)


@pytest.mark.parametrize("name", NAMES)
def test_every_statistic_is_near_that_of_float64(name: str, trust: Any) -> None:
    for dtype in LOW:
        found, asked = rows(name, dtype), bound(TINY if name != "RouterShift" else "Mixtral", dtype)
        largest = worst(found)
        trust(section="numerics", what=f"{name} in {dtype}: all {len(found)} statistics against float64",
              asked=f"{asked:.1e}", measured=f"{largest.error:.1e} of the largest entry ({largest.statistic})",
              holds=largest.error <= asked)  # fmt: skip
        for row in found:
            limit = STEP if row.statistic in IN_STEPS and dtype != "float32" else GUARANTEED * asked
            assert row.error <= limit, row


def test_what_is_left_of_a_zero_is_rounding() -> None:
    for dtype in LOW:
        result = analyzed(MAKERS["FirstTokenDetection"])(model_of(TINY, LOW[dtype]))
        for name in ROUNDING:
            assert float(getattr(result, name).max()) <= bound(TINY, dtype), (name, dtype)


@pytest.mark.parametrize("dtype", LOW)
def test_the_first_heads_and_neurons_stay_the_first(dtype: str, trust: Any) -> None:
    ranked = [row for name in FAST for row in rows(name, dtype) if row.top == row.top]
    least = min(ranked, key=lambda row: row.top)
    asked = 1.0 if dtype == "float32" else 0.6
    trust(section="numerics", what=f"{dtype}: the five first units of {len(ranked)} rankings stay among the five first",
          asked=f"{5 * asked:.0f} of 5", measured=f"{5 * least.top:.0f} of 5 at least ({least.what})",
          holds=least.top >= asked)  # fmt: skip
    assert len(ranked) > 15 and least.top >= asked


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama_gqa", "gpt2", "gemma2", "qwen2", "gpt_neox", "mechrep-tiny-repeats"])
def test_other_families_are_as_near(model: str, trust: Any) -> None:
    names = [name for name in MAKERS if name not in ("RouterShift", "TextKindContrast", "TokenInformation")]
    for dtype in LOW:
        asked = bound(model, dtype)
        found = [row for name in names for row in rows(name, dtype, model) if row.statistic not in IN_STEPS]
        largest = worst(found)
        trust(section="numerics", what=f"{model} in {dtype}: {len(found)} statistics against float64",
              asked=f"{asked:.1e}", measured=f"{largest.error:.1e} of the largest entry ({largest.what})",
              holds=largest.error <= asked)  # fmt: skip
        assert largest.error <= GUARANTEED * asked, largest


@pytest.mark.slow
@pytest.mark.parametrize("dtype", LOW)
def test_what_is_written_and_found_hardly_changes(dtype: str, trust: Any) -> None:
    """Loss, loops, onsets and the sink are those of float64; single tokens are promised in float32 alone."""
    found, asked = of_dtype(dtype), bound(TINY, dtype)
    loss, loops = found["loss, nats per token"], found["texts with the same answer to: does it loop"]
    written = found["greedy texts that are the same"]
    trust(section="numerics", what=f"{dtype}: loss on held-out text, nats per token", asked=f"{asked:.1e}",
          measured=f"{loss:.1e} off", holds=loss <= asked)  # fmt: skip
    trust(section="numerics", what=f"{dtype}: texts of 60 greedy tokens that loop, or do not, as in float64",
          asked="90 %", measured=f"{loops:.0%} ({written:.0%} are the same to the last token)",
          holds=loops >= 0.9)  # fmt: skip
    assert loss <= asked and loops >= 0.9
    assert found["sink layer is the same"] == 1.0 and found["sink ratio, share"] <= asked
    assert found["onsets that are the same, of texts that are"] == 1.0
    assert dtype != "float32" or (written == 1.0 and found["sampled texts that are the same"] == 1.0)


def test_an_error_is_seen() -> None:
    """The measure itself: what differs in one entry, in a NaN, or is infinite on one side."""
    right = torch.tensor([1.0, -4.0, float("nan")])
    assert error(right.clone(), right) == 0.0
    assert error(torch.tensor([1.0, -3.0, float("nan")]), right) == 0.25
    assert error(torch.tensor([1.0, -4.0, 0.0]), right) == float("inf")
    assert error(torch.tensor([float("inf"), -4.0, float("nan")]), right) == float("inf")


def test_the_oracle_has_the_rounded_weights() -> None:
    low, wide = (model_of("llama_gqa", *kinds).plain for kinds in ((torch.bfloat16,), (torch.bfloat16, torch.float64)))
    assert low is not None and wide is not None
    for one, other in zip(low.parameters(), wide.parameters(), strict=True):
        assert one.dtype == torch.bfloat16 and other.dtype == torch.float64 and torch.equal(one.double(), other)
    mixture = cast(build(families()["Mixtral"]), torch.float16)
    assert {parameter.dtype for parameter in mixture.parameters()} == {torch.float16}
