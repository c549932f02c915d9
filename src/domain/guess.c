#include "domain/guess.h"

#include "base/str.h"

#include <arpa/inet.h>
#include <stdio.h>

void guesses_address(const char *remote, char out[GUESS_KEY_MAX])
{
    struct in6_addr six;
    if (inet_pton(AF_INET6, remote, &six) != 1) {
        (void)snprintf(out, GUESS_KEY_MAX, "%s", remote);
    } else if (IN6_IS_ADDR_V4MAPPED(&six)) {
        (void)inet_ntop(AF_INET, &six.s6_addr[12], out, GUESS_KEY_MAX); // it has the room
    } else {
        memset(&six.s6_addr[8], 0, 8);
        (void)inet_ntop(AF_INET6, &six, out, GUESS_KEY_MAX);
    }
}

// Keys that are longer than the room for them share a bucket with others: no way around the limit.
static bool is_key(const GuessBucket *b, const char *key)
{
    return strncmp(b->key, key, sizeof(b->key) - 1) == 0;
}

static size_t find(const Guesses *g, const char *key)
{
    size_t i = 0;
    while (i < g->len && !is_key(&g->buckets[i], key))
        i++;
    return i;
}

int64_t guesses_wait_s(const Guesses *g, const char *key, GuessRule rule, int64_t now_us)
{
    size_t i = find(g, key);
    if (i == g->len)
        return 0;
    // one more has to fit
    int64_t over = g->buckets[i].full_us + rule.each_us - now_us - (int64_t)rule.burst * rule.each_us;
    return over <= 0 ? 0 : (over + 999999) / 1000000;
}

static GuessBucket *place_for(Guesses *g, const char *key)
{
    size_t i = find(g, key);
    if (i == g->len && g->len < GUESS_KEYS) {
        g->buckets[g->len++].full_us = 0;
    } else if (i == g->len) {
        i = 0;
        for (size_t k = 1; k < g->len; k++)
            if (g->buckets[k].full_us < g->buckets[i].full_us)
                i = k;
        g->buckets[i].full_us = 0;
    }
    (void)snprintf(g->buckets[i].key, sizeof(g->buckets[i].key), "%s", key); // cut on purpose
    return &g->buckets[i];
}

void guesses_failed(Guesses *g, const char *key, GuessRule rule, int64_t now_us)
{
    GuessBucket *b = place_for(g, key);
    b->full_us = MAX(b->full_us, now_us) + rule.each_us;
}

void guesses_forgive(Guesses *g, const char *key, GuessRule rule)
{
    size_t i = find(g, key);
    if (i < g->len)
        g->buckets[i].full_us -= rule.each_us;
}

void guesses_forget(Guesses *g, const char *key)
{
    size_t i = find(g, key);
    if (i < g->len)
        g->buckets[i] = g->buckets[--g->len];
}
