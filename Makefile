# Pagestone | Makefile — `make demo` runs the main job, `make test` passes the tests; both from a bare clone.
# SPDX-License-Identifier: Apache-2.0

CC ?= gcc
OPT ?= -O2 -g
WARN = -Wall -Wextra
ifdef DEVELOPER
WARN += -Werror -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wundef -Wwrite-strings -Wformat=2
endif
BASE_CFLAGS = -std=gnu11 -fPIC -fvisibility=hidden -pthread -I. $(WARN) $(OPT) -MMD -MP
B ?= build
Q := $(if $(V),,@)
comma := ,
LAYERS ?= platform pages tree extents catalog txn tasks sync api
LIB_SRC := $(sort $(wildcard $(LAYERS:%=libshm/%/*.c)))
UNIT_SRC := $(sort $(wildcard tests/unit/test_*.c tests/mp/test_*.c tests/crash/test_*.c tests/fuse/test_*.c))

VENV ?= .venv
PY = $(VENV)/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: all lib demo test lint unit asan-test tsan-test valgrind-test bench clean
all: lib

# --- the two commands ---------------------------------------------------------------------------------------------------
demo:
	@tools/bootstrap.sh $(VENV) build demo
	@$(MAKE) --no-print-directory module
	@$(PY) examples/flights.py

test:
	@tools/bootstrap.sh $(VENV) build test
	@echo "building the test programs"
	@$(MAKE) --no-print-directory -j2 module testing-module unit-programs
	@$(PY) tools/check_layers.py
	@$(PY) tools/run_tests.py --unit $(B)/unit --testing-module $(B)/pymod-testing

# The Python module, in place (pip install -e): rebuilt when a source changed.
MODULE_SRC := $(wildcard pymod/*.[ch] libshm/*/*.[ch] fuse/*.[ch] third_party/*/*.[ch] setup.py pyproject.toml)
.PHONY: module
module: $(B)/module.stamp
$(B)/module.stamp: $(MODULE_SRC)
	@mkdir -p $(B)
	@echo "building the Python module"
	@$(PY) -m pip install -q --no-build-isolation --no-deps -e . >$(B)/module.log 2>&1 || { cat $(B)/module.log; exit 1; }
	@touch $@

# The same with kill points and debug checks, beside it: the second pass of the tests imports it.
.PHONY: testing-module
testing-module: $(B)/testing-module.stamp
$(B)/testing-module.stamp: $(MODULE_SRC) $(wildcard pymod/pagestone/*)
	@mkdir -p $(B)
	@echo "building the Python module for tests"
	@PAGESTONE_TESTING_BUILD=1 CFLAGS=-O1 $(PY) setup.py -q build_ext --build-lib $(B)/pymod-testing \
		--build-temp $(B)/pymod-testing-tmp >$(B)/testing-module.log 2>&1 || { cat $(B)/testing-module.log; exit 1; }
	@mkdir -p $(B)/pymod-testing/pagestone/include
	@cp pymod/pagestone/*.py pymod/pagestone/*.pyi pymod/pagestone/py.typed $(B)/pymod-testing/pagestone/
	@cp libshm/include/pagestone.h $(B)/pymod-testing/pagestone/include/
	@touch $@

lint:
	@tools/bootstrap.sh $(VENV) build test lint
	$(PY) tools/check_layers.py
	$(PY) tools/check_docs.py
	clang-format --dry-run -Werror $(wildcard libshm/*/*.[ch] pymod/*.[ch] tests/unit/*.[ch] tests/mp/*.[ch] tests/crash/*.[ch] tests/fuse/*.[ch] fuse/*.[ch] bench/*.c examples/*.c)
	$(VENV)/bin/ruff check pymod tests tools examples bench setup.py
	$(VENV)/bin/ruff format --check pymod tests tools examples bench setup.py
	$(VENV)/bin/mypy pymod/pagestone

# Four flavours of the library: production, testing (kill points, injection, debug checks), and testing under sanitizers.
define flavour
$(B)/$(1)/%.o: %.c
	@mkdir -p $$(@D)
	$$(Q)$$(CC) $$(BASE_CFLAGS) $(2) -c $$< -o $$@
$(B)/$(1)/libpagestone.a: $$(patsubst %.c,$(B)/$(1)/%.o,$$(LIB_SRC)) $(B)/third_party/zstd.o
	@rm -f $$@
	$$(Q)ar rcs $$@ $$^
endef
$(eval $(call flavour,prod,))
$(eval $(call flavour,testing,-DPGS_TESTING -DPGS_DEBUG))
$(eval $(call flavour,asan,-DPGS_TESTING -DPGS_DEBUG -fsanitize=address$(comma)undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer))
$(eval $(call flavour,tsan,-DPGS_TESTING -DPGS_DEBUG -fsanitize=thread))

lib: $(B)/prod/libpagestone.a

# Others' code: compiled once, for every flavour, without our warnings and without sanitizers.
$(B)/third_party/zstd.o: third_party/zstd/zstd.c
	@mkdir -p $(@D)
	$(Q)$(CC) -std=gnu11 -fPIC -fvisibility=hidden -DZSTDLIB_VISIBLE= -DZSTDLIB_STATIC_API= -DZDICTLIB_VISIBLE= -DZDICTLIB_STATIC_API= -DZSTDERRORLIB_VISIBLE= -w -O2 -c $< -o $@

# What of the file-system view works without libfuse.
FUSE_PARTS := text literal npy pkl plain_pkl share scope

# --- unit tests ---------------------------------------------------------------------------------------------------------
define runner
$(B)/$(1)/test_%: $(B)/$(2)/tests/unit/test_%.o $(B)/$(2)/libpagestone.a
	@mkdir -p $$(@D)
	$$(Q)$$(CC) -pthread $(3) $$^ -o $$@
$(B)/$(1)/test_%: $(B)/$(2)/tests/mp/test_%.o $(B)/$(2)/libpagestone.a
	@mkdir -p $$(@D)
	$$(Q)$$(CC) -pthread $(3) $$^ -o $$@
$(B)/$(1)/test_%: $(B)/$(2)/tests/crash/test_%.o $(B)/$(2)/libpagestone.a
	@mkdir -p $$(@D)
	$$(Q)$$(CC) -pthread $(3) $$^ -o $$@
$(B)/$(1)/test_%: $(B)/$(2)/tests/fuse/test_%.o $(FUSE_PARTS:%=$(B)/$(2)/fuse/%.o) $(B)/$(2)/libpagestone.a
	@mkdir -p $$(@D)
	$$(Q)$$(CC) -pthread $(3) $$^ -o $$@
endef
$(eval $(call runner,unit,testing,))
$(eval $(call runner,asan-unit,asan,-fsanitize=address$(comma)undefined))
$(eval $(call runner,tsan-unit,tsan,-fsanitize=thread))
UNIT_NAMES := $(notdir $(UNIT_SRC:.c=))
EXAMPLES := $(notdir $(basename $(wildcard examples/*.c)))
$(B)/examples/%: examples/%.c $(B)/testing/libpagestone.a
	@mkdir -p $(@D)
	$(Q)$(CC) -std=gnu11 -Wall -Wextra -O2 -Ilibshm/include $^ -pthread -o $@
.PHONY: unit-programs
unit-programs: $(UNIT_NAMES:%=$(B)/unit/%) $(EXAMPLES:%=$(B)/examples/%)
unit: unit-programs
	@rc=0; for t in $(UNIT_NAMES:%=$(B)/unit/%); do $$t || rc=1; done; exit $$rc
asan-test: $(UNIT_NAMES:%=$(B)/asan-unit/%)
	@rc=0; for t in $^; do $$t || rc=1; done; exit $$rc
tsan-test: $(UNIT_NAMES:%=$(B)/tsan-unit/%)
	@rc=0; for t in $^; do $$t || rc=1; done; exit $$rc
valgrind-test: $(UNIT_NAMES:%=$(B)/unit/%)
	@rc=0; for t in $^; do TEST_SECONDS=600 valgrind -q --error-exitcode=9 --trace-children=yes $$t || rc=1; done; exit $$rc

# Figures, as ratios within one run; nothing here is a test.
bench: $(B)/bench/bench_fresh $(B)/bench/bench_commit
	@tools/bootstrap.sh $(VENV) build test
	@$(MAKE) --no-print-directory module
	@$(PY) bench/bench_store.py
	@$(B)/bench/bench_commit
	@$(B)/bench/bench_fresh
$(B)/bench/%: bench/%.c $(B)/prod/libpagestone.a
	@mkdir -p $(@D)
	$(Q)$(CC) -std=gnu11 -Wall -Wextra -O2 -I. $^ -pthread -o $@

clean:
	rm -rf $(B)

-include $(shell find $(B) -name '*.d' 2>/dev/null)
.SECONDARY:
