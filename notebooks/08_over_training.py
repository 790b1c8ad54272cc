# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Over training
#
# **Question.** When does each mechanism appear, does natural looping come before induction, and do the same heads carry
# natural loops and induced copying?
#
# **Method.** The same texts at a few checkpoints of one training run, one model in memory at a time: heads on random
# repeats, what becomes of fixed prompts, and what every head does in natural loops and in copying. One step between two
# levels says when a measure changes; texts drawn anew say how sure that is. (`"sinks"` would be one measure more.)
#
# **Cost.** About a minute on two cores.
#
# **What would falsify it.** Steps as clear when the checkpoints stand in a shuffled order; an order of two mechanisms
# that does not survive drawing the texts anew; heads that agree no better than heads that changed places.

# %%
import dataclasses

import numpy as np
import pandas as pd

from mechrep.studies.checkpoints import change_point, flow_figure, list_checkpoints, mechanisms_figure, order_p_value
from mechrep.studies.training import training_study
from mechrep.studies.training_heads import (
    agreement_curves,
    agreement_figure,
    head_maps_figure,
    specialisation_curves,
    specialisation_figure,
)

PROMPTS = 24
names = [checkpoint.name for checkpoint in list_checkpoints("mechrep-tiny", "grid")]
study = training_study("mechrep-tiny", revisions=names, measures=["heads", "loops", "head_effects"], prompts=PROMPTS)
result = study.checkpoints
result.wide().round(3)

# %% [markdown]
# ## All mechanisms on one axis
#
# A dotted line marks a clear step, the band its interval. Both lie between two checkpoints: the grid resolves no more.

# %%
mechanisms_figure(result)

# %% [markdown]
# ## When does each appear?
#
# `p` is the share of shuffled orders of the checkpoints in which one step explains as much of the curve. One checkpoint
# that differs from all others stands at an end in 2 of K orders, so a step beside the first checkpoint cannot have a
# small `p`; the verdict says so.

# %%
study.points.round(3)

# %%
study.order.round(3)

# %% [markdown]
# ## Rate is not mechanism
#
# How many prompts loop at the first checkpoint, before anything was learned? A model without knowledge may repeat
# single tokens; `phrase_loops` counts loops of two tokens or more alone.

# %%
study.starts.round(3)

# %%
flow_figure(result)

# %% [markdown]
# ## Placebo: the checkpoints in a shuffled order
#
# The texts and their values stay; only the order of training is lost. Of the measures that step up clearly in the true
# order, how many still do, and how much of the curve does the best step explain?


# %%
def means(values):
    known = [row[~np.isnan(row)] for row in values]
    return np.array([row.mean() if len(row) else np.nan for row in known])


rng = np.random.default_rng(0)
rows = []
for measure in study.points["measure"]:
    values = result.of(measure)
    point = study.points.set_index("measure").loc[measure]
    shuffled = [change_point(values[rng.permutation(len(values))], draws=50)[0] for _ in range(25)]
    rows.append(
        {
            "measure": measure,
            "explained": point["explained"],
            "clear": bool(point["clear"]),
            "explained, shuffled": float(np.mean([one.explained for one in shuffled])),
            "clear, shuffled": float(np.mean([one.clear for one in shuffled])),
            "p": order_p_value(means(values), seed=1),
        }
    )
placebo = pd.DataFrame(rows)
placebo.round(3)

# %% [markdown]
# ## Do the same heads carry both?
#
# Direct logit attribution of the expected token at every checkpoint: in natural loops, and in prompts shown twice. The
# last row is the induction score on random repeats. A map is empty where fewer than eight texts loop.

# %%
heads = study.heads
assert heads is not None
head_maps_figure(heads.history)

# %%
specialisation_figure(heads.specialisation, study.model_name)

# %%
agreement_figure(heads.agreement, study.model_name)

# %% [markdown]
# Overlap counts heads by what they do: the sum over heads of the smaller of its two shares. `best` is what the same
# order of heads would give. Where one of few heads does nearly all, heads that changed places reach it by chance, and
# the verdict is that controls cannot be beaten. A rank correlation (`rank`) would mostly compare heads that do nothing.

# %%
pair = heads.agreement[(heads.agreement["first"] == "natural") & (heads.agreement["second"] == "induced")]
columns = ["value", "low", "high", "random_high", "layer_high", "best", "reliability_first", "reliability_second"]
columns += ["rank", "lead_first", "lead_second", "same_lead"]
pair[["revision", *columns, "shared", "k", "n_first", "n_second", "verdict"]].round(2)

# %% [markdown]
# Placebo: at every checkpoint and in every text the heads change places at random. What is left is how concentrated
# single texts are; nothing is left that texts agree on.


# %%
def scattered(table):
    flat = table.numpy().reshape(*table.shape[:2], -1)
    return table.new_tensor(rng.permuted(flat, axis=2)).reshape(table.shape)


changed = {name: scattered(getattr(heads.history, name)) for name in ("natural", "induced", "induction")}
null_history = dataclasses.replace(heads.history, **changed)
null_agreement = agreement_curves(null_history, draws=200)
null_curves = specialisation_curves(null_history, draws=200)
null_pair = null_agreement[(null_agreement["first"] == "natural") & (null_agreement["second"] == "induced")]
null_pair[["revision", *columns, "verdict"]].round(2)

# %% [markdown]
# ## What this notebook claims

# %%
true_order = placebo[placebo["clear"]]
assert len(true_order), "something changes during training"
risen = study.points.set_index("measure")
assert risen.loc["induction", "clear"] and risen.loc["induction", "size"] > 0, "induction is learned"
assert (true_order["explained"] > true_order["explained, shuffled"]).all(), "a shuffled order explains less"
assert true_order["clear, shuffled"].mean() < 0.5, "and is clear less often than not"
assert order_p_value(means(result.of("induction"))) < 0.5, "most orders of the checkpoints do not rise like induction"
shuffled_p = [order_p_value(rng.permutation(means(result.of("induction"))), seed=i) for i in range(40)]
assert np.mean(np.array(shuffled_p) < 0.05) < 0.3, "shuffled checkpoints seldom have a step beyond shuffled checkpoints"
known = null_pair[null_pair["value"].notna()]
assert len(known), "some checkpoint has enough texts of both conditions"
assert (known["verdict"] == "beyond controls").mean() < 0.3, "heads that changed places do not agree"
last = heads.specialisation["revision"] == result.revisions[-1]
real, null = (table[last & (table["condition"] == "induced")].iloc[0] for table in (heads.specialisation, null_curves))
assert real["value"] > null["high"] or real["low"] <= real["null_high"], (
    "what is beyond its control is beyond a placebo"
)
assert study.starts_untrained, "the first checkpoint is the model before training"
assert (heads.history.known("natural").sum(1) == result.of("loops_naturally").sum(1)).all(), "one list of prompts"

for line in study.points.to_dict("records"):
    print(
        f"{line['measure']}: {line['verdict']}, between {line['before']} and {line['after']} "
        f"({line['earliest']} to {line['latest']}; by {line['size']:+.2f} [{line['low']:+.2f} to {line['high']:+.2f}])"
    )
first = study.starts.set_index("measure").loc["loops_naturally"]
print(
    f"Before training {first['first']:.0%} of the prompts loop (95 % {first['low']:.0%} to {first['high']:.0%}, "
    f"n = {first['n']}); no mechanism was learned then, so an early curve of loops is no evidence of one."
)
end = pair[pair["value"].notna()].iloc[-1]
print(
    f"Natural loops and induced copying, {end['revision']}: overlap {end['value']:.2f} [{end['low']:.2f} to "
    f"{end['high']:.2f}], controls {max(end['random_high'], end['layer_high']):.2f}: {end['verdict']}."
)

# %% [markdown]
# ## What was learnt, and what to try
#
# * A change point without its control is a line through noise: some split of any curve explains something.
# * How often a model loops says little about why. Look at the heads, and at loops of phrases.
# * Two conditions can use heads alike because late layers do more in both; the control within layers is to be beaten.
# * In a model of few heads a shared leading head may be chance, and no statistic changes that: look at larger models.
#
# Exercises:
#
# 1. `revisions="all"` resolves the steps better. Which of the verdicts change?
# 2. Give `over_checkpoints` a measure of your own, for instance the loss on held-out text. Does it change before
#    induction or after it?
# 3. Is one direct effect enough? Cut the heads that lead in natural loops at the last checkpoint (notebook 04) and see
#    whether copying goes too.
