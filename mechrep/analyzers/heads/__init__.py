"""Attention heads: what they look at, what they write, what they are composed of, and why they attend."""

from mechrep.analyzers.heads.result import HeadScoreResult as HeadScoreResult
from mechrep.analyzers.heads.scores import HeadScores as HeadScores
from mechrep.analyzers.heads.scores import score_heads as score_heads
