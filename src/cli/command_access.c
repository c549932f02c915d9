// Who may use the hub, and who did what: login, tokens, the audit log.
#include "base/num.h"
#include "cli/ask.h"
#include "cli/command.h"
#include "cli/credentials.h"
#include "codec/trail.h"

#include <inttypes.h>

#define PAGE 1000
#define TIMEOUT_MS 10000

// A certificate that nobody has vouched for: what it is, so that it can be compared with what the hub says.
static bool tell_thumbprint(const Cli *c, Err *err)
{
    TlsCertificate shown;
    Err asking = ERR_INIT;
    if (err->code != ERR_PROTOCOL || !str_eq(err_short(err), "certificate not trusted") ||
        !http_client_certificate(c->hub_url, TIMEOUT_MS, NULL, &shown, &asking))
        return false;
    *err = ERR_INIT;
    (void)err_set(
        err, ERR_PROTOCOL,
        "%s shows a certificate that no known CA has signed; if the hub's own log names the same SHA-256, give "
        "it: --thumbprint %s",
        c->hub_url, shown.sha256);
    return err_title(err, "certificate not trusted");
}

// Does the hub take it? Nothing is sent to one that is not the right one.
static bool try_token(const Cli *c, const Secret *token, const TlsTrust *trust, json_t **ret, Err *err)
{
    HubApi *hub = NULL;
    if (!hub_api_new(c->hub_url, token, trust, &hub, err))
        return false;
    bool ok = hub_api_call(hub, "GET", "/api/v1/whoami", NULL, ret, err);
    hub_api_free(hub);
    return ok;
}

static bool check_thumbprint(const char *text, Err *err)
{
    unsigned char digest[32];
    if (!text || tls_thumbprint_parse(text, digest, err))
        return true;
    err->code = ERR_USAGE;
    return err_context(err, "option --thumbprint");
}

bool command_login(Cli *c, Err *err)
{
    cleanup(secret_clear) Secret token = {0};
    cleanup(hub_trust_clear) TlsTrust said = {0};
    cleanup_json json_t *answer = NULL;
    const char *pin = c->values.thumbprint;
    if (pin && str_starts(c->hub_url, "http://"))
        return err_set(err, ERR_USAGE, "--thumbprint goes with https://");
    // without one, that which is kept for this hub stands: another is taken only where it is given
    if (!check_thumbprint(pin, err) || !credentials_trust(c->hub_url, &said, err) ||
        !ask_secret("token", c->values.token_file, c->values.token_fd, &token, err))
        return false;
    const TlsTrust pinned = {.thumbprint = pin};
    if (!try_token(c, &token, pin ? &pinned : &said, &answer, err))
        return pin || said.thumbprint ? false : tell_thumbprint(c, err);
    if (!credentials_keep(c->hub_url, &token, pin ? pin : said.thumbprint, err))
        return false;
    if (cli_said_json(c, answer))
        return true;
    cli_show("hub", c->hub_url);
    cli_show("token", cli_text(answer, "name"));
    cli_show("role", cli_text(answer, "role"));
    if (getenv("SENDENSE_TOKEN") || getenv("SENDENSE_TOKEN_FILE"))
        cli_note("SENDENSE_TOKEN and SENDENSE_TOKEN_FILE go before what is kept");
    if (!cli_flag(answer, "auth"))
        cli_note("this hub runs without authentication: it looks at no token");
    return true;
}

bool command_logout(Cli *c, Err *err)
{
    cleanup_json json_t *answer = json_object();
    bool any;
    if (!answer)
        return err_no_memory(err);
    if (!credentials_forget(c->hub_url, &any, err) || !codec_json_set_text(answer, "hub", c->hub_url, err) ||
        !codec_json_set_bool(answer, "forgotten", any, err))
        return false;
    if (!cli_said_json(c, answer))
        cli_show(any ? "forgotten" : "nothing kept", c->hub_url);
    return true;
}

// ---- tokens

static bool read_days(const char *text, json_t *body, Err *err)
{
    uint64_t days;
    if (!text)
        return true;
    if (!num_u64(text, 1, 36500, &days, err)) {
        err->code = ERR_USAGE;
        return err_context(err, "option --expires");
    }
    return codec_json_set_u64(body, "expires_in_days", days, err);
}

bool command_token_create(Cli *c, Err *err)
{
    cleanup_json json_t *body = json_object(), *answer = NULL;
    if (!body)
        return err_no_memory(err);
    if (!cli_need(c->values.role, "role", err) || !codec_json_set_text(body, "name", c->words[0], err) ||
        !codec_json_set_text(body, "role", c->values.role, err) || !read_days(c->values.expires, body, err) ||
        !cli_send(c, "POST", "/api/v1/tokens", body, false, &answer, err))
        return false;
    if (cli_said_json(c, answer))
        return true;
    cli_note("the token is shown this once, and kept nowhere; who has it is \"%s\" (%s)", cli_text(answer, "name"),
             cli_text(answer, "role"));
    (void)puts(cli_text(answer, "token"));
    return true;
}

bool command_token_list(Cli *c, Err *err)
{
    cleanup_json json_t *answer = NULL;
    cleanup(table_clear)
        Table t = {.titles = {"NAME", "ROLE", "CREATED (UTC)", "BY", "EXPIRES (UTC)", "LAST USED (UTC)"}};
    if (!cli_get(c, "/api/v1/tokens", &answer, err))
        return false;
    if (cli_said_json(c, answer))
        return true;
    size_t i;
    json_t *e;
    json_array_foreach(cli_list(answer, "tokens"), i, e)
    {
        char created[TEXT_TIME], expires[TEXT_TIME], used[TEXT_TIME];
        text_time(cli_text(e, "created_at"), created);
        text_time(cli_text(e, "expires_at"), expires);
        text_time(cli_text(e, "used_at"), used);
        const char *const cells[] = {cli_text(e, "name"),       cli_text(e, "role"),       created,
                                     cli_text(e, "created_by"), *expires ? expires : NULL, *used ? used : NULL};
        if (!table_row(&t, cells, err))
            return false;
    }
    table_print(&t, stdout);
    return true;
}

bool command_token_revoke(Cli *c, Err *err)
{
    cleanup_json json_t *answer = NULL;
    cleanup_free char *path = cli_path("tokens", c->words[0], NULL, err);
    if (!path || !cli_send(c, "DELETE", path, NULL, false, &answer, err))
        return false;
    if (!cli_said_json(c, answer))
        cli_show("revoked", c->words[0]);
    return true;
}

// ---- people

static bool add_new_password(const CliValues *v, json_t *body, Err *err)
{
    cleanup(secret_clear) Secret password = {0}, again = {0};
    if (!ask_secret("password", v->password_file, v->password_fd, &password, err))
        return false;
    bool typed = !v->password_file && !v->password_fd;
    if (typed && !ask_secret("password", NULL, NULL, &again, err))
        return false;
    if (typed && !secret_equal(&password, secret_reveal(&again)))
        return err_set(err, ERR_USAGE, "the two passwords differ; nothing was changed");
    return codec_json_set_text(body, "password", secret_reveal(&password), err);
}

static bool say_user(Cli *c, const json_t *u)
{
    if (cli_said_json(c, u))
        return true;
    cli_show("user", cli_text(u, "name"));
    cli_show("role", cli_text(u, "role"));
    cli_show("disabled", cli_flag(u, "disabled") ? "yes" : "no");
    return true;
}

bool command_user_add(Cli *c, Err *err)
{
    cleanup_json json_t *body = json_object(), *answer = NULL;
    if (!body)
        return err_no_memory(err);
    return cli_need(c->values.role, "role", err) && codec_json_set_text(body, "name", c->words[0], err) &&
        codec_json_set_text(body, "role", c->values.role, err) && add_new_password(&c->values, body, err) &&
        cli_send(c, "POST", "/api/v1/users", body, false, &answer, err) && say_user(c, answer);
}

bool command_user_list(Cli *c, Err *err)
{
    cleanup_json json_t *answer = NULL;
    cleanup(table_clear) Table t = {.titles = {"NAME", "ROLE", "CREATED (UTC)", "BY", "LAST LOGIN (UTC)", "REMARKS"}};
    if (!cli_get(c, "/api/v1/users", &answer, err))
        return false;
    if (cli_said_json(c, answer))
        return true;
    size_t i;
    json_t *e;
    json_array_foreach(cli_list(answer, "users"), i, e)
    {
        char created[TEXT_TIME], login[TEXT_TIME];
        text_time(cli_text(e, "created_at"), created);
        text_time(cli_text(e, "login_at"), login);
        const char *const cells[] = {
            cli_text(e, "name"),       cli_text(e, "role"),   created,
            cli_text(e, "created_by"), *login ? login : NULL, cli_flag(e, "disabled") ? "disabled" : NULL};
        if (!table_row(&t, cells, err))
            return false;
    }
    table_print(&t, stdout);
    return true;
}

bool command_user_set(Cli *c, Err *err)
{
    const CliValues *v = &c->values;
    bool password = v->ask_password || v->password_file || v->password_fd;
    cleanup_json json_t *body = json_object(), *answer = NULL;
    cleanup_free char *path = cli_path("users", c->words[0], NULL, err);
    if (!body || !path)
        return err_no_memory(err);
    if (v->disable && v->enable)
        return err_set(err, ERR_USAGE, "--disable and --enable exclude each other");
    if (!v->role && !password && !v->disable && !v->enable)
        return err_set(err, ERR_USAGE, "nothing to change; see sendense help user set");
    return (!v->role || codec_json_set_text(body, "role", v->role, err)) &&
        (!password || add_new_password(v, body, err)) &&
        (!(v->disable || v->enable) || codec_json_set_bool(body, "disabled", v->disable, err)) &&
        cli_send(c, "PATCH", path, body, false, &answer, err) && say_user(c, answer);
}

bool command_user_remove(Cli *c, Err *err)
{
    cleanup_json json_t *answer = NULL;
    cleanup_free char *path = cli_path("users", c->words[0], NULL, err);
    if (!path || !cli_send(c, "DELETE", path, NULL, false, &answer, err))
        return false;
    if (!cli_said_json(c, answer))
        cli_show("removed", c->words[0]);
    return true;
}

// ---- the audit log

bool command_audit_list(Cli *c, Err *err)
{
    cleanup_json json_t *answer = NULL;
    cleanup(table_clear)
        Table t = {.titles = {">ID", "TIME (UTC)", "ACTOR", "ROLE", "FROM", "METHOD", "PATH", "WHAT", ">STATUS"}};
    StrBuf path = STR_BUF(4096);
    bool ok = str_addf(&path, err, "/api/v1/audit?newest_first=true&limit=%" PRIu64,
                       c->values.limit ? c->values.limit : 100) &&
        cli_query(&path, "actor", c->values.actor, err) &&
        cli_query(&path, "min_status", c->values.failed ? "400" : NULL, err) && cli_get(c, path.s, &answer, err);
    str_clear(&path);
    if (!ok || cli_said_json(c, answer))
        return ok;
    size_t i;
    json_t *e;
    json_array_foreach(cli_list(answer, "entries"), i, e)
    {
        char id[24], status[24], time[TEXT_TIME];
        (void)snprintf(id, sizeof(id), "%" PRIu64, cli_u64(e, "id"));
        (void)snprintf(status, sizeof(status), "%" PRIu64, cli_u64(e, "status"));
        text_time(cli_text(e, "at"), time);
        const char *const cells[] = {id,
                                     time,
                                     cli_text(e, "actor"),
                                     *cli_text(e, "role") ? cli_text(e, "role") : NULL,
                                     cli_text(e, "remote"),
                                     cli_text(e, "method"),
                                     cli_text(e, "path"),
                                     *cli_text(e, "object") ? cli_text(e, "object") : NULL,
                                     status};
        if (!table_row(&t, cells, err))
            return false;
    }
    table_print(&t, stdout);
    return true;
}

typedef struct Chain {
    uint64_t rows, wrong; // wrong: ID of the first row that does not fit; 0: none
    char hash[TRAIL_HASH_TEXT];
    bool known_seen; // the hash that was given is one of the chain's
} Chain;

static bool follow(Chain *chain, const json_t *entries, const char *known, Err *err)
{
    size_t i;
    json_t *e;
    json_array_foreach(entries, i, e)
    {
        char hash[TRAIL_HASH_TEXT];
        TrailRow row = {.id = (int64_t)cli_u64(e, "id"),
                        .at = cli_text(e, "at"),
                        .actor = cli_text(e, "actor"),
                        .role = cli_text(e, "role"),
                        .remote = cli_text(e, "remote"),
                        .method = cli_text(e, "method"),
                        .path = cli_text(e, "path"),
                        .object = cli_text(e, "object"),
                        .status = (int64_t)cli_u64(e, "status")};
        if (!trail_hash(&row, chain->hash, hash, err))
            return false;
        chain->rows++;
        if ((row.id != (int64_t)chain->rows || !str_eq(hash, cli_text(e, "hash"))) && chain->wrong == 0)
            chain->wrong = chain->rows;
        (void)snprintf(chain->hash, sizeof(chain->hash), "%s", cli_text(e, "hash"));
        chain->known_seen = chain->known_seen || (known && str_eq(known, chain->hash));
    }
    return true;
}

static bool follow_all(Cli *c, Chain *chain, Err *err)
{
    for (;;) {
        cleanup_json json_t *answer = NULL;
        StrBuf path = STR_BUF(256);
        bool ok = str_addf(&path, err, "/api/v1/audit?limit=%d&after=%" PRIu64, PAGE, chain->rows) &&
            cli_get(c, path.s, &answer, err);
        str_clear(&path);
        if (!ok || !follow(chain, cli_list(answer, "entries"), c->values.head, err))
            return false;
        if (chain->wrong > 0 || json_array_size(cli_list(answer, "entries")) < PAGE)
            return true;
    }
}

bool command_audit_verify(Cli *c, Err *err)
{
    const char *known = c->values.head;
    Chain chain = {.hash = TRAIL_FIRST, .known_seen = known && str_eq(known, TRAIL_FIRST)}; // a log without rows has it
    if (known && (strlen(known) != TRAIL_HASH_TEXT - 1 || strspn(known, "0123456789abcdef") != TRAIL_HASH_TEXT - 1))
        return err_set(err, ERR_USAGE, "option --head: %s is no head: that is 64 hex digits, as audit verify prints it",
                       known);
    cleanup_json json_t *answer = json_object();
    if (!answer)
        return err_no_memory(err);
    if (!follow_all(c, &chain, err))
        return false;
    bool lost = c->values.head && !chain.known_seen, ok = chain.wrong == 0 && !lost;
    if (!codec_json_set_bool(answer, "ok", ok, err) || !codec_json_set_u64(answer, "rows", chain.rows, err) ||
        !codec_json_set_text(answer, "head", chain.hash, err) ||
        !codec_json_set(answer, "wrong_at", chain.wrong ? json_integer((json_int_t)chain.wrong) : json_null(), err) ||
        !codec_json_set_bool(answer, "known_head_missing", lost, err))
        return false;
    c->exit_status = ok ? 0 : CLI_EXIT_DAMAGED;
    if (cli_said_json(c, answer))
        return true;
    (void)printf("%-16s%" PRIu64 "\n", "rows:", chain.rows);
    cli_show("head", chain.hash);
    if (chain.wrong > 0)
        cli_note("the audit log is not what was written: row %" PRIu64 " was changed, or one before it taken out",
                 chain.wrong);
    if (lost)
        cli_note("the audit log does not have the head that was noted: rows were taken out, or all was written anew");
    return true;
}
