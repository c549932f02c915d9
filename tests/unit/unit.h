// What every unit test needs: cmocka with its includes, a temporary folder, repeatable randomness.
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/err.h"

// The message of an unexpected error belongs into the test's output.
#define assert_ok(call, err)                                                      \
    do {                                                                          \
        if (!(call))                                                              \
            fail_msg("%s: %s: %s", #call, err_name((err)->code), (err)->details); \
        assert_int_equal((err)->code, ERR_NONE);                                  \
    } while (0)

// The call fails with this code; *err is empty again afterwards.
#define assert_fails(call, err, expected)                                                                           \
    do {                                                                                                            \
        assert_false(call);                                                                                         \
        if ((err)->code != (expected))                                                                              \
            fail_msg("%s: %s instead of %s: %s", #call, err_name((err)->code), err_name(expected), (err)->details); \
        err_clear(err);                                                                                             \
    } while (0)

// SplitMix64. The seed is printed, and taken from SENDENSE_TEST_SEED to repeat a failure.
typedef struct UnitRandom {
    uint64_t state;
} UnitRandom;

UnitRandom unit_random(void);
uint64_t unit_random_next(UnitRandom *r);
uint64_t unit_random_below(UnitRandom *r, uint64_t n); // n > 0

// A new folder under TMPDIR, for cmocka's group or test setup: *state is its path.
int unit_folder_setup(void **state);
int unit_folder_teardown(void **state); // removes it with all it holds
// "<folder>/<name>" in one of four static buffers.
const char *unit_path(void **state, const char *name);
// How long to wait for what usually takes less: times SENDENSE_TEST_SLOWNESS, under a sanitizer (tools/sanitize).
int unit_patience(int ms);
// Number of open descriptors of this process.
int unit_open_fds(void);
