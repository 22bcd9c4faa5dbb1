# Two commands matter: `make demo` and `make test`. Everything else helps to work on the project.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test check faults bench evaluate picture lock clean

demo: .venv/installed
	$(BIN)/contextengine demo $(ARGS)

test: .venv/installed  ## its end says which brokers it had; ARGS=--brokers=all fails where one is missing
	$(BIN)/pytest $(ARGS)

check: .venv/installed  ## what a commit must pass besides the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

faults: .venv/installed  ## every fault test at the base load, on Apache Kafka: 40 minutes; shows its figures at the end
	FAULTS=full $(BIN)/pytest tests/faults $(ARGS)

BENCH ?= decide throughput steps latency sessions scale

bench: .venv/installed  ## all of benchmarks/ on Apache Kafka, half an hour; one of them: make bench BENCH=latency ARGS="--runs 1"
	for name in $(BENCH); do echo; echo "== $$name"; $(BIN)/python benchmarks/$$name.py $(ARGS) || exit 1; done

evaluate: .venv/installed  ## the detectors' figures on labelled conversations: make evaluate DATA=FOLDER
	$(BIN)/python training/evaluate.py $(DATA)

picture: .venv/installed  ## the picture in the README, taken from a run of the demo
	$(BIN)/contextengine demo --picture docs/demo.svg

COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header

lock:  ## rewrite requirements.lock, and the part of it that goes into the image, from pyproject.toml (needs uv)
	$(COMPILE) pyproject.toml --extra dev -o requirements.lock
	echo flit_core | $(COMPILE) pyproject.toml - --extra openai -c requirements.lock -o requirements-image.lock

.venv/installed: requirements.lock pyproject.toml
	@echo "making the virtual environment from requirements.lock; the first time this takes half a minute"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
