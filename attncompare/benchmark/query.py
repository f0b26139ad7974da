"""SQL over the records of a run, by DuckDB; no model library is needed for it."""

import duckdb
import pandas as pd
import pyarrow as pa

from attncompare.benchmark.store import ResultStore
from attncompare.errors import SpecError
from attncompare.storage.folder import Location

CLOSED = {
    "enable_external_access": False,  # no file, no network
    "autoload_known_extensions": False,
    "autoinstall_known_extensions": False,
    "python_enable_replacements": False,  # a name in the SQL is a table, never a variable of this program
    "lock_configuration": True,
}


def query_table(records: pa.Table, sql: str) -> pd.DataFrame:
    """The answer to one SQL statement over the view `records`; SpecError with DuckDB's first line when it has none.

    The statement sees a copy in memory and nothing else: it cannot change the run, read files or load extensions.

    >>> query_table(pa.table({"method": ["cam", "rise"], "value": [0.5, 0.25]}), "select max(value) as best from records")
       best
    0   0.5
    """
    with duckdb.connect(":memory:") as connection:
        connection.register("records", records)
        for name, value in CLOSED.items():
            connection.execute(f"SET {name} = {str(value).lower()}")
        try:
            found: pd.DataFrame = connection.sql(sql).df()
        except duckdb.Error as error:
            raise SpecError(f"query: {' '.join(str(error).split())}") from error
        except AttributeError as error:  # nothing came back
            raise SpecError("query: the statement gives no table; write select ... from records") from error
    return found


def query_run(folder: Location, sql: str, name: str = "run.json") -> pd.DataFrame:
    """The same over the records of a run's own cells, which the file `name` in its folder lists."""
    store = ResultStore(folder)
    return query_table(store.table(store.manifest(name)["keys"]), sql)
