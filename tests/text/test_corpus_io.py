"""A corpus on disk: what is saved is loaded, and what is damaged, foreign or half-written is noticed."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechrep.errors import InputError, StoreError
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.text import Corpus
from tests.tiny_models import loaded

rows_of_ids = st.lists(st.lists(st.integers(0, 26), min_size=1, max_size=12), min_size=1, max_size=6)


def corpus_of(n: int) -> Corpus:
    return Corpus.from_tokens([[0, *range(1, 2 + i % 5)] for i in range(n)], source="demo")


def rows(corpus: Corpus) -> list[list[int]]:
    return [corpus.row(i) for i in range(len(corpus))]


@settings(deadline=None, max_examples=15)
@given(ids=rows_of_ids, conditions=st.lists(st.text(max_size=5), min_size=6, max_size=6))
def test_what_is_saved_is_what_is_loaded(tmp_path_factory, ids: list[list[int]], conditions: list[str]) -> None:
    path = tmp_path_factory.mktemp("corpus") / "c.parquet"
    own = {
        "condition": conditions[: len(ids)],
        "flag": True,
        "score": 0.5,
        "times": pd.array([None] * len(ids), "Int64"),
    }
    frame = pd.DataFrame(own)
    facts = {"tokenizer": "letters-v1", "bos_id": 0, "bos_policy": "absent", "d_vocab": 27, "model_name": "ä<b>"}
    corpus = replace(Corpus.from_tokens(ids, frame=frame, pad_id=3, attention_mask=True).with_cycles(), **facts)
    corpus.save(path)
    loaded = Corpus.load(path)
    assert rows(loaded) == ids
    pd.testing.assert_frame_equal(loaded.frame, corpus.frame)
    assert loaded._facts() == corpus._facts()
    assert (loaded.tokens == corpus.tokens).all()
    assert [p.name for p in path.parent.iterdir()] == ["c.parquet"]


def test_the_file_is_plain_parquet_for_other_tools(tmp_path: Path) -> None:
    corpus_of(3).save(tmp_path / "c.parquet")
    table = pq.read_table(tmp_path / "c.parquet")
    assert table.schema.field("tokens").type == pa.list_(pa.int32())
    assert table["tokens"].to_pylist() == rows(corpus_of(3))
    assert table["id"].to_pylist() == ["demo-0", "demo-1", "demo-2"]


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no file"):
        Corpus.load(tmp_path / "nowhere.parquet")
    with pytest.raises(StoreError, match="no file"):
        Corpus.load(tmp_path)
    (tmp_path / "notes.parquet").write_text("not a table")
    with pytest.raises(StoreError, match="cannot be read"):
        Corpus.load(tmp_path / "notes.parquet")
    pd.DataFrame({"text": ["the sea"]}).to_parquet(tmp_path / "foreign.parquet")
    with pytest.raises(StoreError, match="something else"):
        Corpus.load(tmp_path / "foreign.parquet")


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    corpus_of(2).save(path)
    table = pq.read_table(path)
    header = table.schema.metadata[b"mechrep.corpus"].replace(b'"format": 1', b'"format": 2')
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"mechrep.corpus": header}), path)
    with pytest.raises(StoreError, match="format 2"):
        Corpus.load(path)


def test_damage_is_noticed(tmp_path: Path) -> None:
    corpus, path = corpus_of(20), tmp_path / "c.parquet"
    corpus.save(path)
    group = pq.read_metadata(path).row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    (ids,) = (column for column in columns if column.path_in_schema.startswith("tokens."))
    whole, rng = path.read_bytes(), random.Random(0)
    for cut in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(StoreError):
            Corpus.load(path)
    for _ in range(20):
        damaged = bytearray(whole)
        place = ids.dictionary_page_offset + rng.randrange(ids.total_compressed_size)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            # A bit that means nothing may flip unnoticed, but no other corpus may come back.
            assert Corpus.load(path).fingerprint() == corpus.fingerprint()
        except StoreError:
            continue


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "c.parquet"
    corpus_of(3).save(path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the next bytes fail as they would on a full disk
    try:
        with pytest.raises(StoreError, match="free space"):
            corpus_of(5).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["c.parquet"]
    assert path.read_bytes() == before


def test_places_and_columns_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="a place to write"):
        corpus_of(2).save(tmp_path / "nowhere" / "c.parquet")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError):
        corpus_of(2).save(tmp_path / "folder")
    with pytest.raises(InputError, match="plain values"):
        corpus_of(2).with_columns(odd=[object(), object()]).save(tmp_path / "c.parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


# --- tables that another tool has written ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded() -> Model:
    return load_model("mechrep-tiny")


def saved(path: Path, model: Model) -> Corpus:
    corpus = Corpus.from_texts(["the sea", "the king said", "and the king"], model=model)
    corpus = corpus.with_columns(topic=["sea", "king", "king"]).with_cycles(eos_id=model.eos_ids)
    corpus.save(path)
    return corpus


def test_a_corpus_filtered_in_pandas_says_what_is_gone_and_loads_with_its_model(
    tmp_path: Path, embedded: Model
) -> None:
    path = tmp_path / "c.parquet"
    corpus = saved(path, embedded)
    table = pd.read_parquet(path)
    table[table["topic"] == "king"].to_parquet(path)
    with pytest.raises(StoreError, match=r"bos_policy.*model="):
        Corpus.load(path)
    again, want = Corpus.load(path, embedded), corpus.where(topic="king")
    assert rows(again) == rows(want)
    pd.testing.assert_frame_equal(again.frame, want.frame)
    assert (again.tokenizer, again.bos_id, again.d_vocab) == (corpus.tokenizer, corpus.bos_id, corpus.d_vocab)


def test_a_corpus_filtered_with_its_schema_kept_is_loaded_with_its_model_only(tmp_path: Path, embedded: Model) -> None:
    path = tmp_path / "c.parquet"
    corpus = saved(path, embedded)
    table = pq.read_table(path)
    large = table.schema.get_field_index("tokens")
    for changed in (
        table.filter([True, False, True]),
        # As Polars writes it: other types for the same, and no metadata.
        table.set_column(large, "tokens", table["tokens"].cast(pa.large_list(pa.int32())))
        .filter([True, False, True])
        .replace_schema_metadata(None),
    ):
        pq.write_table(changed, path)
        with pytest.raises(StoreError, match="model="):
            Corpus.load(path)
        again = Corpus.load(path, embedded)
        assert rows(again) == rows(corpus.select([0, 2]))
        pd.testing.assert_frame_equal(again.frame, corpus.select([0, 2]).frame)


def test_a_table_of_no_ids_or_of_another_model_is_refused(tmp_path: Path, embedded: Model) -> None:
    path = tmp_path / "c.parquet"
    for column in ([[1.5, 2.0]], ["the sea"]):
        pd.DataFrame({"tokens": column}).to_parquet(path)
        with pytest.raises(StoreError, match="something else"):
            Corpus.load(path, embedded)
    pd.DataFrame({"tokens": [[1, 2], None]}).to_parquet(path)
    with pytest.raises(StoreError, match="row 2"):
        Corpus.load(path, embedded)
    pd.DataFrame({"tokens": [[5, 99999]]}).to_parquet(path)
    with pytest.raises(StoreError, match="99999"):
        Corpus.load(path, embedded)
    saved(path, embedded)
    with pytest.raises(InputError, match="vocabulary"):
        Corpus.load(path, loaded("llama"))
