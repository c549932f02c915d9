// What the fuzz targets share. Each target is one file with one LLVMFuzzerTestOneInput(): libFuzzer's main() drives it
// under clang, driver.c's elsewhere. docs/internals/fuzzing.md.
#pragma once

#include "base/mem.h"
#include "base/str.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

// A wrong answer ends the program as a crash does.
#define fuzz_check(claim)                            \
    do {                                             \
        if (!(claim))                                \
            fuzz_failed(__FILE__, __LINE__, #claim); \
    } while (0)
_Noreturn void fuzz_failed(const char *file, int line, const char *claim);

// What was decoded can be encoded, and that decodes to the same: else the two ends of a wire disagree. Every member is
// in the encoded text, so equal texts are equal values.
#define fuzz_round_trip(Type, text, n, decode, encode, clear)               \
    do {                                                                    \
        Err err_ = ERR_INIT;                                                \
        Type first_ = {0}, second_ = {0};                                   \
        if (!decode((const char *)(text), n, &first_, &err_)) {             \
            fuzz_check(err_.code != ERR_NONE && err_.code != ERR_INTERNAL); \
            break;                                                          \
        }                                                                   \
        char *once_ = NULL, *twice_ = NULL;                                 \
        fuzz_check(encode(&first_, &once_, &err_));                         \
        fuzz_check(decode(once_, strlen(once_), &second_, &err_));          \
        fuzz_check(encode(&second_, &twice_, &err_));                       \
        fuzz_check(str_eq(once_, twice_));                                  \
        free(once_);                                                        \
        free(twice_);                                                       \
        clear(&first_);                                                     \
        clear(&second_);                                                    \
    } while (0)

// A copy of bytes with a NUL behind them, for what takes text. The caller's.
char *fuzz_text(const uint8_t *data, size_t n);

// The path of a file that holds these bytes, in a folder that is removed at the end; the same `slot` (0 to 7) is the
// same path. Static memory.
const char *fuzz_file(unsigned slot, const uint8_t *data, size_t n);

// Little endian numbers of the input.
static inline uint32_t fuzz_get32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}
