"""Wrong calls of studies."""

from __future__ import annotations

import mechrep
from mechrep import Circuit, Decoding, Neurons, Run, SinkPatch, studies
from mechrep.ablation.benchmarks import Questions
from mechrep.ablation.study import Controls, StudyTexts
from mechrep.errors import ModelError
from tests.badinput.case import wrong

nan, inf = float("nan"), float("inf")
wrong("Run", "effort", lambda w: Run(effort="hasty"), lambda w: Run(effort=3))
wrong("Run", "seed", *(lambda w, s=s: Run(seed=s) for s in (-1, 1.0, True, "1", None, 2**80)))
wrong("Run", "batch_size", *(lambda w, s=s: Run(batch_size=s) for s in (0, -1, True, "8", 1.0)))
wrong(
    "Run",
    "workers",
    lambda w: Run(engine="ray", workers=0),
    lambda w: Run(workers=2),
    lambda w: Run(engine="ray", workers=True),
)
wrong("Run", "address", lambda w: Run(address="x:1"))
wrong("Run", "engine", lambda w: Run(engine="spark"))
wrong("Run", "store", lambda w: Run(store=3))
wrong("Run", "progress", lambda w: Run(progress="yes"))
wrong("Run.sizes_on", "model", lambda w: Run().sizes_on("mechrep-tiny"))
wrong("Decoding", "top_k", lambda w: Decoding(top_k=5), lambda w: Decoding(top_k=True, temperature=1.0))
wrong("studies.Controls", "kinds", lambda w: Controls("random"), lambda w: Controls(3))
wrong("studies.Controls", "control", lambda w: Controls(["nosuch"]))
wrong("studies.Controls", "draws", lambda w: Controls(draws=0))
wrong("studies.StudyTexts", "copies", lambda w: StudyTexts(copies=0))
wrong(
    "studies.StudyTexts.outcomes",
    "outcomes",
    lambda w: StudyTexts().outcomes(w.model, ["nosuch"], when="all", run=w.run),
)
wrong("studies.StudyTexts", "loops", lambda w: StudyTexts(loops="texts"))
study = studies.ablation_study
wrong("studies.ablation_study", "circuits", *(lambda w, c=c: study(w.model, c) for c in ([], "L2H0", 3, None)))
wrong("studies.ablation_study", "circuits", lambda w: study(w.model, [w.circuit, w.circuit]))
wrong(
    "studies.ablation_study",
    "outcomes",
    lambda w: study(w.model, w.circuit, outcomes=["nosuch"]),
    lambda w: study(w.model, w.circuit, outcomes=[]),
    lambda w: study(w.model, w.circuit, outcomes="loss"),
)
wrong(
    "studies.ablation_study",
    "op",
    lambda w: study(w.model, w.circuit, ops=["nosuch"]),
    lambda w: study(w.model, w.circuit, ops=[]),
)
wrong(
    "studies.ablation_study",
    "when",
    lambda w: study(w.model, w.circuit, when="last"),
    lambda w: study(w.model, w.circuit, when="nosuch"),
)
wrong("studies.ablation_study", "control", lambda w: study(w.model, w.circuit, controls=["nosuch"]))
wrong("studies.ablation_study", "layer", lambda w: study(w.model, Circuit("a", heads=[(9, 0)]), outcomes=["loss"]))
wrong(
    "studies.ablation_study",
    "vocabulary",
    lambda w: study(
        w.model,
        w.circuit,
        texts=StudyTexts(loops=w.foreign.with_columns(start=1, onset=3)),
        outcomes=["loop_log_probability"],
    ),
)
wrong(
    "studies.ablation_study", "weights", lambda w: study(w.sibling, Circuit.from_heads(w.heads, 1), outcomes=["loss"])
)
wrong("studies.single_head_sweep", "outcomes", lambda w: studies.single_head_sweep(w.model, outcomes=["nosuch"]))
wrong("studies.single_head_sweep", "op", lambda w: studies.single_head_sweep(w.model, op="nosuch"))
for _sweep in ("activation_sweep", "deactivation_sweep", "loss_sweep"):
    _run = getattr(studies, _sweep)
    wrong(
        f"studies.{_sweep}",
        "ks",
        *(
            lambda w, ks=ks, run=_run: run(w.model, w.windows, neurons=[(3, 1)], ks=ks, run=w.run)
            for ks in ([], [-1], [True], 3, "12")
        ),
    )
    wrong(
        f"studies.{_sweep}",
        "neurons",
        lambda w, run=_run: run(w.model, w.windows, neurons="L1N2", ks=[1]),
        lambda w, run=_run: run(w.model, w.windows, neurons=None, ks=[1]),
    )
    wrong(f"studies.{_sweep}", "vocabulary", lambda w, run=_run: run(w.model, w.foreign, neurons=[(3, 1)], ks=[1]))
wrong(
    "studies.activation_sweep",
    "ks",
    lambda w: studies.activation_sweep(w.model, w.windows, neurons=[(3, 1)], ks=[2], run=w.run),
)
wrong(
    "studies.activation_sweep",
    "weights",
    lambda w: studies.activation_sweep(w.sibling, w.windows, neurons=w.neurons, ks=[2], run=w.run),
)
wrong("studies.loss_sweep", "ks", lambda w: studies.loss_sweep(w.model, w.windows, neurons=[(3, 1)], ks=[2], run=w.run))
wrong(
    "studies.deactivation_sweep",
    "ks",
    lambda w: studies.deactivation_sweep(w.model, w.corpus, neurons=[(3, 1)], ks=[2], run=w.run),
)
wrong(
    "studies.draw_controls", "control", lambda w: studies.draw_controls("nosuch", [(0, 1)], layers=2, width=4, draws=1)
)
wrong(
    "studies.draw_controls",
    "components",
    lambda w: studies.draw_controls("random", [], layers=2, width=4, draws=1),
    lambda w: studies.draw_controls("random", [(9, 0)], layers=2, width=4, draws=1),
)
wrong(
    "studies.draw_controls",
    "match",
    lambda w: studies.draw_controls("activation_matched", [(0, 1)], layers=2, width=4, draws=1),
)
wrong("studies.single_head_frame", "measure", lambda w: studies.single_head_frame(w.effects, "nosuch"))
wrong("studies.single_head_frame", "effects", lambda w: studies.single_head_frame(None))
wrong("studies.token_losses", "vocabulary", lambda w: studies.token_losses(w.model, w.foreign, [None]))
wrong(
    "studies.token_losses",
    "interventions",
    lambda w: studies.token_losses(w.model, w.corpus, []),
    lambda w: studies.token_losses(w.model, w.corpus, ["L2H0"]),
    lambda w: studies.token_losses(w.model, w.corpus, None),
)
wrong(
    "studies.layer_profiles", "score", lambda w: studies.layer_profiles(w.neurons, w.heads, score="nosuch", k_heads=1)
)
wrong("studies.layer_profiles", "heads", lambda w: studies.layer_profiles(w.neurons, w.neurons))
wrong(
    "studies.layer_profiles",
    "one model",
    lambda w: studies.layer_profiles(w.neurons, mechrep.score_heads(w.sibling, n=10, sequences=2)),
)
wrong(
    "studies.repeat_behaviour",
    "tokens",
    *(lambda w, t=t: studies.repeat_behaviour(w.model, t) for t in (0, 10**6, [], [5, 5], [10**6], True, [1.5], None)),
)
wrong(
    "studies.repeat_behaviour",
    "ns",
    *(lambda w, n=n: studies.repeat_behaviour(w.model, [300], n) for n in ([], [0], [10**6], 3, [True])),
)
wrong("studies.repeat_behaviour", "prompt", lambda w: studies.repeat_behaviour(w.model, [300], [2], prompt="Say it"))
wrong("studies.repeat_behaviour", "chat", lambda w: studies.repeat_behaviour(w.model, [300], [2], prompt="chat"))
wrong(
    "studies.repeat_behaviour",
    "baseline",
    lambda w: studies.repeat_behaviour(w.model, [300], [2], {"baseline": Neurons([(0, 1)])}),
)
wrong(
    "studies.over_checkpoints",
    "measure",
    lambda w: studies.over_checkpoints("nosuch"),
    lambda w: studies.over_checkpoints([]),
    lambda w: studies.over_checkpoints([3]),
)
wrong(
    "studies.over_checkpoints",
    "revision",
    *(
        lambda w, r=r: studies.over_checkpoints("heads", revisions=r)
        for r in ("lates", [], ["step1"], ["step512", "step512"], {}, 3)
    ),
)
wrong(
    "studies.over_checkpoints",
    "mechrep-tinny",
    lambda w: studies.over_checkpoints("heads", model="mechrep-tinny"),
    error=ModelError,
)
wrong(
    "studies.run_training_study",
    "measure",
    lambda w: studies.run_training_study("mechrep-tiny", measures=["nosuch"]),
    lambda w: studies.run_training_study("mechrep-tiny", measures=[]),
)
wrong(
    "studies.run_training_study", "revision", lambda w: studies.run_training_study("mechrep-tiny", revisions=["step1"])
)
wrong(
    "studies.benchmark_study",
    "task",
    lambda w: studies.benchmark_study(w.model, questions=Questions(["nosuch"])),
    lambda w: studies.benchmark_study(w.model, questions=Questions([])),
)
wrong(
    "studies.benchmark_study",
    "limit",
    lambda w: studies.benchmark_study(w.model, questions=Questions(["recall"], limit=0)),
)
wrong(
    "studies.benchmark_study", "folder", lambda w: studies.benchmark_study(w.model, questions=Questions(["winogrande"]))
)
wrong(
    "studies.benchmark_study",
    "controls",
    lambda w: studies.benchmark_study(w.model, questions=Questions(["recall"], limit=2), controls=["nosuch"]),
)
wrong("studies.benchmark_study", "tokenizer", lambda w: studies.benchmark_study(w.other))
wrong("studies.run_repetition_study", "preset", lambda w: studies.run_repetition_study(w.model, preset="nosuch"))
wrong(
    "studies.run_repetition_study",
    "ks",
    *(lambda w, k=k: studies.run_repetition_study(w.model, ks=k, corpus=w.corpus) for k in ([-1], [], [True])),
)
wrong("studies.run_head_study", "preset", lambda w: studies.run_head_study(w.model, preset="nosuch"))
wrong(
    "studies.run_head_study",
    "vocabulary",
    lambda w: studies.run_head_study(w.model, corpus=w.foreign.with_columns(start=1, onset=3)),
)
wrong(
    "studies.run_sink_study",
    "layer",
    lambda w: studies.run_sink_study(w.model, layer=9),
    lambda w: studies.run_sink_study(w.model, layer=-1),
)
wrong("studies.run_first_layer_study", "layer", lambda w: studies.run_first_layer_study(w.model, layer=9))
wrong("studies.run_text_kind_study", "preset", lambda w: studies.run_text_kind_study(w.model, preset="nosuch"))
wrong("studies.run_text_kind_study", "op", lambda w: studies.run_text_kind_study(w.model, op="nosuch"))
wrong(
    "studies.run_text_kind_study",
    "builder",
    lambda w: studies.run_text_kind_study(w.model, builders=["nosuch"]),
    lambda w: studies.run_text_kind_study(w.model, builders=[]),
)
wrong(
    "studies.run_information_study",
    "way",
    lambda w: studies.run_information_study(w.model, ways=["nosuch"]),
    lambda w: studies.run_information_study(w.model, ways=[]),
)
wrong("studies.run_information_study", "preset", lambda w: studies.run_information_study(w.model, preset="nosuch"))
wrong("studies.run_repair_study", "layer", lambda w: studies.run_repair_study(w.model, layer=9))
wrong("studies.run_repair_study", "task", lambda w: studies.run_repair_study(w.model, tasks=["nosuch"]))
wrong(
    "studies.run_patch_study",
    "when",
    lambda w: studies.run_patch_study(w.model, SinkPatch(0, [1], when="last"), texts=["The sea was calm that day."]),
)
wrong(
    "studies.run_patch_study",
    "neuron",
    lambda w: studies.run_patch_study(w.model, SinkPatch(0, [9999]), texts=["The sea was calm that day."]),
)
wrong("studies.run_router_shift_study", "expert", lambda w: studies.run_router_shift_study(w.model))
wrong(
    "studies.measure_card",
    "layer",
    lambda w: studies.measure_card(w.model, sink_layer=9),
    lambda w: studies.measure_card(w.model, sink_layer=True),
)
wrong(
    "studies.sink_ablation",
    "sink",
    lambda w: studies.sink_ablation(w.model, None),
    lambda w: studies.sink_ablation(w.model, "sink"),
)
wrong("studies.sink_conditions", "layer", lambda w: studies.sink_conditions(w.model, [(9, 0)]))
wrong(
    "studies.sink_conditions",
    "neurons",
    lambda w: studies.sink_conditions(w.model, []),
    lambda w: studies.sink_conditions(w.model, 3),
)
wrong(
    "studies.ablation_contrast",
    "ops",
    lambda w: studies.ablation_contrast(w.model, [w.corpus], ops=["nosuch"]),
    lambda w: studies.ablation_contrast(w.model, [w.corpus], ops=[]),
)
wrong(
    "studies.ablation_contrast",
    "texts",
    lambda w: studies.ablation_contrast(w.model, []),
    lambda w: studies.ablation_contrast(w.model, w.corpus),
    lambda w: studies.ablation_contrast(w.model, "texts"),
)
wrong("studies.head_dissociation", "op", lambda w: studies.head_dissociation(w.model, [w.corpus], k=1, op="nosuch"))
wrong(
    "studies.head_dissociation",
    "control",
    lambda w: studies.head_dissociation(w.model, [w.corpus], k=1, controls=["nosuch"]),
)
wrong("studies.patching_contrast", "copy", lambda w: studies.patching_contrast(w.model, [w.corpus], w.corpus, copy=0))
wrong("studies.regenerated_contrast", "op", lambda w: studies.regenerated_contrast(w.model, [w.corpus], op="nosuch"))
wrong(
    "find_sink", "layer", lambda w: mechrep.find_sink(w.model, layer=9), lambda w: mechrep.find_sink(w.model, layer=-1)
)
wrong(
    "find_sink",
    "texts",
    lambda w: mechrep.find_sink(w.model, texts="The sea"),
    lambda w: mechrep.find_sink(w.model, texts=3),
)
wrong("find_sink", "vocabulary", lambda w: mechrep.find_sink(w.model, texts=w.foreign))
wrong("find_first_token", "layer", lambda w: mechrep.find_first_token(w.model, layer=9))
wrong("find_first_token", "texts", lambda w: mechrep.find_first_token(w.model, texts="The sea"))
wrong("studies.ModelMeasure", "function", lambda w: studies.ModelMeasure("a", 3))
wrong("studies.verify_model", "model", lambda w: studies.verify_model("mechrep-tiny"))
