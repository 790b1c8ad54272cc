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
# # Attention heads
#
# **Question.** Which heads copy, which find earlier copies of the token, why do they look there, what do they write,
# and do they lie in the layers of the repetition neurons? (What the model loses without them is notebook 04.)
#
# **Method.** Scores of all heads on random repeats (nothing but the copy helps there), beside copies of the model that
# have learned nothing; the same scores on the model's own loops, in one pass with the repetition neurons; then, for the
# best head, one attention map, the parts of the model that make its attention, and the logits that it writes.
#
# **Cost.** About a minute on two cores.
#
# **What would falsify it.** Copies without knowledge that score as high; an explanation of the attention that fits
# wrong keys as well; an ablation of the part named as the cause that leaves the attention as it was.

# %%
import itertools

import pandas as pd
import torch

import mechrep
from mechrep.figures import attention_maps_figure
from mechrep.generation import collect_loops
from mechrep.measures.head_layers import layer_profile_figure
from mechrep.measures.head_scores import head_scores_figure
from mechrep.models.nulls import reinitialised, shuffled
from mechrep.text.stimuli import random_repeats

model = mechrep.load_model("mechrep-tiny")


def label(unit):
    return f"L{unit[0]}H{unit[1]}"


# %% [markdown]
# ## What every head looks at
#
# Fifty random tokens, twice. A score is the share of attention on the targets of a kind of head; a perfect head has 1,
# and *chance* is what a head has that attends to everything alike.

# %%
scores = mechrep.score_heads(model)
scores.plot()

# %%
columns = ["layer", "head", *itertools.chain.from_iterable((name, f"{name}_error") for name in scores.names[:3])]
scores.to_frame("induction")[columns].round(3)

# %% [markdown]
# ## What a model scores that knows nothing
#
# Chance is one number for an ideal uniform head. Untrained heads scatter round it, and the best of many scatters
# furthest. So the same search runs on copies of the model: weights *shuffled* inside each matrix (the sizes stay, the
# knowledge goes), and weights *drawn anew* (before training). A threshold is then the best score that any head of any
# copy reaches.

# %%
kinds = {"shuffled": shuffled, "reinitialised": reinitialised}
rows = []
for (kind, make), seed in itertools.product(kinds.items(), range(5)):
    null = mechrep.score_heads(make(model, seed=seed), sequences=16)
    rows.append({"copy": kind, "seed": seed} | {name: float(null.of(name).max()) for name in null.names})
null_best = pd.DataFrame(rows)
threshold = null_best[list(scores.names)].max()
beside = {
    "chance": pd.Series(scores.chance.tolist(), index=list(scores.names)),
    "best of the copies": threshold,
    "best head": pd.Series({name: label(scores.top(1, name)[0]) for name in scores.names}),
    "its score": pd.Series({name: float(scores.of(name).max()) for name in scores.names}),
    "heads above": pd.Series({name: len(scores.above(threshold[name], name)) for name in scores.names}),
}
pd.DataFrame(beside).round(3)

# %% [markdown]
# ## The same heads in loops that the model falls into
#
# One pass over the loops for both mechanisms. `hiraoka2025` takes the queries after the onset and calls a head
# self-finding above 0.5. A loop holds many earlier copies, so chance is far higher here than on two random copies: the
# copies of the model read the same loops.

# %%
loops = collect_loops(model, 80, n_others=0, seed=3)
natural, neurons = mechrep.CorpusCache(model, loops).run(
    mechrep.HeadScores("hiraoka2025", bos_id=model.bos_id), mechrep.RepetitionNeurons()
)
head_scores_figure(natural)

# %%
null_loops = []
for (kind, make), seed in itertools.product(kinds.items(), range(2)):
    cache = mechrep.CorpusCache(make(model, seed=seed), loops.select(range(24)), progress=False)
    null = cache.run(mechrep.HeadScores("hiraoka2025", bos_id=model.bos_id))
    null_loops.append({"copy": kind, "seed": seed} | {name: float(null.of(name).max()) for name in null.names})
null_loops = pd.DataFrame(null_loops)
for name in ("induction", "duplicate_token"):
    found = [label(unit) for unit in natural.above(0.5, name)]
    print(
        f"{name}: best {label(natural.top(1, name)[0])} {natural.of(name).max():.3f}, chance "
        f"{natural.chance[list(natural.names).index(name)]:.3f}, best of the copies {null_loops[name].max():.3f}; "
        f"above 0.5: {', '.join(found) or 'none'}; {natural.n_texts[name]} texts, "
        f"{sum(natural.not_used.values())} left out"
    )

# %% [markdown]
# ## Looking is not saying
#
# A head that looks at what followed the earlier copy may also *suppress* it. `functional` asks whether the head's own
# logits point at the expected token (1: at that token and at nothing else); its null swaps the targets among the
# queries of a text. `eigen` and `top1` read the copying off the weights alone, beside heads of Gaussian weights.
# `induction_heads` asks for looking and saying, both beyond their nulls.

# %%
copying, weights = mechrep.score_copying(model), mechrep.ov_scores(model)
copiers = mechrep.induction_heads(scores, copying)
assert copiers, "no head both looks at what followed the earlier copy and says it"
best = copiers[0]
rows = []
for unit in scores.ranking("induction"):
    measured = {name: float(copying.of(name)[unit]) for name in ("prefix", "functional", "dla")}
    measured |= {"null up to": float(copying.functional_band[1][unit])}
    measured |= {name: float(weights.of(name)[unit]) for name in ("eigen", "top1")}
    rows.append({"head": label(unit)} | measured | {"induction head": unit in copiers})
low, high = weights.eigen_band
print(f"induction heads: {', '.join(map(label, copiers))}")
print(f"99 % of heads with Gaussian weights have eigen in [{low:.2f}, {high:.2f}]")
pd.DataFrame(rows).round(3)

# %% [markdown]
# ## One loop, seen by the best head
#
# Rows are queries, columns keys: the first token, a few tokens before the loop, and two copies of it. An induction head
# looks one place *after* an earlier copy of its token, a duplicate-token head *at* it: two parallel diagonals.

# %%
number = int((loops.frame["period"].astype(int) - 12).abs().argmin())  # a loop that fits on the page
row = loops.frame.iloc[number]
start, onset, period = (int(row[name]) for name in ("start", "onset", "period"))
shown = [0, *range(max(1, start - 3), min(onset + period, int(loops.lengths[number])))]
_, cache = model.run_with_cache(torch.tensor([loops.row(number)]))
tokens = [model.tokenizer.decode([loops.row(number)[position]]) for position in shown]
finder, feeder_by_score = (scores.top(1, name)[0] for name in ("duplicate_token", "previous_token"))
maps = {unit: cache["pattern", unit[0]][0, unit[1]][shown][:, shown] for unit in (best, finder, feeder_by_score)}
attention_maps_figure(maps, tokens, name=model.name)

# %% [markdown]
# The same in the text: choose a head and point at a token to see where it looks.

# %%
mechrep.view(model, loops, [label(best), label(feeder_by_score)], row=number)

# %% [markdown]
# ## Why it looks there
#
# A score before the softmax is a sum over pairs of earlier parts: what each wrote into the query times what each wrote
# into the key. The *contrast* is a part's contribution to the key that is looked at, less its mean over the other keys
# of the same query: what the softmax decides on. Placebo: the same queries with wrong keys, seventeen places off. And
# do the same parts do it in the model's own loops?

# %%
n = 50
repeats = random_repeats(model, n=n, sequences=16, seed=1)
edges = mechrep.target_edges(repeats, bos_id=model.bos_id, per_text=10)
wrong_edges = [(text, query, 1 + (key - 1 + 17) % n) for text, query, key in edges]
why = mechrep.qk_attribution(model, repeats, best, edges)
why_wrong = mechrep.qk_attribution(model, repeats, best, wrong_edges)
few = loops.select(range(12))
in_loops = [
    (text, query, key)
    for text, query, key in mechrep.target_edges(few, bos_id=model.bos_id)
    if 0 <= query - int(few.frame["onset"].iloc[text]) < 10
]
why_loops = mechrep.qk_attribution(model, few, best, in_loops)
sides = {}
for side in ("key", "query"):
    for name, attribution in (("", why), (", wrong keys", why_wrong), (", loops", why_loops)):
        sides[side + name] = attribution.marginals(side).set_index("component")["contrast"]
pd.DataFrame(sides).sort_values("key", ascending=False).round(2)

# %% [markdown]
# In the textbook circuit the keys carry what an earlier head put there, which looks at the previous token. Which
# earlier head does the attribution name here, can the best head read that one by its weights (K-composition; `z` is in
# standard deviations of Gaussian heads), and does it look at the previous token?

# %%
earlier = {label(unit): unit for unit in itertools.product(range(best[0]), range(model.anatomy.n_heads))}
by_key = sides["key"].loc[list(earlier)].sort_values(ascending=False)
named = earlier[by_key.index[0]]
composition = mechrep.head_composition(model)
pd.DataFrame(
    {
        "contrast on the key side": by_key,
        "K-composition": {name: float(composition.of("K")[unit + best]) for name, unit in earlier.items()},
        "z": {name: float(composition.z_scores("K")[unit + best]) for name, unit in earlier.items()},
        "previous token": {name: float(scores.previous_token[unit]) for name, unit in earlier.items()},
    }
).sort_values("contrast on the key side", ascending=False).round(2)

# %% [markdown]
# ## Is the named cause a cause?
#
# An attribution is arithmetic; an ablation is a test. Each earlier head and MLP is ablated alone, everywhere, and the
# best head's attention on its targets is read again. `zero` removes what a head writes, `to_bos` its choice of where to
# look. It can also lower the attention by throwing the whole stream out of order, which is no explanation: therefore
# the last column says how much of it goes to the first position instead.


# %%
@torch.no_grad()
def attention(circuit=None, op="zero"):
    """Attention of the best head on its targets and on the first position, a mean per text."""
    seen = []
    site = model.anatomy.hook_name(mechrep.Site.PATTERN, best[0])
    hooks = [] if circuit is None else circuit.intervention(op, when="all").hooks(model)

    def keep(pattern, hook):  # noqa: ARG001 - TransformerLens passes its hook point
        seen.append(pattern[:, best[1]].clone())

    model.run_with_hooks(repeats.tokens, fwd_hooks=[*hooks, (site, keep)])
    text, query, key = torch.tensor(edges).T
    return [seen[0][text, query, where].view(len(repeats), -1).mean(1) for where in (key, torch.zeros_like(key))]


clean, clean_first = attention()
parts = {name: mechrep.Circuit(name, heads=[unit]) for name, unit in earlier.items()}
parts |= {f"MLP{layer}": mechrep.Circuit(f"MLP{layer}", layers=[("mlp", layer)]) for layer in range(best[0])}
rows = []
for name, circuit in parts.items():
    for op in ("zero", "to_bos") if circuit.heads else ("zero",):
        on_targets, on_first = attention(circuit, op)
        change = on_targets - clean
        measured = {"change": float(change.mean()), "standard error": float(change.std() / len(change) ** 0.5)}
        measured["change on first"] = float((on_first - clean_first).mean())
        rows.append({"ablated": name, "op": op} | measured)
causes = pd.DataFrame(rows).sort_values("change", ignore_index=True)
print(
    f"at baseline {label(best)} gives {clean.mean():.3f} of its attention to its targets, "
    f"{clean_first.mean():.3f} to the first position"
)
causes.round(3)

# %% [markdown]
# ## Heads and neurons, layer by layer
#
# The paper's question: do the layers with the most repetition neurons also hold the heads? Left the neurons, right the
# heads, both found in the same loops.

# %%
layer_profile_figure(neurons, natural, k_neurons=28)

# %% [markdown]
# A peak is worth something only if it stays where it is when the size of the set changes; heads at chance have no peak;
# and two peaks in a model of few layers often meet by chance. So only the heads above all copies of the model count
# here, by what they have above them, and the overlap of the two profiles (1: the same) is set beside its values for all
# orders in which the layers of one of them could stand.

# %%
rows = []
orders = list(itertools.permutations(range(model.anatomy.n_layers)))
for score in ("induction", "duplicate_token"):
    above = (natural.of(score) - null_loops[score].max()).clamp(min=0).sum(1)
    if not above.any():
        print(f"{score}: no head above the copies of the model, so no profile")
        continue
    of_heads = above / above.sum()
    for k in (neurons.published_k, 28, 98):
        counts = torch.tensor(neurons.layer_counts(k), dtype=torch.float)
        of_neurons = counts / counts.sum()
        overlaps = torch.stack([torch.minimum(of_neurons, of_heads[list(order)]).sum() for order in orders])
        peaks = {"peak of heads": int(of_heads.argmax()), "peak of neurons": int(of_neurons.argmax())}
        chance = float((overlaps >= overlaps[0] - 1e-6).float().mean())
        rows.append({"heads by": score, "neurons": k} | peaks | {"overlap": float(overlaps[0]), "p": chance})
profiles = pd.DataFrame(rows)
profiles.round(3)

# %% [markdown]
# ## What this notebook claims

# %%
assert float(scores.of("induction")[best]) > threshold["induction"], "the best induction head clears every null model"
assert natural.induction[best] > null_loops["induction"].max(), "and in the model's own loops, too"
assert threshold["induction"] < 0.3, "no head of any null model passes the threshold of induction_heads"
assert copying.functional[best] > copying.functional_band[1][best], "it says what it looks at, beyond swapped targets"
assert torch.allclose(why.by_key.sum(1), why.scores, atol=1e-2), "the parts add up to the model's own scores"
right, wrong = (attribution.pairs_contrast.sum() for attribution in (why, why_wrong))
assert right > 2 * wrong.abs(), "wrong keys are not explained as well"

print(
    f"{len(copiers)} of {scores.induction.numel()} heads look at what followed the earlier copy and say it; the best, "
    f"{label(best)}, has {scores.induction[best]:.2f} (best head of {len(null_best)} null models: "
    f"{threshold['induction']:.2f})."
)
duplicate = [label(unit) for unit in scores.above(threshold["duplicate_token"], "duplicate_token")]
print(
    f"Duplicate-token heads beyond the null models on random repeats: {', '.join(duplicate) or 'none'}; in loops: "
    f"{', '.join(label(unit) for unit in natural.above(null_loops['duplicate_token'].max())) or 'none'}, above the "
    f"published 0.5: {', '.join(map(label, natural.above())) or 'none'}."
)
of_heads = causes[causes["ablated"].isin(list(earlier)) & (causes["op"] == "to_bos")].set_index("ablated")["change"]
both_sides = (sides["key"] + sides["query"]).loc[list(earlier)]
print(
    f"On the key side the attribution names {label(named)} (previous token {scores.previous_token[named]:.2f}); "
    f"the head whose choice of where to look {label(best)} needs most is {of_heads.idxmin()} ({of_heads.min():+.2f}).",
    f"Over all {len(earlier)} earlier heads, rank correlation of attribution and loss: "
    f"{both_sides.rank().corr((-of_heads).rank()):.2f}.",
)
hardest = causes.iloc[0]
print(
    f"The ablation that costs most is {hardest['ablated']} ({hardest['op']}, {hardest['change']:+.2f}); "
    f"of the attention, {hardest['change on first']:+.2f} goes to the first position."
)
together = profiles["peak of neurons"] == profiles["peak of heads"]
print(
    f"The peaks coincide in {together.sum()} of {len(profiles)} comparisons; {profiles['p'].min():.0%} to "
    f"{profiles['p'].max():.0%} of the orders of the layers give as much overlap."
)
