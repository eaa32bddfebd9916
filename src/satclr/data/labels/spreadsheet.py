"""Spreadsheets as text, without trusting what they say about their size.

In: the bytes of an .xlsx file. Out: its sheets, rows of cells.
"""

from __future__ import annotations

import io
import zipfile
from typing import Any, Final

from satclr.data.labels.tables import LabelError

UNPACKED_MAX: Final = 1 << 30  # bytes of XML
CELLS_MAX: Final = 20_000_000  # three times those of MLRSNet's tables together


def sheets(raw: bytes, where: object) -> list[list[list[str]]]:
    """Each sheet's rows that are not blank, all as long as its longest.

    Raises LabelError, naming `where`, for what is no spreadsheet and for one that would fill the memory: a file
    of a few bytes can claim a sheet of 17 billion cells.
    """
    import openpyxl

    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as package:
            unpacked = sum(info.file_size for info in package.infolist())
        if unpacked > UNPACKED_MAX:
            raise _too_large(where, f"{unpacked:,} bytes unpacked")
        book = openpyxl.load_workbook(io.BytesIO(raw), read_only=True, data_only=True)
        return [_rows(sheet, where) for sheet in book.worksheets]
    except LabelError:
        raise
    except Exception as error:  # openpyxl raises whatever its parsers raise
        raise LabelError(f"{where}: not a readable spreadsheet ({error}); fetch it again") from error


def _rows(sheet: Any, where: object) -> list[list[str]]:
    sheet.reset_dimensions()  # the claim, to which every row would be filled up
    rows: list[list[str]] = []
    seen = 0
    for row in sheet.iter_rows(values_only=True):
        seen += len(row)
        if seen > CELLS_MAX:
            raise _too_large(where, f"over {CELLS_MAX:,} cells")
        if any(cell is not None for cell in row):
            rows.append(["" if cell is None else str(cell) for cell in row])
    width = max(map(len, rows), default=0)
    if width * len(rows) > CELLS_MAX:
        raise _too_large(where, f"{len(rows):,} rows of {width:,} cells")
    return [row + [""] * (width - len(row)) for row in rows]


def _too_large(where: object, size: str) -> LabelError:
    return LabelError(f"{where}: {size} is no label table; save what is needed of it as CSV")
