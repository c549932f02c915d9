#include "base/num.h"

#include <inttypes.h>

// Only a short text is worth repeating in a message.
static bool not_a_number(const char *s, const char *what, Err *err)
{
    if (strlen(s) > 40)
        return err_set(err, ERR_INVALID, "not %s", what);
    return err_set(err, ERR_INVALID, "'%s' is not %s", s, what);
}

// The digits at the start of s. False when there are none or the number passes 64 bits.
static bool take_digits(const char *s, uint64_t *ret, const char **ret_rest)
{
    const char *p = s;
    uint64_t v = 0;
    for (; *p >= '0' && *p <= '9'; p++)
        if (!mul_u64(v, 10, &v) || !add_u64(v, (uint64_t)(*p - '0'), &v))
            return false;
    if (p == s)
        return false;
    *ret = v;
    *ret_rest = p;
    return true;
}

static bool within(uint64_t v, uint64_t min, uint64_t max, uint64_t *ret, Err *err)
{
    if (v < min || v > max)
        return err_set(err, ERR_INVALID, "%" PRIu64 " is not within %" PRIu64 " to %" PRIu64, v,
                       min, max);
    *ret = v;
    return true;
}

bool num_u64(const char *s, uint64_t min, uint64_t max, uint64_t *ret, Err *err)
{
    uint64_t v;
    const char *rest;
    if (!take_digits(s, &v, &rest) || *rest)
        return not_a_number(s, "a whole number of 64 bits", err);
    return within(v, min, max, ret, err);
}

bool num_size(const char *s, uint64_t min, uint64_t max, uint64_t *ret, Err *err)
{
    static const char units[] = "KMGT";
    uint64_t v;
    const char *rest;
    if (!take_digits(s, &v, &rest))
        return not_a_number(s, "a size such as 512, 64K, 1M, 2G or 1T", err);
    if (*rest) {
        char unit = *rest >= 'a' && *rest <= 'z' ? (char)(*rest - 'a' + 'A') : *rest;
        const char *at = strchr(units, unit);
        if (!at || rest[1])
            return not_a_number(s, "a size such as 512, 64K, 1M, 2G or 1T", err);
        if (!mul_u64(v, UINT64_C(1) << (10 * (at - units + 1)), &v))
            return not_a_number(s, "a size of 64 bits", err);
    }
    return within(v, min, max, ret, err);
}
