"""Which heads are induction heads: they look at what followed the earlier copy, and they say it."""

from __future__ import annotations

from mechrep.analyzers.heads.copying_result import HeadCopyingResult
from mechrep.analyzers.heads.result import HeadScoreResult
from mechrep.errors import InputError


def induction_heads(
    scores: HeadScoreResult, copying: HeadCopyingResult, *, prefix: float = 0.3, functional: float = 0.05
) -> list[tuple[int, int]]:
    """Heads that look at what followed the earlier copy *and* say it: adjusted prefix matching and copying.

    A head qualifies if its adjusted induction score is at least ``prefix``, its functional copying score at least
    ``functional``, and both lie above the 99 % bands of their permutation nulls.  The thresholds are conventions of
    this package, not of the literature.

    Args:
        scores: attention, from :func:`~mechrep.analyzers.heads.scores.score_heads`.
        copying: logits and nulls, from :func:`~mechrep.analyzers.heads.copying.score_copying`; of the same
            model, best on the same texts.
        prefix: least adjusted induction score.
        functional: least functional copying score.

    Returns:
        ``(layer, head)`` pairs, best prefix matching first.

    Raises:
        InputError: results of two models.

    Limits: prefix matching alone also finds heads that suppress what they look at; those fail the second condition.

    Example:
        >>> import mechrep
        >>> from mechrep.analyzers.heads.copying import score_copying
        >>> from mechrep.analyzers.heads.scores import score_heads
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> found = induction_heads(score_heads(model, n=20, sequences=4), score_copying(model, n=20, sequences=4))
        >>> isinstance(found, list)
        True
    """
    models = [result.provenance.model["fingerprint"] for result in (scores, copying)]
    if models[0] != models[1]:
        raise InputError("scores and copying of two models", "results of one model", "measure both on the same model")
    adjusted = scores.adjusted[list(scores.names).index("induction")]
    enough = (adjusted >= prefix) & (copying.functional >= functional)
    by_chance = (scores.induction <= copying.prefix_band[1]) | (copying.functional <= copying.functional_band[1])
    return [unit for unit in scores.ranking("induction") if enough[unit] and not by_chance[unit]]
