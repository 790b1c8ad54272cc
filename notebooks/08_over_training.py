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
# **Question.** When does each mechanism appear, does natural looping come before induction, and do the same heads
# carry natural loops and induced repetition?
#
# **Method.** The same texts at a few checkpoints of one training run, one model in memory at a time: heads on random
# repeats, what becomes of fixed prompts, and what every head does in natural loops and in induced repetition.
# Checkpoints are the conditions of one table. One step between two levels says when a measure changes; texts drawn
# anew say how sure that is. (`"sinks"` would be one measure more.)
#
# **Cost.** About a minute on two cores.
#
# **What would falsify it.** Steps that are supported as often when the checkpoints stand in a shuffled order; an
# order of two mechanisms that does not survive drawing the texts anew; heads that agree no better than heads that
# changed places.

# %%
import dataclasses

import numpy as np
import pandas as pd

import mechrep
from mechrep.ablation.effects import SUPPORTED
from mechrep.models.revisions import list_checkpoints
from mechrep.studies.checkpoints import change_points, revisions_of, training_curves
from mechrep.studies.training import flow_figure, run_training_study
from mechrep.studies.training_heads import agreement_curves, curves_figure, head_maps_figure, specialisation_curves

PROMPTS = 24
names = [checkpoint.name for checkpoint in list_checkpoints("mechrep-tiny", "grid")]
measures = ["heads", "loops", "head_effects"]
study = run_training_study("mechrep-tiny", revisions=names, measures=measures, prompts=PROMPTS)
effects = study.checkpoints
effects.wide().drop(columns=["name", "selection", "k", "op", "part", "seed"]).round(3)

# %% [markdown]
# ## All mechanisms on one axis
#
# A dotted line marks a supported step, the band its interval. Both lie between two checkpoints: the grid resolves no
# more.

# %%
training_curves(effects)

# %% [markdown]
# ## When does each appear?
#
# The controls of a step are the checkpoints in shuffled orders. One checkpoint that differs from all others stands at
# an end in 2 of K orders, so a step beside the first checkpoint cannot have a small `p`: the verdict is "too few".

# %%
shown = ["measure", "before", "after", "effect", "low", "high", "m", "p", "q", "verdict"]
study.points[shown].round(3)

# %%
study.order[["first", "second", "effect", "low", "high", "earlier", "same", "later", "q", "verdict"]].round(3)

# %% [markdown]
# ## Rate is not mechanism
#
# How many prompts loop at the first checkpoint, before anything was learned? A model without knowledge may repeat
# single tokens; `phrase_loops` counts loops of two tokens or more alone.

# %%
frame = effects.to_frame()
starts = frame[frame["selection"] == "baseline"].set_index("measure")[["value", "value_low", "value_high", "n"]]
starts.round(3)

# %%
flow_figure(effects)

# %% [markdown]
# One prompt, continued by the first checkpoint that knows words and by the last one, in the colour of the surprisal.
# Choose `L2H0` and point at a token of the loop.


# %%
def continued(revision):
    model = mechrep.load_model("mechrep-tiny", revision=revision)
    prompt = mechrep.Corpus.from_texts(["It was a cold morning, and"], model=model)
    return mechrep.view(model, mechrep.generate(model, prompt, max_new_tokens=100), ["surprisal", "L2H0"])


continued(names[len(names) // 2])

# %%
continued(names[-1])

# %% [markdown]
# ## Placebo: the checkpoints in a shuffled order
#
# The texts and their values stay; only the order of training is lost. Of the measures that have a supported step in
# the true order, how many still do, and how much of the curve does the best step explain?

# %%
rng = np.random.default_rng(0)
shuffles = []
for seed in range(20):
    order = rng.permutation(len(names))
    shuffled = dataclasses.replace(effects, values=effects.values[:, order])
    shuffles.append(change_points(shuffled, draws=50, seed=seed).assign(seed=seed))
null = pd.concat(shuffles).groupby("measure")
placebo = study.points.set_index("measure")[["explained", "verdict"]].assign(
    explained_shuffled=null["explained"].mean(),
    supported_shuffled=null["verdict"].agg(lambda v: (v == SUPPORTED).mean()),
)
placebo.round(3)

# %% [markdown]
# ## Do the same heads carry both?
#
# Direct logit attribution of the expected token at every checkpoint: in natural loops, and in prompts shown twice.
# The last row is the induction score on random repeats. A map is empty where fewer than eight texts loop.

# %%
heads = study.heads
assert heads is not None
head_maps_figure(heads.history)

# %%
curves_figure(heads.specialisation, study.model_name)

# %%
curves_figure(heads.agreement, study.model_name)

# %% [markdown]
# Overlap counts heads by what they do: the sum over heads of the smaller of its two shares. `best` is what the same
# order of heads would give. Two heads in each of four layers have 15 other ways to change places within layers, too
# few for a verdict. A rank correlation (`rank`) would mostly compare heads that do nothing.

# %%
pair = heads.agreement[(heads.agreement["first"] == "natural") & (heads.agreement["second"] == "induced")]
columns = ["revision", "value", "baseline", "control_high", "m", "p", "best", "reliability_first", "reliability_second"]
columns += ["rank", "lead_first", "lead_second", "same_lead", "n_first", "n_second"]
pair[columns].round(2)

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
null_pair[columns].round(2)

# %% [markdown]
# ## The claims

# %%
claims = study.section().claims
claims[["claim", "measure", "value", "effect", "low", "high", "m", "p", "q", "family", "verdict"]].round(3)

# %% [markdown]
# ## What this notebook claims

# %%
risen = study.points.set_index("measure")
assert risen.loc["induction", "verdict"] == SUPPORTED and risen.loc["induction", "effect"] > 0, "induction is learned"
true_order = placebo[placebo["verdict"] == SUPPORTED]
assert (true_order["explained"] > true_order["explained_shuffled"]).all(), "a shuffled order explains less"
assert placebo["supported_shuffled"].mean() < 0.1, "shuffled checkpoints seldom have a supported step"
known = null_pair[null_pair["value"].notna()]
assert len(known), "some checkpoint has enough texts of both kinds"
assert (known["p"] <= 0.05).mean() < 0.3, "heads that changed places do not agree"
assert (null_curves["p"].dropna() <= 0.05).mean() < 0.3, "nor do a few of them stand out"
assert effects.conditions[0].step == 0, "the first checkpoint is the model before training"
assert (heads.history.known("natural").sum(1) == effects.of("loops_naturally").sum(1)).all(), "one list of prompts"
assert revisions_of(effects) == names

for line in study.points.to_dict("records"):
    print(
        f"{line['measure']}: {line['verdict']}, between {line['before']} and {line['after']} "
        f"({line['earliest']} to {line['latest']}), {line['effect']:+.2f} [{line['low']:+.2f} to {line['high']:+.2f}]"
    )
first = starts.loc["loops_naturally"]
print(
    f"Before training {first['value']:.0%} of the prompts loop (95 % {first['value_low']:.0%} to "
    f"{first['value_high']:.0%}, n = {first['n']:.0f}); no mechanism was learned then, so an early curve of loops "
    f"is no evidence of one."
)
end = pair[pair["value"].notna()].iloc[-1]
print(
    f"Natural loops and induced repetition, {end['revision']}: overlap {end['value']:.2f}, largest control "
    f"{end['baseline'] + end['control_high']:.2f} of {end['m']} different ones; {end['lead_first']} and "
    f"{end['lead_second']} do most."
)

# %% [markdown]
# ## What was learnt, and what to try
#
# * A step without its control is a line through noise: some split of any curve explains something.
# * How often a model loops says little about why. Look at the heads, and at loops of phrases.
# * Two text kinds can use heads alike because late layers do more in both; the control within layers is to be beaten.
# * In a model of few heads a shared leading head may be chance, and no statistic changes that: look at larger models.
#
# Exercises:
#
# 1. `revisions="all"` resolves the steps better. Which of the verdicts change?
# 2. Give `over_checkpoints` a measure of your own, for instance the loss on held-out text. Does it change before
#    induction or after it?
# 3. Is one direct effect enough? Ablate the heads that lead in natural loops at the last checkpoint (notebook 04) and
#    see whether induced repetition goes too.
