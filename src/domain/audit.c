#include "domain/audit.h"

#define MINUS_LN_5_PERCENT 2995733u // times a million: (1 - p)^n <= exp(-p n), so p = 2.9957 / n is on the safe side

uint32_t audit_at_most_ppm(const AuditFigures *a)
{
    if (a->wrong > 0 || a->checked == 0)
        return AUDIT_PPM_ALL;
    if (a->checked >= a->unchanged)
        return 0;
    uint64_t ppm = (MINUS_LN_5_PERCENT + a->checked - 1) / a->checked;
    return ppm < AUDIT_PPM_ALL ? (uint32_t)ppm : AUDIT_PPM_ALL;
}

bool audit_is_clean(const AuditFigures *a)
{
    return a->unchanged > 0 && audit_at_most_ppm(a) <= AUDIT_PPM_CLEAN;
}
