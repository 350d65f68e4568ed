# Commands for mcpo-bridge; `make` lists them.
# Requirements other than Rust and Python 3 are installed into .tools/ and .run/ of this checkout.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Address and folders of `make run`, for example: make run MCPO_PORT=9000
MCPO_HOST ?= 127.0.0.1
MCPO_PORT ?= 8080
MCPO_BASE_URL ?= http://localhost:$(MCPO_PORT)
MCPO_CONFIG_FILE ?= config/mcp-servers.json
MCPO_JOBS_DIR ?= .run/jobs
MCPO_TOOLS_DIR ?= .run/tools

# Additional flags for `mcpo-bridge serve` and for the scripts with matching names
RUN_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=
SIZING_ARGS ?=
SOAK_ARGS ?=
FAIRNESS_ARGS ?=
LOAD_ARGS ?=
CONFORMANCE_ARGS ?=
BUNDLE_ARGS ?=
DOCKER_TEST_ARGS ?=
MCPO_ARGS ?=
SERVERS_ARGS ?=
SCHEMAS_ARGS ?=

# CI requires an unchanged lock file; locally cargo may update it for a changed Cargo.toml.
LOCKED := $(if $(CI),--locked)
PYTHON_DIRS := bench deploy examples scripts crates/process/src/child/fork/server tests/bundle tests/clients tests/conformance tests/docker tests/fairness tests/fixtures tests/fork_parent tests/kubernetes tests/mcpo tests/openwebui tests/scripts tests/servers tests/soak tests/support

# .tools/bin comes last, so that an installed uv takes precedence.
export PATH := $(PATH):$(CURDIR)/.tools/bin

.PHONY: help run build bundle test test-fork test-docker lint fmt fmt-check clippy doc modules glossary texts python copies check-example check-kubernetes check-workflows bench soak load-bodies load-connections load-fairness sizing conformance test-mcpo test-openwebui test-schemas test-servers deny clean uv

help: ## Show this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: uv $(MCPO_CONFIG_FILE) ## Build and start the bridge with the example servers on port 8080
	cargo build --profile quick $(LOCKED)
	env MCPO_HOST='$(MCPO_HOST)' MCPO_PORT='$(MCPO_PORT)' MCPO_BASE_URL='$(MCPO_BASE_URL)' \
	MCPO_CONFIG_FILE='$(MCPO_CONFIG_FILE)' MCPO_JOBS_DIR='$(MCPO_JOBS_DIR)' \
	MCPO_TOOLS_DIR='$(MCPO_TOOLS_DIR)' MCPO_ASSETS_DIR='$(CURDIR)/assets' \
	target/quick/mcpo-bridge serve $(RUN_ARGS)

build: ## Build the release binary, target/release/mcpo-bridge
	cargo build --release $(LOCKED)

# No prerequisite, so that a newer example never overwrites an existing configuration.
config/mcp-servers.json:
	mkdir -p config
	cp mcp-servers.json.example $@

test: uv lint check-example test-fork ## Check everything: format, lints, docs, example config, all tests
	scripts/test $(TEST_ARGS)

lint: fmt-check clippy doc modules glossary texts python copies ## Check format, clippy, documentation, modules, names, texts, Python files, copies

fmt: ## Format the Rust code
	cargo fmt

fmt-check:
	cargo fmt --check

clippy:
	cargo clippy $(LOCKED) --all-targets -- -D warnings

# No two modules may import each other.
modules:
	python3 scripts/module_graph.py

# Names use the field's terms: scripts/glossary lists private words and what to say instead.
glossary:
	scripts/glossary

# docs/texts.md has the texts of the sources; check-example compares those of --help, which needs a build.
texts:
	scripts/texts --check --sources

doc:
	RUSTDOCFLAGS='-D warnings' cargo doc $(LOCKED) --no-deps --document-private-items

python:
	PYTHONPYCACHEPREFIX=target/pycache python3 -W error -m compileall -q -f $(PYTHON_DIRS)
	PYTHONPYCACHEPREFIX=target/pycache python3 -W error -m unittest discover -q -s bench -t .
	PYTHONPYCACHEPREFIX=target/pycache python3 -W error -m unittest discover -q -s tests/bundle
	PYTHONPYCACHEPREFIX=target/pycache python3 -W error -m unittest discover -q -s tests/scripts

# Kustomize cannot read files outside the folder of its kustomization.yaml, so the base has a copy.
copies:
	@cmp mcp-servers.json.example deploy/kubernetes/base/mcp-servers.json || \
	{ echo 'copies: cp mcp-servers.json.example deploy/kubernetes/base/mcp-servers.json' >&2; exit 1; }

# Starts each server of the example and lists its tools, as on users' machines; and compares --help with its page.
check-example: uv
	cargo build $(LOCKED)
	scripts/texts --check
	env MCPO_JOBS_DIR=.run/check-jobs MCPO_TOOLS_DIR='$(MCPO_TOOLS_DIR)' MCPO_START_TIMEOUT=180 \
	target/debug/mcpo-bridge check --config mcp-servers.json.example

test-fork: ## Fork Python processes and check that they share no state (MCPO_FORKS=1000 MCPO_TEST_PYTHON=python3.13)
	PYTHONDONTWRITEBYTECODE=1 python3 -W error -m unittest discover -q -s tests/fork_parent

bundle: uv ## Pack images, Compose files, documents, checksums and SBOMs for a host without internet access
	scripts/bundle $(BUNDLE_ARGS)

test-docker: ## Test the image and the Compose files on a real engine (needs Docker; about 20 minutes)
	scripts/test-docker $(DOCKER_TEST_ARGS)

bench: ## Measure the bridge, mcpo, similar programs, uvx, nginx and a no-op (npm, PyPI, Debian)
	scripts/bench $(BENCH_ARGS)

soak: ## Run mixed load for 15 minutes while a process is killed every 3 s (SOAK_ARGS='--minutes 2')
	scripts/soak $(SOAK_ARGS)

load-fairness: build ## Measure nine users while another one floods the bridge (FAIRNESS_ARGS='--runs 1 --seconds 5')
	scripts/load-fairness $(FAIRNESS_ARGS)

load-bodies: build ## Send invalid, hostile and large bodies; measure the bridge's time and memory
	scripts/load-bodies

load-connections: build ## Measure users' calls during an attack with silent connections and slow bodies
	scripts/load-connections --bridge target/release/mcpo-bridge $(LOAD_ARGS)

sizing: ## Measure memory, CPU and disk of a chat with the example's real servers
	scripts/sizing $(SIZING_ARGS)

check-kubernetes: uv ## Render the overlays of deploy/kubernetes; check them against schemas and rules
	scripts/check-kubernetes

check-workflows: uv ## Check .github with GitHub's schemas, zizmor and yamllint
	scripts/check-workflows

conformance: ## Run the official MCP conformance suite through the bridge (needs npm)
	scripts/conformance $(CONFORMANCE_ARGS)

test-openwebui: uv ## Run real chats in a real Open WebUI through the bridge (1.1 GB from PyPI)
	scripts/test-openwebui $(TEST_ARGS)

test-mcpo: ## Send the same requests to mcpo and the bridge and compare (slow; needs PyPI)
	scripts/test-mcpo $(MCPO_ARGS)

test-servers: uv ## Start the servers of docs/servers.md, create a file with each and open it (Chromium, npm, PyPI)
	scripts/test-servers $(SERVERS_ARGS)

test-schemas: ## Read documents with Open WebUI's own converter and call every tool (1.1 GB from PyPI)
	scripts/test-schemas $(SCHEMAS_ARGS)

deny: ## Check the dependencies' licences, sources and advisories (cargo-deny)
	@cargo deny --version >/dev/null 2>&1 || cargo install cargo-deny --locked
	cargo deny --all-features check

clean: ## Remove build results, installed tools and run-time files (config/ stays)
	cargo clean
	rm -rf .run .tools

uv:
	@scripts/ensure-uv
