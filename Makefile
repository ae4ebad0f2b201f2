# make quickstart   set everything up and run the main job on this machine's CPU
# make test         set up what the tests need and run them
# make check        style and types
# make package-check  wheel, source distribution and lowest versions, each in an empty environment (CONTRIBUTING.md)
# make data-NAME    privileged data of real sources: bigbench, aerial, stamps or ocr (docs/real-data.md)

VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
# The whole quickstart by default; e.g. QUICKSTART="--steps 20 --train_size 300 --eval_size 60"
QUICKSTART ?=

.PHONY: quickstart test check package-check clean data-bigbench data-aerial data-stamps data-ocr

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

quickstart: $(VENV)/.installed
	$(BIN)/dopd-vl quickstart --config configs/quickstart.yaml $(QUICKSTART)

test: $(VENV)/.installed
	$(BIN)/python -m pytest

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# All parts by default; e.g. PARTS=wheel
PARTS ?=
package-check:
	PYTHON=$(PYTHON) .ci/package-check $(PARTS)

data-bigbench data-aerial data-stamps: data-%: $(VENV)/.installed
	$(BIN)/python examples/real_data/$*.py
	$(BIN)/dopd-vl prepare --config configs/prepare/$*.yaml

# RapidOCR and what it wants live in an environment of their own.
runs/ocr-venv/.installed:
	$(PYTHON) -m venv runs/ocr-venv
	runs/ocr-venv/bin/python -m pip install --quiet --disable-pip-version-check rapidocr==3.10.0 onnxruntime
	touch $@

data-ocr: $(VENV)/.installed runs/ocr-venv/.installed
	runs/ocr-venv/bin/python examples/real_data/ocr.py
	$(BIN)/dopd-vl prepare --config configs/prepare/ocr.yaml

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
