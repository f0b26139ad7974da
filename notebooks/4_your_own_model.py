# %% [markdown]
# # 4. Your own model
#
# Any `nn.Module` that maps (B, 3, H, W) to (B, K). Here: a trained trunk with a new head, which answers a new question.

# %%
# %matplotlib inline
import torch
import torch.nn.functional as F
from torch import nn

import attncompare as ac


class Curved(nn.Module):
    """Is the shape made of curves, or of straight lines? A transformer's class token and one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = ac.load_model("demo/vit").module  # a plain timm ViT
        self.head = nn.Linear(self.trunk.embed_dim, 2)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, 64, 64) -> (B, 128), what the class token holds."""
        return self.trunk.forward_features(images)[:, 0]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, 64, 64) -> (B, 2) logits."""
        return self.head(self.embed(images))


# %% [markdown]
# The trunk stays as it is; the head learns from 160 drawn shapes.

# %%
ANSWERS = ("straight", "curved")


def shapes(split, count):
    """Images (B, 3, 64, 64) in [0, 1], whether they are curved, and where the shape is."""
    data = ac.open_dataset(split, limit=count)
    samples = [data.load(name) for name in data.names]
    pixels = torch.stack([torch.from_numpy(one.image).permute(2, 0, 1) / 255 for one in samples])
    curved = torch.tensor([data.class_names[one.label] in ("disk", "ring", "crescent") for one in samples])
    return pixels, curved.long(), torch.stack([torch.from_numpy(one.mask) for one in samples])


torch.manual_seed(0)
net = Curved().eval()
pixels, curved, _ = shapes("shapes-val", 160)
with torch.no_grad():
    embedded = net.embed((pixels - 0.5) / 0.25)
optimizer = torch.optim.AdamW(net.head.parameters(), 0.01)
for _ in range(200):
    loss = F.cross_entropy(net.head(embedded), curved)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %% [markdown]
# One line wraps it. A few probing passes find the feature layer, how tokens lie on the image, the attention and what else it
# supplies. `describe()` says what was found, and why anything is missing.

# %%
model = ac.wrap_model(net, size=(64, 64), mean=(0.5,) * 3, std=(0.25,) * 3, name="curved", class_names=ANSWERS)
found = model.describe()
found

# %%
images, curved, masks = shapes("shapes", 24)
chosen = model.forward(images).argmax(dim=1)
accuracy = float((chosen == curved).float().mean())
accuracy

# %% [markdown]
# Every method works on it as on any other model.

# %%
METHODS = ["grad_cam", "gradient_rollout", "saliency", "random_map"]
labels = [model.class_name(int(index)) for index in chosen[:4]]
figure = ac.show_maps(images[:4], ac.explain_together(model, METHODS, images[:4]), labels=labels)
figure

# %% [markdown]
# How much of each map lies on the shape? The masks say where it is; a random map shows what chance gives.

# %%
maps = ac.explain_together(model, METHODS, images)
on_the_shape = {}
for name, one in maps.items():
    records = ac.score(model, images, one, metrics=["energy_inside"], protocol="rise-fast", masks=masks)
    on_the_shape[name] = sum(record.value for record in records) / len(records)
on_the_shape
