# %% [markdown]
# # 1. A first map
#
# Where does a model look when it says "tabby cat"? A pretrained CNN that comes with a package, one photo, three methods.

# %%
# %matplotlib inline
import attncompare as ac

model = ac.load_model("offline/efficientnet_lite0")  # or torchvision/resnet50, timm/..., hf/..., your own: notebook 4
model.describe()  # what was found in it: no target layer and no reshape function is yours to write

# %% [markdown]
# Pictures are files (`ac.load_images(["cat.png"], model)`) or arrays. They get the model's own resize and crop, and stay
# in [0, 1]: the model normalizes them itself.

# %%
photos = ac.open_dataset("photos", limit=1)
photo = photos.load(photos.names[0])
images = ac.load_images([photo.image], model)  # (1, 3, H, W)

# %% [markdown]
# `explain_together` shares one forward and one backward pass among the methods that can. The target is the model's own
# choice unless you name another: a class index, `"class:tiger cat"`, or a function of the logits.

# %%
maps = ac.explain_together(model, ["grad_cam", "layer_cam", "saliency"], images)
chosen = model.class_name(int(maps["grad_cam"].target))
figure = ac.show_maps(images, maps, labels=[chosen])
figure

# %% [markdown]
# Maps are raw: not rectified, not resized, not rescaled. Grad-CAM is as coarse as the feature layer, saliency as fine as
# the pixels.

# %%
shapes = {name: tuple(found.values.shape) for name, found in maps.items()}
shapes

# %% [markdown]
# LIME asks the model alone, hundreds of times: which superpixels does the class need? In Jupyter the second picture has a
# slider for the opacity, and buttons for map and image.

# %%
lime = ac.make_explainer(model, "lime", n_samples=50).explain(images)
lime_figure = ac.show_maps(images, {"lime": lime}, labels=[chosen])
lime_figure

# %%
slider = ac.figures.interactive(lime, images)
slider

# %% [markdown]
# How good are they? Deletion removes the pixels that a map calls important (lower is better), insertion brings them
# back (higher is better). The name of the protocol fixes every choice that changes the score.

# %%
records = [record for found in maps.values() for record in ac.score(model, images, found, protocol="rise-fast")]
scores = {(record.method, record.measure): round(record.value, 3) for record in records}
scores
