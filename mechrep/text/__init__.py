"""Floor 1, text: token sequences as data.

A ``Corpus`` holds texts as token ids with one row of facts per text; a ``Cycle`` says where a text started to
repeat itself; the detectors find cycles in finished texts, the watches find them while a text is being generated,
and the metrics say how much of a text is repetition.  Nothing here needs a model's weights.
"""

from __future__ import annotations

from mechrep.text.corpus import Corpus as Corpus
from mechrep.text.corpus_io import TokenizingModel as TokenizingModel
from mechrep.text.cycles import add_detector as add_detector
from mechrep.text.cycles import detect_cycle as detect_cycle
from mechrep.text.cycles import ngram_triple as ngram_triple
from mechrep.text.cycles import repeated_phrase as repeated_phrase
from mechrep.text.cycles import smallest_tail_block as smallest_tail_block
from mechrep.text.cycles import tail_cycle as tail_cycle
from mechrep.text.metrics import loop_share as loop_share
from mechrep.text.metrics import rep_n as rep_n
from mechrep.text.metrics import seq_rep_n as seq_rep_n
from mechrep.text.stimuli import random_repeats as random_repeats
from mechrep.text.stimuli import repeated_token as repeated_token
from mechrep.text.stimuli import repeated_tokens as repeated_tokens
from mechrep.text.stimuli import single_token_id as single_token_id
from mechrep.text.watch import Cycle as Cycle
from mechrep.text.watch import NgramTripleWatch as NgramTripleWatch
from mechrep.text.watch import TailWatch as TailWatch
from mechrep.text.watch import watch_for as watch_for
from mechrep.text.windows import windows_of_text as windows_of_text
