# make quickstart   set everything up and run the main job on this machine's CPU
# make test         set up what the tests need and run them
# make check        style and types

VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
# The whole quickstart by default; e.g. QUICKSTART="--steps 20 --train_size 300 --eval_size 60"
QUICKSTART ?=

.PHONY: quickstart test check clean

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

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
