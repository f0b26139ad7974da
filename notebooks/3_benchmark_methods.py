# %% [markdown]
# # 3. Which method should I trust?
#
# A benchmark on synthetic shapes, whose evidence is known: the shape decides the class, so a good map lies on it.

# %%
# %matplotlib inline
import os

import attncompare as ac

IMAGES = 4 if os.environ.get("ATTNCOMPARE_NOTEBOOK_SMALL") else 24

spec = ac.BenchmarkSpec(
    models=["demo/cnn", "demo/vit"],
    methods=["grad_cam", "saliency", "gradient_rollout", "attention_rollout", "random_map", "center_map"],
    metrics=["deletion", "insertion", "pointing_game"],
    protocol="rise-fast",
    data="shapes",
    limit=IMAGES,
    timing=False,
    save_maps=True,
)
run = ac.run_benchmark(spec, "runs/notebook-3")
run

# %% [markdown]
# `random_map` and `center_map` know nothing of the model: a method that does not beat them explains nothing. Every mean
# has a 95 % bootstrap interval over images.

# %%
summary = run.summary()
pointing = summary[(summary.measure == "pointing_game") & (summary.n > 0)][
    ["model", "method", "mean", "low", "high", "n"]
]
pointing

# %% [markdown]
# What a model cannot supply is refused by name and reason, and counted.

# %%
refused = summary[summary.unsupported > 0][["model", "method", "detail"]].drop_duplicates()
refused

# %%
figure = ac.figures.draw(run.folder, "curves")
figure

# %% [markdown]
# Ask anything of the records in SQL. They are Parquet files, one per finished cell.

# %%
best = run.query("""
    select model, arg_max(method, value) as best_by_insertion, max(value) as insertion from (
        select model, method, avg(value) as value from records where measure = 'insertion' and status = 'ok' group by all)
    group by all order by all
""")
best

# %% [markdown]
# A second call computes nothing: a cell is known by the hash of everything that can change it.

# %%
again = ac.run_benchmark(spec, "runs/notebook-3")
again.computed, again.reused
