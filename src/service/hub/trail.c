// The log of who did what, from where, with what result. docs/internals/auth.md.
#include "codec/trail.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/str.h"
#include "service/hub/internal.h"

#define TRIES 8              // another hub on the same database has added a row meanwhile
#define REFUSED_A_MINUTE 100 // of calls without a right: whoever knocks does not fill the database
#define MINUTE_MS (60 * 1000)

static bool next_row(Store *s, const HubTrail *t, StoreTrail *row, Err *err)
{
    cleanup(store_trail_clear) StoreTrail last = {0};
    bool found;
    char at[CLOCK_TEXT], hash[TRAIL_HASH_TEXT];
    if (!store_trail_last(s, &last, &found, err))
        return false;
    row->id = found ? last.id + 1 : 1;
    row->at_us = clock_utc_us();
    row->status = t->status;
    clock_format(row->at_us, at);
    TrailRow members = {.id = row->id,
                        .at = at,
                        .actor = t->actor,
                        .role = t->role,
                        .remote = t->remote,
                        .method = t->method,
                        .path = t->path,
                        .object = t->object,
                        .status = t->status};
    return trail_hash(&members, found ? last.hash : TRAIL_FIRST, hash, err) &&
        mem_replace(&row->actor, t->actor, err) && mem_replace(&row->role, t->role, err) &&
        mem_replace(&row->remote, t->remote, err) && mem_replace(&row->method, t->method, err) &&
        mem_replace(&row->path, t->path, err) && mem_replace(&row->object, t->object, err) &&
        mem_replace(&row->hash, hash, err);
}

// The hash is over the moment, too: no other call has it.
static bool look_for(Store *s, const StoreTrail *row, bool *ret_there, Err *err)
{
    StoreTrail *found = NULL;
    size_t len = 0;
    if (!store_trail_list(s, &(StoreTrailFilter){.after = row->id - 1, .limit = 1}, &found, &len, err))
        return false;
    *ret_there = len > 0 && found[0].id == row->id && str_eq(found[0].hash, row->hash);
    STORE_LIST_FREE(found, len, store_trail_clear);
    return true;
}

// Of a COMMIT whose answer was lost nobody knows: it is looked for, and done again where it is not there.
bool hub_trail_write(Store *s, const HubTrail *t, Err *err)
{
    for (int i = 0;; i++) {
        cleanup(store_trail_clear) StoreTrail row = {0};
        Err why = ERR_INIT;
        StoreTurn turn = STORE_TURN(s);
        while (store_turn(&turn, &why)) {
            store_trail_clear(&row);
            turn.ok = next_row(s, t, &row, &why) && store_trail_add(s, &row, &why);
        }
        bool there = false;
        Err looking = ERR_INIT;
        if (turn.ok)
            return true;
        bool known =
            why.code == ERR_EXISTS || (why.code == ERR_UNAVAILABLE && row.hash && look_for(s, &row, &there, &looking));
        if (there)
            return true;
        if (!known || i == TRIES) {
            *err = why;
            return false;
        }
    }
}

// Whoever knocks without a token does not fill the database, nor hide what others are refused.
static bool is_too_much(Hub *h, bool known, const char *remote)
{
    (void)pthread_mutex_lock(&h->lock);
    int64_t now = clock_mono_ms();
    if (now - h->refused_since_ms >= MINUTE_MS) {
        h->refused_since_ms = now;
        h->refused[0] = h->refused[1] = 0;
    }
    unsigned n = ++h->refused[known];
    (void)pthread_mutex_unlock(&h->lock);
    if (n == REFUSED_A_MINUTE + 1)
        log_warn("many calls are refused; the audit log leaves out the rest of this minute's",
                 LOG_STR("remote", remote), LOG_STR("token", known ? "known" : "none"));
    return n > REFUSED_A_MINUTE;
}

// Looks are not noted, unless they were refused; nor what was no request, and what came to nothing on no such path.
static bool is_of_interest(Hub *h, const HubTrail *t)
{
    bool looks = str_eq(t->method, "GET") || str_eq(t->method, "HEAD"), admitted = !h->auth || t->role[0] != '\0';
    bool refused = t->status == 401 || t->status == 403;
    if (t->path[0] == '\0' || (looks && !refused) || (t->unlogged && !refused) || t->status == 404 || t->status == 405)
        return false;
    return (admitted && !refused) || !is_too_much(h, t->role[0] != '\0', t->remote);
}

void hub_trail_add(Hub *h, const HubTrail *t)
{
    Err err = ERR_INIT;
    if (is_of_interest(h, t) && !hub_trail_write(h->store, t, &err))
        log_error("the audit log could not be written to", LOG_STR("actor", t->actor), LOG_STR("method", t->method),
                  LOG_STR("path", t->path), LOG_NUM("status", t->status), LOG_ERR(&err));
}

static bool view(const StoreTrail *row, json_t **ret, Err *err)
{
    json_t *o = json_object();
    bool ok = (o || err_no_memory(err)) && codec_json_set_u64(o, "id", (uint64_t)row->id, err) &&
        codec_json_set_time(o, "at", row->at_us, err) && codec_json_set_text(o, "actor", row->actor, err) &&
        codec_json_set_text(o, "role", row->role, err) && codec_json_set_text(o, "remote", row->remote, err) &&
        codec_json_set_text(o, "method", row->method, err) && codec_json_set_text(o, "path", row->path, err) &&
        codec_json_set_text(o, "object", row->object, err) &&
        codec_json_set_u64(o, "status", (uint64_t)row->status, err) && codec_json_set_text(o, "hash", row->hash, err);
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}

bool hub_trail_list(Hub *h, const StoreTrailFilter *filter, json_t **ret, Err *err)
{
    StoreTrail *rows = NULL;
    size_t len = 0;
    json_t *list = json_array();
    bool ok = store_trail_list(h->store, filter, &rows, &len, err);
    for (size_t i = 0; ok && i < len; i++) {
        json_t *item = NULL;
        ok = view(&rows[i], &item, err) && codec_json_push(list, item, err);
    }
    STORE_LIST_FREE(rows, len, store_trail_clear);
    return codec_json_wrap(ok, "entries", list, ret, err);
}
