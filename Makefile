# SPDX-License-Identifier: Apache-2.0
# Bare `make` lists the targets.

GO       ?= go
CAPTURE  := testdata/smollm2-sqlite-1k.safetensors
STATIC   := honnef.co/go/tools/cmd/staticcheck@v0.8.2
QEMU     := $(shell command -v qemu-aarch64-static)
# Packages that compare whole files with recorded ones, byte for byte. Builds that differ only in
# arithmetic run these tests instead of all tests of the package.
GOLDENS  := ./engine/kvfile
# The race run has all tests of the packages that use goroutines. Of those below, whose tests are many and
# long, it has the tests whose names say that they are about goroutines. Those of engine/kvfile run all that
# engine/internal/archive and engine/tune start. Tests of numbers are left out.
RACE_NAMED := ./cpu/matmul ./engine/capture ./engine/kvfile ./engine/model ./engine/profile
RACES    := Concurrent|Workers|Parallel
NO_RACE  := EveryLength|RecallOf|OddScales
# lint vets everything once.
FLAGS    := -timeout 15m -vet=off
# What kernels compute, which is the same with and without cgo: the other tests call the library in every way.
NO_NOCGO := TestTensorCores|Suite/(encode|decode|demote|attend|attend-mixed|attend-planes|relevance|gather)$$
# What people install and import. The tools of bench are vetted, not linked for each build.
BUILT    := ./cmd/... ./cpu/... ./cuda/... ./engine/... ./importance ./kernels/... ./quant/...
RACE_ALL  = $(addprefix ./,$(sort $(shell git grep -lE 'go func|wg\.Go|\bsync\.|\batomic\.|unsafe\.' -- 'engine/*.go' 'cpu/*.go' ':!engine/vectors/chromem' | xargs -n1 dirname)))
FUZZ     ?= 4000x
# llama.cpp, as bench/modelspeed/llamacpp.py builds it.
LLAMACPP := build/llamacpp
# Names what must not be skipped: model, avx2, avx512, emu (comma-separated).
export KVIST_REQUIRE
# Properties are checked on the same random inputs every time; make explore draws others. Under qemu and the
# race detector they are checked on fewer.
export RAPID_SEED ?= 1
CHECKS   ?= 2000
SOAK     ?= 30m

.DEFAULT_GOAL := help
.PHONY: $(shell sed -n 's/^\([a-z0-9-]*\):.*/\1/p' $(MAKEFILE_LIST))

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: ## fetch modules and the test model
	@$(GO) mod download
	@$(MAKE) --no-print-directory model

model: ## fetch SmolLM2-135M for the tests and the evaluation; idempotent, hash-checked
	@sh engine/model/fetch-model.sh

model-gemma: ## fetch Gemma 3 270M (terms of Gemma) for make test-models and the evaluation; idempotent, hash-checked
	@sh engine/model/fetch-gemma.sh

test-models: model model-gemma ## the tests with real models, none skipped
	KVIST_REQUIRE=model,gemma $(GO) test $(FLAGS) ./engine/model ./engine/runner

model-fixtures: model-gemma ## make testdata of engine/model anew with transformers, tokenizers, sentencepiece (fetched by pip, 6 GB)
	cd engine/model/testdata && python=$$(sh ../python.sh) && "$$python" make_models.py && "$$python" make_tokens.py && \
	  "$$python" make_gemma.py "$$(sh ../fetch-gemma.sh)"

check-llama: model ## hold the tiny models of engine/model against llama.cpp, which is built first (15 minutes)
	python3 bench/modelspeed/llamacpp.py build $(LLAMACPP) "$$(sh engine/model/fetch-model.sh)"
	@if [ -f $(LLAMACPP)/flags.txt ]; then $(LLAMACPP)/bin/python engine/model/testdata/check_llama.py; else echo "skipped: llama.cpp could not be built here"; fi

llama-states: model ## make testdata of engine/llamastate anew with llama.cpp (built first: 15 minutes)
	python3 bench/modelspeed/llamacpp.py build $(LLAMACPP) "$$(sh engine/model/fetch-model.sh)"
	$(LLAMACPP)/bin/python -m pip install --quiet --disable-pip-version-check gguf==0.17.1
	$(LLAMACPP)/bin/python engine/llamastate/testdata/make_states.py

check-llama-state: model model-gemma ## states of llama.cpp through kvist and back beside its q8_0 and q4_0 caches; llama.cpp is built first (15 minutes); writes bench/results/llama-state.md
	@mkdir -p build
	$(GO) build -o build/kvist ./cmd/kvist
	python3 bench/modelspeed/llamacpp.py build $(LLAMACPP) "$$(sh engine/model/fetch-model.sh)"
	@if [ -f $(LLAMACPP)/flags.txt ]; then $(LLAMACPP)/bin/python bench/llamastate/check.py --kvist build/kvist --page bench/results/llama-state.md \
	  "$$(sh engine/model/fetch-model.sh)" "$$(sh engine/model/fetch-gemma.sh)"; else echo "skipped: llama.cpp could not be built here"; fi

check-openai: model ## hold kvist serve against the official OpenAI clients for Go and Python (fetched); 8 clients of 20 turns
	sh cmd/kvist/internal/serve/testdata/clients/check.sh

serve-load: model ## load kvist serve on loopback with and without compression: 1, 4 and 16 clients (5 minutes)
	@mkdir -p bin
	@$(GO) build -o bin/kvist ./cmd/kvist
	$(GO) run ./bench/serveload -kvist bin/kvist

demo: ## compress the capture in testdata, verify it, write demo.html
	@mkdir -p bin
	@$(GO) build -o bin/kvist ./cmd/kvist
	bin/kvist compress $(CAPTURE) -o demo.kvist --form hot --bits 2.75 --force
	bin/kvist verify demo.kvist --against $(CAPTURE)
	bin/kvist report demo.kvist --against $(CAPTURE) --why -o demo.html --force
	@echo "open demo.html in a browser"

quick: ## gofmt, vet and the unit tests, without the model and the scripts of the command: the inner loop
	@$(MAKE) --no-print-directory fmt-check
	$(GO) vet ./...
	KVIST_MODEL=none KVIST_REQUIRE= $(GO) test -short -vet=off -skip '^TestScripts' ./...

test: setup lint test-nocgo test-noasm test-v3 test-arm64 test-race fuzz-smoke check-chromem check-stores test-main ## all that follows, the whole suite last

test-main: ## the whole suite, once
	$(GO) test $(FLAGS) ./...

test-nocgo: ## without cgo: all of it builds, and the code that loads a library runs
	CGO_ENABLED=0 $(GO) build $(BUILT)
	CGO_ENABLED=0 $(GO) test $(FLAGS) -short -skip '$(NO_NOCGO)' ./cuda/... ./engine/auto

test-noasm: ## without assembly
	$(GO) test $(FLAGS) -short -tags noasm ./cpu/... ./engine/internal/archive/...
	@$(GO) test -tags noasm -list Golden $(GOLDENS) | grep -q '^Test' || { echo "no goldens in $(GOLDENS)"; exit 1; }
	$(GO) test $(FLAGS) -tags noasm -run Golden $(GOLDENS)

# arm64 fuses products and sums as v3 does, which runs eight times as fast. So the tests of numbers run here.
test-v3: ## with GOAMD64=v3, where a compiler may fuse products and sums
	GOAMD64=v3 $(GO) test $(FLAGS) -short ./quant/... ./cpu/... ./engine/internal/... ./importance
	@GOAMD64=v3 $(GO) test -list Golden $(GOLDENS) | grep -q '^Test' || { echo "no goldens in $(GOLDENS)"; exit 1; }
	GOAMD64=v3 $(GO) test $(FLAGS) -run Golden $(GOLDENS)

test-arm64: ## cross-build for arm64; run what makes packed bytes under qemu where there is one
	GOARCH=arm64 CGO_ENABLED=0 $(GO) build $(BUILT)
	GOARCH=arm64 CGO_ENABLED=0 $(GO) vet ./...
ifneq ($(QEMU),)
	RAPID_CHECKS=30 GOARCH=arm64 CGO_ENABLED=0 $(GO) test $(FLAGS) -short -skip 'Allocates|Resident|RecallOf|_Parts' -exec $(QEMU) \
	  ./quant/... ./cpu ./cpu/internal/... ./engine/internal/archive/... ./engine/internal/half
	GOARCH=arm64 CGO_ENABLED=0 $(GO) test $(FLAGS) -run Golden -exec $(QEMU) ./engine/container $(GOLDENS)
else
	@echo "qemu-aarch64-static not found: arm64 was built and vetted, not run"
endif

test-race: ## race detector, short, in the packages that start goroutines or share memory
	RAPID_CHECKS=30 $(GO) test $(FLAGS) -short -race -skip '$(NO_RACE)' $(filter-out $(RACE_NAMED) ./engine/internal/archive,$(RACE_ALL))
	@for p in $(RACE_NAMED); do grep -qE '^func Test[A-Za-z0-9_]*($(RACES))' $$p/*_test.go || { echo "no test of $$p is named $(RACES)"; exit 1; }; done
	$(GO) test $(FLAGS) -short -race -run '$(RACES)' $(RACE_NAMED)

SLOW ?= ./...
slow-tests: ## the 30 tests that take longest, in seconds; SLOW=./engine/kvfile: of one package
	@$(GO) test -count 1 -p 1 -vet=off -json $(SLOW) | \
	  sed -n 's/.*"Action":"pass","Package":"[^"]*kvist\/\([^"]*\)","Test":"\([^"\/]*\)","Elapsed":\([0-9.]*\).*/\3\t\1\t\2/p' | \
	  sort -rn | head -30

# What vet and staticcheck do not say: files that gofmt would change.
fmt-check:
	@files="$$(gofmt -l $$(git ls-files '*.go'))"; test -z "$$files" || { echo "gofmt: $$files"; exit 1; }

lint: fmt-check ## gofmt, vet, staticcheck
	$(GO) vet ./...
	$(GO) run $(STATIC) ./...

bench: ## Go benchmarks of every package
	$(GO) test -run '^$$' -bench . -benchtime 200ms ./...

model-speed: model model-gemma ## speed of the model runner beside llama.cpp, which is built first (15 minutes); writes bench/results/model-speed.md
	@mkdir -p build
	$(GO) build -o build/modelspeed ./bench/modelspeed
	python3 bench/modelspeed/llamacpp.py build $(LLAMACPP) "$$(sh engine/model/fetch-model.sh)"
	python3 bench/modelspeed/llamacpp.py run --ours build/modelspeed --venv $(LLAMACPP) --page bench/results/model-speed.md \
	  "$$(sh engine/model/fetch-model.sh)" "$$(sh engine/model/fetch-gemma.sh)"

MACHINE ?= xeon-avx512-2-cores
bench-machine: ## what kvist bench measures here, in three rounds (some minutes on a quiet machine); writes bench/results/machines/$(MACHINE).json and the tables
	@mkdir -p build bench/results/machines
	$(GO) build -o build/kvist ./cmd/kvist
	build/kvist bench -o bench/results/machines/$(MACHINE).json --force
	$(MAKE) --no-print-directory tables

COMPARED ?= 10
COMPARE_SET ?= 0
bench-compare-check: ## kvist bench --compare on real runs: quiet between equal ones, finds a slow-down of 10 % (COMPARED=10 pairs each, minutes on a quiet machine; COMPARE_SET=4: MiB, in cache)
	$(GO) test -run '^TestCompare_RealRuns' -v -timeout 120m ./bench/perf -repetitions $(COMPARED) -compare-set $(COMPARE_SET) | \
	  grep -E 'pair|quiet between|^(---|ok|FAIL)' | sed 's/^ *compare_test.go:[0-9]*: //' > bench/results/bench-compare.txt
	@grep -q '^ok' bench/results/bench-compare.txt

bench-cpu: ## the speed of the cpu backend, in cache, for each instruction set (minutes); writes bench/results/cpu*
	$(GO) test -run '^$$' -bench 'Hadamard|Codec' -benchtime 50ms -count 5 ./cpu > bench/results/cpu-codec.txt
	$(GO) test -run '^$$' -bench 'Attend$$' -benchtime 20ms -count 5 ./cpu > bench/results/cpu-attend.txt
	$(GO) test -run '^$$' -bench 'AttendRatio' -benchtime 700ms -count 3 ./cpu > bench/results/cpu-ratio.txt
	$(GO) run ./bench/cputable -asm cpu/internal/attend/attend_amd64.s -page bench/README.md bench/results/cpu-*.txt > bench/results/cpu.md

bench-buffers: ## resident memory of the cpu backend's buffers after 1.5 million allocations and frees (minutes)
	$(GO) test -run Buffers_Resident -v -timeout 60m ./cpu -churn 1500000 | grep -E 'live|^(---|ok)' > bench/results/buffers.txt

bench-serving: ## speed of the serving cache beside f16, host overhead, steps while segments close (3 GB, minutes); writes bench/results/serving-speed.txt
	@sed -i '/^#/!d' bench/results/serving-speed.txt
	$(GO) test -run '^$$' -bench Serving -benchtime 1x -timeout 60m ./engine >> bench/results/serving-speed.txt

bench-contract: ## what tables, masses, means, metrics and offsets cost, as ratios in one run (minutes); writes bench/results/contract.txt
	$(GO) test -run '^$$' -bench Contract -benchtime 300x ./cpu > bench/results/contract.txt

SPEED := bench/results/archive-speed
bench-archive: model ## speed of compression: archives (the codec, the verbs, memory) and hot form, on one core and on all; writes bench/results/*-speed*
	@rm -rf build/archive && mkdir -p build/archive
	$(GO) build -o build/archive/kvist ./cmd/kvist
	build/archive/kvist capture smollm2 bench/quality/texts/calib-recipes.txt -o build/archive/capture.safetensors
	$(GO) test ./engine/internal/archive -run '^$$' -bench 'code|Loss' -cpu 1 -benchtime 80x -count 5 > $(SPEED).txt
	$(GO) test -c -o build/archive/kvfile.test ./engine/kvfile
	@cd engine/kvfile && for n in 1 0; do GOMAXPROCS=$$n ../../build/archive/kvfile.test -test.run '^$$' -test.bench Hot \
	  -test.benchtime 2x -test.count 3 -capture ../../build/archive/capture.safetensors; done > ../../bench/results/hot-speed.txt
	$(GO) run ./bench/archivetable -kvist build/archive/kvist -capture build/archive/capture.safetensors \
	  -profile testdata/smollm2.kvprofile $(SPEED).txt > $(SPEED).md
	@rm -rf build/archive

vectors-data: ## make the 60,000 embeddings that the index is measured on (half an hour, once)
	@sh bench/embeddings/fetch.sh

bench-vectors: ## the index of embeddings beside faiss and turbovec in one run (minutes); prints the table of bench/results/vectors.md
	@mkdir -p build
	$(GO) build -o build/embeddings ./bench/embeddings
	env=$$(sh bench/embeddings/fetch.sh) && "$$env/bin/python" bench/embeddings/compare.py build/embeddings "$$env/wordnet"

bench-tokens: model-gemma ## the index on 100,000 token vectors, calibrated on one kind of text and asked with another (minutes); prints the tables of bench/results/vectors.md
	@rm -rf build/tokens && mkdir -p build/tokens
	$(GO) build -o build/kvist ./cmd/kvist
	$(GO) run ./bench/embeddings/tokens "$$(sh engine/model/fetch-gemma.sh)" build/tokens
	@cd build/tokens && for q in latin other; do for c in base latin; do echo "calibrated on $$c, queries $$q"; \
	  ../kvist embed eval base.npy --queries $$q-queries.npy --calibrate-on $$c.npy --metric cosine --bytes 83,163,243,323 --sample 2000; done; done

check-chromem: ## the tests of the module that searches collections of chromem-go by kvist's index
	cd engine/vectors/chromem && $(GO) vet . && $(GO) test .

check-yzma: model ## a conversation of llama.cpp, run by yzma, is parked at 2 bits and goes on; llama.cpp is built first (15 minutes)
	python3 bench/modelspeed/llamacpp.py build $(LLAMACPP) "$$(sh engine/model/fetch-model.sh)"
	cd engine/llamastate/yzma && $(GO) vet . && \
	  KVIST_LLAMA=$$(ls -d $(CURDIR)/$(LLAMACPP)/lib/python3*/site-packages/llama_cpp/lib 2>/dev/null) $(GO) test -count 1 -v .

check-deploy: ## the binary of the Dockerfile, built as it is there: static, of the size that the page says, in an empty root folder
	KVIST_REQUIRE=deploy $(GO) test -count 1 -v ./cmd/kvist -run Deploy

check-stores: ## stores beyond the machine against their servers, with faults between (S3, Redis or Valkey where it is installed, NATS)
	cd cmd/kvist/stores/check && $(GO) vet . && $(GO) test -short -parallel 32 .

bench-stores: ## megabytes a second and the times of calls of every store on loopback (minutes); writes bench/results/stores.md
	cd cmd/kvist/stores/check && $(GO) test -count 1 -timeout 30m -run '^TestBench' . -page $(CURDIR)/bench/results/stores.md

check-stores-model: model ## 1,024 tokens of SmolLM2 computed by one process and attended by another, over Redis and S3 (minutes)
	cd cmd/kvist/stores/check && KVIST_REQUIRE=model $(GO) test -count 1 -timeout 40m -v -run Prefix_Model .

fuzz-smoke: ## every fuzzer of a reader for a fixed number of inputs (FUZZ=20000x, or a time)
	@for f in container:FuzzReader container:FuzzReaderRepaired capture:FuzzSafetensors capture:FuzzNpy \
	  capture:FuzzNpz capture:FuzzGGUF gguf:FuzzRead llamastate:FuzzOpen llamastate:FuzzRestore \
	  model:FuzzGGUF model:FuzzTokenizer model:FuzzSPM kvfile:FuzzParseConfig profile:FuzzProfile profile:FuzzParams .:FuzzParseSaved vectors:FuzzRead store/packed:FuzzUnpack; do \
	  $(GO) test -run '^$$' -fuzz "^$${f#*:}$$" -fuzztime $(FUZZ) ./engine/$${f%:*} || exit 1; done
	@for f in FuzzDecode FuzzParams; do \
	  $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZ) ./engine/internal/archive || exit 1; done
	$(GO) test -run '^$$' -fuzz '^FuzzDecode$$' -fuzztime $(FUZZ) ./quant
	$(GO) test -run '^$$' -fuzz '^FuzzReadRecord$$' -fuzztime $(FUZZ) -fuzzminimizetime 1x ./bench/perf
	$(GO) test -run '^$$' -fuzz '^FuzzEncode$$' -fuzztime $(FUZZ) ./cpu/internal/codec
	$(GO) test -run '^$$' -fuzz '^FuzzMatrix$$' -fuzztime $(FUZZ:4000x=1000x) ./cpu/matmul

attack: ## 9,000 forged files and 600 damaged ones through every verb that reads, in 512 MiB (make test: 500)
	$(GO) test $(FLAGS) ./cmd/kvist -run '^TestAttack' -v -forged 9000 -damaged 600

soak: ## 64 conversations under the race detector while the store fails and crashes, for half an hour (SOAK=30m)
	$(GO) test ./engine -race -count 1 -run '^TestSoak' -v -timeout 0 -soak $(SOAK)

explore: ## the property tests on new random inputs (CHECKS=2000 of each)
	RAPID_SEED=0 RAPID_CHECKS=$(CHECKS) $(GO) test -count 1 -timeout 60m \
	  -run "^($$(git grep -h -B9 'rapid\.Check(' -- '*_test.go' | sed -n 's/^func \(Test[A-Za-z0-9_]*\)(.*/\1/p' | paste -sd'|'))$$" \
	  $$(git grep -l 'rapid\.Check(' -- '*_test.go' | xargs -n1 dirname | sort -u | sed 's,^,./,')

golden: ## rewrite the annotated dumps and FORMAT.md; existing goldens stay as they are
	$(GO) test ./engine/container -update

# What quality is measured with: eight texts, and the profiles made of the test model from the calibration
# texts by kvist calibrate and kvist tune.
PROFILE := profile=testdata/smollm2.kvprofile
TUNED   := profile=bench/quality/smollm2.kvprofile
TEXTS   := $(patsubst %,bench/quality/texts/eval-%.txt,narrative dialogue manual essay list gosource python meeting)
EVAL    := $(GO) run ./cmd/kvist eval smollm2 --results bench/results
, := ,
# What tokens are weighed by: nothing, what the product does, what was tuned, chance, recency, attention of
# all queries alike, and each signal alone.
ALONE    := relevance=0;decay=0.3 mix=1;half-life=0 relevance=0;expected=0.5 relevance=0;surprise=0.5 \
  relevance=0;habituation=0.5 relevance=0;value-norm=0.5
weighed   = kvist:$1$(,)importance=none kvist:$1 kvist:$1$(,)$(TUNED) kvist:$1$(,)weights=random \
  $(foreach w,$(ALONE),kvist:$1$(,)importance=default;$w)
UNIFORM  := lm4+len+s8:sinks=4 lm3+len+s8:sinks=4 uniform:k=lm3+len+s8$(,)v=lm2+len+s8$(,)sinks=4 \
  lm2+len+s8:sinks=4 uniform:k=lm2+len+s8$(,)v=lm1+len+s8$(,)sinks=4

# Archives that carry bases of their own.
OWN      := kvist-archive:4 kvist-archive:2 kvist-archive:1.5 kvist-archive:1.05
ASKED    := tqmse4 tqmse4:sinks=4 tqmse3 tqmse3:sinks=4 tqmse2 kivi4 kivi2 snapkv:50% \
  kvist:4.25 kvist:3 kvist:2.75 kvist:2.75$(,)importance=none kvist:2.25 kvist:2.15 kvist:1.5

# Texts of 4,352 tokens and more, each of three that are there.
LONG := prose:narrative+dialogue+essay work:manual+list+meeting code:gosource+python+encyclopedia

quality: model ## quality in a real model: standard table, retrieval, ablation, decoding, long contexts; writes bench/results
	$(EVAL) $(TEXTS) --methods "standard kvist:2.15 kvist:1.75 \
	  $(foreach b,4 3 2 1.8 1.5 1.05 0.75 0.5,kvist-archive:$b$(,)$(PROFILE)) $(OWN)"
	$(EVAL) bench/quality/texts/eval-news.txt --name retrieval --needles 96 --methods "$(ASKED) \
	  $(foreach b,2 1.5 1.05,kvist-archive:$b$(,)$(PROFILE)) kvist-archive:2 kvist-archive:1.05"
	$(EVAL) --name retrieval-texts --needles 96 --methods "tqmse4 tqmse3 tqmse2 kivi2 snapkv:50%"
	$(EVAL) $(TEXTS) --name ablation --methods "$(UNIFORM) $(foreach b,4.25 3 2.75 2.25 2 1.5,$(call weighed,$b))"
	$(EVAL) bench/quality/texts/eval-news.txt --name ablation-retrieval --needles 96 --methods \
	  "tqmse4 tqmse3 $(word 3,$(UNIFORM)) $(word 4,$(UNIFORM)) $(foreach b,2.75 2.25 1.5 2 3 4.25,$(call weighed,$b))"
	$(EVAL) $(foreach t,narrative dialogue gosource meeting,bench/quality/texts/eval-$t.txt) --name decoding --decode --methods \
	  "f16 kivi4 tqmse4:sinks=4 tqmse3:sinks=4 lm3+len+s8:sinks=4 kvist:4.25 kvist:3.25 $(foreach b,2.75 2.25,kvist:$b kvist:$b$(,)levels=full)"
	@mkdir -p build/long
	@cd bench/quality/texts && for t in $(LONG); do \
	  (IFS=+; for p in $${t#*:}; do cat eval-$$p.txt; done) > ../../../build/long/$${t%%:*}.txt; done
	$(EVAL) $(foreach t,$(LONG),build/long/$(firstword $(subst :, ,$t)).txt) --name context-4096 --context 4096 --methods \
	  "kivi4 kivi2 tqmse4 tqmse4:sinks=4 tqmse3 tqmse3:sinks=4 snapkv:50% $(word 3,$(UNIFORM)) \
	  $(foreach b,4.25 3 2.75 2.25 2 1.5,kvist:$b) $(foreach b,2 1.5 1.05 0.5,kvist-archive:$b$(,)$(PROFILE))"
	$(EVAL) build/long/prose.txt --name retrieval-4096 --context 4096 --needles 96 --methods \
	  "tqmse4 tqmse3 snapkv:50% kvist:2.75 kvist:2.25 kvist:1.5 kvist-archive:1.05$(,)$(PROFILE)"
	$(MAKE) --no-print-directory tables

# The second model. Methods get the rows that a later query can see.
quality-gemma: model-gemma ## the quality table in Gemma 3 270M; writes bench/results/gemma.* and the tables
	$(GO) run ./cmd/kvist eval gemma --results bench/results $(TEXTS) --name gemma --methods "ggml-q8_0 ggml-q4_0 kivi4 kivi2 \
	  tqmse4 tqmse4:sinks=4 tqmse3 tqmse3:sinks=4 tqmse2 tqmse2:sinks=4 snapkv:50% snapkv:12.5% sinks-recent:25% \
	  $(word 3,$(UNIFORM)) $(foreach b,5 4.25 3 2.25 1.5,kvist:$b)"
	$(MAKE) --no-print-directory tables

tables: ## redraw the tables and the picture of the READMEs from bench/results; measures nothing
	$(GO) run ./bench/modeltable

FIXTURES := build/gguf-venv
gguf-fixtures: ## write engine/gguf/testdata again with the Python package gguf, in an environment of its own
	@test -x $(FIXTURES)/bin/python || python3 -m venv $(FIXTURES)
	$(FIXTURES)/bin/python -m pip install --quiet --disable-pip-version-check gguf==0.19.0 numpy==2.4.6
	$(FIXTURES)/bin/python engine/gguf/testdata/make.py engine/gguf/testdata

tidy-check: ## go.mod and go.sum are tidy
	$(GO) mod tidy -diff

ptx: ## compile kernels/src to PTX with a pinned compiler, fetched by pip; the only writer of kernels/ptx
	python3 kernels/ptx.py build

check-ptx: ## compile again, compare, and assemble for sm_75..sm_120 with an old and a new ptxas
	python3 kernels/ptx.py check
	python3 kernels/ptx.py report bench/results/cuda-ptx.md
	python3 kernels/ptx.py roofline bench/results/cuda-roofline.md

check-gorgonia: ## compile the interop with gorgonia.org/cu against CUDA headers, fetched by pip
	bash cuda/gorgoniacu/check.sh

BUNDLE := build/gpu-bundle
gpu-bundle: ## one folder that runs tests and benchmarks on a machine with a GPU, without Go or network
	@rm -rf $(BUNDLE) && mkdir -p $(BUNDLE)
	CGO_ENABLED=0 GOOS=linux GOARCH=amd64 $(GO) build -trimpath -ldflags '-s -w' -o $(BUNDLE)/kvist ./cmd/kvist
	CGO_ENABLED=0 GOOS=linux GOARCH=amd64 $(GO) test -c -trimpath -ldflags '-s -w' -o $(BUNDLE)/cuda.test ./cuda
	@cp bench/gpu/run.sh bench/gpu/torch_attention.py $(BUNDLE)/
	@cp $(CAPTURE) $(BUNDLE)/capture.safetensors
	@git describe --always --dirty > $(BUNDLE)/commit.txt
	@test $$(du -sm $(BUNDLE) | cut -f1) -lt 60 || { echo "$(BUNDLE) is 60 MiB or more"; exit 1; }
	@du -sh $(BUNDLE)

clean: ## remove what the targets made
	rm -rf bin build demo.kvist demo.html
