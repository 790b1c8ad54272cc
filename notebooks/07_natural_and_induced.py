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
# # Natural loops and induced copies
#
# **Question.** A text can repeat because the model fell into a loop by itself, or because it was shown something and
# copies it. Do the same heads carry both? And do loops look at tokens that carry little information?
#
# **Method.** Both kinds of text come from one list of prompts, and one estimator reads both at the same positions: the
# next token is known, because it goes on with the cycle. Every head is ablated alone; heads that lead are ablated
# together in texts on which they were not found. The placebo swaps the labels of the kinds.
#
# **Cost.** About two minutes on two cores.
#
# **What would falsify it.** Swapped labels that differ as much as the true ones; control heads whose ablation costs as
# much; a reader who knows nothing but distances and looks at the same tokens.

# %%
import pandas as pd

import mechrep
from mechrep.ablation.masking import information_masking
from mechrep.generation.text_kinds import joined_texts
from mechrep.measures.text_kind_design import head_contrast_figure
from mechrep.measures.token_facts import token_facts
from mechrep.measures.token_information import token_information
from mechrep.models import tiny
from mechrep.models.nulls import shuffled as shuffled_weights
from mechrep.run import Run
from mechrep.studies.natural_vs_induced_study import ABLATED, WRITES, run_text_kind_study
from mechrep.studies.text_kind_effects import compare_heads
from mechrep.text import windows_of_text

model = mechrep.load_model("mechrep-tiny")

# %% [markdown]
# ## One list of prompts, two kinds of text
#
# A prompt whose greedy continuation loops gives a *natural* text; its cycle alone, shown twice, an *induced* one. (The
# other builder shows prompts that do *not* loop; `mechrep contrast` has both. Here they are paired, prompt by
# prompt.) *Copied* means that at least one whole copy follows.

# %%
prompts = windows_of_text(model, tiny.held_out_text(), length=25, limit=32)
study = run_text_kind_study(
    model, prompts=prompts, builders=["cycle"], max_new_tokens=120, k=2, run=Run(effort="quick", progress=False)
)
found = study.contrasts["cycle"]
study.flow["cycle"]

# %% [markdown]
# ## How sure the model is
#
# By the number of cycles that it has seen. Copy 0 is the first: in a loop the model wrote it itself after a prompt, in
# the induced text it comes out of nothing, so the two differ there for reasons of context. Do they meet?

# %%
found.seen.plot()

# %% [markdown]
# ## Every head ablated alone
#
# The change of the log-probability of the next copies, in nats per token, with the head's output set to its mean over
# other text. `D` is half of what the kinds differ by; intervals draw clusters anew (prompts, and families of loops),
# the test swaps labels within clusters, and `q` corrects for having looked at all heads.

# %%
head_contrast_figure(found.heads[ABLATED])

# %%
heads = found.head_table()
heads[["layer", "head", "induced", "natural", "D", "D_low", "D_high", "p", "q"]].round(3)

# %% [markdown]
# ## Other heads, or the same?
#
# `common` is the part of the effect that the same heads carry in both: with each head's share of the summed sizes, the
# sum of the smaller of its two shares. Two samples of *one* kind never give 1 either, so the number means nothing
# without what swapped labels give: their mean is `baseline`, `effect` is what the true labels exceed it by.

# %%
effects = found.heads[ABLATED]
comparison = found.compared[found.compared["name"] == effects.measure].set_index("measure")
comparison[["value", "baseline", "effect", "low", "high", "p", "q", "verdict"]].round(3)

# %% [markdown]
# ## The placebo
#
# The whole analysis again, with the labels swapped at random within each cluster: every contrast should vanish.

# %%
placebos = []
for seed in range(5):
    table = compare_heads(effects.swapped(seed), study.k, swaps=200).set_index("measure")
    chosen = {name: table.loc[name, "value"] for name in ("common", "rank_correlation", "differing_heads")}
    placebos.append({"seed": seed, "largest D": effects.swapped(seed).contrast(draws=2)["D"].abs().max()} | chosen)
placebos = pd.DataFrame(placebos)
placebos.round(3)

# %% [markdown]
# ## The heads that lead, ablated together
#
# Found on half of the texts, ablated on the other half, beside as many other heads. If two mechanisms were apart, the
# heads of one kind would cost that kind and leave the other as it is. With eight heads there are too few other sets for
# a verdict: the range of the controls is what can be seen.

# %%
sets = found.sets.summary()
sets[["name", "measure", "effect", "low", "high", "control_low", "control_high", "m", "n", "verdict"]].round(2)

# %% [markdown]
# What kind of heads are these, by their attention on random repeats?

# %%
study.overlap().round(2)

# %% [markdown]
# ## Another estimator: what a head *writes*
#
# An ablation also removes what later parts make of a head. Direct attribution asks only what the head itself writes for
# the expected token. The two need not agree: an early head can be needed by others and write nothing for the token.

# %%
both = pd.DataFrame(
    {
        f"{how}, {kind}": table.contrast(draws=2).set_index(["layer", "head"])[kind]
        for how, table in found.heads.items()
        if how in (ABLATED, WRITES)
        for kind in ("induced", "natural")
    }
)
both.sort_values(f"{ABLATED}, natural").round(2)

# %% [markdown]
# ## Where a loop looks
#
# Tokens of low *surprisal* are those that the model itself foresaw in the first copy (the lowest quartile of the text).
# Sinks are left out. A bias of 1 is a reader who looks at all visible tokens alike, or, `matched`, one who weights
# distances as the head does in other text. The same numbers for a copy of the model with shuffled weights, on the same
# texts and with the true model's surprisals, show what a model without knowledge gives.

# %%
natural, induced = study.natural.select(range(min(16, len(study.natural)))), found.induced
induced = induced.select(induced.frame["prompt"].isin(natural.frame["prompt"]).to_numpy())
corpus = joined_texts(natural, induced, n_ctx=model.anatomy.n_ctx, copies=2)
information = token_information(model, corpus)
facts = token_facts(model, corpus)
shuffled = shuffled_weights(model, seed=0)
without_knowledge = mechrep.CorpusCache(shuffled, corpus, progress=False).run(mechrep.TokenInformation(facts))
tables = {
    "matched": information.summary(matched=True),
    "all alike": information.summary(),
    "all alike, shuffled weights": without_knowledge.summary(),
}
low = {
    (name, row["text_kind"]): {"bias": row["bias"], "low": row["low"], "high": row["high"]}
    for name, table in tables.items()
    for row in table[table["group"] == "low_surprisal"].to_dict("records")
}
low = pd.DataFrame(low).T
low.round(2)

# %%
information.plot()

# %% [markdown]
# One loop in the colour of its surprisal: light tokens are those of low information.

# %%
mechrep.view(model, study.natural, ["surprisal", "L2H0"], row=0)

# %% [markdown]
# ## Attention is not effect
#
# So the tokens are hidden from the queries that foretell the last copy, beside as many other tokens, each the nearest
# partner of a low one, in 19 draws. The loop needs low information more than other tokens if the effect lies below that
# of every draw.

# %%
loops = corpus.where(text_kind="natural")
run = Run(effort="quick", progress=False)
masked = information_masking(model, loops, token_facts(model, loops), draws=19, run=run).summary()
masked[["name", "effect", "low", "high", "control_low", "control_high", "m", "n", "p", "verdict"]].round(3)

# %% [markdown]
# ## What this notebook claims

# %%
assert study.new_tokens > 0 and not any(one.name.startswith("new_tokens") for one in found.ablated.measures)
paired = set(found.induced.frame["prompt"]), set(study.natural.frame["prompt"])
assert paired[0] == paired[1] and len(study.natural) > 1, "the two kinds are paired, prompt by prompt"
assert found.seen.residual() < 1e-2, "what heads, MLPs, embedding and biases write adds up to the logit difference"
null = placebos["differing_heads"]
assert null.median() == 0, "with swapped labels, most of the analyses find no head that differs"
named = {tuple(h) for one in found.sets.conditions if one.selection == "ablation" for h in one.components["heads"]}
drawn = [one for one in found.sets.conditions if one.selection in ("random", "layer_matched")]
assert not any(named & {tuple(head) for head in one.components["heads"]} for one in drawn), "controls are other heads"
by_parts = information.share_att()[..., : len(information.groups) - 2].sum(-1)
assert bool(((by_parts - 1).abs() < 1e-6).all()), "every visible token has one class, and shares of attention add up"

common, differing = comparison.loc["common"], comparison.loc["differing_heads"]
print(
    f"Other heads for natural loops and copied cycles: {common['verdict']}. The same heads carry {common['value']:.2f} "
    f"of the effect in both, {common['baseline']:.2f} with swapped labels (p = {common['p']:.3f}); to a different "
    f"degree: {differing['verdict']}, {differing['value']:.0f} of {len(heads)} heads (n = {len(study.natural)} pairs)."
)
for row in sets.to_dict("records"):
    print(
        f"The {study.k} {row['name']}, ablated together, change {row['measure']} by {row['effect']:+.2f} "
        f"[{row['low']:+.2f}, {row['high']:+.2f}] nats; controls {row['control_low']:+.2f} to "
        f"{row['control_high']:+.2f}: {row['verdict']}."
    )
row = low.loc[("matched", "natural")]
print(
    f"Loops look at low-surprisal tokens {row['bias']:.2f} [{row['low']:.2f}, {row['high']:.2f}] times as much as a "
    "reader of the usual distances:",
    "more." if row["low"] > 1 else "less." if row["high"] < 1 else "nothing that can be told from 1.",
)
row = masked.iloc[0]
print(
    f"Hidden, they change the last repetition by {row['effect']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}] nats, as "
    f"many others by {row['control_low']:+.2f} to {row['control_high']:+.2f}: {row['verdict']}."
)

# %% [markdown]
# ## What was learnt
#
# * That two kinds of repetition look alike or differ is a statement about *one* estimator at *the same* positions; with
#   different positions or different averages the difference is made by the method.
# * "Other heads" and "the same heads, more or less" are two answers. A test of every head can find many that differ in
#   degree while the same heads carry both.
# * A number of how alike two lists of heads are needs its placebo: two halves of one kind are never quite alike.
# * A loop is also a repeated text, so heads that copy can carry it from its second copy on. That they do says nothing
#   about how the loop began.
# * Attention to a kind of token must be set against what was there to be looked at, where it stood, and what is gained
#   when it is hidden.
#
# ## Exercises
#
# 1. Take `builders=["text"]`, which shows prompts that do not loop. How many of this model's prompts are left, and are
#    they copied? What can be said about heads with so few?
# 2. Set `op="zero"` and `op="resample"`. Do the same heads lead?
# 3. Look at `head_effects(found.ablated, copy=1)` and `copy=3`. Does a loop come to rest on fewer heads as it goes on?
# 4. Ablate from the onset on only (`ablation_contrast(..., when="from_onset")`). Which heads lose their part, and why
#    must a previous-token head be among them?
# 5. Use `way="swap"` in `information_masking`: the tokens are not hidden but exchanged. Why can the two ways disagree?
# 6. Run `mechrep contrast` on a checkpoint from early in training. Do loops come before copying?
