#include "base/base.h"

/* splitmix64 and xoshiro256** are by Sebastiano Vigna and David Blackman, who dedicated them to the public domain
 * ("Scrambled Linear Pseudorandom Number Generators", 2018); written here from their definitions. */

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static uint64_t splitmix(uint64_t *state) { return mix(*state += 0x9E3779B97F4A7C15u); }

/* The stream is mixed before it meets the seed, so that (seed, stream + 1) and (seed + 1, stream) are unrelated.  Four
 * outputs in a row of splitmix64 are four different numbers: the state is never all zero. */
void fh_rng_seed(fh_rng *r, uint64_t seed, uint64_t stream)
{
    uint64_t state = stream;
    state = seed ^ splitmix(&state);
    for (int i = 0; i < 4; i++) r->s[i] = splitmix(&state);
}

static uint64_t rotl(uint64_t x, int k) { return x << k | x >> (64 - k); }

uint64_t fh_rng_u64(fh_rng *r)
{
    uint64_t *s = r->s, out = rotl(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotl(s[3], 45);
    return out;
}

double fh_rng_double(fh_rng *r) { return (double)(fh_rng_u64(r) >> 11) * 0x1p-53; }

uint64_t fh_rng_below(fh_rng *r, uint64_t n)
{
    uint64_t least = (0 - n) % n, x; /* 2^64 mod n: numbers below it would come once too often */
    do x = fh_rng_u64(r);
    while (x < least);
    return x % n;
}

void fh_rng_shuffle(fh_rng *r, uint32_t *v, size_t n)
{
    for (size_t i = n; i > 1; i--) {
        size_t j = (size_t)fh_rng_below(r, i);
        uint32_t t = v[i - 1];
        v[i - 1] = v[j], v[j] = t;
    }
}
