"""Floor 2: reading a model over a corpus in one pass, for all analyzers together."""

from mechrep.cache.corpus_cache import Analyzer as Analyzer
from mechrep.cache.corpus_cache import Batch as Batch
from mechrep.cache.corpus_cache import CorpusCache as CorpusCache
