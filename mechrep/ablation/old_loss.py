"""Loss and perplexity on held-out text while neurons are changed: what does the cut cost elsewhere?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrep.ablation.old_controls import CONTROLS, Unit, as_seeds, sweep_conditions
from mechrep.errors import InputError
from mechrep.figures import INK, counted, draw_selections, number_axis, styled
from mechrep.interventions.apply import EditTable, transformer_lens_hooks
from mechrep.interventions.ops import Intervention, Op, as_op
from mechrep.measures.neurons import RepetitionNeuronResult
from mechrep.models.model import Model
from mechrep.progress import progress_bar
from mechrep.provenance import provenance_of
from mechrep.results import Result
from mechrep.stats import paired_bootstrap_interval
from mechrep.store import Journal
from mechrep.text.corpus import SHORTEST_WINDOW, Corpus

if TYPE_CHECKING:
    import plotly.graph_objects as go

_TOKENS_PER_BATCH = 4096


@torch.no_grad()
def token_losses(
    model: Model, corpus: Corpus, interventions: Sequence[Intervention | None], *, progress: bool | None = None
) -> Float[Tensor, "intervention text"]:
    """Mean loss in nats per token on the second half of every text, under each intervention.

    The edit is active at every position from the middle of the text on, that is wherever a loss is counted.

    Args:
        model: the model.
        corpus: windows of held-out text, all of one length.
        interventions: ``None`` is the untouched model.
        progress: show a progress bar.

    Raises:
        InputError: windows of different lengths.
    """
    corpus.check_model(model)
    length = int(corpus.lengths[0])
    if not bool((corpus.lengths == length).all()) or length < SHORTEST_WINDOW:
        raise InputError(
            f"windows of {int(corpus.lengths.min())} to {int(corpus.lengths.max())} tokens",
            f"one length of at least {SHORTEST_WINDOW}",
            "cut them with windows_of_text",
        )
    losses = torch.zeros(len(interventions), len(corpus))
    measure = _reference_losses if not model.fast else _fast_losses
    with progress_bar(losses.numel(), "measuring loss", "window", progress) as bar:
        for texts in torch.arange(len(corpus)).split(max(1, _TOKENS_PER_BATCH // length)):
            tokens = corpus.tokens[texts].to(model.device)
            for condition, loss in enumerate(measure(model, tokens, interventions, texts.tolist())):
                losses[condition, texts] = loss.cpu()
                bar.update(len(texts))
    return losses


def _fast_losses(
    model: Model, tokens: Tensor, interventions: Sequence[Intervention | None], texts: Sequence[int]
) -> Iterator[Float[Tensor, " text"]]:
    """Plain view; the first half, which no edit touches, is computed once for all interventions."""
    from transformers import DynamicCache

    assert model.plain is not None
    first = tokens.shape[1] // 2
    begin, scored = first - 1, tokens[:, first - 1 :]
    cache = DynamicCache()
    model.plain(input_ids=tokens[:, :begin], past_key_values=cache, use_cache=True, logits_to_keep=1)
    rows = torch.arange(len(tokens), device=tokens.device)
    everywhere = torch.ones(scored.shape, dtype=torch.bool, device=tokens.device)
    for intervention in interventions:
        table = EditTable(
            model,
            [intervention] * len(tokens),
            texts,
            first_tokens=tokens[:, 0].tolist(),
            starts=[begin] * len(tokens),
        )
        table.aim(rows, everywhere)
        with table.applied():
            logits = model.plain(input_ids=scored, past_key_values=cache, use_cache=True).logits
        cache.crop(-scored.shape[1])
        yield _mean_loss(logits, scored)


def _reference_losses(
    model: Model, tokens: Tensor, interventions: Sequence[Intervention | None], texts: Sequence[int]
) -> Iterator[Float[Tensor, " text"]]:
    """TransformerLens view: one whole forward pass per intervention."""
    begin = tokens.shape[1] // 2 - 1
    starts = torch.full((len(tokens),), begin)
    for intervention in interventions:
        hooks = [] if intervention is None else transformer_lens_hooks(intervention, model, starts, texts)
        logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
        yield _mean_loss(logits[:, begin:], tokens[:, begin:])


def _mean_loss(logits: Float[Tensor, "text pos d_vocab"], tokens: Int[Tensor, "text pos"]) -> Float[Tensor, " text"]:
    """Mean of -log p(token t + 1) over the positions of each text."""
    scores = logits[:, :-1].float().log_softmax(-1)
    return -scores.gather(-1, tokens[:, 1:, None]).squeeze(-1).mean(-1)


@dataclass(frozen=True, eq=False)
class LossResult(Result):
    """Loss on held-out text under every condition of a sweep.

    Attributes:
        op: the operation.
        conditions: ``[selection, k, seed]`` of each row of ``losses``; the first is the untouched model.
        losses: nats per token.
    """

    op: str
    conditions: list[list[Any]]
    losses: Float[Tensor, "condition text"]

    def to_frame(self) -> pd.DataFrame:
        """One row per condition: loss, perplexity, rise over the untouched model with a 95 % bootstrap interval."""
        rise = self.losses - self.losses[:1]
        rows = []
        for (selection, k, seed), loss, more in zip(self.conditions, self.losses, rise, strict=True):
            low, high = paired_bootstrap_interval(more.tolist())
            rows.append(
                {
                    "selection": selection,
                    "k": k,
                    "seed": seed,
                    "texts": len(loss),
                    "loss": float(loss.mean()),
                    "perplexity": float(loss.mean().exp()),
                    "rise": float(more.mean()),
                    "low": low,
                    "high": high,
                }
            )
        return pd.DataFrame(rows)

    def plot(self) -> go.Figure:
        """Perplexity against the number of neurons."""
        return plot_perplexity(self)


def loss_sweep(
    model: Model,
    corpus: Corpus,
    *,
    neurons: RepetitionNeuronResult | Sequence[Unit],
    ks: Sequence[int],
    controls: Sequence[str] = CONTROLS,
    seeds: int | Sequence[int] = 5,
    op: Op | str = "zero",
    store: str | Path | None = None,
    progress: bool | None = None,
) -> LossResult:
    """Loss on held-out windows under the conditions of a sweep.

    Args:
        model: the model.
        corpus: windows made by :func:`mechrep.text.corpus.windows_of_text`.
        neurons: a result or a ranked list of ``(layer, neuron)``.
        ks: numbers of neurons.
        controls: see :mod:`mechrep.ablation.old_controls`.
        seeds: number of draws of each control, or the seeds.
        op: the operation.
        store: folder in which the finished result is kept.
        progress: show a progress bar.

    Raises:
        InputError: as in :func:`mechrep.studies.deactivation_sweep`.

    Source: the direction (deactivation costs little, activation costs much) is Hiraoka & Inui 2025 (arXiv
    2410.13497); window length, stride and scored half are mechrep's own, the paper's are not known to us.

    Example:
        >>> import mechrep
        >>> from mechrep.models import tiny
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> from mechrep.text.corpus import windows_of_text
        >>> windows = windows_of_text(model, tiny.held_out_text(), length=64, limit=4)
        >>> result = loss_sweep(model, windows, neurons=[(3, 1)], ks=[1], controls=[], seeds=1)
        >>> result.to_frame()["selection"].tolist()
        ['none', 'top']
    """
    operation = as_op(op)
    conditions = sweep_conditions(model, neurons, ks, controls, as_seeds(seeds))
    config = {
        "study": "loss",
        "op": operation.name,
        "op_values": operation.fingerprint,
        "conditions": [[c.selection, c.k, c.seed, [list(unit) for unit in c.units]] for c in conditions],
    }
    cells = [[c.selection, c.k, c.seed] for c in conditions]
    provenance = provenance_of(model, corpus, config)
    journal = None if store is None else Journal(Path(store), provenance)
    kept = None if journal is None else journal.find(0)
    if kept is not None:
        losses = torch.tensor([record["losses"] for record in kept])
    else:
        losses = token_losses(model, corpus, [c.intervention(operation, "all") for c in conditions], progress=progress)
        if journal is not None:
            journal.keep(0, [{"losses": row} for row in losses.tolist()])
    return LossResult(provenance, operation.name, cells, losses)


_WIDEST_LINEAR = 10  # perplexities that lie further apart than this factor get a logarithmic axis
_VERBS = {"zero": "cut", "deactivation": "cut", "activation": "boosted"}


def plot_perplexity(loss_result: LossResult) -> go.Figure:
    """Perplexity on held-out text against the number of neurons that were cut or boosted.

    The top neurons have a 95 % bootstrap interval of the rise over windows of text, the controls the range of their
    draws round the mean loss.

    Args:
        loss_result: of :func:`mechrep.studies.loss_sweep`.

    Source: the question is that of Hiraoka & Inui 2025 (arXiv 2410.13497); see :func:`mechrep.studies.loss_sweep` for
    what is mechrep's own.

    Example:
        >>> import torch
        >>> from mechrep.provenance import Provenance
        >>> cells = [["none", 0, 0], ["top", 5, 0], ["random", 5, 0], ["random", 5, 1]]
        >>> losses = torch.tensor([[2.0, 2.0], [2.5, 2.5], [2.0, 2.0], [2.2, 2.2]])
        >>> result = LossResult(Provenance({"name": "net"}, {}, {}), "zero", cells, losses)
        >>> plot_perplexity(result).data[-1].y.round(2).tolist()
        [7.39, 12.18]
    """
    import plotly.graph_objects as go

    table, figure = perplexity_summary(loss_result), go.Figure()
    hover = (
        "%{fullData.name}, k = %{customdata[0]}<br>perplexity %{y:.2f}"
        "<br>%{customdata[1]:.2f} to %{customdata[2]:.2f} over %{customdata[3]}<extra></extra>"
    )
    draw_selections(figure, table, "perplexity", hover)
    base = float(table["perplexity"].iloc[0])
    figure.add_hline(y=base, line={"color": INK, "width": 1.5, "dash": "dot"}, layer="below")
    verb = _VERBS.get(loss_result.op, "boosted")
    windows = counted(loss_result.losses.shape[1], "window")
    wide = table["perplexity"].max() > _WIDEST_LINEAR * table["perplexity"].min()
    styled(
        figure,
        title=f"Perplexity on held-out text when neurons are {verb}",
        subtitle=f"{loss_result.provenance.model['name']}, {windows} of text; untouched model {base:.2f}",
        x=f"neurons {verb}, k (logarithmic, 0 apart)",
        y="perplexity (logarithmic)" if wide else "perplexity",
    )
    number_axis(figure, table["k"].tolist())
    return figure.update_yaxes(type="log" if wide else "linear")


def perplexity_summary(result: LossResult) -> pd.DataFrame:
    """One row per selection and k: perplexity of the mean loss over draws, and the interval that is drawn.

    Example:
        >>> import torch
        >>> from mechrep.provenance import Provenance
        >>> result = LossResult(Provenance({}, {}, {}), "zero", [["none", 0, 0], ["top", 1, 0]], torch.zeros(2, 3))
        >>> perplexity_summary(result)["perplexity"].tolist()
        [1.0, 1.0]
    """
    frame, rows = result.to_frame(), []
    base = float(frame["loss"].iloc[0])
    for (selection, k), cell in frame.groupby(["selection", "k"], sort=False):
        several = len(cell) > 1
        low = cell["loss"].min() if several else base + cell["low"].iloc[0]
        high = cell["loss"].max() if several else base + cell["high"].iloc[0]
        middle = float(cell["loss"].mean())
        row = {"selection": selection, "k": k, "draws": len(cell), "loss": middle, "rise": middle - base}
        rows.append(row | {"perplexity": math.exp(middle), "low": math.exp(low), "high": math.exp(high)})
        rows[-1]["over"] = "draws" if several else "windows"
    return pd.DataFrame(rows)
