/* SHA-256: FIPS 180-4, sections 4.1.2, 5.1.1, 5.3.3 and 6.2.2. */
#include <stdio.h>
#include <string.h>

#include "internal.h"

enum { BLOCK = 64, WORDS = 8, ROUNDS = 64 };

/* The first 32 bits of the fractional parts of the cube roots of the first 64 primes. */
static const uint32_t CONSTANTS[ROUNDS] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotated(uint32_t x, int by) { return x >> by | x << (32 - by); }

static void schedule(uint32_t *w, const unsigned char *block) {
    for (int t = 0; t < 16; t++, block += 4)
        w[t] = (uint32_t)block[0] << 24 | (uint32_t)block[1] << 16 | (uint32_t)block[2] << 8 | block[3];
    for (int t = 16; t < ROUNDS; t++) {
        uint32_t low = rotated(w[t - 15], 7) ^ rotated(w[t - 15], 18) ^ w[t - 15] >> 3;
        uint32_t high = rotated(w[t - 2], 17) ^ rotated(w[t - 2], 19) ^ w[t - 2] >> 10;
        w[t] = high + w[t - 7] + low + w[t - 16];
    }
}

/* One round; the next one is called with its arguments turned by one place, so that none has to move. */
static inline void turn(uint32_t a, uint32_t b, uint32_t c, uint32_t *d, uint32_t e, uint32_t f, uint32_t g,
                        uint32_t *h, uint32_t word) {
    uint32_t chosen = (e & f) ^ (~e & g), most = (a & b) ^ (a & c) ^ (b & c);
    uint32_t one = *h + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + chosen + word;
    *d += one;
    *h = one + (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + most;
}

static void add_block(uint32_t *hash, const unsigned char *block) {
    uint32_t w[ROUNDS];
    uint32_t a = hash[0], b = hash[1], c = hash[2], d = hash[3];
    uint32_t e = hash[4], f = hash[5], g = hash[6], h = hash[7];
    schedule(w, block);
    for (int t = 0; t < ROUNDS; t += 8) {
        const uint32_t *k = CONSTANTS + t, *x = w + t;
        turn(a, b, c, &d, e, f, g, &h, k[0] + x[0]);
        turn(h, a, b, &c, d, e, f, &g, k[1] + x[1]);
        turn(g, h, a, &b, c, d, e, &f, k[2] + x[2]);
        turn(f, g, h, &a, b, c, d, &e, k[3] + x[3]);
        turn(e, f, g, &h, a, b, c, &d, k[4] + x[4]);
        turn(d, e, f, &g, h, a, b, &c, k[5] + x[5]);
        turn(c, d, e, &f, g, h, a, &b, k[6] + x[6]);
        turn(b, c, d, &e, f, g, h, &a, k[7] + x[7]);
    }
    hash[0] += a, hash[1] += b, hash[2] += c, hash[3] += d;
    hash[4] += e, hash[5] += f, hash[6] += g, hash[7] += h;
}

void sha256_text(const void *data, size_t size, char *text) {
    /* the first 32 bits of the fractional parts of the square roots of the first 8 primes */
    uint32_t hash[WORDS] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                            0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    unsigned char last[2 * BLOCK] = {0};
    const unsigned char *at = data;
    size_t rest = size % BLOCK, end = rest < BLOCK - 8 ? BLOCK : 2 * BLOCK;
    for (size_t i = 0; i < size / BLOCK; i++, at += BLOCK) add_block(hash, at);
    memcpy(last, at, rest);
    last[rest] = 0x80;
    for (size_t i = 0; i < 8; i++) last[end - 1 - i] = (unsigned char)((uint64_t)size << 3 >> 8 * i);
    for (size_t i = 0; i < end; i += BLOCK) add_block(hash, last + i);
    for (int i = 0; i < WORDS; i++) snprintf(text + 8 * i, 9, "%08x", hash[i]);
}
