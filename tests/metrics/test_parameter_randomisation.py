import itertools

import pytest
import torch
from torch import nn

import attncompare as ac
from attncompare.benchmark.randomized import STAGES, randomized_maps, stages_of
from attncompare.metrics.parameter_randomisation import parameter_randomisation


def weights(model: nn.Module) -> dict:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_the_value_is_the_mean_rank_correlation_over_the_stages():
    shown = torch.arange(12.0).reshape(1, 3, 4)
    stages = [shown * 2, -shown, torch.ones(1, 3, 4)]  # correlations 1, -1 and none, which counts 0
    assert parameter_randomisation(shown, iter(stages)).item() == 0
    assert parameter_randomisation(shown, iter(stages[:1])).item() == 1
    assert parameter_randomisation(shown, iter([stages[0], stages[2]])).item() == pytest.approx(0.5)


def test_a_constant_map_has_no_value():
    shown = torch.stack([torch.ones(3, 4), torch.arange(12.0).reshape(3, 4)])
    assert parameter_randomisation(shown, iter([shown])).isnan().tolist() == [True, False]


def test_stages_hold_every_parameter_once_from_the_output_down(each_tiny):
    stages = stages_of(each_tiny.module)
    listed = [parameter for stage in stages for parameter in stage]
    assert len(listed) == len(set(listed)) and set(listed) == set(each_tiny.module.parameters())
    assert 1 < len(stages) <= STAGES and all(stages)


def test_the_output_layer_is_in_the_first_stage_and_the_input_in_the_last(tiny):
    model = tiny("vit").module
    stages = stages_of(model)
    assert any(one is model.head.weight for one in stages[0])
    assert any(one is model.patch_embed.proj.weight for one in stages[-1])
    assert any(one is model.pos_embed for one in stages[-1])


def test_each_stage_shuffles_what_is_not_yet_shuffled_and_keeps_the_values(fresh):
    model = fresh("vit").module
    before, changed = weights(model), []

    def look():
        now = model.state_dict()
        for name, value in now.items():
            assert torch.equal(value.flatten().sort().values, before[name].flatten().sort().values)
        changed.append({name for name, value in now.items() if not torch.equal(value, before[name])})
        return torch.zeros(1)

    assert len(list(randomized_maps(model, look))) == STAGES
    assert all(a < b for a, b in itertools.pairwise(changed))
    assert changed[-1] == set(before)
    after = weights(model)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_weights_are_put_back_after_a_fault_and_when_nobody_asks_on(fresh):
    model = fresh("cnn").module
    before = weights(model)

    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        next(randomized_maps(model, fail))
    half_way = randomized_maps(model, lambda: torch.zeros(1))
    next(half_way)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    half_way.close()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_control_does_not_notice_and_a_method_that_reads_the_model_does():
    model = ac.load_model("demo/cnn")
    images = torch.rand(2, 3, *model.size, generator=torch.Generator().manual_seed(0))
    found = {}
    before = weights(model.module)
    for name in ("edge_map", "cam", "saliency"):
        shown = ac.make_explainer(model, name).explain(images)
        records = ac.score(model, images, shown, metrics=["parameter_randomisation"])
        assert all(record.status == "ok" for record in records)
        found[name] = [record.value for record in records]
    assert found["edge_map"] == [1, 1]
    assert max(found["cam"] + found["saliency"]) < 0.8
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())


class KeepsBiases(nn.Module):
    """As timm's LeViT does: what is made of a parameter is kept while the module is evaluated, and dropped by `train`."""

    def __init__(self):
        super().__init__()
        self.biases, self.kept = nn.Parameter(torch.arange(4.0)), None
        self.dropout = nn.Dropout()

    def train(self, mode=True):
        self.kept = None
        return super().train(mode)

    def forward(self):
        self.kept = self.biases.detach() * 1 if self.kept is None else self.kept
        return self.kept


def test_what_a_module_keeps_of_its_weights_is_shuffled_and_put_back_too():
    model = KeepsBiases().eval()
    model.dropout.training = True  # forced on, as in Monte-Carlo dropout
    before = model()
    (shuffled,) = randomized_maps(model, model)
    assert not torch.equal(shuffled, before) and torch.equal(shuffled.sort().values, before)
    assert torch.equal(model(), before) and not model.training and model.dropout.training


def test_the_attention_biases_of_levit_are_shuffled():
    model = ac.load_model("timm/levit_128s@random").module
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    biases = {name: one for name, one in model.named_parameters() if name.endswith("attention_biases")}
    with torch.no_grad():
        for one in biases.values():  # zero as the library makes them
            one.copy_(torch.randn(one.shape, generator=torch.Generator().manual_seed(1)))
        model.train()
        clean, found = model.eval()(images), []

        def look():
            kept = model(images)
            model.train()
            fresh = model.eval()(images)
            found.append((kept, fresh))
            return kept

        *_, last = randomized_maps(model, look)
        assert all(torch.equal(kept, fresh) for kept, fresh in found) and not torch.equal(last, clean)
        assert torch.equal(model(images), clean)
