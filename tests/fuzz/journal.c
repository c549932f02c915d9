// The journal of an interrupted backup: as it is, and with a header and sums that fit.
#include "fuzz.h"

#include "image/hashes_format.h"
#include "image/journal.h"

#include <xxhash.h>

#define HEADER 64
#define RECORD 24
#define CLUSTERS 257

static const JournalSpec spec = {.hash = {.algorithm = HASH_XXH3_128, .seed = UINT64_C(0x1234567890abcdef)},
                                 .size = (CLUSTERS - 1) * 4096 + 512,
                                 .cluster_size = 4096,
                                 .mode = DISK_FULL};

typedef struct Seen {
    uint64_t records, items, sum;
} Seen;

static bool on_record(void *ctx, const JournalItem *items, size_t n, uint64_t next, Err *err)
{
    Seen *s = ctx;
    (void)err;
    fuzz_check(n <= JOURNAL_ITEMS_MAX);
    for (size_t i = 0; i < n; i++) {
        bool one = items[i].kind == JOURNAL_CLUSTER || items[i].kind == JOURNAL_PART;
        fuzz_check(items[i].kind <= JOURNAL_PART && items[i].count > 0 && items[i].first < CLUSTERS);
        fuzz_check(items[i].count <= CLUSTERS - items[i].first);
        fuzz_check(one == (items[i].entry != 0) && (!one || items[i].count == 1));
        s->sum = XXH3_64bits_withSeed(&items[i].leaf, 16, s->sum ^ items[i].first);
    }
    s->records++;
    s->items += n;
    s->sum ^= next;
    return true;
}

static void read_twice(const uint8_t *p, size_t n)
{
    Err err = ERR_INIT;
    Seen seen = {0}, again = {0};
    uint64_t records = UINT64_MAX, records_again = UINT64_MAX;
    bool ok = journal_read(fuzz_file(0, p, n), &spec, on_record, &seen, &records, &err);
    fuzz_check(ok || err.code == ERR_DAMAGED || err.code == ERR_CONFLICT);
    fuzz_check(ok ? records == seen.records : records == UINT64_MAX);
    if (!ok)
        return;
    // What is torn off behind the last whole record was nothing.
    size_t whole = HEADER + seen.records * RECORD + seen.items * (24 + hash_size(spec.hash.algorithm));
    fuzz_check(whole <= n);
    fuzz_check(journal_read(fuzz_file(0, p, whole), &spec, on_record, &again, &records_again, &err));
    fuzz_check(records_again == records && again.items == seen.items && again.sum == seen.sum);
    if (seen.records > 0) { // and without its last byte the last one is none
        again = (Seen){0};
        fuzz_check(journal_read(fuzz_file(0, p, whole - 1), &spec, on_record, &again, &records_again, &err));
        fuzz_check(records_again == records - 1);
    }
}

// The header that is expected, and each record's sum.
static void repair(uint8_t *p, size_t n)
{
    memset(p, 0, HEADER);
    memcpy(p, "SDJOURN1", 8);
    hashes_put32(p + 8, (uint32_t)spec.hash.algorithm);
    hashes_put32(p + 12, (uint32_t)spec.mode);
    hashes_put64(p + 16, spec.hash.seed);
    hashes_put64(p + 24, spec.size);
    hashes_put32(p + 32, spec.cluster_size);
    uint64_t chain = XXH3_64bits(p, 56);
    hashes_put64(p + 56, chain);
    size_t stride = 24 + hash_size(spec.hash.algorithm);
    for (size_t at = HEADER; n - at >= RECORD;) {
        uint64_t count = hashes_get64(p + at);
        if (count > (n - at - RECORD) / stride)
            return;
        size_t bytes = (size_t)count * stride;
        chain = XXH3_64bits_withSeed(p + at, 16, XXH3_64bits_withSeed(p + at + RECORD, bytes, chain));
        hashes_put64(p + at + 16, chain);
        at += RECORD + bytes;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    read_twice(data, n);
    if (n < HEADER)
        return 0;
    uint8_t *p = malloc(n);
    fuzz_check(p);
    memcpy(p, data, n);
    repair(p, n);
    read_twice(p, n);
    free(p);
    return 0;
}
