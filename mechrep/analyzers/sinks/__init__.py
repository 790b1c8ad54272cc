"""Attention sinks: which position is marked, by which neurons, who rests on it, and what runs of one token do."""

from mechrep.analyzers.sinks.attention_sinks import AttentionSinks as AttentionSinks
from mechrep.analyzers.sinks.cluster import ov_cluster as ov_cluster
from mechrep.analyzers.sinks.find_sink import find_sink as find_sink
from mechrep.analyzers.sinks.first_position import attention_sinks as attention_sinks
from mechrep.analyzers.sinks.first_position import first_position_attention as first_position_attention
from mechrep.analyzers.sinks.known_sinks import known_sinks as known_sinks
from mechrep.analyzers.sinks.norms import SinkNorms as SinkNorms
from mechrep.analyzers.sinks.repeat_norms import RepeatNorms as RepeatNorms
