#include "hub/settings.h"

#include "base/config.h"
#include "base/file.h"
#include "base/str.h"
#include "domain/audit.h"
#include "domain/chain.h"
#include "store/hosts.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <pwd.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define PREFIX "SENDENSE"
#define TABLE_MAX 48
#define DATA_DIR "/var/lib/sendense"

// Of no sense in a file or the environment.
static const char *const command_line_only[] = {"config", "check-config", "new-admin-token", "to", "help", "version",
                                                NULL};

static void fill_table(Settings *o, Opt table[TABLE_MAX])
{
    const Opt all[] = {
        {"config", OPT_TEXT, &o->config, 0, 0, "FILE", "settings; default " SETTINGS_FILE ", if it is there"},
        {"port", OPT_U64, &o->port, 0, 65535, "PORT", "port of the API, 0 for any free one; default 8082"},
        {"listen", OPT_TEXT, &o->listen, 0, 0, "ADDRESS", "address to listen on; default 127.0.0.1"},
        {"auth", OPT_FLAG, &o->auth, 0, 0, NULL, "-auth=false: nobody has to authenticate"},
        {"tls", OPT_FLAG, &o->tls, 0, 0, NULL, "-tls=false: no HTTPS; other machines may come without it"},
        {"tls-cert", OPT_TEXT, &o->tls_cert, 0, 0, "FILE",
         "certificate, and its chain, in PEM; default: one of its own, made in DIR/tls.pem"},
        {"tls-key", OPT_TEXT, &o->tls_key, 0, 0, "FILE", "its private key"},
        {"let-anybody-in", OPT_FLAG, &o->let_anybody_in, 0, 0, NULL,
         "with -auth=false: also on an address that others reach"},
        {"new-admin-token", OPT_FLAG, &o->new_admin_token, 0, 0, NULL,
         "make another token of an admin, in DIR/admin-token"},
        {"data-dir", OPT_TEXT, &o->data_dir, 0, 0, "DIR", "database and logs; default " DATA_DIR},
        {"key-file", OPT_TEXT, &o->key_file, 0, 0, "FILE", "opens the sources' passwords; default: DIR/secret.key"},
        {"run-dir", OPT_TEXT, &o->run_dir, 0, 0, "DIR", "sockets; default: a short folder below /run or /tmp"},
        {"max-jobs", OPT_U64, &o->max_jobs, 1, 256, "N", "jobs that run at a time; default 4"},
        {"chain-limit", OPT_U64, &o->chain_limit, 1, 200, "N", "points in a chain, then a full; default 30"},
        {"lease", OPT_U64, &o->lease, 2, 86400, "SECONDS", "a client silent for longer has failed; default 30"},
        {"hub-lease", OPT_U64, &o->hub_lease, 2, 3600, "SECONDS",
         "a hub silent for longer loses its jobs to another one on its database; default 30"},
        {"hub-name", OPT_TEXT, &o->hub_name, 0, 0, "NAME", "that other hubs show; default the machine's name"},
        {"claim-timeout", OPT_U64, &o->claim_timeout, 1, 86400, "SECONDS", "for a job that nobody claims; default 600"},
        {"export-idle", OPT_U64, &o->export_idle, 1, 86400, "SECONDS", "for an export that nobody reads; default 600"},
        {"keep-interrupted", OPT_U64, &o->keep_interrupted, 0, 8760, "HOURS",
         "what a failed backup left, for the next to go on from; default 72"},
        {"checkpoint-mib", OPT_U64, &o->checkpoint, 1, 1048576, "N",
         "MiB after which an interrupted backup can go on; default 1024"},
        {"audit-blocks", OPT_U64, &o->audit, 0, AUDIT_BLOCKS_MAX, "N",
         "of each increment, looked at though tracking calls them unchanged; default 3000"},
        {"database-backup-keep", OPT_U64, &o->dump_keep, 0, 366, "DAYS",
         "of the daily backups of the hub's database; 0: none is made; default 14"},
        {"database-backup-hour", OPT_U64, &o->dump_hour, 0, 23, "HOUR", "at which it is made, in UTC; default 1"},
        {"database-backup-delay", OPT_U64, &o->dump_delay, 0, 86400, "SECONDS",
         "after the start, before one that is due is made; default 300"},
        {"database-backup-to", OPT_TEXT, &o->dump_to, 0, 0, "REPOSITORY", "where to; default: each repository"},
        {"plugin", OPT_TEXT, &o->plugin, 0, 0, "FILE", "nbdkit-sendense-plugin.so; default: beside this program"},
        {"client", OPT_TEXT, &o->client, 0, 0, "FILE", "sendense-backup-client; default: beside this program"},
        {"db-host", OPT_TEXT, &o->db_host, 0, 0, "HOST[:PORT][,…]",
         "MariaDB's host, up to 8 of a Galera cluster, or a socket's path; without it: embedded SQLite"},
        {"db-port", OPT_U64, &o->db_port, 1, 65535, "PORT", "MariaDB's port; default 3306"},
        {"db-name", OPT_TEXT, &o->db_name, 0, 0, "NAME", "MariaDB's database"},
        {"db-user", OPT_TEXT, &o->db_user, 0, 0, "USER", "MariaDB's user"},
        {"db-pass", OPT_TEXT, &o->db_pass, 0, 0, "PASSWORD", "MariaDB's password (visible to all users here)"},
        {"db-pass-file", OPT_TEXT, &o->db_pass_file, 0, 0, "FILE", "a file that holds MariaDB's password"},
        {"db-tls", OPT_TEXT, &o->db_tls, 0, 0, "required|unverified|off",
         "TLS to MariaDB; default: off to this machine, else required, with a certificate that is good for db-host"},
        {"db-tls-ca", OPT_TEXT, &o->db_tls_ca, 0, 0, "FILE",
         "the CA of MariaDB's certificate; default: what the system trusts"},
        {"to", OPT_TEXT, &o->to, 0, 0, "mariadb|embedded", "for migrate-database: where the catalogue goes"},
        {"check-config", OPT_FLAG, &o->check_config, 0, 0, NULL, "say what is in effect, or what is wrong, and end"},
        {"help", OPT_FLAG, &o->help, 0, 0, NULL, "this text"},
        {"version", OPT_FLAG, &o->version, 0, 0, NULL, "the version"},
        {NULL, OPT_FLAG, NULL, 0, 0, NULL, NULL},
    };
    _Static_assert(ARRAY_LEN(all) <= TABLE_MAX, "TABLE_MAX");
    memcpy(table, all, sizeof(all));
}

static void set_defaults(Settings *s)
{
    *s = (Settings){.auth = true,
                    .tls = true,
                    .port = 8082,
                    .db_port = 3306,
                    .max_jobs = 4,
                    .chain_limit = CHAIN_LIMIT_DEFAULT,
                    .lease = 30,
                    .hub_lease = 30,
                    .claim_timeout = 600,
                    .export_idle = 600,
                    .keep_interrupted = 72,
                    .checkpoint = 1024,
                    .audit = AUDIT_BLOCKS_DEFAULT,
                    .dump_keep = 14,
                    .dump_hour = 1,
                    .dump_delay = 300};
}

static bool read_files(const char *said, const Opt *table, Err *err)
{
    const char *path = said ? said : SETTINGS_FILE;
    cleanup_free char *folder = mem_printf(err, "%s.d", path);
    bool there = true; // what is named has to be
    return folder && (said || config_is_there(path, &there, err)) &&
        (!there || config_file(path, table, command_line_only, err)) &&
        config_folder(folder, table, command_line_only, err);
}

static bool read_options(int argc, char *const *argv, const Opt *table, Err *err)
{
    OptList rest = {0};
    if (!opt_parse(argc, argv, table, false, &rest, err))
        return false;
    bool ok = rest.len == 0 || err_set(err, ERR_USAGE, "\"%s\" is not an option; see --help", rest.items[0]);
    opt_list_clear_borrowed(&rest);
    return ok;
}

// ---- what does not fit together

static bool is_loopback(const char *address)
{
    struct in_addr v4;
    struct in6_addr v6;
    if (!address)
        return true; // the default
    return inet_pton(AF_INET, address, &v4) == 1 ? ntohl(v4.s_addr) >> 24 == 127
                                                 : inet_pton(AF_INET6, address, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

// All of them.
static bool is_this_machine(const StoreHosts *hosts)
{
    bool here = true;
    for (size_t i = 0; i < hosts->len; i++) {
        const char *name = hosts->at[i].name;
        here = here && (name[0] == '/' || strcasecmp(name, "localhost") == 0 || is_loopback(name));
    }
    return here;
}

// What leaves this machine is encrypted, and to the right one, unless something else is said in words.
static StoreTls tls_of(const Settings *s)
{
    if (s->db_tls)
        return str_eq(s->db_tls, "required") ? STORE_TLS_REQUIRED
                                             : (str_eq(s->db_tls, "off") ? STORE_TLS_OFF : STORE_TLS_UNVERIFIED);
    StoreHosts hosts;
    Err bad = ERR_INIT; // check() says so
    bool here = store_hosts_parse(s->db_host, (unsigned)s->db_port, &hosts, &bad) && is_this_machine(&hosts);
    return s->db_tls_ca || !here ? STORE_TLS_REQUIRED : STORE_TLS_OFF;
}

static bool check_tls(const Settings *s, Err *err)
{
    if (s->db_tls && !str_eq(s->db_tls, "required") && !str_eq(s->db_tls, "unverified") && !str_eq(s->db_tls, "off"))
        return err_set(err, ERR_USAGE, "--db-tls is required, unverified or off");
    if (s->db_tls_ca && tls_of(s) != STORE_TLS_REQUIRED)
        return err_set(err, ERR_USAGE, "--db-tls-ca goes with --db-tls required");
    if (s->db_host[0] == '/' && tls_of(s) != STORE_TLS_OFF)
        return err_set(err, ERR_USAGE, "--db-host %s is a socket of this machine; there is no TLS over it", s->db_host);
    return true;
}

static bool check(const Settings *s, Err *err)
{
    if (!s->auth && !s->let_anybody_in && !is_loopback(s->listen))
        return err_set(err, ERR_USAGE,
                       "-auth=false and --listen %s: whoever reaches that address could read and delete every backup; "
                       "HINT: leave out one of them, or say --let-anybody-in",
                       s->listen);
    if (!s->tls_cert != !s->tls_key)
        return err_set(err, ERR_USAGE, "--tls-cert and --tls-key go together");
    if (s->tls_cert && !s->tls)
        return err_set(err, ERR_USAGE, "--tls-cert and -tls=false exclude each other");
    if (!s->db_host && (s->db_name || s->db_user || s->db_pass || s->db_pass_file || s->db_tls || s->db_tls_ca))
        return err_set(err, ERR_USAGE, "--db-name, --db-user, TLS and a password go with --db-host");
    if (s->db_host && (!s->db_name || !s->db_user))
        return err_set(err, ERR_USAGE, "--db-host needs --db-name and --db-user");
    StoreHosts hosts;
    return !s->db_host || (store_hosts_parse(s->db_host, (unsigned)s->db_port, &hosts, err) && check_tls(s, err));
}

bool settings_load(int argc, char *const *argv, Settings *ret, Err *err)
{
    Opt table[TABLE_MAX];
    Settings said;
    set_defaults(&said);
    set_defaults(ret);
    fill_table(&said, table); // once for itself: it names the file, and what is wrong with it comes first
    if (!read_options(argc, argv, table, err)) {
        settings_clear(&said);
        return false;
    }
    fill_table(ret, table);
    bool ok = said.help || said.version || // whatever is in files
        (read_files(said.config, table, err) && config_environment(PREFIX, table, command_line_only, err));
    ok = ok && read_options(argc, argv, table, err) && (ret->help || ret->version || check(ret, err));
    ret->pass_on_command_line = said.db_pass != NULL;
    settings_clear(&said);
    return ok;
}

void settings_clear(Settings *s)
{
    char *texts[] = {s->config,   s->listen,    s->data_dir, s->key_file, s->run_dir, s->plugin,  s->client,
                     s->tls_cert, s->tls_key,   s->db_host,  s->db_name,  s->db_user, s->db_pass, s->db_pass_file,
                     s->db_tls,   s->db_tls_ca, s->to,       s->dump_to,  s->hub_name};
    for (size_t i = 0; i < ARRAY_LEN(texts); i++)
        free(texts[i]);
}

void settings_print_help(void)
{
    Opt table[TABLE_MAX];
    Settings s;
    set_defaults(&s);
    fill_table(&s, table);
    opt_print_help(table);
}

static bool is_command_line_only(const char *name)
{
    for (const char *const *n = command_line_only; *n; n++)
        if (str_eq(*n, name))
            return true;
    return false;
}

// NULL: none, or one that follows from others.
static const char *text_in_effect(const Opt *o)
{
    const char *said = *(char *const *)o->target;
    return said ? said : str_eq(o->name, "data-dir") ? DATA_DIR : str_eq(o->name, "listen") ? "127.0.0.1" : NULL;
}

void settings_print(const Settings *s)
{
    Opt table[TABLE_MAX];
    Settings copy = *s; // the table wants targets that can be written to
    fill_table(&copy, table);
    for (const Opt *o = table; o->name; o++) {
        if (is_command_line_only(o->name))
            continue;
        if (o->kind == OPT_U64)
            (void)printf("%s = %" PRIu64 "\n", o->name, *(const uint64_t *)o->target);
        else if (o->kind == OPT_FLAG)
            (void)printf("%s = %s\n", o->name, *(const bool *)o->target ? "true" : "false");
        else if (text_in_effect(o))
            (void)printf("%s = %s\n", o->name, str_eq(o->name, "db-pass") ? "(not shown)" : text_in_effect(o));
    }
}

const char *settings_data_dir(const Settings *s)
{
    return s->data_dir ? s->data_dir : DATA_DIR;
}

bool settings_check_owner(const char *data_dir, Err *err)
{
    struct stat st;
    if (stat(data_dir, &st) != 0 || st.st_uid == geteuid())
        return true; // opening what is in it says the rest
    const struct passwd *owner = getpwuid(st.st_uid);
    return err_set(err, ERR_USAGE, "the data folder %s belongs to another user; HINT: run this as %s", data_dir,
                   owner ? owner->pw_name : "its owner");
}

HubLimits settings_limits(const Settings *s)
{
    return (HubLimits){.max_jobs = (unsigned)s->max_jobs,
                       .chain_limit = (unsigned)s->chain_limit,
                       .lease_s = (unsigned)s->lease,
                       .claim_s = (unsigned)s->claim_timeout,
                       .export_idle_s = (unsigned)s->export_idle,
                       .keep_hours = (unsigned)s->keep_interrupted,
                       .checkpoint_mib = (unsigned)s->checkpoint,
                       .audit_blocks = (unsigned)s->audit,
                       .dump_keep = (unsigned)s->dump_keep,
                       .dump_hour = (unsigned)s->dump_hour,
                       .dump_delay_s = (unsigned)s->dump_delay};
}

static bool differs(const Opt *a, const Opt *b)
{
    const char *x, *y;
    switch (a->kind) {
    case OPT_U64: return *(const uint64_t *)a->target != *(const uint64_t *)b->target;
    case OPT_FLAG: return *(const bool *)a->target != *(const bool *)b->target;
    default:
        x = *(char *const *)a->target;
        y = *(char *const *)b->target;
        return (x && y) ? !str_eq(x, y) : x != y;
    }
}

size_t settings_fixed_changes(const Settings *a, const Settings *b, const char **ret_names, size_t n)
{
    static const char *const limits[] = {"max-jobs",
                                         "chain-limit",
                                         "lease",
                                         "claim-timeout",
                                         "export-idle",
                                         "keep-interrupted",
                                         "checkpoint-mib",
                                         "audit-blocks",
                                         "database-backup-keep",
                                         "database-backup-hour",
                                         "database-backup-delay"};
    Opt table_a[TABLE_MAX], table_b[TABLE_MAX];
    Settings copy_a = *a, copy_b = *b;
    size_t found = 0;
    fill_table(&copy_a, table_a);
    fill_table(&copy_b, table_b);
    for (size_t i = 0; table_a[i].name && found < n; i++) {
        bool limit = is_command_line_only(table_a[i].name);
        for (size_t k = 0; k < ARRAY_LEN(limits); k++)
            limit = limit || str_eq(limits[k], table_a[i].name);
        if (!limit && differs(&table_a[i], &table_b[i]))
            ret_names[found++] = table_a[i].name;
    }
    return found;
}

bool settings_mariadb(const Settings *s, const Secret *password, StoreMariadb *ret, Err *err)
{
    if (s->db_tls_ca && access(s->db_tls_ca, R_OK) != 0)
        return err_set(err, ERR_USAGE, "--db-tls-ca: %s: %s", s->db_tls_ca, strerrordesc_np(errno));
    *ret = (StoreMariadb){.host = s->db_host,
                          .port = (unsigned)s->db_port,
                          .name = s->db_name,
                          .user = s->db_user,
                          .password = password,
                          .tls = tls_of(s),
                          .tls_ca = s->db_tls_ca};
    return true;
}

bool settings_database_password(const Settings *s, Secret *ret, Err *err)
{
    cleanup_free char *text = NULL;
    size_t n = 0;
    if (s->db_pass || !s->db_pass_file)
        return secret_set(ret, s->db_pass, err);
    if (!file_read(s->db_pass_file, SECRET_MAX, &text, &n, err))
        return err_context(err, "db-pass-file");
    if (n > 0 && text[n - 1] == '\n')
        text[n - 1] = '\0';
    bool ok = secret_set(ret, text, err);
    explicit_bzero(text, n);
    return ok;
}
