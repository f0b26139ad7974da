from dataclasses import replace

import pandas as pd
import pytest

from attncompare.benchmark.rankings import Ranking, rank_methods, score_table
from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.reporting.figures import VENUES, draw, save_figure
from attncompare.reporting.figures.critical_difference import cliques, critical_difference
from attncompare.reporting.gallery import Gallery


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    spec = BenchmarkSpec(
        models=("demo/cnn", "demo/vit"), methods=("cam", "hires_cam", "center_map", "edge_map"), metrics=("energy_inside",),
        limit=4, timing=False,
    )  # fmt: skip
    run_benchmark(spec, path)
    return path


def test_the_diagram_shows_every_ranked_method_with_its_mean_rank(folder):
    figure, run = draw(folder, "critical-difference"), Gallery.open(folder)
    assert len(figure.axes) == 2
    for axes, model in zip(figure.axes, run.models, strict=True):
        words = " ".join(text.get_text() for text in axes.texts)
        ranking = rank_methods(score_table(run.records, model, "energy_inside"))
        assert len(ranking.ranks) >= 3
        for method, rank in ranking.ranks.items():
            assert f"{method} ({rank:.1f})" in words
        title = axes.get_title().replace("\n", " ")
        assert model in title and f"{ranking.images} images" in title


def test_the_diagram_is_written(folder, tmp_path):
    assert save_figure(draw(folder, "critical-difference", venue="cvpr"), tmp_path / "ranks.pdf").stat().st_size > 2000


def test_too_few_methods_are_said_to_be_too_few(tmp_path):
    spec = BenchmarkSpec(
        models=("demo/cnn",), methods=("cam", "edge_map"), metrics=("energy_inside",), limit=2, timing=False
    )
    run_benchmark(spec, tmp_path)
    words = [text.get_text() for axes in draw(tmp_path, "critical-difference").axes for text in axes.texts]
    assert words == ["needs three methods and two images"]


def test_a_model_without_values_and_a_run_of_one_image_have_no_diagram(folder):
    run = Gallery.open(folder)
    failed = run.records.status.where(run.records.model != "demo/vit", "failed")
    first = run.records.image.isin(["", run.records.image.max()])
    for records, shown, title in (
        (run.records.assign(status=failed), [False, True], "0 images, 4 lost to failures"),
        (run.records[first], [True, True], "1 images"),
    ):
        figure = critical_difference(replace(run, records=records), VENUES["cvpr-wide"])
        assert [axes.texts[0].get_text() == "needs three methods and two images" for axes in figure.axes] == shown
        assert figure.axes[1].get_title().replace("\n", " ").endswith(title)


def test_bars_join_the_largest_groups_that_the_test_cannot_tell_apart():
    names = list("abcd")
    p = pd.DataFrame(1.0, index=names, columns=names)
    for one, other in (("a", "c"), ("a", "d"), ("b", "d")):
        p.loc[one, other] = p.loc[other, one] = 0.01
    ranks = pd.Series([1.0, 1.5, 3.0, 4.0], index=names)
    assert cliques(Ranking(ranks, 9, 0, (), 0.01, 1.2, p)) == [(1.0, 1.5), (1.5, 3.0), (3.0, 4.0)]
    p[:] = 1.0
    assert cliques(Ranking(ranks, 9, 0, (), 0.9, 9.0, p)) == [(1.0, 4.0)]
    p[:] = 0.0
    assert cliques(Ranking(ranks, 9, 0, (), 0.0, 0.1, p)) == []
