# fhtool and libflashhead.  `make list` says what there is to make; V=1 shows the commands.

ifeq ($(origin CC),default)
CC := gcc
endif
ifeq ($(origin CXX),default)
CXX := $(if $(findstring clang,$(CC)),clang++,g++)
endif
PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
BINDIR ?= $(PREFIX)/bin
CFLAGS ?= -O2 -g
CXXFLAGS ?= -O2 -g
WERROR ?= -Werror
SECONDS ?= 30
FUZZ_CC ?= clang
JOBS ?= $(shell nproc)
FH_SHARED ?= ../shared
# libfhcuda.so is built where nvcc is; fhtool opens it at run time, and is the same with and without.  CUDA=0: not built.
NVCC ?= $(or $(shell command -v nvcc),$(wildcard /usr/local/cuda/bin/nvcc))
CUDA ?= $(if $(NVCC),1,0)

VERSION := $(shell sed -n 's/^\#define FLASHHEAD_VERSION "\(.*\)"/\1/p' runtime/flashhead.h)
SOVERSION := 0

# ---- sources -----------------------------------------------------------------------------------------------

MODULES := base format quant cluster runtime calib validate artifacts cmd
SRC := $(sort $(wildcard $(MODULES:%=%/*.c)))
SRC_CXX := $(sort $(wildcard cluster/*.cpp))
MAIN := cmd/main.c
# What libflashhead is made of: the head and what it stands on, without OpenBLAS.
LIB_SRC := $(sort $(filter-out base/gemm.c,$(wildcard base/*.c)) $(wildcard format/dtype*.c format/json*.c format/fhead*.c) \
             $(wildcard runtime/head*.c runtime/kernels*.c runtime/sample.c))
UNIT := $(sort $(patsubst tests/unit/%.c,%,$(wildcard tests/unit/test_*.c)))
FUZZ := $(sort $(patsubst tests/fuzz/%.c,%,$(wildcard tests/fuzz/fuzz_*.c)))
TEST_SRC := $(UNIT:%=tests/unit/%.c) $(FUZZ:%=tests/fuzz/%.c) tests/fuzz/replay_main.c

# ---- flags -------------------------------------------------------------------------------------------------

FH_WARN := -Wall -Wextra -Wpedantic -Wshadow -Wvla -Wwrite-strings -Wpointer-arith -Wno-unused-parameter $(WERROR)
FH_WARN_C := -Wstrict-prototypes -Wmissing-prototypes
FH_CPP = -D_GNU_SOURCE -I. $(if $(FAISS_C),-DFH_HAVE_FAISS_C) $(if $(CURL_LIBS),-DFH_HAVE_CURL) $(if $(SODIUM_LIBS),-DFH_HAVE_SODIUM) $(CPPFLAGS)
FH_C := -std=c11 -ffp-contract=off $(FH_WARN) $(FH_WARN_C)
FH_CXX := -std=c++17 -ffp-contract=off $(FH_WARN)
FH_LIBS = $(FAISS_LIBS) $(CURL_LIBS) $(SODIUM_LIBS) -lopenblas -lzstd -lcjson -lpcre2-8 -lutf8proc -lstdc++ -lm -lpthread
# Optimised differently, a compiler sees other `maybes`: warnings are errors in the release alone.
SAN := -O1 -g -DFH_FAULTS -fno-omit-frame-pointer -fno-sanitize-recover=all -Wno-error
COMMA := ,

Q := $(if $(V),,@)
say = $(if $(V),,@printf '  %-5s %s\n' '$(1)' '$(2)')

.DEFAULT_GOAL := all
.SUFFIXES:
.DELETE_ON_ERROR:
.PHONY: FORCE
FORCE:

# ---- dependencies ------------------------------------------------------------------------------------------

# What .ci/probe found stays in $(CONFIG), which make reads back; while something needed is missing there is no such file.
CONFIG := build/config-$(notdir $(firstword $(CC))).mk
WITHOUT_CONFIG := list help deps deps-dry-run cross-deps clean demo
ifneq ($(filter-out $(WITHOUT_CONFIG),$(or $(MAKECMDGOALS),all)),)
include $(CONFIG)
endif
$(CONFIG): .ci/probe
	@mkdir -p build
	@CC='$(CC)' CPPFLAGS='$(CPPFLAGS)' LDFLAGS='$(LDFLAGS)' .ci/probe $@

# ---- variants ----------------------------------------------------------------------------------------------

# A tree each: release (build), faults (every allocation and write can be made to fail), asan, tsan, fuzz, cross (AArch64).
# $(call variant,NAME,TREE,CC,CXX,FLAGS) makes rules for TREE/obj, TREE/libparts.a (all but main), TREE/fhtool, TREE/tests, TREE/fuzz.
CUDA_SRC := $(sort $(wildcard runtime/cuda/*.cu))
emulation = $(patsubst %.cu,$(1)/obj/%.emu.o,$(CUDA_SRC)) $(1)/obj/tests/emu/emu.o
objects = $(patsubst %,$(1)/obj/%.o,$(basename $(2)))
# Rewrites the target only where its TEXT changes, so that what depends on it is made again only then.
keep = @mkdir -p $(@D); printf '%s\n' '$(TEXT)' | cmp -s - $@ || printf '%s\n' '$(TEXT)' > $@

# The AArch64 root has no libcurl and libsodium: what is tested there is the head.
libs = $(if $(filter cross,$(1)),$(filter-out $(CURL_LIBS) $(SODIUM_LIBS),$(FH_LIBS)),$(FH_LIBS))

# Fibers come and go by the million: address sanitizer's second stack for each, which finds the use of locals after a return, takes nine tenths of the time.
EMU_asan := $(if $(findstring clang,$(CXX)),-fsanitize-address-use-after-return=never,--param asan-use-after-return=0)

define variant
$(2)/flags: TEXT := $(3) $(4) $(FH_CPP) $(FH_C) $(FH_CXX) $(5) $(LDFLAGS) $(call libs,$(1))
$(2)/sources: TEXT := $(SRC) $(SRC_CXX)
$(2)/flags $(2)/sources: FORCE
	$$(keep)
$(2)/obj/%.o: %.c $(2)/flags
	$$(call say,CC,$$@)
	$(Q)mkdir -p $$(@D) && $(3) $(FH_CPP) $(FH_C) $(5) $$(PIC) -MMD -MP -c $$< -o $$@
$(2)/obj/%.o: %.cpp $(2)/flags
	$$(call say,CXX,$$@)
	$(Q)mkdir -p $$(@D) && $(4) $(FH_CPP) $(FH_CXX) $(5) $$(PIC) -MMD -MP -c $$< -o $$@
$(2)/libparts.a: $(call objects,$(2),$(filter-out $(MAIN),$(SRC)) $(SRC_CXX)) $(2)/sources
	$$(call say,AR,$$@)
	$(Q)rm -f $$@ && ar rcs $$@ $$(filter %.o,$$^)
$(2)/fhtool: $(call objects,$(2),$(MAIN)) $(2)/libparts.a
	$$(call say,LINK,$$@)
	$(Q)$(3) $(5) $(LDFLAGS) -o $$@ $$^ $(call libs,$(1))
$(2)/tests/%: $(2)/obj/tests/unit/%.o $(2)/libparts.a
	$$(call say,LINK,$$@)
	$(Q)mkdir -p $$(@D) && $(3) $(5) $(LDFLAGS) -o $$@ $$^ -lcmocka $(call libs,$(1))
# The sources of runtime/cuda, by the host's compiler, on a device that tests/emu emulates: in a test program, and as fhtool opens it.
$(2)/obj/%.emu.o: %.cu $(2)/flags
	$$(call say,EMU,$$@)
	$(Q)mkdir -p $$(@D) && $(4) $(FH_CPP) $(FH_CXX) $(5) $(EMU_$(1)) -fPIC -DFH_EMULATED -DFH_CUDA_ARCHS='"the host emulation"' -MMD -MP -x c++ -c $$< -o $$@
$(patsubst %,$(2)/tests/%,$(filter test_cuda_%,$(UNIT))): $(call emulation,$(2))
$(2)/libfhemu.so: $(call emulation,$(2)) $(2)/obj/format/dtype.o
	$$(call say,LINK,$$@)
	$(Q)$(4) $(5) $(LDFLAGS) -shared -o $$@ $$^
$(2)/obj/tests/emu/emu.o: PIC := -fPIC $(EMU_$(1))
$(2)/fuzz/%: $(2)/obj/tests/fuzz/%.o $(2)/obj/tests/fuzz/replay_main.o $(2)/libparts.a
	$$(call say,LINK,$$@)
	$(Q)mkdir -p $$(@D) && $(3) $(5) $(LDFLAGS) -o $$@ $$^ $(call libs,$(1))
$(call objects,$(2),$(LIB_SRC)): PIC := -fPIC -fno-semantic-interposition
$(2)/obj/tests/fuzz/%.o: PIC := -Wno-missing-prototypes
.SECONDARY: $(call objects,$(2),$(TEST_SRC))
-include $(patsubst %.o,%.d,$(call objects,$(2),$(SRC) $(SRC_CXX) $(TEST_SRC)) $(call emulation,$(2)))
endef

$(eval $(call variant,release,build,$(CC),$(CXX),$(CFLAGS)))
$(eval $(call variant,faults,build/faults,$(CC),$(CXX),$(CFLAGS) -DFH_FAULTS))
$(eval $(call variant,asan,build/asan,$(CC),$(CXX),$(SAN) -fsanitize=address$(COMMA)undefined))
$(eval $(call variant,tsan,build/tsan,$(CC),$(CXX),$(SAN) -fsanitize=thread))
$(eval $(call variant,fuzz,build/fuzz,$(FUZZ_CC),$(FUZZ_CC)++,$(SAN) -fsanitize=fuzzer-no-link$(COMMA)address$(COMMA)undefined))

# AArch64: compiled against packages unpacked under $(CROSS_ROOT) and run by qemu, where `make cross-deps` has put them there.
CROSS := aarch64-linux-gnu
CROSS_ROOT := build/cross-root
CROSS_RUN := qemu-aarch64 -L $(CURDIR)/$(CROSS_ROOT)
$(eval $(call variant,cross,build/cross,$(CROSS)-gcc --sysroot=$(CROSS_ROOT),$(CROSS)-g++ --sysroot=$(CROSS_ROOT),$(CFLAGS) -UFH_HAVE_CURL -UFH_HAVE_SODIUM))
# Where an instruction set could show: everything of the head, and what decides stored bytes.
CROSS_UNIT ?= $(filter test_base_files test_base_hash test_base_pool test_dtype test_fhead test_quant test_cluster_dot test_cluster_int8 test_learn_math test_targets test_kernels test_body test_head% \
                test_sample test_rope,$(UNIT))
CROSS_LACKS := $(strip $(if $(shell command -v $(CROSS)-g++),,$(CROSS)-g++) $(if $(shell command -v qemu-aarch64),,qemu-aarch64) \
                 $(if $(wildcard $(CROSS_ROOT)/complete),,AArch64_libraries))
CROSS_TESTS := $(if $(CROSS_LACKS),,build/cross/fhtool $(CROSS_UNIT:%=build/cross/tests/%))

# ---- products ----------------------------------------------------------------------------------------------

LIBRARY := build/libflashhead.a build/libflashhead.so.$(SOVERSION) build/libflashhead.so build/flashhead.pc
CUDA_LIBRARY := $(if $(filter-out 0,$(CUDA)),build/libfhcuda.so)
all: build/fhtool $(LIBRARY) $(CUDA_LIBRARY) ## build/fhtool and the library; build/libfhcuda.so where nvcc is, unless CUDA=0

# Machine code for what the toolkit knows of these, and PTX of the newest for what comes later.  -fmad=false: sums are the CPU's, which contracts
# nothing either; where a product and a sum are meant as one it says fmaf.
CUDA_ARCHS ?= $(filter 80 86 89 90 100,$(if $(CUDA_LIBRARY),$(patsubst compute_%,%,$(shell $(NVCC) --list-gpu-arch))))
NVCC_FLAGS ?= -O3 -lineinfo
CUDA_FLAGS = -std=c++17 -D_GNU_SOURCE -I. $(NVCC_FLAGS) -fmad=false -cudart static -Werror all-warnings -Xcompiler -fPIC,-Wall,-Wextra,-Wno-unused-parameter \
             -DFH_CUDA_ARCHS='"$(CUDA_ARCHS:%=sm_%) and PTX"' $(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$a,code=sm_$a) \
             -gencode arch=compute_$(lastword $(CUDA_ARCHS)),code=compute_$(lastword $(CUDA_ARCHS))
build/cuda-flags: TEXT := $(NVCC) $(CUDA_FLAGS)
build/cuda-flags: FORCE
	$(keep)
build/obj/runtime/cuda/%.cu.o: runtime/cuda/%.cu build/cuda-flags
	$(call say,NVCC,$@)
	$(Q)mkdir -p $(@D) && $(NVCC) $(CUDA_FLAGS) --threads 2 -MMD -MP -MF $(@:.o=.d) -c $< -o $@
build/libfhcuda.so: $(CUDA_SRC:%=build/obj/%.o) build/obj/format/dtype.o
	$(call say,LINK,$@)
	$(Q)$(NVCC) -cudart static -shared -o $@ $^
-include $(CUDA_SRC:%=build/obj/%.d)
# What a machine with a GPU runs (tests/device/run.sh): a directory that needs nothing there but the driver.  The other one is for seeing that it works at all.
device-test: build/device/device-test build/device/fhtool ## build/device for tests/device/run.sh (needs nvcc)
build/device/fhtool: build/fhtool build/libfhcuda.so
	$(Q)mkdir -p $(@D)/lib && cp build/libfhcuda.so $(@D) && cp -L $$(ldd build/fhtool | sed -n 's/.* => \(.*\) (.*/\1/p' | grep -v '/lib\(c\|m\|dl\|rt\|pthread\)\.so') $(@D)/lib && cp $< $@
DEVICE_OBJ := build/obj/tests/device/device.o build/obj/tests/device/device_body.o
build/device/device-test: $(DEVICE_OBJ) $(CUDA_SRC:%=build/obj/%.o) build/libparts.a
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D) && cp -L "$$($(CC) -print-file-name=libcjson.so)" $(@D)/libcjson.so.1 && $(NVCC) -cudart static -o $@ $^ -Xlinker -rpath='$$ORIGIN:$$ORIGIN/lib' \
	  -Xlinker -Bstatic -lzstd -Xlinker -Bdynamic -lcjson -lopenblas -lm -lpthread -ldl
build/device-emulated: $(DEVICE_OBJ) $(call emulation,build) build/libparts.a
	$(call say,LINK,$@)
	$(Q)$(CXX) -o $@ $^ -lzstd -lcjson -lopenblas -lm -lpthread

build/lib-sources: TEXT := $(LIB_SRC)
build/lib-sources: FORCE
	$(keep)
build/libflashhead.a: $(call objects,build,$(LIB_SRC)) build/lib-sources
	$(call say,AR,$@)
	$(Q)rm -f $@ && ar rcs $@ $(filter %.o,$^)

# What the shared library shows is what flashhead.h declares, read from the header itself.
build/flashhead.map: runtime/flashhead.h
	@mkdir -p $(@D); { echo 'FLASHHEAD_$(SOVERSION) {'; echo 'global:'; \
	  $(CC) -E -P $< | grep -o '\bfh_[a-z0-9_]*(' | tr -d '(' | sort -u | sed 's/$$/;/'; echo 'local: *;'; echo '};'; } > $@
build/libflashhead.so.$(SOVERSION): $(call objects,build,$(LIB_SRC)) build/flashhead.map build/lib-sources
	$(call say,LINK,$@)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -shared -Wl,-soname,$(@F) -Wl,--version-script=build/flashhead.map -Wl,-z,defs -o $@ \
	  $(filter %.o,$^) -lzstd -lcjson -lm -lpthread
build/libflashhead.so: build/libflashhead.so.$(SOVERSION)
	@ln -sf $(<F) $@

PC = 'prefix=$(PREFIX)' 'libdir=$(LIBDIR)' 'includedir=$(INCLUDEDIR)' '' 'Name: flashhead' \
     'Description: FlashHead, a language-model head that scores a few clusters of tokens' 'Version: $(VERSION)' \
     'Cflags: -I$${includedir}' 'Libs: -L$${libdir} -lflashhead' 'Requires.private: libzstd libcjson' 'Libs.private: -lm -lpthread'
build/flashhead.pc: FORCE
	@mkdir -p $(@D); printf '%s\n' $(PC) | cmp -s - $@ || printf '%s\n' $(PC) > $@

install: all ## into $(DESTDIR)$(PREFIX): fhtool, the library, its header and pkg-config file
	install -d '$(DESTDIR)$(BINDIR)' '$(DESTDIR)$(LIBDIR)/pkgconfig' '$(DESTDIR)$(INCLUDEDIR)'
	install -m 755 build/fhtool '$(DESTDIR)$(BINDIR)/fhtool'
	install -m 644 build/libflashhead.a '$(DESTDIR)$(LIBDIR)/libflashhead.a'
	install -m 644 build/libflashhead.so.$(SOVERSION) '$(DESTDIR)$(LIBDIR)/libflashhead.so.$(VERSION)'
	ln -sf libflashhead.so.$(VERSION) '$(DESTDIR)$(LIBDIR)/libflashhead.so.$(SOVERSION)'
	ln -sf libflashhead.so.$(SOVERSION) '$(DESTDIR)$(LIBDIR)/libflashhead.so'
	$(if $(CUDA_LIBRARY),install -m 755 $(CUDA_LIBRARY) '$(DESTDIR)$(LIBDIR)/libfhcuda.so')
	install -m 644 runtime/flashhead.h '$(DESTDIR)$(INCLUDEDIR)/flashhead.h'
	install -m 644 build/flashhead.pc '$(DESTDIR)$(LIBDIR)/pkgconfig/flashhead.pc'

# ---- tests -------------------------------------------------------------------------------------------------

programs = $(if $(CMOCKA),$(UNIT:%=$(1)/tests/%)) $(FUZZ:%=$(1)/fuzz/%)
CROSS_ITEMS = cross $(filter build/cross/tests/%,$(CROSS_TESTS))
RUN = CROSS_LACKS='$(CROSS_LACKS)' CROSS_RUN='$(CROSS_RUN)' CC='$(CC)' CXX='$(CXX)' NUMPY='$(NUMPY)' CMOCKA='$(CMOCKA)' JOBS='$(JOBS)' FH_SHARED='$(FH_SHARED)' TOP='$(CURDIR)'
SAN_ENV = ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1:allocator_may_return_null=1 \
          UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=second_deadlock_stack=1:allocator_may_return_null=1
# What has threads of our own and no library between them that the sanitizer cannot see into.
TSAN_UNIT ?= $(filter test_base% test_head% test_pool%,$(UNIT))

check: all build/libfhemu.so build/faults/fhtool $(call programs,build/faults) $(CROSS_TESTS) ## unit tests, fuzz corpora, header, command line, Python checks; ends in "N passed, N failed, N skipped"
	@$(RUN) FHTOOL='$(CURDIR)/build/fhtool' tests/run_check.sh $(call programs,build/faults) header cli python \
	  $(CROSS_ITEMS)
asan: build/asan/fhtool build/asan/libfhemu.so $(call programs,build/asan) ## unit tests, fuzz corpora and command-line tests under ASan, UBSan and LSan
	@$(RUN) $(SAN_ENV) FH_SANITIZER=address FHTOOL='$(CURDIR)/build/asan/fhtool' tests/run_check.sh $(call programs,build/asan) cli
tsan: $(TSAN_UNIT:%=build/tsan/tests/%) ## thread pool and head tests under TSan
	@$(RUN) $(SAN_ENV) FH_SANITIZER=thread tests/run_check.sh $(TSAN_UNIT:%=build/tsan/tests/%)
cross: all $(CROSS_TESTS) ## build for AArch64 and run the tests of the head and of what decides stored bytes under qemu; `make check` does too
	@$(RUN) FHTOOL='$(CURDIR)/build/fhtool' tests/run_check.sh $(CROSS_ITEMS)
# One program alone: make build/faults/tests/test_base_text && build/faults/tests/test_base_text

build/fuzz/bin/%: build/fuzz/obj/tests/fuzz/%.o build/fuzz/libparts.a
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D) && $(FUZZ_CC) $(SAN) -fsanitize=fuzzer,address,undefined -fsanitize-link-c++-runtime $(LDFLAGS) -o $@ $^ $(FH_LIBS)
fuzz: $(FUZZ:%=build/fuzz/bin/%) ## libFuzzer (clang) on every fuzz target, SECONDS=30 each, from the corpora; finds in build/fuzz/NAME
	@failed=; for f in $(FUZZ:fuzz_%=%); do \
	  mkdir -p build/fuzz/corpus/$$f build/fuzz/$$f; [ -d tests/fuzz/corpus/$$f ] && seeds=tests/fuzz/corpus/$$f || seeds=; \
	  echo "fuzz_$$f: $(SECONDS) s"; \
	  build/fuzz/bin/fuzz_$$f -max_total_time=$(SECONDS) -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
	    -artifact_prefix=build/fuzz/$$f/ build/fuzz/corpus/$$f $$seeds > build/fuzz/$$f/log 2>&1 \
	    && grep -h -e number_of_executed_units -e average_exec_per_sec build/fuzz/$$f/log \
	    || { tail -n 40 build/fuzz/$$f/log; failed="$$failed $$f"; }; \
	done; [ -z "$$failed" ] || { echo "fuzz: failed:$$failed (inputs in build/fuzz/NAME)" >&2; exit 1; }

exact-draws: build/tests/test_exact ## a million exact draws of the demo model against its softmax (some ten minutes)
	@FH_DRAWS=1000000 FH_SHARED='$(FH_SHARED)' build/tests/test_exact 2>&1 | grep -e '^#' -e FAILED -e PASSED
bench: all ## every claim about speed beside its baseline, on this machine
	@sh tests/bench.sh
demo: ## install what is missing, build, and take a small real model from checkpoint to text
	@$(MAKE) --no-print-directory deps
	@$(MAKE) --no-print-directory all
	@sh demo/demo.sh

PACKAGES := gcc g++ make pkg-config libfaiss-dev libopenblas-dev libzstd-dev libcjson-dev libpcre2-dev libutf8proc-dev \
            libcurl4-openssl-dev libsodium-dev libcmocka-dev python3 python3-numpy
CROSS_PACKAGES := g++-$(CROSS) qemu-user

deps: ## install the Debian packages that are missing (as root or, said beforehand, through sudo); DRYRUN=1 only prints
	@missing=; for p in $(PACKAGES); do \
	  [ "$$(dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null)" = installed ] || missing="$$missing $$p"; done; \
	[ "$$missing" ] || { echo 'deps: nothing is missing'; exit 0; }; \
	command -v apt-get > /dev/null || { echo "deps: no apt-get here; install what Debian calls$$missing" >&2; exit 1; }; \
	root=; [ "$$(id -u)" = 0 ] || root='sudo '; \
	if [ '$(DRYRUN)' ]; then echo "deps: would run: $${root}apt-get update && $${root}apt-get install -y --no-install-recommends$$missing"; exit 0; fi; \
	if [ "$$root" ]; then \
	  command -v sudo > /dev/null || { echo "deps: run as root: apt-get install$$missing" >&2; exit 1; }; \
	  echo "deps: through sudo: apt-get update, apt-get install$$missing"; \
	fi; \
	export DEBIAN_FRONTEND=noninteractive; rm -f build/config-*.mk; \
	$${root}apt-get update -q && $${root}env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing
cross-deps: ## what `make cross` needs: a cross compiler and qemu, as `make deps` does it; AArch64 libraries go to build/ and are not installed
	@$(MAKE) --no-print-directory deps PACKAGES='$(CROSS_PACKAGES)'
	@.ci/arm64-root $(CROSS_ROOT)
deps-dry-run: ## what `make deps` would do
	@$(MAKE) --no-print-directory deps DRYRUN=1

clean: ## remove build/
	rm -rf build
list help: ## this list
	@awk -F':.* ## ' '/^[a-z -]+:.* ## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
.PHONY: device-test all check asan tsan cross fuzz exact-draws bench demo install deps cross-deps deps-dry-run list help clean
