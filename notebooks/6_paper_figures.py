# %% [markdown]
# # 6. The figures and tables of a paper
#
# Everything is drawn from a run's folder: no model runs again, and the same run gives the same bytes.

# %%
# %matplotlib inline
import os

import attncompare as ac

SMALL = bool(os.environ.get("ATTNCOMPARE_NOTEBOOK_SMALL"))

spec = ac.BenchmarkSpec(
    models=["demo/cnn", "demo/vit"],
    methods=["grad_cam", "saliency", "gradient_rollout", "random_map"],
    metrics=["deletion", "insertion", "energy_inside"],
    protocol="rise-fast",
    limit=4 if SMALL else 12,
    save_maps=True,
    repeats=3 if SMALL else 5,
    timing_seconds=0.0 if SMALL else 0.2,
)
run = ac.run_benchmark(spec, "runs/notebook-6")

# %% [markdown]
# A figure is as wide as a venue's column: `cvpr`, `icml`, `neurips`, ...; `-wide` spans both columns.

# %%
images = sorted(run.records().image.unique())
grid = ac.figures.draw(run.folder, "grid", venue="cvpr", images=[name for name in images if name][-2:])
grid

# %%
curves = ac.figures.draw(run.folder, "curves", venue="cvpr-wide", measures=["deletion", "insertion"])
curves

# %%
cost = ac.figures.draw(run.folder, "cost", venue="neurips")
cost

# %% [markdown]
# PDF and SVG for print (fonts embedded), PNG for slides.

# %%
written = [ac.figures.save_figure(grid, f"figures/grid{ending}") for ending in (".pdf", ".svg", ".png")]
written += [ac.figures.save_figure(curves, "figures/curves.pdf"), ac.figures.save_figure(cost, "figures/cost.pdf")]
written

# %% [markdown]
# The table is LaTeX (booktabs), Markdown, CSV or HTML: best in bold, intervals small, n and protocol in the caption.

# %%
latex = ac.tables.table(run.folder, "tex")
print(latex)
