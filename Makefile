# make latency | make test | make test-all | make check | make docs | make peers: each sets up what it needs; so do
# make exactness | make schedules | make fuzz | make soak | make sanitize | make ptx, which take longer, and make test-page.
#   make test PYTHON=python3 VENV=     use the installed Python, torch and build tools; no network
#   make build                         only builds: then the Python of VENV imports pearl_rt from any directory
#   make gpu [RESULTS_DIR=DIR]         with a GPU: builds, tests and measures with what is installed; no network
#   make gpu-latency                   with a GPU: equal tokens, batches and the main job in full
#   make gpu ARGS="--half 1"           a part of it that ends within eight minutes: 1 or 2; of gpu-latency 1 to 3

ifneq ($(filter gpu gpu-latency,$(MAKECMDGOALS)),)
VENV ?=
PYTHON ?= python3
endif
RESULTS_DIR ?= bench/results
VENV ?= .venv
PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.13 python3))
TORCH = 2.13.0
TRITON = 3.6.0
# A machine without an NVIDIA GPU takes the CPU wheel: from the configured index if it has one, else from PyTorch's.
CPU_INDEX = https://download.pytorch.org/whl/cpu

# WORKERS processes run the tests: each a part of the list, and then half of what is left of the other's. They need pytest-xdist, which VENV= does not ask for.
ifeq ($(strip $(VENV)),)
PY := $(PYTHON)
READY := build/.checked
DOCS := $(PYTHON)
else
WORKERS ?= 2
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
DOCS := $(VENV)-docs/bin/python
DOCS_READY := $(VENV)-docs/.ready
endif

PATHS = pearl_rt recipes bench tests kernels examples docs setup.py
CPP = $(shell find csrc tests/fakes tests/ptx -name '*.cpp' -o -name '*.h')
CLANG_FORMAT = $(firstword $(wildcard $(dir $(PY))clang-format) clang-format)
RUN = PYTHONPATH=$(CURDIR) $(PY)
TESTS = $(RUN) -m pytest $(if $(WORKERS),-n $(WORKERS) --dist worksteal)

PLAYWRIGHT = 1.65.2
LLAMA_CPP = 0.3.36
OPENVINO = 2026.4.1.0
PEERS = .venv-peers
PEERS_READY := $(PEERS)/.ready-$(LLAMA_CPP)-$(OPENVINO)

.PHONY: latency peers test test-slow test-long test-all test-page exactness schedules fuzz published soak ptx check sanitize stubs \
  map docs gpu gpu-latency build importable clean
.DELETE_ON_ERROR:

latency: build
	$(RUN) bench/latency.py $(ARGS)

# What `make latency ARGS="--peers llama.cpp openvino"` compares with, in $(PEERS): llama.cpp's server, built for this
# processor from the sources in llama-cpp-python's source distribution (minutes), and OpenVINO GenAI.
peers: $(PEERS_READY)

$(PEERS_READY):
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install -q openvino-genai==$(OPENVINO)
	rm -rf $(PEERS)/llama.cpp && mkdir -p $(PEERS)/llama.cpp
	$(PEERS)/bin/python -m pip download -q --no-deps --no-binary llama-cpp-python -d $(PEERS)/llama.cpp llama-cpp-python==$(LLAMA_CPP)
	tar xzf $(PEERS)/llama.cpp/llama_cpp_python-$(LLAMA_CPP).tar.gz -C $(PEERS)/llama.cpp --strip-components 1
	cmake -S $(PEERS)/llama.cpp/vendor/llama.cpp -B $(PEERS)/llama.cpp/build -G Ninja -DCMAKE_BUILD_TYPE=Release \
	  -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
	  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
	cmake --build $(PEERS)/llama.cpp/build --target llama-server
	cp $(PEERS)/llama.cpp/build/bin/llama-server $(PEERS)/bin/
	touch $@

# What a change is tried with: every room, without the tests that are marked slow.
test: build
	$(TESTS) -m "not slow" $(ARGS)

# The tests that are marked slow and not long.
test-slow: build
	$(TESTS) -m "slow and not long" $(ARGS)

# What compiles everything once more: each kernel for each chip, and the C++ of a release.
test-long: build
	$(TESTS) -m long $(ARGS)

test-all: test test-slow test-long

# The page that the server has at /, in a headless browser: the first of these on the PATH, or BROWSER=PROGRAM.
BROWSER ?= $(firstword $(foreach name,chromium chromium-browser google-chrome,$(shell command -v $(name))))
test-page: build
	@test -n "$(BROWSER)" || { echo "make test-page drives Chromium, and none is on the PATH: install one" \
	  "(apt-get install chromium), or name yours (BROWSER=/path/to/chrome)"; exit 2; }
	@$(PY) -c "import playwright" 2>/dev/null || $(PY) -m pip install -q playwright==$(PLAYWRIGHT)
	$(RUN) -m pytest tests/serve/page --browser $(BROWSER) $(ARGS)

# The long form of tests/exactness, a thousand random cases of each kind, and of answers with a schema, 500 schemas.
exactness: build
	$(RUN) -m pytest tests/exactness tests/grammar/test_answers.py --long $(ARGS)

# The long form of two tests: 10,000 random schedules of each program on the fake CUDA driver, and requests that join.
schedules: build
	$(TESTS) -q tests/cuda/test_cuda_lane.py tests/cuda/test_cuda_joins.py -k random --schedules 10000 --timeout 3600 $(ARGS)

# SmolLM2-135M-Instruct, whose file pip fetches once: its texts, and `serve` asked by the `openai` package.
published: build
	$(TESTS) -q tests/published --published --timeout 3600 $(ARGS)

# Files of checkpoints, chat templates, forms and bodies of requests, mutated: 10^5 of each. A failure names its
# case, and build/fuzz the last one of each target: `make fuzz ARGS="-k http --fuzz-seed 7 --cases 2000"`.
fuzz: build
	$(TESTS) -q tests/fuzz --cases 100000 --timeout 86400 $(ARGS)

# Twenty minutes of requests that join, leave and fail: no wrong token, no growth.
soak: build
	$(RUN) tests/soak.py $(ARGS)

# All tests of kernels on compiled ones, for both architectures, without a GPU: docs/compiled_kernels.md.
ptx: build
	for arch in sm_80 sm_90; do $(TESTS) --ptx $$arch tests/kernels tests/ptx/unit tests/ptx/compiled $(ARGS) || exit 1; done

check: $(READY) pearl_rt/kernels
	$(PY) -m ruff check $(PATHS)
	$(PY) -m ruff format --check $(PATHS)
	$(PY) -m mypy
	$(CLANG_FORMAT) --dry-run -Werror $(CPP)
	$(RUN) -m pytest -q tests/house/test_imports.py

# What a build makes too: mypy follows imports of the kernels through it.
pearl_rt/kernels:
	ln -s ../kernels $@

sanitize: $(READY)
	$(PY) tests/sanitize.py $(ARGS)

# pearl_rt/_C.pyi, from the native module's docstrings.
stubs: build
	$(RUN) docs/make_stubs.py

# docs/map.md, from the first sentence of each source file.
map:
	$(PYTHON) docs/make_map.py

# The site, in build/site. mkdocs has an environment of its own: it reads our sources and imports none of them.
docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(DOCS) -m mkdocs build -q --strict --site-dir build/site

# No prerequisites: the first thing asked is whether there is a GPU, and the build is a part like the others.
gpu gpu-latency:
	@$(PY) -c "import torch, triton" || { echo "make $@ uses what $(PYTHON) has installed: torch and triton"; exit 2; }
	RESULTS_DIR=$(RESULTS_DIR) $(RUN) bench/gpu.py $(if $(filter gpu-latency,$@),--long) $(ARGS)

build: $(READY) pearl_rt/kernels
	$(PY) setup.py -q build_ext --inplace
ifneq ($(strip $(VENV)),)
	@$(MAKE) --no-print-directory importable
endif

# Puts this checkout on the path of VENV's Python, behind what is installed there.
importable:
	@$(PY) -c "import pathlib, sys, sysconfig; \
	  (pathlib.Path(sysconfig.get_path('purelib')) / 'pearl_rt.pth').write_text(sys.argv[1] + '\n')" "$(CURDIR)"

ifeq ($(strip $(VENV)),)
build/.checked: setup.py
	@$(PY) -c "import numpy, safetensors, setuptools, tokenizers, torch, tqdm" || \
	  { echo "VENV= uses what $(PYTHON) has installed, and the module above is missing from it"; exit 1; }
	@mkdir -p build && touch $@
else
$(VENV)/.ready: requirements-dev.txt Makefile
	$(PYTHON) -m venv $(VENV)
	@if command -v nvidia-smi >/dev/null; then \
	  $(PY) -m pip install -q torch==$(TORCH) triton; \
	else \
	  $(PY) -m pip install -q torch==$(TORCH)+cpu 2>/dev/null || \
	  $(PY) -m pip install -q torch==$(TORCH)+cpu --index-url $(CPU_INDEX) || \
	  { echo "no CPU wheel of torch to be had: taking the default one, several GB"; $(PY) -m pip install torch==$(TORCH); }; \
	fi
	$(PY) -m pip install -q -r requirements-dev.txt
	@$(PY) -c "import triton" 2>/dev/null || $(PY) -m pip install -q triton==$(TRITON)  # torch's CPU wheel has none
	touch $@

$(DOCS_READY): docs/requirements.txt
	$(PYTHON) -m venv $(VENV)-docs
	$(DOCS) -m pip install -q -r docs/requirements.txt
	touch $@
endif

clean:
	rm -rf build dist *.egg-info pearl_rt/_*.so pearl_rt/kernels
