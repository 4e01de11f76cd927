/* SPDX-License-Identifier: Apache-2.0 */
#ifndef STUBS_H
#define STUBS_H

#include "internal.h"

/* What the stubbed kernels may look at while they run. */
extern const struct sparsec_model *running_model;
extern const struct sparsec_binding *running;

/* mutate.c: a file that loaded, to be changed again. */
void remember(const uint8_t *data, size_t size);

#endif
