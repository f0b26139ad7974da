# %% [markdown]
# # 2. A CNN and a ViT on the same photos
#
# EfficientNet-Lite0 was trained on ImageNet; the small ViT tells what is in focus. Both come with packages.

# %%
# %matplotlib inline
import pandas as pd

import attncompare as ac

cnn = ac.load_model("offline/efficientnet_lite0")
vit = ac.load_model("offline/vit_small_focus")
cnn.family, cnn.size, vit.family, vit.size, vit.tokens

# %% [markdown]
# Each model gets the photo by its own resize and crop.

# %%
data = ac.open_dataset("photos", limit=3)
photos = [data.load(name).image for name in data.names]
for_cnn, for_vit = ac.load_images(photos, cnn), ac.load_images(photos, vit)

# %% [markdown]
# Methods that both can take show the models side by side; attention is the ViT's alone. Asking the CNN for it is an error
# that says why, not another map.

# %%
cnn_maps = ac.explain_together(cnn, ["grad_cam", "saliency"], for_cnn)
vit_maps = ac.explain_together(vit, ["grad_cam", "saliency", "class_attention", "gradient_rollout"], for_vit)
try:
    ac.make_explainer(cnn, "class_attention")
except Exception as error:
    refusal = str(error)
refusal

# %%
cnn_figure = ac.show_maps(for_cnn, cnn_maps, labels=data.names)
cnn_figure

# %%
vit_figure = ac.show_maps(for_vit, vit_maps, labels=data.names)
vit_figure

# %% [markdown]
# Do they look at the same places? Maps of two models are enlarged to one size and compared pixel by pixel, image by image.

# %%
pairs = {
    "both by Grad-CAM": (cnn_maps["grad_cam"], vit_maps["grad_cam"]),
    "both by saliency": (cnn_maps["saliency"], vit_maps["saliency"]),
    "the ViT, two methods": (vit_maps["class_attention"], vit_maps["gradient_rollout"]),
}
agreement = pd.DataFrame(
    {"pair": name, "image": record.image, "measure": record.measure, "value": record.value}
    for name, (first, second) in pairs.items()
    for record in ac.compare_maps(first, second)
).pivot_table(index="pair", columns="measure", values="value")
agreement

# %% [markdown]
# Two readings of one model can differ as much as two models do: compare architectures by one method at a time, and by
# scores with intervals (notebook 3), not by single pictures.
