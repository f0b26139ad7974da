import dataclasses
import gc
import hashlib
import json
import tracemalloc

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attncompare.benchmark.records import SCHEMA_VERSION, Record, cell_key
from attncompare.benchmark.store import SCHEMA, ResultStore
from attncompare.errors import ResultFormatError

COLUMNS = {"device": "cpu", "threads": 2, "batch_size": 8, "scored_by": "torch contiguous"}


def key_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def some_records(method: str = "cam", count: int = 3, **changes) -> list[Record]:
    first = Record("demo/cnn", method, "", 0, "deletion", "rise", 0.5, "ok", "", key_of(method), [1.0, 0.25, 0.0])
    return [
        dataclasses.replace(first, image=f"image {i}", target=i, value=0.1 + i / 7, **changes) for i in range(count)
    ]


def stored(folder, method: str = "cam") -> tuple[ResultStore, str]:
    store, key = ResultStore(folder), key_of(method)
    store.write(key, some_records(method), COLUMNS)
    return store, key


def files_of(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_records_are_read_as_they_were_written(tmp_path):
    store, key = stored(tmp_path)
    assert store.holds(key)
    frame = store.read()
    assert list(frame.columns) == SCHEMA.names
    for row, record in zip(frame.to_dict("records"), some_records(), strict=True):
        assert row.pop("curve").tolist() == record.curve
        assert row == {k: v for k, v in dataclasses.asdict(record).items() if k != "curve"} | COLUMNS


def test_a_record_without_a_value_keeps_its_status_and_reason(tmp_path):
    store, key = ResultStore(tmp_path), key_of("x")
    failed = dataclasses.replace(some_records()[0], value=None, curve=None, status="failed", detail="=blank\nmap, 'ü'")
    store.write(key, [failed], COLUMNS)
    row = store.read().iloc[0]
    assert pd.isna(row.value) and row.curve is None
    assert (row.status, row.detail) == ("failed", "=blank\nmap, 'ü'")


def failing(retry: bool) -> Record:
    return dataclasses.replace(some_records()[0], value=None, status="failed", detail="no", kind="error", retry=retry)


@pytest.mark.parametrize("retry", [True, False])
def test_a_cell_is_tried_again_where_one_row_says_so(tmp_path, retry):
    store, key = ResultStore(tmp_path), key_of("x")
    store.write(key, [*some_records(), failing(retry)], COLUMNS)
    assert store.holds(key) is not retry
    assert store.read()[["kind", "retry"]].values.tolist().count(["error", retry]) == 1


def test_a_file_from_before_the_columns_is_read_and_its_failures_are_tried_again(tmp_path):
    store = ResultStore(tmp_path)
    for name, rows in {"good": some_records(), "bad": [*some_records(), failing(retry=False)]}.items():
        columns = [field for field in SCHEMA.names if field not in ("kind", "retry")]
        table = pa.Table.from_pylist([dataclasses.asdict(row) | COLUMNS for row in rows], schema=SCHEMA).select(columns)
        content = json.dumps([table.column_names, table.to_pylist()], separators=(",", ":")).encode()
        digest = hashlib.sha256(content).hexdigest()
        store.path(key_of(name)).parent.mkdir(exist_ok=True)
        pq.write_table(table.replace_schema_metadata({"attncompare.sha256": digest}), store.path(key_of(name)))
    assert store.held([key_of("good"), key_of("bad")]) == {key_of("good")}
    frame = store.read()
    assert set(frame.kind) == {""} and set(frame.retry) == {False} and frame.retry.dtype == bool


def test_every_field_of_a_record_is_stored():
    assert {field.name for field in dataclasses.fields(Record)} <= set(SCHEMA.names)


def test_a_finished_cell_leaves_one_file_and_no_temporary_one(tmp_path):
    store, key = stored(tmp_path)
    store.write_manifest({"seed": 0})
    assert files_of(tmp_path) == {f"records/{key[:32]}.parquet", "run.json"}


def test_a_write_that_breaks_off_leaves_the_cell_missing_or_as_it_was(tmp_path, monkeypatch):
    store, key = stored(tmp_path)
    before = store.read()

    def pulled_plug(*_):
        raise OSError("no power")

    monkeypatch.setattr("os.replace", pulled_plug)
    with pytest.raises(OSError, match="no power"):
        store.write(key, some_records(count=1), COLUMNS)
    with pytest.raises(OSError, match="no power"):
        store.write(key_of("rise"), some_records("rise"), COLUMNS)
    monkeypatch.undo()
    assert store.holds(key) and not store.holds(key_of("rise"))
    pd.testing.assert_frame_equal(store.read(), before)


def test_a_cell_that_was_never_written_is_not_held(tmp_path):
    store, _ = stored(tmp_path)
    assert not store.holds(key_of("another"))
    assert not (tmp_path / "quarantine").exists()


def test_writing_again_replaces_a_cell(tmp_path):
    store, key = stored(tmp_path)
    store.write(key, some_records(count=1), COLUMNS)
    assert len(store.read()) == 1


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_set_aside_and_counts_as_missing(tmp_path, share):
    store, key = stored(tmp_path)
    path = store.path(key)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert not store.holds(key)
    assert not path.exists()
    assert {name for name in files_of(tmp_path) if name.endswith(".parquet")} == {f"quarantine/{path.name}"}
    assert any(name.startswith("quarantine/") and name.endswith(".txt") for name in files_of(tmp_path))
    store.write(key, some_records(), COLUMNS)
    assert store.holds(key) and len(store.read()) == 3


def test_damage_is_kept_beside_what_was_set_aside_before(tmp_path):
    store, key = stored(tmp_path)
    for content in (b"", b"first", b"second"):
        store.path(key).write_bytes(content)
        assert not store.holds(key)
        store.write(key, some_records(), COLUMNS)
    aside = [f"{key[:32]}.parquet", f"{key[:32]}.1.parquet", f"{key[:32]}.2.parquet"]
    assert sorted(store.quarantined()) == sorted(aside)
    assert [(tmp_path / "quarantine" / name).read_bytes() for name in aside] == [b"", b"first", b"second"]
    assert store.holds(key)


def test_the_file_of_one_cell_is_not_taken_for_another(tmp_path):
    store, key = stored(tmp_path)
    other = key_of("rise")
    store.path(other).write_bytes(store.path(key).read_bytes())
    assert store.held([key, other]) == {key}


def test_a_manifest_of_a_later_version_is_refused(tmp_path):
    store = ResultStore(tmp_path)
    store.write_manifest({"schema": SCHEMA_VERSION + 1})
    with pytest.raises(ResultFormatError, match=f"schema {SCHEMA_VERSION + 1}; this version reads up to"):
        store.manifest()


def test_a_flipped_byte_in_the_values_is_noticed(tmp_path):
    store, key = stored(tmp_path)
    path = store.path(key)
    content = bytearray(path.read_bytes())
    content[60] ^= 0x10
    path.write_bytes(content)
    assert not store.holds(key)
    assert (tmp_path / "quarantine" / path.name).read_bytes() == bytes(content)


def test_a_flipped_bit_anywhere_is_noticed_or_harmless(tmp_path):
    store, key = stored(tmp_path)
    path, before = store.path(key), store.read()
    whole, noticed, changed = path.read_bytes(), 0, []
    for place in range(0, len(whole), 17):
        content = bytearray(whole)
        content[place] ^= 0x01
        path.write_bytes(content)
        if not store.holds(key):
            noticed += 1
            continue
        try:
            same = store.read().equals(before)
        except KeyError:
            same = False
        if not same:
            changed.append(place)
    assert noticed > len(whole) / 17 / 4
    assert changed == []


def test_one_damaged_cell_does_not_touch_the_others(tmp_path):
    store, key = stored(tmp_path)
    stored(tmp_path, "rise")
    store.path(key).write_bytes(b"PAR1")
    assert not store.holds(key) and store.holds(key_of("rise"))
    assert set(store.read().method) == {"rise"}


def test_reading_a_damaged_file_is_an_error_that_names_the_folder(tmp_path):
    store, key = stored(tmp_path)
    store.path(key).write_bytes(b"PAR1")
    with pytest.raises(ResultFormatError) as caught:
        store.read()
    assert str(tmp_path) in str(caught.value)


def test_records_come_in_one_order_however_they_were_written(tmp_path):
    cells = {name: [*some_records(name), *some_records(name, measure="insertion")] for name in ("cam", "rise", "lime")}
    frames = []
    for number, names in enumerate((["cam", "rise", "lime"], ["lime", "cam", "rise"])):
        store = ResultStore(tmp_path / str(number))
        for name in names:
            # other keys, so that the files lie in another order too
            store.write(key_of(f"{number} {name}"), cells[name], COLUMNS)
        frames.append(store.read())
    pd.testing.assert_frame_equal(*frames)
    assert frames[0].method.is_monotonic_increasing
    assert frames[0][frames[0].method == "cam"].image.tolist() == ["image 0", "image 1", "image 2"] * 2


def test_chosen_cells_are_read_in_the_same_order(tmp_path):
    store, key = stored(tmp_path)
    stored(tmp_path, "rise")
    stored(tmp_path, "lime")
    first, second = store.read([key, key_of("rise")]), store.read([key_of("rise"), key])
    assert set(first.method) == {"cam", "rise"}
    pd.testing.assert_frame_equal(first, second)


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(ResultFormatError, match="holds no finished records"):
        ResultStore(tmp_path).read()


def test_a_cell_that_is_asked_for_and_missing_is_refused(tmp_path):
    store, _ = stored(tmp_path)
    with pytest.raises(ResultFormatError):
        store.read([key_of("another")])


def test_the_manifest_is_read_as_it_was_written(tmp_path):
    store = ResultStore(tmp_path / "new" / "run")
    store.write_manifest({"seed": 3, "spec": {"models": ["demo/cnn"]}, "finished": None})
    written = {"seed": 3, "spec": {"models": ["demo/cnn"]}, "finished": None}
    assert store.manifest() == written | {"schema": SCHEMA_VERSION}


@pytest.mark.parametrize("content", [None, "{", ""])
def test_a_manifest_that_cannot_be_read_is_refused_by_path(tmp_path, content):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(ResultFormatError, match=r"run\.json"):
        ResultStore(tmp_path).manifest()


def test_memory_does_not_grow_with_the_records_that_were_written(tmp_path):
    store = ResultStore(tmp_path)
    tracemalloc.start()
    sizes = []
    for cell in range(200):
        store.write(key_of(str(cell)), some_records(count=10), COLUMNS)
        if cell in (20, 199):
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes())
    tracemalloc.stop()
    assert sizes[1] - sizes[0] < 50_000  # a single cell kept for each would be 2 MB


CONTENT = {
    "model": "demo/cnn",
    "weights": "ab12",
    "preprocessing": {"size": (64, 64), "crop": None},
    "method": "cam",
    "options": {"layer": None},
    "version": 1,
    "metrics": [["deletion", 1], ["insertion", 1]],
    "protocol": {"name": "rise", "steps": None},
    "images": ["h1", "h2"],
    "target": "argmax",
    "dtype": "float32",
    "seed": 0,
}
CHANGED = {
    "model": "demo/vit",
    "weights": "ab13",
    "preprocessing": {"size": (64, 64), "crop": 0.9},
    "method": "lime",
    "options": {"layer": "layer4"},
    "version": 2,
    "metrics": [["deletion", 2], ["insertion", 1]],
    "protocol": {"name": "rise", "steps": 28},
    "images": ["h2", "h1"],
    "target": "label",
    "dtype": "float64",
    "seed": 1,
}


@pytest.mark.parametrize("field", CONTENT)
def test_a_key_changes_with_each_field(field):
    assert cell_key(CONTENT | {field: CHANGED[field]}) != cell_key(CONTENT)
    assert cell_key({k: v for k, v in CONTENT.items() if k != field}) != cell_key(CONTENT)


def test_a_key_does_not_depend_on_the_order_of_its_fields():
    backwards = {k: dict(reversed(v.items())) if isinstance(v, dict) else v for k, v in reversed(list(CONTENT.items()))}
    assert list(backwards) != list(CONTENT)
    assert cell_key(backwards) == cell_key(CONTENT)


def test_a_key_is_the_same_for_tuples_and_lists():
    assert cell_key({"size": (64, 64)}) == cell_key({"size": [64, 64]})


def test_a_key_changes_with_the_schema(monkeypatch):
    before = cell_key(CONTENT)
    monkeypatch.setattr("attncompare.benchmark.records.SCHEMA_VERSION", 999)
    assert cell_key(CONTENT) != before


def test_a_key_is_a_sha256_and_refuses_numbers_that_are_not():
    assert len(cell_key(CONTENT)) == 64 and int(cell_key(CONTENT), 16) > 0
    with pytest.raises(ValueError, match="JSON"):
        cell_key({"seed": float("nan")})


def test_damage_that_another_process_has_set_aside_is_no_error(tmp_path, monkeypatch):
    store, key = stored(tmp_path)
    (tmp_path / "records" / f"{key[:32]}.parquet").write_bytes(b"damaged")
    seen = store.files.read_those_there
    other = ResultStore(tmp_path)

    def overtaken(names):
        content = seen(names)
        other.held([key])
        return content

    monkeypatch.setattr(store.files, "read_those_there", overtaken)
    assert store.held([key]) == set() and len(store.quarantined()) == 1
