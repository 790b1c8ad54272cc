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
# **Question.** Does a loop need the induction head, the repetition neurons, or both? And is that more than ablating
# *any* head or *any* neurons does?
#
# **Method.** The head is found on random repeats, the neurons on some of the model's loops, and everything is tested on
# loops of other families. First what only reads (log-probability of the loop, copying of random repeats, loss on text),
# then the expensive part: regenerate the text under the ablation, and see whether it loops.
#
# **Cost.** A few minutes on two cores.
#
# **What would falsify it.** Controls or placebos that do as much: other heads, random neurons, neurons found with
# labels that mean nothing.

# %%
import tempfile
from pathlib import Path

import pandas as pd

import mechrep
from mechrep import Circuit, studies
from mechrep.ablation.effect_plots import single_heads_figure
from mechrep.generation import collect_loops
from mechrep.models import tiny
from mechrep.stats import cluster_intervals
from mechrep.studies import Controls, Run, StudyTexts, single_head_frame
from mechrep.text import windows_of_text
from mechrep.text.families import loop_families

model = mechrep.load_model("mechrep-tiny")
loops = collect_loops(model, 90, n_others=0, seed=4)
find, test = loops.split(0.55, seed=0, clusters=loop_families(loops))
texts = StudyTexts(loops=test, windows=windows_of_text(model, tiny.held_out_text(), length=128, limit=16), copies=1)
run = Run(progress=False)

# %% [markdown]
# ## The circuit
#
# A circuit is a named set of components that remembers how it was found, and on which texts. Two of them add up.
# `save` and `load` write and read it as JSON, so that somebody else can ablate the same.

# %%
K = 28  # neurons: 2 % of the model's
scores = mechrep.score_heads(model)
neurons = mechrep.CorpusCache(model, find).run(mechrep.RepetitionNeurons())
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
# One row of a batch per head and text. `when="all"` ablates at every position: what a previous-token head wrote into
# the first repetition is then gone as well. Effects are differences to the baseline in the same texts; the controls of
# each head are all others, and with eight heads no p-value is below 1/8: "too few" for any verdict.

# %%
measures = ["loop_log_probability", "copy_accuracy", "loss"]
sweep = studies.single_head_sweep(model, outcomes=measures, texts=texts, when="all", run=run)
single_heads_figure(sweep)

# %%
tables = {name: single_head_frame(sweep, name).set_index(["layer", "head"]) for name in measures}
effects = pd.DataFrame({name: frame["effect"] for name, frame in tables.items()})
effects.sort_values("loop_log_probability").round(3)

# %% [markdown]
# One of the loops that are tested, by how unexpected its tokens are; choose the head and point at a token. Below, what
# happens under its ablation: every repetition is as unexpected as the first.

# %%
name = f"L{chosen[0]}H{chosen[1]}"
mechrep.view(model, test, ["surprisal", name], row=0)

# %%
mechrep.view(model, test, ["surprisal"], row=0, intervention=mechrep.Heads([chosen], when="all"))

# %% [markdown]
# What one of these heads does to a text: two continuations of one prompt, and where they part.

# %%
mechrep.compare(
    model, "It was a cold morning, and", {"as it is": None, "without it": mechrep.Heads([chosen])}, max_new_tokens=48
)

# %% [markdown]
# A head whose ablation makes the loop's tokens less probable is not yet a head for loops: if it costs as much on
# ordinary text, the model has simply become worse. The last column of the next table takes that off.

# %%
effects.assign(beyond_language=-effects["loop_log_probability"] - effects["loss"]).sort_values("beyond_language").round(
    3
)

# %% [markdown]
# ## The circuit beside its controls
#
# The union, its head alone and its neurons alone. Controls: random components, and as many of the same layers. From
# here on the ablation begins where the second repetition is predicted (`when="from_onset"`): the prompt is read by the
# whole model.

# %%
controls = Controls(["random", "layer_matched"], draws=19, strict=False)  # the fewest that can reach p = 0.05
reading = studies.ablation_study(model, circuit, texts=texts, controls=controls, run=run)
reading.plot(measures)

# %% [markdown]
# The verdicts: an effect must stand out from the draws of every kind of control. With few heads there are few different
# sets of them. And a random head can belong to the mechanism, as one that feeds the copier does. So look at what was
# drawn.

# %%
columns = ["part", "measure", "copy", "baseline", "effect", "low", "high", "m", "q", "verdict"]
reading.summary()[columns].round(3)

# %%
drawn = [one for one in reading.conditions if one.part == "heads"]
pd.DataFrame([{"selection": one.selection, "seed": one.seed, **one.components} for one in drawn])

# %% [markdown]
# ## What is put in the head's place
#
# Zero is far from anything the head writes. `to_bos` leaves it its output and takes its choice: it attends to the first
# position only. Controls are heads that attend about as much to the first position.

# %%
ops = studies.ablation_study(
    model,
    copier,
    texts=texts,
    ops=["zero", "to_bos"],
    controls=Controls(["bos_matched"], match={"bos_matched": scores.first_token}),
    outcomes=["loop_log_probability", "copy_accuracy"],
    run=run,
)
ops.summary()[["op", *columns[1:]]].round(3)

# %% [markdown]
# ## Placebos
#
# Two ablations that should do no more than the controls. *Swapped labels*: neurons that rise when "before" and "after"
# are swapped in half of the texts. *Head without a job*: of the other heads, the one whose attention the five scores of
# `score_heads` explain least.

# %%
half, other_half = find.split(0.5, seed=1)
one = mechrep.CorpusCache(model, half).run(mechrep.RepetitionNeurons())
two = mechrep.CorpusCache(model, other_half).run(mechrep.RepetitionNeurons())
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
# Each text is regenerated from its onset on under the ablation, 160 tokens; does it loop? Expensive, so under the first
# 19 draws of each control only.

# %%
again = studies.ablation_study(model, circuit, texts=texts, controls=controls, outcomes=["still_looping"], run=run)
placebos = studies.ablation_study(
    model, [placebo_neurons, placebo_head], texts=texts, controls=[], outcomes=["still_looping"], run=run
)
survival = pd.concat([table.select(measures=["still_looping"]).summary() for table in (again, placebos)])
survival = survival.set_index(["name", "part"])
survival[["value", "value_low", "value_high", "control_low", "control_high", "m", "q", "verdict"]].round(2)

# %%
again.plot(["still_looping", "escaped"])

# %% [markdown]
# With so few heads, all of them can be the control: each head ablated alone, and the rank of the one that was chosen
# before any loop was looked at. Beside it what only reads, under the same ablation: does it foretell the expensive
# outcome?

# %%
alone = studies.single_head_sweep(model, outcomes=["still_looping", "loop_log_probability"], texts=texts, run=run)
by_head = pd.DataFrame(
    {name: single_head_frame(alone, name).set_index(["layer", "head"])["effect"]
     for name in ("still_looping", "loop_log_probability")}
).sort_values("still_looping")  # fmt: skip
by_head.round(2)

# %% [markdown]
# ## What this notebook claims
#
# Heads of earlier layers may feed the copier, and their ablation may cost as much copying as its own. Heads of its own
# layer and of later ones cannot feed it.

# %%
accuracy = tables["copy_accuracy"]
not_before = accuracy[accuracy.index.get_level_values("layer") >= chosen[0]]
assert not_before["effect"].idxmin() == chosen, "no head that could not feed it costs more copying than the copier"
assert accuracy.loc[chosen, "high"] < 0, "and it does cost copying"
assert not set(find.frame["id"]) & set(test.frame["id"]) and circuit.seen_texts == set(find.frame["id"])
by_text = again.unit_frame().query("selection == 'ablation' and measure == 'still_looping'")
by_text = by_text.pivot(index="unit_id", columns="part", values="value")
swept = alone.unit_frame().query(f"name == 'L{chosen[0]}H{chosen[1]}' and measure == 'still_looping'")
assert by_text["heads"].to_dict() == swept.set_index("unit_id")["value"].to_dict(), "sweep and study agree"

change = {name: float(frame.loc[chosen, "effect"]) for name, frame in tables.items()}
print(
    f"Ablating L{chosen[0]}H{chosen[1]} everywhere: copying {change['copy_accuracy']:+.2f}, log-probability "
    f"of the loop {change['loop_log_probability']:+.2f} nats, held-out loss {change['loss']:+.3f} nats."
)
names = {"heads": "The head", "neurons": f"The {K} neurons", "whole": "Both"}
for part, what in names.items():
    row = survival.loc[(circuit.name, part)]
    print(
        f"{what}: {row['value']:.0%} [{row['value_low']:.0%}, {row['value_high']:.0%}] of {row['texts']} texts still "
        f"loop; controls change that by {row['control_low']:+.0%} to {row['control_high']:+.0%} ({row['m']} draws): "
        f"{row['verdict']}."
    )
for placebo in (placebo_neurons, placebo_head):
    row = survival.loc[(placebo.name, "whole")]
    print(f"{placebo.name}: {row['value']:.0%} [{row['value_low']:.0%}, {row['value_high']:.0%}] still loop.")
added = (by_text["whole"] - by_text["heads"]).to_numpy()
families = dict(zip(test.frame["id"], loop_families(test), strict=True))
low, high = cluster_intervals(added[None], [families[text] for text in by_text.index])[0]
print(
    f"The neurons on top of the head change that by {added.mean():+.0%} [{low:+.0%}, {high:+.0%}]:",
    "nothing that can be told from zero."
    if low <= 0 <= high
    else "more loops end."
    if high < 0
    else "fewer loops end.",
)
survived = by_head["still_looping"]
agreement = by_head.rank().corr().iloc[0, 1]
print(
    f"Among the {len(survived)} heads, ablated one by one, it is rank {int((survived < survived[chosen]).sum()) + 1}; "
    f"rank correlation of reading and regenerating {agreement:.2f}."
)
