#include "domain/daily.h"

#define HOUR_US INT64_C(3600000000)
#define DAY_US (24 * HOUR_US)

static int64_t day_of(int64_t us)
{
    return us >= 0 ? us / DAY_US : -((-us + DAY_US - 1) / DAY_US);
}

bool daily_is_due(int64_t last_us, int64_t now_us, unsigned hour)
{
    int64_t at = (int64_t)hour * HOUR_US;
    int64_t boundary = day_of(now_us - at) * DAY_US + at; // the hour's last coming
    return last_us == 0 || last_us < boundary || last_us > now_us + HOUR_US;
}

void daily_keep(const int64_t *made_us, size_t n, unsigned days, bool *ret_keep)
{
    unsigned kept = 0;
    for (size_t i = 0; i < n; i++) {
        bool seen = false;
        for (size_t k = 0; !seen && k < i; k++)
            seen = ret_keep[k] && day_of(made_us[k]) == day_of(made_us[i]);
        ret_keep[i] = i < 2 || (!seen && kept < days);
        kept += ret_keep[i] && !seen;
    }
}
