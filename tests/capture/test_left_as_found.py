"""Every method leaves the model, the random state and the process as it found them, also after a raise."""

import copy
import random
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attncompare as ac
from attncompare.errors import UnsupportedMethodError, UnsupportedModelError
from attncompare.methods._base import methods

ATTENTION = {
    "attention",
    "attention_gradients",
    "fused_attention",
    "class_attention",
    "tokens",
    "block_gradients",
    "attention_relevance",
}
POOLING = {"classifier_weights", "pooled_features"}
GATES = {"channel_attention", "gated_features"}
WINDOWS = {"window_attention", "attention_hierarchy"}
MISSING = {
    "cnn": ATTENTION | GATES | WINDOWS,
    "vit": POOLING | GATES | WINDOWS,
    "se_cnn": ATTENTION | WINDOWS,
    "swin": ATTENTION | GATES,
}
FEW_STEPS = {
    "rise": {"n_masks": 4},
    "smooth_grad": {"n_samples": 2},
    "integrated_gradients": {"n_steps": 4},
    "occlusion": {"window": 0.5},
    "gradient_shap": {"n_samples": 2},
    "lime": {"n_samples": 4, "n_segments": 6},
    "kernel_shap": {"n_samples": 4, "n_segments": 6},
}
RELU_ONLY = ("guided_backprop", "guided_grad_cam", "deep_lift")  # which refuse the ViT when they see what it does
REPLAYED = [("vit", "ablation_cam"), ("vit", "legrad"), ("hf_vit", "ablation_cam"), ("hf_vit", "legrad")]
HOOKS = [name for name in vars(nn.Module()) if "hooks" in name]


class BoomError(Exception):
    """Raised by the tests themselves."""


def pairs(wanted=lambda method: True):
    """(model, method) for all methods that a model supports; those of gates and windows on the model that has them."""
    found = []
    for method in filter(wanted, methods):
        names = ["se_cnn"] if GATES & set(method.needs) else ["swin"] if WINDOWS & set(method.needs) else ["cnn", "vit"]
        names = ["cnn"] if method.name in RELU_ONLY else names
        found += [(name, method.name) for name in names if not MISSING[name] & set(method.needs)]
    return found


def takes_gradients(method):
    own = ("grad_cam", "integrated_gradients", "smooth_grad", "gradient_shap", "finer_cam", "attn_lrp", *RELU_ONLY)
    return any("gradients" in signal for signal in method.needs) or method.name in own


def explainer_of(model, method):
    return ac.make_explainer(model, method, **FEW_STEPS.get(method, {}))


def untidy(module):
    """A module as users have them: partly training, partly frozen, with a hook and a gradient of its own."""
    module.train()
    inner = list(module.modules())
    inner[2].eval()
    parameters = list(module.parameters())
    parameters[1].requires_grad_(False)
    parameters[2].grad = torch.ones_like(parameters[2])
    inner[1].register_forward_hook(lambda *args: None)
    return module


def state_of(module, images):
    """Everything that could be left behind, comparable."""
    return {
        "hooks": {(path, kind): list(getattr(part, kind)) for path, part in module.named_modules() for kind in HOOKS},
        "training": {path: part.training for path, part in module.named_modules()},
        "requires_grad": {name: value.requires_grad for name, value in module.named_parameters()},
        "gradients": {name: copy.deepcopy(value.grad) for name, value in module.named_parameters()},
        "graph": [name for name, value in module.named_parameters() if value.grad_fn is not None],
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
        "forward": {path: "forward" in vars(part) for path, part in module.named_modules()},
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1],
        "python": random.getstate(),
        "kernel": F.scaled_dot_product_attention,
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "threads": torch.get_num_threads(),
        "images": (images.clone(), images.requires_grad, images.grad),
    }


def same(one, other):
    if isinstance(one, torch.Tensor | np.ndarray):
        return isinstance(other, type(one)) and one.shape == other.shape and bool((one == other).all())
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one is other or one == other


@contextmanager
def unchanged(module, images):
    before = state_of(module, images)
    yield
    after = state_of(module, images)
    assert [key for key in before if not same(before[key], after[key])] == []


@pytest.fixture
def untidy_model(fresh):
    """A wrapped model by name whose module is as users have them."""

    def wrapped(name):
        model = fresh(name)
        untidy(model.module)
        return model

    return wrapped


def test_the_check_itself_sees_every_kind_of_trace(build):
    module, images = build("cnn"), torch.rand(1, 3, 32, 32)
    changes = {
        "hooks": lambda: module[0].register_forward_hook(lambda *args: None),
        "training": lambda: module[1].train(),
        "requires_grad": lambda: module[0].requires_grad_(False),
        "gradients": lambda: module[8].weight.sum().backward(),
        "weights": lambda: module[1].num_batches_tracked.add_(1),
        "torch": lambda: torch.rand(1),
        "numpy": lambda: np.random.rand(),
        "images": lambda: images.requires_grad_(True),
    }
    for key, change in changes.items():
        with pytest.raises(AssertionError, match=key), unchanged(module, images):
            change()


@pytest.mark.parametrize(("name", "method"), pairs())
def test_a_method_that_succeeds_leaves_everything_as_found(untidy_model, pictures, name, method):
    model = untidy_model(name)
    images = pictures(model)
    with unchanged(model.module, images):
        assert explainer_of(model, method).explain(images).values.shape[0] == 2


@pytest.mark.parametrize(("name", "method"), pairs())
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda mode: mode.__name__)
def test_the_callers_gradient_mode_does_not_matter_and_comes_back(untidy_model, pictures, name, method, mode):
    model = untidy_model(name)
    expected = explainer_of(model, method).explain(pictures(model), 1).values
    with mode():
        images = pictures(model)  # made by the caller, so inference tensors where the mode is inference
        with unchanged(model.module, images):
            actual = explainer_of(model, method).explain(images, 1).values
    torch.testing.assert_close(actual, expected, atol=1e-6 * float(expected.abs().max()), rtol=0)


def test_a_forward_pass_in_inference_mode_does_not_spoil_later_gradients(build, pictures):
    model = ac.wrap_model(build("vit"), size=(32, 32))
    images = pictures(model)
    with torch.inference_mode():
        model.forward(images)
    assert ac.make_explainer(model, "saliency").explain(images).values.max() > 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda mode: mode.__name__)
def test_a_model_wrapped_without_gradients_supplies_and_explains_alike(build, pictures, mode):
    expected = ac.wrap_model(build("vit"), size=(32, 32))
    module = build("vit")
    with mode():
        model = ac.wrap_model(module, size=(32, 32))
        assert model.structure == expected.structure
        actual = ac.make_explainer(model, "gradient_rollout").explain(pictures(model), 2)
    assert torch.equal(
        actual.values, ac.make_explainer(expected, "gradient_rollout").explain(pictures(model), 2).values
    )


class Drawing(nn.Module):
    """Draws random numbers in every pass, as a model with stochastic parts does."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net(images + 0 * torch.randn_like(images))


@pytest.mark.parametrize("method", ["layer_cam", "grad_cam", "integrated_gradients", "occlusion", "random_map"])
def test_the_random_state_comes_back_from_a_model_that_draws(build, pictures, method):
    module = Drawing(build("cnn"))
    images = torch.rand(2, 3, 32, 32)
    with unchanged(module, images):
        model = ac.wrap_model(module, size=(32, 32))
    with unchanged(module, images):
        explainer_of(model, method).explain(images, 2)


def arm(monkeypatch, module, part, safe_calls=0):
    """Make one module raise in forward, after some calls that go well."""
    target, calls = module.get_submodule(part), []
    plain = target.forward

    def forward(*args, **kwargs):
        calls.append(1)
        if len(calls) > safe_calls:
            raise BoomError
        return plain(*args, **kwargs)

    monkeypatch.setitem(vars(target), "forward", forward)


DEEP = {"cnn": "8", "vit": "blocks.2.mlp.fc2", "se_cnn": "5", "swin": "layers.1.blocks.0.mlp.fc2"}


@pytest.mark.parametrize(("name", "method"), pairs(lambda method: not method.control))
@pytest.mark.parametrize("safe_calls", [0, 1])
def test_a_model_that_raises_is_left_as_found(untidy_model, pictures, monkeypatch, name, method, safe_calls):
    model = untidy_model(name)
    images = pictures(model)
    arm(monkeypatch, model.module, DEEP[name], safe_calls)  # one safe call: the raise comes in the second pass
    with unchanged(model.module, images), pytest.raises(BoomError):
        explainer_of(model, method).explain(images)


@pytest.mark.parametrize(("name", "method"), pairs(lambda method: method.own_passes))
def test_a_method_that_meets_the_raise_in_its_own_pass_is_left_as_found(
    untidy_model, pictures, monkeypatch, name, method
):
    model = untidy_model(name)
    images, target = pictures(model), torch.tensor([1, 2])  # a given target: no pass before its own
    arm(monkeypatch, model.module, DEEP[name])
    with unchanged(model.module, images), pytest.raises(BoomError):
        explainer_of(model, method).explain(images, target)


class RaisesBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise BoomError


class Fuse(nn.Module):
    def forward(self, x):
        return RaisesBackward.apply(x)


@pytest.mark.parametrize(("name", "method"), pairs(takes_gradients))
def test_a_backward_pass_that_raises_leaves_everything_as_found(untidy_model, pictures, name, method):
    model = untidy_model(name)
    head = "8" if name == "cnn" else "head"
    setattr(model.module, head, nn.Sequential(Fuse(), model.module.get_submodule(head)))
    images = pictures(model)
    with unchanged(model.module, images), pytest.raises(BoomError):
        explainer_of(model, method).explain(images)


@pytest.mark.parametrize(("name", "method"), pairs())
def test_a_method_that_raises_leaves_everything_as_found(untidy_model, pictures, monkeypatch, name, method):
    model = untidy_model(name)
    images = pictures(model)

    def raising(*signals, **options):
        for signal in signals:
            if isinstance(signal, nn.Module) and not isinstance(signal, nn.Identity):
                signal(images)  # half of the work done
        raise BoomError

    monkeypatch.setitem(methods._members, method, replace(methods.get(method), compute=raising))
    with unchanged(model.module, images), pytest.raises(BoomError):
        explainer_of(model, method).explain(images)


@pytest.mark.parametrize(("name", "method"), [("cnn", "attention_rollout"), ("vit", "cam"), ("vit", "se_activation")])
def test_a_refusal_leaves_everything_as_found(untidy_model, pictures, name, method):
    model = untidy_model(name)
    images = pictures(model)
    with unchanged(model.module, images), pytest.raises(UnsupportedMethodError):
        ac.explain_together(model, ["random_map", method], images)


def test_a_refusal_that_comes_when_the_model_has_run_leaves_everything_as_found(untidy_model, pictures):
    model = untidy_model("vit")
    images = pictures(model)
    explainer, ran = ac.make_explainer(model, "deep_lift"), []
    model.module.register_forward_hook(lambda *args: ran.append(1))
    with unchanged(model.module, images), pytest.raises(UnsupportedMethodError):
        explainer.explain(images)
    assert ran


def test_a_relevance_without_a_rule_leaves_everything_as_found(build, pictures):
    class Odd(nn.Module):
        def forward(self, x):
            return x.sin()

    module = untidy(build("vit"))
    module.blocks[1].mlp.act = Odd()
    model = ac.wrap_model(module, size=(32, 32))
    images = pictures(model)
    with unchanged(module, images), pytest.raises(UnsupportedMethodError, match=r"no rule for .*sin"):
        ac.make_explainer(model, "transformer_lrp").explain(images)


def calls_of(model, part, images, method):
    """How often one module's forward runs, or stands in, in a whole call."""
    ran = []
    handle = model.module.get_submodule(part).register_forward_pre_hook(lambda *args: ran.append(1))
    ac.make_explainer(model, method).explain(images, torch.tensor([1, 2]))
    handle.remove()
    return len(ran)


HEADS = {"vit": "head", "hf_vit": "classifier"}


@pytest.mark.parametrize(("name", "method"), REPLAYED)
def test_a_raise_in_any_replay_puts_every_forward_back(untidy_model, pictures, monkeypatch, name, method):
    """The head runs in the first pass and in each replay; wherever it raises, no stand-in is left in the blocks."""
    model = untidy_model(name)
    images = pictures(model)
    runs = calls_of(model, HEADS[name], images, method)
    assert runs > 2
    for safe_calls in range(runs):
        with monkeypatch.context() as patch:
            model.checked_recordings.clear()
            arm(patch, model.module, HEADS[name], safe_calls)
            with unchanged(model.module, images), pytest.raises(BoomError):
                ac.make_explainer(model, method).explain(images, torch.tensor([1, 2]))


@pytest.mark.parametrize(("name", "method"), REPLAYED)
def test_a_forward_of_ones_own_is_put_back_behind_a_replay(untidy_model, pictures, name, method):
    """A module whose forward was replaced by the user keeps that one, not its class's."""
    model = untidy_model(name)
    images = pictures(model)
    expected = ac.make_explainer(model, method).explain(images, 1).values
    own = {}
    for path, part in model.module.named_modules():
        if path and not isinstance(part, nn.ModuleList):
            own[path] = part.forward = part.forward  # now an attribute of the instance
    found = ac.make_explainer(model, method).explain(images, 1).values
    assert torch.equal(found, expected)
    assert all(model.module.get_submodule(path).forward is forward for path, forward in own.items())


@pytest.mark.parametrize("method", ["saliency", "grad_cam", "ablation_cam", "legrad", "transformer_lrp", "finer_cam"])
def test_several_targets_leave_everything_as_found(untidy_model, pictures, method):
    model = untidy_model("vit")
    image = pictures(model, 1)
    with unchanged(model.module, image):
        assert len(ac.explain_targets(model, [method], image, [0, 1, 2])[method].values) == 3


@pytest.mark.parametrize("method", ["saliency", "grad_cam", "ablation_cam", "legrad", "transformer_lrp", "lime"])
def test_a_target_function_that_raises_leaves_everything_as_found(untidy_model, pictures, method):
    model, calls = untidy_model("vit"), []
    images = pictures(model)

    def target(outputs):
        calls.append(1)
        if len(calls) > 3:  # its check has passed
            raise BoomError
        return outputs[:, 1]

    with unchanged(model.module, images), pytest.raises(BoomError):
        explainer_of(model, method).explain(images, target)


@pytest.mark.parametrize("name", ["cnn", "vit", "vit_torchvision", "swin", "hf_vit"])
def test_wrapping_leaves_a_module_as_found(build, name):
    module = untidy(build(name))
    images = torch.rand(1, 3, 32, 32)
    with unchanged(module, images):
        ac.wrap_model(module, size=(32, 32))


def test_wrapping_a_module_that_raises_leaves_it_as_found(build, monkeypatch):
    module = untidy(build("vit_torchvision"))
    images = torch.rand(1, 3, 32, 32)
    arm(monkeypatch, module, "encoder.layers.encoder_layer_1.mlp")
    with unchanged(module, images), pytest.raises(UnsupportedModelError, match="does not run"):
        ac.wrap_model(module, size=(32, 32))


@pytest.mark.parametrize("name", ["vit_torchvision", "hf_vit", "swin", "se_cnn"])
def test_other_libraries_are_left_as_found_by_all_methods_together(untidy_model, pictures, name):
    model = untidy_model(name)
    images = pictures(model)
    left_out = {*FEW_STEPS, *RELU_ONLY, "xgrad_cam", "grad_cam_pp"}  # which refuse layers that are behind no ReLU
    left_out |= {"score_cam"} if name == "se_cnn" else set()  # 128 passes
    quick = [method.name for method in methods if set(method.needs) <= model.supplies and method.name not in left_out]
    assert len(quick) > 8
    with unchanged(model.module, images):
        assert list(ac.explain_together(model, quick, images)) == quick


def test_a_raise_inside_torchvisions_attention_puts_the_kernel_back(fresh, pictures, monkeypatch):
    model = fresh("vit_torchvision")
    images = pictures(model)

    def raising(*args, **kwargs):
        raise BoomError

    monkeypatch.setattr("attncompare.capture.attention.explicit_attention", raising)
    with unchanged(model.module, images), pytest.raises(BoomError):
        ac.make_explainer(model, "gradient_rollout").explain(images)


def test_no_graph_outlives_a_call(tiny, pictures):
    shown = ac.explain_together(
        tiny("vit"),
        [method for name, method in pairs() if name == "vit" and method not in FEW_STEPS],
        pictures(tiny("vit")),
    )
    for one in shown.values():
        assert not one.values.requires_grad
        assert one.values.grad_fn is None
