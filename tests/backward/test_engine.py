"""The engine of backward rules: which call meets a rule, what a rule may rely on, and what is left when the context ends."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncompare.backward.attn_lrp import attn_lrp
from attncompare.backward.deep_lift import deep_lift
from attncompare.backward.engine import Rules, constant, kept, one_input, plain, ruled
from attncompare.backward.guided import guided
from attncompare.backward.transformer_lrp import transformer_lrp
from attncompare.errors import UnsupportedMethodError
from attncompare.inspection.functions import RELU, SMOOTH, spellings

METHODS = {
    "guided": guided,
    "deep_lift": deep_lift,
    "attn_lrp": lambda: attn_lrp(0.25, 0.05),
    "relevance": transformer_lrp,
}


def tenfold(call, gradient, x):
    """A rule that can be told from every gradient: the input as it was, times ten."""
    return 10 * gradient * x


def values(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def gradient(function, rules=None):
    """Of the sum of a function of x, and x itself, which is not a leaf, so that it can be written into."""
    leaf = values(4, 6).requires_grad_(True)
    with rules or Rules("none", {}, otherwise=plain):
        result = function(leaf * 1)
    return result.detach(), torch.autograd.grad(result.sum(), leaf)[0]


SPELLED = {
    "F.relu": lambda x: F.relu(x),
    "torch.relu": lambda x: torch.relu(x),
    "method": lambda x: x.relu(),
    "by name": lambda x: F.relu(input=x),
    "module": nn.ReLU(),
    "module that writes": nn.ReLU(inplace=True),
    "writes, by position": lambda x: F.relu(x, True),
    "torch.relu_": lambda x: torch.relu_(x),
    "method that writes": lambda x: x.relu_(),
    "written, result dropped": lambda x: (x.relu_(), x)[1],
    "flag, result dropped": lambda x: (F.relu(x, inplace=True), x)[1],
}


@pytest.mark.parametrize("how", SPELLED)
def test_a_rule_is_met_in_every_spelling_and_gets_the_input_as_it_was(how):
    value, found = gradient(SPELLED[how], Rules("test", {RELU: one_input(tenfold)}, otherwise=plain))
    torch.testing.assert_close(value, values(4, 6).relu())
    torch.testing.assert_close(found, 10 * values(4, 6))


WRITERS = {
    "hardtanh": lambda x: F.hardtanh(x, -1.0, 1.0, True), "relu6": lambda x: F.relu6(x, True),
    "elu": lambda x: F.elu(x, 1.0, True), "celu": lambda x: F.celu(x, 1.0, True), "selu": lambda x: F.selu(x, True),
    "silu": lambda x: F.silu(x, True), "mish": lambda x: F.mish(x, True), "hardswish": lambda x: F.hardswish(x, True),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1, True), "rrelu": lambda x: F.rrelu(x, 0.1, 0.3, False, True),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_a_flag_given_by_position_writes_into_the_input(name):
    rules = Rules("test", {spellings(name): one_input(tenfold)}, otherwise=plain)
    value, found = gradient(lambda x: (WRITERS[name](x), x)[1], rules)
    torch.testing.assert_close(value, WRITERS[name](values(4, 6)))
    torch.testing.assert_close(found, 10 * values(4, 6))


def test_what_is_written_later_into_input_or_value_changes_no_rule():
    def function(x):
        y = F.silu(x)
        z = y * 1
        y.zero_()
        x.zero_()
        return z

    found = gradient(function, Rules("test", {spellings("silu"): one_input(tenfold)}, otherwise=plain))[1]
    torch.testing.assert_close(found, 10 * values(4, 6))


def test_a_function_without_a_rule_runs_by_the_rule_for_the_others():
    assert torch.equal(gradient(torch.sin, guided())[1], values(4, 6).cos())
    rules = Rules("test", {spellings("add mul"): plain}, otherwise=constant)
    assert torch.equal(gradient(lambda x: x + x.sin(), rules)[1], torch.ones(4, 6))
    with pytest.raises(UnsupportedMethodError, match=r"no rule for .*sin"), transformer_lrp():
        values(4, 6).requires_grad_(True).sin()


def test_a_call_that_no_gradient_flows_through_asks_no_rule():
    def never(func, args, options):
        raise AssertionError(func)

    with Rules("test", {}, otherwise=never):
        assert torch.equal(F.relu(values(4, 6)), values(4, 6).relu())
    with torch.no_grad(), transformer_lrp():
        assert torch.equal(values(4, 6).sin(), torch.sin(values(4, 6)))


def test_a_function_has_one_rule():
    with pytest.raises(AssertionError, match="two rules"):
        Rules("test", {RELU: plain, RELU | SMOOTH: constant}, otherwise=plain)


@pytest.mark.parametrize("name", METHODS)
def test_the_context_undoes_all_even_when_it_ends_in_an_error(name):
    before = gradient(F.silu)[1]
    with pytest.raises(ZeroDivisionError), METHODS[name]():
        _ = 1 / 0
    assert torch.equal(gradient(F.silu)[1], before)
    rules = METHODS[name]()
    with rules, rules:
        F.relu(values(2, 6).requires_grad_(True))
    assert torch.equal(gradient(F.silu)[1], before)


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_values_are_those_without_the_rules(name, weights):
    torch.manual_seed(0)
    attention, norm, linear = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8), nn.Linear(8, 8)

    def network(x):
        x = x + attention(norm(x), norm(x), norm(x), need_weights=weights)[0]
        return (x + F.gelu(linear(x))).mean(1)

    x = values(2, 5, 8).requires_grad_(True)
    if name == "relevance" and not weights:
        with pytest.raises(UnsupportedMethodError, match="scaled_dot_product_attention"), METHODS[name]():
            network(x)  # the recorder writes it out
        return
    with METHODS[name]():
        found = network(x)
    torch.testing.assert_close(found, network(x))
    assert torch.isfinite(torch.autograd.grad(found.sum(), x)[0]).all()


@pytest.mark.parametrize("name", METHODS)
def test_a_graph_is_freed_with_its_output(name):
    """No closure of a rule holds the value that hangs on it; else every pass stays in memory until the collector runs."""
    torch.manual_seed(0)
    linear, x = nn.Linear(6, 6), values(4, 6).requires_grad_(True)
    gc.collect()
    gc.disable()
    try:
        with METHODS[name]():
            parts = [linear(x), 2 * F.relu(x)]
            parts += [parts[0] + parts[1], parts[0] + 1, F.layer_norm(parts[0], (6,)), parts[0] @ parts[1].mT]
            parts.append(F.softmax(parts[-1], -1))
            torch.autograd.grad([parts[-1], parts[2]], x, [values(4, 4), values(4, 6)])
        kept_alive = [weakref.ref(part) for part in parts]
        del parts
        assert [ref() for ref in kept_alive] == [None] * len(kept_alive)
    finally:
        gc.enable()


def test_a_rule_of_several_inputs_gives_a_gradient_to_each():
    a, b = values(3).requires_grad_(True), (values(3) + 1).requires_grad_(True)
    total: Tensor = ruled(torch.add, lambda call, gradient, a, b: (gradient * b, gradient * a), a, b)
    assert torch.equal(total, a + b)
    assert all(map(torch.equal, torch.autograd.grad(total.sum(), [a, b]), (b.detach(), a.detach())))
    assert torch.equal(torch.autograd.grad(ruled(torch.sin, kept, a).sum(), a)[0], torch.ones(3))


def test_a_misspelled_function_is_noticed():
    with pytest.raises(AssertionError, match="misspelled: relu rellu"):
        spellings("relu rellu")
