// Who may call the API: tokens, and the roles that they have. docs/internals/auth.md.
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/str.h"
#include "base/uuid.h"
#include "domain/name.h"
#include "service/hub/internal.h"

#define PREFIX "sendense_" // whoever finds one in a file or a log knows what it is
#define DAY_US (INT64_C(86400) * 1000000)
#define DAYS_MAX 36500
#define USED_EVERY_US (INT64_C(60) * 1000000) // a token's last use is noted to the minute
#define FIRST_ADMIN "admin"

static bool new_token(Secret *ret, char digest[SECRET_DIGEST_TEXT], Err *err)
{
    cleanup(secret_clear) Secret random = {0};
    char text[128];
    if (!secret_random(&random, err))
        return false;
    (void)snprintf(text, sizeof(text), PREFIX "%s", secret_reveal(&random));
    bool ok = secret_digest(text, digest, err) && secret_set(ret, text, err);
    explicit_bzero(text, sizeof(text));
    return ok;
}

static bool is_over(const StoreToken *t, int64_t now_us)
{
    return t->expires_us != 0 && t->expires_us <= now_us;
}

// ---- admission

static bool not_known(Err *err)
{
    (void)err_set(err, ERR_UNAUTHORIZED,
                  "the token is not known, has expired or was revoked; sendense login takes "
                  "another one");
    return err_title(err, "token not accepted");
}

bool hub_admit(Hub *h, const Secret *token, unsigned roles, HubActor *ret, Err *err)
{
    cleanup(store_token_clear) StoreToken t = {0};
    char digest[SECRET_DIGEST_TEXT], needed[ROLE_SET_TEXT];
    bool found;
    Role role;
    *ret = (HubActor){.name = HUB_ANYBODY};
    if (!h->auth)
        return true;
    if (!secret_is_set(token))
        return err_set(err, ERR_UNAUTHORIZED,
                       "this call needs a token: Authorization: Bearer TOKEN; sendense login "
                       "keeps one for the command line");
    int64_t now = clock_utc_us();
    if (!secret_digest(secret_reveal(token), digest, err) || !store_token_by_digest(h->store, digest, &t, &found, err))
        return false;
    if (!found || is_over(&t, now))
        return not_known(err);
    if (!role_parse(t.role, &role, err)) // of a newer version
        return false;
    (void)snprintf(ret->name, sizeof(ret->name), "%s", t.name);
    ret->role = role_name(role);
    if (!(roles & ROLE_BIT(role))) {
        role_set_text(roles, needed);
        (void)err_set(err, ERR_FORBIDDEN, "token \"%s\" is of role %s; this call needs %s", t.name, t.role, needed);
        return err_title(err, "not allowed");
    }
    Err noting = ERR_INIT; // a database that takes nothing now keeps nobody from looking
    if (now - t.used_us >= USED_EVERY_US && !store_token_set_used(h->store, t.id, now, &noting))
        log_info("a token's use could not be noted", LOG_STR("token", t.name), LOG_ERR(&noting));
    return true;
}

bool hub_whoami(Hub *h, const HubActor *actor, json_t **ret, Err *err)
{
    json_t *o = json_object();
    bool ok = (o || err_no_memory(err)) && codec_json_set_text(o, "name", actor->name, err) &&
        codec_json_set_text(o, "role", actor->role, err) && codec_json_set_bool(o, "auth", h->auth, err);
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}

bool hub_needs_tokens(const Hub *h)
{
    return h->auth;
}

// ---- tokens

static bool view(const StoreToken *t, json_t **ret, Err *err)
{
    json_t *o = json_object();
    bool ok = (o || err_no_memory(err)) && codec_json_set_text(o, "token_id", t->id, err) &&
        codec_json_set_text(o, "name", t->name, err) && codec_json_set_text(o, "role", t->role, err) &&
        codec_json_set_text(o, "created_by", t->created_by, err) &&
        codec_json_set_time(o, "created_at", t->created_us, err) &&
        codec_json_set_time(o, "expires_at", t->expires_us, err) && codec_json_set_time(o, "used_at", t->used_us, err);
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}

// Stores a new token; the secret is in nobody's hands but the caller's.
static bool make(Hub *h, const char *name, Role role, int64_t expires_us, const char *by, StoreToken *row, Secret *ret,
                 Err *err)
{
    char id[UUID_TEXT], digest[SECRET_DIGEST_TEXT];
    row->created_us = clock_utc_us();
    row->expires_us = expires_us;
    if (!uuid_new(id, err) || !new_token(ret, digest, err) || !mem_replace(&row->id, id, err) ||
        !mem_replace(&row->name, name, err) || !mem_replace(&row->role, role_name(role), err) ||
        !mem_replace(&row->digest, digest, err) || !mem_replace(&row->created_by, by, err))
        return false;
    if (store_token_add(h->store, row, err))
        return true;
    if (err->code != ERR_EXISTS)
        return false;
    err_clear(err);
    (void)err_set(err, ERR_EXISTS, "there is a token \"%s\"; revoke it first, or take another name", name);
    return err_title(err, "token name taken");
}

static bool read_expiry(const json_t *body, int64_t *ret_us, Err *err)
{
    uint64_t days = 0;
    bool present;
    if (!codec_json_u64_opt(body, "expires_in_days", DAYS_MAX, &days, &present, err))
        return false;
    if (present && days == 0)
        return err_set(err, ERR_INVALID, "expires_in_days is 1 to %d; HINT: without it the token does not expire",
                       DAYS_MAX);
    *ret_us = present ? clock_utc_us() + (int64_t)days * DAY_US : 0;
    return true;
}

// What the audit log calls somebody else, and who is there already: it tells people and tokens apart by name alone.
bool hub_actor_name_check(Hub *h, const char *name, Err *err)
{
    static const char *const names[] = {HUB_ANYBODY, "job", HUB_ITSELF};
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        if (str_eq(name, names[i]))
            return err_set(err, ERR_INVALID, "\"%s\" is the audit log's own; HINT: any other name is fine", name);
    cleanup(store_user_clear) StoreUser u = {0};
    cleanup(store_token_clear) StoreToken t = {0};
    bool user, token;
    if (!store_user_find(h->store, name, &u, &user, err) || !store_token_by_name(h->store, name, &t, &token, err))
        return false;
    if (!user && !token)
        return true;
    (void)err_set(err, ERR_EXISTS, "there is a %s \"%s\"; %s", user ? "user" : "token", name,
                  user ? "remove it first, or take another name" : "revoke it first, or take another name");
    return err_title(err, user ? "user name taken" : "token name taken");
}

bool hub_token_add(Hub *h, const json_t *body, const char *by, json_t **ret, Err *err)
{
    cleanup(store_token_clear) StoreToken row = {0};
    cleanup(secret_clear) Secret token = {0};
    const char *name, *role_text;
    int64_t expires_us;
    Role role;
    json_t *o = NULL;
    if (!codec_json_text(body, "name", NAME_MAX_BYTES, &name, err) || !name_check("name", name, err) ||
        !codec_json_text(body, "role", 32, &role_text, err) || !role_parse(role_text, &role, err) ||
        !read_expiry(body, &expires_us, err))
        return false;
    StoreTurn t = STORE_TURN(h->store);
    while (store_turn(&t, err)) // a user's name, too, as long as this lasts
        t.ok = hub_actor_name_check(h, name, err) && make(h, name, role, expires_us, by, &row, &token, err);
    if (!t.ok || !view(&row, &o, err))
        return false;
    if (!codec_json_set_text(o, "token", secret_reveal(&token), err)) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}

bool hub_token_list(Hub *h, json_t **ret, Err *err)
{
    StoreToken *rows = NULL;
    size_t len = 0;
    json_t *list = json_array();
    bool ok = store_token_list(h->store, &rows, &len, err);
    for (size_t i = 0; ok && i < len; i++) {
        json_t *item = NULL;
        ok = view(&rows[i], &item, err) && codec_json_push(list, item, err);
    }
    STORE_LIST_FREE(rows, len, store_token_clear);
    return codec_json_wrap(ok, "tokens", list, ret, err);
}

// Without any admin nobody could make a token any more.
static bool check_not_last(Hub *h, const StoreToken *t, Err *err)
{
    int64_t now = clock_utc_us();
    uint64_t admins;
    if (!str_eq(t->role, role_name(ROLE_ADMIN)) || is_over(t, now))
        return true;
    if (!store_token_count(h->store, t->role, now, &admins, err))
        return false;
    if (admins > 1)
        return true;
    (void)err_set(err, ERR_CONFLICT, "\"%s\" is the last token of an admin; make another one first", t->name);
    return err_title(err, "last admin token");
}

bool hub_token_remove(Hub *h, const char *id_or_name, json_t **ret, Err *err)
{
    cleanup(store_token_clear) StoreToken t = {0};
    StoreTurn turn = STORE_TURN(h->store);
    while (store_turn(&turn, err)) {
        store_token_clear(&t);
        turn.ok = store_token_find(h->store, id_or_name, &t, err) && check_not_last(h, &t, err) &&
            store_token_remove(h->store, t.id, err);
    }
    return turn.ok && view(&t, ret, err);
}

// ---- the first one

// Under a name that is free: an expired one may have the plain one.
static bool make_admin(Hub *h, Secret *ret, Err *err)
{
    for (unsigned n = 1;; n++) {
        cleanup(store_token_clear) StoreToken row = {0};
        cleanup_free char *name = n == 1 ? mem_strdup(FIRST_ADMIN, err) : mem_printf(err, FIRST_ADMIN "-%u", n);
        Err why = ERR_INIT;
        if (!name)
            return false;
        if (make(h, name, ROLE_ADMIN, 0, HUB_ITSELF, &row, ret, &why))
            return true;
        if (why.code != ERR_EXISTS) {
            *err = why;
            return false;
        }
    }
}

// The row counts with its file: a token in nobody's hands would lock everybody out.
static bool make_in(Hub *h, const char *path, Err *err)
{
    cleanup(secret_clear) Secret token = {0};
    cleanup_free char *text = make_admin(h, &token, err) ? mem_printf(err, "%s\n", secret_reveal(&token)) : NULL;
    bool ok = text && file_unlink(path, err) && file_create_durable(path, text, strlen(text), 0600, err);
    if (text)
        explicit_bzero(text, strlen(text));
    return ok;
}

static bool make_with_file(Hub *h, const char *path, Err *err)
{
    StoreTurn t = STORE_TURN(h->store);
    while (store_turn(&t, err))
        t.ok = make_in(h, path, err);
    Err ignored = ERR_INIT; // then a file stays whose token nobody knows
    if (!t.ok)
        (void)!file_unlink(path, &ignored);
    return t.ok;
}

bool hub_tokens_begin(Hub *h, bool new_admin, Err *err)
{
    uint64_t admins;
    if (!h->auth || !store_token_count(h->store, role_name(ROLE_ADMIN), clock_utc_us(), &admins, err))
        return err->code == ERR_NONE;
    if (admins > 0 && !new_admin)
        return true;
    cleanup_free char *path = file_join(h->data_dir, "admin-token", err);
    if (!path || !make_with_file(h, path, err))
        return false;
    hub_trail_add(h,
                  &(HubTrail){.actor = HUB_ITSELF,
                              .role = role_name(ROLE_ADMIN),
                              .remote = "",
                              .method = "POST",
                              .path = "/api/v1/tokens",
                              .object = "admin: at a start",
                              .status = 201});
    log_info("a token for the administrator was made; take it by \"sendense login --token-file\", then remove the file",
             LOG_STR("path", path));
    return true;
}
