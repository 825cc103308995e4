# hostmesh: every command of the project. `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export CARGO_TARGET_DIR ?= $(CURDIR)/target

VENV := .venv
PY := $(VENV)/bin/python
FUZZ_SECONDS ?= 600
VM_SECONDS ?= 900

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

changes:
	@echo "On this machine: the Debian packages of packages.debian are installed, fs.inotify.max_user_instances is raised,"
	@echo "/var/cache/hostmesh-lab is kept, .venv, dist, build and cargo's target folder are made. All else is taken down again."

setup: ## Debian packages of packages.debian, .venv with requirements.lock; quick when done
	@packaging/setup

rootfs: setup ## the test hosts' root file system, in /var/cache/hostmesh-lab (a minute, once)
	@$(PY) -m tests.lab rootfs >/dev/null

collector: setup ## the OpenTelemetry Collector of the tests, in /var/cache/hostmesh-lab (a minute, once)
	@$(PY) -m tests.lab collector >/dev/null

wheels: setup ## dist/ (our two wheels) and build/wheelhouse/ (their dependencies)
	@packaging/wheels

install: wheels ## hostmesh on this machine: /opt/hostmesh, commands, units
	@packaging/install --wheels dist --wheels build/wheelhouse

lab: rootfs ## two test hosts to step into, until Ctrl-C
	@$(PY) -m tests.lab up

demo: changes rootfs wheels ## the main job on two real hosts, as a table (KEEP=1 leaves them up)
	@$(PY) -m demo $(if $(KEEP),--keep)

test: changes rootfs collector wheels ## everything but the slow suites
	cargo test --manifest-path proxy/Cargo.toml --workspace --profile tests --locked
	$(PY) -m pytest $(ARGS)

test-long: changes rootfs collector wheels ## the same with every repetition that is promised; an hour and more
	$(PY) -m pytest --long --timeout 3600 $(ARGS)

test-fast: setup ## what needs neither hosts nor the kernel, in seconds
	$(PY) -m pytest tests/unit tests/golden tests/properties tests/tidy $(ARGS)

lint: setup ## ruff, mypy, import contracts, rustfmt, clippy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-cache
	cargo fmt --manifest-path proxy/Cargo.toml --all --check
	cargo fmt --manifest-path proxy/fuzz/Cargo.toml --check
	cargo clippy --manifest-path proxy/Cargo.toml --workspace --all-targets --profile tests --locked -- -D warnings

format: setup ## ruff and rustfmt, in place
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	cargo fmt --manifest-path proxy/Cargo.toml --all

fuzz: setup ## every parser, FUZZ_SECONDS each (600: two CPU hours and more in all); what it finds is in build/fuzz/found
	@$(PY) -m tests.fuzz --seconds $(FUZZ_SECONDS) $(ARGS)

vm-smoke: changes wheels ## two QEMU machines with Debian 12's own kernel, one call meshed between them; 15 minutes at most
	@packaging/setup packages.vm
	@setpriv --pdeathsig TERM timeout --kill-after=10 $(VM_SECONDS) setpriv --pdeathsig KILL \
		unshare --net --mount --pid --fork --kill-child --mount-proc env PYTHONPATH=. $(PY) vm-tests

lock: ## renew requirements.lock
	$(VENV)/bin/uv pip compile pyproject.toml --group dev --generate-hashes --no-emit-index-url --no-header -o requirements.lock
	$(VENV)/bin/uv pip compile --group bench --constraints requirements.lock --generate-hashes --no-emit-index-url --no-header \
		-o bench/requirements.lock

bench: changes rootfs collector wheels ## direct, hostmesh, Envoy, HAProxy and nginx under every load, and what features cost; 20 minutes
	@bench/setup
	@$(PY) -m bench full $(ARGS)

profile: changes rootfs wheels ## renew proxy/hot.profdata, by which the proxy is compiled: counts under the bench's loads; 7 minutes
	@packaging/setup packages.profile
	@bench/setup
	@packaging/profile

bench-quick: changes rootfs wheels ## direct, HAProxy and hostmesh as hard as they go; fails below HAProxy's layer 7; 90 s
	@$(PY) -m bench quick $(ARGS)

soak: changes rootfs wheels ## 10,000 open connections, 2,000 requests/s, 1,000 new connections/s for half an hour: no error, nothing grows
	@bench/setup
	@$(PY) -m bench.soak full $(ARGS)

soak-quick: changes rootfs wheels ## the same, smaller, judged the same way; two minutes
	@$(PY) -m bench.soak quick $(ARGS)

.PHONY: help changes setup rootfs collector wheels install lab demo test test-long test-fast lint format fuzz vm-smoke lock bench profile bench-quick soak soak-quick
