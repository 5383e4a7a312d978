# SPDX-License-Identifier: Apache-2.0
"""The papers' tables, run again: ``python -m fastfer.tables NAME``; `list_tables`, `load_table`, `run_table`."""

from fastfer.tables.run import Cell, run_table
from fastfer.tables.table import Row, Table, list_tables, load_table

__all__ = ["Cell", "Row", "Table", "list_tables", "load_table", "run_table"]
