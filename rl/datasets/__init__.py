"""The data sets: the benchmarks of the papers' tables, and cases of one's own as JSONL."""

from rl.datasets.benchmarks import BENCHMARKS, is_benchmark, read_benchmark
from rl.datasets.cases import LabeledCase, read_cases, splits_of

__all__ = ["BENCHMARKS", "LabeledCase", "is_benchmark", "read_benchmark", "read_cases", "splits_of"]
