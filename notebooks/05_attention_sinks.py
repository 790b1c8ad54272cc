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
# # Attention sinks
#
# **Question.** Does the model rest on its first token? Which layer and which neurons make that token special, and do
# long runs of one token become special in the same way?
#
# **Method.** Norm of the residual stream and attention to the first position, beside copies of the model that know
# nothing. Then the layer of the jump, the neurons that write it, and what happens when they are set to zero, beside
# other neurons of the same layer. Last, one token again and again: norm, attention, and whether the model goes on.
#
# **Cost.** About a minute on two cores.
#
# **What would falsify it.** Copies without knowledge whose first position stands out as much; neurons of the same layer
# whose ablation does as much.

# %%
import pandas as pd

import mechrep
from mechrep.errors import MechrepError
from mechrep.measures.attention_sinks import sink_heads_figure
from mechrep.measures.sink_neurons import sink_neurons
from mechrep.measures.sink_norms import norms_by_layer_figure, norms_vs_repeats_figure
from mechrep.models import tiny
from mechrep.models.nulls import reinitialised, shuffled
from mechrep.run import Run
from mechrep.studies import repeat_behaviour, sink_ablation, sink_conditions
from mechrep.studies.repeat_behaviour import repeat_behaviour_figure
from mechrep.studies.sinks import head_on_stimuli, published_layer
from mechrep.text import windows_of_text
from mechrep.text.stimuli import ordinary_ids, repeated_tokens

model = mechrep.load_model("mechrep-tiny")
texts = windows_of_text(model, tiny.held_out_text(), length=64, limit=24)
run = Run(effort="quick", progress=False)


def label(unit, letter="H"):
    return f"L{unit[0]}{letter}{unit[1]}"


# %% [markdown]
# ## Is the first position large?
#
# One pass measures norms and attention. The *ratio* is the norm at the first position over the mean norm elsewhere.

# %%
norms, heads = mechrep.CorpusCache(model, texts).run(mechrep.SinkNorms(), mechrep.AttentionSinks())
norms_by_layer_figure(norms)

# %%
norms.to_frame().round(3)

# %% [markdown]
# ## Who rests on it?
#
# Every head gives *some* attention to the first token: the second token can choose between two keys only. A uniform
# head is the least that must be beaten.

# %%
sink_heads_figure(heads)

# %% [markdown]
# ## Placebo: models that know nothing
#
# The same measures on copies whose weights are *shuffled* inside each matrix (the sizes stay, the knowledge goes), or
# *drawn anew*. Neither has learned anything, and still neither measure is zero.

# %%
rows = []
for kind, make, seed in [
    ("shuffled", shuffled, 0),
    ("shuffled", shuffled, 1),
    ("new", reinitialised, 0),
]:
    null = make(model, seed=seed)
    few = mechrep.CorpusCache(null, texts.select(range(24)), progress=False)
    null_norms, null_heads = few.run(mechrep.SinkNorms(), mechrep.AttentionSinks())
    measured = {"largest ratio": null_norms.largest_ratio, "best head": float(null_heads.alpha.max())}
    rows.append({"copy": kind, "seed": seed} | measured)
null_table = pd.DataFrame(rows)
own = {"copy": "the model", "seed": "", "largest ratio": norms.largest_ratio, "best head": float(heads.alpha.max())}
pd.concat([pd.DataFrame([own]), null_table]).round(3)

# %% [markdown]
# `find_sink` takes 19 such models (computed in place, without copies) and gives a verdict. A sink is a *rise* of the
# norm ratio over some layers; a model may have several stages of it, and erase one before the next. Each must rise
# further than in every null model. Then it looks for the cause: the fewest neurons that remove 80 % of the excess
# *wherever the stage stands*, beside 99 random sets of the same layers. Repeated tokens are told by stage and kind of
# token, after BOS and without it.

# %%
sink = mechrep.find_sink(model, texts=texts, run=run)
print(f"layer {sink.layer}, neurons {[label(unit, 'N') for unit in sink.neurons]}")
sink.claims[["name", "value", "baseline", "effect", "control_high", "m", "p", "q", "verdict"]].round(3)

# %%
sink.stage_frame().round(3)

# %%
sink.moved_frame().round(2)

# %%
sink.to_frame().round(3)

# %% [markdown]
# ## The published rule
#
# Yona et al. take the first layer whose MLP writes more at BOS than the mean plus two standard deviations. Among K
# numbers one outlier lies at most (K − 1)/√K deviations from the mean, which is less than two below six layers: there
# the rule cannot fire, whatever the model does. The profile can be looked at all the same.

# %%
rule = published_layer(model)
print("layer:", rule.layer, "|", rule.reason)
if rule.mlp_norms is not None:
    print("what each MLP writes at BOS:", [round(norm, 1) for norm in rule.mlp_norms.tolist()])

# %% [markdown]
# ## Which neurons write it?
#
# *Contribution* is the length of what a neuron adds at the first position, |activation| × |output row|; *authors* is
# the published score, by the gate alone. Where several neurons share the work, the ways to find them may disagree.

# %%
layer = int(norms.ratio[1:].argmax()) if sink.layer is None else sink.layer
scores = sink_neurons(model, texts, layer)
print({way: round(share, 2) for way, share in scores.agreement(max(1, len(sink.neurons))).items()})
scores.to_frame().head(6)[["layer", "neuron", "contribution_first", "authors_first", "bos_only_first"]].round(3)

# %% [markdown]
# ## Cause: without them
#
# The sink neurons are set to zero at every position. So are, as controls, as many other neurons of the *same layer*, 99
# draws. The verdict asks how rarely a draw does as much, and whether the effect is of a size. The norm must fall: the
# neurons were chosen for it. Whether attention, language and repetition follow is the question.

# %%
ordinary = [int(token) for token in ordinary_ids(model)]
tokens = ordinary[:: max(1, len(ordinary) // 8)][:8]
effects = None
if sink.neurons:
    effects = sink_ablation(model, sink, texts=texts, tokens=tokens, repeats=min(40, model.anatomy.n_ctx - 1), run=run)
columns = ["name", "measure", "baseline", "value", "effect", "low", "high", "control_low", "control_high", "verdict"]
pd.DataFrame() if effects is None else effects.summary()[columns].round(3)

# %%
if effects is not None:
    effects.plot().show()

# %% [markdown]
# ## One token, again and again
#
# After BOS comes one token, up to 400 times. If a run of it turned into a first position, its norm would climb from the
# dotted to the dashed line. A token that has not climbed by its last repeat may need more: the answer is "more than so
# many", never "no effect".

# %%
copies = min(400, model.anatomy.n_ctx - 1)
repeats = mechrep.CorpusCache(model, repeated_tokens(model, tokens, copies), progress=False).run(mechrep.RepeatNorms())
moved = repeats.moved(layer, norms.other_norm)
print(moved.reason or f"{moved.share:.0%} of {len(tokens)} tokens end at least half-way to BOS")
norms_vs_repeats_figure(repeats, layer, norms.other_norm, names={token: model.decode([token]) for token in tokens})

# %% [markdown]
# Attention is another matter. The head that rests most, in equally long texts of three kinds: text, *different* random
# tokens (which are no text either), and repeats.

# %%
stimuli = head_on_stimuli(model, sink.best_head, texts, tokens)
stimuli.to_frame().round(3)

# %% [markdown]
# ## Can it repeat a token?
#
# After n repetitions: the probability of one more, and how many the model writes by itself (at most eight are asked
# for). As a second condition the sink neurons are zero, beside as many others of the layer.

# %%
conditions = sink_conditions(model, sink.top(len(sink.neurons)), first_alone=False, run=run) if sink.neurons else ()
behaviour = repeat_behaviour(model, tokens, [1, 8, 64], conditions, new_tokens=8, run=run)
behaviour.summary()[["measure", "copy", "baseline", "value", "effect", "low", "high", "verdict"]].round(3)

# %%
repeat_behaviour_figure(behaviour)

# %% [markdown]
# ## A model in which repeats turn into a first token
#
# `mechrep-tiny` knows BOS by name, so copies of another token mean nothing to it. `mechrep-tiny-repeats` knows a first
# token by its place. Two of its layers write at BOS, and the stage peaks after the second. The patch holds one neuron
# at the level of the first token after BOS; the controls hold another one of the same layer.

# %%
by_place = mechrep.load_model("mechrep-tiny-repeats")
found = mechrep.find_sink(by_place, run=run)
assert found.patch is not None
patch = mechrep.SinkPatch(*found.patch)
few = windows_of_text(by_place, tiny.held_out_text(), length=64, limit=8)
patched = mechrep.studies.run_patch_study(by_place, patch, texts=few, repeats=200, sink=found, run=run).summary()
patched[["measure", "baseline", "value", "effect", "low", "high", "control_low", "control_high", "verdict"]].round(3)

# %% [markdown]
# A run of one token there, in the colour of the norm behind layer 1: the first token is large, and the copies move
# towards it.

# %%
token = by_place.to_tokens(" king", prepend_bos=False)[0, -1].item()
mechrep.view(by_place, [by_place.bos_id, *[token] * 60], "norm L1")

# %%
drifted = patched.set_index("measure").loc["drifted"]
moved_tokens = found.moved_frame().query("kind == 'all' and bos")
assert float(moved_tokens["moved"].iloc[0]) > 0.5, "most repeated tokens come half-way to BOS"
assert drifted["effect"] < -0.2, "fewer do with the neuron held"
assert drifted["effect"] < drifted["control_low"], "and no other neuron of the layer does it"

# %% [markdown]
# ## What this notebook claims

# %%
assert abs(float(stimuli.text.mean()) - float(sink.alpha[sink.best_head])) < 1e-3, "two ways to the same attention"
assert all(stage.norm.rise > max(sink.null_rises) for stage in sink.stages), "no rise counts that a null model has"
assert all(float(sink.alpha[tuple(head)]) > max(sink.null_alphas) for head in sink.sink_heads), "nor any head"
untrained = mechrep.find_sink(reinitialised(model, seed=7), texts=texts, run=run)
assert not untrained.norm_found and not untrained.neurons, "an untrained model has no sink and so no sink neurons"
try:
    sink_ablation(model, untrained, texts=texts, run=run)
    raise AssertionError("neurons of no sink were ablated")
except MechrepError as error:
    print("of an untrained model:", str(error)[:90], "...")
assert rule.layer is None or model.anatomy.n_layers >= 6, "the published rule cannot fire below six layers"
if effects is not None:
    by_measure = effects.summary().query("name == 'sink neurons'").set_index("measure")
    assert by_measure.loc["first_norm", "verdict"] == "supported", "without them the norm falls, as in no draw"
    assert not any(
        set(map(tuple, one.components["neurons"])) & set(map(tuple, sink.neurons)) for one in effects.conditions[2:]
    ), "no control holds a sink neuron"

print(
    f"Norm at the first position: {norms.largest_ratio:.1f} times the others; largest rise of null models "
    f"{max(sink.null_rises):.1f}-fold."
)
print(f"Heads that rest on it: {', '.join(label(head) for head in sink.sink_heads) or 'none'}.")
if effects is not None:
    shown = by_measure.loc[["first_norm", "attention", "loss", "p_next"]]
    print(shown[["baseline", "value", "effect", "low", "high", "verdict"]].round(3).to_string())
else:
    print("No norm sink, so nothing was ablated.")
print("Repeats:", moved.reason or f"{moved.share:.0%} of {len(tokens)} tokens come half-way to BOS.")

# %% [markdown]
# ## Exercises
#
# 1. Repeat tokens *without* BOS (`repeated_tokens(model, tokens, 400, bos=False)`). A rotary model then has the same
#    residual at every repeat. Why? Does a model with learned positions?
# 2. Set to zero the neurons that follow the sink neurons in the ranking. How many of them are needed to remove what the
#    first one removes?
# 3. Use `mechrep.SinkPatch(layer, neurons)` as a condition of `repeat_behaviour`. It leaves BOS alone. Does anything
#    change in this model, and what would have to be true of the repeats for it to matter?
# 4. The ablation costs language. Set the neurons to zero from the second position on only (an intervention that begins
#    later): is the cost at the first position, or at all others?
