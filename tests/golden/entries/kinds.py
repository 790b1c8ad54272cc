"""Natural loops against induced ones."""

from __future__ import annotations

from typing import Any

import mechrep
from tests.golden import api
from tests.golden.entries.heads import scores
from tests.golden.entries.texts import kinds, windows
from tests.golden.flat import Record, of_array, of_frame, of_result, of_value, where
from tests.golden.registry import EMBEDDED, golden


def of_contrast(name: str, result: Any) -> Record:
    """Effects per operation, copy and head, one value a text, and the tables."""
    labels = [f"{one} of {kind}" for one, kind in zip(result.ids, result.conditions, strict=True)]
    record: Record = {f"{name} texts": labels, f"{name} prompts": list(result.prompts)}
    n_ops, _, n_copies, n_layers, n_heads = result.effects.shape
    for copy in range(n_copies):
        record |= of_value(f"{name} untouched copy={copy}", result.untouched[:, copy])
        for op in range(n_ops):
            for layer in range(n_layers):
                for head in range(n_heads):
                    key = where(op=result.ops[op], copy=copy, head=f"{layer}.{head}")
                    record |= of_value(f"{name} effect {key}", result.effects[op, :, copy, layer, head])
    record |= of_frame(f"{name} table", result.to_frame())
    if {"natural", "induced"} <= set(result.conditions):
        record |= of_value(f"frames/{name} top", result.top(3))
    return record | of_value(f"{name} new tokens", result.new_tokens)


@golden(models=EMBEDDED)
def condition_contrast(model: mechrep.Model) -> Record:
    """What changes from copy to copy, text by text."""
    result = api.contrast_conditions(model, list(kinds(model)), copies=2, progress=False)
    record: Record = {"texts": list(result.ids), "kinds": list(result.labels)}
    for number, measure in enumerate(api.CONTRAST_MEASURES):
        for copy in range(result.copies):
            record |= of_value(where(measure=measure, copy=copy), result.measures[number, :, copy])
    for field in ("lens", "heads", "mlps", "counts"):
        record |= of_array(field, getattr(result, field))
    record |= of_frame("table", result.to_frame()) | of_frame("parts", result.parts_frame(1))
    effects = api.contrast_conditions(model, list(kinds(model))[:2], copies=2, progress=False).head_effects(1)
    record |= of_frame("contrast", effects.contrast(draws=200)) | of_frame("specialisation", effects.specialisation())
    record |= of_frame("overlap", effects.overlap(scores(model), 2))
    return record | of_frame("lens", result.lens_frame())


@golden(slow=True, models=EMBEDDED)
def ablation_contrast(model: mechrep.Model) -> Record:
    """Every head cut, by every operation."""
    natural, induced, _ = kinds(model)
    result = mechrep.studies.ablation_contrast(
        model, [natural, induced], ops=["mean", "zero", "resample", "to_bos"], reference=windows(model), copies=1,
        progress=False,
    )  # fmt: skip
    record = of_contrast("ablation", result) | of_frame("contrast", result.contrast())
    return record | of_frame("comparison", api.compare_heads(result.head_effects(), 2, swaps=200))


@golden(models=EMBEDDED)
def patching_contrast(model: mechrep.Model) -> Record:
    """Heads patched from induced texts into natural ones."""
    natural, induced, _ = kinds(model)
    return of_contrast("patching", mechrep.studies.patching_contrast(model, [natural], induced, progress=False))


@golden(models=EMBEDDED)
def regenerated_contrast(model: mechrep.Model) -> Record:
    """Texts written again without each head."""
    natural, induced, _ = kinds(model)
    dear = mechrep.studies.regenerated_contrast(
        model, [natural, induced], op="zero", texts=3, max_new_tokens=24, progress=False
    )
    cheap = mechrep.studies.ablation_contrast(model, [natural, induced], ops=["zero"], copies=1, progress=False)
    return of_contrast("regenerated", dear) | of_frame("agreement", api.agreement(cheap, dear, k=2))


@golden(models=EMBEDDED)
def head_dissociation(model: mechrep.Model) -> Record:
    """The heads of one kind cut in texts of the other."""
    natural, induced, _ = kinds(model)
    table = mechrep.studies.head_dissociation(
        model, [natural, induced], k=2, op="zero", draws=2, copies=1, progress=False
    )
    return of_frame("table", table) | of_value("rows", len(table))


@golden(models=EMBEDDED)
def joined_read(model: mechrep.Model) -> Record:
    """The analyzer on texts joined by hand."""
    natural, induced, _ = kinds(model)
    corpus = api.joined_conditions(natural, induced, n_ctx=model.anatomy.n_ctx, copies=2)
    (result,) = mechrep.CorpusCache(model, corpus, progress=False).run(mechrep.ConditionContrast(model, copies=2))
    return of_result(result)
