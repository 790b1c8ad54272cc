"""``write_report``: a study as one HTML file that needs nothing else; ``save_tables``: its numbers as files.

The page holds plotly once, its figures as JSON, its style and one small script, and asks nobody for anything: a content
security policy forbids every request, and every script but these two by their hashes, whatever text the model wrote.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib import resources
from pathlib import Path

from mechrep.errors import StoreError
from mechrep.studies.repetition_study import RepetitionStudy
from mechrep.views import report_sections as sections
from mechrep.views.report_figures import figures_json, report_figures
from mechrep.views.report_tables import neuron_table, perplexity_table, sweep_table
from mechrep.views.theme import GRID, INK, PAPER, PAPER_INK


def write_report(study: RepetitionStudy, path: str | Path) -> Path:
    """Write one self-contained HTML page: finding, figures, tables, examples, methods, provenance.

    It opens from disk, loads nothing, prints, and is light or dark by the reader's setting (or ``#light``, ``#dark``).

    Args:
        study: of :func:`mechrep.studies.run_repetition_study`.
        path: the file; folders above it are made.

    Returns:
        The path.

    Raises:
        StoreError: the file cannot be written.
    """
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(report_html(study), encoding="utf-8", newline="\n")
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)  # left only by a failure
    except OSError as error:
        raise StoreError(
            f"report {target} ({error.strerror})", "a place to write", "free space or choose another"
        ) from error
    return target


def report_html(study: RepetitionStudy) -> str:
    """The page as text."""
    from plotly.offline import get_plotlyjs

    figures = report_figures(study)
    by_name = {figure.name: figure.to_html() for figure in figures}
    finding, testing = (
        ("profile", "sorted", "layers"),
        [name for name in by_name if name not in ("profile", "sorted", "layers")],
    )
    tables = [neuron_table(study.neurons), sweep_table(study.deactivation)]
    if study.activation is not None:
        tables.append(sweep_table(study.activation))
    tables += [perplexity_table(study.deactivation_loss), perplexity_table(study.activation_loss)]
    body = [
        sections.header(study),
        sections.question(study),
        sections.key_numbers(study),
        f"<section><h2>Which neurons rise</h2>{''.join(by_name[name] for name in finding)}</section>",
        f"<section><h2>What happens when they are changed</h2>{''.join(by_name[name] for name in testing)}</section>",
        f"<section><h2>The numbers</h2>{''.join(tables)}</section>",
        sections.examples(study),
        sections.methods(study),
        sections.provenance(study),
    ]
    return _page(f"Repetition neurons in {study.model_name}", "\n".join(body), figures_json(figures), get_plotlyjs())


def _page(title: str, body: str, figures: str, plotly: str) -> str:
    """The frame of the page.  Line ends are those of HTML, because the hashes are taken after they are read."""
    script, plotly = (text.replace("\r\n", "\n").replace("\r", "\n") for text in (_asset("report.js"), plotly))
    hashes = " ".join(_hash(text) for text in (plotly, script))
    policy = f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {hashes}"
    colours = json.dumps({"ink": INK, "grid": GRID, "paper": PAPER, "paper-ink": PAPER_INK})
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="mechrep">
<title>{html.escape(title)}</title>
<style>
{_asset("report.css")}</style>
</head>
<body>
<button id="theme" type="button" aria-label="switch between light and dark">◐</button>
<main>
{body}
<noscript><p class="note">The figures are drawn by a script inside this file; this browser runs none.</p></noscript>
</main>
<script type="application/json" id="figures">{figures}</script>
<script type="application/json" id="colours">{colours}</script>
<script>{plotly}</script>
<script>{script}</script>
</body>
</html>
"""


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return resources.files("mechrep.views").joinpath("page", name).read_text(encoding="utf-8")


def save_tables(study: RepetitionStudy, folder: str | Path) -> Path:
    """Write the numbers of a study: tables as Parquet, results as safetensors with JSON, provenance as JSON.

    ``tables/`` holds one Parquet file per table, ``results/`` one folder per result (``Result.load`` reads it back),
    ``corpus.parquet`` the texts, ``examples.json`` and ``provenance.json`` what they say.

    Args:
        study: of :func:`mechrep.studies.run_repetition_study`.
        folder: made if it is missing.

    Returns:
        The folder.

    Raises:
        StoreError: the folder cannot be written.
    """
    target = Path(folder)
    results = {
        "neurons": study.neurons,
        "deactivation": study.deactivation,
        "activation": study.activation,
        "deactivation_loss": study.deactivation_loss,
        "activation_loss": study.activation_loss,
    }
    try:
        (target / "tables").mkdir(parents=True, exist_ok=True)
        for name, result in results.items():
            if result is None:
                continue
            result.to_frame().to_parquet(target / "tables" / f"{name}.parquet")
            result.save(target / "results" / name)
        for name, sweep in (("deactivation", study.deactivation), ("activation", study.activation)):
            if sweep is not None:
                sweep.outcome_frame().to_parquet(target / "tables" / f"{name}_outcomes.parquet")
        study.corpus.save(target / "corpus.parquet")
        for name, record in (("examples", study.examples), ("provenance", study.provenance.to_dict())):
            (target / f"{name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"folder {target} ({error.strerror})", "a place to write", "free space or choose another"
        ) from error
    return target
