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
# # The first layer
#
# **Question.** How can the first layer know that nothing stands before a token, does a neuron say so, which heads carry
# it, and why does a long run of one token end up in the state of that token alone?
#
# **Method.** An exact identity says what attention of layer 0 can tell at all; it is checked on the model. Neurons are
# searched with one half of the words and judged by the other. Heads are ablated. Repetitions of a token after a prefix
# are followed, and the rate is compared with what the kind of positions lets expect.
#
# **Cost.** About half a minute on two cores.
#
# **What would falsify it.** A run of one token whose positions differ at some depth although positions are not part of
# the values; odds of the prefix that do not fall like theory says; a "detector" that is as good when the places are
# shuffled, or in a copy of the model that knows nothing.

# %%
import numpy as np
import pandas as pd
import torch

import mechrep
from mechrep.measures.first_token_detectors import detector_figure, first_token_detectors
from mechrep.measures.first_token_repeats import convergence_figure, first_layer_convergence, fit_decay
from mechrep.models import tiny
from mechrep.models.nulls import reinitialised
from mechrep.run import Run
from mechrep.studies.first_layer import losses, run_first_layer_study
from mechrep.text import windows_of_text

model = mechrep.load_model("mechrep-tiny")
anatomy = model.anatomy
print(f"{model.name}: {anatomy.n_layers} layers, {anatomy.n_heads} heads in each, positions: {anatomy.positions}")

# %% [markdown]
# ## What attention can tell at all
#
# In every model whose rows of attention sum to 1, a head moves a token away from its own value only by the values of
# *other* keys: `z_t - v_t = sum_j A[t, j] (v_j - v_t)`. Where equal tokens have equal values, only other *tokens* are
# left in the sum. Their share of attention, `w`, is 0 at the first position, whoever stands there.

# %%
corpus = windows_of_text(model, tiny.held_out_text(), length=64, limit=32)
masses = mechrep.CorpusCache(model, corpus).run(mechrep.FirstTokenDetection.of(model))
masses.plot()

# %%
print(
    f"uniform head: {masses.uniform_mass:.3f}; largest error of the identity {float(masses.identity_error.max()):.1e}, "
    f"with other tokens only {float(masses.same_value_error.max()):.1e} of the mean value norm"
)
masses.to_frame().round(3)

# %% [markdown]
# ## A run of one token, and nothing before it
#
# Then `w` is 0 everywhere: layer 0 cannot tell the hundredth repetition from the first. What layer 0 cannot tell, no
# later layer can, so all positions are in one state at *every* depth. That is a prediction without a free parameter.
# Placebo: the same run with one other token in front.

# %%
ids = model.encode(tiny.held_out_text(), prepend_bos=False)
values, counts = np.unique(ids, return_counts=True)
frequent = [int(token) for token in values[np.argsort(-counts)] if token not in model.special_ids]
repeated, other = frequent[0], frequent[1]
length = min(128, anatomy.n_ctx - 1)


@torch.no_grad()
def deviations(tokens):
    """Largest distance from the first of the repeated tokens, over its norm, after every layer."""
    _, cache = model.run_with_cache(torch.tensor([tokens]))
    start = tokens.index(repeated)
    states = [cache["resid_post", layer][0, start:].double() for layer in range(anatomy.n_layers)]
    return [float((state - state[0]).norm(dim=-1).max() / state[0].norm()) for state in states]


pure, prefixed = deviations([repeated] * length), deviations([other] + [repeated] * length)
pd.DataFrame({"pure run": pure, "one token in front": prefixed}).rename_axis("layer")

# %% [markdown]
# ## Does a neuron say "first"?
#
# Triples of consecutive tokens without BOS, each beginning one token after the one before: every word is once first,
# once second, once third, so who it is says nothing. Neurons are chosen with one half of the text and of the vocabulary
# and judged by the other. 0.5 is no better than a coin. The verdicts stand beside the same search in null models, which
# know nothing; each claim is a family of its own.

# %%
study = run_first_layer_study(model, triples=600, run=Run(effort="quick"))
answer, seen = study.answer, study.detectors
answer.claims[["claim", "value", "baseline", "control_low", "control_high", "m", "q", "verdict"]].round(3)

# %%
seen.to_frame().head(8).round(3)

# %%
detector_figure(seen)

# %% [markdown]
# The neuron that tells most, in ordinary text, beside the first head of layer 0 and the norm behind that layer. Choose
# `L0H0` and point at a token: the first one has nothing but itself to read.

# %%
mechrep.view(model, corpus, [f"L0N{seen.neurons[0]}", "norm L0", "L0H0"], row=0)

# %% [markdown]
# ### Placebo: the same search where there is nothing to find
#
# Shuffled places: the same numbers, but within every triple the labels "first", "second" and "third" are dealt anew.
# A search that keeps the best of many neurons would find something there, too, if it judged by the words it chose with.

# %%
untrained = first_token_detectors(reinitialised(model, seed=3), triples=600, k=1, shuffles=1)
chosen_with, judged_by = (areas[list(seen.neurons)].numpy() for areas in (seen.selection_auroc, seen.auroc))
pd.DataFrame(
    {
        "best area on other words": [seen.best_auroc, max(seen.shuffled_aurocs), untrained.best_auroc],
        "mean of null draws": [
            np.nan,
            float(np.mean(seen.shuffled_aurocs)),
            float(np.mean([null["detector"] for null in answer.nulls])),
        ],
    },
    index=["the model", "shuffled places", "weights drawn anew"],
).round(3)

# %% [markdown]
# The price of looking: the distance from 0.5 of the chosen neurons on the words they were chosen with, and on others.

# %%
optimism = float(np.mean(abs(chosen_with - 0.5)) - np.mean(judged_by - 0.5))
print(f"chosen with: {np.mean(abs(chosen_with - 0.5)):.3f}; on other words: {np.mean(judged_by - 0.5):.3f}")

# %% [markdown]
# ## Which heads carry it?
#
# Each head of layer 0, and all of them, set to zero and to the mean. Their controls in the table are the other heads of
# layer 0: words tell whether a head costs something, and more than the middle head does. The claims above rest on null
# models instead. Where there is no mark, nothing can be lost.

# %%
study.heads.plot(["detector"])

# %%
losses(study.heads).round(3)

# %% [markdown]
# ## Repetitions after a prefix
#
# Now the run has something before it. Of a prefix with attention weights `exp(s_j)` and n repetitions of `x`, a head
# without positions in its scores gives the prefix the odds `S / n`: a straight line of slope -1 in log-log. Rotary
# scores oscillate within bounds around it, ALiBi falls exponentially, and where the position is part of the value
# there is no limit at all. The last one comes to the token *alone*, because that is what `w = 0` leaves.

# %%
repeats = study.repeats
convergence_figure(repeats)

# %%
print(f"positions: {repeats.positions}; expected law: {repeats.theory}")
by_head = pd.DataFrame(
    {
        "slope of the odds": repeats.head_slope.nanmedian(0).values,
        "lowest": [np.nanmin(column) for column in repeats.head_slope.T.numpy()],
        "highest": [np.nanmax(column) for column in repeats.head_slope.T.numpy()],
        "prefix at repetition 1": repeats.mass[:, :, 0].mean(0),
        f"at repetition {repeats.repeats[-1]}": repeats.mass[:, :, -1].mean(0),
    }
).rename_axis("head")
by_head.round(3)

# %% [markdown]
# ### Placebo: does it need training?
#
# The law is arithmetic of the softmax, so a copy of the model that knows nothing must obey it, too: its scores are
# near 0, `S` is the length of the prefix, and the slope is -1 without oscillation. And a curve that does not fall at
# all must not be called a law.

# %%
null_repeats = first_layer_convergence(reinitialised(model, seed=3), list(repeats.token_ids))
flat = fit_decay(list(repeats.repeats), [0.3] * len(repeats.repeats))
first_one, last_one = repeats.relative("layer")[:, 0], repeats.relative("layer")[:, -1]
print(
    f"slope of the odds: the model {repeats.median_slope:.3f}, weights drawn anew {null_repeats.median_slope:.3f}; "
    f"a flat curve: {flat.law}"
)
print(
    f"distance from the token alone after layer 0: repetition 1 {float(first_one.median()):.3f}, "
    f"repetition {repeats.repeats[-1]} {float(last_one.median()):.4f} (medians of {len(repeats.token_ids)} tokens)"
)

# %% [markdown]
# ## A model that knows its first token by its place
#
# `mechrep-tiny` has always had BOS in front and can tell it by name. `mechrep-tiny-repeats` went on from one of its
# checkpoints with BOS taken off. The same search, one layer later, where its sink is made; before and after.

# %%
LATER = 1
places = {}
for revision in (tiny.revisions("mechrep-tiny-repeats")[0], None):
    other_model = mechrep.load_model("mechrep-tiny-repeats", revision=revision)
    options = {"layer": LATER, "triples": 400, "run": Run(effort="quick")}
    places[revision or "at the end"] = mechrep.find_first_token(other_model, **options)
pd.DataFrame(
    {
        when: {
            "area of the best neuron": found.auroc,
            "null models, at most": max(null["detector"] for null in found.nulls),
            "area lost without the heads of layer 0": found.lost_together,
            "found": found.found,
        }
        for when, found in places.items()
    }
)

# %%
begin, end = places.values()
assert end.found and not begin.found, "what tells the first token was learned in between"
verdicts = end.claims.set_index("claim")["verdict"]
assert verdicts["attention"] == "supported", "and it is the attention of layer 0 that carries the mark"

# %% [markdown]
# ## What this notebook claims

# %%
assert float(masses.identity_error.max()) < 1e-4, "the identity is exact"
assert float(masses.by_position[:, 0].max()) == 0 and float(masses.mass.min()) > 0, "only the first has no other token"
assert max(pure) < 1e-4 < max(prefixed), "one state at every depth without a prefix, and not with one"
assert bool((last_one < first_one).all()), "every token's last repetition is nearer to the token alone than its first"
assert abs(null_repeats.median_slope + 1) < 0.1, "without knowledge the odds fall like 1/n, as arithmetic demands"
assert flat.law == "none", "a curve that does not fall is no law"
assert answer.found == (answer.claims.set_index("claim").loc["detector", "verdict"] == "supported")
assert abs(untrained.best_auroc - 0.5) < 0.15, "a model that knows nothing marks nothing"

print(answer.claims[["claim", "verdict"]].to_string(index=False))
print(
    f"A run without prefix is in one state to {max(pure):.0e}; after a prefix of {repeats.prefix_length} the odds fall "
    f"with slope {repeats.median_slope:.2f}, theory: {repeats.theory}, agreement: {repeats.agrees}."
)

# %% [markdown]
# ## Exercises
#
# 1. Take BOS as the prefix (`first_layer_convergence(model, prefix=[model.bos_id])`). Which head lets go of it last,
#    and is it the head that attends most to the first position in ordinary text?
# 2. Compute `S` of one head from its odds at the first repetition, predict the odds at the last, and compare.
# 3. Give the search 100 triples and 1000. What happens to the gap between the words it chose with and other words?
# 4. Run `deviations` on a model with learned positions. At which depth do the positions part, and why there?
