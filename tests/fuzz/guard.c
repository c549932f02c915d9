// The head of an HTTP request. How the network cuts it must not matter: what was refused stays refused whatever comes,
// and a head is accepted at its last byte, not before, whatever follows it.
#include "fuzz.h"

#include "http/guard.h"

#define CUTS 24 // prefixes that are looked at

typedef struct Verdict {
    bool ok;
    size_t len;
    HttpHead head;
    int status;
} Verdict;

static Verdict ask(const uint8_t *data, size_t n)
{
    Err err = ERR_INIT;
    Verdict v = {0};
    cleanup_free char *copy = malloc(n); // of its exact length
    fuzz_check(copy != NULL || n == 0);
    if (n > 0)
        memcpy(copy, data, n);
    v.ok = http_guard_check(n > 0 ? copy : "", n, &v.head, &v.len, &v.status, &err);
    fuzz_check(v.len <= n && v.ok == (v.status == 0) && v.ok == (err.code == ERR_NONE));
    fuzz_check(v.ok || (v.status >= 400 && v.status < 600));
    if (!v.ok || v.len == 0)
        return v;
    fuzz_check(v.len >= 4 && memcmp(copy + v.len - 4, "\r\n\r\n", 4) == 0);
    fuzz_check(v.head.method.s == copy && v.head.method.len > 0 && v.head.target.len > 0);
    fuzz_check(v.head.target.s + v.head.target.len < copy + v.len && !memchr(v.head.target.s, ' ', v.head.target.len));
    fuzz_check(!memchr(copy, '\0', v.len));
    return v;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    Verdict all = ask(data, n);
    for (size_t i = 0; i < CUTS; i++) {
        size_t cut = i < CUTS / 2 ? n * i / (CUTS / 2) : n - MIN(n, i - CUTS / 2);
        Verdict v = ask(data, cut);
        if (!v.ok)
            fuzz_check(!all.ok);
        else if (v.len > 0)
            fuzz_check(all.ok && all.len == v.len && all.head.content_length == v.head.content_length);
        else if (all.ok && all.len > 0)
            fuzz_check(cut < all.len);
    }
    return 0;
}
