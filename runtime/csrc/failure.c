/* Describing what went wrong. */
#include <stdarg.h>
#include <stdio.h>

#include "internal.h"

int fail(struct failure *failure, enum failure_kind kind, const char *format, ...) {
    va_list arguments;
    failure->kind = kind;
    va_start(arguments, format);
    vsnprintf(failure->text, sizeof failure->text, format, arguments);
    va_end(arguments);
    return -1;
}

int fail_memory(struct failure *failure, size_t bytes) {
    return fail(failure, FAILURE_MEMORY, "out of memory: %zu bytes were needed", bytes);
}
