/* Which instruction sets this processor has, by the names /proc/cpuinfo uses. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__aarch64__)
#include <sys/auxv.h>
#include <sys/prctl.h>
#endif

#include "internal.h"

#if defined(__aarch64__)

/* Bits of Linux's arm64 ABI, asm/hwcap.h: those of AT_HWCAP, and those of AT_HWCAP2 after the first 64. */
static const struct {
    const char *name;
    int bit;
} FEATURES[] = {
    {"fp", 0},        {"asimd", 1},    {"aes", 3},      {"pmull", 4},     {"sha1", 5},       {"sha2", 6},
    {"crc32", 7},     {"atomics", 8},  {"fphp", 9},     {"asimdhp", 10},  {"asimdrdm", 12},  {"jscvt", 13},
    {"fcma", 14},     {"lrcpc", 15},   {"dcpop", 16},   {"sha3", 17},     {"asimddp", 20},   {"sha512", 21},
    {"sve", 22},      {"asimdfhm", 23}, {"ilrcpc", 26}, {"flagm", 27},    {"sve2", 64 + 1},  {"svei8mm", 64 + 9},
    {"svebf16", 64 + 12}, {"i8mm", 64 + 13}, {"bf16", 64 + 14},
};

static bool has_bit(int bit) {
    return getauxval(bit < 64 ? AT_HWCAP : AT_HWCAP2) >> bit % 64 & 1;
}

/* "sve256": scalable vectors are so many bits long in this process. */
static bool has_vectors(const char *name) {
    const long most = 2048;
    char *end;
    if (strncmp(name, "sve", 3) != 0) return false;
    const long bits = strtol(name + 3, &end, 10);
    if (end == name + 3 || *end || bits <= 0 || bits > most || !has_bit(22)) return false;
    const int length = prctl(PR_SVE_GET_VL, 0, 0, 0, 0);
    return length > 0 && (length & PR_SVE_VL_LEN_MASK) == bits / 8;
}

static bool has_feature(const char *name) {
    for (size_t i = 0; i < sizeof FEATURES / sizeof *FEATURES; i++)
        if (strcmp(FEATURES[i].name, name) == 0) return has_bit(FEATURES[i].bit);
    return has_vectors(name);
}

void missing_features(const char *strings, const uint32_t *features, size_t count, char *text, size_t size) {
    size_t used = 0;
    text[0] = 0;
    for (size_t i = 0; i < count && used < size; i++) {
        const char *name = strings + features[i];
        if (!has_feature(name))
            used += (size_t)snprintf(text + used, size - used, "%s%s", used ? ", " : "", name);
    }
}

#else

/* The line of the first core that starts with "flags"; the caller frees it. */
static char *processor_features(void) {
    FILE *file = fopen("/proc/cpuinfo", "re");
    char *line = NULL;
    size_t capacity = 0;
    ssize_t length;
    if (!file) return NULL;
    while ((length = getline(&line, &capacity, file)) > 0) {
        if (strncmp(line, "flags", 5) != 0) continue;
        if (line[length - 1] == '\n') line[length - 1] = 0;
        fclose(file);
        return line;
    }
    fclose(file);
    free(line);
    return NULL;
}

static bool has_word(const char *line, const char *word) {
    size_t length = strlen(word);
    for (const char *at = strstr(line, word); length && at; at = strstr(at + 1, word))
        if (at > line && at[-1] == ' ' && (at[length] == ' ' || at[length] == 0)) return true;
    return false;
}

void missing_features(const char *strings, const uint32_t *features, size_t count, char *text, size_t size) {
    size_t used = 0;
    char *line = processor_features();
    text[0] = 0;
    for (size_t i = 0; line && i < count; i++) { /* a system without /proc/cpuinfo: nothing to compare with */
        const char *name = strings + features[i];
        if (has_word(line, name) || used >= size) continue;
        used += (size_t)snprintf(text + used, size - used, "%s%s", used ? ", " : "", name);
    }
    free(line);
}

#endif
