"""Parity with independent implementations: raw maps compared before anyone's clipping or rescaling.

And what other implementations get wrong, shown on their own code or, where it says so, on a few lines that do as they do.
"""

import pytest
import torch
from captum.attr import LayerGradCam
from references import cams, gradients, peers, transformer, vit
from references.compare import difference
from references.plain import Plain

from attncompare.capture.forward_pass import record
from attncompare.explain import explain_together
from attncompare.methods._base import methods
from attncompare.models.load import load_model
from attncompare.signals._base import request

pytestmark = pytest.mark.peers
RELATIVE = 1e-5
LARGE = ["torchvision/resnet18@random", "demo/cnn", "demo/vit", "vit_mean"]
SMALL = ["cnn", "demo/cnn", "vit", "demo/vit", "vit_mean"]


@pytest.fixture
def opened(tiny):
    """A model by its name, tiny or not, two images and their targets."""

    def take(name):
        adapter = load_model(name) if "/" in name else tiny(name)
        images = torch.rand(2, 3, *adapter.size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return adapter, images, adapter.forward(images).argmax(dim=1)

    return take


def ours(case, method, **options):
    adapter, images, target = case
    return explain_together(adapter, [(method, options)], images, target)[method].values


@pytest.mark.parametrize("model", LARGE)
@pytest.mark.parametrize("name", ["grad_cam", "hires_cam", "layer_cam"])
def test_maps_equal_those_of_pytorch_grad_cam(opened, model, name):
    pytest.importorskip("pytorch_grad_cam")
    case = opened(model)
    peer = peers.grad_cam_family({"grad_cam": "GradCAM", "hires_cam": "HiResCAM", "layer_cam": "LayerCAM"}[name])
    assert difference(ours(case, name), peer(*case)) <= RELATIVE


@pytest.mark.parametrize("model", ["torchvision/resnet18@random", "demo/cnn"])
@pytest.mark.parametrize("name", ["grad_cam", "layer_cam"])
def test_maps_equal_those_of_torchcam(opened, model, name):
    pytest.importorskip("torchcam.methods")
    case = opened(model)
    assert (
        difference(ours(case, name), peers.torch_cam({"grad_cam": "GradCAM", "layer_cam": "LayerCAM"}[name])(*case))
        <= RELATIVE
    )


@pytest.mark.parametrize("model", ["torchvision/resnet18@random", "demo/cnn", "demo/vit"])
@pytest.mark.parametrize("name", ["grad_cam_pp", "xgrad_cam", "eigen_cam"])
def test_weights_and_projections_equal_those_of_pytorch_grad_cam(opened, model, name):
    """Its functions on our features behind a ReLU; the gradients enlarged, so that what it adds to a divisor is small."""
    pytest.importorskip("pytorch_grad_cam")
    adapter, images, target = opened(model)
    needs = [request("features"), request("feature_gradients")]
    found = record(adapter, images, needs, target).signals
    features, slopes = found[needs[0]].relu().double(), 1e6 * found[needs[1]].double()
    peer = peers.on_our_features(
        {"grad_cam_pp": "GradCAMPlusPlus", "xgrad_cam": "XGradCAM", "eigen_cam": "EigenCAM"}[name]
    )
    theirs = torch.as_tensor(peer(features, slopes / 1e6))
    if name == "eigen_cam":
        actual = methods.get(name).compute(features, centered=True)
        theirs = theirs * (theirs * actual).sum((1, 2), keepdim=True).sign()  # it leaves the sign open
    else:
        actual = methods.get(name).compute(features, slopes / (1e6 if name == "xgrad_cam" else 1))
    assert difference(actual, theirs) <= RELATIVE


@pytest.mark.parametrize("model", ["cnn", "demo/cnn", "vit", "demo/vit", "hf_vit"])
def test_score_cam_equals_pytorch_grad_cams_with_our_way_to_enlarge(opened, model):
    pytest.importorskip("pytorch_grad_cam")
    case = opened(model)
    assert difference(ours(case, "score_cam"), peers.score_cam(*case)) <= RELATIVE


@pytest.mark.parametrize("model", ["demo/cnn", "demo/vit"])
def test_pytorch_grad_cams_score_cam_shifts_its_masks(opened, model):
    """It enlarges with aligned corners: masks are off by up to half a cell at the border, the formula is the same."""
    pytest.importorskip("pytorch_grad_cam")
    case = opened(model)
    theirs = peers.score_cam(*case, corners=True)
    assert (
        difference(theirs, cams.score_cam(*case, corners=True)) <= 1e-4
    )  # float32 against float64, softmax of 9 logits
    assert difference(theirs, ours(case, "score_cam")) > 0.1


@pytest.mark.parametrize("model", ["cnn", "demo/cnn"])
def test_ablation_cam_equals_pytorch_grad_cams(opened, model):
    pytest.importorskip("pytorch_grad_cam")
    case = opened(model)
    assert difference(ours(case, "ablation_cam"), peers.ablation_cam(*case)) <= RELATIVE


def test_pytorch_grad_cams_ablation_cam_turns_the_map_over_for_a_negative_logit(opened):
    pytest.importorskip("pytorch_grad_cam")
    adapter, images, _ = opened("demo/cnn")
    logits = adapter.forward(images[:1])[0].detach()
    target = (logits < -1).nonzero()[:, 0]
    copies = images[:1].expand(len(target), -1, -1, -1)
    weights, features, scores = peers.ablation_cam_weights(adapter, copies, target)
    turned = -torch.einsum("bc,bchw->bhw", weights, features)  # its map before it is rectified, with our sign
    shown = [index for index in range(len(target)) if float(turned[index].max()) > 0]
    assert shown
    assert (scores < -1).all()
    found = ours((adapter, copies, target), "ablation_cam")[shown]
    assert difference(found, turned[shown].relu()) <= RELATIVE


@pytest.mark.parametrize("model", ["torchvision/resnet18@random", *SMALL])
def test_finer_cam_equals_pytorch_grad_cams(opened, model):
    pytest.importorskip("pytorch_grad_cam")
    case = opened(model)
    expected = torch.as_tensor(peers.finer_cam(*case))
    shown = [index for index in range(2) if float(expected[index].max()) > 0]
    assert shown
    assert difference(ours(case, "finer_cam")[shown], expected[shown]) <= RELATIVE


@pytest.mark.parametrize("model", LARGE)
def test_gradients_at_the_pixels_equal_captums(opened, model):
    case = opened(model)
    assert difference(ours(case, "input_x_gradient"), peers.captum_input_x_gradient(*case)) <= RELATIVE
    assert difference(ours(case, "saliency"), peers.captum_saliency(*case)) <= RELATIVE


@pytest.mark.parametrize("model", ["torchvision/resnet18@random", "cnn", "demo/cnn"])
def test_guided_methods_equal_captums_where_all_relus_are_modules(opened, model):
    """ResNet's ReLU modules run twice each: Captum's hooks for this method allow that."""
    case = opened(model)
    assert difference(ours(case, "guided_backprop"), peers.captum_guided(*case).abs().amax(dim=1)) <= RELATIVE
    assert difference(ours(case, "guided_grad_cam"), peers.captum_guided_grad_cam(*case)) <= RELATIVE


@pytest.mark.parametrize("options", [{}, {"conv_gamma": 1.5, "linear_gamma": 0.5}], ids=str)
@pytest.mark.parametrize("model", ["cnn", "demo/cnn"])
def test_attn_lrp_of_a_cnn_equals_zennits_gamma_rule(opened, model, options):
    pytest.importorskip("zennit")
    case = opened(model)
    assert difference(ours(case, "attn_lrp", **options), peers.zennit_gamma(*case, **options)) <= RELATIVE


def test_legrad_equals_torchcams(opened):
    pytest.importorskip("torchcam.methods")
    case = opened("vit_torchvision")
    assert difference(ours(case, "legrad"), peers.torch_cam_legrad(*case)) <= RELATIVE


def test_the_derivation_of_legrad_equals_torchcams(opened):
    pytest.importorskip("torchcam.methods")
    case = opened("vit_torchvision")
    assert difference(transformer.legrad(*case), peers.torch_cam_legrad(*case)) <= RELATIVE


@pytest.mark.parametrize("name", ["class_attention", "attention_rollout"])
def test_attention_maps_equal_those_of_transformers_own_attentions(opened, name):
    case = opened("hf_vit")
    peer = {"class_attention": peers.transformers_class_attention, "attention_rollout": peers.transformers_rollout}[
        name
    ]
    assert difference(ours(case, name), peer(*case)) <= RELATIVE


# What others get wrong


@pytest.mark.parametrize(
    ("model", "layer", "shape"), [("vit", "blocks.2.norm1", (2, 1, 32)), ("swin", "norm", (2, 1, 4, 16))]
)
def test_bare_layer_grad_cam_weighs_tokens_or_rows_in_place_of_channels(opened, model, layer, shape):
    """Captum's: it returns a map of its own formula on the second axis, whatever that is, without an error."""
    adapter, images, target = opened(model)
    bare = LayerGradCam(peers.Normalized(adapter), None)
    module = bare.forward_func
    bare.layer = module.inner.get_submodule(layer)
    found = bare.attribute(images, target=target).detach()
    output, slopes = _layer_of(module, layer, images, target)
    weights = slopes.mean(dim=tuple(range(2, slopes.ndim)), keepdim=True)
    expected = (weights * output).sum(dim=1, keepdim=True)
    assert found.ndim == len(shape)
    torch.testing.assert_close(found, expected)  # summed over tokens, or over rows of the image
    assert found.shape[2:] != ours((adapter, images, target), "grad_cam").shape[1:]


def _layer_of(module, layer, images, target):
    kept = []
    hook = module.inner.get_submodule(layer).register_forward_hook(lambda m, a, output: kept.append(output))
    scores = module(images).gather(1, target[:, None]).sum()
    hook.remove()
    return kept[0].detach(), torch.autograd.grad(scores, kept[0])[0]


def _rollout_as_vit_explain(attention, discard=0.9):
    """As github.com/jacobgil/vit-explain has it: a re-written illustration of its two steps, not its code.

    The smallest values are set to 0 in the first image only, rows are divided without keepdim, so by other rows' sums.
    """
    flow = torch.eye(attention[0].shape[-1], dtype=attention[0].dtype)
    steps = []
    for one in attention:
        fused = one.mean(dim=1)
        flat = fused.view(len(fused), -1)
        _, smallest = flat.topk(int(flat.shape[-1] * discard), -1, False)
        smallest = smallest[smallest != 0]
        flat[0, smallest] = 0
        step = (fused + torch.eye(fused.shape[-1], dtype=fused.dtype)) / 2
        step = step / step.sum(dim=-1)
        steps.append(step)
        flow = step @ flow
    return flow, steps


def test_rollout_whose_rows_are_divided_without_keepdim_is_no_flow(opened):
    adapter, images, _ = opened("vit")
    w = vit.weights_of(adapter)
    _, attention = vit.run(w, Plain(adapter).normalized(images[:1]))
    flow, steps = _rollout_as_vit_explain([one.detach().clone() for one in attention])
    assert max(float((step.sum(dim=-1) - 1).abs().max()) for step in steps) > 0.05
    kept = explain_together(adapter, [("attention_rollout", {"discard_ratio": 0.9})], images[:1])[
        "attention_rollout"
    ].values
    assert difference(vit.patch_grid(w, flow[:, 0], adapter.tokens.grid), kept) > 0.05


def test_gradients_paired_with_attention_in_reverse_order_give_another_map(opened):
    """Backward hooks fire from the last block to the first. An illustration of what zipping them as they come does."""
    adapter, images, target = opened("vit")
    w = vit.weights_of(adapter)
    logits, attention = vit.run(w, Plain(adapter).normalized(images))
    arrived = []
    for one in attention:
        one.register_hook(arrived.append)
    slopes = torch.autograd.grad(vit.scores_of(logits, target).sum(), attention)
    assert all(torch.equal(one, other) for one, other in zip(arrived, reversed(slopes), strict=True))

    def rollout(pairs):
        flow = torch.eye(attention[0].shape[-1], dtype=torch.float64).repeat(2, 1, 1)
        for one, slope in pairs:
            flow = flow + (one.detach() * slope).clamp(min=0).mean(dim=1) @ flow
        return vit.patch_grid(w, flow[:, 0], adapter.tokens.grid)

    right, wrong = rollout(zip(attention, slopes, strict=True)), rollout(zip(attention, arrived, strict=True))
    shown = ours((adapter, images, target), "gradient_rollout")
    assert difference(shown, right) <= RELATIVE
    assert difference(shown, wrong) > 0.1


def test_torchcams_legrad_averages_all_tokens_unless_told_how_the_model_reads_its_score(opened):
    """Its default score is head(norm(mean of all tokens)); torchvision's ViT reads the class token."""
    library = pytest.importorskip("torchcam.methods")
    adapter, images, target = opened("vit_torchvision")
    module = peers.Normalized(adapter).eval()
    with library.LeGrad(module.inner, list(module.inner.encoder.layers)) as explainer:
        scores = module(images)
        found = explainer(target.tolist(), scores, normalized=False)[0]
    assert difference(found, transformer.legrad(adapter, images, target)) > 0.1


def test_captums_guided_gradients_are_the_derived_ones(opened):
    """So that a test above cannot pass by both of us doing the same wrong thing."""
    case = opened("cnn")
    assert difference(peers.captum_guided(*case).abs().amax(dim=1), gradients.guided_backprop(*case)) <= RELATIVE
