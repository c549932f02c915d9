// Signals that ask the program to stop: SIGINT, SIGTERM, SIGHUP. They only set a flag; the third one ends the program
// at once. Process-wide.
#pragma once

#include <stdatomic.h>
#include <stdbool.h>

void stop_catch(void);
const atomic_bool *stop_flag(void); // for what waits elsewhere
int stop_signal(void);              // the last that came since stop_forget(); 0: none
void stop_forget(void);             // it was dealt with
// Waits, and no longer than until a signal comes. False if one has come.
bool stop_wait(int ms);
