"""The command line: parses, calls the floors below, prints; everything heavy is imported inside the commands."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mechrep.errors import InputError, MechrepError, StoreError

if TYPE_CHECKING:
    from mechrep.models.model import Model

_STOPPED = 130  # what shells say of a program that was interrupted


class _Group(TyperGroup):
    """Turns mechrep's own errors into one line, and an interruption into a hint."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MechrepError as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as stop:
            typer.echo("stopped; run the same command again to go on", err=True)
            raise typer.Exit(_STOPPED) from stop


class Preset(StrEnum):
    """Protocols that tell looping texts from others."""

    mechrep = "mechrep"
    hiraoka2025 = "hiraoka2025"


class Dtype(StrEnum):
    """Types that weights can have."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


app = typer.Typer(
    name="mechrep",
    cls=_Group,
    help="Why does this language model repeat itself, and what happens if that mechanism is switched off?",
    no_args_is_help=True,
    add_completion=False,
    # Coloured help and tracebacks would import rich, which takes longer than everything else here.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="mechrep-tiny, a hub name, or a local folder.")]
Revision = Annotated[str | None, typer.Option(help="Checkpoint of the model, e.g. step512.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; the best there is by default.")]
DtypeOption = Annotated[
    Dtype | None, typer.Option("--dtype", help="Type of the weights; float32 on the CPU by default.")
]
PresetOption = Annotated[Preset, typer.Option("--preset", help="Whose protocol decides what a loop is.")]
Texts = Annotated[int, typer.Option("--texts", min=1, help="Looping texts to collect.")]
Seed = Annotated[int, typer.Option(help="Of the prompts and the split.")]


def _existing(help_text: str) -> Any:
    """An option that takes a file, which is looked for before anything else is done."""
    return typer.Option(exists=True, dir_okay=False, readable=True, help=help_text)


def _version(wanted: bool) -> bool:
    if wanted:
        from mechrep import __version__

        typer.echo(f"mechrep {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _main(
    _version_wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    # Models write any character; a terminal that cannot show one gets a replacement and not a crash.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


@app.command(short_help="The whole study, as one HTML page.")
def report(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Folder for the report, the tables and the unfinished work.")] = Path(
        "report"
    ),
    preset: PresetOption = Preset.mechrep,
    texts: Texts = 200,
    others: Annotated[int, typer.Option(min=0, help="Loop-free texts to collect.")] = 40,
    ks: Annotated[
        str | None, typer.Option(help="Numbers of neurons to cut, e.g. 0,10,100; up to 7 % by default.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of each control.")] = 3,
    seed: Seed = 0,
    held_out: Annotated[Path | None, _existing("Text for the perplexity (UTF-8).")] = None,
    device: Device = None,
    dtype: DtypeOption = None,
    revision: Revision = None,
) -> None:
    """Find repetition neurons, cut and boost them beside controls, and write one HTML report.

    Stopped runs go on where they were when the same command is given again.
    """
    numbers = _numbers(ks)
    held_out_text = None if held_out is None else _read(held_out)
    _make_folder(out)
    loaded = _load(model, revision, device, dtype)
    from mechrep.studies.repetition_study import run_repetition_study
    from mechrep.views.report import save_tables, write_report

    study = run_repetition_study(
        loaded,
        preset=preset.value,
        n_loops=texts,
        n_others=others,
        ks=numbers,
        seeds=seeds,
        held_out_text=held_out_text,
        store=out / "store",
        seed=seed,
    )
    save_tables(study, out)
    typer.echo(write_report(study, out / "report.html"))


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

    _make_folder(out)
    loaded = _load(model, revision, device, dtype)
    from mechrep.analyzers.neurons import RepetitionNeurons
    from mechrep.cache.corpus_cache import CorpusCache
    from mechrep.generation.loops import collect_loops
    from mechrep.views.terminal import text_table

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
    columns = ["rank", "layer", "neuron", "delta", "standard_error", "t", "dprime"]
    typer.echo(text_table(frame[columns].head(20)))
    typer.echo(out / "neurons")


@app.command(short_help="Continue prompts and mark the loops.")
def generate(
    model: ModelName,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given several times.")] = None,
    prompts: Annotated[Path | None, _existing("File with one prompt per line (UTF-8).")] = None,
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
        *([] if prompts is None else [line for line in _read(prompts).splitlines() if line.strip()]),
    ]
    if not written:
        raise typer.BadParameter("give --prompt TEXT or --prompts FILE with at least one line")
    units = None if cut is None else _units(cut)
    loaded = _load(model, revision, device, dtype)
    from mechrep.generation.generate import generate as continue_texts
    from mechrep.interventions.neurons import Neurons
    from mechrep.text.corpus import Corpus
    from mechrep.views.terminal import described_texts

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


@app.command(short_help="The embedded models and their checkpoints.")
def models() -> None:
    """The embedded models with their checkpoints, and how to name others."""
    from mechrep.models import tiny

    for name in tiny.NAMES:
        kept = tiny.revisions()
        typer.echo(f"{name}: embedded, no network; {len(kept)} checkpoints for --revision, the last by default")
        typer.echo(f"  {'revision':>10} {'tokens seen':>13} {'held-out loss':>14}")
        for line in tiny.history():
            revision = f"step{line['step']}"
            label = revision if revision in kept else f"({line['step']})"
            typer.echo(f"  {label:>10} {line['tokens']:>13,} {line['held_out_loss']:>14.3f}")
        typer.echo("  Steps in brackets were measured, not kept.")
    typer.echo("others: a hub name (EleutherAI/pythia-70m), or a folder with config.json and weights (./my-model)")


def _load(name: str, revision: str | None, device: str | None, dtype: Dtype | None) -> Model:
    import torch

    from mechrep.models.load import load_model

    try:
        place = None if device is None else torch.device(device)
    except RuntimeError as error:
        raise typer.BadParameter(
            f"{device!r} is no device; try cpu, cuda, cuda:1 or mps", param_hint="--device"
        ) from error
    kind = None if dtype is None else getattr(torch, dtype.value)
    return load_model(name, revision=revision, device=place, dtype=kind)


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no list of numbers such as 0,10,100", param_hint="--ks") from error
    if min(numbers) < 0:
        raise typer.BadParameter(f"{text!r} has a negative number", param_hint="--ks")
    return numbers


def _units(text: str) -> list[tuple[int, int]]:
    """Neurons written as ``L:N,L:N``, or read from a JSON file that lists them."""
    import json

    if text.endswith(".json"):
        try:
            pairs = json.loads(_read(Path(text)))
            return [(int(layer), int(neuron)) for layer, neuron in pairs]
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{text} ({error})", "a JSON list of [layer, neuron]", "see top.json of `mechrep neurons`"
            ) from error
    try:
        return [(int(layer), int(neuron)) for layer, neuron in (part.split(":") for part in text.split(","))]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is neither L:N,L:N nor a .json file", param_hint="--cut") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} ({error})", "a text file in UTF-8", "check the path and the encoding") from error


def _make_folder(folder: Path) -> None:
    """Before the long work, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"folder {folder} ({error.strerror})", "a place to write", "choose another with --out"
        ) from error


if __name__ == "__main__":
    app()
