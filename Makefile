# The everyday commands. `make` alone lists them; each does its own set-up, and leaves what it
# builds below $(CACHE), outside the clone, except for bin/nullspace.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

CACHE := $(or $(NULLSPACE_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/nullspace)
CARGO_TARGET_DIR ?= $(CACHE)/target
export NULLSPACE_CACHE := $(CACHE)
export CARGO_TARGET_DIR
export PATH := $(PATH):/usr/sbin:/sbin:$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

PREFIX ?= /usr/local
DESTDIR ?=

GUEST_TARGET := x86_64-unknown-linux-gnu
AGENT := $(CARGO_TARGET_DIR)/$(GUEST_TARGET)/guest/nullspace-guest
IMAGE := $(CACHE)/image/current
VENV := $(CACHE)/venv
E2E := tests/e2e

.PHONY: help
help: ## List the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: quickstart
quickstart: ## From a fresh clone to the first machine, set-up included
	scripts/setup build image run
	$(MAKE) build image
	scripts/quickstart

.PHONY: test
test: ## Run all tests: the workspace's, then the whole product from outside
	scripts/setup test
	$(MAKE) image
	cargo nextest run --workspace
	$(MAKE) build $(VENV)/ready
	$(VENV)/bin/python -m pytest $(E2E)

.PHONY: check
check: ## Format, lints, generated files, allowed edges between crates
	scripts/setup check
	cargo fmt --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo run --quiet -p xtask -- generate --check
	cargo run --quiet -p xtask -- deps --check

.PHONY: fuzz
fuzz: ## Fuzz every parser of hostile input for a minute (FUZZ_SECONDS=… for longer)
	scripts/setup build
	scripts/fuzz $(or $(FUZZ_SECONDS),60)

.PHONY: bench
bench: ## Measure what is promised, against a floor measured in the same run
	scripts/setup build image run bench
	$(MAKE) build image
	python3 tests/perf/bench.py

.PHONY: generate
generate: ## Write the generated files: OpenAPI, references, SDK models, protocol stubs
	scripts/setup build
	cargo run --quiet -p xtask --no-default-features -- generate
	cargo run --quiet -p xtask -- generate

.PHONY: dev
dev: ## Run a server on ./.dev, built and started anew after each change
	scripts/setup build image run
	$(MAKE) image
	scripts/dev

.PHONY: build
build: ## Build bin/nullspace
	scripts/setup build
	cargo build --release -p nullspace-cli
	install -D -m 0755 $(CARGO_TARGET_DIR)/release/nullspace bin/nullspace

.PHONY: image
image: ## Build the guest agent and the guest image
	scripts/setup build image
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --profile guest -p nullspace-guest --target $(GUEST_TARGET)
	guest-image/build --agent $(AGENT)

.PHONY: install
install: build image ## Install below $(DESTDIR)$(PREFIX): program, image, systemd unit
	install -D -m 0755 bin/nullspace $(DESTDIR)$(PREFIX)/bin/nullspace
	install -d $(DESTDIR)$(PREFIX)/share/nullspace/image
	for file in vmlinuz initrd.img base.raw manifest.json; do \
	    cp --sparse=always --remove-destination $(IMAGE)/$$file $(DESTDIR)$(PREFIX)/share/nullspace/image/$$file; \
	done
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|@PREFIX@|$(PREFIX)|g' packaging/nullspace.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/nullspace.service

.PHONY: clean
clean: ## Remove what was built; images stay, machines may stand on them
	rm -rf bin $(VENV)
	cargo clean
	@echo "the guest images are in $(CACHE)/image"

# The environment of the tests from outside, made anew when what it holds changes.
$(VENV)/ready: $(E2E)/requirements.txt
	@wanted=$$(sha256sum < $<); \
	if [[ "$$(cat $@ 2>/dev/null)" != "$$wanted" ]]; then \
	    echo "making the tests' Python environment"; \
	    rm -rf $(VENV); python3 -m venv $(VENV); \
	    $(VENV)/bin/pip install --quiet --only-binary nullspace-sdk --requirement $<; \
	fi; \
	echo "$$wanted" > $@
