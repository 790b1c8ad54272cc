"""Every analyzer gives the same numbers however a corpus is read: batches, order, splits, threads.

What lower precision changes is measured in tests/numerics.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
import typing
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import mechrep
from mechrep.cache.corpus_cache import Analyzer, CorpusCache, OnTexts
from mechrep.measures.attention_sinks import AttentionSinks
from mechrep.measures.distance_profile import DistanceProfile
from mechrep.measures.first_token import FirstTokenDetection
from mechrep.measures.head_copying import CopySuppression, HeadCopying
from mechrep.measures.head_scores import HeadScores
from mechrep.measures.natural_vs_induced import TextKindContrast
from mechrep.measures.neurons import RepetitionNeurons
from mechrep.measures.router_shift import RouterShift
from mechrep.measures.sink_norms import RepeatNorms, SinkNorms
from mechrep.measures.token_information import TokenInformation, token_facts
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus
from mechrep.text.stimuli import repeated_tokens
from tests.analyzers.looping_texts import as_corpus, random_loops
from tests.analyzers.oracle import Loop
from tests.families.zoo import build, families
from tests.numerics.analyzers import MAKERS
from tests.tiny_models import fresh

WHOLE = 1e-6  # of the largest entry, in double precision, in which softmax of attention stays single in transformers
SINGLE = 2e-4  # of the largest entry, in single precision


@dataclasses.dataclass
class Case:
    """One analyzer on its model and texts."""

    model: Model
    corpus: Corpus
    make: Callable[[], Analyzer[Any]]

    def run(self, corpus: Corpus | None = None, **options: Any) -> Any:
        return CorpusCache(self.model, corpus or self.corpus, progress=False, **options).run(self.make())


@functools.cache
def model_of() -> Model:
    return load_model(fresh("llama_gqa").double(), check=False)


@functools.cache
def words_of() -> Model:
    return load_model("mechrep-tiny", dtype=torch.float64)


@functools.cache
def experts() -> Model:
    return load_model(build(families()["Mixtral"]), check=False)


def loops(model: Model, n: int = 7) -> Corpus:
    return as_corpus(random_loops(n, length=40), model)


def with_controls(model: Model) -> Corpus:
    """Loops, and as many texts as long in which nothing repeats."""
    looping = random_loops(4, first=(20, 30), length=60)
    free = [Loop(list(range(3, 3 + len(loop.ids[:55]))), -1, -1) for loop in looping]
    return as_corpus([*looping, *free], model)


@functools.cache
def kinds() -> tuple[Model, Corpus]:
    from mechrep.generation import sample_prompts
    from mechrep.generation.text_kinds import induced_texts, joined_texts

    model = load_model("mechrep-tiny")
    induced = induced_texts(model, sample_prompts(model, 8), 3, "cycle", max_new_tokens=80)
    return model, joined_texts(induced, n_ctx=model.anatomy.n_ctx, copies=2)


def case_of(name: str) -> Case:
    """What an analyzer is tried on; every analyzer of mechrep has a case."""
    # Grouped products of experts are not made for double precision.
    model = experts() if name == "RouterShift" else model_of()
    corpus = loops(model)
    if name == "TextKindContrast":
        model, corpus = kinds()
        return Case(model, corpus, lambda: TextKindContrast(model, copies=2))
    if name == "RouterShift":
        return Case(model, with_controls(model), lambda: RouterShift(r=8))
    if name == "RepeatNorms":
        return Case(model, repeated_tokens(model, [5, 6, 7, 8, 9], 30), RepeatNorms)
    if name == "TokenInformation":
        model, texts = (
            words_of(),
            ["The sea, the sea, the sea.", "It rained and it rained all day.", "No, no, no."],
        )
        corpus = Corpus.from_texts(texts, model=model)
        facts = token_facts(model, corpus, reference=corpus)
        return Case(model, corpus, lambda: TokenInformation(facts))
    makers: dict[str, Callable[[], Analyzer[Any]]] = {
        "SinkNorms": SinkNorms,
        "HeadCopying": lambda: HeadCopying(model),
        "CopySuppression": lambda: CopySuppression(model),
        "RepetitionNeurons": lambda: RepetitionNeurons(r=5),
        "DistanceProfile": lambda: DistanceProfile(8),
        "HeadScores": lambda: HeadScores(bos_id=0),
        "FirstTokenDetection": lambda: FirstTokenDetection.of(model),
        "AttentionSinks": AttentionSinks,
    }
    return Case(model, corpus, makers[name])


NAMES = (
    "AttentionSinks", "CopySuppression", "DistanceProfile", "FirstTokenDetection", "HeadCopying", "HeadScores",
    "RepeatNorms", "RepetitionNeurons", "RouterShift", "SinkNorms", "TextKindContrast", "TokenInformation",
)  # fmt: skip
# Texts stand in these in an order of their own, and facts of texts are handed over for one corpus.
BY_TEXT = {"TextKindContrast", "TokenInformation", "RepeatNorms", "RouterShift"}


def tensors(result: Any) -> dict[str, tuple[Tensor, list[str]]]:
    """All tensors of a result with the names of their axes."""
    hints = typing.get_type_hints(type(result))
    return {
        field.name: (value, hints[field.name].dim_str.split())
        for field in dataclasses.fields(result)
        if isinstance(value := getattr(result, field.name), Tensor)
    }


ROUNDING = {"identity_error", "same_value_error", "bound_excess"}  # what rounding leaves of a zero


def difference(one: Any, other: Any, order: list[int] | None = None) -> float:
    """Largest difference of any tensor, as a share of its largest entry; texts are put back in order."""
    found, expected = tensors(one), tensors(other)
    assert found.keys() == expected.keys() and found
    worst = 0.0
    for name, (value, axes) in found.items():
        if name in ROUNDING:
            assert float(value.max()) < SINGLE
            continue
        own, right = value.double(), expected[name][0].double()
        if order is not None and "text" in axes:
            own = own.index_select(axes.index("text"), torch.tensor(order).argsort())
        assert own.shape == right.shape and torch.equal(own.isnan(), right.isnan()), name
        assert torch.equal(own.isinf(), right.isinf()), name
        here = right.isfinite()
        if here.any():
            scale = right[here].abs().max().clamp_min(1e-12)
            worst = max(worst, float((own[here] - right[here]).abs().max() / scale))
    return worst


def test_every_analyzer_has_a_case() -> None:
    for module in pkgutil.walk_packages(mechrep.__path__, "mechrep."):
        if not module.name.endswith(("__main__", "train")):
            importlib.import_module(module.name)

    def below(kind: type) -> set[type]:
        return {kind, *(each for one in kind.__subclasses__() for each in below(one))}

    own = {kind.__name__ for kind in below(Analyzer) if kind.__module__.startswith("mechrep.")}
    # These hand over to another analyzer, or keep one text as it is.
    assert own - {"Analyzer", OnTexts.__name__, "TextReader"} == set(NAMES) == set(MAKERS)


@pytest.mark.parametrize("name", NAMES)
def test_batches_and_what_they_are_filled_with_do_not_matter(name: str, trust: Any) -> None:
    case = case_of(name)
    alone = case.run(batch_size=1)
    bound = SINGLE if case.model.dtype == torch.float32 else WHOLE
    worst = max(difference(case.run(batch_size=size), alone) for size in (3, "auto"))
    trust(section="second implementations", what=f"{name}: batches of 1, 3 and all", asked=f"{bound:.0e}",
          measured=f"{worst:.0e} of the largest entry", holds=worst < bound)  # fmt: skip
    assert worst < bound


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BY_TEXT])
def test_the_order_of_texts_does_not_matter(name: str) -> None:
    case = case_of(name)
    order = torch.randperm(len(case.corpus), generator=torch.Generator().manual_seed(0)).tolist()
    turned = case.corpus.select(order)
    assert difference(case.run(turned, batch_size=2), case.run(), order) < WHOLE


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BY_TEXT])
def test_halves_that_are_merged_give_the_whole(name: str) -> None:
    case = case_of(name)
    whole = case.run()
    halves = [case.make() for _ in range(2)]
    middle = len(case.corpus) // 2
    for half, part in zip(halves, (range(middle), range(middle, len(case.corpus))), strict=True):
        CorpusCache(case.model, case.corpus.select(list(part)), progress=False).run(half)
    halves[0].merge(halves[1])
    assert difference(halves[0].result(whole.provenance), whole) < WHOLE


def test_the_number_of_threads_does_not_matter() -> None:
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append([case_of(name).run() for name in ("HeadScores", "SinkNorms", "RepetitionNeurons")])
    finally:
        torch.set_num_threads(before)
    assert max(difference(one, other) for one, other in zip(*found, strict=True)) < WHOLE
