// The hub's settings: files, environment, options, in this order. docs/reference/hub.md lists them.
#pragma once

#include "base/secret.h"
#include "service/hub/hub.h"

typedef struct Settings { // text owned
    bool auth, let_anybody_in, new_admin_token, tls, check_config, help, version;
    uint64_t port, db_port, max_jobs, chain_limit, lease, hub_lease, claim_timeout, export_idle, keep_interrupted,
        checkpoint, audit, dump_keep, dump_hour, dump_delay;
    char *config, *listen, *data_dir, *key_file, *run_dir, *plugin, *client, *hub_name, *dump_to, *tls_cert, *tls_key;
    char *db_host, *db_name, *db_user, *db_pass, *db_pass_file, *db_tls, *db_tls_ca;
    char *to; // of the command migrate-database
    bool pass_on_command_line;
} Settings;

#define SETTINGS_FILE "/etc/sendense/hub.conf" // and the folder hub.conf.d beside it

// Everything is read and checked as far as it can be without looking at other files. ERR_USAGE. *ret is to be cleared,
// also after an error.
bool settings_load(int argc, char *const *argv, Settings *ret, Err *err) must_check;
void settings_clear(Settings *s);
void settings_print_help(void);
void settings_print(const Settings *s); // name = value, as they are in effect; no password
const char *settings_data_dir(const Settings *s);
// That a data folder, where it is there, is of the user who runs this: what a command makes in another one's, that
// one's hub could not open. ERR_USAGE.
bool settings_check_owner(const char *data_dir, Err *err) must_check;
HubLimits settings_limits(const Settings *s);
// Names of settings, but for limits, in which the two differ: a running hub cannot change these. At most n.
size_t settings_fixed_changes(const Settings *a, const Settings *b, const char **ret_names, size_t n);
// Of db-host and the others, with the password and what TLS they mean; borrowed. There has to be a db-host.
bool settings_mariadb(const Settings *s, const Secret *password, StoreMariadb *ret, Err *err) must_check;
// From the options, the environment or a file, in this order; one that a file ends with a line feed is without it.
bool settings_database_password(const Settings *s, Secret *ret, Err *err) must_check;
