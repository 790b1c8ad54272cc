"""Natural loops beside induced texts."""

from __future__ import annotations

from typing import Any

import numpy as np

import mechrep
from mechrep.run import Run
from tests.golden import api
from tests.golden.entries.heads import scores
from tests.golden.entries.texts import kinds, windows
from tests.golden.flat import Record, of_array, of_frame, of_result, of_value, where
from tests.golden.registry import EMBEDDED, golden


def of_contrast(name: str, effects: Any, copies: int = 1) -> Record:
    """Effects per operation, repetition and head, one value a text."""
    what = effects.measures[0].name.split(", ")[0]
    names = list(dict.fromkeys(one.name for one in effects.measures if one.name.startswith(f"{what}, ")))
    first = api.head_effects(effects)
    labels = [f"{one} of {kind}" for one, kind in zip(first.ids, first.text_kinds, strict=True)]
    record: Record = {f"{name} texts": labels, f"{name} prompts": [one.rsplit("/", 1)[0] for one in first.ids]}
    for copy in range(copies):
        asked = copy + 1 if any(one.copy for one in effects.measures) else None
        record |= of_value(f"{name} untouched copy={copy}", np.concatenate([effects.of(n, asked)[0] for n in names]))
        for op in dict.fromkeys(one.op for one in effects.conditions[1:]):
            values = api.head_effects(effects, op=op, copy=asked).values
            for layer, head in np.ndindex(*values.shape[1:]):
                key = where(op=op, copy=copy, head=f"{layer}.{head}")
                record |= of_value(f"{name} effect {key}", values[:, layer, head])
    written = [one.name for one in effects.measures if one.name.startswith("new_tokens")]
    return record | of_value(f"{name} new tokens", sum(int(effects.of(one).sum()) for one in written))


@golden(slow=True, models=EMBEDDED)
def condition_contrast(model: mechrep.Model) -> Record:
    """What changes from copy to copy, text by text."""
    result = api.contrast_text_kinds(model, list(kinds(model)), copies=2, progress=False)
    record: Record = {"texts": list(result.ids), "kinds": list(result.labels)}
    for number, measure in enumerate(api.CONTRAST_MEASURES):
        for copy in range(result.copies):
            record |= of_value(where(measure=measure, copy=copy), result.measures[number, :, copy])
    for field in ("lens", "heads", "mlps", "counts"):
        record |= of_array(field, getattr(result, field))
    record |= of_frame("table", result.to_frame()) | of_frame("parts", result.parts_frame(1))
    effects = api.contrast_text_kinds(model, list(kinds(model))[:2], copies=2, progress=False).head_effects(1)
    record |= of_frame("contrast", effects.contrast(draws=200)) | of_frame("specialisation", effects.concentration())
    record |= of_frame(
        "overlap", effects.overlap({one: scores(model).of(one) for one in ("induction", "previous_token")}, 2)
    )
    return record | of_frame("lens", result.lens_frame())


@golden(slow=True, models=EMBEDDED)
def ablation_contrast(model: mechrep.Model) -> Record:
    """Every head ablated, by every operation."""
    natural, induced, _ = kinds(model)
    result = mechrep.studies.ablation_contrast(
        model, [natural, induced], ops=["mean", "zero", "resample", "to_bos"], reference=windows(model), copies=1,
    )  # fmt: skip
    effects = api.head_effects(result)
    record = of_contrast("ablation", result) | of_frame("contrast", effects.contrast())
    return record | of_frame("comparison", api.compare_heads(effects, 2, swaps=200))


@golden(slow=True, models=EMBEDDED)
def patching_contrast(model: mechrep.Model) -> Record:
    """Heads patched from induced texts into natural ones."""
    natural, induced, _ = kinds(model)
    return of_contrast("patching", mechrep.studies.patching_contrast(model, [natural], induced))


@golden(slow=True, models=EMBEDDED)
def regenerated_contrast(model: mechrep.Model) -> Record:
    """Texts regenerated without each head."""
    natural, induced, _ = kinds(model)
    again = mechrep.studies.regenerated_contrast(model, [natural, induced], op="zero", sample=3, max_new_tokens=24)
    given = mechrep.studies.ablation_contrast(model, [natural, induced], ops=["zero"], copies=1)
    table = api.agreement(api.head_effects(given), api.head_effects(again), k=2)
    return of_contrast("regenerated", again) | of_frame("agreement", table)


@golden(slow=True, models=EMBEDDED)
def head_dissociation(model: mechrep.Model) -> Record:
    """The heads that lead in each kind, ablated together in texts on which they were not found."""
    natural, induced, _ = kinds(model)
    run = Run(effort="quick", progress=False)
    effects = mechrep.studies.head_dissociation(model, [natural, induced], k=2, op="zero", copies=1, run=run)
    record = of_frame("table", effects.summary())
    for place, condition in enumerate(effects.conditions):
        if condition.selection in ("baseline", "ablation"):
            record |= of_value(f"heads {condition.name}", condition.components)
            for measure in effects.measures:
                key = where(measure=measure.name, condition=condition.name)
                record |= of_value(f"value {key}", effects.of(measure.name)[place])
    return record


@golden(slow=True, models=EMBEDDED)
def joined_read(model: mechrep.Model) -> Record:
    """The analyzer on texts joined by hand."""
    natural, induced, _ = kinds(model)
    corpus = api.joined_texts(natural, induced, n_ctx=model.anatomy.n_ctx, copies=2)
    result = mechrep.CorpusCache(model, corpus, progress=False).run(mechrep.TextKindContrast(model, copies=2))
    record = of_result(result, leave_out=("provenance", "clusters"))
    return {"conditions" if key == "text_kinds" else key: value for key, value in record.items()}
