"""The data sets: cases of one's own as JSONL (the benchmarks follow)."""

from rl.datasets.cases import LabeledCase, read_cases

__all__ = ["LabeledCase", "read_cases"]
