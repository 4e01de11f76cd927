/* Describing what went wrong. */
#include <stdarg.h>
#include <stdio.h>

#include "internal.h"

int fail(struct sparsec_failure *failure, enum sparsec_failure_kind kind, const char *format, ...) {
    va_list arguments;
    if (!failure) return -1;
    failure->kind = kind;
    va_start(arguments, format);
    vsnprintf(failure->text, sizeof failure->text, format, arguments);
    va_end(arguments);
    return -1;
}

int fail_memory(struct sparsec_failure *failure, size_t bytes) {
    return fail(failure, SPARSEC_FAILURE_MEMORY, "out of memory: %zu bytes were needed", bytes);
}
