"""Statements of the hot path, compiled once.

SQLAlchemy looks a statement up in its cache by a key that it computes each time, which for a small statement takes longer
than running it. Here an expression is compiled for a dialect once and run as text from then on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, CursorResult, Executable
from sqlalchemy.sql.compiler import SQLCompiler


class Prepared:
    """One statement whose parameters are all bound by name."""

    def __init__(self, statement: Executable, *, columns: Sequence[str] | None = None) -> None:
        """Take the expression; `columns` names the parameters of an INSERT."""
        self._statement = statement
        self._columns = columns
        self._compiled: dict[str, tuple[str, tuple[str, ...], Mapping[str, Any]]] = {}

    def run(self, connection: Connection, parameters: Mapping[str, Any]) -> CursorResult[Any]:
        """Run it once."""
        sql, names, fixed = self._for(connection)
        return connection.exec_driver_sql(sql, tuple(parameters.get(name, fixed.get(name)) for name in names))

    def run_many(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run it once for each row."""
        sql, names, _ = self._for(connection)
        connection.exec_driver_sql(sql, [tuple(row[name] for name in names) for row in rows])

    def _for(self, connection: Connection) -> tuple[str, tuple[str, ...], Mapping[str, Any]]:
        dialect = connection.dialect
        if dialect.name not in self._compiled:
            compiled = self._statement.compile(dialect=dialect, column_keys=self._columns)  # type: ignore[attr-defined]
            assert isinstance(compiled, SQLCompiler)  # what an expression of Core compiles to
            self._compiled[dialect.name] = (str(compiled), tuple(compiled.positiontup or ()), compiled.params)
        return self._compiled[dialect.name]
