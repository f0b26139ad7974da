"""From a map to records: options, protocols, and what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import attncompare as ac
from attncompare.benchmark.evidence import Scene
from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.capture.target import TargetScore
from attncompare.errors import SpecError, UnknownNameError
from attncompare.maps import AttributionMap
from attncompare.metrics._base import metrics
from attncompare.metrics.user_protocols import read_protocol
from attncompare.reporting.tables import table

EVERYTHING = [metric.name for metric in metrics if not metric.pairwise and "insertion" not in metric.name]
QUICK = {"infidelity": {"squares": 4}, "max_sensitivity": {"n_samples": 2}}


@pytest.fixture(scope="module")
def model():
    return ac.load_model("demo/cnn")


@pytest.fixture(scope="module")
def images(model):
    return torch.rand(2, 3, *model.size, generator=torch.Generator().manual_seed(0))


def test_options_change_the_value_and_stand_beside_it(model, images):
    shown = ac.make_explainer(model, "cam").explain(images)
    masks = torch.zeros(2, *model.size, dtype=torch.bool)
    masks[:, 30:34, 30:34] = True
    given = [("pointing_game", {"tolerance": 64}), ("pointing_game", {"tolerance": 1})]
    far, near = (ac.score(model, images, shown, metrics=[one], masks=masks) for one in given)
    assert [r.value for r in far] == [1, 1] and {r.protocol for r in far} == {"tolerance=64"}
    assert far[0].key != near[0].key
    assert ac.score(model, images, shown, metrics=["pointing_game"], masks=masks)[0].protocol == ""


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (("pointing_game", {"tolerence": 3}), UnknownNameError, "did you mean tolerance"),
        (("pointing_game", {"tolerance": -3}), SpecError, "must lie between 0 and 100000"),
        (("pointing_game", {"tolerance": 1.5}), SpecError, "must be an int"),
        (("infidelity", {"squares": True}), SpecError, "must be an int"),
        (("infidelity", {"squares": 0}), SpecError, "must be positive"),
        (("deletion", {"steps": 3}), SpecError, "has no options"),
        (("max_sensitivity", {"radius": 2.0}), SpecError, "must lie between"),
        ("rank_correlation", SpecError, "compares two maps; use attncompare.compare_maps"),
        ("insersion", UnknownNameError, "did you mean insertion"),
    ],
)
def test_a_wrong_metric_or_option_is_refused(model, images, request_, error, message):
    shown = ac.make_explainer(model, "cam").explain(images)
    with pytest.raises(error, match=message):
        ac.score(model, images, shown, metrics=[request_], masks=torch.ones(2, *model.size, dtype=torch.bool))


def test_the_argmax_protocol_asks_whether_the_target_is_still_the_first_choice(model, images):
    shown = ac.make_explainer(model, "cam").explain(images)
    top, other = (ac.score(model, images, one, metrics=["morf", "lerf"], protocol="chefer") for one in (
        shown, ac.make_explainer(model, "cam").explain(images, int((shown.target[0] + 1) % 3)))
    )  # fmt: skip
    assert all(len(r.curve) == 10 and set(r.curve) <= {0.0, 1.0} and r.protocol == "chefer" for r in top)
    assert [r.curve[0] for r in top] == [1, 1, 1, 1] and other[0].curve[0] == 0


@pytest.mark.parametrize("metric", ["insertion", "insertion_normalised"])
def test_a_metric_without_its_curve_is_refused_before_anything_runs(model, images, metric, tmp_path):
    shown = ac.make_explainer(model, "cam").explain(images)
    with pytest.raises(SpecError, match=f"protocol chefer has no insertion, so {metric} is not defined"):
        ac.score(model, images, shown, metrics=[metric], protocol="chefer")
    with pytest.raises(SpecError, match="has no insertion"):
        run_benchmark(BenchmarkSpec(models=("demo/cnn",), metrics=(metric,), protocol="srg"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_argmax_of_an_embedding_is_refused_before_anything_runs(tmp_path):
    spec = BenchmarkSpec(
        models=("timm/vit_tiny_patch16_224.dino@random",), metrics=("morf",), protocol="chefer", limit=1
    )
    from attncompare.benchmark.plan import check_target
    from attncompare.data.datasets import open_dataset

    class Embeds:
        embedding, name, size = True, "bare", (224, 224)

    with pytest.raises(SpecError, match="asks for the argmax; bare has no class"):
        check_target(spec, open_dataset("shapes", 1), [Embeds()])


def test_a_peers_map_is_scored_and_run_again_through_its_wrapper(model, images):
    class Peer:
        name = "peer"

        def explain(self, images, target=None):
            return AttributionMap(images.mean(dim=1), target, model="demo/cnn", method="peer")

    shown = Peer().explain(images, torch.tensor([0, 1]))
    with pytest.raises(SpecError, match="max_sensitivity runs the method again; give explainer="):
        ac.score(model, images, shown, metrics=["max_sensitivity"])
    records = ac.score(model, images, shown, metrics=["max_sensitivity", "sparseness"], explainer=Peer())
    assert [r.status for r in records] == ["ok"] * 4 and records[0].value > 0


def test_a_map_that_is_not_finite_is_refused(model, images):
    bad = AttributionMap(torch.tensor([[[1.0, 2.0]], [[torch.nan, 0.0]]]), torch.tensor([0, 0]), method="mine")
    with pytest.raises(SpecError, match="the map of image 1 has values that are not finite"):
        ac.score(model, images, bad, metrics=["sparseness"])


def test_a_run_scores_every_metric_under_a_users_protocol(tmp_path):
    path = tmp_path / "coarse.toml"
    path.write_text('cells = 4\nsteps = 4\ndeletion = "mean"\n')
    spec = BenchmarkSpec(
        models=("demo/cnn",), methods=("cam", "edge_map"), metrics=EVERYTHING, options=QUICK, protocol=str(path),
        limit=2, timing=False,
    )  # fmt: skip
    run = run_benchmark(spec, tmp_path / "run")
    records = run.records()
    name = read_protocol(path).name
    for metric in map(metrics.get, EVERYTHING):
        rows = records[records.measure == metric.name]
        assert len(rows) == 4 and set(rows.status) == {"ok"}, rows[["method", "status", "detail"]]
        setting = ", ".join(f"{k}={v}" for k, v in QUICK.get(metric.name, {}).items())
        assert set(rows.protocol) == {name if metric.curves else setting}
    assert run.manifest()["protocol"]["cells"] == 4
    again = run_benchmark(spec, tmp_path / "run")
    assert (again.computed, again.failed) == (0, 0)
    path.write_text('cells = 4\nsteps = 8\ndeletion = "mean"\n')
    assert run_benchmark(spec, tmp_path / "run").computed == 2


def test_a_metric_that_fails_does_not_take_the_others_with_it(model, images, monkeypatch):
    from attncompare.benchmark import scoring

    def no_more(*arguments):
        raise RuntimeError("the method gave up\nat length")

    monkeypatch.setattr(scoring, "explain_together", no_more)
    shown = ac.make_explainer(model, "cam").explain(images)
    records = ac.score(model, images, shown, metrics=["max_sensitivity", "complexity"])
    failed = [r for r in records if r.measure == "max_sensitivity"]
    assert {(r.status, r.value, r.detail) for r in failed} == {("failed", None, "the method gave up (RuntimeError)")}
    assert all(r.status == "ok" for r in records if r.measure == "complexity")


@pytest.mark.parametrize("error", [RuntimeError("no\nmore"), ValueError("no"), KeyError("no")], ids=type)
def test_a_metric_that_raises_by_itself_does_not_either(model, images, monkeypatch, error):
    from attncompare.benchmark import scoring

    def broken(metric, evidence, made):
        if metric.name == "complexity":
            raise error
        return measure(metric, evidence, made)

    measure = scoring.measure
    monkeypatch.setattr(scoring, "measure", broken)
    shown = ac.make_explainer(model, "cam").explain(images)
    records = ac.score(model, images, shown, metrics=["complexity", "sparseness", "deletion"], protocol="rise-fast")
    failed = [r for r in records if r.measure == "complexity"]
    assert {(r.status, r.value, r.kind, r.retry) for r in failed} == {("failed", None, "error", True)}
    assert all(r.detail.endswith(f" ({type(error).__name__})") for r in failed)
    assert {r.status for r in records if r.measure != "complexity"} == {"ok"}


def test_altered_images_that_cannot_be_scored_leave_the_other_metrics(monkeypatch, tmp_path):
    from attncompare.benchmark import scoring

    def gone(*arguments, **settings):
        raise RuntimeError("device lost")

    spec = BenchmarkSpec(
        models=("demo/cnn",), methods=("cam", "edge_map"), metrics=("deletion", "srg", "sparseness"), limit=2,
        protocol="rise-fast", timing=False,
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "perturbation_curves", gone)
        records = run_benchmark(spec, tmp_path).records()
    kinds = records.groupby("measure").status.agg(set).to_dict()
    assert kinds == {"target_score": {"ok"}, "deletion": {"failed"}, "srg": {"failed"}, "sparseness": {"ok"}}
    assert set(records[records.status == "failed"].detail) == {"device lost (RuntimeError)"}
    again = run_benchmark(spec, tmp_path)  # by accident: tried again
    assert again.computed == 2 and set(again.records().status) == {"ok"}


def test_bf16_scores_under_autocast_and_says_how_far_that_is_from_float32(tmp_path):
    spec = BenchmarkSpec(
        models=("demo/cnn", "demo/vit"), methods=("activation", "edge_map"), limit=3, protocol="rise-fast", timing=False,
        metrics=("deletion", "insertion", "average_drop", "sparseness"),
    )  # fmt: skip
    exact = run_benchmark(spec, tmp_path / "exact")
    run = run_benchmark(spec.model_copy(update={"dtype": "bf16"}), tmp_path / "bf16")
    columns = ["model", "method", "image", "measure"]
    both = exact.records().merge(run.records(), on=columns, suffixes=("", "_bf16"))
    both["apart"] = (both.value - both.value_bf16).abs()
    largest = both.groupby(["model", "measure"]).apart.max()
    assert (largest.loc[:, ["target_score", "sparseness"]] == 0).all()  # neither alters an image
    assert (largest.loc[:, ["deletion", "insertion", "average_drop"]] > 0).all() and largest.max() < 0.05
    told = run.manifest()["dtype_deviation"]
    assert set(told) == {"demo/cnn", "demo/vit"} and exact.manifest()["dtype_deviation"] == {}
    first = both[both.image.isin(sorted(both.image.unique())[:2])].groupby(["model", "measure"]).apart.max()
    for model, found in told.items():
        assert set(found) == {"deletion", "insertion"}
        for measure, value in found.items():
            assert value == pytest.approx(first[model, measure], abs=1e-6)
    assert "scored in bf16" in table(tmp_path / "bf16", "md") and "bf16" not in table(tmp_path / "exact", "md")


def test_a_part_of_a_part_keeps_its_targets(model, images):
    images = images.repeat(2, 1, 1, 1)
    scene = Scene(images, TargetScore.of(model, model.forward(images), [0, 1, 2, 3]))
    part = scene.subset([1, 2, 3]).subset([1, 2])
    assert part.targets.tolist() == [2, 3] and torch.equal(part.images, scene.images[2:])


def test_weights_changed_in_place_make_another_key(images):
    model = ac.load_model("demo/cnn")
    shown = ac.make_explainer(model, "random_map").explain(images)  # which does not change with them
    before = ac.score(model, images, shown, metrics=["deletion"])
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.mul_(3)
    after = ac.score(model, images, shown, metrics=["deletion"])
    assert before[0].value != after[0].value and before[0].key != after[0].key


def test_scores_are_those_of_float32_under_autocast(model, images):
    shown = ac.make_explainer(model, "saliency").explain(images)
    metrics = ["deletion", "average_drop", "max_sensitivity"]
    plain = ac.score(model, images, shown, metrics=metrics)
    with torch.autocast("cpu", torch.bfloat16):
        assert ac.score(model, images, shown, metrics=metrics) == plain


def test_a_map_of_half_the_bits_is_scored(model, images):
    shown = ac.make_explainer(model, "saliency").explain(images)
    halved = replace(shown, values=shown.values.bfloat16())
    (found, *_), (exact, *_) = (ac.score(model, images, one, metrics=["sparseness"]) for one in (halved, shown))
    assert found.value == pytest.approx(exact.value, abs=0.01) and found.key != exact.key


class Standardizes(nn.Module):
    """Divides by an image's own deviation, which an image of one color has none of."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        dims = {"dim": (1, 2, 3), "keepdim": True}
        return self.features((x - x.mean(**dims)) / x.std(**dims)).mean(dim=(2, 3))


@pytest.mark.parametrize("score", ["probability", "argmax"])
def test_an_altered_image_without_a_finite_score_makes_a_failed_record(tmp_path, score):
    (tmp_path / "p.toml").write_text(f'steps = 4\ndeletion = "black"\nscore = "{score}"\n')
    torch.manual_seed(0)
    model = ac.wrap_model(Standardizes(), size=(32, 32))
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for target in range(4):
        shown = ac.make_explainer(model, "saliency").explain(image, target)
        (record,) = ac.score(model, image, shown, metrics=["deletion"], protocol=str(tmp_path / "p.toml"))
        assert record.status == "failed" and record.detail == "the model's score of an altered image is not finite"
    flat = replace(shown, values=torch.ones_like(shown.values))  # behind it every pixel is the mean color
    for record in ac.score(model, image, flat, metrics=["average_increase", "average_drop"]):
        assert record.status == "failed" and "behind" in record.detail


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('deletion = "mean"\nuntil = 0.01', "scores no step of images of 64 x 64 pixels"),
        (
            'deletion = "mean"\nsteps = 100\nat_most_pixel_steps = true\nuntil = 0.02',
            "until = 0.02 lies before the first",
        ),
        ('deletion = "mean"\nsteps = 4\ncells = 65', "has 65 x 65 cells, more than images of 64 x 64 pixels"),
    ],
)
def test_a_protocol_without_steps_or_pixels_for_its_cells_is_refused(model, images, tmp_path, text, message):
    (tmp_path / "p.toml").write_text(text)
    shown = ac.make_explainer(model, "cam").explain(images)
    with pytest.raises(SpecError, match=message):
        ac.score(model, images, shown, metrics=["deletion"], protocol=str(tmp_path / "p.toml"))
    spec = BenchmarkSpec(models=("demo/cnn",), metrics=("deletion",), protocol=str(tmp_path / "p.toml"), limit=1)
    with pytest.raises(SpecError, match=message):
        run_benchmark(spec, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert len(ac.score(model, images, shown, metrics=["sparseness"], protocol=str(tmp_path / "p.toml"))) == 2
