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
# # From circuit to ablation
#
# **Question.** Does a loop need the induction head, the repetition neurons, or both? And is that more than cutting
# *any* head or *any* neurons does?
#
# **Method.** The head is found on random repeats, the neurons on some of the model's loops, and everything is tested on
# other loops. Cheap outcomes first (one forward pass each: log-probability of the loop, copying of random repeats, loss
# on text), then the dear one: write the text again under the cut, and see whether it loops.
#
# **Cost.** About a minute on two cores.
#
# **What would falsify it.** Controls or placebos that do as much: other heads, random neurons, neurons found with
# labels that mean nothing.

# %%
import tempfile
from pathlib import Path

import pandas as pd

import mechrep
from mechrep import Circuit, studies
from mechrep.ablation.old_study import ablation_figure
from mechrep.generation import collect_loops
from mechrep.models import tiny
from mechrep.stats import paired_bootstrap_interval
from mechrep.text.corpus import windows_of_text

model = mechrep.load_model("mechrep-tiny")
find, test = collect_loops(model, 90, n_others=0, seed=4).split(0.55, seed=0)
windows = windows_of_text(model, tiny.held_out_text(), length=128, limit=16)

# %% [markdown]
# ## The circuit
#
# A circuit is a named set of components that remembers how it was found, and on which texts. Two of them add up.
# `save` and `load` write and read it as JSON, so that somebody else can cut the same.

# %%
K = 28  # neurons: 2 % of the model's
scores = mechrep.score_heads(model)
(neurons,) = mechrep.CorpusCache(model, find).run(mechrep.RepetitionNeurons())
copier = Circuit.from_heads(scores, 1)
risers = Circuit.from_neurons(neurons, K)
circuit = copier + risers
chosen = copier.heads[0]
with tempfile.TemporaryDirectory() as folder:
    circuit.save(Path(folder) / "circuit.json")
    circuit = Circuit.load(Path(folder) / "circuit.json")
print(circuit.label, "|", circuit.found)

# %% [markdown]
# ## Every head alone
#
# One row of a batch per head and text. `when="all"` cuts at every position: what a previous-token head wrote into the
# first copy is then gone as well. The effects are differences to the untouched model in the same texts; `holm` corrects
# for having looked at all heads.

# %%
sweep = studies.single_head_sweep(
    model,
    test,
    outcomes=["loop_log_probability", "copy_accuracy", "loss"],
    windows=windows,
    when="all",
    copies=1,
)
sweep.tests("copy_accuracy").round(3)

# %%
tests = {
    name: sweep.tests(name).set_index(["layer", "head"]) for name in ("loop_log_probability", "copy_accuracy", "loss")
}
effects = pd.DataFrame({name: frame["effect"] for name, frame in tests.items()})
effects.sort_values("loop_log_probability").round(3)

# %% [markdown]
# A head whose cut makes the loop's tokens less probable is not yet a head for loops: if it costs as much on ordinary
# text, the model has simply become worse. The last column of the next table takes that off.

# %%
effects.assign(beyond_language=-effects["loop_log_probability"] - effects["loss"]).sort_values("beyond_language").round(
    3
)

# %% [markdown]
# ## The circuit beside its controls, cheap outcomes
#
# The union, its head alone and its neurons alone. Controls: random components, and as many of the same layers. From
# here on the cut begins where the second copy is predicted (`when="from_onset"`): the prompt is read by the whole
# model.

# %%
cheap = studies.ablation_study(model, circuit, corpus=test, windows=windows, seeds=3, copies=1)
ablation_figure(cheap)

# %% [markdown]
# With few heads the draws of a control are few, and some are the same: a layer of two heads has only one other. And a
# random head can belong to the mechanism, as one that feeds the copier does. So look at what was drawn.

# %%
drawn = [condition for condition in cheap.conditions if condition["part"] == "heads"]
pd.DataFrame(drawn)[["selection", "seed", "heads"]]

# %% [markdown]
# ## What is put in the head's place
#
# Zero is far from anything the head writes. `to_bos` leaves it its output and takes its choice: it attends to the first
# position only. Controls are heads that are no induction heads and attend about as much to the first position.

# %%
ops = studies.ablation_study(
    model,
    copier,
    corpus=test,
    ops=["zero", "to_bos"],
    controls=["bos_matched"],
    head_scores=scores,
    seeds=3,
    outcomes=["loop_log_probability", "copy_accuracy"],
    copies=1,
)
columns = ["selection", "op", "outcome", "copy", "value", "effect", "effect_low", "effect_high"]
ops.summary()[columns].round(3)

# %% [markdown]
# ## Placebos
#
# Two cuts that should do no more than the controls. *Swapped labels*: neurons that rise when "before" and "after" are
# swapped in half of the texts. *Head without a job*: of the other heads, the one whose attention the five scores of
# `score_heads` explain least.

# %%
half, other_half = find.split(0.5, seed=1)
(one,) = mechrep.CorpusCache(model, half).run(mechrep.RepetitionNeurons())
(two,) = mechrep.CorpusCache(model, other_half).run(mechrep.RepetitionNeurons())
swapped = (one.delta - two.delta).flatten().topk(K).indices.tolist()
width = one.delta.shape[1]
placebo_neurons = Circuit("placebo: swapped labels", neurons=[divmod(index, width) for index in swapped])
unexplained = scores.unexplained.clone()
unexplained[chosen] = 0
jobless = divmod(int(unexplained.argmax()), unexplained.shape[1])
placebo_head = Circuit("placebo: head without a job", heads=[jobless])
print("head", jobless, "|", len(set(placebo_neurons.neurons) & set(risers.neurons)), "neurons shared with the circuit")

# %% [markdown]
# ## Does the loop survive?
#
# Each text is cut at its onset and written again under the cut, 160 tokens; does it loop? Dear, so for few conditions.

# %%
again = studies.ablation_study(model, circuit, corpus=test, seeds=3, outcomes=["still_looping"])
placebos = studies.ablation_study(
    model, [placebo_neurons, placebo_head], corpus=test, controls=[], outcomes=["still_looping"]
)
shares = pd.concat([again.summary(), placebos.summary().query("selection == 'top'")])
shares = shares.set_index(["circuit", "part", "selection"]).sort_index()
shares[["k", "value", "low", "high", "effect", "effect_low", "effect_high", "draws"]].round(2)

# %%
ablation_figure(again)

# %% [markdown]
# With so few heads, all of them can be the control: each head cut alone, and the rank of the one that was chosen before
# any loop was looked at. The p-value is that of its label shuffled among the heads, and cannot be smaller than one over
# their number. Beside it the cheap outcome under the same cut: does it foretell the dear one?

# %%
alone = studies.single_head_sweep(model, test, outcomes=["still_looping", "loop_log_probability"], copies=1)
by_head = pd.DataFrame(
    {
        "share that still loops": alone.tests("still_looping").set_index(["layer", "head"])["value"],
        "log-probability of the loop": alone.tests("loop_log_probability", 1).set_index(["layer", "head"])["effect"],
    }
).sort_values("share that still loops")
survived = by_head["share that still loops"]
p = float((survived <= survived[chosen]).mean())
by_head.round(2)

# %% [markdown]
# ## What this notebook claims
#
# Heads of earlier layers may feed the copier, and their cut may cost as much copying as its own. Heads of its own layer
# and of later ones cannot feed it.

# %%
accuracy = tests["copy_accuracy"]
not_before = accuracy[accuracy.index.get_level_values("layer") >= chosen[0]]
assert not_before["effect"].idxmin() == chosen, "no head that could not feed it costs more copying than the copier"
assert accuracy.loc[chosen, "holm"] < 0.05, "and it does cost copying"
assert not set(find.frame["id"]) & set(test.frame["id"]) and circuit.seen_texts == set(find.frame["id"])
texts = again.text_frame().query("selection == 'top'").pivot(index="text", columns="part", values="value")
swept = alone.text_frame().query(f"circuit == '{chosen[0]}.{chosen[1]}' and outcome == 'still_looping'")
assert texts["heads"].to_dict() == swept.set_index("text")["value"].to_dict(), "sweep and study write the same texts"

ratio = {name: float(frame.loc[chosen, "effect"]) for name, frame in tests.items()}
print(
    f"Cutting L{chosen[0]}H{chosen[1]} everywhere: copying {ratio['copy_accuracy']:+.2f}, log-probability of the loop "
    f"{ratio['loop_log_probability']:+.2f} nats, held-out loss {ratio['loss']:+.3f} nats."
)
names = {"heads": "The head", "neurons": f"The {K} neurons", "whole": "Both"}
for part, what in names.items():
    top, controls = shares.loc[(circuit.name, part, "top")], shares.loc[(circuit.name, part)].drop("top")
    beaten = bool(top["high"] < controls["low"].min())
    print(
        f"{what} cut: {top['value']:.0%} [{top['low']:.0%}, {top['high']:.0%}] of {top['texts']} texts still loop, "
        f"controls {controls['low'].min():.0%} to {controls['high'].max():.0%}:",
        "more than the controls explain." if beaten else "no more than the controls explain.",
    )
for placebo in (placebo_neurons, placebo_head):
    row = shares.loc[(placebo.name, "whole", "top")]
    print(f"{placebo.name}: {row['value']:.0%} [{row['low']:.0%}, {row['high']:.0%}] still loop.")
added = (texts["whole"] - texts["heads"]).to_numpy()
low, high = paired_bootstrap_interval(added)
print(
    f"The neurons on top of the head change that by {added.mean():+.0%} [{low:+.0%}, {high:+.0%}]:",
    "nothing that can be told from zero."
    if low <= 0 <= high
    else "more loops end."
    if high < 0
    else "fewer loops end.",
)
agreement = by_head.rank().corr().iloc[0, 1]
print(
    f"Among the {len(survived)} heads, cut one by one, its cut is rank {int((survived < survived[chosen]).sum()) + 1} "
    f"(p = {p:.3f}); rank correlation of cheap and dear outcome {agreement:.2f}."
)
