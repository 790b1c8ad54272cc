"""Texts from files: what a line is, what a column is, what is no text, and who says so."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechrep import commands
from mechrep.errors import InputError
from mechrep.models.load import load_model
from mechrep.report.build import Settings
from mechrep.text import Corpus
from mechrep.text.files import lines_of, read_text, read_texts

# What str.splitlines() takes for ends of lines, and files do not.
ODD = "a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i\rj"


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def file(tmp_path: Path):
    def write(name: str, data: bytes | str) -> Path:
        path = tmp_path / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    return write


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_lines_end_at_line_feeds_alone(file, mark: str, end: str, last: bool) -> None:
    texts = ["The king said", ODD, "  the sea ", "\u00e9\u4e16"]
    data = mark + f"{end}{end} {end}".join(texts) + (end if last else "")
    assert read_texts(file("prompts.txt", data)) == texts
    assert read_text(file("held_out.txt", data)).split("\n\n \n") == [*texts[:-1], texts[-1] + "\n" * last]


@given(st.lists(st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]))))
def test_lines_come_back_as_they_were_joined(lines: list[str]) -> None:
    for end in ("\n", "\r\n"):
        assert lines_of(end.join(lines)) == (lines or [""])


@pytest.mark.parametrize("pack", [gzip.compress, zstd, lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])])
def test_compressed_files_are_read_whatever_their_name(file, pack) -> None:
    packed = pack("\ufeffThe king said\r\nThe sea\r\n".encode())
    for name in ("p.txt.gz", "p.txt.zst", "p.txt", "p"):
        assert read_texts(file(name, packed)) == ["The king said", "The sea"]
    lines = pack(b'{"text": "a"}\n{"text": "b"}\n')
    assert read_texts(file("p.jsonl.gz", lines)) == ["a", "b"]
    with pytest.raises(InputError, match=r"p\.txt"):
        read_texts(file("p.txt", packed[:-9]))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_named(file, encoding: str) -> None:
    with pytest.raises(InputError, match="UTF-16" if "16" in encoding else "UTF-"):
        read_texts(file("p.txt", "The king said".encode(encoding)))


def test_a_byte_that_is_not_utf8_is_named_by_its_line(file) -> None:
    with pytest.raises(InputError, match="line 3 is not UTF-8"):
        read_texts(file("p.txt", "one\ntwo\nth\u00e9\n".encode("latin-1")))


def test_tables_of_every_kind_say_the_same(file, tmp_path: Path) -> None:
    texts = ["the sea", 'a "quoted", line', "two\nlines", ODD.replace("\r", ""), "NA", "null"]
    table = pd.DataFrame({"n": range(len(texts)), "text": texts, "author": ["x"] * len(texts)})
    table.to_parquet(tmp_path / "t.parquet")
    table.to_csv(tmp_path / "t.csv", index=False, encoding="utf-8-sig", lineterminator="\r\n")
    table.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    file("t.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in table.to_dict("records")))
    file("t.json", json.dumps(table.to_dict("records")))
    file("bare.jsonl", "\n".join(json.dumps(text) for text in texts))
    for name in ("t.parquet", "t.csv", "t.tsv", "t.jsonl", "t.json", "bare.jsonl"):
        assert read_texts(tmp_path / name) == texts, name
        assert read_text(tmp_path / name) == "\n\n".join(texts)
        if name != "bare.jsonl":
            assert read_texts(f"{tmp_path / name}::author") == ["x"] * len(texts)
            if name not in ("t.csv", "t.tsv"):  # where a number is a string like any other
                with pytest.raises(InputError, match="row 1"):
                    read_texts(f"{tmp_path / name}::n")


def test_the_column_is_named_where_it_is_not_clear(file, tmp_path: Path) -> None:
    assert read_texts(file("one.csv", "n,said\n1,the sea\n")) == ["the sea"]
    two = file("two.csv", "said,by\nthe sea,me\n")
    with pytest.raises(InputError, match=r"two\.csv::said"):
        read_texts(two)
    assert read_texts(f"{two}::by") == ["me"]
    for wrong in (f"{two}::who", f"{file('p.txt', 'a')}::who"):
        with pytest.raises(InputError, match="'who'"):
            read_texts(wrong)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("t.csv", "text,n\nthe sea,1\n,2\n", "row 2"),
        ("t.jsonl", '{"text": "a"}\n{"text": null}\n', "row 2"),
        ("t.jsonl", '{"text": "a"}\n{"other": "b"}\n', "row 2"),
        ("t.jsonl", '{"text": "a"}\n{"text": 7}\n', "row 2"),
        ("t.jsonl", '{"text": "a"}\n{"text": ""}\n', "row 2"),
        ("t.jsonl", '{"text": "a"}\n{"text": \n', "line 2"),
        ("t.jsonl", '{"text": "a"}\n"b"\n', "row 2"),
        ("t.json", '{"text": "a"}', "a list"),
        ("t.json", "[", "JSON"),
        ("t.csv", 'text\n"a\n', "CSV"),
        ("t.parquet", "PAR1", "Parquet"),
        ("t.txt", "\n \n", "no text"),
        ("t.csv", "text\n", "t.csv"),
        ("t.jsonl", "", "t.jsonl"),
    ],
)
def test_rows_without_a_text_are_named(file, name: str, data: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_texts(file(name, data))


def test_missing_values_of_parquet_are_named(tmp_path: Path) -> None:
    pd.DataFrame({"text": ["a", None]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"row 2.*missing"):
        read_texts(tmp_path / "t.parquet")
    with pytest.raises(InputError, match="nowhere"):
        read_texts(tmp_path / "nowhere.txt")
    with pytest.raises(InputError):
        read_text(tmp_path)


def test_commands_and_reports_read_files_in_this_way(file, tmp_path: Path) -> None:
    marked = file("held_out.txt", "\ufeffIt was late.\r\n")
    assert Settings(held_out=marked).held_out_text == commands._read(marked) == "It was late.\n"
    model = load_model("mechrep-tiny")
    texts = ["the sea", "the king"]
    want = Corpus.from_texts(texts, model=model)
    pd.DataFrame({"text": texts}).to_parquet(tmp_path / "texts.parquet")
    want.save(tmp_path / "corpus.parquet")
    for path in (file("p.txt", "the sea\nthe king"), tmp_path / "texts.parquet", tmp_path / "corpus.parquet"):
        corpus = commands._read_corpus(path, model)
        assert [corpus.row(i) for i in range(2)] == [want.row(i) for i in range(2)]


def test_a_column_named_text_is_meant_also_where_all_its_texts_are_numbers(file) -> None:
    assert read_texts(file("a.csv", "label,text\nx,1984\ny,2001\n")) == ["1984", "2001"]
    assert read_texts(file("b.csv", "id,words\n1,1984 or so\n2,2001\n")) == ["1984 or so", "2001"]


@pytest.mark.parametrize("name", ["text,n", "n,text", "text"])
def test_commas_that_nobody_quoted_are_no_columns(file, name: str) -> None:
    cells = {"text,n": "the sea, the king,1", "n,text": "1,the sea, the king", "text": "the sea, the king"}[name]
    with pytest.raises(InputError, match="cells"):
        read_texts(file("a.csv", f"{name}\n{cells}\n{cells}\n"))


def test_half_a_character_is_no_text(file) -> None:
    model = load_model("mechrep-tiny")
    texts = read_texts(file("a.jsonl", '{"text": "the sea"}\n{"text": "a\\ud800b"}\n'))
    with pytest.raises(InputError, match=r"text 1.*character 1"):
        Corpus.from_texts(texts, model=model)
