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
# # Repetition neurons
#
# **Question.** Which neurons rise when a loop begins (Hiraoka & Inui 2025, arXiv 2410.13497), and do they cause it?
#
# **Method.** The difference of each neuron's mean activation after and before the onset; then deactivation from the
# onset on looping texts and activation (+1) on loop-free ones, over a sweep of K, against three controls from several
# seeds.
#
# **Cost.** Under two minutes on two cores.
#
# **What would falsify it.** Controls that do as much as the top neurons.

# %%
import mechrep
from mechrep import studies
from mechrep.ablation.old_loss import plot_perplexity
from mechrep.ablation.old_sweeps import plot_sweep
from mechrep.generation import collect_loops
from mechrep.measures.neurons import plot_layer_distribution, plot_onset_profile, plot_sorted_delta
from mechrep.models import tiny
from mechrep.text.corpus import windows_of_text

model = mechrep.load_model("mechrep-tiny")
corpus = collect_loops(model, 100, n_others=30, seed=2, max_prompts=1500)
corpus.frame["condition"].value_counts().to_dict()

# %% [markdown]
# ## The published search and the default, side by side
#
# The published normal window ends one token before the onset, so it usually holds the first copy of the loop itself.
# The default takes the tokens before the first copy, and searches on other texts than it tests on.

# %%
looping = corpus.where(condition="looping")
find, test = looping.split(0.7, seed=0)
cache = mechrep.CorpusCache(model, find)
published, neurons = cache.run(mechrep.RepetitionNeurons("hiraoka2025"), mechrep.RepetitionNeurons())
overlap = len(set(published.top(50)) & set(neurons.top(50)))
print(f"{overlap} of the top 50 are the same; {neurons.n_texts} texts, {neurons.n_dropped} dropped")
neurons.to_frame(10).round(3)

# %%
plot_onset_profile(neurons, k=6)

# %%
plot_sorted_delta(neurons)

# %%
plot_layer_distribution(neurons, k=50)

# %% [markdown]
# ## Deactivation, against controls

# %%
ks = [0, 7, 14, 28, 56, 98]
deactivation = studies.deactivation_sweep(model, test, neurons=neurons, ks=ks, seeds=3)
plot_sweep(deactivation)

# %%
deactivation.to_frame().query("k == 98").round(2)

# %% [markdown]
# ## Activation
#
# +1 on every neuron's activation, on texts that did not loop.

# %%
free = corpus.select(corpus.frame["condition"] == "loop_free")
activation = studies.activation_sweep(model, free, neurons=neurons, ks=ks, seeds=3)
plot_sweep(activation)

# %% [markdown]
# ## What it costs elsewhere

# %%
windows = windows_of_text(model, tiny.held_out_text(), length=256, limit=12)
loss = studies.loss_sweep(model, windows, neurons=neurons, ks=ks, seeds=2)
plot_perplexity(loss)

# %% [markdown]
# ## What this notebook claims

# %%
summary = deactivation.summary().set_index(["selection", "k"])
assert summary.loc[("none", 0), "share"] == 1.0
boosted = activation.summary().set_index(["selection", "k"])
assert boosted.loc[("none", 0), "share"] == 0.0, "loop-free texts stay free without an edit"
ranked = neurons.to_frame()
assert (ranked["delta"].diff().dropna() <= 0).all(), "ranked by the size of the rise, not by its certainty"
assert (ranked["t"].head(5) > 2).all(), "the first five rise in text after text"
print(f"{(ranked['t'].head(20) > 2).sum()} of the first 20 rise by more than two standard errors")
costs = loss.to_frame().set_index(["selection", "k", "seed"])
assert costs.loc[("none", 0, 0), "rise"] == 0.0
for k in ks[1:]:
    top, controls = summary.loc[("top", k)], summary.drop(["none", "top"], level="selection").xs(k, level="k")
    print(
        f"K = {k:3}: {top['share']:.0%} still loop [{top['low']:.0%}, {top['high']:.0%}], "
        f"controls {controls['share'].min():.0%} to {controls['share'].max():.0%}; "
        f"held-out loss +{costs.loc[('top', k, 0), 'rise']:.3f} nats"
    )
