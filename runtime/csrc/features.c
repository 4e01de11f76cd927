/* Which instruction sets this processor has, by the names /proc/cpuinfo uses. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* The line of the first core that starts with "flags" (x86) or "Features" (ARM); the caller frees it. */
static char *processor_features(void) {
    FILE *file = fopen("/proc/cpuinfo", "re");
    char *line = NULL;
    size_t capacity = 0;
    ssize_t length;
    if (!file) return NULL;
    while ((length = getline(&line, &capacity, file)) > 0) {
        if (strncmp(line, "flags", 5) != 0 && strncmp(line, "Features", 8) != 0) continue;
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

int check_features(const struct plan *plan, struct failure *failure) {
    char missing[512] = "";
    size_t used = 0;
    char *line = processor_features();
    if (!line) return 0; /* a system without /proc/cpuinfo: nothing to compare with */
    for (size_t i = 0; i < plan->feature_count; i++) {
        const char *name = plan->strings + plan->features[i];
        if (has_word(line, name) || used >= sizeof missing) continue;
        used += (size_t)snprintf(missing + used, sizeof missing - used, "%s%s", used ? ", " : "", name);
    }
    free(line);
    if (!used) return 0;
    return fail(failure, FAILURE_ARTIFACT,
                "the model was compiled for a processor with %s, which this one lacks; compile it for this machine",
                missing);
}
