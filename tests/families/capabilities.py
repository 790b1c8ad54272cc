"""What mechrep can do with a model, each held against an oracle: right, or an error of mechrep's that says why not.

A capability gets a :class:`Case` and returns a word on how much of it is there ("" for all).  It raises
:class:`Difference` where a number differs; errors of mechrep's pass through.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import mechrep
from mechrep.errors import MechrepError
from mechrep.interventions.apply import logits as logits_under
from mechrep.models.anatomy import Site
from mechrep.models.attention import read_attention_rows
from tests.families import oracles
from tests.families.oracles import Seen, gap
from tests.families.zoo import D_MODEL, D_VOCAB, N_HEADS, Family, build, text

TOLERANCE = 2e-4  # of the largest number, in float32
LENGTHS = (24, 9, 40)  # past every window, and the longest past every switch


class Difference(Exception):
    """mechrep said something else than the model does, without a word."""


class Case:
    """One family: its model in mechrep, a plain copy beside it, and texts of different lengths."""

    def __init__(self, name: str, family: Family) -> None:
        self.name, self.family = name, family
        self.module = build(family)
        self.plain = oracles.plain(family, self.module)

    @functools.cached_property
    def model(self) -> Any:
        """The model, loaded and checked."""
        return mechrep.load_model(self.module)

    @functools.cached_property
    def texts(self) -> list[list[int]]:
        """Beginning with BOS, as long as the model reads."""
        longest = self.model.anatomy.n_ctx
        return [[0, *text(min(length, longest) - 1, seed=seed)] for seed, length in enumerate(LENGTHS)]

    @functools.cached_property
    def seen(self) -> list[Seen]:
        """What plain hooks see of every text alone."""
        return [oracles.look(self.family, self.plain, ids) for ids in self.texts]

    @functools.cached_property
    def corpus(self) -> Any:
        """All texts, which mechrep reads in one padded batch."""
        return mechrep.Corpus.from_tokens(self.texts, model=self.model)

    def layers(self, site: Site) -> tuple[int, ...]:
        """The layers in which mechrep says that a site is."""
        return (
            tuple(self.model.anatomy.layers_with(site))
            if hasattr(self.model.anatomy, "layers_with")
            else tuple(range(self.family.n_layers))
        )


def same(what: str, found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Refuse a number that differs."""
    if found.shape != expected.shape:
        raise Difference(f"{what}: shape {tuple(found.shape)} and not {tuple(expected.shape)}")
    off = gap(found, expected)
    if not off <= tolerance:
        raise Difference(f"{what}: off by {off:.2g} of the largest number")


def only(layers: Iterable[int], family: Family) -> str:
    """In words: which layers have it, if not all do."""
    numbers = sorted(layers)
    return "" if len(numbers) == family.n_layers else f"layers {', '.join(map(str, numbers))}"


Expected = Callable[[Seen, int], dict[int, Tensor]]  # of one text and its number, by layer


def compare(
    case: Case, site: Site, expected: Expected, *, fit: Callable[[Tensor, Tensor], Tensor] | None = None
) -> str:
    """Read a site in all layers that have it, from a padded batch; other layers must be refused."""
    wanted = [expected(seen, number) for number, seen in enumerate(case.seen)]
    stated = case.layers(site)
    if stated != tuple(sorted(wanted[0])):
        beyond = sorted(set(stated) - set(wanted[0]))
        if not wanted[0] or beyond:
            _must_refuse(case, site, beyond or range(case.family.n_layers))
        stated = tuple(layer for layer in stated if layer in wanted[0])
    if not stated:
        mechrep.CorpusCache(case.model, case.corpus).get(site, layers=[min(wanted[0], default=0)])
        raise Difference(f"{site.value} is given where the anatomy says that there is none")
    values = mechrep.CorpusCache(case.model, case.corpus).get(site, layers=list(stated))
    for place, layer in enumerate(stated):
        for number, ids in enumerate(case.texts):
            found, right = values[place, number], wanted[number][layer]
            found, rest = _cut(found, site, len(ids))
            if bool(rest.any()):
                raise Difference(f"{site.value} of layer {layer} is not zero behind the end of a text")
            found = found if fit is None else fit(found, right)
            same(f"{site.value} of layer {layer}, text {number}", found, right)
    return only(stated, case.family)


def _cut(values: Tensor, site: Site, length: int) -> tuple[Tensor, Tensor]:
    if site is Site.PATTERN:
        return values[:, :length, :length], values[:, length:]
    return values[:length], values[length:]


def _must_refuse(case: Case, site: Site, layers: Iterable[int]) -> None:
    for layer in layers:
        try:
            mechrep.CorpusCache(case.model, case.corpus).get(site, layers=[layer])
        except MechrepError:
            continue
        raise Difference(f"{site.value} of layer {layer}, where the model has nothing of the kind, is given as numbers")


def _must_add_up(case: Case) -> None:
    """What a part adds to the residual stream means nothing where norms stand in the stream."""
    if case.family.rewritten:
        raise Difference("parts are said to add to a residual stream that is rewritten by norms")


def _must_be_seen(case: Case) -> None:
    """Patterns of another computation than the model's are nobody's."""
    if case.family.blind:
        raise Difference("patterns are given that are not those of the model's own attention")


# -- reading --------------------------------------------------------------------------------------------------


def loading(case: Case) -> str:
    """``load_model`` with its contract; the anatomy says what the model is."""
    anatomy, family = case.model.anatomy, case.family
    facts = {
        "n_layers": (anatomy.n_layers, family.n_layers),
        "n_heads": (anatomy.n_heads, N_HEADS),
        "n_kv_heads": (anatomy.n_kv_heads, family.n_kv),
        "d_model": (anatomy.d_model, D_MODEL),
        "d_vocab": (anatomy.d_vocab, D_VOCAB),
        "parallel": (anatomy.parallel, family.middle is None),
    }
    wrong = [f"{name} {found} and not {right}" for name, (found, right) in facts.items() if found != right]
    if wrong:
        raise Difference("anatomy: " + ", ".join(wrong))
    return ""


def all_logits(case: Case) -> str:
    """Logits of a padded batch are those of each text alone."""
    found = _logits(case)
    for number, ids in enumerate(case.texts):
        same(f"logits of text {number}", found[number, : len(ids)], oracles.logits(case.plain, ids))
    return ""


def residual_stream(case: Case) -> str:
    """``RESID_PRE``, ``RESID_POST``, and ``RESID_MID`` where attention and MLP follow each other."""
    compare(case, Site.RESID_PRE, lambda seen, _: seen.before)
    compare(case, Site.RESID_POST, lambda seen, _: seen.after)
    if case.model.anatomy.has(Site.RESID_MID) and not case.family.rewritten:
        compare(case, Site.RESID_MID, lambda seen, _: seen.middle)
    return ""


def patterns(case: Case) -> str:
    """``PATTERN``: who looks at whom."""
    return compare(case, Site.PATTERN, lambda seen, _: seen.pattern)


def pattern_rows(case: Case) -> str:
    """The same for long texts, some rows at a time."""
    layers = case.family.with_attention
    wide = case.corpus.tokens.shape[1]
    found = {layer: torch.zeros(len(case.texts), N_HEADS, wide, wide) for layer in layers}

    def keep(rows: Tensor, layer: int, first: int) -> None:
        found[layer][:, :, first : first + rows.shape[2], : rows.shape[3]] = rows

    with case.model.each_alone(case.corpus.lengths):
        read_attention_rows(case.model, case.corpus.tokens, keep, layers=list(layers), queries=7)
    _must_be_seen(case)
    for layer in layers:
        for number, seen in enumerate(case.seen):
            size = len(case.texts[number])
            same(f"rows of layer {layer}, text {number}", found[layer][number, :, :size, :size], seen.pattern[layer])
    return only(layers, case.family)


def head_outputs(case: Case) -> str:
    """``Z``: what every head reads."""
    return compare(case, Site.Z, lambda seen, _: seen.z)


def _neurons(case: Case, what: str) -> Expected:
    """Neurons of dense layers; of experts side by side, those of a shared one last."""

    def of(seen: Seen, number: int) -> dict[int, Tensor]:
        wanted = dict(getattr(seen, what))
        for layer in case.family.expert_layers:
            routed = oracles.experts(case.family, case.plain, case.texts[number], layer)
            parts = [getattr(routed, what).flatten(1)]
            if case.family.shared is not None:
                parts.append(getattr(oracles.shared_expert(case.family, case.plain, case.texts[number], layer), what))
            wanted[layer] = torch.cat(parts, -1)
        return wanted

    return of


def _narrow(found: Tensor, right: Tensor) -> Tensor:
    """Layers with fewer neurons than the widest are filled up with zeros."""
    rest = found[..., right.shape[-1] :]
    return found[..., : right.shape[-1]] if not bool(rest.any()) else found


def neurons(case: Case) -> str:
    """``GATE_ACT``: the neuron activation of the literature; of experts where a token is routed to them."""
    return compare(case, Site.GATE_ACT, _neurons(case, "act"), fit=_narrow)


def products(case: Case) -> str:
    """``MLP_POST``: what is projected down."""
    return compare(case, Site.MLP_POST, _neurons(case, "product"), fit=_narrow)


def writes(case: Case) -> str:
    """``ATTN_OUT`` and ``MLP_OUT``: what really reaches the residual stream, behind norms and factors."""
    said = compare(case, Site.MLP_OUT, lambda seen, _: seen.mlp)
    return compare(case, Site.ATTN_OUT, _attention_writes(case)) or said


def _attention_writes(case: Case) -> Expected:
    """In a layer without softmax attention the other mixer writes in its place."""

    def of(seen: Seen, _: int) -> dict[int, Tensor]:
        if case.family.beside is not None or not seen.middle:
            return seen.attention
        return {layer: seen.middle[layer] - seen.before[layer] for layer in seen.middle}

    return of


def norms(case: Case) -> str:
    """``SinkNorms``: norms of the residual stream at the first position and elsewhere."""
    found = mechrep.CorpusCache(case.model, case.corpus).run(mechrep.SinkNorms())
    for layer in range(case.family.n_layers):
        first = torch.stack([seen.before[layer][0].norm() for seen in case.seen]).mean()
        others = torch.cat([seen.after[layer][1:].norm(dim=-1) for seen in case.seen]).mean()
        same(f"first norm {layer}", found.first_norm[layer], first)
        same(f"other norm {layer}", found.other_norm[layer + 1], others)
    return ""


def attention_sinks(case: Case) -> str:
    """``AttentionSinks``: attention to the first position; what a learned sink takes is not at any position."""
    layers = case.family.with_attention
    found = mechrep.CorpusCache(case.model, case.corpus).run(mechrep.AttentionSinks()).alpha
    _must_be_seen(case)
    for layer in layers:
        alpha = torch.stack([seen.pattern[layer][:, 1:, 0].mean(-1) for seen in case.seen]).mean(0)
        same(f"attention to the first position, layer {layer}", found[layer], alpha)
    rest = [float(found[layer].abs().nansum()) for layer in range(case.family.n_layers) if layer not in layers]
    if any(rest):
        raise Difference("attention to the first position in layers without attention")
    return only(layers, case.family)


def sink_neurons(case: Case) -> str:
    """``sink_neurons``: the length of what neurons add to the residual stream at the first position."""
    from mechrep.measures.sink_neurons import sink_neurons as score

    layer = case.family.dense[-1] if case.family.dense else 0
    found = score(case.model, case.corpus, layer).contribution[0]
    _must_add_up(case)
    if not case.family.dense:
        return _expert_lengths(case, found, layer)
    added = [oracles.neurons(case.family, case.plain, seen, layer)[:, 0].norm(dim=-1) for seen in case.seen]
    right = torch.stack(added).mean(0)
    same("what neurons add at the first position", _narrow(found.nan_to_num(0.0), right), right, 1e-3)
    return only(case.family.dense, case.family)


def _expert_lengths(case: Case, found: Tensor, layer: int) -> str:
    """Neurons of routed experts add with their routing weight, behind norm and factor."""
    family, added = case.family, []
    for ids in case.texts:
        one = oracles.experts(family, case.plain, ids, layer)
        rows = oracles.expert_rows(family, case.plain, layer)  # [expert neuron d_model]
        added.append((one.product[0] * one.weight[0][:, None]).abs() * rows.norm(dim=-1) * oracles.mlp_scale(family))
    right = torch.stack(added).mean(0).flatten()
    same("what neurons of routed experts add at the first position", _narrow(found, right)[: len(right)], right, 1e-3)
    return "routed experts"


def routing(case: Case) -> str:
    """``ROUTER``: the weight of each expert for each token."""
    if not hasattr(Site, "ROUTER"):
        raise mechrep.errors.InputError("this version", "a site of the router", "wait for it")

    def weights(_: Seen, number: int) -> dict[int, Tensor]:
        ids, family = case.texts[number], case.family
        return {layer: oracles.experts(family, case.plain, ids, layer).weight for layer in family.expert_layers}

    site: Any = Site.ROUTER  # pyright: ignore
    if not case.family.expert_layers:
        mechrep.CorpusCache(case.model, case.corpus).get(site, layers=[0])
        raise Difference("a router in a dense model")
    return compare(case, site, weights)


# -- edits ----------------------------------------------------------------------------------------------------


def _logits(case: Case, intervention: Any = None) -> Tensor:
    """Of the padded batch."""
    return logits_under(case.model, case.corpus.tokens, intervention, lengths=case.corpus.lengths)


def _changed(case: Case, intervention: Any, oracle: Callable[[], Any], what: str) -> None:
    """Logits of the padded batch under an intervention are those of every text alone under plain hooks."""
    found = _logits(case, intervention)
    for number, ids in enumerate(case.texts):
        before = oracles.logits(case.plain, ids)
        with oracle():
            right = oracles.logits(case.plain, ids)
        if not bool((right - before).abs().max() > 1e-4):
            raise AssertionError(f"{what} changes nothing on text {number}: this would prove nothing")
        same(f"logits with {what}, text {number}", found[number, : len(ids)], right)
    same(
        f"logits without {what} afterwards",
        _logits(case)[0, : len(case.texts[0])],
        oracles.logits(case.plain, case.texts[0]),
    )


def _some_neurons(family: Family) -> list[tuple[int, int]]:
    return sorted({(family.dense[0], 5), (family.dense[0], 11), (family.dense[-1], 17)})


def _some_heads(family: Family) -> list[tuple[int, int]]:
    return sorted({(family.with_attention[0], 1), (family.with_attention[0], 2), (family.with_attention[-1], 3)})


def neurons_off(case: Case) -> str:
    """Neurons at zero, and with 1 added, at the activation."""
    family = case.family
    if family.dense:
        units = _some_neurons(family)
        off = mechrep.Neurons(units, "zero", when="all")
        _changed(case, off, lambda: oracles.change_neurons(family, case.plain, units), "neurons at zero")
        if family.act is not None:
            more = mechrep.Neurons(units, "add", when="all")
            change = functools.partial(oracles.change_neurons, factor=1.0, offset=1.0)
            _changed(case, more, lambda: change(family, case.plain, units), "1 added to neurons")
    if family.expert_layers:
        _experts_off(case)
    return ""


def _experts_off(case: Case) -> None:
    """One neuron of every expert, and all neurons of one expert, write nothing."""
    family, layer = case.family, case.family.expert_layers[-1]
    weights: Any = family.part(case.plain, layer, family.experts).down_proj
    count, width = weights.shape[0], weights.shape[1] if weights.shape[2] == D_MODEL else weights.shape[2]
    for what, pairs in {
        "a neuron of every expert at zero": [(expert, 3) for expert in range(count)],
        "an expert at zero": [(1, neuron) for neuron in range(width)],
    }.items():
        twin = oracles.without_expert_neurons(family, case.plain, [(layer, *pair) for pair in pairs])
        units = [(layer, expert * width + neuron) for expert, neuron in pairs]
        found = _logits(case, mechrep.Neurons(units, "zero", when="all"))
        for number, ids in enumerate(case.texts):
            same(f"logits with {what}, text {number}", found[number, : len(ids)], oracles.logits(twin, ids))


def heads_off(case: Case) -> str:
    """Heads that read nothing."""
    units = _some_heads(case.family)
    off = mechrep.Heads(units, "zero", when="all")
    _changed(case, off, lambda: oracles.zero_heads(case.family, case.plain, units), "heads at zero")
    return ""


def heads_to_first(case: Case) -> str:
    """Heads that look at the first position alone."""
    units = _some_heads(case.family)
    moved = mechrep.Heads(units, "to_bos", when="all")
    oracle = functools.partial(oracles.heads_to_first, case.family, case.plain, units)
    _changed(case, moved, oracle, "heads at the first position")
    return ""


_HELD = (3, 8, 20)


def sink_patch(case: Case) -> str:
    """Up-projections of neurons held at the level of the first token after BOS."""
    layer = case.family.dense[0] if case.family.dense else 0
    patch = mechrep.SinkPatch(layer, _HELD)
    if not case.family.dense:
        _logits(case, patch)
        raise Difference("a sink patch on experts, which have no level of a text's own")
    oracle = functools.partial(oracles.holding_up, case.family, case.plain, layer, _HELD, 1)
    _changed(case, patch, oracle, "held neurons")
    return ""


def patched_model(case: Case) -> str:
    """The same patch under transformers' own ``generate``, with left padding and a cache."""
    layer = case.family.dense[0] if case.family.dense else 0
    prompts, new = [case.texts[1], case.texts[1][:5]], 6
    width = max(map(len, prompts))
    ids = torch.tensor([[2] * (width - len(row)) + row for row in prompts])
    with _nothing_left(case), mechrep.PatchedModel(case.model, mechrep.SinkPatch(layer, _HELD)) as patched:
        written = patched.generate(
            ids,
            attention_mask=(ids != 2).long(),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=2,
        )
    for row, prompt in zip(written.tolist(), prompts, strict=True):
        with oracles.holding_up(case.family, case.plain, layer, _HELD, 1):
            right = oracles.continuation(case.plain, prompt, new)
        if row[width - len(prompt) :] != right:
            raise Difference(f"patched generation: {row[width:]} and not {right[len(prompt) :]}")
    return ""


@contextmanager
def _nothing_left(case: Case) -> Iterator[None]:
    """What is refused leaves the model as it was."""
    before = sum(_hooks(module) for module in case.module.modules())
    try:
        yield
    finally:
        if (after := sum(_hooks(module) for module in case.module.modules())) != before:
            raise Difference(f"{after - before} hooks are left in the model")


def _hooks(module: Any) -> int:
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


# -- writing --------------------------------------------------------------------------------------------------

_NEW = 10  # from 24 on past every switch


def _prompts(case: Case) -> Any:
    room = case.model.anatomy.n_ctx - _NEW
    return [ids[: min(len(ids), room, LENGTHS[0])] for ids in case.texts]


def _written(case: Case, prompts: Sequence[list[int]], **options: Any) -> list[list[int]]:
    corpus = mechrep.Corpus.from_tokens(prompts, model=case.model)
    decoding = mechrep.Decoding(stop_when=None)
    longer = mechrep.generate(case.model, corpus, max_new_tokens=_NEW, decoding=decoding, progress=False, **options)
    return [longer.row(number) for number in range(len(prompts))]


def _same_text(what: str, found: list[int], right: list[int]) -> None:
    if found != right:
        first = next((i for i, pair in enumerate(zip(found, right, strict=False)) if pair[0] != pair[1]), len(right))
        raise Difference(f"{what}: other tokens from position {first} of {len(right)} on")


def writing(case: Case) -> str:
    """Greedy, past windows and switches, as one forward pass per token writes it."""
    prompts = _prompts(case)
    for prompt, found in zip(prompts, _written(case, prompts), strict=True):
        right = oracles.continuation(case.plain, prompt, _NEW)
        _same_text("greedy text", found, right)
        _same_text("greedy text, alone", *_written(case, [prompt]), right)
    return ""


def writing_changed(case: Case) -> str:
    """The same while neurons and heads are off from the prompt's last position on, another set in every row."""
    family, prompts = case.family, _prompts(case)
    heads = _some_heads(family)
    edits: list[Any] = [None, mechrep.Heads(heads, "zero", when="last"), mechrep.Heads(heads, "to_bos", when="last")]
    if family.dense:
        edits[0] = mechrep.Neurons(_some_neurons(family), "zero", when="last")
    for number, (prompt, found) in enumerate(zip(prompts, _written(case, prompts, interventions=edits), strict=True)):
        start = len(prompt) - 1
        with (
            oracles.change_neurons(
                family, case.plain, _some_neurons(family) if family.dense and not number else [], start=start
            ),
            oracles.zero_heads(family, case.plain, heads if number == 1 else [], start=start),
            oracles.heads_to_first(family, case.plain, heads if number == 2 else [], start=start),
        ):
            right = oracles.continuation(case.plain, prompt, _NEW)
        _same_text(f"edited text {number}", found, right)
    return ""


# -- weights --------------------------------------------------------------------------------------------------


def direct_logits(case: Case) -> str:
    """``TextKindContrast``: confidence, entropy, logit lens, and what every head adds to a logit difference."""
    import pandas as pd

    from mechrep.measures.natural_vs_induced import TextKindContrast

    ids = [0, *text(2, seed=5), *text(5, seed=6) * 4]
    facts = {
        "id": ["a"],
        "builder": ["random_repeats"],
        "prompt": ["p"],
        "start": [3],
        "period": [5],
        "prompt_length": [3],
    }
    corpus = mechrep.Corpus.from_tokens([ids], model=case.model, frame=pd.DataFrame(facts | {"text_kind": "induced"}))
    analyzer = TextKindContrast(case.model)
    found = mechrep.CorpusCache(case.model, corpus).run(analyzer)
    _must_add_up(case)
    family, model = case.family, case.plain
    seen = oracles.look(family, model, ids)
    raw = oracles.uncapped(family, seen.logits)
    for copy in range(1, 4):
        at = torch.arange(3 + 5 * copy, 8 + 5 * copy)
        expected, here = torch.tensor(ids)[at], at - 1
        own = raw[here].gather(1, expected[:, None])[:, 0]
        rival = raw[here].scatter(1, expected[:, None], -torch.inf).argmax(1)
        probable = seen.logits[here].double().log_softmax(-1)
        right = {
            "log_probability": probable.gather(1, expected[:, None]).mean(),
            "entropy": -(probable.exp() * probable).sum(-1).mean(),
            "logit_difference": (own - raw[here].gather(1, rival[:, None])[:, 0]).mean(),
        }
        for name, value in right.items():
            same(f"{name} of copy {copy}", found.of(name)[0, copy], value, 1e-3)
        for layer in family.with_attention:
            effect = oracles.direct_logits(family, model, seen, oracles.heads(family, model, seen, layer))[:, here]
            ahead = effect.gather(2, expected[None, :, None].expand(N_HEADS, -1, 1)) - effect.gather(
                2, rival[None, :, None].expand(N_HEADS, -1, 1)
            )
            same(
                f"direct logits of layer {layer}, copy {copy}", found.heads[0, copy, layer], ahead[..., 0].mean(1), 1e-3
            )
        for depth in range(family.n_layers + 1):
            stream = seen.before[depth] if depth < family.n_layers else seen.final
            lens = oracles.lens(family, model, stream[here]).double().log_softmax(-1)
            same(f"logit lens {depth}", found.lens[0, copy, depth], lens.gather(1, expected[:, None]).mean(), 1e-3)
    return ""


def circuits(case: Case) -> str:
    """``HeadCircuits``: what heads write by their weights; and the scores that are made of these."""
    from mechrep.measures.head_circuits import HeadCircuits

    pieces, seen = HeadCircuits(case.model), case.seen[0]
    _must_add_up(case)
    for layer in case.family.with_attention:
        factor, _ = pieces.writing_scale(layer, seen.z[layer])
        written = torch.einsum("phd,hdm->hpm", seen.z[layer].double(), pieces.writing(layer).double()) * factor.double()
        same(f"what heads of layer {layer} write", written, oracles.heads(case.family, case.plain, seen, layer), 1e-3)
    mechrep.ov_scores(case.model)
    mechrep.head_composition(case.model)
    mechrep.score_copying(case.model, n=8, sequences=2)
    return only(case.family.with_attention, case.family)


def first_layer(case: Case) -> str:
    """``FirstTokenDetection``: attention of the first layer to other tokens than the own."""
    found = mechrep.CorpusCache(case.model, case.corpus).run(mechrep.FirstTokenDetection.of(case.model))
    _must_be_seen(case)
    masses = []
    for ids, seen in zip(case.texts, case.seen, strict=True):
        others = torch.tensor(ids)[:, None] != torch.tensor(ids)[None]
        masses.append((seen.pattern[case.family.with_attention[0]] * others).sum(-1)[:, 1:])
    same("mass on other tokens", found.mass, torch.cat(masses, -1).mean(-1))
    return ""


def transformer_lens(case: Case) -> str:
    """``run_with_cache``: logits, residual stream and patterns of the TransformerLens view."""
    ids, seen = case.texts[0], case.seen[0]
    found, cache = case.model.run_with_cache(torch.tensor([ids]))
    same("logits", found[0], seen.logits)
    for layer in range(case.family.n_layers):
        same(f"resid_post of layer {layer}", cache["resid_post", layer][0], seen.after[layer])
        if layer in seen.pattern:
            if f"blocks.{layer}.attn.hook_pattern" not in case.model.hook_dict:
                return "TransformerLens shows no attention patterns of it"
            same(f"pattern of layer {layer}", cache["pattern", layer][0], seen.pattern[layer])
    return ""


@dataclass(frozen=True)
class Capability:
    """One column of the table."""

    name: str
    run: Callable[[Case], str]


CAPABILITIES: tuple[Capability, ...] = (
    Capability("load", loading),
    Capability("logits", all_logits),
    Capability("residual stream", residual_stream),
    Capability("attention patterns", patterns),
    Capability("patterns of long texts", pattern_rows),
    Capability("head outputs", head_outputs),
    Capability("neuron activations", neurons),
    Capability("neuron products", products),
    Capability("what parts write", writes),
    Capability("norms", norms),
    Capability("attention sinks", attention_sinks),
    Capability("sink neurons", sink_neurons),
    Capability("routing", routing),
    Capability("neurons edited", neurons_off),
    Capability("heads off", heads_off),
    Capability("heads at first position", heads_to_first),
    Capability("sink patch", sink_patch),
    Capability("PatchedModel", patched_model),
    Capability("generation", writing),
    Capability("generation, edited", writing_changed),
    Capability("direct logits and lens", direct_logits),
    Capability("head circuits", circuits),
    Capability("first layer", first_layer),
    Capability("TransformerLens view", transformer_lens),
)
