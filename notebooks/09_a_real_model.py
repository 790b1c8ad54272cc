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
# # A real model
#
# **Question.** The three papers are about language models that people use. What is there to see in
# SmolLM2-135M-Instruct (Llama family, 30 layers, 270 heads, 46,080 neurons)?
#
# **Method.** Norms by depth, with and without two neurons; heads on random repeats; loops that the model writes, and
# the neurons that rise when they begin; one text written again without them.
#
# **Cost.** Under two minutes on one core. `make real-models` fetches the weights once. Without them, this notebook runs
# on the embedded model, and the words below are not about what it shows.
#
# **What would falsify it.** Here one looks. The same claims beside null models, control draws and intervals, with a
# verdict each, are what `mechrep report` makes (a quarter of an hour); they stand in the gallery.

# %%
import os
from pathlib import Path

import pandas as pd

import mechrep
from mechrep.interventions import Heads, Neurons
from mechrep.measures.head_scores import HeadScores, head_scores_figure
from mechrep.measures.neurons import plot_layer_distribution, plot_onset_profile
from mechrep.measures.sink_neurons import sink_neurons
from mechrep.measures.sink_norms import norms_by_layer_figure
from mechrep.measures.sink_stages import norm_stages
from mechrep.models.tiny import held_out_text
from mechrep.text import windows_of_text
from mechrep.text.stimuli import random_repeats

folder = Path(os.environ.get("MECHREP_REAL_MODELS", "../real-models")) / "smollm2-135m"
model = mechrep.load_model(str(folder) if folder.is_dir() else "mechrep-tiny")
print(model.name.split("/")[-1], "|", model.anatomy.n_layers, "layers,", model.anatomy.n_neurons, "neurons")

# %% [markdown]
# ## The sink has two stages
#
# The norm at the first position rises in layers 0 to 2, is erased in layer 9, rises again in layer 11, two hundredfold,
# and is written down in the last two layers. Nothing depends on BOS: any first token does it.

# %%
texts = windows_of_text(model, held_out_text(), length=48, limit=6)
norms = mechrep.CorpusCache(model, texts, progress=False).run(mechrep.SinkNorms())
stages = norm_stages(norms.ratio)
print([(f"layers {stage.layers}", f"{stage.rise:.0f}-fold") for stage in stages])
norms_by_layer_figure(norms)

# %% [markdown]
# Two neurons of 1,536 make the second stage. Without them it is not there; the first one is no work of a few neurons.

# %%
layer = stages[-1].layers[-1]
makers = [(layer, neuron) for _, neuron in sink_neurons(model, texts, layer).top(2)]
without = mechrep.CorpusCache(model, texts, intervention=Neurons(makers, when="all"), progress=False)
print("without", ", ".join(f"L{layer}N{neuron}" for layer, neuron in makers))
norms_by_layer_figure(without.run(mechrep.SinkNorms()))

# %% [markdown]
# ## Induction heads
#
# Attention to the token that followed an earlier copy, on random tokens that are repeated once.

# %%
repeats = random_repeats(model, n=40, sequences=4, seed=1)
scores = mechrep.CorpusCache(model, repeats, progress=False).run(HeadScores(bos_id=model.bos_id))
print({f"L{layer}H{head}": round(float(scores.induction[layer, head]), 2) for layer, head in scores.top(8)})
head_scores_figure(scores)

# %% [markdown]
# ## Loops
#
# Six prompts, continued greedily.

# %%
prompts = [
    "The sea was calm, and",
    "It was a cold morning, and",
    "The town of Ashwood is a place",
    "Once upon a time there was a king who",
    "The most important thing about music is",
    "My favourite thing about the garden is",
]
corpus = mechrep.generate(
    model, mechrep.Corpus.from_texts(prompts, model=model), max_new_tokens=140, progress=False
).with_cycles()
loops = corpus.where(condition="looping")
print(len(loops), "of", len(corpus), "texts loop")
corpus

# %% [markdown]
# ## The neurons that rise when they begin
#
# The mean activation after the onset less that before it, over these loops.

# %%
neurons = mechrep.CorpusCache(model, loops, progress=False).run(mechrep.RepetitionNeurons())
plot_onset_profile(neurons, k=1)

# %%
plot_layer_distribution(neurons)

# %% [markdown]
# One of the loops, a repetition per row, in the colour of that neuron. Choose `L18H6`, an induction head, and point at
# a token: it reads what came after that token before.

# %%
best = "L{}H{}".format(*scores.top(1)[0])
mechrep.view(model, loops, [*neurons.top(2), "surprisal", best], row=0)

# %% [markdown]
# ## Without them
#
# The same text, written anew without half a percent of the neurons, and without the best induction heads.

# %%
k = max(1, neurons.published_k)
conditions = {
    "as it is": None,
    f"without {k} neurons": Neurons(neurons.top(k), "zero"),
    "without 8 heads": Heads(scores.top(8), "zero"),
}
mechrep.compare(model, prompts[0], conditions, max_new_tokens=60)

# %% [markdown]
# ## What this notebook claims

# %%
assert len(loops) > 1, "some texts loop"
assert norms.ratio[layer + 1] > 2 * without.run(mechrep.SinkNorms()).ratio[layer + 1], "the two neurons make the stage"
if model.anatomy.n_layers == 30:
    assert [stage.layers for stage in stages][:2] == [[0, 1, 2], [11]]
    assert set(makers) == {(11, 1229), (11, 1487)}
    assert scores.top(1) == [(18, 6)]
pd.DataFrame(
    {
        "found": ["stages of the sink", "neurons of the largest", "best induction head", "neuron that rises most"],
        "what": [len(stages), makers, scores.top(1)[0], neurons.top(1)[0]],
    }
)
