// A limit on guessing: who failed often has to wait. Buckets by key (an address, a name): so many failures at once, and
// then one more each so often. Pure; the caller brings the clock, and a lock.
#pragma once

#include "base/mem.h"

#define GUESS_KEYS 1024 // remembered; beyond, those whose last failure is the longest ago are forgotten
#define GUESS_KEY_MAX 288

typedef struct GuessRule {
    unsigned burst;
    int64_t each_us;
} GuessRule;

typedef struct GuessBucket {
    char key[GUESS_KEY_MAX];
    int64_t full_us; // when all of it is paid back; what is owed is (full_us - now) / each_us failures
} GuessBucket;

typedef struct Guesses {
    GuessBucket buckets[GUESS_KEYS];
    size_t len;
} Guesses;

// The key of an address as inet_ntop() writes it: of IPv6 the first 64 bits, since one line of it is 2^64 addresses; an
// IPv4 address within IPv6 is what it holds.
void guesses_address(const char *remote, char out[GUESS_KEY_MAX]);
// Seconds until the key may try again; 0: now.
int64_t guesses_wait_s(const Guesses *g, const char *key, GuessRule rule, int64_t now_us);
void guesses_failed(Guesses *g, const char *key, GuessRule rule, int64_t now_us);
void guesses_forgive(Guesses *g, const char *key, GuessRule rule); // one of them was none
void guesses_forget(Guesses *g, const char *key); // it is known who that is
