// What killed runs of a VM left in its QEMU: SourceOps.sweep.
#pragma once

#include "source/source.h"

bool qemu_sweep(const SourceSweep *s, Err *err) must_check;
