# `make demo`: install into .venv and register a real template to a deformed copy of it.
# `make test`: everything that must hold: lint, format, types, tests.

PYTHON ?= python3
# Another build of torch: make demo TORCH="torch==2.13.0 --index-url ADDRESS", or the path of a wheel.
TORCH ?= torch==2.13.0
OUTPUT ?= demo_output
VENV := .venv
BIN := $(VENV)/bin
TORCH_INSTALLED := $(VENV)/torch.$(shell echo '$(TORCH)' | cksum | cut -d' ' -f1)
INSTALLED := $(VENV)/installed
DEVELOPMENT := $(VENV)/development
BENCHED := $(VENV)/benched
# Options of benchmarks.registration: make bench BENCH="--resume --repeat 3"
BENCH ?=
PIP := $(BIN)/python -m pip

.PHONY: help install demo test lint types format bench clean
.DELETE_ON_ERROR:

help:
	@echo "make demo      register MNI152 to a deformed copy of it, into $(OUTPUT)"
	@echo "make test      lint, format, types and tests"
	@echo "make lint      ruff alone;  make types  mypy alone;  make format  rewrite the code in house style"
	@echo "make bench     time and score RegMamba and other tools on real images, into docs/benchmarks.md"
	@echo "make install   the library and its command into $(VENV)"
	@echo "make clean     remove $(VENV), caches and $(OUTPUT)"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first and by itself: nothing installed later may choose another build.
$(TORCH_INSTALLED): | $(BIN)/python
	wanted='$(TORCH)'; $(PIP) install $$wanted
	$(PIP) list --format=freeze | grep -i '^torch==' > $(VENV)/constraints.txt
	rm -f $(VENV)/torch.*
	touch $@

$(INSTALLED): $(TORCH_INSTALLED) pyproject.toml
	$(PIP) install --constraint $(VENV)/constraints.txt --editable '.[demo]'
	touch $@

$(DEVELOPMENT): $(INSTALLED)
	$(PIP) install --constraint $(VENV)/constraints.txt --editable '.[demo,test]'
	touch $@

install: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/regmamba demo --output $(OUTPUT) --overwrite

test: lint types
	$(BIN)/python -m pytest

lint: $(DEVELOPMENT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEVELOPMENT)
	$(BIN)/mypy

format: $(DEVELOPMENT)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BENCHED): $(DEVELOPMENT)
	$(PIP) install --constraint $(VENV)/constraints.txt --editable '.[demo,test,bench]'
	$(PIP) install --no-deps fireants
	touch $@

bench: $(BENCHED)
	$(BIN)/python -m benchmarks.registration $(BENCH)
	$(BIN)/python -m benchmarks.scan
	$(BIN)/python -m benchmarks.stages
	$(BIN)/python -m benchmarks.ablation
	$(BIN)/python -m benchmarks.confidence
	$(BIN)/python -m benchmarks.report

clean:
	rm -rf $(VENV) $(OUTPUT) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
