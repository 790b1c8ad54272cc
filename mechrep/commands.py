"""The commands, made from the signatures of the studies: one schema for both, and the same options everywhere.

A parameter of a study whose type can be written on a command line becomes an option of the same name, explained by the
study's own docstring.  ``--effort``, ``--seed``, ``--out``, ``--json`` and ``--quiet`` mean the same in every command.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shlex
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from docstring_parser import parse as parse_docstring

from mechrep.ablation.benchmarks import Questions, benchmark_study, in_words
from mechrep.ablation.circuit import Circuit
from mechrep.ablation.effects import Effects
from mechrep.ablation.study import OUTCOMES, READ_OUTCOMES, Controls, ablation_study
from mechrep.errors import InputError
from mechrep.generation.decode import NEW_TOKENS, Decoding
from mechrep.generation.decode import generate as continue_texts
from mechrep.guards import some_of
from mechrep.interventions.ops import SinkPatch
from mechrep.models import tiny
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.notation import heads_and_neurons
from mechrep.report.build import PARTS, Part, Settings, build_report, is_report, load_sections, write_page
from mechrep.report.side_by_side import check_folders, write_side_by_side
from mechrep.report.terminal import frame_text, print_section
from mechrep.run import EFFORTS, ENGINES, Run
from mechrep.sections import Section, slug
from mechrep.studies.card import CardRow, card_history, measure_card
from mechrep.studies.first_layer import run_first_layer_study
from mechrep.studies.heads import run_head_study
from mechrep.studies.natural_vs_induced_study import run_text_kind_study
from mechrep.studies.neurons import run_repetition_study
from mechrep.studies.requirements import what_can_be_measured
from mechrep.studies.sink_patch import run_repair_study
from mechrep.studies.sinks import run_sink_study
from mechrep.studies.token_information_study import run_information_study
from mechrep.studies.training import run_training_study
from mechrep.studies.verify import verify_model
from mechrep.text.corpus import Corpus
from mechrep.text.corpus_io import has_ids
from mechrep.text.files import read_text, read_texts
from mechrep.text.shown import described_texts

Efforts = Literal["quick", "standard", "full"]
Engines = Literal["local", "ray"]
assert set(EFFORTS) == set(typing.get_args(Efforts)) and set(ENGINES) == set(typing.get_args(Engines))


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What every command takes.

    Attributes:
        out: folder for results and unfinished work; named after the command by default. The same command goes on there.
        effort: how many texts, control draws and null models: quick, standard or full.
        seed: of prompts, splits and draws.
        revision: checkpoint of the model, e.g. step512.
        device: cpu, cuda, cuda:1, mps; the best there is by default.
        dtype: type of the weights; float32 on the CPU by default.
        json: print the result as JSON, and nothing else, on standard output.
        quiet: show no progress.
    """

    out: Path | None = None
    effort: Efforts = "standard"
    seed: int = 0
    revision: str | None = None
    device: str | None = None
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    json: bool = False
    quiet: bool = False

    def folder(self, command: str) -> Path:
        """Where results go."""
        return Path(command) if self.out is None else self.out

    @property
    def progress(self) -> bool | None:
        """Whether progress is shown; ``None``: to people."""
        return False if self.quiet else None

    def load(self, model: str) -> Model:
        """The model on the command line.

        Raises:
            InputError: a device that does not exist.
            ModelError: a model that cannot be loaded.
        """
        return load_model(model, revision=self.revision, device=self.device, dtype=self.dtype)


@Parameter(name="*")
@dataclass(frozen=True)
class StudyOptions(Options):
    """What commands that run a study take beside that.

    Attributes:
        engine: local: this process; ray: the workers of a Ray cluster (pip install mechrep[ray]).
        workers: of Ray; one for each GPU or each core by default.
        address: of the cluster, host:port or auto; one is started here by default.
    """

    engine: Engines = "local"
    workers: int | None = None
    address: str | None = None

    def run(self, command: str) -> Run:
        """Options of the study; its cluster has been joined.

        Raises:
            InputError: workers or an address without Ray, or no Ray.
            EngineError: a cluster that does not answer.
        """
        made = Run(
            store=self.folder(command) / "store", seed=self.seed, effort=self.effort,
            engine=self.engine, workers=self.workers, address=self.address, progress=self.progress,
        )  # fmt: skip
        made.crew.begin()
        return made


@Parameter(name="*")
@dataclass(frozen=True)
class Writing:
    """How texts are continued.

    Attributes:
        max_new_tokens: tokens to write.
        temperature: 0 is greedy.
        top_k: sample among so many tokens.
    """

    max_new_tokens: int = NEW_TOKENS
    temperature: float = 0.0
    top_k: int | None = None

    def decoding(self, seed: int) -> Decoding:
        """The same for :func:`mechrep.generate`."""
        return Decoding(temperature=self.temperature, top_k=self.top_k, seed=seed)


_FILE = "a text file (UTF-8), .jsonl, .csv or .parquet (FILE::COLUMN), also .gz or .zst"
MODEL = Annotated[str, Parameter(help="An embedded model (mechrep models), a hub name, or a folder.")]
PROMPT = Annotated[list[str] | None, Parameter(help="A prompt; may be given several times.", negative=())]
PROMPTS = Annotated[Path | None, Parameter(help=f"A prompt per line or row: {_FILE}.")]
ABLATED = Annotated[
    str | None,
    Parameter(name=["--ablate", "--zero"], help="Components to set to zero: L3H1,L2N57, or a circuit's file."),
]


def prompts_of(prompt: Sequence[str] | None, prompts: Path | None) -> list[str]:
    """Prompts from the command line and from a file.

    Raises:
        InputError: none.
    """
    written = [*(prompt or []), *(read_texts(prompts) if prompts else [])]
    if not written:
        raise InputError("no prompt", "at least one", 'give a "text", or --prompts FILE')
    return written


# --- studies --------------------------------------------------------------------------------------------------------


# One option has one meaning in every command; where a study's own word is another's, the option is called so.
_FLAGS = {
    ("training", "prompts"): "--n-prompts",
    ("heads", "repeats"): "--random-repeats",
    ("sinks", "layer"): "--sink-layer",
    ("patch", "layer"): "--sink-layer",
}


def _flag(part: str, name: str) -> str:
    """How a parameter of a study is called on the command line."""
    usual = "--held-out" if name == "held_out_text" else f"--{name.replace('_', '-')}"
    return _FLAGS.get((part, name), usual)


def _from_study(part: str, study: Callable[..., Any]) -> Callable[..., None]:
    """A command from the signature of a study: its report, of this part alone, in a folder of its own."""
    signature, hints = inspect.signature(study), typing.get_type_hints(study)
    words = {one.arg_name: one.description or "" for one in parse_docstring(study.__doc__ or "").params}
    readers: dict[str, Callable[[str, Model], Any]] = {}
    parameters = [
        inspect.Parameter("model", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=MODEL),
    ]
    for name, one in list(signature.parameters.items())[1:]:
        kind = (Path | None, _read) if name == "held_out_text" else _option(hints.get(name, Any))
        if name == "run" or kind is None:
            continue
        annotation, reader = kind
        if reader is not None:
            readers[name] = reader
        default = one.default if reader is None else None
        named = Parameter(name=_flag(part, name), help=_explained(words.get(name, "")))
        shown = Annotated[annotation, named]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=shown))
    parameters.append(
        inspect.Parameter("options", inspect.Parameter.KEYWORD_ONLY, default=StudyOptions(), annotation=StudyOptions)
    )

    def command(model: str, *, options: StudyOptions = StudyOptions(), **given: Any) -> None:
        loaded = options.load(model)
        chosen = {
            name: readers[name](value, loaded) if name in readers and value is not None else value
            for name, value in given.items()
        }
        chosen = {name: value for name, value in chosen.items() if value is not None}

        def make(model: Model, run: Run, _settings: Settings) -> Section | Sequence[Section]:
            return study(model, **chosen, run=run).section()

        told = {_flag(part, name): value for name, value in given.items()}
        _build(loaded, part, {part: make}, options, line=_line(_COMMANDS.get(part, part), model, told, options))

    command.__doc__ = (study.__doc__ or "").partition("\n    Args:")[0]
    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    command.__name__ = part.replace("-", "_")
    return command


def _explained(text: str) -> str:
    """A description from a docstring without its markup."""
    return " ".join(re.sub(r":\w+:`~?(?:\w+\.)*(\w+)`", r"\1", text).replace("``", "").split())


def _option(annotation: Any) -> tuple[Any, Callable[[str, Model], Any] | None] | None:
    """How a parameter is written on the command line, and what reads it; ``None``: it cannot be."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = [one for one in (typing.get_args(annotation) if union else [annotation]) if one is not type(None)]
    if kinds and set(kinds) <= {int, float, str, bool, Path}:
        return annotation, None
    if Corpus in kinds:
        return Path | None, _read_corpus
    for one in kinds:
        inner = typing.get_args(one)
        if typing.get_origin(one) is not None and issubclass(typing.get_origin(one), Sequence) and inner:
            if inner[0] is int:
                return str | None, _read_numbers
            if inner[0] is str or str in typing.get_args(inner[0]) or typing.get_origin(inner[0]) is Literal:
                return str | None, _read_word_or_words if str in kinds else _read_words
    return None


def _read_numbers(text: str, _model: Model | None = None) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{text!r}", "whole numbers with commas between, such as 7,98", "correct the list") from None


def _read_words(text: str, _model: Model | None = None) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _read_word_or_words(text: str, _model: Model | None = None) -> str | list[str]:
    """A word that means several things, such as all, or words with commas between."""
    return _read_words(text) if "," in text else text


def _read_corpus(path: Any, model: Model) -> Corpus:
    """A corpus that mechrep saved (.parquet), or any other file of texts."""
    if Path(path).suffix == ".parquet" and has_ids(path):
        return Corpus.load(path, model)
    return Corpus.from_texts(read_texts(path), model=model)


def _read(path: str | Path, _model: Model | None = None) -> str:
    return read_text(path)


def _build(
    model: Model,
    name: str,
    parts: Mapping[str, Part],
    options: StudyOptions,
    only: Sequence[str] | None = None,
    settings: Settings | None = None,
    line: str = "",
) -> None:
    """Run parts, keep everything, and print what was found."""
    folder, run = options.folder(name), options.run(name)
    page = build_report(model, folder, only=only, run=run, parts=parts, settings=settings, command=line)
    if options.json:
        sys.stdout.write((folder / "report.json").read_text(encoding="utf-8") + "\n")
        return
    sections = load_sections(folder)
    for section in sections:
        print_section(section, tables=2 if len(sections) == 1 else 0)
    sys.stdout.write(f"{page}\n")


def _line(command: str, model: str, given: Mapping[str, Any], options: Options) -> str:
    """The command line that does this again, with what differs from the defaults."""
    values = dict(given) | {name: getattr(options, name) for name in _SAID}
    words = ["mechrep", command, model]
    for name, value in values.items():
        flag = name.removeprefix("--").replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words += [f"--{flag}", str(value)]
    return shlex.join(words)


_SAID = ("effort", "seed", "revision", "dtype")  # options that change numbers


def report(
    model: Annotated[str, Parameter(help="A model (embedded, hub name, folder), or the folder of a finished report.")],
    *others: Annotated[str, Parameter(help="More of them: all side by side on one page.")],
    only: Annotated[
        str | None, Parameter(help="Parts to run, of " + ",".join(PARTS) + "; those that are there already stay.")
    ] = None,
    preset: Annotated[
        Literal["mechrep", "hiraoka2025"], Parameter(help="Whose detector and windows decide about loops.")
    ] = "mechrep",
    sink_layer: Annotated[int | None, Parameter(help="A layer to take as the sink layer.")] = None,
    held_out: Annotated[Path | None, Parameter(help=f"Text that the model has not seen: {_FILE}.")] = None,
    options: StudyOptions = StudyOptions(),
) -> None:
    """Ask every question of mechrep of one model, beside controls, and write the answers as one page.

    The page is written after every part, and grows.  A stopped run goes on when the same command is given again.
    Several models get a page each and one on which they stand side by side.  The folder of a finished report is taken
    as it is, and its page made again.

    """
    chosen = None if only is None else [_ALIASES.get(name, name) for name in _read_words(only)]
    if chosen is not None:
        some_of("--only", chosen, PARTS)
    settings = Settings(preset, sink_layer, held_out)
    given = {
        "only": only,
        "preset": None if preset == Settings.preset else preset,
        "sink_layer": sink_layer,
        "held_out": held_out,
    }
    reports = [name for name in (model, *others) if is_report(name)]
    if reports and not others:
        plain = dataclasses.replace(StudyOptions(), json=options.json, quiet=options.quiet)
        named = [name for name, value in given.items() if value is not None]
        named += [
            one.name for one in dataclasses.fields(plain) if getattr(options, one.name) != getattr(plain, one.name)
        ]
        if named:
            raise InputError(
                f"--{named[0].replace('_', '-')} with {model}, a finished report",
                "the folder alone: its page is made again of what is there",
                f"to measure anew, give the model, and --out {model}",
            )
        page = write_page(model)
    elif not others:
        line = _line("report", model, given | {"out": options.out}, options)
        _build(options.load(model), "report", PARTS, options, chosen, settings, line)
        return
    else:
        out = options.folder("report")
        folders = [Path(name) if name in reports else out / slug(name) for name in (model, *others)]
        check_folders(folders, out)
        for name, folder in zip((model, *others), folders, strict=True):
            if name not in reports:
                run = dataclasses.replace(options.run("report"), store=folder / "store")
                line = _line("report", name, given | {"out": folder}, options)
                build_report(options.load(name), folder, only=chosen, run=run, settings=settings, command=line)
        page = write_side_by_side(folders, out)
    record = page.with_name("report.json")
    sys.stdout.write(record.read_text(encoding="utf-8") + "\n" if options.json else f"{page}\n")


_ALIASES = {"conditions": "text-kinds"}  # as the part was called before
_COMMANDS = {"training": "checkpoints"}  # parts whose command has another name


# --- ablations of one's own -----------------------------------------------------------------------------------------


def read_components(text: str) -> Circuit:
    """Components in the one notation: ``L3H1`` a head, ``L2N57`` a neuron, with commas; or a file of a circuit.

    Example:
        >>> read_components("L3H1,L2N57").components
        {'neurons': [[2, 57]], 'heads': [[3, 1]]}
    """
    if text.endswith(".json"):
        return Circuit.load(text)
    found = heads_and_neurons(text)
    return Circuit(text, heads=found["head"], neurons=found["neuron"])


def ablate(
    model: MODEL,
    components: Annotated[str, Parameter(help="L3H1,L2N57 (heads, neurons), or a .json file of a circuit.")],
    *,
    op: Annotated[Literal["zero", "to_bos"], Parameter(help="zero; for heads also attention moved to BOS.")] = "zero",
    when: Annotated[
        Literal["from_onset", "all"], Parameter(help="From the onset of loops on, or everywhere.")
    ] = "from_onset",
    outcomes: Annotated[str, Parameter(help="Some of " + ",".join(OUTCOMES) + ".")] = ",".join(READ_OUTCOMES),
    controls: Annotated[str, Parameter(help="layer_matched, random; with commas.")] = "layer_matched",
    options: StudyOptions = StudyOptions(),
) -> None:
    """Ablate components and measure what loops, copying and language lose, beside controls."""
    circuit, loaded = read_components(components), options.load(model)
    effects = ablation_study(
        loaded, circuit, outcomes=_read_words(outcomes), ops=[op], when=when,
        controls=Controls(_read_words(controls), strict=False), run=options.run("ablation"),
    )  # fmt: skip
    _keep(effects, options.folder("ablation"), options)


def eval(
    model: MODEL,
    *,
    ablate: ABLATED = None,
    patch: Annotated[str | None, Parameter(help="Sink neurons to hold: L1N5,L1N9, or auto to find them.")] = None,
    tasks: Annotated[str, Parameter(help="Benchmarks; continuation and recall need no data.")] = "continuation,recall",
    data: Annotated[Path | None, Parameter(help="Folder of the files of questions.")] = None,
    limit: Annotated[int | None, Parameter(help="Ask only so many questions of each.")] = None,
    options: StudyOptions = StudyOptions(),
) -> None:
    """Ask benchmark questions through lm-evaluation-harness, with and without an ablation or a patch, beside controls.

    Needs `pip install mechrep[evals]`.

    """
    from mechrep.ablation.benchmark_tasks import as_tasks, read_documents, require_harness

    require_harness()
    names = _read_words(tasks)
    for task in as_tasks(names):
        read_documents(task, data, 1)  # what is missing is said before the long work
    changes: dict[str, Any] = {} if ablate is None else {"ablated": read_components(ablate)}
    loaded = options.load(model)
    if patch is not None:
        changes["patched"] = _patch(patch, loaded, options.run("eval"))
    effects = benchmark_study(loaded, changes, questions=Questions(names, data, limit), run=options.run("eval"))
    if not options.json:
        for name, change in changes.items():
            done = change.intervention(when="all") if isinstance(change, Circuit) else change
            sys.stdout.write(f"{name}: {in_words(done)}\n")
    _keep(effects, options.folder("eval"), options)


def _patch(text: str, model: Model, run: Run) -> SinkPatch:
    """The patch on these neurons, or on the sink neurons that are found in the model itself."""
    if text == "auto":
        from mechrep.studies.find_sink import find_sink

        return SinkPatch(find_sink(model, run=run))
    circuit = read_components(text)
    if circuit.heads:
        raise InputError(f"--patch {text}", "neurons of one layer", "leave the heads out")
    return SinkPatch(circuit.neurons)


def _keep(effects: Effects, folder: Path, options: Options) -> None:
    """Save a table of effects with its figure, and print its summary."""
    effects.save(folder / "effects")
    effects.to_parquet(folder / "values.parquet")
    own = effects.to_frame() if len(effects.conditions) == 1 else effects.summary()
    if options.json:
        sys.stdout.write(own.to_json(orient="records", indent=1) + "\n")
        return
    if len(effects.conditions) > 1:
        effects.plot().write_html(folder / "effects.html", include_plotlyjs=True)
    columns = ["name", "part", "measure", "copy", "baseline", "value", "effect", "low", "high", "control_low",
               "control_high", "n", "m", "q", "verdict"]  # fmt: skip
    shown = own[[name for name in columns if name in own]].dropna(axis=1, how="all")
    sys.stdout.write(f"{frame_text(shown)}\n{folder}\n")


# --- studies of one's own model and of its training -----------------------------------------------------------------

neurons = _from_study("neurons", run_repetition_study)
heads = _from_study("heads", run_head_study)
sinks = _from_study("sinks", run_sink_study)
first_layer = _from_study("first-layer", run_first_layer_study)
patch = _from_study("patch", run_repair_study)
text_kinds = _from_study("text-kinds", run_text_kind_study)
information = _from_study("information", run_information_study)
checkpoints = _from_study("training", run_training_study)


def card(
    model: MODEL,
    *,
    revisions: Annotated[str | None, Parameter(help="Checkpoints too: step0,step512 or, if embedded, all.")] = None,
    prompts: Annotated[
        int | None, Parameter(name="--n-prompts", help="Sampled prompts for the share that loops.")
    ] = None,
    nulls: Annotated[int | None, Parameter(help="Null models to compare with; 0: none.")] = None,
    sink_layer: Annotated[int | None, Parameter(help="A layer to take as the sink layer.")] = None,
    held_out: Annotated[Path | None, Parameter(help=f"Text for losses and sinks: {_FILE}.")] = None,
    options: StudyOptions = StudyOptions(),
) -> None:
    """Measure loops, induction, attention sinks, BOS norm and repeated tokens, beside null models.

    Every row is kept as soon as it is measured: after an interruption the same command goes on.

    """
    text, folder = None if held_out is None else _read(held_out), options.folder("card")
    wanted = None if revisions is None else tiny.revisions(model) if revisions == "all" else _read_words(revisions)
    loaded, run = options.load(model), options.run("card")
    result = measure_card(
        loaded,
        held_out_text=text,
        prompts=prompts,
        sink_layer=sink_layer,
        nulls=nulls,
        run=run,
        show=None if options.json else _show_row,
    )
    result.save(folder / "card")
    tables = [result.to_frame()]
    if wanted is not None:
        history = card_history(model, wanted, prompts=prompts or 256, sink_layer=sink_layer, run=run)
        history.to_parquet(folder / "history.parquet")
        tables.append(history)
    if options.json:
        records = [json.loads(table.to_json(orient="records")) for table in tables]
        sys.stdout.write(json.dumps(dict(zip(("card", "history"), records, strict=False)), indent=1) + "\n")
        return
    for table in tables:
        sys.stdout.write(frame_text(table) + "\n")
    sys.stdout.write(f"{folder}\n")


def _show_row(row: CardRow) -> None:
    sys.stdout.write(row.line + "\n")
    sys.stdout.flush()


def verify(model: MODEL, *, options: StudyOptions = StudyOptions()) -> None:
    """Compare what is published about a model (sinks, dimensions, heads, shares) with what is measured on it.

    Each value gets one of three words: match, mismatch, not measured. A mismatch is a finding, and no error: the exit
    code is 0 either way.

    """
    result = verify_model(options.load(model), run=options.run("verify"))
    if options.out is not None:
        result.save(options.out / "verify")
    if options.json:
        record = {"model": result.provenance.model["name"], "recognised": list(result.recognised), "how": result.how}
        rows = json.loads(result.to_frame().to_json(orient="records"))
        sys.stdout.write(json.dumps(record | {"values": rows}, indent=1, ensure_ascii=False) + "\n")
        return
    print_section(result.section(), tables=0)
    if result.rows:
        columns = ["verdict", "what", "published", "measured"]
        sys.stdout.write(frame_text(result.to_frame()[columns]) + "\n")
        sys.stdout.write("sources: " + "; ".join(dict.fromkeys(result.to_frame()["source"])) + "\n")


# --- texts and models -----------------------------------------------------------------------------------------------


def generate(
    model: MODEL,
    prompt: PROMPT = None,
    *,
    prompts: PROMPTS = None,
    writing: Writing = Writing(),
    ablate: ABLATED = None,
    preset: Annotated[Literal["mechrep", "hiraoka2025"], Parameter(help="Whose detector marks loops.")] = "mechrep",
    options: Options = Options(),
) -> None:
    """Continue prompts, with components ablated if asked, and mark the loops: │ ends the prompt, ⟪loop⟫."""
    written = prompts_of(prompt, prompts)
    circuit, loaded = None if ablate is None else read_components(ablate), options.load(model)
    if circuit is not None:
        circuit.check(loaded.anatomy)
    corpus = continue_texts(
        loaded,
        Corpus.from_texts(written, model=loaded, source="prompt"),
        max_new_tokens=writing.max_new_tokens,
        decoding=writing.decoding(options.seed),
        interventions=None if circuit is None else circuit.intervention(),
    ).with_cycles(preset, eos_id=loaded.eos_ids)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        corpus.save(options.out / "texts.parquet")
    if options.json:
        texts = [{"text": loaded.decode(corpus.row(i)), **_plain(corpus.frame.iloc[i])} for i in range(len(corpus))]
        sys.stdout.write(json.dumps(texts, indent=1, ensure_ascii=False) + "\n")
        return
    for text in described_texts(corpus, loaded.decode):
        sys.stdout.write(f"{text}\n")
    if options.out is not None:
        sys.stdout.write(f"{options.out / 'texts.parquet'}\n")


def _plain(row: Any) -> dict[str, Any]:
    """A row of facts as JSON holds it: no NaN, no NumPy."""
    return json.loads(row.to_json(default_handler=str))


def models(
    model: Annotated[str | None, Parameter(help="A model to look at: embedded, a hub name, or a folder.")] = None,
    *,
    explain: Annotated[bool, Parameter(help="What can be measured on it, and why not the rest.", negative=())] = False,
    options: Options = Options(),
) -> None:
    """The embedded models with their checkpoints; or, of one model, its sizes and what can be measured on it."""
    if model is not None:
        _look_at(options.load(model), explain, options)
        return
    if explain:
        raise InputError("--explain without a model", "a model", "mechrep models NAME --explain")
    kept = {name: {"revisions": list(tiny.revisions(name)), "history": list(tiny.history(name))} for name in tiny.NAMES}
    if options.json:
        sys.stdout.write(json.dumps(kept, indent=1) + "\n")
        return
    for name, facts in kept.items():
        sys.stdout.write(f"{name}: embedded, no network; --revision is the last of these by default\n")
        sys.stdout.write(f"  {'revision':>12} {'tokens seen':>13} {'held-out loss':>14}\n")
        for line in facts["history"]:
            revision = f"step{line['step']}"
            label = revision if revision in facts["revisions"] else f"({line['step']})"
            sys.stdout.write(f"  {label:>12} {line['tokens']:>13,} {line['held_out_loss']:>14.3f}\n")
        sys.stdout.write("  Steps in brackets were measured, not kept.\n")
    sys.stdout.write("others: a hub name (EleutherAI/pythia-70m), or a folder with config.json and weights\n")


_SHOWN = ("architecture", "n_layers", "n_heads", "n_kv_heads", "d_model", "d_head", "d_vocab", "n_ctx", "gated",
          "parallel", "activation", "positions", "norm")  # fmt: skip


def _look_at(model: Model, explain: bool, options: Options) -> None:
    """Sizes of a model, and what can be measured on it."""
    anatomy = model.anatomy
    facts = {name: getattr(anatomy, name) for name in _SHOWN}
    facts |= {name: list(getattr(anatomy, name)) for name in ("attention_layers", "neurons", "experts")}
    rows = what_can_be_measured(model) if explain else []
    if options.json:
        record = {"model": model.name, "anatomy": facts, "measurable": [dataclasses.asdict(row) for row in rows]}
        sys.stdout.write(json.dumps(record, indent=1) + "\n")
        return
    for name, value in facts.items():
        sys.stdout.write(f"{name.replace('_', ' '):>16}  {value}\n")
    for row in rows:
        sys.stdout.write(f"{row.part:<22} {'yes' if row.measured else 'no ':<4} {row.reason}".rstrip() + "\n")
