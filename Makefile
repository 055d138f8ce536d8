# `make help` says what there is.

CARGO ?= cargo
EXAMPLES := 01_generate 02_many_prompts 03_sweep_scale 04_cancel 05_inspect 06_engine 07_batch 08_session 09_live_scale 10_stream

# NVRTC of a pinned version, which tools/get-nvrtc.sh brings, compiles the kernels for the tests, and a warning or a spill is an
# error there. BRAID_NVRTC names another NVRTC.
NVRTC := $(abspath $(or $(CARGO_TARGET_DIR),target)/nvrtc)
lint doc build examples tests full: export BRAID_KERNELS_STRICT = 1
ifndef BRAID_NVRTC
lint doc build examples tests full wheel capi: export BRAID_NVRTC = $(shell ls -d $(NVRTC) 2>/dev/null)
endif

.PHONY: help test test-full nvrtc format lint doc scripts build examples tests full capi goldens guide bench peers start kernels check-aarch64 \
	wheel triton test-python test-serving fuzz deny sbom

help:
	@echo "make test      everything that must hold: format, lints, documentation, examples, tests"
	@echo "make test-full what takes too long for that: larger goldens on the interpreter, all its tests with a GPU's arithmetic"
	@echo "make fuzz      mutated files and texts, SECONDS (1200) for each kind; SEED chooses others"
	@echo "make examples  runs each example on a small random model"
	@echo "make capi      builds the C interface and installs it into PREFIX (target/capi): libbraid, braid.h, pkg-config and CMake files"
	@echo "make kernels   registers, memory, tensor cores of each kernel, and what the interpreter counts at SDXL's sizes"
	@echo "make bench     times the CPU's operations (products beside faer and gemm, a LoRA's cost), loaders, inputs and planner"
	@echo "make peers     times Braid beside diffusers, DiffSynth and OpenVINO, alternately (benches/peers/README.md)"
	@echo "make start     the time from the process's start to the first step, beside diffusers"
	@echo "make guide     makes the images of docs/guide.md again, by its commands"
	@echo "make wheel     builds the Python package (python/README.md) into target/wheels"
	@echo "make test-python  installs it into an environment of its own, and tests it beside the command"
	@echo "make triton    the backend for NVIDIA Triton (triton/README.md), into BACKENDS (target/triton)"
	@echo "make test-serving Ray Data and Ray Serve over that package, and that backend in Triton's server (installs 1 GB below target/)"
	@echo "make check-aarch64  compiles for aarch64 (rustup target add aarch64-unknown-linux-gnu), and runs the CPU's tests emulated"
	@echo "make deny      licences, advisories, sources and duplicates of all dependencies (cargo install cargo-deny --locked)"
	@echo "make sbom      a bill of materials of library, commands and C interface: target/braid.cdx.json (CycloneDX)"
	@echo "make goldens   how the reference values are made again (needs Python 3.11 and the network)"

test: nvrtc format lint doc scripts build examples tests

test-full: test full

nvrtc:
ifndef BRAID_NVRTC
	tools/get-nvrtc.sh $(NVRTC)
endif

format:
	$(CARGO) fmt --all --check

lint:
	$(CARGO) clippy --workspace --all-targets -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps

scripts:
	tools/test-gpu-check.sh
	@if command -v python3 >/dev/null; then python3 -m unittest discover -s benches/peers; else echo "benches/peers: skipped: no python3"; fi

# Tests and examples by one call: the library is compiled beside its unit tests, and the cores are busy.
build:
	$(CARGO) test --workspace --no-run

# In its own step and before the tests, so that the last lines of `make test` are the tests' summary.
examples:
	$(CARGO) build --examples
	@set -e; for e in $(EXAMPLES); do echo "== $$e"; $(CARGO) run --quiet --example $$e; done

fuzz:
	BRAID_FUZZ_SECONDS=$(or $(SECONDS),1200) BRAID_FUZZ_SEED=$(or $(SEED),1) \
		$(CARGO) test --test fuzz -- --nocapture --test-threads 1 targets::

# The first runs every test. The others run the goldens, the operations and those unit tests that compute through the code for lesser
# processors, too, and the kernels with sums and approximations as a GPU's are.
define TESTS
$(CARGO) test --workspace
BRAID_ISA=portable $(CARGO) test --lib -- device::cpu graph::tests::a_node_alone pipeline::tests::tensors_in_memory
BRAID_ISA=portable $(CARGO) test --test goldens
BRAID_ISA=portable $(CARGO) test --test ops -- ::cpu
BRAID_ISA=avx2 $(CARGO) test --lib -- device::cpu graph::tests::a_node_alone pipeline::tests::tensors_in_memory
BRAID_ISA=avx2 $(CARGO) test --test goldens
BRAID_ISA=avx2 $(CARGO) test --test ops -- ::cpu
BRAID_ISA=avx512bf16 $(CARGO) test --lib -- device::cpu
BRAID_ISA=avx512bf16 $(CARGO) test --test ops --test goldens -- bf16
BRAID_PTX_ARITHMETIC=hardware $(CARGO) test --test kernels -- gemm attention norms pointwise step extremes midpoints
endef
export TESTS

define FULL
$(CARGO) test --test cuda -- --ignored --nocapture
$(CARGO) test --test joined -- --ignored
$(CARGO) test --test pipeline -- --ignored --nocapture
BRAID_PTX_ARITHMETIC=hardware $(CARGO) test --test kernels --test ops --test cuda
BRAID_PTX_ARITHMETIC=hardware $(CARGO) test --test cuda -- --ignored other_type
endef
export FULL

tests:
	@echo "$$TESTS" | tools/run-tests.sh

full:
	@echo "$$FULL" | tools/run-tests.sh

# PREFIX is where it is installed, below DESTDIR where that is given.
capi:
	$(CARGO) build --release --package braid-c
	tools/install-capi.sh "$(or $(CARGO_TARGET_DIR),target)/release" "$(DESTDIR)$(or $(PREFIX),$(or $(CARGO_TARGET_DIR),target)/capi)"

# The tests print it: docs/kernels.md holds the tables of the committed kernels and what they say.
kernels:
	@$(CARGO) test --test kernels -- figures:: profile:: --nocapture --test-threads 1 | grep -o '|.*'

# The tests need Debian's gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user.
check-aarch64: export CARGO_BUILD_TARGET = aarch64-unknown-linux-gnu
check-aarch64: export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER = aarch64-linux-gnu-gcc
check-aarch64: export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER = qemu-aarch64 -L /usr/aarch64-linux-gnu
check-aarch64:
	$(CARGO) check --lib --bins
	@if ! command -v qemu-aarch64 >/dev/null || ! command -v aarch64-linux-gnu-gcc >/dev/null; then \
		echo "compiled, not run: aarch64-linux-gnu-gcc or qemu-aarch64 is missing"; exit; fi; \
	set -ex; $(CARGO) test --lib -- device::cpu; BRAID_ISA=portable $(CARGO) test --lib -- device::cpu; \
	$(CARGO) test --test ops -- ::cpu

deny:
	$(CARGO) deny check

sbom:
	$(CARGO) metadata --format-version 1 --locked | python3 tools/sbom.py Cargo.lock braid braid-c \
		> $(or $(CARGO_TARGET_DIR),target)/braid.cdx.json

guide:
	$(CARGO) build --release --bin braid
	@(sed -n '/^\(MODEL\|ADAPTER\)=/p' docs/guide.md | head -2; \
		sed -n '/^```sh/,/^```$$/p' docs/guide.md | grep -v '^```') | PATH="$(or $(CARGO_TARGET_DIR),target)/release:$$PATH" sh -e

# maturin and the tests' packages go into an environment below target/, nothing else is installed. PYTHON: 3.11 or later.
PYTHON ?= python3
VENV := $(abspath $(or $(CARGO_TARGET_DIR),target)/python)

$(VENV)/bin/maturin:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet 'maturin>=1.9,<2' 'pytest>=8' numpy pillow

wheel: $(VENV)/bin/maturin
	$(VENV)/bin/maturin build --release --manifest-path python/Cargo.toml --interpreter $(VENV)/bin/python \
		--out $(abspath $(or $(CARGO_TARGET_DIR),target)/wheels)

test-python: wheel
	$(CARGO) build --release --bin braid
	$(VENV)/bin/pip install --quiet --force-reinstall --no-deps $(or $(CARGO_TARGET_DIR),target)/wheels/braid-*.whl
	BRAID="$(abspath $(or $(CARGO_TARGET_DIR),target)/release/braid)" $(VENV)/bin/pytest -q python/tests

# BACKENDS is the server's backend directory.
BACKENDS ?= $(abspath $(or $(CARGO_TARGET_DIR),target)/triton)

triton: capi
	tools/install-triton.sh "$(DESTDIR)$(or $(PREFIX),$(or $(CARGO_TARGET_DIR),target)/capi)" "$(DESTDIR)$(BACKENDS)/braid"

# Triton's server, which NVIDIA's wheel brings along; nothing else of it is used.
TRITON := $(VENV)/triton

$(TRITON): $(VENV)/bin/maturin
	$(VENV)/bin/pip install --quiet --no-deps --target $@ nvidia-pytriton==0.7.0

test-serving: wheel triton $(TRITON)
	$(VENV)/bin/pip install --quiet -r python/serving/requirements.txt -r triton/tests/requirements.txt
	$(VENV)/bin/pip install --quiet --force-reinstall --no-deps $(or $(CARGO_TARGET_DIR),target)/wheels/braid-*.whl
	cd triton/tests && TRITON="$(TRITON)" BACKENDS="$(DESTDIR)$(BACKENDS)" $(VENV)/bin/pytest -q
	cd python/serving && RAY_AUTH_MODE=disabled $(VENV)/bin/pytest -q

bench:
	$(CARGO) bench --bench cpu --bench inputs --bench loaders --bench low_rank --bench planner
	$(CARGO) run --release --manifest-path benches/product/Cargo.toml -- --bench

# PEERS_DIFFUSERS, PEERS_DIFFSYNTH and PEERS_OPENVINO name the Python of each peer's environment (those of `make goldens` will do for
# the first two); those that are named are compared, with none Braid is measured alone. PEERS_ARGS: model, size, steps, types, pairs.
PEERS = $(or $(PEERS_DIFFUSERS),$(PEERS_DIFFSYNTH),$(PEERS_OPENVINO),python3) benches/peers/$(1) \
	--bin "$(or $(CARGO_TARGET_DIR),target)/release" $(if $(PEERS_DIFFUSERS),--diffusers "$(PEERS_DIFFUSERS)") \
	$(if $(PEERS_DIFFSYNTH),--diffsynth "$(PEERS_DIFFSYNTH)") $(if $(PEERS_OPENVINO),--openvino "$(PEERS_OPENVINO)") $(PEERS_ARGS)

peers:
	$(CARGO) build --release --bins
	@$(call PEERS,compare.py)

start:
	$(CARGO) build --release --bins
	@$(call PEERS,start.py)

# The peers of the two profiles need different versions of the same packages, so each has an environment of its own.
# With GOLDEN_DIFFUSERS and GOLDEN_DIFFSYNTH naming the Python of each, this runs the generators; without, it explains.
goldens:
ifeq ($(and $(GOLDEN_DIFFUSERS),$(GOLDEN_DIFFSYNTH)),)
	@echo "The values under tests/goldens and tests/data come from diffusers and DiffSynth; the tests only read them."
	@echo "To make them again (about 10 GB of packages, a few minutes):"
	@echo "  python3.11 -m venv a && a/bin/pip install -r tools/goldens/requirements-diffusers.txt"
	@echo "  python3.11 -m venv b && b/bin/pip install -r tools/goldens/requirements-diffsynth.txt"
	@echo "  make goldens GOLDEN_DIFFUSERS=a/bin/python GOLDEN_DIFFSYNTH=b/bin/python"
	@echo "CONTRIBUTING.md says what each generator makes; tools/goldens/README.md what a case holds."
else
	$(GOLDEN_DIFFUSERS) tools/goldens/make_diffusers.py
	$(GOLDEN_DIFFUSERS) tools/goldens/make_init_image.py
	$(GOLDEN_DIFFUSERS) tools/goldens/make_image_prompts.py
	$(GOLDEN_DIFFUSERS) tools/goldens/make_prompts.py
	$(GOLDEN_DIFFUSERS) tools/goldens/make_vaes.py
	$(GOLDEN_DIFFSYNTH) tools/goldens/make_diffsynth.py tests/goldens/diffsynth
	$(GOLDEN_DIFFUSERS) tools/goldens/make_schedulers.py diffusers
	$(GOLDEN_DIFFSYNTH) tools/goldens/make_schedulers.py diffsynth
	$(GOLDEN_DIFFUSERS) tools/goldens/make_tokens.py diffusers
	$(GOLDEN_DIFFUSERS) tools/goldens/make_tokens.py folders
	$(GOLDEN_DIFFUSERS) tools/goldens/make_tokens.py words
	$(GOLDEN_DIFFUSERS) tools/goldens/make_compel.py
	$(GOLDEN_DIFFSYNTH) tools/goldens/make_tokens.py diffsynth
	$(GOLDEN_DIFFUSERS) tools/goldens/make_noise.py
	$(GOLDEN_DIFFUSERS) tools/goldens/make_pictures.py
	$(GOLDEN_DIFFUSERS) tools/goldens/make_jpegs.py
	$(GOLDEN_DIFFUSERS) tools/goldens/make_bins.py
	$(GOLDEN_DIFFUSERS) tools/goldens/make_demo.py
endif
