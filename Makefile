# Playhead: `make run` is all a newcomer needs; `make help` lists the rest.
#
# Needs: Go (go.mod names the version), npm for the embedded engine, and for `test` and
# `check` a C compiler (the race detector), Python, and Maven with Java 17 or later. Everything
# else is fetched, pinned.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build
MAKEFLAGS   += --no-print-directory

# --- Pinned versions and settings -------------------------------------------------
# The engine's version and hash are pinned in scripts/fetch-engine.sh, libraries in
# go.mod, container images in deploy/.
GOLANGCI_LINT_VERSION := v2.15.0

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

# Arguments of `make run`, as in ARGS='--listen 127.0.0.1:9000'.
ARGS ?=
# What to test, benchmark or fuzz, as in PKG=./schema BENCH=Fanout.
PKG        ?= ./...
BENCH      ?= .
BENCH_TIME ?= 1s
BENCH_ARGS ?=
PEERS_ARGS ?=
# Rows of `make bench-history`, and where they are kept; none: in the user's cache directory.
ROWS         ?= 100000000
HISTORY_DATA ?=
HISTORY_ARGS ?=
# Bounds one package's tests; packages are tested three at a time, since each may run an
# engine and a broker of its own, those that take longest first.
TEST_TIMEOUT ?= 15m
LONG_TESTS   := ./integration ./query ./query/materializer ./streamer ./integration/clients
TEST_JOBS    ?= 3
TEST_ENV     := CGO_ENABLED=1 PLAYHEAD_REQUIRE_ENGINE=1 PLAYHEAD_REQUIRE_CLIENTS=1 PLAYHEAD_REQUIRE_KAFKA=1
# What `make test` runs on real Kafka too: the tests that ask most of it, some 3 minutes. All
# the others: `make test-kafka`.
ON_KAFKA := ^(TestBrokersComeAndGo|TestControlTopicIsCompacted|TestForeignTransactionsAreReadAsCommitted|$\
TestRolesNeedWhatIsDocumented|TestErasureRacesAppends|TestAnyNodeAnswersForAll|TestTour|$\
TestStreamsAreCountedAndEndedAcrossNodes|TestWorkspaceStreamMovesBetweenNodes)$$
# What the faults of `make simulate`, `make chaos` and its like follow from. Without SEED, simulate
# runs SEEDS of each simulation, and the others 1. MUTANT_SEEDS are tried on each mutant, MUTANTS
# chooses some of them by a regular expression.
SEED         ?=
SEEDS        ?= 10000
MUTANT_SEEDS ?= 2000
MUTANTS      ?=
# Of each fuzz target.
FUZZTIME ?= 20s
# Of `make chaos` and its like: how long, or how many.
DURATION   ?=
FAULTS     ?=
CHAOS_ARGS ?=

BIN  := $(CURDIR)/bin
LINT := $(BIN)/golangci-lint-$(GOLANGCI_LINT_VERSION)

# --- What people run --------------------------------------------------------------

.PHONY: build
build: ## Build bin/playhead (the default)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $(BIN)/playhead ./cmd/playhead

.PHONY: run
run: build engine ## Build, fetch the engine, start a durable single machine on 127.0.0.1:8080
	@exec $(BIN)/playhead dev $(ARGS)

.PHONY: engine
engine: ## Fetch the pinned engine library, once (npm)
	@scripts/fetch-engine.sh >/dev/null

.PHONY: clients
clients: ## Fetch the pinned third-party clients that tests drive, once (npm, pip, apt for Chromium)
	@scripts/fetch-clients.sh

.PHONY: kafka
kafka: ## Fetch the pinned Apache Kafka that tests run, once (mvn)
	@scripts/fetch-kafka.sh >/dev/null

# Some end-to-end tests run twice: on the embedded broker, and on a cluster of real Kafka.
.PHONY: test
test: engine clients kafka ## All tests, with the race detector, in random order
	$(TEST_ENV) $(GO) test -race -shuffle=on -timeout $(TEST_TIMEOUT) -p $(TEST_JOBS) $(if $(filter ./...,$(PKG)),$(LONG_TESTS)) $(PKG)
ifeq ($(PKG),./...)
	PLAYHEAD_TEST_KAFKA=apache $(TEST_ENV) $(GO) test -race -shuffle=on -timeout $(TEST_TIMEOUT) -short -run '$(ON_KAFKA)' ./integration
endif

.PHONY: test-kafka
test-kafka: engine clients kafka ## All end-to-end tests on three brokers of real Apache Kafka
	PLAYHEAD_TEST_KAFKA=apache $(TEST_ENV) $(GO) test -race -shuffle=on -timeout 30m -p 1 ./integration/kafkacluster ./integration ./integration/clients

.PHONY: check
check: fmt-check vet lint test ## Format, vet, lint, then all tests: what a commit must pass

.PHONY: fmt-check
fmt-check:
	@unformatted="$$(gofmt -l $$($(GO) list -f '{{.Dir}}' ./...))"; \
	if [[ -n "$$unformatted" ]]; then echo "not gofmt-ed:"; echo "$$unformatted"; exit 1; fi

.PHONY: vet
vet:
	$(GO) vet ./...

.PHONY: lint
lint: $(LINT) ## Lint alone
	$(LINT) run ./...

$(LINT):
	@echo "installing golangci-lint $(GOLANGCI_LINT_VERSION) into bin/ (some minutes, once)"
	@mkdir -p $(BIN)
	GOFLAGS= GOBIN=$(BIN) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
	@mv $(BIN)/golangci-lint $@

# BENCH_ARGS are those of integration/bench, as in BENCH_ARGS='-only append,fanout -runs 5';
# BENCH='^$$' leaves the packages' benchmarks out.
.PHONY: bench
bench: build engine ## Measure a real server (bin/bench.md, .json), then the packages' benchmarks (bin/bench.txt)
	$(GO) build -trimpath -o $(BIN)/bench ./integration/bench
	$(BIN)/bench -server $(BIN)/playhead -json $(BIN)/bench.json $(BENCH_ARGS) | tee $(BIN)/bench.md
	PLAYHEAD_REQUIRE_ENGINE=1 $(GO) test -run '^$$' -bench '$(BENCH)' -benchtime $(BENCH_TIME) -benchmem -timeout 60m -p 1 $(PKG) | tee $(BIN)/bench.txt

# PEERS_ARGS are those of integration/bench, as in PEERS_ARGS='-only idle -targets playhead,nchan'.
.PHONY: bench-peers
bench-peers: build engine ## Measure other servers beside ours, in one run (bin/peers.md, .json)
	$(GO) build -trimpath -o $(BIN)/bench ./integration/bench
	peers="$$(scripts/fetch-peers.sh)"; \
	$(BIN)/bench -server $(BIN)/playhead -peers "$$peers" -json $(BIN)/peers.json $(PEERS_ARGS) | tee $(BIN)/peers.md

# The rows are made once, at some 100,000 to 400,000 a second, and take about 210 B each; merges
# want as much again for a while. HISTORY_ARGS are those of integration/bench, as in HISTORY_ARGS='-n 50'.
.PHONY: bench-history
bench-history: build engine ## Measure history over ROWS=100000000 rows (bin/history.md, .json)
	$(GO) build -trimpath -o $(BIN)/bench ./integration/bench
	$(BIN)/bench -server $(BIN)/playhead -only history -runs 1 -rows $(ROWS) $(if $(HISTORY_DATA),-data '$(HISTORY_DATA)') -json $(BIN)/history.json $(HISTORY_ARGS) | tee $(BIN)/history.md

.PHONY: simulate
simulate: ## Materialisers and streams in virtual time, SEEDS=10000 runs of each; SEED=n repeats one
	@mkdir -p $(BIN)/simulation
	SEEDS='$(SEEDS)' SEED='$(SEED)' $(GO) test -run '^TestSimulated' -count=1 -v -timeout 30m -p 1 -artifacts -outputdir $(BIN)/simulation ./query/materializer ./streamer

.PHONY: mutants
mutants: ## Break the code on purpose, in one place at a time: the simulations are to notice
	$(GO) run ./integration/mutants -seeds $(MUTANT_SEEDS) -only '$(MUTANTS)'

# CHAOS_ARGS are those of integration/chaos, as in CHAOS_ARGS='-nodes 5 -clock'. As root, disks
# are broken as well.
.PHONY: chaos
chaos: build engine ## Break a cluster at random, under load, and audit it: SEED=1 DURATION=5m or FAULTS=1000 (bin/chaos.json)
	$(GO) build -trimpath -o $(BIN)/chaos ./integration/chaos
	$(BIN)/chaos -server $(BIN)/playhead -seed $(or $(SEED),1) $(if $(DURATION),-duration $(DURATION)) $(if $(FAULTS),-faults $(FAULTS)) -json $(BIN)/chaos.json $(CHAOS_ARGS)

.PHONY: chaos-mutants
chaos-mutants: engine ## See that campaigns catch servers that are broken on purpose (bin/mutants.json)
	$(GO) build -trimpath -o $(BIN)/chaos ./integration/chaos
	$(BIN)/chaos -mode mutants -seed $(or $(SEED),1) $(if $(DURATION),-duration $(DURATION)) -json $(BIN)/mutants.json $(CHAOS_ARGS)

.PHONY: chaos-files
chaos-files: build engine ## Damage the files of playhead dev between two lives (bin/files.json)
	$(GO) build -trimpath -o $(BIN)/chaos ./integration/chaos
	$(BIN)/chaos -mode files -server $(BIN)/playhead -seed $(or $(SEED),1) $(if $(FAULTS),-faults $(FAULTS)) -json $(BIN)/files.json $(CHAOS_ARGS)

.PHONY: overload
overload: build engine ## Ask ten times of a node what it can do, for DURATION=2m (bin/overload.json)
	$(GO) build -trimpath -o $(BIN)/chaos ./integration/chaos
	$(BIN)/chaos -mode overload -server $(BIN)/playhead -seed $(or $(SEED),1) $(if $(DURATION),-duration $(DURATION)) -json $(BIN)/overload.json $(CHAOS_ARGS)

.PHONY: fuzz
fuzz: ## Each fuzz target for FUZZTIME, one after the other
	@for pkg in $$($(GO) list $(PKG)); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "== $$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

.PHONY: clean
clean: ## Remove bin/ and Go's test cache; data and the fetched engine stay
	rm -rf $(BIN)
	$(GO) clean -testcache

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
