"""An evaluation as one HTML file that opens anywhere, offline."""

from indexer.report.page import write_report
from indexer.report.pictures import Matcher

__all__ = ["Matcher", "write_report"]
