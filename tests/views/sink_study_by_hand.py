"""A study of sinks made by hand: every number in it is known, and its tokens try to break the page."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mechrep.measures.attention_sinks import AttentionSinkResult
from mechrep.measures.find_sink import SinkResult
from mechrep.measures.ov_cluster import OVClusterResult
from mechrep.measures.sink_neurons import SinkNeuronResult
from mechrep.measures.sink_norms import RepeatNormResult, SinkNormResult
from mechrep.studies.repeat_behaviour import RepeatBehaviourResult
from mechrep.studies.sink_ablation import SinkCutResult
from mechrep.studies.sinks import HeadOnStimuli, Known, PublishedLayer, SinkStudy, SinkTables
from tests.views import study_by_hand as by_hand

N_LAYERS, N_HEADS, D_MLP, N_TEXTS, TOKENS = 6, 4, 40, 20, 10
LAYER, HEAD, NEURONS = 2, (3, 1), [7, 9]
TYPICAL, BOS, RATIO = 2.0, 200.0, 100.0
NO_SINK = "no norm sink was found, so repeats have nowhere to move to"
# Change of each measure with all sink neurons at zero, and under the first draw of every control (the second does
# nothing): beyond controls, or within them.
UNTOUCHED = {
    "first_norm": BOS, "typical_norm": TYPICAL, "attention": 0.8, "losses": 3.0, "repeat_norm": 150.0,
    "continued": 0.25, "p_next": 0.2,
}  # fmt: skip
CUT = {
    "first_norm": -190.0, "typical_norm": 0.0, "attention": -0.5, "losses": 0.5, "repeat_norm": -140.0,
    "continued": 0.5, "p_next": 0.02,
}  # fmt: skip
BESIDE = {
    "first_norm": -1.0, "typical_norm": 0.0, "attention": -0.02, "losses": 0.01, "repeat_norm": -2.0,
    "continued": 0.0, "p_next": 0.1,
}  # fmt: skip


def sink(found: bool = True, heads: bool = True, neurons: int = 2, name: str = "hand") -> SinkResult:
    """A norm sink in one layer and a head that rests on it, or neither."""
    alpha = torch.full((N_LAYERS, N_HEADS), 0.05)
    alpha[HEAD] = 0.8 if heads else 0.1
    excess = torch.zeros(N_LAYERS)
    excess[LAYER] = 4.0 if found else 0.5
    ratio = torch.ones(N_LAYERS + 1)
    ratio[LAYER + 1 :] = RATIO if found else 1.5
    return SinkResult(
        by_hand.provenance(name),
        norm_found=found,
        heads_found=heads,
        reason=f"what was found in {name}",
        first_is_bos=True,
        mean_length=64.0,
        layer=LAYER if found else None,
        neurons=[[LAYER, neuron] for neuron in NEURONS[:neurons]] if found else [],
        agreement={"authors at first": 0.5} if found else {},
        removed={"neurons": 0.9, "random": 0.01, "matched": 0.02} if found else {},
        profile=excess.clone(),
        excess_profile=excess,
        profile_z=excess * 3,
        ratio=ratio,
        bos_ratio=RATIO if found else 1.5,
        null_ratios=[1.5, 1.7],
        ratio_without_bos=float("nan"),
        alpha=alpha,
        null_alphas=[0.12, 0.11],
        uniform_alpha=0.06,
        sink_heads=[list(HEAD)] if heads else [],
        sink_share=4.0,
        moved_share=float("nan"),
        moved_reason="" if found else NO_SINK,
        repeats=511,
    )


def tables(found: bool = True, moved: int = 4, name: str = "hand") -> SinkTables:
    """Norms that agree with :func:`sink`; the last copies of so many tokens are as large as BOS."""
    other = torch.full((N_LAYERS + 1,), TYPICAL)
    first = other.clone()
    first[LAYER + 1 :] = BOS if found else TYPICAL * 1.5
    heads = (N_LAYERS, N_HEADS)
    norm = torch.full((TOKENS, N_LAYERS + 1, 3), TYPICAL)
    reached = torch.zeros(TOKENS, N_LAYERS + 1, 2)
    norm[:moved, LAYER + 1 :, 2], reached[:moved, LAYER + 1 :] = BOS, 30.0
    jump = first.log().diff()
    return SinkTables(
        norms=SinkNormResult(
            by_hand.provenance(name),
            first_norm=first,
            other_norm=other,
            other_sd=torch.full_like(other, 0.1),
            by_position=torch.stack([first, other], dim=1),
            jump=jump,
            other_jump=torch.zeros(N_LAYERS),
            n_texts=N_TEXTS,
            n_others=N_TEXTS * 63,
        ),
        heads=AttentionSinkResult(
            by_hand.provenance(name),
            alpha=sink(found).alpha,
            alpha_published=sink(found).alpha,
            rate=torch.full(heads, 0.25),
            key_importance=torch.full((*heads, 3), 0.1),
            key_rows=torch.tensor([60.0, 59.0, 58.0]),
            row_entropy=torch.full(heads, 0.5),
            column_entropy=torch.full(heads, 0.5),
            uniform_alpha=0.06,
            epsilon=0.3,
            mean_length=64.0,
            length_sd=0.0,
            n_texts=N_TEXTS,
        ),
        repeats=RepeatNormResult(
            by_hand.provenance(name),
            token_ids=list(range(100, 100 + TOKENS)),
            repeats=[1, 8, 64],
            bos=True,
            norm=norm,
            bos_norm=first,
            taus=[0.25, 0.5],
            reached=reached,
        ),
        neurons=scores(name) if found else None,
        text_ids=[0, 5, 6],
        repeat_ids=[0, 100],
        text_pattern=torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.2, 0.0], [0.7, 0.1, 0.2]]),
        repeat_pattern=torch.tensor([[1.0, 0.0], [0.4, 0.6]]),
    )


def scores(name: str = "hand") -> SinkNeuronResult:
    """The sink neurons first."""
    values = torch.zeros(2, D_MLP)
    values[:, NEURONS] = torch.tensor([9.0, 5.0])
    return SinkNeuronResult(
        by_hand.provenance(name), layer=LAYER, contribution=values, authors=values, bos_only=values, repeats=64
    )


def ablation(
    cut: dict[str, float] | None = None,
    *,
    neurons: int = 2,
    controls: tuple[str, ...] = by_hand.CONTROLS,
    texts: int = N_TEXTS,
    name: str = "hand",
) -> SinkCutResult:
    """All sink neurons at zero, and the first alone (which does half), each beside two draws of each control."""
    changes, cells = [dict.fromkeys(UNTOUCHED, 0.0)], [("none", "none", 0, [])]
    for part, share in (("all", 1.0), ("first", 0.5))[:neurons]:
        own = [[LAYER, neuron] for neuron in NEURONS[: neurons if part == "all" else 1]]
        changes.append({measure: change * share for measure, change in (CUT if cut is None else cut).items()})
        cells.append((part, "top", 0, own))
        for control in controls:
            changes += [BESIDE, dict.fromkeys(UNTOUCHED, 0.0)]
            cells += [(part, control, seed, [[LAYER, 20 + seed]]) for seed in range(2)]

    def values(measure: str, n: int) -> Tensor:
        table = torch.tensor([[UNTOUCHED[measure] + change[measure]] * n for change in changes])
        if measure != "first_norm":  # that one is the same in every text
            table[1] += 0.004 * (torch.arange(n) % 2 - 0.5)
        return table

    per_token = ("repeat_norm", "continued", "p_next")
    return SinkCutResult(
        by_hand.provenance(name),
        layer=LAYER,
        neurons=NEURONS[:neurons],
        cuts=[cell[0] for cell in cells],
        selections=[cell[1] for cell in cells],
        seeds=[cell[2] for cell in cells],
        units=[cell[3] for cell in cells],
        token_ids=list(range(100, 100 + TOKENS)),
        repeats=64,
        bos=True,
        head=list(HEAD),
        **{measure: values(measure, TOKENS if measure in per_token else texts) for measure in UNTOUCHED},
    )


def behaviour(found: bool = True, name: str = "hand") -> RepeatBehaviourResult:
    """Half of the tokens are repeated to the end."""
    conditions = ["none", "sink", "matched", "random 0"] if found else ["none"]
    shape = (len(conditions), TOKENS, 2)
    p_next = torch.full(shape, 0.25)
    p_next[..., 0] = 0.01
    run = torch.zeros(shape)
    run[:, : TOKENS // 2, 1] = 8
    return RepeatBehaviourResult(
        by_hand.provenance(name),
        conditions=conditions,
        token_ids=list(range(100, 100 + TOKENS)),
        repeats=[1, 64],
        new_tokens=8,
        prompt="bare",
        p_next=p_next,
        top_next=(run > 0).float(),
        run=run,
    )


def cluster(name: str = "hand") -> OVClusterResult:
    """Two orders of one cluster, one of each of two random sets, and plain repeats."""
    kinds = ["cluster", "cluster", "random", "random", "repeat"]
    return OVClusterResult(
        by_hand.provenance(name),
        cluster=[100, 101],
        random_sets=[[100, 102], [100, 103]],
        length=16,
        bos=True,
        kinds=kinds,
        sets=[0, 0, 0, 1, 0],
        diameter={"cluster": 0.5, "random": 2.0},
        signal=torch.tensor([0.1, 0.1, 0.5, 0.6, 0.0]),
        norm=torch.full((5, N_LAYERS + 1), TYPICAL),
        bos_norm=torch.full((N_LAYERS + 1,), BOS),
    )


def study(
    name: str = "hand",
    *,
    found: bool = True,
    heads: bool = True,
    moved: int = 4,
    stimuli: tuple[float, float, float] = (0.8, 0.6, 0.2),
    known: Known = "unknown",
    published: PublishedLayer | None = None,
    **cut: Any,
) -> SinkStudy:
    """A whole study; its tokens hold markup."""
    rule = PublishedLayer(LAYER, "", torch.arange(N_LAYERS).float())
    text, random, repeats = (torch.tensor([mean - 0.01, mean + 0.01] * 5) for mean in stimuli)
    return SinkStudy(
        model_name=name,
        sink=sink(found, heads, cut.get("neurons", 2), name),
        published=rule if published is None else published,
        tables=tables(found, moved, name),
        names={100 + token: by_hand.SCRIPT for token in range(TOKENS)},
        text_tokens=["<s>", by_hand.SCRIPT, "b"],
        repeat_tokens=["<s>", by_hand.SCRIPT],
        on_stimuli=HeadOnStimuli(HEAD, 64, text, random, repeats),
        ablation=ablation(name=name, **cut) if found else None,
        ablation_reason="" if found else NO_SINK,
        behaviour=behaviour(found, name),
        cluster=cluster(name),
        cluster_reason="",
        known=known,
        provenance=by_hand.provenance(name, study="sinks", note=by_hand.SCRIPT),
    )
