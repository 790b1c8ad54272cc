"""The dear outcomes of an ablation study: texts are written again under the cut, and one looks whether they loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.generation.generate import run_requests
from mechrep.generation.requests import Decoding, Request
from mechrep.interventions.base import Intervention, When
from mechrep.models.model import Model
from mechrep.studies.ablation.outcomes import measure
from mechrep.text.corpus import Corpus
from mechrep.text.repeats import repeats_after_prompt


class Regeneration:
    """Share of texts that loop when they are written again from their prompt on, greedily.

    Args:
        name: ``"still_looping"`` or ``"newly_looping"``.
        model: the model.
        corpus: the texts.
        cuts: where each prompt ends.
        when: ``"from_onset"``: edited from the prompt's last position on; ``"all"``: everywhere.
        preset: of the detector, which also stops a text that has its answer.
        max_new_tokens: continue by so many tokens.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        corpus: Corpus,
        cuts: Sequence[int],
        *,
        when: When,
        preset: str,
        max_new_tokens: int,
    ) -> None:
        self.name, self.model, self.corpus, self.preset = name, model, corpus, preset
        self.prompts = [tuple(corpus.row(i)[:cut]) for i, cut in enumerate(cuts)]
        self.starts = [0 if when == "all" else cut - 1 for cut in cuts]
        self.decoding = Decoding(max_new_tokens, ["eos", preset])
        self.measures = [measure(name, trials=1)]
        self.facts: dict[str, Any] = {
            "preset": preset, "max_new_tokens": max_new_tokens, "when": when, "cuts": list(cuts)
        }  # fmt: skip

    def values(
        self, interventions: Sequence[Intervention | None], progress: bool | None
    ) -> Float[Tensor, "measure intervention text"]:
        """1 where a text loops, 0 where it does not."""
        requests = [
            Request(prompt, intervention, start, text)
            for intervention in interventions
            for text, (prompt, start) in enumerate(zip(self.prompts, self.starts, strict=True))
        ]
        answers = run_requests(self.model, requests, self.decoding, progress=progress, what=self.name)
        special = sorted(self.model.special_ids)
        loops = [
            repeats_after_prompt(
                answer.ids,
                len(answer.request.prompt),
                self.preset,
                eos_id=answer.ids[-1] if answer.reason == "eos" else None,
                special_ids=special,
            )
            is not None
            for answer in answers
        ]
        return torch.tensor(loops, dtype=torch.float64).view(1, len(interventions), len(self.prompts))
