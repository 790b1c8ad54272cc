"""What float32, bfloat16 and float16 change: every statistic of every analyzer, and what a reader takes from it.

The oracle is the same model in float64, of the same weights: they are rounded to the low type first and then widened,
so that the arithmetic of the pass and mechrep's own sums are measured.  Rotary frequencies are no weights and stay
float32 in both, as transformers leaves them.  Softmax of attention is float32 in transformers whatever the model is, so
no difference below 1e-7 says anything.

The bound was chosen before anything was measured.  A layer rounds about ten times on the way of the residual stream
(two norms, seven matrices or products, two sums); with all roundings in one direction the error of a state is

    10 x layers x u,     u = 2^-24 (float32), 2^-11 (float16), 2^-8 (bfloat16)

of its size.  Means of attention, activations and norms should keep it; differences of nearly equal means, and ratios
over standard errors, may not.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mechrep.cache.corpus_cache import CorpusCache
from mechrep.measures.natural_vs_induced import MEASURES
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.results import Result
from mechrep.text.corpus import Corpus
from tests.families.zoo import build, families
from tests.tiny_models import fresh

LOW = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
ROUNDINGS = 10  # of a layer
TOP = 5  # units whose ranking is compared


def bound(model: str, dtype: str) -> float:
    """Largest error of a statistic, as a share of its largest entry, that theory lets expect."""
    return ROUNDINGS * model_of(model, LOW[dtype]).anatomy.n_layers * UNIT[dtype]


def cast(module: nn.Module, *dtypes: torch.dtype) -> nn.Module:
    """Weights rounded to one type after the other; buffers (rotary frequencies) as they are."""
    for parameter in module.parameters():
        for dtype in dtypes:
            parameter.data = parameter.data.to(dtype)
    return module


@functools.cache
def model_of(name: str, *dtypes: torch.dtype) -> Model:
    """An embedded model, or a random one of a family, whose weights went through these types."""
    if name.startswith("mechrep-"):
        embedded = load_model(name, check=False)
        module, tokenizer = embedded.plain, embedded.tokenizer
    elif name in families():
        module, tokenizer = build(families()[name]), None
    else:
        module, tokenizer = fresh(name), None
    assert module is not None
    if name == "Mixtral":  # grouped products are not made for float64
        module.config._experts_implementation = "eager"  # pyright: ignore
    return load_model(cast(module, *dtypes), tokenizer=tokenizer, check=False)


def axes_of(result: Result, field: str) -> list[str]:
    """Names of the axes of one of its tensors; of a single measure none."""
    hint = typing.get_type_hints(type(result)).get(field)
    return [] if hint is None else hint.dim_str.split()


def tensors(result: Result) -> dict[str, Tensor]:
    """Every statistic of a result that is a tensor; measures that differ in unit stand alone."""
    found = {}
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        if not isinstance(value, Tensor):
            continue
        if axes_of(result, field.name)[0] == "measure":
            found |= dict(zip(MEASURES, value.double(), strict=True))
        else:
            found[field.name] = value.double()
    return found


def error(found: Tensor, right: Tensor) -> float:
    """Largest difference as a share of the largest entry; infinite where other entries have a number."""
    if found.shape != right.shape or not torch.equal(found.isnan(), right.isnan()):
        return float("inf")
    here = right.isfinite() & found.isfinite()
    if not torch.equal(found[~here & ~right.isnan()], right[~here & ~right.isnan()]):
        return float("inf")
    if not here.any():
        return 0.0
    return float((found[here] - right[here]).abs().max() / right[here].abs().max().clamp_min(1e-12))


def same_top(found: Tensor, right: Tensor, units: int) -> float:
    """Share of the first units of one ranking that are among the first of the other; the least over leading axes.

    Args:
        found: values, the last axes those of the units.
        right: the same of the oracle.
        units: so many axes are those of the units.
    """
    shares = []
    if not found.numel():
        return float("nan")
    one, other = (value.flatten(-units).nan_to_num(-torch.inf).view(-1, value[(0,) * (value.ndim - units)].numel())
                  for value in (found, right))  # fmt: skip
    for mine, theirs in zip(one, other, strict=True):
        known = min(TOP, int(theirs.isfinite().sum()))
        if known and len(theirs[theirs.isfinite()].unique()) > TOP:
            best = [set(value.argsort(descending=True, stable=True)[:known].tolist()) for value in (mine, theirs)]
            shares.append(len(best[0] & best[1]) / known)
    return min(shares, default=float("nan"))


@dataclasses.dataclass
class Row:
    """One statistic in one type.

    Attributes:
        what: analyzer and statistic.
        dtype: name of the type.
        error: against float64 of the same weights.
        with_weights: against float64 of the weights before they were rounded: what a user sees of it all.
        top: share of the first units that stay the first; NaN where nothing is ranked.
    """

    what: str
    dtype: str
    error: float
    with_weights: float
    top: float = float("nan")

    @property
    def statistic(self) -> str:
        """Without the analyzer's name."""
        return self.what.split(".")[1]


def rows_of(name: str, dtype: str, read: Callable[[Model], Result], *, model: str, unrounded: bool = True) -> list[Row]:
    """All statistics of what is read, in one type.

    Args:
        name: of the analyzer.
        dtype: which type.
        read: what is measured of a model.
        model: name of the model.
        unrounded: whether the weights before rounding are measured too.
    """
    low, wide = LOW[dtype], torch.float64
    found, right = read(model_of(model, low)), read(model_of(model, low, wide))
    whole = read(model_of(model, wide)) if unrounded and dtype != "float32" else right
    tables = [tensors(one) for one in (found, right, whole)]
    rows = []
    for key, value in tables[0].items():
        row = Row(f"{name}.{key}", dtype, error(value, tables[1][key]), error(value, tables[2][key]))
        axes = axes_of(found, key)
        if axes[-1:] in (["head"], ["neuron"]) and "key" not in axes:
            row.top = same_top(value, tables[1][key], 2 if "layer" in axes[-2:] else 1)
        rows.append(row)
    return rows


def analyzed(make: Callable[[Model], tuple[Corpus, Any]]) -> Callable[[Model], Any]:
    """What reads the result of an analyzer."""

    def read(model: Model) -> Any:
        corpus, analyzer = make(model)
        return CorpusCache(model, corpus, progress=False).run(analyzer)

    return read
