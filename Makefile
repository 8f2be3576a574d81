# `make` lists the targets. Each builds what it needs in a virtual environment of its own:
# .venv, or .venv-NAME with CONSTRAINTS=constraints/NAME.txt. PYTHON=... chooses the interpreter.

# Dozens of processes import the same modules: what the first compiled is kept for the others.
unexport PYTHONDONTWRITEBYTECODE

ifneq ($(PIP_FIND_LINKS),)
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif

CONSTRAINTS ?=
VENV        ?= .venv$(if $(CONSTRAINTS),-$(basename $(notdir $(CONSTRAINTS))))
PORT        ?= 8000
PYTEST_ARGS ?=
HOSTS       ?= 2
DEVICES     ?= 4
BIN         := $(VENV)/bin

# The interpreter: the one asked for, else the environment's own, else the first on PATH that is new enough.
CANDIDATES := $(if $(PYTHON),$(PYTHON),$(BIN)/python python3.13 python3.12 python3.11 python3 python)
BASE := $(shell for p in $(CANDIDATES); do \
	"$$p" -c 'import sys; sys.version_info < (3, 11) and sys.exit(1); print(sys._base_executable)' \
	2>/dev/null && break; done)

SELECT := -m "$(if $(SITE),site,not site and not notebook$(if $(FAST), and not slow))"
# As many tests at a time as there are cores; for notebooks, book/notebooks.py decides that.
WORKERS := -n logical --maxprocesses 4 --dist worksteal
NONE    := $(if $(PYTEST_ARGS),|| test $$? = 5)  # PYTEST_ARGS may choose tests of one kind only

UV  := $(shell command -v uv 2>/dev/null)
PIP  = $(if $(UV),uv pip install --quiet --python $(BIN)/python,PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-compile)
C    = $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

.PHONY: help book test lab serve lint bench cluster cluster-stop clean FORCE

help:
	@echo "make book    build the site in _build/html, every notebook executed"
	@echo "make test    run the tests and every notebook (FAST=1: nothing slow, no notebooks;"
	@echo "             SITE=1: only the built site, in a browser)"
	@echo "make lab     open the notebooks in JupyterLab"
	@echo "make serve   show the built site at http://localhost:$(PORT)"
	@echo "make lint    check style, notebooks and scripts"
	@echo "make bench   run the benchmarks that any machine can run (load_8b.py, 20 GB, atlas.py, half an hour, and those that train for long: by hand)"
	@echo "make cluster start two hosts of four devices each on this machine (make cluster-stop ends them;"
	@echo "             HOSTS=3 DEVICES=2: others)"
	@echo "make clean   remove the site and the environment"
	@echo
	@echo "PYTHON=python3.12                   the interpreter (3.11 or later)"
	@echo "CONSTRAINTS=constraints/colab.txt   the versions of another environment (base, colab, newest)"

book: $(VENV)/.book
	$(BIN)/python -m book.build

test: $(VENV)/$(if $(FAST)$(SITE),.dev,.reference)
	$(BIN)/python -m pytest $(SELECT) $(WORKERS) $(PYTEST_ARGS) $(NONE)
	$(if $(FAST)$(SITE),,$(BIN)/python -m pytest -m notebook $(PYTEST_ARGS) $(NONE))

lab: $(VENV)/.lab
	$(BIN)/jupyter lab notebooks

serve: $(VENV)/.python
	@test -f _build/html/index.html || { echo "There is no site yet: run 'make book' first."; exit 1; }
	@echo "The book is at http://localhost:$(PORT) (Ctrl-C stops it)."
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python book/strip.py --check
	@if command -v shellcheck >/dev/null; then shellcheck .ci/run $(wildcard cluster/*.sh); \
	else echo "shellcheck is not installed: shell scripts were not checked."; fi

bench: $(VENV)/.reference
	@for script in $(filter-out $(addprefix benchmarks/,machine.py eight_b_weights.py eight_b_parties.py eight_b_jax_ml.py load_8b.py atlas.py train_small.py train_ablations.py fine_tune.py),$(wildcard benchmarks/*.py)); do echo "== $$script"; \
	$(BIN)/python "$$script" || exit 1; done

cluster: $(VENV)/.book
	@$(BIN)/python cluster/local.py start --hosts $(HOSTS) --devices $(DEVICES)

cluster-stop: $(VENV)/.book
	@$(BIN)/python cluster/local.py stop

clean:
	rm -rf _build $(VENV) build *.egg-info

# The environment. Its stamps are older than the files they depend on only when something changed.
$(VENV)/.python: FORCE
	@test -n "$(BASE)" || { echo "The book needs Python 3.11 or later, and $(if $(PYTHON),$(PYTHON) is not one,none was found); say which with PYTHON=/path/to/python."; exit 1; }
	@want="$$("$(BASE)" -c 'import sys; print(sys.base_prefix, sys.version.split()[0])')"; \
	if [ "$$want" != "$$(cat $@ 2>/dev/null)" ]; then \
		echo "Making $(VENV) with Python $${want##* }"; rm -rf "$(VENV)"; \
		$(if $(UV),uv venv --quiet --seed --python "$(BASE)" "$(VENV)",\
			"$(BASE)" -m venv "$(VENV)" && $(BIN)/python -m pip install --quiet --upgrade pip) && \
		echo "$$want" > $@; fi

$(VENV)/.book: $(VENV)/.python requirements.txt pyproject.toml $(CONSTRAINTS)
	@echo "Installing what the book needs (once; a few minutes) ..."
	@$(PIP) $(C) -e '.[book,cluster,pod]'
	@touch $@

$(VENV)/.dev: $(VENV)/.python requirements.txt requirements-dev.txt pyproject.toml $(CONSTRAINTS)
	@echo "Installing what the tests need (once; a few minutes) ..."
	@$(PIP) $(C) -r requirements-dev.txt
	@touch $@ $(VENV)/.book

$(VENV)/.reference: $(VENV)/.python requirements.txt requirements-dev.txt requirements-reference.txt pyproject.toml $(CONSTRAINTS)
	@echo "Installing what the tests and the references need (once; a few minutes) ..."
	@$(PIP) $(C) -r requirements-reference.txt
	@touch $@ $(VENV)/.dev $(VENV)/.book

$(VENV)/.lab: $(VENV)/.book
	@$(PIP) $(C) jupyterlab
	@touch $@
