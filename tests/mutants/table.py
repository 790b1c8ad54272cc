"""Faults that somebody could make in the code that measures, one at a time, and the fast tests that must see each.

A mutant is a fragment that stands exactly once in its file, and what stands in its place.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        what: the fault, in words.
        file: of the package.
        before: the fragment as it is.
        after: the fault.
        tests: files (or tests) of which one must fail.
    """

    what: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.file}: {self.what}"


_Faults = list[tuple[str, str, str]]
# File of the package, the tests that look at it, and faults: in words, the fragment as it is, and as it must not be.
_TABLE: list[tuple[str, str, _Faults]] = [
    # --- text -------------------------------------------------------------------------------------------------------
    ("text/cycles.py", "tests/text/test_cycles.py", [
        ("a loop begins one token late", "start=len(ids) - best_span, period",
         "start=len(ids) - best_span + 1, period"),
        ("ties go to the largest period", "and span > best_span:", "and span >= best_span:"),
        ("the prompt is not counted", "cycle.shifted(first), detector=cycle", "cycle, detector=cycle"),
        ("matches reach beyond what was compared", "min(right - i, z[i - left])", "z[i - left]"),
    ]),
    ("text/watch.py", "tests/text/test_watch.py tests/text/test_cycles.py", [
        ("the onset is that of the first copy", "return self.start + self.period", "return self.start"),
        ("texts are compared from the wrong end", "self._tokens[:length][::-1] == value",
         "self._tokens[:length] == value"),
        ("the window of the n-grams is one too short", "self._tokens) - self.r - 1)", "self._tokens) - self.r)"),
        ("three places at any distances", "and places[1] - places[0] == places[2] - places[1]:", "and True:"),
    ]),
    ("text/watch_rows.py", "tests/text/test_watch_rows.py", [
        ("the first copy does not count", ".clamp_min(_SPAN) - self.lags", ".clamp_min(_SPAN)"),
    ]),
    ("text/families.py", "tests/text/test_families.py", [
        ("a rotated loop is of another family", "ring = list(cycle) * (_GRAM // len(cycle) + 2)", "ring = list(cycle)"),
    ]),
    ("text/metrics.py", "tests/text/test_metrics.py", [
        ("the share of new n-grams", "    return (total - distinct) / total", "    return distinct / total"),
    ]),
    # --- measures ---------------------------------------------------------------------------------------------------
    ("measures/neurons.py", "tests/analyzers/test_neurons_by_hand.py tests/analyzers/test_neurons_oracle.py", [
        ("the printed and the released window exchanged", 'shift = 1 if window == "paper_form" else 0',
         'shift = 0 if window == "paper_form" else 1'),
        ("the window begins at the onset, not before it", "torch.cat([(onset - 1)[:, None] + offsets",
         "torch.cat([onset[:, None] + offsets"),
        ("no correction of the variance", "error = (spread / (n - 1)).sqrt()", "error = (spread / n).sqrt()"),
        ("the sign of the rise", "delta = repetition - normal", "delta = normal - repetition"),
        ("the effect size's variance is a sum", "((variances[0] + variances[1]) / 2).sqrt()",
         "(variances[0] + variances[1]).sqrt()"),
        ("the normal window holds the first copy", 'normal = is_clean if window == "clean" else',
         'normal = published if window == "clean" else'),
    ]),
    ("measures/head_targets.py", "tests/measures/test_heads_by_hand.py", [
        ("induction looks at the copy itself", "torch.nn.functional.pad(mask[..., :-1], (1, 0))", "mask"),
        ("BOS is a previous token", "position >= 1 + has_bos.long()[:, None]", "position >= 1"),
        ("the previous token of the next query", "dim1=-2, dim2=-1), (1, 0))", "dim1=-2, dim2=-1), (0, 1))"),
        ("the newest copy is the oldest", "mask.flip(-1).cumsum(-1).flip(-1) == 1", "mask.cumsum(-1) == 1"),
    ]),
    ("measures/head_scores.py", "tests/measures/test_heads_by_hand.py tests/measures/test_heads_result.py", [
        ("a perfect head is not 1", "return (self.scores - chance) / (1 - chance)", "return self.scores - chance"),
        ("errors without the correction", "errors = (spread * (n / (n - 1))[wide])",
         "errors = (spread * (n / n)[wide])"),
        ("queries that do not count count",
         "attention = on_targets.masked_fill(~targets.valid[:, :, None], 0.0).sum(-1)",
         "attention = on_targets.sum(-1)"),
        ("texts weigh alike", 'if self.rules.average == "query":', 'if self.rules.average == "text":'),
    ]),
    ("measures/head_copying.py", "tests/measures/test_head_copying.py tests/measures/test_head_suppression.py", [
        ("the sign of suppression", '"functional": -state["correlation"]', '"functional": state["correlation"]'),
        ("the token behind the oldest copy", 'earlier_copies(tokens, has_bos, "newest"))',
         'earlier_copies(tokens, has_bos, "oldest"))'),
        ("the null's variance", "/ max(n - 1, 1)", "/ max(n, 1)"),
    ]),
    ("measures/attention_sinks.py", "tests/measures/test_attention_sinks.py", [
        ("the first query counts in the mean", '"alpha_sum": sums.to_first / later,',
         '"alpha_sum": sums.to_first / lengths[:, None],'),
        ("a token's attention to itself", "below = pattern.tril(first - 1)", "below = pattern.tril(first)"),
        ("padding attends", "real = (queries < lengths[:, None])[:, :, None] & inside[:, None]",
         "real = (queries >= 0)[None, :, None] & inside[:, None]"),
    ]),
    ("measures/sink_norms.py", "tests/measures/test_sink_norms.py", [
        ("the ratio upside down", "return self.first_norm / self.other_norm",
         "return self.other_norm / self.first_norm"),
        ("the spread about zero", 'state["other_squares"] / others - mean.square()', 'state["other_squares"] / others'),
    ]),
    ("measures/sink_stages.py", "tests/measures/test_sink_stages.py", [
        ("a fall does not end a stage", "rise = min(rise, e[peak] - min(e[peak:after]))", "pass"),
        ("a stage stands until all of it is gone", "e[last + 1] > e[peak] - abs(rise) / 2",
         "e[last + 1] > e[peak] - abs(rise)"),
    ]),
    ("measures/sink_neurons.py", "tests/measures/test_sink_neurons.py", [
        ("output weights left out", "contribution=(sums[0] * stream.neuron_lengths(layer).cpu()).float()",
         "contribution=sums[0].float()"),
        ("the last position of every text", "torch.zeros_like(last), last))", "last, last))"),
    ]),
    ("measures/token_information.py", "tests/analyzers/test_token_information.py", [
        ("sinks stay among the keys", "visible = rows.keys & ~sinks", "visible = rows.keys.expand_as(sinks)"),
        ("the share of all keys, seen or not", "/ counts.clamp_min(1)[..., None]",
         "/ counts.amax(-1, keepdim=True)[..., None]"),
    ]),
    ("measures/token_facts.py", "tests/analyzers/test_token_information_models.py", [
        ("a copy has its own surprisal", "surprisal = known.gather(1, source)", "surprisal = known"),
    ]),
    ("measures/text_kind_design.py", "tests/measures/test_text_kind_design.py", [
        ("ranks begin at one", "np.arange(1, n + 1) - n - 1", "np.arange(1, n + 1) - n"),
        ("ties in swaps count once", 'rankdata(-sizes, method="max", axis=0)',
         'rankdata(-sizes, method="min", axis=0)'),
    ]),
    ("measures/change_points.py", "tests/measures/test_change_points.py", [
        ("steps next to an end weigh as much", "(before * (total - before) / total) * (second - first) ** 2",
         "(second - first) ** 2"),
    ]),
    ("measures/first_token_detectors.py", "tests/measures/test_first_token.py", [
        ("pairs of a token with itself", "(n * (len(first) - n))", "(n * len(first))"),
        ("neurons are chosen where they are tested", "chosen = areas(seen.neurons[selection], first[selection])",
         "chosen = areas(seen.neurons[test], first[test])"),
    ]),
    # --- verdicts ---------------------------------------------------------------------------------------------------
    ("ablation/effects.py", "tests/ablation/test_effects.py tests/ablation/test_verdict.py", [
        ("the set under test is no draw", "float((1 + (others >= own - tolerance).sum()) / (len(known) + 1))",
         "float((others >= own - tolerance).sum() / len(known))"),
        ("one-sided without a direction", "own, others = (abs(effect), np.abs(known)) if direction == 0",
         "own, others = (effect, known) if direction == 0"),
        ("any size counts", '& (signed >= table["floor"]) & apart', "& apart"),
        ("an effect the wrong way counts", 'table["direction"] * table["effect"])', 'table["effect"].abs())'),
        ("one answer is enough", 'table[["p", "p_units"]].max(axis=1)', 'table[["p", "p_units"]].min(axis=1)'),
        ("many tests, no correction",
         'false_discovery_control(table.loc[tested, "p"].to_numpy(float), method="bh")',
         'table.loc[tested, "p"].to_numpy(float)'),
        ("texts of a family are independent", "n=(known @ np.eye(len(names))[members] > 0).sum(1)", "n=known.sum(1)"),
    ]),
    ("stats.py", "tests/test_stats.py mechrep/stats.py", [
        ("intervals of few units are too narrow", "norm.cdf(-((n / (n - 1)) ** 0.5) * student.isf",
         "norm.cdf(-1.0 * norm.isf"),
        ("units are drawn without their families", "np.eye(int(numbers.max(initial=-1)) + 1)[numbers]",
         "np.eye(len(numbers))"),
        ("the observed signs are no draw", "counts = found.sum(1) + (0 if exact else 1)", "counts = found.sum(1)"),
    ]),
    ("ablation/controls.py", "tests/ablation/test_controls.py", [
        ("a control is drawn from the set", "taken, every = {*own, *exclude}, [", "taken, every = {*exclude}, ["),
        ("a control holds what was excluded", "taken, every = {*own, *exclude}, [", "taken, every = {*own}, ["),
        ("a control of any layers", '"layer_matched": Control(_layer_matched', '"layer_matched": Control(_random'),
    ]),
    ("ablation/texts.py", "tests/ablation/test_texts.py", [
        ("a family of loops is split", "texts.split(share, seed=seed, clusters=families)",
         "texts.split(share, seed=seed)"),
    ]),
    ("ablation/study.py", "tests/ablation/test_study.py", [
        ("circuits that are named are drawn", "exclude = {unit for one in barred for unit in getattr(one, of)}",
         "exclude = set()"),
    ]),
    ("ablation/outcomes.py", "tests/ablation/test_outcomes.py tests/ablation/test_study_planted.py", [
        ("every repetition is the first", "begin = copy * len(loop.cycle)", "begin = 0"),
        ("the token that nobody can foresee counts", "after = 0 if self.brief else self.first_copy + 1",
         "after = 0 if self.brief else self.first_copy"),
        ("loops are edited one token late",
         "ScoredText(tokens, loop.onset, 0 if when == \"all\" else loop.onset - 1, number)",
         "ScoredText(tokens, loop.onset, 0 if when == \"all\" else loop.onset, number)"),
        ("a loop that was left has never been left", "return position - self.onset", "return None"),
    ]),
    ("ablation/score.py", "tests/ablation/test_score_branches.py tests/studies/test_loss.py", [
        ("losses are edited one token late", "half, half - 1, i)", "half, half, i)"),
        ("edits that add are overlooked", "((factor != 1) | (offset != 0)).any(-1)", "(factor != 1).any(-1)"),
    ]),
    ("ablation/norm_profiles.py", "mechrep/ablation/norm_profiles.py tests/ablation/test_norm_profiles.py", [
        ("what is left, not what is gone", "1 - excess[1:] / excess[0], torch.nan",
         "excess[1:] / excess[0], torch.nan"),
        ("padding has a norm", "norms.masked_fill(~inside, 0.0).sum(1)", "norms[:, 1:].sum(1)"),
    ]),
    # --- interventions and generation -------------------------------------------------------------------------------
    ("interventions/ops.py", "tests/interventions/test_neurons.py tests/interventions/test_heads.py", [
        ("units of other layers", "factor[numbers[here]], offset[numbers[here]] = self.op.factor, values[here]",
         "factor[numbers], offset[numbers] = self.op.factor, values"),
        ("all texts get the same sample", "self.seed * 1_000_003 + text", "self.seed * 1_000_003"),
    ]),
    ("interventions/hooks.py", "tests/interventions/test_neurons.py tests/interventions/test_heads.py", [
        ("edits begin one token late", "[None] >= starts[:, None]", "[None] > starts[:, None]"),
        ("what is added passes the up-projection", 'plus * captured.pop("up") + bias', "plus + bias"),
        ("attention moves to the last key", "edited[..., 0] += offset.to(rows)", "edited[..., -1] += offset.to(rows)"),
    ]),
    ("interventions/apply.py",
         "tests/interventions/test_sink_patch.py tests/generation/test_heads.py tests/interventions/test_applied.py", [
        ("neurons are held at the level of BOS", "bos = [int(bos_id is not None and token == bos_id)",
         "bos = [int(bos_id is not None and token == -1)"),
        ("edits everywhere", "torch.where(self._mask.to(activation.device)[..., None], edited, activation)", "edited"),
        ("every first token is the first text's", "offset * first[self._first.to(first.device)]",
         "offset * first[self._first.to(first.device) * 0]"),
    ]),
    ("generation/text_kinds.py", "tests/generation/test_text_kinds.py", [
        ("one copy less is shown", "frame[\"start\"] + frame[\"shown\"] * frame[\"period\"]",
         "frame[\"start\"] + (frame[\"shown\"] - 1) * frame[\"period\"]"),
        ("BOS is shown again", "copy = prompt[len(begin) :]", "copy = prompt"),
        ("texts that loop are shown as new ones", 'if loops == (builder == "cycle")]',
         'if loops != (builder == "cycle")]'),
    ]),
    ("generation/slot_cache.py", "tests/generation/test_slots.py tests/generation/test_engine.py", [
        ("rows see what is left of another", "(columns[None] >= self.starts[:, None]).long()",
         "(columns[None] >= self.starts.min()).expand(len(self.starts), -1).long()"),
        ("a prefix ends one column early", "here = slice(self.column - length, self.column)",
         "here = slice(self.column - length - 1, self.column - 1)"),
    ]),
    ("generation/loops.py", "tests/generation/test_loops.py", [
        ("a loop in the prompt counts", 'late = (texts.frame["onset"] > preset.min_prefix)',
         'late = (texts.frame["onset"] > 0)'),
    ]),
    # --- models and cache -------------------------------------------------------------------------------------------
    ("models/attention.py", "tests/models/test_attention_rows.py tests/models/test_patterns.py", [
        ("a cap that only squashes", "torch.tanh(scores / softcap) * softcap", "torch.tanh(scores / softcap)"),
        ("groups of heads in the wrong order",
         "grouped = query[:, :, first:last].unflatten(1, (key.shape[1], heads // key.shape[1]))",
         "grouped = query[:, :, first:last].unflatten(1, (heads // key.shape[1], key.shape[1])).transpose(1, 2)"),
        ("grouped keys are not repeated head by head", "part.repeat_interleave(heads // key.shape[1], 1)",
         "part.repeat(1, heads // key.shape[1], 1, 1)"),
        ("the usual scale, whatever the family says", "scores * (width**-0.5 if scaling is None else scaling)",
         "scores * width**-0.5"),
        ("queries see the next token", "device=scores.device).tril(first)", "device=scores.device).tril(first + 1)"),
    ]),
    ("models/stream.py", "tests/models/test_stream.py", [
        ("LayerNorm does not centre", "return scaled - scaled.mean(-2, keepdim=True) if self.centred else scaled",
         "return scaled"),
        ("a norm's scale is left out", "self.multiplier(layer, writer) / behind.scale(output.to(self.model.dtype))",
         "self.multiplier(layer, writer) / behind.scale(output.to(self.model.dtype)).mean()"),
    ]),
    ("models/experts.py", "tests/interventions/test_experts.py tests/families/test_families.py", [
        ("all experts weigh alike", "made * weights[rows, expert, None].to(made)", "made"),
    ]),
    ("models/nulls.py", "tests/models/test_nulls.py", [
        ("null models of another scale", "_normal(numbers).mul_(spread)", "_normal(numbers)"),
    ]),
    ("cache/corpus_cache.py", "tests/cache/test_get.py tests/cache/test_run.py", [
        ("one token of padding", "[None] < batch.lengths[:, None].to(activation.device)",
         "[None] <= batch.lengths[:, None].to(activation.device)"),
        ("an intervention is read without", "applied(self.model, self.intervention, batch.tokens",
         "applied(self.model, None, batch.tokens"),
    ]),
    # --- studies ----------------------------------------------------------------------------------------------------
    ("studies/sink_cause.py", "tests/studies/test_find_sink.py", [
        ("neurons count by the peak alone", "return excess_removed(ratios)[:, stage.peak :]",
         "return excess_removed(ratios)[:, stage.peak : stage.peak + 1]"),
    ]),
    ("studies/find_sink.py", "tests/studies/test_find_sink.py", [
        ("without BOS is with BOS", "rows = [corpus.row(text)[1:] if bos else", "rows = [corpus.row(text) if bos else"),
    ]),
    ("studies/kinds_of_heads.py", "tests/studies/test_head_study.py mechrep/studies/kinds_of_heads.py", [
        ("a small difference makes a kind", '(kinds["verdict"] == SUPPORTED) & kinds["clear"]]',
         '(kinds["verdict"] == SUPPORTED)]'),
    ]),
    ("studies/heads.py", "tests/studies/test_head_study.py", [
        ("previous-token heads above the induction heads", "if unit[0] < highest and unit not in induction]",
         "if unit[0] > highest and unit not in induction]"),
    ]),
    ("studies/first_layer.py", "tests/studies/test_first_layer_study.py", [
        ("what is lost is gained", '"lost": -table["effect"]', '"lost": table["effect"]'),
    ]),
    ("studies/text_kind_effects.py", "tests/studies/test_text_kind_effects.py", [
        ("heads and layers exchanged",
         "order = [columns[layer, head] for layer in range(shape[0]) for head in range(shape[1])]",
         "order = [columns[layer, head] for head in range(shape[1]) for layer in range(shape[0])]"),
    ]),
]  # fmt: skip

MUTANTS = [
    Mutant(what, f"mechrep/{file}", before, after, tuple(tests.split()))
    for file, tests, faults in _TABLE for what, before, after in faults
]  # fmt: skip
