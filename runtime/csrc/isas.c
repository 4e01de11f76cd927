/* Which of a file's codes runs here. */
#define _GNU_SOURCE
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#if defined(__x86_64__)
enum { THIS_MACHINE = EM_X86_64 };
#elif defined(__aarch64__)
enum { THIS_MACHINE = EM_AARCH64 };
#else
enum { THIS_MACHINE = EM_NONE };
#endif

static int broken(struct sparsec_failure *failure) {
    return fail(failure, SPARSEC_FAILURE_ARTIFACT, "the file's table of isas is damaged; compile the model again");
}

int isas_open(struct isas *isas, const struct image *image, struct sparsec_failure *failure) {
    struct span strings = image->sections[SECTION_STRINGS], features = image->sections[SECTION_FEATURES];
    struct span rows = image->sections[SECTION_ISAS];
    size_t feature_count = features.size / sizeof *isas->features;
    *isas = (struct isas){(const char *)strings.data, (const void *)features.data, (const void *)rows.data,
                          rows.size / sizeof *isas->rows};
    if (rows.size % sizeof *isas->rows != 0 || isas->count == 0 || isas->count > MAXIMUM_ISAS)
        return broken(failure);
    if (strings.size == 0 || strings.data[strings.size - 1] != 0) return broken(failure);
    for (size_t i = 0; i < feature_count; i++)
        if (isas->features[i] >= strings.size) return broken(failure);
    for (size_t i = 0; i < isas->count; i++) {
        const struct isa *isa = &isas->rows[i];
        if (isa->name >= strings.size || isa->first_feature > feature_count ||
            isa->feature_count > feature_count - isa->first_feature ||
            (isa->machine == MACHINE_CUDA && isa->feature_count != 1))
            return broken(failure);
    }
    return 0;
}

static const char *machine_name(uint32_t machine) {
    return machine == EM_X86_64 ? "x86-64" : machine == EM_AARCH64 ? "aarch64" : "another machine";
}

static bool fits_machine(const struct isa *isa) { return isa->machine == 0 || isa->machine == THIS_MACHINE; }

static bool for_gpu(const struct isa *isa) { return isa->machine == MACHINE_CUDA; }

/* The kind of GPU that CUDA code is for, "sm_90a". */
static const char *gpu_of(const struct isas *isas, const struct isa *isa) {
    return isas->strings + isas->features[isa->first_feature];
}

/* What this processor lacks to run a code, as text; empty if nothing. */
static void lacking(const struct isas *isas, const struct isa *isa, char *text, size_t size) {
    text[0] = 0;
    if (for_gpu(isa)) device_lacking(gpu_of(isas, isa), text, size);
    else if (!fits_machine(isa)) snprintf(text, size, "%s", machine_name(isa->machine));
    else missing_features(isas->strings, isas->features + isa->first_feature, isa->feature_count, text, size);
}

static const char *name_of(const struct isas *isas, size_t i) { return isas->strings + isas->rows[i].name; }

static int refused(const char *name, bool gpu, const char *missing, struct sparsec_failure *failure) {
    if (gpu)
        return fail(failure, SPARSEC_FAILURE_ARTIFACT, "the code for %.100s was asked for; %s", name, missing);
    return fail(failure, SPARSEC_FAILURE_ARTIFACT,
                "the code for %.100s was asked for; it needs %s, which this processor lacks", name, missing);
}

static int named(const struct isas *isas, const char *wanted, size_t *chosen, struct sparsec_failure *failure) {
    char names[512] = "", missing[512];
    size_t used = 0;
    for (size_t i = 0; i < isas->count; i++) {
        if (strcmp(name_of(isas, i), wanted) == 0) {
            *chosen = i;
            lacking(isas, &isas->rows[i], missing, sizeof missing);
            return missing[0] ? refused(wanted, for_gpu(&isas->rows[i]), missing, failure) : 0;
        }
        if (used < sizeof names)
            used += (size_t)snprintf(names + used, sizeof names - used, "%s%.100s", i ? ", " : "", name_of(isas, i));
    }
    return fail(failure, SPARSEC_FAILURE_ARTIFACT, "the file has no code for %.100s, only for %s", wanted, names);
}

/* All codes of a file are for GPUs: what is missing is missing for all. */
static int no_gpu(const struct isas *isas, const char *missing, struct sparsec_failure *failure) {
    char names[256] = "";
    size_t used = 0;
    for (size_t i = 0; i < isas->count && used < sizeof names; i++)
        used += (size_t)snprintf(names + used, sizeof names - used, "%s%.60s", i ? ", " : "",
                                 gpu_of(isas, &isas->rows[i]));
    return fail(failure, SPARSEC_FAILURE_ARTIFACT,
                "the model was compiled for a CUDA GPU (%s); %s; run it where such a GPU and its driver are, or "
                "compile it for this machine",
                names, missing);
}

static bool all_for_gpus(const struct isas *isas) {
    size_t i = 0;
    while (i < isas->count && for_gpu(&isas->rows[i])) i++;
    return i == isas->count;
}

static int none_fits(const struct isas *isas, struct sparsec_failure *failure) {
    char missing[512], text[768] = "";
    size_t used = 0;
    for (size_t i = 0; i < isas->count && used < sizeof text; i++) {
        lacking(isas, &isas->rows[i], missing, sizeof missing);
        if (isas->count == 1)
            return fail(failure, SPARSEC_FAILURE_ARTIFACT,
                        "the model was compiled for %s%s, which this one %s; compile it for this machine",
                        fits_machine(isas->rows) ? "a processor with " : "processors of ", missing,
                        fits_machine(isas->rows) ? "lacks" : "is not");
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%.100s%s %s", i ? "; " : "", name_of(isas, i),
                                 for_gpu(&isas->rows[i]) ? ":" : " needs", missing);
    }
    return fail(failure, SPARSEC_FAILURE_ARTIFACT,
                "this processor can run none of the file's codes: %s; compile it for this machine", text);
}

int isas_choose(const struct isas *isas, const char *wanted, size_t *chosen, struct sparsec_failure *failure) {
    char missing[512];
    if (!wanted && isas->count > 1) wanted = getenv("SPARSEC_ISA");
    if (wanted && *wanted) return named(isas, wanted, chosen, failure);
    for (size_t i = 0; i < isas->count; i++) {
        lacking(isas, &isas->rows[i], missing, sizeof missing);
        if (missing[0]) continue;
        *chosen = i;
        return 0;
    }
    return all_for_gpus(isas) ? no_gpu(isas, missing, failure) : none_fits(isas, failure);
}
