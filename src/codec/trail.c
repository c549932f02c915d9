#include "codec/trail.h"

#include "base/secret.h"
#include "base/str.h"

#include <inttypes.h>

#define ROW_MAX 16384

bool trail_hash(const TrailRow *row, const char *before, char out[TRAIL_HASH_TEXT], Err *err)
{
    const char *const texts[] = {row->at, row->actor, row->role, row->remote, row->method, row->path, row->object};
    StrBuf line = STR_BUF(ROW_MAX);
    bool ok = str_addf(&line, err, "%" PRId64 "\n", row->id);
    for (size_t i = 0; ok && i < ARRAY_LEN(texts); i++)
        ok = ((texts[i] && !strchr(texts[i], '\n')) ||
              err_set(err, ERR_INVALID, "a row of the audit log has a line feed in it, or a member is missing")) &&
            str_addf(&line, err, "%s\n", texts[i]);
    ok = ok && str_addf(&line, err, "%" PRId64 "\n%s\n", row->status, before) && secret_digest(line.s, out, err);
    str_clear(&line);
    return ok;
}
