"""What the wrong calls are made with: right things of every kind, each made when it is first asked for."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import mechrep
from mechrep import interventions
from mechrep.ablation.study import Controls, StudyTexts
from mechrep.models import tiny as tiny_models
from mechrep.text.stimuli import repeated_tokens
from mechrep.text.windows import windows_of_text
from tests.tiny_models import tiny


class World:
    """Models, texts, results and files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cached_property
    def model(self) -> Any:
        return mechrep.load_model("mechrep-tiny")

    def fresh(self) -> Any:
        """A module of the other model's weights, to be changed."""
        return copy.deepcopy(self.other.plain)

    @functools.cached_property
    def other(self) -> Any:
        """Another model: no tokenizer, another vocabulary, other sizes."""
        return mechrep.load_model(copy.deepcopy(tiny("llama")))

    @functools.cached_property
    def sibling(self) -> Any:
        """The same sizes and tokenizer as the model, other weights."""
        return mechrep.load_model("mechrep-tiny", revision="step512")

    @functools.cached_property
    def corpus(self) -> Any:
        rows = [[0, *range(30 + i, 50 + i), *[9, 8, 7, 6, 5] * 4] for i in range(3)]
        return mechrep.Corpus.from_tokens(rows, model=self.model).with_cycles()

    @functools.cached_property
    def foreign(self) -> Any:
        """A corpus of the other model."""
        return mechrep.Corpus.from_tokens([[0, 5, 6, 7, 5, 6, 7], [0, 9, 8, 9, 8, 9, 8]], model=self.other)

    @functools.cached_property
    def windows(self) -> Any:
        """Loop-free windows of one length."""
        return windows_of_text(self.model, tiny_models.held_out_text(), length=60, limit=3)

    @functools.cached_property
    def repeats(self) -> Any:
        return repeated_tokens(self.model, [300, 301], 12)

    @functools.cached_property
    def neurons(self) -> Any:
        return mechrep.CorpusCache(self.model, self.corpus, progress=False).run(mechrep.RepetitionNeurons(r=5))

    @functools.cached_property
    def heads(self) -> Any:
        return mechrep.score_heads(self.model, n=10, sequences=2)

    @functools.cached_property
    def sinks(self) -> Any:
        return mechrep.attention_sinks(self.model, self.corpus)

    @functools.cached_property
    def norms(self) -> Any:
        return mechrep.CorpusCache(self.model, self.corpus, progress=False).run(mechrep.SinkNorms())

    @functools.cached_property
    def repeat_norms(self) -> Any:
        return mechrep.CorpusCache(self.model, self.repeats, progress=False).run(mechrep.RepeatNorms())

    @functools.cached_property
    def composition(self) -> Any:
        return mechrep.head_composition(self.model, draws=2)

    @functools.cached_property
    def ov(self) -> Any:
        return mechrep.ov_scores(self.model, draws=1, sample=20)

    @functools.cached_property
    def copying(self) -> Any:
        return mechrep.score_copying(self.model, n=10, sequences=2)

    @functools.cached_property
    def qk(self) -> Any:
        return mechrep.qk_attribution(self.model, self.corpus, (1, 0), [(0, 25, 21)])

    @functools.cached_property
    def cluster(self) -> Any:
        return mechrep.ov_cluster(self.model, 300, 3, draws=(1, 1), candidates=range(290, 310), length=6)

    @functools.cached_property
    def comparison(self) -> Any:
        return mechrep.compare(self.model, "The sea was", "L2H0", max_new_tokens=4, progress=False)

    @functools.cached_property
    def effects(self) -> Any:
        circuit = mechrep.Circuit("a", heads=[(2, 0)])
        texts = StudyTexts(loops=self.corpus, held_out=False)
        run = mechrep.Run(effort="quick", progress=False)
        return mechrep.studies.ablation_study(
            self.model, circuit, outcomes=["loop_log_probability"], texts=texts, controls=Controls(draws=1), run=run
        )

    @functools.cached_property
    def cache(self) -> Any:
        return mechrep.CorpusCache(self.model, self.corpus, progress=False)

    @functools.cached_property
    def circuit(self) -> Any:
        return mechrep.Circuit("a", heads=[(2, 0)], neurons=[(3, 5)])

    @functools.cached_property
    def anatomy(self) -> Any:
        return self.model.anatomy

    @functools.cached_property
    def cycle(self) -> Any:
        return mechrep.detect_cycle([9, 8, *[1, 2, 3] * 4])

    @functools.cached_property
    def run(self) -> Any:
        return mechrep.Run(effort="quick", progress=False)

    @functools.cached_property
    def op(self) -> Any:
        return interventions.scale(2.0)
