"""How the first layer tells the first token from others, and what follows for repeats: the whole of it, for a report.

The measurements are those of :func:`mechrep.measures.first_token`; here they run as one study that
can be stopped and read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mechrep.measures.first_token import FirstTokenParts, FirstTokenResult, first_token_parts
from mechrep.measures.first_token_detectors import ConvergenceResult, FirstDetectorResult
from mechrep.measures.first_token_heads import HeadCutResult
from mechrep.measures.first_token_mass import OtherTokenResult, corpus_of
from mechrep.models.model import Model
from mechrep.progress import progress_bar
from mechrep.provenance import Provenance, provenance_of
from mechrep.store import Journal
from mechrep.text.corpus import Corpus

_KEPT = {
    "mass": OtherTokenResult,
    "detectors": FirstDetectorResult,
    "cuts": HeadCutResult,
    "convergence": ConvergenceResult,
}
_NEAR = 0.1
_NULLS = 0  # the shard of the journal that holds what the null models gave


@dataclass(frozen=True)
class FirstLayerStudy:
    """Everything that the report shows about the first layer.

    Attributes:
        model_name: how the model was named.
        parts: other-token masses, detector neurons, cut heads and copies of tokens, each whole.
        summary: the short form, with the decision.
        provenance: of the whole study.
    """

    model_name: str
    parts: FirstTokenParts
    summary: FirstTokenResult
    provenance: Provenance

    @property
    def first_distance(self) -> float:
        """Median relative distance of the first copy from the token alone, after layer 0."""
        return float(self.parts.convergence.relative("layer")[:, 0].median())

    @property
    def slope_interval(self) -> tuple[float, float]:
        """95 % of the median slope over heads and tokens (``summary.slope``), bootstrap over tokens."""
        return self.parts.convergence.slope_interval

    @property
    def comes_near(self) -> bool:
        """Whether the last copy is at most a tenth as far from the token alone as the first one: our convention."""
        return self.summary.last_distance <= _NEAR * self.first_distance


def run_first_layer_study(
    model: Model,
    *,
    texts: Corpus | Sequence[str] | None = None,
    token_ids: Sequence[int] | None = None,
    prefix: Sequence[int] | None = None,
    layer: int | None = None,
    triples: int = 1000,
    repeats: int | None = None,
    store: str | Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> FirstLayerStudy:
    """Asks whether layer 0 marks the first token, with which neurons and heads, and what copies of a token make of it.

    Args:
        model: the model, in float32.
        texts: a corpus, or texts; held-out English by default.
        token_ids: tokens that are repeated; the most frequent of held-out English by default.
        prefix: ids in front of the copies; ``"some prefix: "`` by default.
        layer: whose MLP reads the mark; the first that sees layer 0 by default.
        triples: at most so many triples of consecutive tokens.
        repeats: number of copies; by default 500, or what the model reads.
        store: folder in which the measurements are kept, so that the same study is read and not made again.
        seed: of halves, nulls and bootstrap samples.
        progress: show a progress bar.

    Raises:
        InputError: see :func:`mechrep.measures.first_token`.
        StoreError: the store cannot be read or written.

    Source and limits: see :func:`mechrep.measures.first_token`.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> study = run_first_layer_study(model, token_ids=[300], prefix=[301], triples=60, repeats=20, progress=False)
        >>> study.model_name, len(study.summary.mass) == model.anatomy.n_heads
        ('mechrep-tiny', True)
    """
    corpus = corpus_of(model, texts)
    config = {"study": "first-layer", "layer": layer, "triples": triples, "repeats": repeats, "seed": seed}
    given = {"token_ids": _listed(token_ids), "prefix": _listed(prefix)}
    provenance = provenance_of(model, corpus, config | given)
    journal = None if store is None else Journal(Path(store), provenance)
    with progress_bar(1, "first layer", "study", progress) as bar:
        parts = _find(journal)
        if parts is None:
            parts = first_token_parts(
                model,
                texts=corpus,
                token_ids=token_ids,
                prefix=prefix,
                layer=layer,
                triples=triples,
                repeats=repeats,
                seed=seed,
            )
            _keep(journal, parts)
        bar.update()
    return FirstLayerStudy(model.name, parts, parts.summary(), provenance)


def _listed(ids: Sequence[int] | None) -> list[int] | None:
    return None if ids is None else list(ids)


def _find(journal: Journal | None) -> FirstTokenParts | None:
    """The measurements of the same study, if they were kept; the nulls are written last."""
    kept = None if journal is None else journal.find(_NULLS)
    if journal is None or kept is None:
        return None
    (record,) = kept
    results = {name: kind.load(journal.folder / name) for name, kind in _KEPT.items()}
    return FirstTokenParts(**results, null_aurocs=record["null_aurocs"], provenance=Provenance(**record["provenance"]))  # pyright: ignore[reportArgumentType]


def _keep(journal: Journal | None, parts: FirstTokenParts) -> None:
    if journal is None:
        return
    for name in _KEPT:
        getattr(parts, name).save(journal.folder / name)
    journal.keep(_NULLS, [{"null_aurocs": list(parts.null_aurocs), "provenance": parts.provenance.to_dict()}])
