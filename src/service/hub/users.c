// People who log in with a password, and the sessions of their browsers. docs/internals/auth.md.
#include "base/clock.h"
#include "base/log.h"
#include "base/str.h"
#include "base/uuid.h"
#include "domain/name.h"
#include "service/hub/internal.h"

#include <errno.h>

#define SECOND_US INT64_C(1000000)
#define SESSION_MAX_US (12 * 3600 * SECOND_US)
#define SESSION_IDLE_US (2 * 3600 * SECOND_US)
#define USED_EVERY_US (60 * SECOND_US)
#define PASSWORD_LEAST 12 // bytes
#define PASSWORD_MOST 256
#define HASHING 2 // argon2id: 64 MiB each
#define HASHING_WAIT_S 5

// Ten at once from one address, then one every half minute. By name many more: somebody who guesses from everywhere is
// slowed down, and does not lock the user out for long.
static const GuessRule by_address = {.burst = 10, .each_us = 30 * SECOND_US};
static const GuessRule by_name = {.burst = 100, .each_us = 30 * SECOND_US};

bool hub_users_begin(Hub *h, Err *err)
{
    pthread_mutex_init(&h->guess_lock, NULL);
    (void)sem_init(&h->hashing, 0, HASHING); // valid values
    h->guesses_by_address = mem_calloc(1, sizeof(*h->guesses_by_address), err);
    h->guesses_by_name = mem_calloc(1, sizeof(*h->guesses_by_name), err);
    return h->guesses_by_address && h->guesses_by_name;
}

void hub_users_end(Hub *h)
{
    free(h->guesses_by_address);
    free(h->guesses_by_name);
}

// ---- users

static bool view(const StoreUser *u, json_t **ret, Err *err)
{
    json_t *o = json_object();
    bool ok = (o || err_no_memory(err)) && codec_json_set_text(o, "user_id", u->id, err) &&
        codec_json_set_text(o, "name", u->name, err) && codec_json_set_text(o, "role", u->role, err) &&
        codec_json_set_bool(o, "disabled", u->disabled, err) &&
        codec_json_set_text(o, "created_by", u->created_by, err) &&
        codec_json_set_time(o, "created_at", u->created_us, err) &&
        codec_json_set_time(o, "changed_at", u->changed_us, err) &&
        codec_json_set_time(o, "login_at", u->login_us, err);
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}

static bool find(Hub *h, const char *id_or_name, StoreUser *ret, Err *err)
{
    bool found;
    if (!store_user_find(h->store, id_or_name, ret, &found, err))
        return false;
    if (found)
        return true;
    (void)err_set(err, ERR_NOT_FOUND, "there is no user \"%s\"; sendense user list has those that there are",
                  id_or_name);
    return err_title(err, "user not found");
}

// Several at a time would take all memory, and all processors.
static bool begin_hashing(Hub *h, Err *err)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_REALTIME, &until); // cannot fail for this clock
    until.tv_sec += HASHING_WAIT_S;
    while (sem_timedwait(&h->hashing, &until) != 0)
        if (errno != EINTR)
            return err_set(err, ERR_LIMITED, "too many passwords are being looked at; try again later");
    return true;
}

static bool hash(Hub *h, const char *text, const char *name, char out[SECRET_PASSWORD_TEXT], Err *err)
{
    cleanup(secret_clear) Secret password = {0};
    size_t n = strlen(text);
    if (n < PASSWORD_LEAST || n > PASSWORD_MOST)
        return err_set(err, ERR_INVALID, "a password has %d to %d bytes; HINT: a few words are easy to remember",
                       PASSWORD_LEAST, PASSWORD_MOST);
    if (str_eq(text, name))
        return err_set(err, ERR_INVALID, "the password is the user's name");
    if (!secret_set(&password, text, err) || !begin_hashing(h, err))
        return false;
    bool ok = secret_password_hash(&password, out, err);
    (void)sem_post(&h->hashing);
    return ok;
}

static bool check_password(Hub *h, const char *text, const char *stored, bool *ret, Err *err)
{
    cleanup(secret_clear) Secret password = {0};
    if (!secret_set(&password, text, err) || !begin_hashing(h, err))
        return false;
    bool ok = secret_password_check(&password, stored, ret, err);
    (void)sem_post(&h->hashing);
    return ok;
}

bool hub_user_add(Hub *h, const json_t *body, const char *by, json_t **ret, Err *err)
{
    cleanup(store_user_clear) StoreUser u = {0};
    const char *name, *role_text, *password;
    char id[UUID_TEXT], hashed[SECRET_PASSWORD_TEXT];
    Role role;
    if (!codec_json_text(body, "name", NAME_MAX_BYTES, &name, err) || !name_check("name", name, err) ||
        !codec_json_text(body, "role", 32, &role_text, err) || !role_parse(role_text, &role, err) ||
        !codec_json_text(body, "password", SECRET_MAX, &password, err) || !hub_actor_name_check(h, name, err) ||
        !hash(h, password, name, hashed, err) || !uuid_new(id, err))
        return false;
    u.created_us = u.changed_us = clock_utc_us();
    if (!mem_replace(&u.id, id, err) || !mem_replace(&u.name, name, err) ||
        !mem_replace(&u.role, role_name(role), err) || !mem_replace(&u.password, hashed, err) ||
        !mem_replace(&u.created_by, by, err))
        return false;
    StoreTurn t = STORE_TURN(h->store);
    while (store_turn(&t, err)) // once more: a token may have taken the name while the password was hashed
        t.ok = hub_actor_name_check(h, name, err) && store_user_add(h->store, &u, err);
    return t.ok && view(&u, ret, err);
}

bool hub_user_list(Hub *h, json_t **ret, Err *err)
{
    StoreUser *rows = NULL;
    size_t len = 0;
    json_t *list = json_array();
    bool ok = store_user_list(h->store, &rows, &len, err);
    for (size_t i = 0; ok && i < len; i++) {
        json_t *item = NULL;
        ok = view(&rows[i], &item, err) && codec_json_push(list, item, err);
    }
    STORE_LIST_FREE(rows, len, store_user_clear);
    return codec_json_wrap(ok, "users", list, ret, err);
}

typedef struct Change { // what a body says; NULL: nothing
    const char *role, *password;
    bool disabled;
    char hashed[SECRET_PASSWORD_TEXT]; // of the password
} Change;

static bool read_change(const json_t *body, const StoreUser *u, Change *c, Err *err)
{
    Role role;
    if (!codec_json_text_opt(body, "role", 32, &c->role, err) ||
        !codec_json_text_opt(body, "password", SECRET_MAX, &c->password, err) ||
        !codec_json_bool_opt(body, "disabled", u->disabled, &c->disabled, err))
        return false;
    return !c->role || role_parse(c->role, &role, err);
}

static bool change(Hub *h, StoreUser *u, const Change *c, Err *err)
{
    if ((c->role && !mem_replace(&u->role, c->role, err)) ||
        (c->password && !mem_replace(&u->password, c->hashed, err)))
        return false;
    u->disabled = c->disabled;
    u->changed_us = clock_utc_us();
    // who knew the old password is not to stay
    return store_user_set(h->store, u, err) &&
        (!(c->password || u->disabled) || store_session_remove_of(h->store, u->id, err));
}

bool hub_user_change(Hub *h, const char *id_or_name, const json_t *body, json_t **ret, Err *err)
{
    cleanup(store_user_clear) StoreUser named = {0}, u = {0};
    Change c = {0};
    // outside of the transaction, since hashing takes its time
    if (!find(h, id_or_name, &named, err) || !read_change(body, &named, &c, err) ||
        (c.password && !hash(h, c.password, named.name, c.hashed, err)))
        return false;
    StoreTurn t = STORE_TURN(h->store);
    while (store_turn(&t, err)) {
        store_user_clear(&u);
        t.ok = find(h, named.id, &u, err) && change(h, &u, &c, err);
    }
    return t.ok && view(&u, ret, err);
}

bool hub_user_remove(Hub *h, const char *id_or_name, json_t **ret, Err *err)
{
    cleanup(store_user_clear) StoreUser u = {0};
    StoreTurn t = STORE_TURN(h->store);
    while (store_turn(&t, err)) {
        store_user_clear(&u);
        t.ok = find(h, id_or_name, &u, err) && store_user_remove(h->store, u.id, err);
    }
    return t.ok && view(&u, ret, err);
}

// ---- the limit on guessing

// Counts as failed until it is known to be right: of many at once no more are let through than one after the other.
static bool begin_guess(Hub *h, const char *address, const char *name, Err *err)
{
    int64_t now = clock_mono_ms() * 1000;
    pthread_mutex_lock(&h->guess_lock);
    int64_t wait = MAX(guesses_wait_s(h->guesses_by_address, address, by_address, now),
                       guesses_wait_s(h->guesses_by_name, name, by_name, now));
    if (wait == 0) {
        guesses_failed(h->guesses_by_address, address, by_address, now);
        guesses_failed(h->guesses_by_name, name, by_name, now);
    }
    pthread_mutex_unlock(&h->guess_lock);
    return wait == 0 ||
        err_set(err, ERR_LIMITED, "too many attempts failed; try again in %lld seconds", (long long)wait);
}

static void was_right(Hub *h, const char *address, const char *name)
{
    pthread_mutex_lock(&h->guess_lock);
    guesses_forget(h->guesses_by_address, address);
    guesses_forgive(h->guesses_by_name, name, by_name);
    pthread_mutex_unlock(&h->guess_lock);
}

static bool not_right(Err *err)
{
    (void)err_set(err, ERR_UNAUTHORIZED, "there is no such user, or the password is not theirs");
    return err_title(err, "login failed");
}

// ---- sessions

// What a page has to send with each call that changes something: another page of the same browser cannot know it.
static bool csrf_of(const Secret *session, char out[SECRET_DIGEST_TEXT], Err *err)
{
    char text[128];
    (void)snprintf(text, sizeof(text), "csrf:%s", secret_reveal(session));
    bool ok = secret_digest(text, out, err);
    explicit_bzero(text, sizeof(text));
    return ok;
}

static bool session_view(const StoreUser *u, const Secret *session, int64_t created_us, json_t **ret, Err *err)
{
    char csrf[SECRET_DIGEST_TEXT];
    json_t *o = json_object();
    bool ok = (o || err_no_memory(err)) && csrf_of(session, csrf, err) &&
        codec_json_set_text(o, "name", u->name, err) && codec_json_set_text(o, "role", u->role, err) &&
        codec_json_set_text(o, "csrf_token", csrf, err) &&
        codec_json_set_time(o, "expires_at", created_us + SESSION_MAX_US, err);
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}

// Looking at a password takes its time. Was the user given another one meanwhile, or shut out?
static bool changed_since(Hub *h, const StoreUser *u, bool *ret, Err *err)
{
    cleanup(store_user_clear) StoreUser now = {0};
    bool found;
    if (!store_user_find(h->store, u->id, &now, &found, err))
        return false;
    *ret = !found || !str_eq(now.id, u->id) || now.disabled || !str_eq(now.password, u->password);
    return true;
}

static bool add_session(Hub *h, const StoreUser *u, const StoreSession *x, Err *err)
{
    bool changed;
    if (!changed_since(h, u, &changed, err))
        return false;
    if (changed)
        return not_right(err);
    return store_session_remove_old(h->store, x->created_us - SESSION_MAX_US, x->created_us - SESSION_IDLE_US, err) &&
        store_session_add(h->store, x, err) && store_user_set_login(h->store, u->id, x->created_us, err);
}

static bool begin_session(Hub *h, const StoreUser *u, const char *remote, Secret *ret_session, json_t **ret, Err *err)
{
    cleanup(store_session_clear) StoreSession x = {0};
    char digest[SECRET_DIGEST_TEXT];
    x.created_us = x.used_us = clock_utc_us();
    if (!secret_random(ret_session, err) || !secret_digest(secret_reveal(ret_session), digest, err) ||
        !mem_replace(&x.digest, digest, err) || !mem_replace(&x.user_id, u->id, err) ||
        !mem_replace(&x.remote, remote, err))
        return false;
    StoreTurn t = STORE_TURN(h->store);
    while (store_turn(&t, err))
        t.ok = add_session(h, u, &x, err);
    return t.ok && session_view(u, ret_session, x.created_us, ret, err);
}

bool hub_session_begin(Hub *h, const json_t *body, const char *remote, Secret *ret_session, HubActor *ret_actor,
                       json_t **ret, Err *err)
{
    cleanup(store_user_clear) StoreUser u = {0};
    char address[GUESS_KEY_MAX];
    const char *name, *password;
    bool found, right = false;
    if (!h->auth)
        return err_set(err, ERR_CONFLICT, "this hub runs without authentication: there is nothing to log in to");
    // what is no name is nobody's, and no row of the audit log can have it
    if (!codec_json_text(body, "name", NAME_MAX_BYTES, &name, err) || !name_check("name", name, err) ||
        !codec_json_text(body, "password", SECRET_MAX, &password, err))
        return false;
    (void)snprintf(ret_actor->name, sizeof(ret_actor->name), "%s", name);
    guesses_address(remote, address);
    if (!begin_guess(h, address, name, err) || !store_user_find(h->store, name, &u, &found, err))
        return false;
    found = found && str_eq(u.name, name); // not by its ID
    if (!check_password(h, password, found ? u.password : NULL, &right, err))
        return false;
    if (!right || !found || u.disabled)
        return not_right(err);
    was_right(h, address, name);
    Role role;
    if (!role_parse(u.role, &role, err))
        return false;
    ret_actor->role = role_name(role);
    return begin_session(h, &u, remote, ret_session, ret, err);
}

static bool over(Err *err)
{
    (void)err_set(err, ERR_UNAUTHORIZED, "the session is over; log in again");
    return err_title(err, "not logged in");
}

// The session's user, if both still count.
static bool session_of(Hub *h, const Secret *session, StoreSession *ret_session, StoreUser *ret_user, Err *err)
{
    char digest[SECRET_DIGEST_TEXT];
    int64_t now = clock_utc_us();
    bool found;
    if (!secret_is_set(session)) { // let in by a token, or since everybody is
        (void)err_set(err, ERR_NOT_FOUND, "this call came by no session; POST /session begins one");
        return err_title(err, "no session");
    }
    if (!secret_digest(secret_reveal(session), digest, err) ||
        !store_session_get(h->store, digest, ret_session, &found, err))
        return false;
    if (!found || ret_session->created_us < now - SESSION_MAX_US || ret_session->used_us < now - SESSION_IDLE_US)
        return over(err);
    if (!store_user_find(h->store, ret_session->user_id, ret_user, &found, err))
        return false;
    if (!found || ret_user->disabled)
        return over(err);
    Err noting = ERR_INIT; // as with tokens
    if (now - ret_session->used_us >= USED_EVERY_US && !store_session_set_used(h->store, digest, now, &noting))
        log_info("a session's use could not be noted", LOG_STR("user", ret_user->name), LOG_ERR(&noting));
    return true;
}

bool hub_admit_session(Hub *h, const Secret *session, const char *csrf, bool changes, unsigned roles, HubActor *ret,
                       Err *err)
{
    cleanup(store_session_clear) StoreSession x = {0};
    cleanup(store_user_clear) StoreUser u = {0};
    char right[SECRET_DIGEST_TEXT], needed[ROLE_SET_TEXT];
    Role role;
    *ret = (HubActor){.name = HUB_ANYBODY};
    if (!session_of(h, session, &x, &u, err) || !role_parse(u.role, &role, err) || !csrf_of(session, right, err))
        return false;
    (void)snprintf(ret->name, sizeof(ret->name), "%s", u.name);
    ret->role = role_name(role);
    if (changes) {
        cleanup(secret_clear) Secret expected = {0};
        if (!secret_set(&expected, right, err))
            return false;
        if (!csrf || !secret_equal(&expected, csrf)) {
            (void)err_set(err, ERR_FORBIDDEN,
                          "a call by a session that may change something needs the header X-CSRF-Token, as the login "
                          "or GET /session gave it");
            return err_title(err, "csrf token missing");
        }
    }
    if (roles & ROLE_BIT(role))
        return true;
    role_set_text(roles, needed);
    (void)err_set(err, ERR_FORBIDDEN, "user \"%s\" is of role %s; this call needs %s", u.name, u.role, needed);
    return err_title(err, "not allowed");
}

bool hub_session_show(Hub *h, const Secret *session, json_t **ret, Err *err)
{
    cleanup(store_session_clear) StoreSession x = {0};
    cleanup(store_user_clear) StoreUser u = {0};
    return session_of(h, session, &x, &u, err) && session_view(&u, session, x.created_us, ret, err);
}

bool hub_session_end(Hub *h, const Secret *session, json_t **ret, Err *err)
{
    cleanup(store_session_clear) StoreSession x = {0};
    cleanup(store_user_clear) StoreUser u = {0};
    json_t *o = json_object();
    bool ok = (o || err_no_memory(err)) && session_of(h, session, &x, &u, err) &&
        store_session_remove(h->store, x.digest, err) && codec_json_set_text(o, "status", "ended", err);
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}

static bool change_own(Hub *h, const StoreUser *u, const Change *c, StoreUser *now, Err *err)
{
    bool changed, found;
    if (!changed_since(h, u, &changed, err))
        return false;
    if (changed) // and with it the session has ended
        return over(err);
    return store_user_find(h->store, u->id, now, &found, err) && change(h, now, c, err);
}

// Asks for the old one: a browser that is left open does not give the account away.
bool hub_session_password(Hub *h, const Secret *session, const json_t *body, const char *remote, json_t **ret, Err *err)
{
    cleanup(store_session_clear) StoreSession x = {0};
    cleanup(store_user_clear) StoreUser u = {0}, now = {0};
    char address[GUESS_KEY_MAX];
    const char *old, *new;
    Change c = {0};
    bool right;
    guesses_address(remote, address);
    if (!codec_json_text(body, "old_password", SECRET_MAX, &old, err) ||
        !codec_json_text(body, "new_password", SECRET_MAX, &new, err) || !session_of(h, session, &x, &u, err) ||
        !begin_guess(h, address, u.name, err) || !check_password(h, old, u.password, &right, err))
        return false;
    if (!right) {
        (void)err_set(err, ERR_FORBIDDEN, "the old password is not right");
        return err_title(err, "not allowed");
    }
    was_right(h, address, u.name);
    c.password = new;
    if (!hash(h, new, u.name, c.hashed, err))
        return false;
    c.disabled = false; // else there would be no session
    StoreTurn t = STORE_TURN(h->store);
    while (store_turn(&t, err)) {
        store_user_clear(&now);
        t.ok = change_own(h, &u, &c, &now, err);
    }
    return t.ok && view(&now, ret, err);
}
