"""``generate``: continue the texts of a corpus, greedily or by sampling, each row under its own intervention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pandas as pd

from mechrep.errors import InputError
from mechrep.generation.engine import decode, decode_reference
from mechrep.generation.requests import Continuation, Decoding, Request, StopRule
from mechrep.interventions.base import Intervention
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus


def generate(
    model: Model,
    corpus: Corpus,
    *,
    max_new_tokens: int,
    interventions: Intervention | Sequence[Intervention | None] | None = None,
    starts: Sequence[int] | None = None,
    stop_when: StopRule | Sequence[StopRule] | None = "eos",
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
    suppress: Sequence[int] = (),
    batch_size: int = 256,
    view: Literal["auto", "plain", "transformer_lens"] = "auto",
    progress: bool | None = None,
) -> Corpus:
    """Continue every text of ``corpus`` and return prompts and continuations as a new corpus.

    Decoding is batched over a key-value cache; rows that end make room for rows that wait; a prefix shared by several
    rows is computed once; each row has its own intervention and its own first edited position.  An edit is active
    from its start *in the text*, at every forward pass, so the result does not depend on batch or cache.

    Args:
        model: the model.
        corpus: the prompts; the whole of each text is its prompt.
        max_new_tokens: continue by at most so many tokens.
        interventions: one for all rows, or one (or ``None``) per row.
        starts: first edited position per row.  Default, by the intervention's ``when``: 0 for ``"all"``, the prompt's
            last position for ``"last"``, ``onset - 1`` from the frame for ``"from_onset"``.
        stop_when: ``"eos"``, a detector preset (``"hiraoka2025"``, ``"mechrep"``), a function of the ids so far, or
            several of these; ``None`` always continues to the end.
        temperature: 0 is greedy; sampling gives the same text whatever batch it is in.
        top_k: sample among so many most probable tokens.
        seed: of the sampling.
        suppress: ids that are never produced.
        batch_size: rows computed together.
        view: ``"plain"`` (fast), ``"transformer_lens"`` (the reference: every token recomputes the text), or
            ``"auto"``: the fast one where the model has it.
        progress: show a progress bar; by default to people only.

    Returns:
        A corpus with the same frame, ``prompt_length`` set to the length of the prompt, and ``stop_reason``
        (``"eos"``, ``"stopped"`` by a rule, ``"length"``).

    Raises:
        InputError: a corpus made with another tokenizer, prompts that do not leave room in the context, a number of
            interventions or starts that is not the number of rows, an onset that is missing.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["And the king said"], model=model)
        >>> longer = mechrep.generate(model, corpus, max_new_tokens=8)
        >>> len(longer.row(0)) - len(corpus.row(0)), int(longer.frame["prompt_length"][0]) == len(corpus.row(0))
        (8, True)
    """
    corpus.check_model(model)
    requests = make_requests(corpus, interventions, starts)
    decoding = Decoding(max_new_tokens, stop_when, temperature, top_k, seed, suppress)
    answers = run_requests(model, requests, decoding, batch_size=batch_size, view=view, progress=progress)
    return answers_to_corpus(model, corpus, answers)


def run_requests(
    model: Model,
    requests: Sequence[Request],
    decoding: Decoding,
    *,
    batch_size: int = 256,
    view: Literal["auto", "plain", "transformer_lens"] = "auto",
    progress: bool | None = None,
    what: str = "generating",
) -> list[Continuation]:
    """Decode requests on the fast view where there is one (``"auto"``), or on the view asked for."""
    fast = model.plain is not None and not model.processed
    if batch_size < 1 or view not in ("auto", "plain", "transformer_lens"):
        raise InputError(
            f"batch_size={batch_size}, view={view!r}",
            "at least 1 row; 'auto', 'plain' or 'transformer_lens'",
            "correct them",
        )
    if view == "plain" and not fast:
        raise InputError(f"view='plain' for {model.name}", "a model with a plain view", "use view='auto'")
    if fast and view != "transformer_lens":
        return decode(model, requests, decoding, batch_size=batch_size, progress=progress, what=what)
    return decode_reference(model, requests, decoding, batch_size=min(batch_size, 64), progress=progress)


def make_requests(
    corpus: Corpus, interventions: Intervention | Sequence[Intervention | None] | None, starts: Sequence[int] | None
) -> list[Request]:
    """One request per text, with the default start of its intervention where none is given."""
    per_row = [interventions] * len(corpus) if not isinstance(interventions, Sequence) else list(interventions)
    for name, values in (("interventions", per_row), ("starts", starts)):
        if values is not None and len(values) != len(corpus):
            raise InputError(f"{len(values)} {name} for {len(corpus)} texts", "one per text", "repeat or drop some")
    requests = []
    for number, intervention in enumerate(per_row):
        prompt = tuple(corpus.row(number))
        start = starts[number] if starts is not None else default_start(corpus.frame, number, len(prompt), intervention)
        requests.append(Request(prompt, intervention, int(start), number))
    return requests


def default_start(frame: pd.DataFrame, number: int, prompt_length: int, intervention: Intervention | None) -> int:
    """First edited position of a row, by the intervention's ``when``.

    Raises:
        InputError: ``"from_onset"`` for a text without an onset.
    """
    if intervention is None or intervention.when == "all":
        return 0
    if intervention.when == "last":
        return prompt_length - 1
    onset = frame["onset"].iloc[number] if "onset" in frame else None
    if onset is None or pd.isna(onset):
        raise InputError(
            f"when='from_onset' for text {frame['id'].iloc[number]!r}, which has no onset",
            "texts in which a cycle was found",
            "call corpus.with_cycles(), use when='last', or pass starts=",
        )
    return max(0, int(onset) - 1)


def answers_to_corpus(model: Model, corpus: Corpus, answers: Sequence[Continuation]) -> Corpus:
    """Prompts with their continuations; facts about cycles are dropped, because the text is another one now."""
    stale = [c for c in ("start", "onset", "period", "copies") if c in corpus.frame]
    frame = corpus.frame.drop(columns=stale).assign(
        prompt_length=[len(answer.request.prompt) for answer in answers],
        stop_reason=[answer.reason for answer in answers],
    )
    return Corpus.from_tokens([a.ids for a in answers], model=model, frame=frame, bos_policy=corpus.bos_policy)
