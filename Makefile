# Two commands, nothing before them: `make demo` and `make test`.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.SUFFIXES:

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not (sys.version_info >= (3, 11)))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DATA ?=
SHARED ?= ../shared/data
JOBS ?= 2
OUT ?= runs/$(if $(DATA),$(notdir $(DATA)),demo)

help:  ## what this file can do
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

$(STAMP): constraints.txt pyproject.toml common/pyproject.toml server/pyproject.toml client/pyproject.toml deploy/setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" TORCH="$(TORCH)" bash deploy/setup.sh
	@touch $(STAMP)

setup: $(STAMP)  ## create .venv and install everything (once)

demo: $(STAMP)  ## four hospitals train one model on this machine (DATA=folder: another study; KILL="edge city:guard": kill -9 these)
	@$(BIN)/fedward-server sandbox $(if $(DATA),--data $(DATA)) $(foreach one,$(KILL),--kill $(one)) --out $(OUT)

check: $(STAMP)  ## format, lint, types, import contracts, fast tests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/pytest -m "not federation and not slow"

test: $(STAMP)  ## everything that must pass before a change lands
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/pip check
	@$(BIN)/python deploy/check_licences.py
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not slow" --durations=20

soak: $(STAMP)  ## the long tests
	@$(BIN)/pytest -m slow --durations=20
	@$(BIN)/python -m benchmarks.soak --rounds $(or $(ROUNDS),1000) --out runs/bench-soak.json

bench-soak: $(STAMP)  ## rounds with faults at random (ROUNDS=1000): anything lost, anything growing?
	@$(BIN)/python -m benchmarks.soak --rounds $(or $(ROUNDS),1000) --out runs/bench-soak.json

bench-heart: $(STAMP)  ## 20 noise draws of the heart study: mean and spread
	@$(BIN)/python -m benchmarks.study --study heart --draws 20 --data $(or $(DATA),../shared/data/fed_heart_disease) --out runs/bench-heart.json

bench-breast: $(STAMP)  ## 20 noise draws of the breast-cancer study
	@$(BIN)/python -m benchmarks.study --study breast-cancer --draws 20 --out runs/bench-breast.json

bench-ehr: $(STAMP)  ## EHR studies and FHIR speed (SHARED=folder of the data sets)
	@$(BIN)/python -m benchmarks.ehr heart --data $(SHARED)/fed_heart_disease --out runs/bench-ehr-heart.json
	@$(BIN)/python -m benchmarks.ehr tcga --data $(SHARED)/fed_tcga_brca --out runs/bench-ehr-tcga.json
	@$(BIN)/python -m benchmarks.ehr_eicu --data $(SHARED)/eicu_demo --out runs/bench-ehr-eicu.json
	@$(BIN)/python -m benchmarks.ehr_physionet --data $(SHARED)/physionet2012 --out runs/bench-ehr-physionet.json
	@$(BIN)/python -m benchmarks.ehr_ner --data $(SHARED)/ner_corpora --out runs/bench-ehr-ner.json
	@$(BIN)/python -m benchmarks.ehr fhir --data $(SHARED)/synthea_fhir_r4 --out runs/bench-ehr-fhir.json

bench-genomics: $(STAMP)  ## genomes, omics, synthetic patients, modalities (SHARED=folder, QUICK=1: the least of each, ONLY=name, PLINK2=program, WHEELS=folder)
	@$(BIN)/python -m benchmarks.genomics --shared $(SHARED) --out runs $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY)) $(if $(PLINK2),--plink2 $(PLINK2)) $(if $(WHEELS),--wheels $(WHEELS))

bench-multimodal: $(STAMP)  ## each modality alone and fused: chest X-ray + labs, TCGA (SHARED=folder of the data sets)
	@$(BIN)/python -m benchmarks.multimodal hannover --data $(SHARED)/covid_cxr --out runs/bench-multimodal-hannover.json
	@$(BIN)/python -m benchmarks.multimodal tcga --data $(SHARED)/tcga_multiomics --out runs/bench-multimodal-tcga.json

bench-ledger: $(STAMP)  ## what one charge of the budget ledger costs
	@$(BIN)/python -m benchmarks.ledger --out runs/bench-ledger.json

bench-levers: $(STAMP)  ## each utility lever beside the study without it
	@$(BIN)/python -m benchmarks.levers --set breast-cancer --draws 20 --out runs/bench-levers.json
	@$(BIN)/python -m benchmarks.levers --set digits --draws 10 --out runs/bench-levers-digits.json

bench-privacy: $(STAMP)  ## the patient-level engine beside Opacus and training without privacy
	@$(BIN)/python -m benchmarks.privacy --out runs/bench-privacy.json

bench-imaging: bench-hippocampus  ## PneumoniaMNIST and hippocampus over four hospitals, with and without noise (SHARED=folder)
	@$(BIN)/python -m benchmarks.imaging --data $(SHARED)/pneumoniamnist --out runs/bench-imaging.json
	@$(BIN)/python -m benchmarks.imaging_resnet --data $(SHARED)/pneumoniamnist --out runs/bench-imaging-resnet.json

bench-hippocampus: $(STAMP)  ## segmentation over four hospitals, with and without noise (SHARED=folder)
	@$(BIN)/python -m benchmarks.hippocampus --data $(SHARED)/hippocampus_msd --out runs/bench-hippocampus.json

bench-dicom: $(STAMP)  ## indexing and decoding DICOM: speed and memory
	@$(BIN)/python -m benchmarks.dicom --out runs/bench-dicom.json

bench-phase: $(STAMP)  ## a step of a phase: 3 sites as processes, 16 in one; time and CPU
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.phase --out runs/bench-phase.json

bench-rounds: $(STAMP)  ## seconds and CPU of a round by messages, without training
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.rounds --out runs/bench-rounds.json

bench-secagg: $(STAMP)  ## mask and unmask of the secure sum beside Flower's SecAgg+, 3 to 100 sites
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.secagg --out runs/bench-secagg.json

bench-utility: $(STAMP)  ## distributed noise beside central DP-SGD and full noise at each site, three sets
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.utility --data $(or $(DATA),../shared/data/fed_heart_disease) --out runs/bench-utility.json

bundle: $(STAMP)  ## signed offline bundles of both roles (KEY=release.pem; python -m deploy.bundle.build --new-key makes one)
	@$(BIN)/python -m deploy.bundle.build --role client --key $(KEY) --out dist
	@$(BIN)/python -m deploy.bundle.build --role server --key $(KEY) --out dist

e2e-enrol: $(STAMP)  ## hospitals join, approve, train; one is revoked; install from a bundle without a network
	@$(BIN)/pytest -m "" tests/e2e/test_enrolment.py tests/e2e/test_install.py --durations=10

ci-deps:  ## Debian and npm packages that tests use (called once by .ci/run)
	@command -v ip >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq iproute2; }
	@command -v systemd-analyze >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq systemd; }
	@command -v openssl >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq openssl; }
	@command -v Orthanc >/dev/null 2>&1 || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends orthanc orthanc-dicomweb; }
	@ls -d /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql; }
	@{ command -v node >/dev/null 2>&1 && command -v npm >/dev/null 2>&1; } || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nodejs npm; }
	@test -d tests/support/fhir_server/node_modules/@medplum/fhir-router || npm ci --prefix tests/support/fhir_server --ignore-scripts --no-audit --no-fund --silent

clean:  ## remove caches and runs (not .venv)
	@rm -rf runs .mypy_cache .ruff_cache .hypothesis .import_linter_cache

.PHONY: help setup demo check test soak bundle bench-ehr bench-genomics bench-multimodal bench-heart bench-breast bench-ledger bench-levers bench-privacy bench-dicom bench-phase bench-secagg bench-utility bench-imaging bench-hippocampus e2e-enrol ci-deps clean bench-rounds
