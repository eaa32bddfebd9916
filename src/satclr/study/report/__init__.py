"""The whole study as one page: reports/<profile>/report.html, self-contained, offline, printable.

In: compare.json, the arms' results, the tile store and its audit. Out: one HTML file below 15 MB.

    satclr report --profile sample
"""

from satclr.study.report.page import ReportError, run
from satclr.study.report.provenance import commit

__all__ = ["ReportError", "commit", "run"]
