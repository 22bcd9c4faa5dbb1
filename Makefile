# Two commands matter: `make demo` and `make test`. Everything else helps to work on the project.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test check bench picture lock clean

demo: .venv/installed
	$(BIN)/contextengine demo $(ARGS)

test: .venv/installed
	$(BIN)/pytest $(ARGS)

check: .venv/installed  ## what a commit must pass besides the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/installed  ## throughput beside stock Faust, on Apache Kafka (needs Java and Maven, or Docker)
	$(BIN)/python benchmarks/throughput.py $(ARGS)

picture: .venv/installed  ## the picture in the README, taken from a run of the demo
	$(BIN)/contextengine demo --picture docs/demo.svg

lock:  ## rewrite requirements.lock from pyproject.toml (needs uv)
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -o requirements.lock

.venv/installed: requirements.lock pyproject.toml
	@echo "making the virtual environment from requirements.lock; the first time this takes half a minute"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
