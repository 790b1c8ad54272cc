"""Benchmarks under intervention: the same questions with and without, through lm-evaluation-harness."""

from mechrep.studies.benchmarks.result import BenchmarkResult as BenchmarkResult
from mechrep.studies.benchmarks.study import benchmark_study as benchmark_study
