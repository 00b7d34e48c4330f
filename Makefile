# make demo   raw catalogue -> JSON -> shards -> fine-tuned model -> Recall@k before and after, in a few minutes
# make serve  the page that searches the demo's catalogue with both models, at http://127.0.0.1:8000
# make test   the test suite
# make test-lowest   the same suite with the lowest versions that the requirements files allow
# make lint   ruff and pyright
# Each makes the environment .venv, or .venv-lowest, first if there is none.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LOWEST ?= .venv-lowest
# A worker that dies ends the suite: without that, its file would be waited for without end.
PARALLEL ?= -n 2 --dist loadfile --max-worker-restart 0
# The oldest Python that pyproject.toml allows, where there is one; pyenv hides those that it is not asked for.
LOWEST_PYTHON ?= $(shell PYENV_VERSION=3.10 python3.10 -c 'import sys; print(sys.executable)' 2>/dev/null || echo $(PYTHON))

.PHONY: demo serve test test-lowest lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/python demo/demo.py

serve: $(VENV)/installed
	$(BIN)/python search_clip.py serve demo_run/index --compare demo_run/index_base

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(PARALLEL)

test-lowest: $(LOWEST)/installed
	$(LOWEST)/bin/python -m pytest $(PARALLEL)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(VENV)/installed: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# uv finds the lowest versions within the bounds in seconds, where pip would search for minutes.
$(LOWEST)/installed: requirements.txt requirements-dev.txt
	test -x $(LOWEST)/bin/python || $(LOWEST_PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	UV_HTTP_TIMEOUT=600 $(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct -r requirements-dev.txt
	touch $@

clean:
	rm -rf demo_run .pytest_cache .ruff_cache
