"""Reads exports with pyarrow and DuckDB and reports the rows that each of them saw."""

import datetime
import json
import sys

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

files = json.loads(sys.argv[1])  # by format: the paths of its parts, in order


def report(**fields):
    print(json.dumps(fields), flush=True)


def milliseconds(value):
    if value in (None, ""):
        return None
    if isinstance(value, str):
        value = datetime.datetime.fromisoformat(value.replace("Z", "+00:00"))
    if value.tzinfo is None:  # DuckDB hands out UTC without saying so
        value = value.replace(tzinfo=datetime.timezone.utc)
    return round(value.timestamp() * 1000)


def metadata(value):
    return dict(json.loads(value) if isinstance(value, str) else value)


def row(r):
    return {
        "event_id": r["event_id"],
        "session_id": r["session_id"],
        "workflow_id": r["workflow_id"] or None,
        "type": r["type"],
        "time": milliseconds(r["time"]),
        "client_time": milliseconds(r["client_time"]),
        "t_ms": int(r["t_ms"]),
        "confidence": None if r["confidence"] in (None, "") else float(r["confidence"]),
        "frame_id": r["frame_id"] or None,
        "message_id": r["message_id"] or None,
        "metadata": metadata(r["metadata"]),
        "content_type": r["content_type"],
        "payload": r["payload"],
    }


def tell(reader, rows):
    report(reader=reader, rows=[row(r) for r in rows])


def records(relation):  # by Arrow: Python times with a zone need a package more
    return relation.fetch_arrow_table().to_pylist()


tables = [pa.parquet.read_table(f) for f in files["parquet"]]
tell("pyarrow parquet", pa.concat_tables(tables).to_pylist())
tell("pyarrow arrow", [r for f in files["arrow"] for r in pa.ipc.open_stream(f).read_all().to_pylist()])

text = pa.csv.ConvertOptions(column_types={n: pa.string() for n in tables[0].column_names}, strings_can_be_null=False)
lines = pa.csv.ParseOptions(newlines_in_values=True)
tell("pyarrow csv", [r for f in files["csv"] for r in pa.csv.read_csv(f, parse_options=lines, convert_options=text).to_pylist()])

db = duckdb.connect()
db.execute("SET TimeZone = 'UTC'")
stream = pa.ipc.open_stream(files["arrow"][0]).read_all()
tell("duckdb arrow", records(db.sql("SELECT * FROM stream")))
tell("duckdb parquet", records(db.read_parquet(files["parquet"])))
tell("duckdb csv", records(db.sql("SELECT * FROM read_csv(?, header = true, all_varchar = true, delim = ',', quote = '\"', escape = '\"')", params=[files["csv"]])))
for reader, schema in ("pyarrow parquet", tables[0].schema), ("pyarrow arrow", stream.schema):
    report(reader=reader, columns={f.name: str(f.type) for f in schema})
