# Every target sets up what it needs; a second run finds it done.
SHELL := /bin/bash
PYTHON ?= python3
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
VENV := .venv
BIN := $(VENV)/bin
export L2FWD_DEBUG ?= 0
KIND := $(if $(filter 1,$(L2FWD_DEBUG)),debug,release)
SOURCES := setup.py pyproject.toml $(wildcard l2fwd/*.pyx l2fwd/*.pxd kern/*)

.PHONY: build debug demo test test-zerocopy fuzz lint bench bench-quick clean system

build: $(VENV)/.built-$(KIND) ## compile extensions and BPF objects in place

debug:                       ## the same with frame places that abort on an illegal move
	$(MAKE) build L2FWD_DEBUG=1

demo: build                  ## forward real frames between two veth links and account for them
	$(SUDO) $(BIN)/python -m l2fwd lab demo --duration 5

test: build $(VENV)/.numba   ## the whole test suite, as root; L2FWD_DEBUG=1 for the debug build
	$(SUDO) $(BIN)/python -m pytest $(ARGS)

fuzz: build                  ## a million frames, flows and ring events; a thousand rule changes
	$(SUDO) env L2FWD_FUZZ=1 $(BIN)/python -m pytest --timeout 0 tests/test_model.py \
	tests/test_redirect.py tests/test_same_verdict.py tests/test_hostile.py \
	-k "agree or sequence or swapped or flood"

test-zerocopy: build         ## the tests of zero-copy, in a VM with emulated Intel NICs; ARGS="-k skb"
	$(BIN)/python tests/zerocopy/vm.py --or-skip --nics igb=4,virtio=4,plain=2,e1000e=2 -- \
	$(BIN)/python -m pytest -v -p no:cacheprovider -p no:hypothesispytest -p no:benchmark \
	--timeout 240 tests/zerocopy $(ARGS)

lint: build                  ## style and types
	export PATH="$$PWD/$(BIN):$$PATH"; $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && \
	$(BIN)/cython-lint l2fwd/*.pyx l2fwd/*.pxd && $(BIN)/codespell && \
	$(BIN)/clang-format --dry-run -Werror kern/*.[ch] bench/*.c

bench: build                 ## every suite but soak against the peers found, and the report; about half an hour
	$(SUDO) $(BIN)/python -m bench all $(ARGS)

bench-quick: build           ## the same in two to three minutes, less precise
	$(SUDO) $(BIN)/python -m bench all --quick $(ARGS)

bench-%: build               ## one suite: bench-peers ARGS="--xdpsock PATH"
	$(SUDO) $(BIN)/python -m bench $* $(ARGS)

clean:                       ## back to what is in git
	rm -rf build dist *.egg-info $(VENV) l2fwd/*.so l2fwd/bpf_objects .*_cache .hypothesis .benchmarks

system:                      ## the Debian packages
	@SUDO="$(SUDO)" ./install-packages

$(VENV)/.deps: pyproject.toml install-packages
	@SUDO="$(SUDO)" ./install-packages
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -U 'setuptools>=77' 'Cython>=3.1'
	touch $@

$(VENV)/.numba: $(VENV)/.deps  # for one example; without it its tests are skipped, by name
	$(BIN)/pip install -q --disable-pip-version-check 'numba>=0.61' || echo "no Numba: one example is not tested"
	touch $@

$(VENV)/.built-$(KIND): $(VENV)/.deps $(SOURCES)
	rm -rf build l2fwd/*.so $(VENV)/.built-*
	$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation -e '.[dev,bench,tui]'
	touch $@
