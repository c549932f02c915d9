// How far something is, on standard error: bars that are redrawn on a terminal, a line now and then elsewhere.
#pragma once

#include "cli/rate.h"
#include "cli/text.h"

#define PROGRESS_BARS 16   // disks that get a bar of their own; all of them together have one besides
#define PROGRESS_LINE 1024 // bytes
#define PROGRESS_PLAIN_MS 10000

typedef struct ProgressItem {
    const char *label;   // borrowed
    uint64_t done, size; // bytes
} ProgressItem;

typedef struct Progress {
    FILE *f;
    bool terminal, quiet;
    unsigned lines;   // that are on the terminal now
    int64_t shown_ms; // the last plain line
    Rate rates[PROGRESS_BARS];
    Rate total;
} Progress;

// quiet: notes only.
void progress_begin(Progress *p, FILE *f, bool quiet);
// Call it as often as there is news. what: what is going on, for the plain lines.
void progress_show(Progress *p, const char *what, const ProgressItem *items, size_t n);
// A line that stays, cleaned.
void progress_note(Progress *p, const char *fmt, ...) printf_like(2, 3);
// Removes the bars. Showing may begin anew.
void progress_end(Progress *p);

// One bar of at most `columns` columns, without a newline.
void progress_bar(const ProgressItem *item, const Rate *rate, unsigned columns, char out[PROGRESS_LINE]);
// "45%, 9.0 GiB of 20.0 GiB, 310.0 MiB/s, 0:42 left"
void progress_words(const ProgressItem *item, const Rate *rate, char out[PROGRESS_LINE]);
