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
# # Quickstart
#
# **Question.** A small language model falls into a loop. Where does the loop begin, which neurons rise there, and does
# the loop survive without them?
#
# **Cost.** About a minute on two cores; no network, no GPU. The model, `mechrep-tiny`, comes with the package.
#
# **What would falsify it.** If ablating the found neurons changes no more texts than ablating others of the same
# layers, the neurons accompany repetition and do not carry it. The last cell says which of the two it is here.

# %%
import mechrep
from mechrep import studies
from mechrep.ablation.texts import find_and_test, shared_loops
from mechrep.run import Run

run = Run(effort="quick")
model = mechrep.load_model("mechrep-tiny")
model

# %% [markdown]
# `model` is used like a TransformerLens model: `run_with_cache`, `run_with_hooks`, `to_tokens` and `cfg` are there.

# %%
logits, cache = model.run_with_cache(model.to_tokens("In the beginning"))
cache["pattern", 0].shape

# %% [markdown]
# ## Let it write, and find the loop
#
# `generate` continues the texts of a corpus; `detect_cycle` says whether one ends in a cycle. The *onset* is the start
# of the second copy: there the repeating begins.

# %%
prompts = mechrep.Corpus.from_texts(["And the king said unto", "It was a cold morning, and"], model=model)
texts = mechrep.generate(model, prompts, max_new_tokens=150)
for number in range(len(texts)):
    print(texts.decode(number, model), "\n", mechrep.detect_cycle(texts.row(number)), "\n")

# %% [markdown]
# `mechrep.view` shows a text: each token in the colour of a number, and of a loop each repetition in a row of its own,
# the same place under the same place. Here the number is the surprisal, how unexpected a token was: it falls from
# repetition to repetition. Choose `L2H0`, a head, and point at a token: it reads what came after it before.

# %%
mechrep.view(model, texts, ["surprisal", "L2H0"], row=1)

# %% [markdown]
# ## Collect loops as the literature does
#
# BOS and ten sampled tokens, then greedy decoding; some texts loop, some do not. A model falls into the same loop again
# and again: texts whose loops share words are one *family*, and a family is never split between search and test.

# %%
corpus = shared_loops(model, run)
find, test = find_and_test(corpus)
corpus.frame[["id", "condition", "onset", "period", "copies", "family", "split"]].head()

# %% [markdown]
# ## Which neurons rise at the onset?
#
# One pass over the texts, whatever the number of analyzers.

# %%
neurons = mechrep.CorpusCache(model, find).run(mechrep.RepetitionNeurons())
neurons.to_frame().head(8).round(3)

# %%
neurons.plot(k=4)

# %% [markdown]
# The first of them in one of the loops: how much does it rise from the first repetition (row 1) to the second?

# %%
looping = find.where(condition="looping")
mechrep.view(model, looping, [*neurons.top(3), "surprisal"], row=0)

# %% [markdown]
# ## Switch them off
#
# Every looping text that was *not* used for the search is cut at its onset and continued greedily while the neurons
# are held at zero, beside controls: neurons of the same layers, drawn anew several times.

# %%
effects = studies.deactivation_sweep(model, test, neurons=neurons, ks=[14, 56], run=run)
effects.summary().round(2)

# %%
effects.curve()

# %% [markdown]
# ## What this notebook claims
#
# `summary()` decides in one place: *supported* when the interval over texts leaves zero and the effect stands out from
# the controls; *too few* when there are not enough texts or controls to say so.

# %%
row = effects.summary().set_index(["measure", "k"]).loc[("still_repeating", 56)]
assert row["baseline"] > 0.9, "without an ablation nearly every text goes on looping"
assert not set(find.frame["id"]) & set(test.frame["id"]), "found and tested on different texts"
steady = int((neurons.to_frame()["t"].head(8) > 2).sum())
assert steady > 4, "most of the top neurons rise in text after text, not in one alone"
print(f"{steady} of the first 8 neurons rise by more than two standard errors.")
print(
    f"Without 56 neurons {row['value']:.0%} of {row['n']:.0f} texts still loop, a change of {row['effect']:+.0%} "
    f"[{row['low']:+.0%}, {row['high']:+.0%}]; {row['m']} controls {row['control_low']:+.0%} to "
    f"{row['control_high']:+.0%}: {row['verdict']}."
)
