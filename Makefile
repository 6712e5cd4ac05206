# Everything here works on a fresh machine: each target makes .venv if needed, installs, and runs.
PYTHON ?= python3
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1
export LANGGRAPH_CLI_NO_ANALYTICS := 1

.PHONY: demo test studio app lint format base seeds clean

demo: .venv/installed
	$(BIN)/python -m rl.train_attending

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# LangGraph's server with the embedded clinic; the page of Studio itself is hosted by LangChain, and only shows it
studio: .venv/installed
	LANGSMITH_TRACING=false $(BIN)/langgraph dev --no-reload

# the consulting room
app: .venv/installed
	$(BIN)/python -m mmedagent_graph.app

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the clinic's base checkpoint, made anew
base: .venv/installed
	$(BIN)/python -m rl.clinic.build

# the README's table: five runs, none of them chosen
seeds: .venv/installed
	$(BIN)/python benchmarks/seeds.py

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[rl,studio,ui,sqlite,postgres,dicom,dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
