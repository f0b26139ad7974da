# %% [markdown]
# # 5. Add a method
#
# A method is a pure function of tensors. Its positional parameters name what it needs of a model (a *signal*); keyword-only
# ones are its options. Hooks, layers and models are not its business.

# %%
# %matplotlib inline
from torch import Tensor

import attncompare as ac


@ac.method(
    reference="this notebook",
    meaning={"power": "The evidence of a channel is raised to it: above 1 the strongest channels count more."},
)
def positive_evidence(features: Tensor, feature_gradients: Tensor, *, power: float = 1.0) -> Tensor:
    """Sum over channels of the positive part of features times gradients."""
    return (features * feature_gradients).clamp(min=0).pow(power).sum(dim=1)


# %% [markdown]
# It can be used at once, on every model that supplies both signals, and shares its pass with the others. In the package the
# same lines are a file of their own, `attncompare/methods/positive_evidence.py`, and the command line knows it too.

# %%
known = "positive_evidence" in ac.list_methods()
model = ac.load_model("demo/cnn")
data = ac.open_dataset("shapes", limit=4)
images = ac.load_images([data.load(name).image for name in data.names], model)
maps = ac.explain_together(model, ["hires_cam", "positive_evidence"], images)
sharper = ac.make_explainer(model, "positive_evidence", power=2.0).explain(images)
figure = ac.show_maps(images, {**maps, "power 2": sharper})
figure

# %% [markdown]
# An option is checked like any other.

# %%
try:
    ac.make_explainer(model, "positive_evidence", powr=2.0)
except Exception as error:
    complaint = str(error)
complaint

# %% [markdown]
# Is it better than what there is? Timing runs in a fresh process, which does not know this notebook: it needs the file.

# %%
spec = ac.BenchmarkSpec(
    models=["demo/cnn"],
    methods=["hires_cam", "positive_evidence", "random_map"],
    metrics=["deletion", "insertion", "energy_inside"],
    protocol="rise-fast",
    limit=4,
    timing=False,
)
summary = ac.run_benchmark(spec, "runs/notebook-5").summary()
means = summary.pivot_table(index="method", columns="measure", values="mean")
means
