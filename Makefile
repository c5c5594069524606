# Needs make and a Python from 3.11 to 3.13; the rest is installed into .venv by the first target that needs it.
# `make PYTHON=python3.12 test` chooses the interpreter, `make DEMOS=demos/one.py demo` the demo.

VENV := .venv
STAMP := $(VENV)/.stamp
RUN := $(VENV)/bin/python
SOURCES := $(wildcard pyadjoint_utils bridges demos pytest_pyadjoint_utils.py)
DEMOS ?= $(sort $(wildcard demos/[a-z]*.py))

# Given none, the first of these that exists and is of a version that constraints.txt has packages for.
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)

# No windows, and no start-up chatter from TensorFlow.
export MPLBACKEND := Agg
export TF_CPP_MIN_LOG_LEVEL := 3

.PHONY: help test lint types demo docs bench clean

help:
	@echo "make test    lint, types and tests"
	@echo "make demo    run the demos"
	@echo "make docs    build the documentation in docs/_build/html"
	@echo "make lint    ruff"
	@echo "make types   mypy"
	@echo "make bench   run the benchmarks"
	@echo "make clean   remove everything that make made, .venv included"

# The tests come last, so that their verdict is the last line.
test: $(STAMP)
	@$(RUN) -m ruff check --quiet .
	@$(RUN) -m mypy --no-error-summary $(SOURCES)
	@$(RUN) -m pytest

lint: $(STAMP)
	@$(RUN) -m ruff check .

types: $(STAMP)
	@$(RUN) -m mypy $(SOURCES)

demo: $(STAMP)
	@for demo in $(DEMOS); do echo "== $$demo"; $(RUN) "$$demo" || exit 1; done

docs: $(STAMP)
	@$(RUN) -m sphinx --quiet -W --keep-going docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(STAMP)
	@$(RUN) -m benchmarks

clean:
	rm -rf $(VENV) build dist docs/_build demos/output *.egg-info
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment: made when there is none that works, brought up to date when one of these files changed.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	@rm -f $@; \
	if command -v uv >/dev/null 2>&1; then uv=yes; needs=sys; else uv=; needs=pip; fi; \
	if ! $(RUN) -c "import $$needs" >/dev/null 2>&1; then \
	    python=; \
	    for candidate in $(PYTHONS); do \
	        if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then \
	            python=$$candidate; break; \
	        fi; \
	    done; \
	    if [ -z "$$python" ]; then \
	        echo "Python 3.11, 3.12 or 3.13 is needed; tried: $(PYTHONS)." >&2; \
	        echo "Name one of your own: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
	        exit 1; \
	    fi; \
	    if [ -z "$$uv" ] && ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	        echo "$$python has no venv module with pip." >&2; \
	        echo "Debian and Ubuntu keep it in the package python3-venv; or put uv on the PATH." >&2; \
	        exit 1; \
	    fi; \
	    rm -rf $(VENV); \
	    if [ "$$uv" ]; then \
	        uv venv --quiet --python "$$python" $(VENV); \
	    else \
	        "$$python" -m venv $(VENV); \
	    fi || exit 1; \
	fi; \
	echo "installing into $(VENV) (about 3 GB, a minute or more)"; \
	if [ "$$uv" ]; then \
	    uv pip install --quiet --python $(RUN) -c constraints.txt -e '.[dev]'; \
	else \
	    $(RUN) -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	fi || exit 1
	@touch $@
