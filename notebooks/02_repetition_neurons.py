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
# onset on looping texts and activation (+1) on loop-free ones, over a sweep of K, beside neurons of the same layers.
#
# **Cost.** Under two minutes on two cores.
#
# **What would falsify it.** Controls that do as much as the top neurons.

# %%
import mechrep
from mechrep import studies
from mechrep.ablation.texts import find_and_test, shared_loops
from mechrep.measures.neurons import plot_layer_distribution, plot_onset_profile, plot_sorted_delta
from mechrep.models import tiny
from mechrep.run import Run
from mechrep.text import windows_of_text

run = Run(effort="quick", seed=2)
model = mechrep.load_model("mechrep-tiny")
corpus = shared_loops(model, run)
corpus.frame["condition"].value_counts().to_dict()

# %% [markdown]
# ## The published search and the default, side by side
#
# The published normal window ends one token before the onset, so it usually holds the first copy of the loop itself.
# The default takes the tokens before the first copy, and searches on other texts than it tests on.

# %%
find, test = find_and_test(corpus)
cache = mechrep.CorpusCache(model, find)
published, neurons = cache.run(mechrep.RepetitionNeurons("hiraoka2025"), mechrep.RepetitionNeurons())
overlap = len(set(published.top(50)) & set(neurons.top(50)))
print(f"{overlap} of the top 50 are the same; {neurons.n_texts} texts, {neurons.n_dropped} dropped")
neurons.to_frame().head(10).round(3)

# %% [markdown]
# One of the loops, a repetition per row, in the colour of the neuron that rises most.

# %%
mechrep.view(model, find, [*neurons.top(2), "surprisal"], row=0)

# %%
plot_onset_profile(neurons, k=6)

# %%
plot_sorted_delta(neurons)

# %%
plot_layer_distribution(neurons, k=50)

# %% [markdown]
# ## Deactivation, beside controls

# %%
ks = [7, 28, 98]
deactivation = studies.deactivation_sweep(model, test, neurons=neurons, ks=ks, run=run)
deactivation.curve(measures=["still_repeating"])

# %%
deactivation.wide().query("k == 98").round(2).head()

# %% [markdown]
# ## Activation
#
# +1 on every neuron's activation, on texts that did not loop.

# %%
free = corpus.where(split="other")
activation = studies.activation_sweep(model, free, neurons=neurons, ks=ks, run=run)
activation.curve(measures=["newly_repeating"])

# %% [markdown]
# ## What it costs elsewhere

# %%
windows = windows_of_text(model, tiny.held_out_text(), length=256, limit=12)
loss = studies.loss_sweep(model, windows, neurons=neurons, ks=ks, run=run)
loss.curve()

# %% [markdown]
# ## What this notebook claims

# %%
assert (deactivation.of("still_repeating")[0] == 1.0).all(), "without an ablation every text goes on looping"
assert (activation.of("newly_repeating")[0] == 0.0).all(), "loop-free texts stay free without one"
ranked = neurons.to_frame()
assert (ranked["delta"].diff().dropna() <= 0).all(), "ranked by the size of the rise, not by its certainty"
assert (ranked["t"].head(5) > 2).all(), "the first five rise in text after text"
print(f"{(ranked['t'].head(20) > 2).sum()} of the first 20 rise by more than two standard errors")
summary = deactivation.summary().set_index(["measure", "k"]).loc["still_repeating"]
costs = loss.to_frame().query("selection == 'ablation'").set_index("k")["effect"]
for k in ks:
    row = summary.loc[k]
    print(
        f"K = {k:3}: still looping {row['effect']:+.0%} [{row['low']:+.0%}, {row['high']:+.0%}], {row['m']} controls "
        f"{row['control_low']:+.0%} to {row['control_high']:+.0%}: {row['verdict']}; held-out loss {costs[k]:+.3f} nats"
    )
