#pragma once

#include "history.h"

// Anything but a backup.
bool steps_any(History *h, Err *err) must_check;

// steps_spoil.c: files of the repository are damaged, for a while or for a moment.
bool steps_spoil(History *h, Err *err) must_check;
