"""Sphinx settings; `make docs` builds with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mechrep
from mechrep.models import tiny
from mechrep.studies.card import history_figure
from mechrep.viewer.show import fragment_of

HERE = Path(__file__).parent
STATIC = HERE / "_static"  # ignored by git
VIEW = "application/vnd.mechrep.view+json"  # data of a view, as `make notebooks-stored` keeps them
GALLERY = HERE / "notebooks"  # ignored by git: copies, made anew by every build


def copy_notebooks() -> None:
    """Copy the notebooks below this folder, the only place where Sphinx reads, with a page that lists them."""
    shutil.rmtree(GALLERY, ignore_errors=True)
    GALLERY.mkdir()
    sources = sorted((HERE.parent / "notebooks").glob("*.ipynb"))
    for source in sources:
        notebook = json.loads(source.read_text(encoding="utf-8"))
        # What has never been run does not name its language, and would be shown without colours.
        notebook["metadata"].setdefault("language_info", {"name": "python", "pygments_lexer": "ipython3"})
        views = [
            output["data"]
            for cell in notebook["cells"]
            for output in cell.get("outputs", [])
            if VIEW in output.get("data", {})
        ]
        for place, data in enumerate(views):  # live again; the script stands on a page once
            data["text/html"] = fragment_of(data.pop(VIEW), assets=place == 0)
        (GALLERY / source.name).write_text(json.dumps(notebook), encoding="utf-8")
    lines = ["# Notebooks", "", "Each of them runs on the embedded model, on a laptop, without a network.", ""]
    if sources:
        lines += ["```{toctree}", ":maxdepth: 1", "", *(source.stem for source in sources), "```", ""]
    (GALLERY / "index.md").write_text("\n".join(lines), encoding="utf-8")


def draw_training_histories() -> None:
    """The embedded models' cards over their training, as the pages that docs/mechrep-tiny*.md show in frames."""
    STATIC.mkdir(exist_ok=True)
    for name in tiny.NAMES:
        tokens = {f"step{line['step']}": line["tokens"] for line in tiny.history(name)}
        figure = history_figure(tiny.phenomena(name), name, tokens)
        figure.write_html(STATIC / f"{name}-history.html", include_plotlyjs=True)


copy_notebooks()
draw_training_histories()

project = "mechrep"
author = "the mechrep authors"
version = release = mechrep.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["real-models/*.md", "_build", "**.ipynb_checkpoints"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"  # the how-to pages: what they show is what this version does
nb_execution_excludepatterns = ["notebooks/*"]  # `make notebooks` runs them; the documentation shows what is stored
nb_execution_raise_on_error = True
nb_execution_timeout = 300
suppress_warnings = ["mystnb.unknown_mime_type"]  # a live figure has a picture or a line of text beside it

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # one entry per attribute of a dataclass, not two

html_theme = "furo"
html_static_path = ["_static"]
html_title = f"mechrep {release}"
html_copy_source = False
