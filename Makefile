# Each target makes its own virtual environment in .venv first; PYTHON chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: demo test check bench format clean

demo: .venv/.core
	$(BIN)/cadence demo

bench: .venv/.dev
	$(BIN)/cadence bench

test: .venv/.dev
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist worksteal

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch comes first, so that a build which is there already is kept.
.venv/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e .
	touch $@

.venv/.dev: .venv/.core
	$(PIP) -e '.[dev,pusht,metaworld,tensorboard,ur,import,lerobot,remote,onnx]'
	touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
