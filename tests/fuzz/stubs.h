/* SPDX-License-Identifier: Apache-2.0 */
#ifndef STUBS_H
#define STUBS_H

#include "internal.h"

/* What the stubbed kernels may look at while they run. */
extern const struct sparsec_model *running_model;
extern const struct sparsec_binding *running;

/* Read the first and the last byte. */
void touch(const void *data, int64_t bytes);

/* mutate.c: a file that loaded, to be changed again. */
void remember(const uint8_t *data, size_t size);

#endif
