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
# whose cut does as much.

# %%
import pandas as pd
import torch

import mechrep
from mechrep.errors import MechrepError
from mechrep.measures.attention_sinks import sink_heads_figure
from mechrep.measures.sink_neurons import sink_neurons
from mechrep.measures.sink_norms import norms_by_layer_figure, norms_vs_repeats_figure
from mechrep.models import tiny
from mechrep.models.load import reinitialised, shuffled
from mechrep.studies.repeat_behaviour import repeat_behaviour
from mechrep.studies.sink_ablation import attention_to_first, sink_cause_figure, sink_cut_study
from mechrep.studies.sinks import head_on_stimuli, published_layer
from mechrep.text.corpus import windows_of_text
from mechrep.text.stimuli import ordinary_ids, repeated_tokens

model = mechrep.load_model("mechrep-tiny")
texts = windows_of_text(model, tiny.held_out_text(), length=64, limit=48)


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
# `find_sink` asks for both: beyond every null copy *and* beyond a threshold (a ratio of 5; attention as far above a
# uniform head as 0.3 is at 64 tokens). It then looks for the cause.

# %%
sink = mechrep.find_sink(model, texts=texts)
print(sink.reason)
print(f"layer {sink.layer}, neurons {[label(unit, 'N') for unit in sink.neurons]}")
print("repeats:", sink.moved_reason or f"{sink.moved_share:.0%} of the most frequent tokens come half-way to BOS")
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
layer = norms.ranking()[0] if sink.layer is None else sink.layer
scores = sink_neurons(model, texts, layer)
print({way: round(share, 2) for way, share in scores.agreement(max(1, len(sink.neurons))).items()})
scores.to_frame().head(6)[["layer", "neuron", "contribution_first", "authors_first", "bos_only_first"]].round(3)

# %% [markdown]
# ## Cause: without them
#
# The sink neurons are set to zero at every position. So are, as controls, as many random neurons, random ones of the
# *same layer*, and ones of the same layer that are as active in ordinary text. `beyond` says whether the interval lies
# beyond every draw of every control and beyond zero; where controls do nothing at all, a change too small to matter can
# lie beyond them, so look at its size first. The norm must fall: the neurons were chosen for it. Whether
# attention, language and repetition follow is the question.

# %%
ordinary = [int(token) for token in ordinary_ids(model)]
tokens = ordinary[:: max(1, len(ordinary) // 8)][:8]
cut = None
if sink.layer is not None:
    cut = sink_cut_study(
        model, sink, texts=texts, tokens=tokens, repeats=min(200, model.anatomy.n_ctx - 1), seeds=2, progress=False
    )
columns = ["cut", "measure", "untouched", "value", "change", "low", "high", "beyond", "random", "layer_matched"]
pd.DataFrame() if cut is None else cut.summary()[columns].round(3)

# %%
if cut is not None:
    sink_cause_figure(cut).show()

# %% [markdown]
# ## One token, again and again
#
# After BOS comes one token, up to 400 times. If a run of it turned into a first position, its norm would climb from the
# dotted to the dashed line. A token that has not climbed by its last copy may need more: the answer is "more than so
# many", never "no effect".

# %%
copies = min(400, model.anatomy.n_ctx - 1)
(repeats,) = mechrep.CorpusCache(model, repeated_tokens(model, tokens, copies), progress=False).run(
    mechrep.RepeatNorms()
)
moved = repeats.moved(layer, norms.other_norm)
print(moved.reason or f"{moved.share:.0%} of {len(tokens)} tokens end at least half-way to BOS")
norms_vs_repeats_figure(repeats, layer, norms.other_norm, names={token: model.decode([token]) for token in tokens})

# %% [markdown]
# Attention is another matter. The head that rests most, in equally long texts of three kinds: text, *different* random
# tokens (which are no text either), and repeats.

# %%
stimuli = head_on_stimuli(model, sink, texts, tokens, seed=0)
stimuli.to_frame().round(3)

# %% [markdown]
# ## Can it repeat a token?
#
# After n copies: the probability of one more, and how many the model writes by itself (at most eight are asked for). As
# a second condition the sink neurons are zero, and as a third as many neurons that follow in the ranking.

# %%
conditions = {}
if sink.neurons:
    conditions = mechrep.studies.sink_conditions(scores, len(sink.neurons), draws=0)
behaviour = repeat_behaviour(model, tokens, [1, 8, 64], conditions, new_tokens=8, progress=False)
behaviour.to_frame()[["condition", "repeats", "p_next", "p_low", "p_high", "diverged", "p_change"]].round(3)

# %% [markdown]
# ## A model in which repeats turn into a first token
#
# `mechrep-tiny` knows BOS by name, so copies of another token mean nothing to it. `mechrep-tiny-repeats` knows a first
# token by its place. Two of its layers write at BOS; the one that repeats excite is the second, so it is named. The
# patch holds one neuron at the level of the first token after BOS; the placebo holds another one of the same layer.

# %%
by_place = mechrep.load_model("mechrep-tiny-repeats")
found = mechrep.find_sink(by_place, layer=1)
patched = mechrep.studies.run_patch_study(
    by_place,
    mechrep.SinkPatch(1, [found.neurons[0][1]]),
    repeats=200,
    controls=["layer_matched"],
    seeds=2,
    progress=False,
)
patched.summary().set_index("measure")[["original", "patched", "low", "high", "layer_matched"]].round(3)

# %%
drift = dict(zip(patched.selections, patched.drifted.mean(1).tolist(), strict=True))
assert found.moved_share > 0.5, "most repeated tokens come half-way to BOS"
assert drift["patched"] < drift["original"] - 0.2, "fewer do with the neuron held"
assert abs(drift["layer_matched"] - drift["original"]) < 0.2, "and another neuron does not do it"

# %% [markdown]
# ## What this notebook claims

# %%
assert heads.n_texts == len(texts) and torch.allclose(
    attention_to_first(model, texts, heads.top(1)[0], "auto").mean().float(), heads.alpha[heads.top(1)[0]], atol=1e-3
), "two ways to the same attention"
assert sink.norm_found <= (norms.largest_ratio > max(sink.null_ratios)), "no norm is called a sink that a null copy has"
assert all(float(sink.alpha[tuple(head)]) > max(sink.null_alphas) for head in sink.sink_heads), "nor any head"
untrained = mechrep.find_sink(reinitialised(model, seed=7), texts=texts.select(range(24)))
assert not untrained.norm_found and not untrained.neurons, "an untrained model has no sink and so no sink neurons"
try:
    sink_cut_study(model, untrained, texts=texts, progress=False)
    raise AssertionError("neurons of no sink were cut")
except MechrepError as error:
    print("of an untrained model:", str(error)[:90], "...")
assert rule.layer is None or model.anatomy.n_layers >= 6, "the published rule cannot fire below six layers"
if cut is not None:
    by_measure = cut.summary().query("cut == 'all'").set_index("measure")
    for measure in by_measure.index:
        row, drawn = by_measure.loc[measure], [d for draws in cut.draws("all", measure).values() for d in draws]
        assert bool(row["beyond"]) == (row["high"] < min(0, *drawn) or row["low"] > max(0, *drawn))

print(
    f"Norm at the first position: {norms.largest_ratio:.1f} times the others, null copies {max(sink.null_ratios):.1f}."
)
print(f"Heads that rest on it: {', '.join(label(head) for head in sink.sink_heads) or 'none'}.")
if cut is not None:
    for measure, words in [
        ("first_norm", "norm at the first position"),
        ("attention", "attention of its best head"),
        ("losses", "loss"),
        ("p_next", "P(one more copy)"),
    ]:
        row = by_measure.loc[measure]
        verdict = "beyond every control" if row["beyond"] else "not beyond controls"
        print(
            f"Without {len(sink.neurons)} sink neuron(s), {words}: {row['change']:+.3f} [{row['low']:+.3f}, "
            f"{row['high']:+.3f}], n = {row['n']:.0f}: {verdict}."
        )
else:
    print("No norm sink, so nothing was cut.")
print("Repeats:", moved.reason or f"{moved.share:.0%} of {len(tokens)} tokens come half-way to BOS in {copies} copies.")

# %% [markdown]
# ## Exercises
#
# 1. Repeat tokens *without* BOS (`repeated_tokens(model, tokens, 400, bos=False)`). A rotary model then has the same
#    residual at every copy. Why? Does a model with learned positions?
# 2. Set to zero the neurons that follow the sink neurons in the ranking. How many of them are needed to remove what the
#    first one removes?
# 3. Use `mechrep.SinkPatch(layer, neurons)` as a condition of `repeat_behaviour`. It leaves BOS alone. Does anything
#    change in this model, and what would have to be true of the repeats for it to matter?
# 4. The cut costs language. Set the neurons to zero from the second position on only (an intervention that begins
#    later): is the cost at the first position, or at all others?
