"""``mechrep generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mechrep.cli.app import app
from mechrep.cli.options import (
    Device,
    DtypeOption,
    ModelName,
    Preset,
    PresetOption,
    Revision,
    existing_file,
    load_named,
    parse_units,
    read_text,
)


@app.command(short_help="Continue prompts and mark the loops.")
def generate(
    model: ModelName,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given several times.")] = None,
    prompts: Annotated[Path | None, existing_file("File with one prompt per line (UTF-8).")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to write.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Sample among so many tokens.")] = None,
    cut: Annotated[str | None, typer.Option(help="Neurons to cut: L:N,L:N or a JSON file of [layer, neuron].")] = None,
    preset: PresetOption = Preset.mechrep,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    device: Device = None,
    dtype: DtypeOption = None,
    revision: Revision = None,
) -> None:
    """Continue prompts, with neurons cut if asked, and mark the loops: │ ends the prompt, ⟨first copy⟩, ⟪loop⟫."""
    written = [
        *(prompt or []),
        *([] if prompts is None else [line for line in read_text(prompts).splitlines() if line.strip()]),
    ]
    if not written:
        raise typer.BadParameter("give --prompt TEXT or --prompts FILE with at least one line")
    units = None if cut is None else parse_units(cut)
    loaded = load_named(model, revision, device, dtype)
    from mechrep.generation.decode import generate as continue_texts
    from mechrep.interventions.ops import Neurons
    from mechrep.report.page import described_texts
    from mechrep.text.corpus import Corpus

    corpus = continue_texts(
        loaded,
        Corpus.from_texts(written, model=loaded, source="prompt"),
        max_new_tokens=max_new_tokens,
        interventions=None if units is None else Neurons(units, "zero", when="last"),
        temperature=temperature,
        top_k=top_k,
        seed=seed,
    )
    for text in described_texts(corpus.with_cycles(preset.value, eos_id=loaded.eos_ids), loaded.decode):
        typer.echo(text)
