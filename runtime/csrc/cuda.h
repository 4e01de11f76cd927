/* What the files share that run programs on a GPU.
 *
 * The few types, numbers and functions of CUDA's driver interface that the runtime uses, declared here so that
 * neither building nor running needs anything of CUDA's but the driver, which is opened when a model asks. */
#ifndef SPARSEC_CUDA_H
#define SPARSEC_CUDA_H

#include "internal.h"

typedef unsigned int CUresult; /* as compilers read an enumeration without negative numbers */
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;

enum { CUDA_ERROR_INVALID_VALUE = 1, CUDA_ERROR_OUT_OF_MEMORY = 2 };
enum { CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76, MOST_SHARED_BYTES = 97 }; /* CUdevice_attribute */
enum { FUNCTION_SHARED_BYTES = 8, POINTER_DEVICE_ORDINAL = 9 };
enum { STREAM_NON_BLOCKING = 1, CAPTURE_THREAD_LOCAL = 1 };

/* field, symbol, parameters; where a function has versions, those of CUDA 11.4 and every later driver. */
#define DRIVER_FUNCTIONS(F)                                                                                           \
    F(init, cuInit, (unsigned int flags))                                                                             \
    F(error_text, cuGetErrorString, (CUresult error, const char **text))                                              \
    F(error_name, cuGetErrorName, (CUresult error, const char **name))                                                \
    F(device_get, cuDeviceGet, (CUdevice * device, int ordinal))                                                      \
    F(device_attribute, cuDeviceGetAttribute, (int *value, unsigned int attribute, CUdevice device))                  \
    F(context_retain, cuDevicePrimaryCtxRetain, (CUcontext * context, CUdevice device))                               \
    F(context_release, cuDevicePrimaryCtxRelease_v2, (CUdevice device))                                               \
    F(context_push, cuCtxPushCurrent_v2, (CUcontext context))                                                         \
    F(context_pop, cuCtxPopCurrent_v2, (CUcontext * context))                                                         \
    F(module_load, cuModuleLoadData, (CUmodule * module, const void *image))                                          \
    F(module_unload, cuModuleUnload, (CUmodule module))                                                               \
    F(module_function, cuModuleGetFunction, (CUfunction * function, CUmodule module, const char *name))               \
    F(function_set, cuFuncSetAttribute, (CUfunction function, unsigned int attribute, int value))                     \
    F(launch, cuLaunchKernel,                                                                                         \
      (CUfunction function, unsigned int blocks, unsigned int blocks_y, unsigned int blocks_z, unsigned int threads,  \
       unsigned int threads_y, unsigned int threads_z, unsigned int shared, CUstream stream, void **parameters,       \
       void **extra))                                                                                                 \
    F(allocate, cuMemAlloc_v2, (CUdeviceptr * address, size_t bytes))                                                 \
    F(release, cuMemFree_v2, (CUdeviceptr address))                                                                   \
    F(copy_in, cuMemcpyHtoDAsync_v2, (CUdeviceptr to, const void *from, size_t bytes, CUstream stream))               \
    F(copy_out, cuMemcpyDtoHAsync_v2, (void *to, CUdeviceptr from, size_t bytes, CUstream stream))                    \
    F(copy_within, cuMemcpyDtoDAsync_v2, (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream))           \
    F(pointer_attribute, cuPointerGetAttribute, (void *value, unsigned int attribute, CUdeviceptr address))           \
    F(stream_create, cuStreamCreate, (CUstream * stream, unsigned int flags))                                         \
    F(stream_destroy, cuStreamDestroy_v2, (CUstream stream))                                                          \
    F(stream_wait, cuStreamWaitEvent, (CUstream stream, CUevent event, unsigned int flags))                           \
    F(stream_synchronize, cuStreamSynchronize, (CUstream stream))                                                     \
    F(stream_is_capturing, cuStreamIsCapturing, (CUstream stream, unsigned int *status))                              \
    F(capture_begin, cuStreamBeginCapture_v2, (CUstream stream, unsigned int mode))                                   \
    F(capture_end, cuStreamEndCapture, (CUstream stream, CUgraph *graph))                                             \
    F(graph_instantiate, cuGraphInstantiateWithFlags,                                                                 \
      (CUgraphExec * executable, CUgraph graph, unsigned long long flags))                                            \
    F(graph_launch, cuGraphLaunch, (CUgraphExec executable, CUstream stream))                                         \
    F(graph_destroy, cuGraphDestroy, (CUgraph graph))                                                                 \
    F(executable_destroy, cuGraphExecDestroy, (CUgraphExec executable))                                               \
    F(event_create, cuEventCreate, (CUevent * event, unsigned int flags))                                             \
    F(event_destroy, cuEventDestroy_v2, (CUevent event))                                                              \
    F(event_record, cuEventRecord, (CUevent event, CUstream stream))                                                  \
    F(event_synchronize, cuEventSynchronize, (CUevent event))                                                         \
    F(event_elapsed, cuEventElapsedTime, (float *milliseconds, CUevent start, CUevent end))

#define DRIVER_FIELD(field, symbol, parameters) CUresult(*field) parameters;
struct driver {
    DRIVER_FUNCTIONS(DRIVER_FIELD)
};
#undef DRIVER_FIELD

/* cuda_driver.c: the GPU that the environment's SPARSEC_DEVICE names, 0 by default */
struct gpu {
    const struct driver *driver;
    CUdevice handle;
    int ordinal, major, minor;
};

int gpu_find(struct gpu *gpu, struct sparsec_failure *failure);

/* 0, or a failure that says what was `doing` and what the driver calls it; out of memory has a kind of its own. */
int gpu_check(const struct driver *driver, CUresult code, enum sparsec_failure_kind kind, const char *doing,
              struct sparsec_failure *failure);

/* cuda_model.c: a model's code and weights on a GPU */
struct gpu_function {
    const char *name;
    CUfunction handle;
    int shared; /* dynamic shared bytes it may be launched with */
};

struct device {
    struct gpu gpu;
    CUcontext context;
    CUmodule module;
    CUdeviceptr weights;
    struct gpu_function *functions;
    size_t function_count;
    uint32_t *of_steps;   /* each step's function */
    pthread_mutex_t lock; /* guards the functions' shared */
    int most_shared;
    bool graphs;
};

/* The model's context becomes the calling thread's; device_leave makes the one before current again. */
int device_enter(const struct device *device, struct sparsec_failure *failure);
void device_leave(const struct device *device);
/* Let a function be launched with so much dynamic shared memory. */
int device_allow_shared(struct device *device, struct gpu_function *function, int64_t bytes,
                        struct sparsec_failure *failure);

/* cuda_session.c: what a session has on a GPU */
struct device_memory {
    CUdeviceptr data;
    size_t size;
};

/* Memory that outlives its use: recordings of the caller's may hold its address. */
struct retired_memory {
    CUdeviceptr data;
    struct retired_memory *next;
};

struct device_session {
    struct device *device;
    CUstream own, caller; /* runs go to the caller's, where there is one */
    CUevent done;         /* recorded after each run that was only enqueued */
    CUstream last;        /* where it was enqueued */
    bool pending;         /* such a run may not have ended yet */
    bool capturing;       /* in this run: the caller records what goes to the caller's stream */
    bool captured;        /* some run was recorded so: what it used is not released before the session is */
    struct retired_memory *retired;
    struct device_memory arena, staging;
};

/* What runs a binding's steps on a stream. */
typedef int (*device_launcher)(struct sparsec_session *session, struct sparsec_binding *b, CUstream stream,
                               void *context, struct sparsec_failure *failure);
int device_run_with(struct sparsec_session *session, struct sparsec_binding *b, const struct sparsec_array *inputs,
                    const struct sparsec_array *outputs, device_launcher launcher, void *context,
                    struct sparsec_failure *failure);
int device_launch(const struct sparsec_session *session, const struct sparsec_binding *b, size_t step,
                  CUstream stream, struct sparsec_failure *failure);

/* cuda_ports.c: moving arrays to where steps find them, and results to where callers want them */
int device_place_ports(struct sparsec_session *session, struct sparsec_binding *b,
                       const struct sparsec_array *inputs, const struct sparsec_array *outputs, CUstream stream,
                       struct sparsec_failure *failure);
int device_copy_outputs(const struct sparsec_session *session, const struct sparsec_binding *b,
                        const struct sparsec_array *outputs, CUstream stream, struct sparsec_failure *failure);
/* After the run has ended: results to arrays of the host with strides. */
void device_scatter_outputs(const struct sparsec_session *session, const struct sparsec_binding *b,
                            const struct sparsec_array *outputs);
/* At least so many bytes; what was there is lost. */
int device_reserve_memory(struct device_session *session, struct device_memory *memory, size_t bytes,
                          struct sparsec_failure *failure);

/* cuda_graph.c: a binding's launches, recorded by addresses */
enum { GRAPHS = 4 };

struct recorded {
    CUgraphExec executable; /* NULL: these addresses were seen, and not yet recorded */
    uint64_t used;          /* when; 0: never */
    void **addresses;
};

struct device_binding {
    struct device_session *session;
    void **parameters; /* of all steps, one after the other: where each argument's value lies */
    const void **known; /* of each input and output, the address last seen to lie on this device */
    size_t launches;   /* steps that have any blocks */
    size_t address_count;
    void **addresses; /* of this run: arena, inputs, outputs */
    struct recorded kept[GRAPHS], seen[GRAPHS];
    uint64_t clock;
};

int run_graph(struct sparsec_session *session, struct sparsec_binding *b, CUstream stream, void *context,
              struct sparsec_failure *failure);
void graphs_free(struct device_binding *binding);

#endif
