import pytest
from pydantic import ValidationError

from attncompare.benchmark.plan import chosen_methods
from attncompare.benchmark.spec import BenchmarkSpec, make_spec
from attncompare.errors import SpecError
from attncompare.storage.spec import read_toml

LEAST = {"models": ["demo/cnn"]}


def refusal(**values) -> str:
    with pytest.raises(SpecError) as caught:
        make_spec(values)
    return str(caught.value)


def test_a_spec_needs_only_models():
    spec = make_spec(LEAST)
    assert spec.models == ("demo/cnn",)
    assert (spec.methods, spec.metrics, spec.protocol) == (("all",), ("deletion", "insertion"), "rise")
    assert (spec.data, spec.limit, spec.target, spec.seed) == ("shapes", None, "argmax", 0)


def test_one_name_may_stand_for_a_list_of_one():
    assert make_spec({"models": "demo/cnn", "methods": "cam"}) == make_spec({**LEAST, "methods": ["cam"]})


def test_names_keep_their_order():
    assert make_spec({**LEAST, "methods": ["saliency", "cam"]}).methods == ("saliency", "cam")


@pytest.mark.parametrize("key", ["mehtods", "model", "lim\nit", "models "])
def test_an_unknown_key_is_refused_with_the_known_ones(key):
    message = refusal(**LEAST, **{key: ["cam"]})
    assert f"unknown key {key!r}" in message
    assert all(known in message for known in ("methods", "models", "protocol", "limit"))
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("models", 3),
        ("models", None),
        ("models", [3]),
        ("models", {"demo/cnn": 1}),
        ("models", [["demo/cnn"], ["demo/cnn"]]),
        ("methods", 1.5),
        ("metrics", [["deletion"]]),
        ("protocol", 7),
        ("data", 3),
        ("limit", "many"),
        ("limit", 2.5),
        ("options", ["layer"]),
        ("options", {"cam": 3}),
        ("target", "best"),
        ("seed", "zero"),
        ("device", 0),
        ("dtype", "float16"),
        ("batch_size", "big\nbatch"),
        ("timing", "perhaps"),
        ("repeats", [10]),
        ("timing_seconds", "long"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_its_key_in_one_line(key, value):
    message = refusal(**{**LEAST, key: value})
    assert message.startswith(f"spec: {key}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("limit", -1),
        ("limit", 0),
        ("seed", -1),
        ("batch_size", 0),
        ("chunk_size", 0),
        ("threads", 0),
        ("timing_batch", 0),
        ("repeats", 2),
        ("timing_seconds", -0.5),
        ("timing_seconds", float("nan")),
    ],
)
def test_a_number_that_is_too_small_is_refused_with_its_key_and_value(key, value):
    message = refusal(**{**LEAST, key: value})
    assert message.startswith(f"spec: {key}: ")
    assert f"found {value!r}" in message and "than or equal to" in message
    assert "\n" not in message


@pytest.mark.parametrize("key", ["models", "methods", "metrics"])
def test_a_name_listed_twice_is_refused_by_name(key):
    message = refusal(**{**LEAST, key: ["one", "two", "one"]})
    assert message.startswith(f"spec: {key}: ") and "one is listed twice" in message
    assert "\n" not in message


@pytest.mark.parametrize("values", [{}, {"models": []}, {"models": ()}])
def test_a_spec_without_models_is_refused(values):
    message = refusal(**values)
    assert message.startswith("spec: models: ") and "\n" not in message
    assert values or message.endswith('missing; name one with --model, or write models = ["demo/cnn"] in the file')


def test_a_spec_cannot_be_changed():
    spec = make_spec(LEAST)
    with pytest.raises(ValidationError, match="frozen"):
        spec.seed = 3


def test_a_spec_survives_its_own_description():
    spec = make_spec({**LEAST, "limit": 4, "options": {"attention_rollout": {"head_fusion": "max"}}, "data": ["a.png"]})
    assert make_spec(spec.model_dump()) == spec
    assert BenchmarkSpec.model_validate_json(spec.model_dump_json()) == spec


def test_a_toml_file_is_read_as_a_spec(tmp_path):
    path = tmp_path / "spec.toml"
    path.write_text('models = ["demo/cnn"]\nlimit = 4\n[options.attention_rollout]\nhead_fusion = "max"\n')
    spec = make_spec(read_toml(path))
    assert (spec.limit, spec.options) == (4, {"attention_rollout": {"head_fusion": "max"}})


@pytest.mark.parametrize("content", [b"models = [", b"\xff\xfe", b"limit = 1\nlimit = 2\n", None])
def test_a_file_that_is_no_toml_is_refused_by_path(tmp_path, content):
    path = tmp_path / "spec.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        read_toml(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "kept"),
    [("label", "label"), ("7", 7), (7, 7), ("text:7", "text:7"), ("class:tabby cat", "class:tabby cat")],
)
def test_a_target_is_a_word_a_number_a_class_or_a_text(given, kept):
    assert make_spec({**LEAST, "target": given}).target == kept


@pytest.mark.parametrize("target", [-1, True, 1.5, None, "-1", "tabby cat"])
def test_another_target_is_refused(target):
    assert refusal(**LEAST, target=target).startswith("spec: target")


def test_cheap_methods_are_all_but_those_of_hundreds_of_passes():
    every, cheap = (
        {one.name for one in chosen_methods(BenchmarkSpec(models=("demo/cnn",), methods=(word,)))}
        for word in ("all", "cheap")
    )
    assert every - cheap == {"rise", "lime", "kernel_shap", "score_cam"}
    assert every > cheap > {"grad_cam", "legrad", "occlusion"}
