"""Many conditions read at once, sharing what lies below the edit: the same numbers as one by one."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

import mechrep
from mechrep.ablation.choices import score_choices
from mechrep.ablation.sink_outcomes import ReadRows, SinkOnRepeats, SinkOnTexts, Wanted, read_rows
from mechrep.interventions import Intervention, Neurons, SinkPatch
from mechrep.interventions.apply import applied
from mechrep.models.anatomy import Site
from mechrep.models.meter import metered
from mechrep.models.model import Model
from mechrep.models.reading import listening
from mechrep.text.corpus import Corpus
from mechrep.text.stimuli import repeated_tokens
from tests.families.zoo import build, families, text

NAMES = (
    "Llama", "GPT-2", "GPT-NeoX", "Gemma 2", "Gemma 3", "OPT", "Mixtral", "gpt-oss", "DeepSeek-V3", "Phi-3, longrope",
    "Jamba", "Falcon-H1", "BLOOM",
)  # fmt: skip
QUICK = ("Llama", "GPT-2", "Gemma 2", "Mixtral", "Phi-3, longrope")
SAMPLE = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
EXACT = {"atol": 1e-5, "rtol": 1e-5}


@functools.cache
def made(name: str) -> Model:
    return mechrep.load_model(build(families()[name]))


def conditions_of(model: Model) -> list[Intervention | None]:
    """The baseline twice, edits of a low, a high and two layers, and held neurons where the family has them."""
    dense = [layer for layer in range(model.anatomy.n_layers) if model.anatomy.neurons[layer]]
    first, last = dense[0], dense[-1]
    edits: list[Intervention | None] = [None, Neurons([(last, 3)], "zero", when="all")]
    edits += [Neurons([(first, 1), (first, 5)], "zero", when="all"), None]
    edits.append(Neurons([(last, 2), (first, 0)], "zero", when="all"))
    return edits


@torch.no_grad()
def one_by_one(model: Model, corpus: Corpus, edit: Intervention | None, number: int, wanted: Wanted) -> list[Tensor]:
    """Norms, attention, scores and hits of one text: an ordinary pass over the text alone."""
    seen: dict[tuple[Site, int], Tensor] = {}

    def keep(activation: Tensor, site: Site, layer: int) -> None:
        seen[site, layer] = activation

    tokens = torch.tensor([corpus.row(number)])
    assert model.plain is not None and wanted.head is not None
    with applied(model, edit, tokens), listening(model, wanted.layers, keep):
        logits = model.plain_logits(tokens)[0]
    probabilities = logits.double().log_softmax(-1)[:-1]
    following = tokens[0, 1:]
    return [
        torch.stack([seen[Site.RESID_POST, layer][0].norm(dim=-1) for layer in wanted.norms]),
        seen[Site.PATTERN, wanted.head[0]][0, wanted.head[1], :, 0],
        probabilities.gather(-1, following[:, None])[:, 0],
        (probabilities.argmax(-1) == following),
    ]


@pytest.mark.parametrize("name", SAMPLE)
def test_rows_are_those_of_one_text_under_one_condition(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of several lengths, batches that cut through a text's conditions; families that cannot branch too."""
    model = made(name)
    rows = [[0, *text(length, seed=length)] for length in (9, 17, 12)]
    corpus, edits = Corpus.from_tokens(rows, model=model, attention_mask=True), conditions_of(model)
    there = model.anatomy.attention_layers
    targets = torch.cat([corpus.tokens[:, 1:], corpus.tokens[:, -1:]], 1)
    wanted = Wanted(range(model.anatomy.n_layers), (there[-1], 1), targets)
    monkeypatch.setattr("mechrep.ablation.sink_outcomes._TOKENS_PER_BATCH", 4 * corpus.tokens.shape[1])
    monkeypatch.setattr("mechrep.ablation.score._LOGITS_AT_ONCE", 5 * model.anatomy.d_vocab)
    found: dict[tuple[int, int], list[Tensor]] = {}

    def take(read: ReadRows) -> None:
        assert read.attention is not None and read.scores is not None and read.hits is not None
        for row, key in enumerate(zip(read.texts.tolist(), read.conditions.tolist(), strict=True)):
            n = len(rows[key[0]])
            found[key] = [
                torch.stack([read.norms[layer][row, :n] for layer in wanted.norms]),
                read.attention[row, :n],
                read.scores[row, : n - 1],
                read.hits[row, : n - 1],
            ]

    read_rows(model, corpus, edits, wanted, take)
    assert len(found) == len(rows) * len(edits)
    scale = 1 + max(float(values[0].max()) for values in found.values())
    for (number, condition), values in found.items():
        right = one_by_one(model, corpus, edits[condition], number, wanted)
        torch.testing.assert_close(values[0] / scale, right[0].double() / scale, **EXACT)
        torch.testing.assert_close(values[1], right[1].double(), **EXACT)
        torch.testing.assert_close(values[2].double(), right[2], atol=1e-4, rtol=1e-5)
        assert (values[3] != right[3]).sum() == 0
    assert max(float((found[0, 0][2] - found[0, place][2]).abs().max()) for place in (1, 2, 4)) > 1e-4


def test_what_nobody_asks_for_is_not_computed() -> None:
    """Below the edit one row for all; nothing above the last layer that is looked at; no logits without a score."""
    model = mechrep.load_model("mechrep-tiny")
    layers, n = model.anatomy.n_layers, 12
    last = layers - 1
    edits = [None, *(Neurons([(last - 1, number)], "zero", when="all") for number in range(n - 1))]
    corpus = Corpus.from_tokens([list(range(40, 60))], model=model, attention_mask=True)
    stimulus = repeated_tokens(model, [300], 19, True)
    for outcome, scored in (
        (SinkOnTexts(model, corpus, last), True),
        (SinkOnTexts(model, corpus, 0, loss=False), False),
        (SinkOnRepeats(model, stimulus, last), True),
        (SinkOnRepeats(model, stimulus, last, scores=False), False),
    ):
        outcome.values([None], False)  # probes come first
        with metered(model) as meter:
            outcome.values(edits, False)
        if outcome.layer == last:
            assert meter.passes == 20 * (last + n)  # counted before rows part: the edited layer counts one row
            assert (meter.logits > 0) == scored
        else:
            assert meter.passes == 20 and meter.logits == 0


@pytest.mark.parametrize("name", SAMPLE)
@torch.no_grad()
def test_choices_get_the_scores_of_whole_texts(name: str) -> None:
    """Choices of one text, of one and several tokens, of short and long texts; held neurons where there are any."""
    model = made(name)
    long, other = (0, *text(14)), (0, *text(8, seed=3))
    choices = [
        (long, tuple(text(3, seed=5))),
        (long, (4,)),
        (long, (5,)),
        (other, (6, 7)),
        ((9, 0), (5, 6)),
        ((7,), (8,)),
    ]
    edits = conditions_of(model)
    if name in ("Llama", "GPT-2"):
        edits += [SinkPatch(1, [3, 7]), SinkPatch(0, [2])]
    found = score_choices(model, choices, edits)
    for (before, choice), (scores, greedy) in found.items():
        tokens = torch.tensor([[*before, *choice]])
        for number, edit in enumerate(edits):
            with applied(model, edit, tokens):
                logits = model.plain_logits(tokens)[0, len(before) - 1 : -1].double().log_softmax(-1)
            right = torch.tensor(choice)
            assert float(scores[number]) == pytest.approx(float(logits.gather(-1, right[:, None]).sum()), abs=1e-3)
            assert bool(greedy[number]) == bool((logits.argmax(-1) == right).all())
