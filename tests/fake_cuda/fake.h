/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of the stand-in for CUDA's driver share.  Device memory is memory of the process; streams hold what
 * they are given until somebody waits for them, so that whoever reads a result too early reads something else. */
#ifndef FAKE_H
#define FAKE_H

#include "cuda.h"

#define EXPORT __attribute__((visibility("default")))
#define DECLARE(field, symbol, parameters) EXPORT CUresult symbol parameters;
DRIVER_FUNCTIONS(DECLARE)

enum { INVALID_VALUE = 1, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_IMAGE = 200, INVALID_CONTEXT = 201 };
enum { INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700, LAUNCH_FAILED = 719 };
enum { CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901 };
enum { USUAL_SHARED = 48 << 10, MOST_PARAMETERS = 64, NAME = 128 };

/* What a function needs, and whether a thread that records a stream may call it, or one after an error that lasts. */
enum { NO_CONTEXT = 0, CONTEXT = 1, WHILE_CAPTURING = 2, AFTER_ERRORS = 4 };

struct counts {
    atomic_long allocations, contexts, modules, streams, events, graphs, executables; /* that live */
    atomic_long copies_in, copies_out, copies_within, launches, graph_launches, captures, synchronisations, violations;
};
extern struct counts counts;
extern pthread_mutex_t lock; /* guards all there is; not held while kernels run */

/* Counts a call, and says how it is to fail, if it is. */
CUresult enter(const char *function, int needs);
#define ENTER(needs)                                                                                                 \
    do {                                                                                                             \
        CUresult entered = enter(__func__, needs);                                                                   \
        if (entered) return entered;                                                                                 \
    } while (0)

/* An error that all later calls report too. */
void set_sticky(CUresult code);
bool is_sticky(void);
/* Do these bytes lie in one allocation? */
bool inside(CUdeviceptr address, size_t bytes);

struct CUfunc_st {
    char name[NAME];
    int parameters, shared;
};

struct CUctx_st {
    int device, retained;
};

extern _Thread_local CUstream recording; /* by this thread */

#endif
