"""Wrote the files beside this one, with mechrep 0.1; it does not run with a later one.

git worktree add OLD 5af04e1         # the last commit whose files have no sums
cd OLD && pip install . && python ../mechrep/tests/faults/of_0_1/write.py FOLDER
"""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import pandas as pd

import mechrep
from mechrep.journal import Journal
from mechrep.provenance import Provenance
from mechrep.report.build import build_report
from mechrep.run import Run
from mechrep.sections import Section

PROVENANCE = Provenance({"name": "hand"}, {"texts": 3}, {"r": 5})
TEXTS = ["It was the best of times", "one two one two one two"]


def main(folder: Path) -> None:
    assert mechrep.__version__ == version("mechrep") == "0.1.0"
    model = mechrep.load_model("mechrep-tiny")
    corpus = mechrep.Corpus.from_texts(TEXTS, model=model)
    corpus.save(folder / "corpus.parquet")
    mechrep.attention_sinks(model, corpus).save(folder / "sinks")
    mechrep.Circuit("two", heads=[(0, 1)], neurons=[(1, 3)], found="by eye").save(folder / "circuit.json")
    ways = {"baseline": None, "L0H0 off": mechrep.Heads([(0, 0)])}
    mechrep.compare(model, corpus, ways, max_new_tokens=8, progress=False).save(folder / "compared")
    for name, keys in {"odd": ["scores", "a" * 100], "reserved": ["CON"], "shared": ["A b", "a-b"]}.items():
        tables = {key: pd.DataFrame({"name": [key]}) for key in keys}
        Section(name, PROVENANCE, {"n": 3}, tables=tables).save(folder / name)
    Journal(folder / "store", PROVENANCE).keep(0, [{"values": [0.5, float("nan")]}])
    build_report(model, folder / "report", only=["first-layer"], run=Run(effort="quick", progress=False),
                 command="mechrep report mechrep-tiny --only first-layer --effort quick")  # fmt: skip
    for left in ("report.html", "report.json"):
        (folder / "report" / left).unlink()
    shutil.rmtree(folder / "report" / "store")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
