# SPDX-License-Identifier: Apache-2.0
# "make help" lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

BIN      := bin
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GOFILES  := $(shell git ls-files '*.go' 2>/dev/null)
ROOT     := $(shell [ "$$(id -u)" = 0 ] && echo yes)
# Kernel tests need root. Without it they say what they skip; with it a skip
# that e2e/skips.txt does not allow fails the run.
STRICT   := $(if $(ROOT),-strict)
UNIT     := ./cmd/... ./config/... ./internal/... ./iptables/... ./ipvs/... ./nat/... ./nftables/... ./portmap/... ./proxier/...
# What is tested in the second kernel, too: the tests for which the machine's own
# may lack something.
UML      := ./e2e/uml ./e2e/suite ./ipvs/... ./nat/...
TEST_UML := $(BIN)/uml go-test -json -timeout 20m -run Kernel $(UML)
# Many kernels have no SCTP.
TEST_UML += || true; $(BIN)/uml go-test -json -run '^TestKernelSCTP$$/^legacy$$' ./e2e
# What is the same in every mode, with the variant that the second kernel has, and what
# is of IPVS mode alone.
MODES    := 'TestKernel(HostPort(AfterServices|Moves|OfServices|OutsideOfServices|Stale|Addresses|LoopbackOutOfReach|NoBridgeNetfilter|sOfOthers)?|PodMasquerade(Tunnel|File)?|ManyExempt|PolicyWins|Restart|UDPFlowsFollow|ManifestNeverParsed|OthersRulesStay|ForeignChangesHeal|DropPolicies|NoBridgeNetfilter)$$/legacy|TestKernel(NodePortAddresses|Metrics|IPVS.*)$$|TestKernelKubeProxy$$/^ipvs|TestKernelServiceMetrics$$/.*/legacy|TestKernelHostPortMatrix$$/.*/legacy|TestKernelCoexistence$$/both/legacy'
TEST_UML += || true; $(BIN)/uml go-test -json -timeout 20m -run $(MODES) ./e2e -args -proxy-mode=ipvs

# End to end in nftables mode, too, beside the nft variant, but for tests of one mode and
# those in which the mode has no part. (Of patterns to skip the first one that matches a
# part of the name decides.)
NFTABLES := -run '^TestKernel' -skip '^TestKernel(Affinity.*|Compact|OneFamily|NoIptables|HealthLate|StopDuringSync|KilledDuringSync|IPVS.*|KubeProxy|Nftables.*|ModeSwitch.*|StopWithoutAPIServer|StartupTaint|Permissions|OOMScore|Readme.*|BadManifests|HealthCheckPortTaken)$$|/^legacy$$|//^legacy$$'

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17

.PHONY: deps
deps: ## Install the Debian packages that demo and tests need (root)
	@e2e/install-deps.sh uml

.PHONY: base-deps
base-deps:
	@e2e/install-deps.sh

.PHONY: build
build: base-deps ## Build bin/fairlead
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o $(BIN)/fairlead ./cmd/fairlead

# A registry's name and a repository, a tag: make image IMAGE=registry.example/fairlead:v1
IMAGE ?= fairlead:$(VERSION)

.PHONY: image
image: build ## Make the agent's image as an OCI archive, $(BIN)/fairlead-image.tar
	@e2e/install-deps.sh image
	@SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || echo 0) deploy/image/build.sh $(BIN)/fairlead $(IMAGE) $(BIN)/fairlead-image.tar

.PHONY: demo
demo: build ## Watch Services work on a node made of network namespaces (root)
	@go build -o $(BIN)/demo ./e2e/demo
	@$(BIN)/demo --fairlead $(BIN)/fairlead

.PHONY: uml
uml: deps ## Build bin/uml, which runs a command in a kernel with IPVS (root)
	@go build -o $(BIN)/uml ./e2e/uml

.PHONY: tools
tools: deps ## Build etcd, kube-apiserver, helm and kustomize for the end-to-end tests
	@$(MAKE) --no-print-directory -C e2e/tools all deploy-tools

.PHONY: test
test: build image tools uml lint ## Run all tests
	@go build -o $(BIN)/testreport ./e2e/testreport
	@{ go test -race -json -timeout 20m $(UNIT) || true; \
	   go test -json -timeout 30m ./e2e/... || true; \
	   go test -json -timeout 20m $(NFTABLES) ./e2e -args -proxy-mode=nftables || true; \
	   $(TEST_UML) || true; } | $(BIN)/testreport $(STRICT)

.PHONY: e2e-cluster
e2e-cluster: image tools uml ## Run the DaemonSet in a cluster of two nodes (root)
	@e2e/install-deps.sh cluster
	@$(MAKE) --no-print-directory -C e2e/tools cluster
	go test -tags e2ecluster -count 1 -v -timeout 40m ./e2e/realcluster $(if $(CLUSTER),-args $(CLUSTER))
	go test -count 1 -run '^TestKernelKubeProxy$$/tables' ./e2e
	$(BIN)/uml go-test -run '^TestKernelKubeProxy$$/ipvs' ./e2e
	$(BIN)/uml go-test -v -run '^TestKernelIPVSTransitions$$' ./e2e -args -transition=60s

.PHONY: test-uml
test-uml: uml ## Run the tests that need a kernel with IPVS, in one (root)
	@go build -o $(BIN)/testreport ./e2e/testreport
	@{ $(TEST_UML) || true; } | $(BIN)/testreport

.PHONY: test-unit
test-unit: ## Run the tests that need neither root nor tools
	go test -race $(UNIT)

.PHONY: lint
lint: ## Check formatting, vet, and shell scripts
	@test -z "$$(gofmt -l $(GOFILES))" || { echo "gofmt would change: $$(gofmt -l $(GOFILES))"; exit 1; }
	@go vet -tags e2ecluster ./...
	@if command -v shellcheck >/dev/null; then shellcheck e2e/*.sh e2e/realcluster/*.sh deploy/image/*.sh .ci/run; \
	else echo "lint: the scripts are not checked: install Debian's package shellcheck"; fi

.PHONY: golden
golden: ## Rewrite the golden files from what the code does now
	go test ./iptables ./ipvs -update
	go test ./nftables -run "^TestGolden$$" -update

.PHONY: docs
docs: ## Write docs/configuration.md anew from the code
	go test ./config -run '^TestReference$$' -update

.PHONY: suite-reference
suite-reference: tools ## Record from kube-proxy what e2e/suite expects (root)
	@$(MAKE) --no-print-directory -C e2e/tools kube-proxy
	go test ./e2e/suite -count 1 -run '^TestKernelSuite$$' -timeout 20m -record

.PHONY: bench
bench: build tools ## Measure Fairlead and kube-proxy side by side, and parts by themselves (root)
	@$(MAKE) --no-print-directory -C e2e/tools kube-proxy
	@go build -o $(BIN)/bench ./e2e/bench
	@$(BIN)/bench $(or $(BENCH),--docs docs)
	@$(MAKE) --no-print-directory bench-micro

.PHONY: bench-micro
bench-micro: ## Run the micro-benchmarks
	go test -run '^$$' -bench . -benchmem $(UNIT)

.PHONY: fuzz
fuzz: ## Fuzz each parser for half a minute
	@for t in $$(grep -rlE '^func Fuzz' --include='*_test.go' $(dir $(UNIT:/...=/))); do \
	  for f in $$(grep -oE '^func Fuzz\w+' $$t | cut -c6-); do \
	    echo "$$t $$f"; go test ./$$(dirname $$t) -run '^$$' -fuzz "^$$f$$" -fuzztime 30s; done; done

.PHONY: clean
clean: ## Remove what was built
	rm -rf $(BIN) .cache
