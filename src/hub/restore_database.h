// sendense-hub restore-database: the hub's database of a backup of it, or of a repository alone.
#pragma once

// argv[0] is the command's name. Returns the program's exit status.
int restore_database(int argc, char *const *argv);
