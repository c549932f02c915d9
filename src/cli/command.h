// The commands, in one table: help, man page and completion follow from it.
#pragma once

#include "cli/cli.h"

#define COMMAND_OPTIONS 16

typedef struct Command {
    const char *name;    // one or two words: "repo add"
    const char *usage;   // what follows the name, every option named
    const char *summary; // one line, without a full stop
    const char *notes;   // more for --help; may be NULL
    unsigned min_words, max_words;
    const char *options[COMMAND_OPTIONS]; // names in option.h's table, besides the global ones; NULL ends them
    // False: *err says why, and decides the exit status. True: c->exit_status is it.
    bool (*run)(Cli *c, Err *err);
} Command;

extern const Command command_table[]; // a NULL name ends it

bool command_repo_add(Cli *c, Err *err) must_check;
bool command_repo_list(Cli *c, Err *err) must_check;
bool command_repo_show(Cli *c, Err *err) must_check;
bool command_repo_scan(Cli *c, Err *err) must_check;
bool command_repo_remove(Cli *c, Err *err) must_check;
bool command_source_add(Cli *c, Err *err) must_check;
bool command_source_list(Cli *c, Err *err) must_check;
bool command_source_show(Cli *c, Err *err) must_check;
bool command_source_test(Cli *c, Err *err) must_check;
bool command_source_set(Cli *c, Err *err) must_check;
bool command_source_remove(Cli *c, Err *err) must_check;
bool command_discover(Cli *c, Err *err) must_check;
bool command_vm_add(Cli *c, Err *err) must_check;
bool command_vm_list(Cli *c, Err *err) must_check;
bool command_vm_show(Cli *c, Err *err) must_check;
bool command_vm_change(Cli *c, Err *err) must_check;
bool command_vm_remove(Cli *c, Err *err) must_check;
bool command_backup(Cli *c, Err *err) must_check;
bool command_points_list(Cli *c, Err *err) must_check;
bool command_points_show(Cli *c, Err *err) must_check;
bool command_points_cancel(Cli *c, Err *err) must_check;
bool command_points_delete(Cli *c, Err *err) must_check;
bool command_restore(Cli *c, Err *err) must_check;
bool command_verify(Cli *c, Err *err) must_check;
bool command_clean(Cli *c, Err *err) must_check;
bool command_hub_health(Cli *c, Err *err) must_check;
bool command_hub_list(Cli *c, Err *err) must_check;
bool command_hub_reload(Cli *c, Err *err) must_check;
bool command_hub_backup_database(Cli *c, Err *err) must_check;
bool command_hub_database_backups(Cli *c, Err *err) must_check;
bool command_hub_exports(Cli *c, Err *err) must_check;
bool command_hub_export_end(Cli *c, Err *err) must_check;
bool command_login(Cli *c, Err *err) must_check;
bool command_logout(Cli *c, Err *err) must_check;
bool command_token_create(Cli *c, Err *err) must_check;
bool command_token_list(Cli *c, Err *err) must_check;
bool command_token_revoke(Cli *c, Err *err) must_check;
bool command_user_add(Cli *c, Err *err) must_check;
bool command_user_list(Cli *c, Err *err) must_check;
bool command_user_set(Cli *c, Err *err) must_check;
bool command_user_remove(Cli *c, Err *err) must_check;
bool command_audit_list(Cli *c, Err *err) must_check;
bool command_audit_verify(Cli *c, Err *err) must_check;
