"""Wrong calls of texts and their cycles."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import torch

import mechrep
from mechrep import Corpus
from mechrep.errors import NothingFoundError, StoreError
from tests.badinput.case import file, folder, wrong

nan, inf = float("nan"), float("inf")
texts = Corpus.from_texts
wrong("Corpus.from_texts", "one string", lambda w: texts("The sea", model=w.model))
wrong("Corpus.from_texts", "empty", lambda w: texts([], model=w.model), lambda w: texts(["a", ""], model=w.model))
wrong(
    "Corpus.from_texts",
    "text 1",
    lambda w: texts(["a", None], model=w.model),
    lambda w: texts(["a", nan], model=w.model),
)
wrong("Corpus.from_texts", "int", lambda w: texts([3], model=w.model), lambda w: texts(3, model=w.model))
wrong("Corpus.from_texts", "bytes", lambda w: texts([b"The sea"], model=w.model))
wrong("Corpus.from_texts", "set", lambda w: texts({"a", "b"}, model=w.model))
wrong("Corpus.from_texts", "column", lambda w: texts(pd.DataFrame({"text": ["a"]}), model=w.model))
wrong("Corpus.from_texts", "tokenizer", lambda w: texts(["a"], model=w.other))
wrong("Corpus.from_texts", "model", lambda w: texts(["a"], model="mechrep-tiny"))
wrong("Corpus.from_texts", "Unicode", lambda w: texts(["a\ud800"], model=w.model))
wrong("Corpus.from_texts", "n_ctx", lambda w: texts(["sea " * 9999], model=w.model))
tokens = Corpus.from_tokens
wrong("Corpus.from_tokens", "model", lambda w: tokens([[0, 5]], model="mechrep-tiny"))
wrong(
    "Corpus.from_tokens",
    "id",
    lambda w: tokens([[0, 10**6]], model=w.model),
    lambda w: tokens([[0, -5]], model=w.model),
)
wrong("Corpus.from_tokens", "whole numbers", lambda w: tokens([[0.5, 1.0]], model=w.model))
wrong("Corpus.from_tokens", "whole numbers", lambda w: tokens([[True, False]], model=w.model))
wrong("Corpus.from_tokens", "ids", lambda w: tokens("The sea", model=w.model), lambda w: tokens(3, model=w.model))
wrong("Corpus.from_tokens", "text", lambda w: tokens([], model=w.model), lambda w: tokens([[]], model=w.model))
wrong("Corpus.from_tokens", "n_ctx", lambda w: tokens([[5] * 9999], model=w.model))
wrong("Corpus.from_tokens", "mask", lambda w: tokens([[0, 5]], model=w.model, attention_mask=[[1]]))
wrong("Corpus.from_tokens", "mask", lambda w: tokens([[0, 5, 6]], model=w.model, attention_mask=[[1, 0, 1]]))
wrong("Corpus.from_tokens", "mask", lambda w: tokens([[0, 5]], model=w.model, attention_mask=[[0, 0]]))
wrong("Corpus.from_tokens", "mask", lambda w: tokens([[0, 5]], model=w.model, attention_mask=3))
wrong("Corpus.from_tokens", "bos_policy", lambda w: tokens([[0, 5]], model=w.model, bos_policy="nosuch"))
wrong("Corpus.from_tokens", "rows", lambda w: tokens([[0, 5]], model=w.model, frame=pd.DataFrame({"a": [1, 2]})))
wrong("Corpus.from_tokens", "frame", lambda w: tokens([[0, 5]], model=w.model, frame=[1]))
wrong(
    "Corpus.from_tokens", "twice", lambda w: tokens([[0, 5]] * 2, model=w.model, frame=pd.DataFrame({"id": ["a", "a"]}))
)
wrong("Corpus.of", "texts", lambda w: Corpus.of(3, w.model), lambda w: Corpus.of(None, w.model))
wrong("Corpus.of", "model", lambda w: Corpus.of(["a"], "mechrep-tiny"))
wrong("Corpus.row", "text", *(lambda w, i=i: w.corpus.row(i) for i in (3, -4, 10**9)))
wrong("Corpus.decode", "text", lambda w: w.corpus.decode(3))
wrong("Corpus.decode", "tokenizer", lambda w: w.corpus.decode(0, w.other), lambda w: w.foreign.decode(0))
wrong("Corpus.text_of", "id", lambda w: w.corpus.text_of([10**6]))
wrong("Corpus.text_of", "tokenizer", lambda w: w.foreign.text_of([3]))
wrong("Corpus.select", "0 to 2", lambda w: w.corpus.select([3]), lambda w: w.corpus.select([-1]))
wrong("Corpus.select", "mask", lambda w: w.corpus.select([True, False]))
wrong("Corpus.select", "whole numbers", lambda w: w.corpus.select([0.5]), lambda w: w.corpus.select(["a"]))
wrong("Corpus.select", "selection", lambda w: w.corpus.select([]), error=NothingFoundError)
wrong("Corpus.select", "selection", lambda w: w.corpus.select(3), lambda w: w.corpus.select("012"))
wrong("Corpus.select", "twice", lambda w: w.corpus.select([0, 0]))
wrong("Corpus.where", "column", lambda w: w.corpus.where(nosuch=1))
wrong("Corpus.where", "where", lambda w: w.corpus.where(period=99), error=NothingFoundError)
wrong("Corpus.split", "both sides", lambda w: w.corpus.split(0.0), lambda w: w.corpus.split(1.0))
wrong("Corpus.split", "clusters", lambda w: w.corpus.split(0.5, clusters=["a"]))
wrong("Corpus.concatenate", "corpora", lambda w: Corpus.concatenate())
wrong("Corpus.concatenate", "vocabular", lambda w: Corpus.concatenate(w.corpus, w.foreign))
wrong("Corpus.concatenate", "Corpus", lambda w: Corpus.concatenate(w.corpus, ["a"]))
wrong("Corpus.with_columns", "score", lambda w: w.corpus.with_columns(score=[1]))
wrong("Corpus.with_columns", "prompt_length", lambda w: w.corpus.with_columns(prompt_length=[999, 1, 1]))
wrong("Corpus.with_cycles", "preset", lambda w: w.corpus.with_cycles("nosuch"))
wrong("Corpus.check_model", "vocabulary", lambda w: tokens([[0, 5]], model=w.model).check_model(w.other))
wrong("Corpus.check_model", "vocabulary", lambda w: w.foreign.check_model(w.model))
wrong("Corpus.load", "nosuch", lambda w: Corpus.load(w.folder / "nosuch.parquet"), error=StoreError)
wrong("Corpus.load", "a.parquet", lambda w: Corpus.load(file(w, "a.parquet", b"PAR1 no")), error=StoreError)
wrong("Corpus.load", "folder", lambda w: Corpus.load(folder(w, "folder")), error=StoreError)
wrong(
    "Corpus.save", "nosuch", lambda w: w.corpus.save(w.folder / "file-as-folder" / "nosuch.parquet"), error=StoreError
)
wrong("Corpus", "lengths", lambda w: replace(w.corpus, lengths=torch.tensor([1, 2])))
wrong("Corpus", "lengths", lambda w: replace(w.corpus, lengths=torch.tensor([0, 1, 2])))
wrong("Corpus", "tokens", lambda w: replace(w.corpus, tokens=w.corpus.tokens.float()))
wrong("Corpus", "tokens", lambda w: replace(w.corpus, tokens=w.corpus.tokens[0]))
wrong("Corpus", "bos_policy", lambda w: replace(w.corpus, bos_policy="nosuch"))
wrong("detect_cycle", "preset", lambda w: mechrep.detect_cycle([1, 2], "hiraoka2026"))
wrong("detect_cycle", "prompt_length", *(lambda w, n=n: mechrep.detect_cycle([1, 2], prompt_length=n) for n in (-1, 3)))
wrong("detect_cycle", "options", lambda w: mechrep.detect_cycle([1, 2], nosuch=3))
wrong("detect_cycle", "min_copies", lambda w: mechrep.detect_cycle([1, 2], min_copies=1))
wrong("detect_cycle", "decode", lambda w: mechrep.detect_cycle([1, 2], "counting"))
wrong("detect_cycle", "tokens", lambda w: mechrep.detect_cycle([0.5]), lambda w: mechrep.detect_cycle([[1, 2]]))
wrong("detect_cycle", "tokens", lambda w: mechrep.detect_cycle("abc"), lambda w: mechrep.detect_cycle(7))
wrong("Cycle.of", "start", lambda w: mechrep.Cycle.of([1, 2, 3], start=2, period=2, end=3, detector="x"))
wrong("Cycle.of", "period", lambda w: mechrep.Cycle.of([1, 2, 3], start=0, period=0, end=3, detector="x"))
wrong("Cycle.of", "end", lambda w: mechrep.Cycle.of([1, 2, 3], start=0, period=1, end=9, detector="x"))
