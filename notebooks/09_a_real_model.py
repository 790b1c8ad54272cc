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
# **Question.** The three papers are about language models that people use. What is true of SmolLM2-135M-Instruct (Llama
# family, 30 layers, 270 heads, 46,080 neurons)?
#
# **Method.** Norms and heads by depth; loops that the model writes; the neurons that rise when they begin; and what
# becomes of loops and of the sink without them, beside controls.
#
# **Cost.** About four minutes on two cores. `make real-models` fetches the weights once. Without them, this notebook
# runs
# on the embedded model, and the words below are not about what it shows.
#
# **What would falsify it.** Null models with such rises, and control neurons that do as much.

# %%
import os
from pathlib import Path

import pandas as pd

import mechrep
from mechrep import studies
from mechrep.ablation.texts import find_and_test, shared_loops
from mechrep.measures.head_scores import HeadScores, head_scores_figure
from mechrep.measures.neurons import plot_layer_distribution, plot_onset_profile
from mechrep.measures.sink_norms import norms_by_layer_figure
from mechrep.run import Run
from mechrep.studies.find_sink import ordinary_texts, read_sink
from mechrep.text.stimuli import random_repeats

folder = Path(os.environ.get("MECHREP_REAL_MODELS", "../real-models")) / "smollm2-135m"
name = str(folder) if folder.is_dir() else "mechrep-tiny"
model, run = mechrep.load_model(name), Run(effort="quick", progress=False)
print(model.name.split("/")[-1], "|", model.anatomy.n_layers, "layers,", model.anatomy.n_neurons, "neurons")

# %% [markdown]
# ## The sink has two stages
#
# The norm at the first position rises in layers 0 to 2, is erased in layer 9, rises again in layer 11, two hundredfold,
# and is written down in the last two layers. Two neurons of 1,536 make the second stage. The first one is no work of a
# few neurons. Nothing depends on BOS, which the tokenizer does not add: any first token does it.

# %%
sink = mechrep.find_sink(model, run=run)
print(sink.first)
sink.stage_frame().round(2)

# %%
reading = read_sink(model, ordinary_texts(model, None, windows=16), run)
norms_by_layer_figure(reading.norms[True])

# %% [markdown]
# ## Which repeated tokens become sinks?
#
# After the first stage all do, whatever they are. After the second, most rare words do and most frequent ones do not,
# if they stand after BOS; without BOS every copy does, because every copy *is* a first token to a rotary model.

# %%
sink.moved_frame().query("kind != 'all'").round(2)

# %% [markdown]
# ## Induction heads
#
# Attention to the token that followed an earlier copy, on random tokens that are repeated once.

# %%
repeats = random_repeats(model, n=50, sequences=8, seed=1)
scores = mechrep.CorpusCache(model, repeats).run(HeadScores(bos_id=model.bos_id))
print({f"L{layer}H{head}": round(float(scores.induction[layer, head]), 2) for layer, head in scores.top(8)})
head_scores_figure(scores)

# %% [markdown]
# ## Loops, and the neurons that rise when they begin

# %%
corpus = shared_loops(model, run)
looping = corpus.frame["onset"].notna()
print(int(looping.sum()), "looping texts;", model.decode(corpus.row(0))[-160:])

# %%
find, test = find_and_test(corpus)
neurons = mechrep.CorpusCache(model, find).run(mechrep.RepetitionNeurons())
plot_onset_profile(neurons, k=1)

# %% [markdown]
# One of the loops, a repetition per row, in the colour of that neuron.

# %%
mechrep.view(model, find, [*neurons.top(2), "surprisal"], row=0)

# %%
plot_layer_distribution(neurons)

# %% [markdown]
# ## Without them
#
# Half a percent of the neurons is set to zero from the onset on, and the texts are written anew; so are they with as
# many other neurons that are as active in ordinary text.

# %%
k = max(1, neurons.published_k)
sweep = studies.deactivation_sweep(model, test, neurons=neurons, ks=[k], controls=["activation_matched"], run=run)
columns = ["measure", "k", "baseline", "value", "effect", "low", "high", "control_low", "control_high", "m", "verdict"]
sweep.summary()[columns].round(2)

# %% [markdown]
# ## What this notebook claims

# %%
assert all(stage.norm.rise > max(sink.null_rises) for stage in sink.stages)
if model.anatomy.n_layers == 30:
    assert [stage.norm.layers for stage in sink.stages] == [[0, 1, 2], [11]]
    assert set(sink.neurons) == {(11, 1229), (11, 1487)}
    assert scores.top(1) == [(18, 6)]
pd.DataFrame(
    {
        "found": ["stages of the sink", "neurons of the largest", "best induction head", "neuron that rises most"],
        "what": [len(sink.stages), sink.neurons, scores.top(1)[0], neurons.top(1)[0]],
    }
)
