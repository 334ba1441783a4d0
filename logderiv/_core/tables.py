"""One printer for the tables of reports."""

from collections.abc import Iterable, Sequence
from typing import Any


def table(names: Sequence[str], formats: str, rows: Iterable[Sequence[Any]]) -> str:
    """Lines of text: the names of the columns, then one line for each row.

    Args:
        names: Of the columns; set to the same width as what stands below them.
        formats: One format specification for each column, alignment and width first, such as `"<20 >13.6g"`.
        rows: One value for each column.

    Returns:
        The lines, each indented by two blanks.
    """
    specs = formats.split()
    head = [format(name, spec.partition(".")[0]) for name, spec in zip(names, specs, strict=True)]
    body = [[format(value, spec) for value, spec in zip(row, specs, strict=True)] for row in rows]
    return "\n".join("  " + "".join(cells).rstrip() for cells in [head, *body])
