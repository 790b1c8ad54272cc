"""What people pass as ``tokenizer=``: taken, or refused with one error that says tokenizer."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

from mechrep.errors import InputError, ModelError
from mechrep.models.load import load_model
from mechrep.text.corpus import Corpus
from tests.tiny_models import D_VOCAB, fresh, tiny, tiny_tokenizer


def in_memory() -> tokenizers.Tokenizer:
    words = {"<bos>": 0, "<eos>": 1, "<pad>": 2, **{f"w{number}": number for number in range(3, D_VOCAB)}}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return made


class Characters:
    def encode(self, text: str) -> list[int]:
        return [ord(letter) % 61 for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(97 + number % 26) for number in ids)


def check_reads(model: Any) -> None:
    assert model.encode("w3 w4", prepend_bos=True) == [0, 3, 4]
    for wish in (True, False):
        assert model.to_tokens("w3 w4", prepend_bos=wish).tolist() == [model.encode("w3 w4", prepend_bos=wish)]
    assert model.decode([3, 4]) == "w3 w4"


def test_a_path_is_read(tmp_path: Path) -> None:
    tiny_tokenizer(tmp_path)
    for given in (tmp_path, str(tmp_path), tmp_path / "tokenizer.json"):
        check_reads(load_model(tiny("llama"), tokenizer=given))


def test_a_tokenizer_made_in_memory_serves_both_views() -> None:
    check_reads(load_model(tiny("llama"), tokenizer=in_memory()))
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=in_memory(), bos_token="<bos>", eos_token="<eos>")
    before = copy.deepcopy((wrapped.init_kwargs, wrapped.special_tokens_map, wrapped.get_vocab()))
    check_reads(load_model(tiny("llama"), tokenizer=wrapped))
    assert (wrapped.init_kwargs, wrapped.special_tokens_map, wrapped.get_vocab()) == before


def test_characters_are_read_by_a_vocabulary_of_characters() -> None:
    """The way that the start page shows."""
    alphabet = {letter: number for number, letter in enumerate("\n abcdefghijklmnopqrstuvwxyz")}
    letters = tokenizers.Tokenizer(tokenizers.models.WordLevel(alphabet))
    letters.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("[\\s\\S]"), "isolated")
    letters.decoder = tokenizers.decoders.Fuse()
    model = load_model(tiny("llama"), tokenizer=letters)
    text = "the sea\nand  the sand"
    ids = [alphabet[letter] for letter in text]
    assert model.encode(text, prepend_bos=False) == ids
    assert model.to_tokens(text, prepend_bos=False).tolist() == [ids]
    assert model.decode(ids) == text


def test_a_special_id_of_the_configuration_that_is_a_word_stays_a_word() -> None:
    vocabulary = {"a": 0, "b": 1, "c": 2, "ab": 3, "cab": 4}
    letters = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("a", "b"), ("c", "ab")]))
    model = load_model(tiny("llama"), tokenizer=letters)
    assert model.encode("cab", prepend_bos=False) == [4]
    assert model.to_tokens("cab", prepend_bos=False).tolist() == [[4]]


def test_what_was_added_in_memory_is_seen_by_both_views(tmp_path: Path) -> None:
    """TransformerLens would read the tokenizer from its folder again, without the new word."""
    tokenizer = tiny_tokenizer(tmp_path)
    tokenizer.add_tokens(["sea"])
    module: Any = fresh("llama")
    module.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model = load_model(module, tokenizer=tokenizer)
    assert model.encode("sea w4", prepend_bos=False) == [61, 4]
    assert model.to_tokens("sea w4", prepend_bos=False).tolist() == [[61, 4]]
    assert model.anatomy.d_vocab == 62


def test_the_tokenizer_inside_a_processor_is_taken(tmp_path: Path) -> None:
    class Processor:
        tokenizer = tiny_tokenizer(tmp_path)

    check_reads(load_model(tiny("llama"), tokenizer=Processor()))


@pytest.mark.parametrize(
    "given", ["/no/where", "./nowhere", " ", "nobody/nothing", Characters(), ["w3"], 3, lambda text: [3]]
)
def test_what_is_no_tokenizer_is_one_error_that_says_so(given: Any) -> None:
    for spec in (tiny("llama"), "mechrep-tiny"):
        with pytest.raises(ModelError, match="given: tokenizer"):
            load_model(spec, tokenizer=given)


@pytest.mark.parametrize("content", [None, "", "{", "{}", "[]", '{"model": 3}'])
def test_a_folder_without_a_readable_tokenizer_is_one_error_that_says_so(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match="given: tokenizer"):
        load_model(tiny("llama"), tokenizer=tmp_path)


def test_a_broken_tokenizer_in_the_folder_is_named_and_can_be_replaced(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path / "other")
    tiny("llama").save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="given: tokenizer"):
        load_model(tmp_path)
    check_reads(load_model(tmp_path, tokenizer=tokenizer))


def test_added_tokens_without_an_embedding_are_told_and_foreign_words_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="a tokenizer with ids up to 60 for a model of 40"):
        load_model(fresh("llama", vocab_size=40), tokenizer=tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<more>"]})
    with pytest.warns(UserWarning, match="<more>"):
        model = load_model(tiny("llama"), tokenizer=tokenizer)
    check_reads(model)


def test_a_second_tokenizer_beside_an_objects_own_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    model = load_model(tiny("llama"), tokenizer=tokenizer)
    assert load_model(model, tokenizer=tokenizer) is model
    for own in (load_model("mechrep-tiny"), load_model(tiny("llama"))):
        with pytest.raises(ModelError, match="a tokenizer for a model object"):
            load_model(own, tokenizer=tokenizer)
    with pytest.raises(InputError, match="its own tokenizer"):
        load_model("mechrep-tiny", tokenizer=tokenizer)


def test_another_tokenizer_set_later_is_another_one_though_it_is_as_large() -> None:
    model = load_model("mechrep-tiny")
    before, corpus = model.tokenizer_fingerprint, Corpus.from_texts(["the sea"], model=model)
    state = json.loads(model.tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    one, two = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    model.tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(state))
    )
    assert len(model.tokenizer) == len(load_model("mechrep-tiny").tokenizer)
    assert model.tokenizer_fingerprint != before
    with pytest.raises(InputError, match="tokenizer"):
        corpus.check_model(model)
