/* SPDX-License-Identifier: Apache-2.0
 *
 * A stand-in for CUDA's driver library: streams, events, launches and graphs.  What a stream is given is done in
 * order, when somebody waits for it. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fake.h"

typedef int (*launch_callback)(const char *name, unsigned blocks, unsigned threads, unsigned shared,
                               const uint64_t *parameters, int count);
static launch_callback callback;

EXPORT void fake_set_launch(launch_callback chosen) { callback = chosen; }

enum work_kind { COPY_IN, COPY_OUT, COPY_WITHIN, LAUNCH, RECORD, WAIT };

struct work {
    struct work *next;
    enum work_kind kind;
    CUdeviceptr to, from; /* or an address of the host */
    size_t bytes;
    CUfunction function;
    unsigned blocks, threads, shared;
    uint64_t parameters[MOST_PARAMETERS];
    CUevent event;
    CUstream recorded; /* where an event that is waited for was recorded last */
    unsigned long sequence;
};

struct list {
    struct work *first, **end;
};

struct CUstream_st {
    struct list list;
    CUgraph graph; /* being recorded */
    bool busy;
};

struct CUevent_st {
    CUstream stream;
    unsigned long sequence, reached; /* records asked for, and come to */
    bool timed;
    struct timespec time;
};

struct CUgraph_st {
    struct list list;
};

struct CUgraphExec_st {
    struct list list;
};

_Thread_local CUstream recording;
static struct CUstream_st legacy;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static CUstream real(CUstream stream) { return (uintptr_t)stream <= 2 ? &legacy : stream; }

static void append(struct list *list, const struct work *given) {
    struct work *work = malloc(sizeof *work);
    *work = *given;
    work->next = NULL;
    if (!list->first) list->end = &list->first;
    *list->end = work;
    list->end = &work->next;
}

static void clear(struct list *list) {
    while (list->first) {
        struct work *next = list->first->next;
        free(list->first);
        list->first = next;
    }
}

static void copy(const struct list *from, struct list *to) {
    for (const struct work *work = from->first; work; work = work->next) append(to, work);
}

static bool reachable(const struct work *work) {
    return (work->kind == COPY_IN || inside(work->from, work->bytes)) &&
           (work->kind == COPY_OUT || inside(work->to, work->bytes));
}

static void drain(CUstream stream, const struct CUevent_st *until, unsigned long sequence);

static void perform(const struct work *work) {
    if (work->kind <= COPY_WITHIN && !reachable(work)) {
        counts.violations++;
        set_sticky(ILLEGAL_ADDRESS);
    } else if (work->kind <= COPY_WITHIN) {
        memmove((void *)(uintptr_t)work->to, (const void *)(uintptr_t)work->from, work->bytes);
    } else if (work->kind == RECORD) {
        work->event->reached = work->sequence;
        clock_gettime(CLOCK_MONOTONIC, &work->event->time);
    } else if (work->kind == WAIT) {
        if (work->recorded) drain(work->recorded, work->event, work->sequence);
    } else {
        counts.launches++;
        pthread_mutex_unlock(&lock);
        const int code = callback(work->function->name, work->blocks, work->threads, work->shared, work->parameters,
                                  work->function->parameters);
        pthread_mutex_lock(&lock);
        if (code) set_sticky((CUresult)code);
    }
}

/* With the lock: all that the stream holds, or until an event was come to. */
static void drain(CUstream stream, const struct CUevent_st *until, unsigned long sequence) {
    while (stream->busy) pthread_cond_wait(&changed, &lock);
    stream->busy = true;
    while (stream->list.first && !(until && until->reached >= sequence)) {
        struct work *work = stream->list.first;
        stream->list.first = work->next;
        if (!is_sticky()) perform(work);
        free(work);
    }
    stream->busy = false;
    pthread_cond_broadcast(&changed);
}

static CUresult enqueue(CUstream stream, const struct work *work) {
    pthread_mutex_lock(&lock);
    append(&real(stream)->list, work);
    pthread_mutex_unlock(&lock);
    return 0;
}

static CUresult enqueue_copy(CUstream stream, const struct work *work, atomic_long *counter) {
    pthread_mutex_lock(&lock);
    const bool sound = work->bytes && reachable(work);
    *counter += sound;
    if (!sound) counts.violations++;
    pthread_mutex_unlock(&lock);
    return sound ? enqueue(stream, work) : INVALID_VALUE;
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
    ENTER(CONTEXT);
    const struct work work = {.kind = COPY_IN, .to = to, .from = (uintptr_t)from, .bytes = bytes};
    return enqueue_copy(stream, &work, &counts.copies_in);
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
    ENTER(CONTEXT);
    const struct work work = {.kind = COPY_OUT, .to = (uintptr_t)to, .from = from, .bytes = bytes};
    return enqueue_copy(stream, &work, &counts.copies_out);
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    ENTER(CONTEXT);
    const struct work work = {.kind = COPY_WITHIN, .to = to, .from = from, .bytes = bytes};
    return enqueue_copy(stream, &work, &counts.copies_within);
}

CUresult cuLaunchKernel(CUfunction function, unsigned int blocks, unsigned int blocks_y, unsigned int blocks_z,
                        unsigned int threads, unsigned int threads_y, unsigned int threads_z, unsigned int shared,
                        CUstream stream, void **parameters, void **extra) {
    ENTER(CONTEXT | WHILE_CAPTURING);
    struct work work = {.kind = LAUNCH, .function = function, .blocks = blocks, .threads = threads, .shared = shared};
    if (blocks == 0 || blocks > INT32_MAX || blocks_y != 1 || blocks_z != 1 || threads == 0 || threads > 1024 ||
        threads_y != 1 || threads_z != 1 || (int)shared > function->shared || extra)
        return INVALID_VALUE;
    for (int i = 0; i < function->parameters; i++) memcpy(&work.parameters[i], parameters[i], sizeof(uint64_t));
    if (recording && real(stream) != recording) {
        counts.violations++;
        return CAPTURE_UNSUPPORTED;
    }
    if (!recording) return enqueue(stream, &work);
    append(&recording->graph->list, &work);
    return 0;
}

CUresult cuStreamCreate(CUstream *stream, unsigned int flags) {
    ENTER(CONTEXT);
    if (flags != STREAM_NON_BLOCKING) return INVALID_VALUE;
    *stream = calloc(1, sizeof **stream);
    counts.streams++;
    return 0;
}

CUresult cuStreamDestroy_v2(CUstream stream) {
    const CUresult code = enter(__func__, CONTEXT);
    pthread_mutex_lock(&lock);
    drain(stream, NULL, 0);
    counts.streams--;
    pthread_mutex_unlock(&lock);
    return code;
}

CUresult cuStreamSynchronize(CUstream stream) {
    ENTER(CONTEXT);
    pthread_mutex_lock(&lock);
    counts.synchronisations++;
    drain(real(stream), NULL, 0);
    pthread_mutex_unlock(&lock);
    return enter("", NO_CONTEXT);
}

CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int flags) {
    ENTER(CONTEXT);
    const struct work work = {
        .kind = WAIT, .event = event, .recorded = event->stream, .sequence = event->sequence};
    return flags ? INVALID_VALUE : enqueue(stream, &work);
}

CUresult cuStreamIsCapturing(CUstream stream, unsigned int *status) {
    ENTER(CONTEXT | WHILE_CAPTURING);
    *status = real(stream)->graph != NULL;
    return 0;
}

CUresult cuStreamBeginCapture_v2(CUstream stream, unsigned int mode) {
    ENTER(CONTEXT);
    if (mode != CAPTURE_THREAD_LOCAL || real(stream) == &legacy) return INVALID_VALUE;
    stream->graph = calloc(1, sizeof *stream->graph);
    recording = stream;
    counts.graphs++;
    counts.captures++;
    return 0;
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
    const CUresult code = enter(__func__, CONTEXT | WHILE_CAPTURING);
    if (recording != stream) return CAPTURE_INVALIDATED;
    *graph = stream->graph;
    stream->graph = NULL;
    recording = NULL;
    if (code) {
        cuGraphDestroy(*graph);
        *graph = NULL;
    }
    return code;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *executable, CUgraph graph, unsigned long long flags) {
    ENTER(CONTEXT);
    if (flags || !graph) return INVALID_VALUE;
    *executable = calloc(1, sizeof **executable);
    copy(&graph->list, &(*executable)->list);
    counts.executables++;
    return 0;
}

CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
    ENTER(CONTEXT);
    pthread_mutex_lock(&lock);
    copy(&executable->list, &real(stream)->list);
    counts.graph_launches++;
    pthread_mutex_unlock(&lock);
    return 0;
}

CUresult cuGraphDestroy(CUgraph graph) {
    const CUresult code = enter(__func__, CONTEXT);
    clear(&graph->list);
    free(graph);
    counts.graphs--;
    return code;
}

CUresult cuGraphExecDestroy(CUgraphExec executable) {
    const CUresult code = enter(__func__, CONTEXT);
    clear(&executable->list);
    free(executable);
    counts.executables--;
    return code;
}

CUresult cuEventCreate(CUevent *event, unsigned int flags) {
    ENTER(CONTEXT);
    *event = calloc(1, sizeof **event);
    (*event)->timed = !(flags & 2);
    counts.events++;
    return 0;
}

/* Events and streams are not freed: what waits for them may be left. */
CUresult cuEventDestroy_v2(CUevent event) {
    const CUresult code = enter(__func__, CONTEXT);
    if (!event) return INVALID_HANDLE;
    counts.events--;
    return code;
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
    ENTER(CONTEXT);
    event->stream = real(stream);
    const struct work work = {.kind = RECORD, .event = event, .sequence = ++event->sequence};
    return enqueue(stream, &work);
}

CUresult cuEventSynchronize(CUevent event) {
    ENTER(CONTEXT);
    pthread_mutex_lock(&lock);
    if (event->stream) drain(event->stream, event, event->sequence);
    pthread_mutex_unlock(&lock);
    return enter("", NO_CONTEXT);
}

CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
    ENTER(CONTEXT);
    if (!start->timed || !end->timed) return INVALID_HANDLE;
    if (!start->reached || start->reached < start->sequence || end->reached < end->sequence) return NOT_READY;
    *milliseconds = (float)((double)(end->time.tv_sec - start->time.tv_sec) * 1e3 +
                            (double)(end->time.tv_nsec - start->time.tv_nsec) * 1e-6);
    return 0;
}
