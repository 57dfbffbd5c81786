# Both main targets do all set-up themselves and are quick about it the second time.
#   make test   everything: lint, types, import contracts, unit and end-to-end tests, the lab in short
#   make quick  for while you work: lint, types, contracts, the unit tests of what has changed
#   make pythons  the unit tests on every Python from 3.11 that is found
#   make demo   relay, agent and a real ssh through the public port, on this machine
#   make lab    every fault of the network lab at full length, with the table of what it cost
#   make docs   docs/cli.md, docs/configuration.md and deploy/examples, from what the programs say
#   make dist   the wheel and the sdist for a Python package index, into dist/
#   make openwrt  the agent's packages for OpenWrt, into dist/
#   make openwrt-mips  a real ssh through that package's agent on an emulated 32-bit MIPS router
#   make fuzz   the parsers and the session under a coverage-guided fuzzer, FUZZ_SECONDS=600 in all
#   make soak   users, faults and attacks for SOAK_MINUTES=30: nothing lost, nothing left behind
#   make bench  throughput, delay, CPU and memory beside ssh -R and other peers, with the targets

BIN := .venv/bin

# sshd and dropbear live in sbin, which is not on every user's PATH.
export PATH := $(PATH):/usr/sbin:/sbin
# A PYTHONPATH from outside would put other packages in front of the pinned ones.
unexport PYTHONPATH PYTHONHOME
# Where nothing may be compiled ahead, each of pytest's workers compiles all tests anew, for seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help test quick pythons demo docs lab bench dist openwrt openwrt-mips fuzz soak setup setup-demo lint types contracts unit e2e oldest coverage format clean

help:
	@sed -n 's/^#   //p' Makefile

# `make test LAB=no` leaves out the network lab, which needs root; nothing else does.
LAB := yes

# Every branch of the sans-IO core is covered by the core's own tests, those left out that come upon
# a branch by chance or by trying everything: they would be slow under coverage.
BY_CHANCE := %_model.py %_cuts.py %_differential.py
CORE_TESTS := $(filter-out $(BY_CHANCE),$(wildcard \
    $(addprefix tests/unit/protocol/,test_*.py session/test_*.py wire/test_*.py)))
CORE_COVERED := --cov=protocol --cov-branch --cov-report=term:skip-covered --cov-fail-under=100

# More workers than cores, since many tests wait: for a timer, for processes, in the lab for almost
# all of their time. Those of one end-to-end file share processes, so one worker has them all.
UNIT_WORKERS := -n 3 --dist worksteal
E2E_WORKERS := -n 6 --dist loadfile
LAB_WORKERS := -n 12 --dist worksteal

test: setup lint types contracts oldest
	@echo "Tested with $$($(BIN)/python -VV). Every Python found: make pythons"
	@echo "Unit tests of the core, every branch of which they have to cover"
	@$(BIN)/python -m pytest -q -n 2 $(CORE_TESTS) $(CORE_COVERED)
	@echo "All other unit tests"
	@$(BIN)/python -m pytest -q $(UNIT_WORKERS) tests/unit $(addprefix --ignore=,$(CORE_TESTS))
	$(BIN)/python -m pytest -q $(E2E_WORKERS) tests/e2e tests/soak
ifeq ($(LAB),no)
	@echo "The network lab is left out, as LAB=no says."
else
	$(BIN)/python -m pytest -q $(LAB_WORKERS) tests/lab
endif

lab: setup
	@.ci/system-packages lab
	$(BIN)/python -m pytest -n 8 tests/lab --lab-full --ignore tests/lab/test_bots.py
# By themselves: they promise times, and their bots are a load on both cores.
	$(BIN)/python -m pytest tests/lab/test_bots.py --lab-full

# Peers are those found on PATH. `make bench BENCH="--quick --only loopback"` measures less; into
# which folder and what else there is says `python -m benchmarks --help`.
BENCH :=

bench:
	@.ci/system-packages bench
	@.ci/venv bench
	$(BIN)/python -m benchmarks $(BENCH)

docs: setup-demo
	$(BIN)/python docs/reference.py

dist: setup-demo
	@.ci/dist dist
	@ls dist/ssh_relay-*

openwrt: setup-demo
	@$(BIN)/python deploy/openwrt/build.py

# An agent of the package on an emulated router. Slow, and it needs Debian's packages for mipsel.
MIPSEL_ROOT := $(CURDIR)/.venv/mipsel-root

openwrt-mips: setup
	@.ci/system-packages mips
	@.ci/mipsel-root $(MIPSEL_ROOT)
	MIPSEL_ROOT=$(MIPSEL_ROOT) $(BIN)/python -m pytest -v tests/mips

# What it finds it names, with the command to see it again, and the target fails.
FUZZ_SECONDS := 600

fuzz: setup
	@.ci/venv fuzz
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

SOAK_MINUTES := 30

soak: setup
	$(BIN)/python -m pytest -q tests/soak --soak-minutes $(SOAK_MINUTES)

demo: setup-demo
	@$(BIN)/python deploy/demo.py

setup:
	@.ci/system-packages test
	@.ci/venv oldest

setup-demo:
	@.ci/system-packages demo
	@.ci/venv run

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	shellcheck $(filter-out %.txt,$(wildcard .ci/*))

types: setup
	$(BIN)/mypy

contracts: setup
	$(BIN)/lint-imports

# What both programs import that is not theirs; .ci/oldest.txt has the oldest of each.
LIBRARIES := cryptography h11 msgpack prometheus_client trio

# With those, the tests of the modules that import one. The last two are end-to-end: an agent written
# from the document, and the agent's `run` and `doctor`, which no unit test runs as a whole.
oldest: setup
	@$(BIN)/python -m pip freeze --path .venv/oldest
	PYTHONPATH=.venv/oldest $(BIN)/python -m pytest -q $(UNIT_WORKERS) \
	    $$($(BIN)/python -m tests.selection using $(LIBRARIES)) \
	    tests/e2e/test_second_implementation.py \
	    tests/e2e/test_doctor.py::test_all_is_well_and_a_running_session_is_not_disturbed

unit: setup
	$(BIN)/python -m pytest $(UNIT_WORKERS) tests/unit

# What has changed since the branch left `main`, or all where that cannot be told.
quick: setup lint types contracts
	$(BIN)/python -m pytest -q $(UNIT_WORKERS) $$($(BIN)/python -m tests.selection changed)

pythons: setup
	@.ci/pythons test

e2e: setup
	$(BIN)/python -m pytest $(E2E_WORKERS) tests/e2e

coverage: setup
	$(BIN)/python -m pytest tests/unit --cov --cov-branch --cov-report=term-missing:skip-covered

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-3.* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache \
	    .coverage build dist *.egg-info
