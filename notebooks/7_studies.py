# %% [markdown]
# # 7. Studies of one question each
#
# Beyond scoring maps. Each study is one call here and one command (`attncompare study NAME`, or `explain` with `--layers` or
# `--top`); its numbers are tables, and `ac.figures` draws it.

# %%
# %matplotlib inline
import os

import numpy as np

import attncompare as ac

SMALL = bool(os.environ.get("ATTNCOMPARE_NOTEBOOK_SMALL"))

cnn = ac.load_model("demo/cnn") if SMALL else ac.load_model("offline/efficientnet_lite0")
photos = ac.open_dataset("photos", limit=1)
images = ac.load_images([photos.load(photos.names[0]).image], cnn)

# %% [markdown]
# ## What does each layer respond to?
#
# One forward pass for all layers: their channel mean, their strongest channels, and what they come to in numbers.

# %%
inside = ac.studies.layers(cnn, images)
layers_figure = ac.figures.layers_figure(inside)
layers_figure

# %%
layers_table = inside.table()
layers_table

# %% [markdown]
# ## Where is the evidence of each of the first choices?

# %%
choices = ac.studies.top_classes(cnn, images, "cam", k=3)
choices_figure = ac.figures.top_classes_figure(choices)
choices_figure

# %% [markdown]
# ## What does a layer keep?
#
# Another image is made whose features are the same to the layer. What it does not show, the layer has thrown away.

# %%
demo = ac.load_model("demo/cnn")
shapes = ac.open_dataset("shapes", limit=1)
shape = ac.load_images([shapes.load(shapes.names[0]).image], demo)
kept = ac.studies.invert(demo, shape, ["0", "2"], steps=5 if SMALL else 300)
kept_figure = ac.figures.inversion_figure(kept)
kept_figure

# %% [markdown]
# ## Does a class use a concept?
#
# TCAV: the direction that tells pictures with stripes from others in one layer, and whether moving along it raises a class's
# logit. The null is what other pictures score in the concept's place; texture says nothing of the class in these data.

# %%
several = ac.open_dataset("shapes", limit=100 if SMALL else 500)
shown = [several.load(name) for name in several.names]
rings = [one.image for one in shown if one.label == demo.class_index("ring")]
others = [one.image for one in shown if one.label != demo.class_index("ring")]
count = len(others) // 11  # one set for the concept, ten to compare it with
stripes = 60 * np.sin(np.arange(64))[:, None, None]
striped = [np.clip(image + stripes, 0, 255).astype(np.uint8) for image in others[:count]]
concept = ac.studies.tcav(demo, rings, "class:ring", {"striped": striped}, others[count:], ["2"])
concept_table = concept.table
concept_table

# %%
concept_figure = ac.figures.concepts_figure(concept)
concept_figure

# %% [markdown]
# ## Does channel attention help, and what do its gates do?
#
# The same CNN trained with and without squeeze-and-excitation over three seeds. Small here; `epochs=50` is the real thing.

# %%
few = {"train_images": 32, "validation_images": 16, "test_images": 16, "epochs": 1, "size": 16}
some = {"train_images": 1_000, "validation_images": 200, "test_images": 500, "epochs": 4}
spec = ac.TrainSpec(**(few if SMALL else some))
gated = ac.studies.channel_attention(spec, draws=2 if SMALL else 20, out="runs/notebook-7/channel-attention")
gated_table = gated.table()
gated_table

# %%
gates_figure = ac.figures.gates_figure(gated)
gates_figure

# %% [markdown]
# ## Does the model cheat, and which methods say so?
#
# Two copies of a model are trained on the same pictures, one with a colored corner that gives the answer away, one with a
# corner that says nothing. First: does the one really cheat, and the other not?

# %%
cheats = ac.studies.cheating(
    "runs/notebook-7/cheating",
    models=["demo/cnn"],
    methods=["cam", "center_map"] if SMALL else "cheap",
    images=4 if SMALL else 32,
    training=ac.studies.CueTraining(steps=2) if SMALL else ac.studies.CueTraining(),
)
accuracy = cheats.accuracy
accuracy

# %% [markdown]
# Energy on the cue, on the same images, with 95 % intervals: a method reveals the cheater where the two differ.

# %%
cheats_figure = ac.figures.cheating_figure(cheats)
cheats_figure
