"""A run folder written at each schema version, kept for good: it must read as it did, and give tables and a report."""

import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from attncompare.benchmark.run import Run
from attncompare.benchmark.store import SCHEMA, ResultStore
from attncompare.reporting.gallery import Gallery
from attncompare.reporting.html import write_report
from attncompare.reporting.tables import table

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())


@pytest.fixture(params=VERSIONS)
def old(request, tmp_path):
    """A copy of a golden run, which a test may write into."""
    return Path(shutil.copytree(GOLDEN / request.param, tmp_path / request.param))


def test_there_is_a_golden_run():
    assert "schema-1" in VERSIONS


def test_every_record_reads_as_it_was_written(old):
    found = Run(old).records()
    expected = pd.read_csv(GOLDEN / f"{old.name}.csv", keep_default_na=False, na_values={"value": [""]})
    assert list(found.columns) == SCHEMA.names
    pd.testing.assert_frame_equal(found[expected.columns], expected, check_dtype=False)
    assert set(found.kind) == {""} and set(found.retry) == {False}
    curves = found[found.measure.isin(["deletion", "insertion"]) & (found.status == "ok")]
    for row in curves.itertuples():
        assert row.value == pytest.approx(
            (sum(row.curve) - (row.curve[0] + row.curve[-1]) / 2) / (len(row.curve) - 1), abs=1e-5
        )


def test_the_files_of_old_cells_are_verified_like_new_ones(old):
    store = ResultStore(old)
    keys = store.manifest()["keys"]
    assert store.held(keys) == set(keys)
    table = pq.read_table(store.path(keys[0]))
    worse = table.set_column(table.column_names.index("target"), "target", [[-5] * len(table)])
    pq.write_table(worse, store.path(keys[0]))
    assert store.held(keys) == set(keys[1:])


def test_old_maps_and_pictures_are_shown(old):
    run = Gallery.open(old)
    assert run.images == [f"shapes-test-{i:05d}" for i in range(3)]
    for image in run.images:
        assert run.picture("demo/vit", image).shape == (64, 64, 3)
        assert run.map("demo/vit", "attention_rollout", image).shape == (8, 8)
    assert run.map("demo/cnn", "grad_cam", run.images[0]).max() > 0


def test_old_runs_have_tables_and_a_report(old):
    assert "grad_cam" in table(old, "md") and r"\toprule" in table(old, "tex")
    page = write_report(old).read_text()
    assert "attention_rollout" in page and "shapes-test-00000" in page
