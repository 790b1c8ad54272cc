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
# **Method.** Both conditions are cut from one list of prompts, and one estimator reads both at the same positions: the
# next token is known, because it goes on with the cycle. Every head is cut alone; heads that lead are cut together in
# texts on which they were not found. The placebo swaps the labels of the conditions.
#
# **Cost.** Less than a minute on two cores.
#
# **What would falsify it.** Swapped labels that differ as much as the true ones; control heads whose cut costs as much;
# a reader who knows nothing but distances and looks at the same tokens.

# %%
import pandas as pd

import mechrep
from mechrep.ablation.masking import information_masking
from mechrep.generation.text_kinds import joined_conditions
from mechrep.measures.token_information import token_facts, token_information
from mechrep.models.load import shuffled as shuffled_weights
from mechrep.studies.natural_vs_induced_study import run_condition_study
from mechrep.studies.text_kind_effects import compare_heads

model = mechrep.load_model("mechrep-tiny")

# %% [markdown]
# ## One list of prompts, two conditions
#
# A prompt whose greedy continuation loops gives a *natural* text; its cycle alone, shown twice, an *induced* one. (The
# other induced condition shows prompts that do *not* loop; `mechrep contrast` has both. Here they are paired, prompt by
# prompt.) *Copied* means that at least one whole copy follows.

# %%
study = run_condition_study(
    model, prompts=32, length=24, builders=["cycle"], max_new_tokens=120, seeds=3, patched=12, progress=False
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
# ## Every head cut alone
#
# The change of the log-probability of the next copies, in nats per token, with the head's output set to its mean over
# other text. `D` is half of what the conditions differ by; intervals draw prompts anew, the test swaps labels within
# prompts, and `fdr` corrects for having looked at all heads.

# %%
found.cut.plot()

# %%
heads = found.heads["ablation"]
heads[["layer", "head", "induced", "natural", "D", "D_low", "D_high", "p", "fdr"]].round(3)

# %% [markdown]
# ## Other heads, or the same?
#
# `common` is the part of the effect that the same heads carry in both: with each head's share of the summed sizes, the
# sum of the smaller of its two shares. Two samples of *one* condition never give 1 either, so the number means nothing
# without `null`: what swapped labels give.

# %%
comparison = found.comparison["ablation"].set_index("measure")
comparison.round(3)

# %% [markdown]
# ## The placebo
#
# The whole analysis again, with the labels swapped at random within each prompt: every contrast should vanish.

# %%
effects = found.cut.head_effects()
placebos = []
for seed in range(5):
    table = compare_heads(effects.swapped(seed), study.k, swaps=200).set_index("measure")
    chosen = {name: table.loc[name, "value"] for name in ("common", "rank_correlation", "differing_heads")}
    placebos.append({"seed": seed, "largest D": effects.swapped(seed).contrast(draws=2)["D"].abs().max()} | chosen)
placebos = pd.DataFrame(placebos)
placebos.round(3)

# %% [markdown]
# ## The heads that lead, cut together
#
# Found on half of the prompts, cut on the other half, beside as many other heads. If two mechanisms were apart, the
# heads of one condition would cost that condition and leave the other as it is.

# %%
sets = found.sets
columns = ["heads_of", "selection", "heads", "condition", "effect", "low", "high", "n"]
sets[columns].drop_duplicates(["heads_of", "selection", "heads", "condition"]).round(2)

# %% [markdown]
# What kind of heads are these, by their attention on random repeats?

# %%
found.overlap["ablation"].round(2)

# %% [markdown]
# ## Another estimator: what a head *writes*
#
# A cut also removes what later parts make of a head. Direct attribution asks only what the head itself writes for the
# expected token. The two need not agree: an early head can be needed by others and write nothing for the token.

# %%
attribution = found.heads["attribution"].set_index(["layer", "head"])
ablation = heads.set_index(["layer", "head"])
both = pd.DataFrame(
    {
        f"{how}, {condition}": table[condition]
        for how, table in (("cut", ablation), ("writes", attribution))
        for condition in ("induced", "natural")
    }
)
both.sort_values("cut, natural").round(2)

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
corpus = joined_conditions(natural, induced, n_ctx=model.anatomy.n_ctx, copies=2)
information = token_information(model, corpus)
facts = token_facts(model, corpus)
shuffled = shuffled_weights(model, seed=0)
(without_knowledge,) = mechrep.CorpusCache(shuffled, corpus, progress=False).run(mechrep.TokenInformation(facts))
tables = {
    "matched": information.summary(matched=True),
    "all alike": information.summary(),
    "all alike, shuffled weights": without_knowledge.summary(),
}
low = {
    (name, row["condition"]): {"bias": row["bias"], "low": row["low"], "high": row["high"]}
    for name, table in tables.items()
    for row in table[table["group"] == "low_surprisal"].to_dict("records")
}
low = pd.DataFrame(low).T
low.round(2)

# %%
information.plot()

# %% [markdown]
# ## Attention is not effect
#
# So the tokens are hidden from the queries that foretell the last copy, beside as many other tokens, each the nearest
# partner of a low one. Below 0, `low - others` says that the loop needs low information more than other tokens.

# %%
loops = corpus.where(condition="natural")
cut = information_masking(model, loops, token_facts(model, loops), draws=2, progress=False)
causal = cut.summary().set_index("cut")
causal.round(3)

# %% [markdown]
# ## What this notebook claims

# %%
assert study.new_tokens > 0 and found.cut.new_tokens == 0, "no text is written for any cut"
paired = set(found.induced.frame["prompt"]), set(study.natural.frame["prompt"])
assert paired[0] == paired[1] and len(study.natural) > 1, "the two conditions are paired, prompt by prompt"
assert found.seen.residual() < 1e-2, "what heads, MLPs, embedding and biases write adds up to the logit difference"
null = placebos["differing_heads"]
assert null.median() == 0, "with swapped labels, most of the analyses find no head that differs"
assert not set(sets["heads_of"]) - {"natural", "induced"} and (sets["n"] < len(study.natural)).all()
drawn = sets[sets["selection"] != "top"].groupby("heads_of")["heads"].agg(set)
for owner, controls in drawn.items():
    (top,) = set(sets[(sets["heads_of"] == owner) & (sets["selection"] == "top")]["heads"])
    assert not any(set(top.split()) & set(one.split()) for one in controls), "controls are other heads"
by_parts = information.share_att()[..., : len(information.groups) - 2].sum(-1)
assert bool(((by_parts - 1).abs() < 1e-6).all()), "every visible token has one class, and shares of attention add up"

common, differing = comparison.loc["common"], comparison.loc["differing_heads"]
answers = {
    "other heads": "other heads carry them",
    "same heads": "largely the same heads carry both, to another degree",
    "not found": "no difference was found",
}
n = len(study.natural)
print(
    f"Natural loops and copied cycles: {answers[found.answer]}. The same heads carry {common['value']:.2f} "
    f"[{common['low']:.2f}, {common['high']:.2f}] of the effect in both, {common['null']:.2f} with swapped labels "
    f"(p = {common['p']:.3f}); {differing['value']:.0f} of {len(heads)} heads differ (n = {n} pairs)."
)
for owner in ("natural", "induced"):
    rows = sets[sets["heads_of"] == owner]
    top = rows[rows["selection"] == "top"].set_index("condition")
    others = rows[rows["selection"] != "top"]
    for condition in ("natural", "induced"):
        one, beside = top.loc[condition], others[others["condition"] == condition]["effect"]
        beyond = one["high"] < min(0, beside.min()) or one["low"] > max(0, beside.max())
        print(
            f"The {study.k} heads of {owner} repetition, cut together, cost {condition} texts {one['effect']:+.2f} "
            f"[{one['low']:+.2f}, {one['high']:+.2f}] nats; controls {beside.min():+.2f} to {beside.max():+.2f}:",
            "beyond the controls." if beyond else "no more than the controls.",
        )
row = low.loc[("matched", "natural")]
print(
    f"Loops look at low-surprisal tokens {row['bias']:.2f} [{row['low']:.2f}, {row['high']:.2f}] times as much as a "
    "reader of the usual distances:",
    "more." if row["low"] > 1 else "less." if row["high"] < 1 else "nothing that can be told from 1.",
)
row = causal.loc["low - others"]
print(
    f"Hidden, they change the last copy by {row['change']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}] nats against "
    "as many others:",
    "the loop needs them more."
    if row["high"] < 0
    else "the loop needs them less."
    if row["low"] > 0
    else "no difference was found.",
)

# %% [markdown]
# ## What was learnt
#
# * That two kinds of repetition look alike or differ is a statement about *one* estimator at *the same* positions; with
#   different positions or different averages the difference is made by the method.
# * "Other heads" and "the same heads, more or less" are two answers. A test of every head can find many that differ in
#   degree while the same heads carry both.
# * A number of how alike two lists of heads are needs its placebo: two halves of one condition are never quite alike.
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
# 3. Look at `found.cut.head_effects(copy=1)` and `copy=3`. Does a loop come to rest on fewer heads as it goes on?
# 4. Cut from the onset on only (`ablation_contrast(..., when="from_onset")`). Which heads lose their part, and why must
#    a previous-token head be among them?
# 5. Use `way="swap"` in `information_masking`: the tokens are not hidden but exchanged. Why can the two ways disagree?
# 6. Run `mechrep contrast` on a checkpoint from early in training. Do loops come before copying?
