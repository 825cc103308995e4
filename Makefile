# hostmesh: every command of the project. `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export CARGO_TARGET_DIR ?= $(CURDIR)/target

VENV := .venv
PY := $(VENV)/bin/python

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

setup: ## Debian packages of packages.debian, .venv with requirements.lock; quick when done
	@packaging/setup

rootfs: setup ## the test hosts' root file system, in /var/cache/hostmesh-lab (a minute, once)
	@$(PY) -m tests.lab rootfs

wheels: setup ## dist/ (our two wheels) and build/wheelhouse/ (their dependencies)
	@packaging/wheels

install: wheels ## hostmesh on this machine: /opt/hostmesh, commands, units
	@packaging/install --wheels dist --wheels build/wheelhouse

lab: rootfs ## two test hosts to step into, until Ctrl-C
	@$(PY) -m tests.lab up

.PHONY: help setup rootfs wheels install lab
