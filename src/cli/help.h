// What the CLI says of itself, from the table of commands.
#pragma once

#include "cli/command.h"

void help_all(void); // every command, the global options, exit statuses
void help_command(const Command *command);
void help_group(const char *group);   // "repo": its commands
bool help_is_group(const char *word); // the first of two words of some command
void help_completion(void);           // a completion script for bash
