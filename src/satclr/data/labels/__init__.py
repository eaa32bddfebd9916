"""Label tables: read by column name, under canonical names, and audited.

In: a folder of `<category>.csv` tables, one row a tile, one 0/1 column a label. Out: `Labels`, and an
`Audit` of what is wrong with them. Command: `satclr audit LABELS_DIR`.
"""

from satclr.data.labels.audit import Audit, audit, flagged_rows, render
from satclr.data.labels.checks import Finding
from satclr.data.labels.spreadsheet import sheets
from satclr.data.labels.tables import LabelError, Labels, canonical, read, rows

__all__ = [
    "Audit",
    "Finding",
    "LabelError",
    "Labels",
    "audit",
    "canonical",
    "flagged_rows",
    "read",
    "render",
    "rows",
    "sheets",
]
