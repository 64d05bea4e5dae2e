"""Recall, precision, position error and calibration of an index, measured with photos of known places."""

from indexer.evaluation.comparison import Comparison, compare
from indexer.evaluation.per_query import write_csv
from indexer.evaluation.results import Evaluation, QueryResult, Rule
from indexer.evaluation.run import AT, evaluate
from indexer.evaluation.truth import AlignedBy, Expected

__all__ = [
    "AT",
    "AlignedBy",
    "Comparison",
    "Evaluation",
    "Expected",
    "QueryResult",
    "Rule",
    "compare",
    "evaluate",
    "write_csv",
]
