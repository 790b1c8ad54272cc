"""``mechrep neurons``."""

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
    Seed,
    Texts,
    load_named,
    make_folder,
)
from mechrep.errors import StoreError


@app.command(short_help="Find repetition neurons only.")
def neurons(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Folder for the result and its table.")],
    preset: PresetOption = Preset.mechrep,
    texts: Texts = 200,
    seed: Seed = 0,
    device: Device = None,
    dtype: DtypeOption = None,
    revision: Revision = None,
) -> None:
    """Only find repetition neurons: collect loops, rank, print the first 20.

    Writes the result, its table as Parquet, the texts, and the published share as top.json, which
    `mechrep generate --cut` takes.
    """
    import json

    make_folder(out)
    loaded = load_named(model, revision, device, dtype)
    from mechrep.cache.corpus_cache import CorpusCache
    from mechrep.generation.loops import collect_loops
    from mechrep.measures.neurons import RepetitionNeurons
    from mechrep.report.page import text_table

    corpus = collect_loops(loaded, texts, n_others=0, preset=preset.value, seed=seed)
    (result,) = CorpusCache(loaded, corpus, store=out / "store").run(RepetitionNeurons(preset.value))
    result.save(out / "neurons")
    corpus.save(out / "corpus.parquet")
    frame = result.to_frame()
    top = frame[["layer", "neuron"]].head(max(1, frame.shape[0] // 200)).to_numpy().tolist()
    try:
        frame.to_parquet(out / "neurons.parquet")
        (out / "top.json").write_text(json.dumps(top), encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"folder {out} ({error.strerror})", "a place to write", "free space or choose another"
        ) from error
    columns = ["layer", "neuron", "delta", "standard_error", "t", "dprime"]
    typer.echo(text_table(frame[columns].head(20)))
    typer.echo(out / "neurons")
