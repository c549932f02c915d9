// The spec of a VM of type "qemu": {"type", "qmp", "agent"?, "freeze"?: "auto" | "off" | "require", "scratch"?}.
#pragma once

#include "source/common.h"

typedef enum QemuFreeze { FREEZE_AUTO, FREEZE_OFF, FREEZE_REQUIRE } QemuFreeze;

typedef struct QemuSpec { // texts borrowed from the JSON
    const char *qmp;
    const char *agent; // NULL: none
    QemuFreeze freeze;
    const char *scratch; // folder; NULL: the default
} QemuSpec;

bool qemu_spec_read(const json_t *spec, QemuSpec *ret, Err *err) must_check;
