#include "domain/changeid.h"

#include "base/num.h"
#include "base/uuid.h"

#include <inttypes.h>
#include <stdio.h>

bool changeid_check(const char *id, Err *err)
{
    size_t n = strnlen(id, CHANGEID_MAX + 1), slashes = 0;
    if (n == 0)
        return err_set(err, ERR_INVALID, "the change ID is empty");
    if (n > CHANGEID_MAX)
        return err_set(err, ERR_INVALID, "the change ID has more than %d bytes", CHANGEID_MAX);
    for (size_t i = 0; i < n; i++) {
        if (id[i] < 0x20 || id[i] > 0x7e)
            return err_set(err, ERR_INVALID,
                           "the change ID holds a byte that is not printable ASCII");
        slashes += id[i] == '/';
    }
    if (slashes != 1 || id[0] == '/' || id[n - 1] == '/')
        return err_set(err, ERR_INVALID, "the change ID is not of the form UUID/sequence");
    if (id[0] == ' ' || id[n - 1] == ' ')
        return err_set(err, ERR_INVALID, "the change ID starts or ends with a blank");
    return true;
}

bool changeid_mint(const char *uuid, uint64_t sequence, char out[CHANGEID_MINTED], Err *err)
{
    if (!uuid_is_valid(uuid) || sequence == 0)
        return err_set(err, ERR_INTERNAL, "a change ID needs a UUID and a sequence above 0");
    (void)snprintf(out, CHANGEID_MINTED, "%s/%" PRIu64, uuid, sequence);
    for (char *p = out; *p; p++)
        if (*p >= 'A' && *p <= 'F')
            *p = (char)(*p - 'A' + 'a');
    return true;
}

bool changeid_parse(const char *id, char ret_uuid[37], uint64_t *ret_sequence, Err *err)
{
    Err bad = ERR_INIT;
    char uuid[UUID_TEXT] = "", again[CHANGEID_MINTED];
    uint64_t sequence;
    const char *slash = strchr(id, '/');
    if (slash && slash - id == UUID_TEXT - 1)
        memcpy(uuid, id, UUID_TEXT - 1);
    // One spelling only, the one that is minted: the text is compared byte for byte elsewhere.
    if (!slash || !num_u64(slash + 1, 1, UINT64_MAX, &sequence, &bad) ||
        !changeid_mint(uuid, sequence, again, &bad) || strcmp(again, id) != 0)
        return err_set(err, ERR_INVALID, "not a change ID that was minted here");
    memcpy(ret_uuid, uuid, sizeof(uuid));
    *ret_sequence = sequence;
    return true;
}
