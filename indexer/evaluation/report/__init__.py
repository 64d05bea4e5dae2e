"""The report of an evaluation: one HTML file that opens offline."""

from indexer.evaluation.report.page import write_report
from indexer.evaluation.report.pictures import Matcher

__all__ = ["Matcher", "write_report"]
