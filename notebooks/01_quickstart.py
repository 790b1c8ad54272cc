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
# **What would falsify it.** If cutting the found neurons changes no more texts than cutting random ones, the neurons
# accompany repetition and do not carry it. The last cell says which of the two it is here.

# %%
import mechrep
from mechrep import studies
from mechrep.generation import collect_loops

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
# ## Collect loops as the literature does
#
# BOS and ten sampled tokens, then greedy decoding; some texts loop, some do not.

# %%
corpus = collect_loops(model, 60, n_others=0, seed=1)
find, test = corpus.split(0.6, seed=0)
corpus.frame[["id", "condition", "onset", "period", "copies"]].head()

# %% [markdown]
# ## Which neurons rise at the onset?
#
# One pass over the texts, whatever the number of analyzers.

# %%
(neurons,) = mechrep.CorpusCache(model, find).run(mechrep.RepetitionNeurons())
neurons.to_frame(8).round(3)

# %%
neurons.plot(k=4)

# %% [markdown]
# ## Switch them off
#
# Every looping text that was *not* used for the search is cut at its onset and continued greedily while the neurons
# are held at zero, beside controls: random neurons, neurons of the same layers, and neurons of the same layers with
# the same mean activation.

# %%
sweep = studies.deactivation_sweep(model, test, neurons=neurons, ks=[14, 56], seeds=3)
sweep.summary().round(2)

# %%
sweep.plot()

# %% [markdown]
# ## What this notebook claims

# %%
shares = sweep.summary().set_index(["selection", "k"])
top, controls = shares.loc[("top", 56)], shares.drop(["none", "top"], level="selection").xs(56, level="k")
assert shares.loc[("none", 0), "share"] == 1.0, "without an edit every text goes on looping"
assert not set(find.frame["id"]) & set(test.frame["id"]), "found and tested on different texts"
steady = int((neurons.to_frame(8)["t"] > 2).sum())
assert steady > 4, "most of the top neurons rise in text after text, not in one alone"
print(f"{steady} of the first 8 neurons rise by more than two standard errors.")
beaten = bool(top["share"] < controls["low"].min())
print(
    f"With 56 neurons cut, {top['share']:.0%} of {top['texts']:.0f} texts still loop "
    f"(controls {controls['low'].min():.0%} to {controls['high'].max():.0%}):",
    "more than the controls explain." if beaten else "no more than the controls explain.",
)
