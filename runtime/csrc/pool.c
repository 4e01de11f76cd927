/* Threads of one model.  Every thread begins with its own contiguous share of a step's tiles, the
 * same in every step, so that what it wrote lies in its own caches; who is done helps the others,
 * a grain at a time.  Whoever computes a tile computes all of it, so results do not depend on the
 * number of threads.
 *
 * Workers spin a moment after each job, then sleep.  Nobody waits for a sleeper: a worker that
 * wakes after the job was closed finds the gate shut and goes back. */
#define _GNU_SOURCE /* sched_getcpu, thread affinity */
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "internal.h"

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

/* As long as a short step that runs on one thread, between two that do not.  A pause is 10 to 140
 * cycles, depending on the processor, so spinning is measured by the clock. */
enum { SPIN_NANOSECONDS = 50000, PAUSES_PER_LOOK = 32, SPINS_BEFORE_YIELD = 2000, GRAINS_PER_THREAD = 8 };
static const uint32_t OPEN = 1u << 31; /* bit of the gate; the bits below count workers inside */

struct helper {
    struct pool *pool;
    int index;
    pthread_t thread;
    struct worker worker;
    TVMFFIAny *arguments;
    atomic_int core;  /* where it last ran */
    atomic_bool sent; /* kept off the caller's core until it runs */
#if defined(__linux__)
    cpu_set_t cores; /* those the process may use; the helper's while it is sent, else the caller's */
#endif
};

/* A share's tiles still to be handed out; on a cache line of its own. */
struct share {
    _Alignas(64) atomic_llong next;
    int64_t end;
};

struct pool {
    atomic_flag taken;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    atomic_uint epoch, sleepers;
    atomic_bool stop;
    struct helper *helpers[MAXIMUM_THREADS];
    int started;
    atomic_uint forks;
    size_t argument_limit;
    const char *(*last_error)(void);
    TVMFFIAny *arguments; /* the caller's copy */
    _Alignas(64) atomic_uint gate;
    const struct call *call;
    int32_t invited;
    int64_t grain;
    atomic_int failed;
    struct sparsec_failure failure;
    struct share shares[MAXIMUM_THREADS]; /* the caller's, then the helpers' */
};

static atomic_uint forks;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;
static void count_fork(void) { atomic_fetch_add(&forks, 1); }
static void watch_forks(void) { pthread_atfork(NULL, NULL, count_fork); }

int fail_kernel(struct sparsec_failure *failure, const char *(*last_error)(void)) {
    const char *text = last_error ? last_error() : NULL;
    return fail(failure, SPARSEC_FAILURE_KERNEL, "%s", text && *text ? text : "no reason given");
}

static void set_up(struct pool *pool) {
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    atomic_store(&pool->gate, 0);
    atomic_store(&pool->sleepers, 0);
    pool->started = 0;
    atomic_flag_clear(&pool->taken);
}

struct pool *pool_new(size_t argument_limit, const char *(*last_error)(void)) {
    struct pool *pool = aligned_alloc(64, (sizeof *pool + 63) / 64 * 64);
    if (!pool) return NULL;
    pthread_once(&fork_once, watch_forks);
    memset(pool, 0, sizeof *pool);
    pool->argument_limit = argument_limit;
    pool->last_error = last_error;
    pool->arguments = calloc(argument_limit + 1, sizeof *pool->arguments);
    atomic_store(&pool->forks, atomic_load(&forks));
    set_up(pool);
    if (pool->arguments) return pool;
    free(pool);
    return NULL;
}

/* The call with its own scratch memory and tile range. */
static void prepare_arguments(const struct call *call, DLTensor *scratch, TVMFFIAny *arguments) {
    memcpy(arguments, call->arguments, (size_t)call->count * sizeof *arguments);
    for (int32_t i = 0; i < call->count; i++)
        if (call->kinds[i].kind == ARGUMENT_SCRATCH) arguments[i].v_ptr = scratch;
}

static void set_tiles(const struct call *call, TVMFFIAny *arguments, int64_t begin, int64_t end) {
    for (int32_t i = 0; i < call->count; i++) {
        if (call->kinds[i].kind == ARGUMENT_TILE_BEGIN) arguments[i].v_int64 = begin;
        if (call->kinds[i].kind == ARGUMENT_TILE_END) arguments[i].v_int64 = end;
    }
}

static void report(struct pool *pool, const struct sparsec_failure *failure) {
    int expected = 0;
    if (atomic_compare_exchange_strong(&pool->failed, &expected, 1)) pool->failure = *failure;
}

static void run_share(struct pool *pool, struct share *share, TVMFFIAny *arguments) {
    const struct call *call = pool->call;
    struct sparsec_failure failure;
    while (!atomic_load_explicit(&pool->failed, memory_order_relaxed)) {
        if (atomic_load_explicit(&share->next, memory_order_relaxed) >= share->end) return;
        int64_t begin = atomic_fetch_add(&share->next, pool->grain);
        if (begin >= share->end) return;
        int64_t end = begin + pool->grain < share->end ? begin + pool->grain : share->end;
        TVMFFIAny result = {0};
        set_tiles(call, arguments, begin, end);
        if (call->kernel(NULL, arguments, call->count, &result) == 0) continue;
        fail_kernel(&failure, pool->last_error);
        report(pool, &failure);
    }
}

/* ``own`` is the number of the thread's own share. */
static void take_part(struct pool *pool, int own, struct worker *worker, TVMFFIAny *arguments) {
    const struct call *call = pool->call;
    struct sparsec_failure failure;
    int64_t shape = call->scratch_shape;
    DLTensor scratch = *call->scratch;
    workspace_reset(&worker->workspace);
    if (memory_reserve(&worker->scratch, (size_t)shape * 4, &failure)) {
        report(pool, &failure);
        return;
    }
    scratch.data = worker->scratch.data;
    scratch.shape = &shape;
    prepare_arguments(call, &scratch, arguments);
    int shares = pool->invited + 1;
    for (int i = 0; i < shares; i++) run_share(pool, &pool->shares[(own + i) % shares], arguments);
}

static bool enter_gate(struct pool *pool) {
    unsigned gate = atomic_load(&pool->gate);
    while (gate & OPEN)
        if (atomic_compare_exchange_weak(&pool->gate, &gate, gate + 1)) return true;
    return false;
}

static int64_t nanoseconds_now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static bool job_comes_soon(struct pool *pool, unsigned seen) {
    int64_t end = nanoseconds_now() + SPIN_NANOSECONDS;
    do {
        for (int i = 0; i < PAUSES_PER_LOOK; i++) {
            if (atomic_load_explicit(&pool->epoch, memory_order_acquire) != seen) return true;
            PAUSE();
        }
    } while (nanoseconds_now() < end);
    return false;
}

#if defined(__linux__)
static int core_now(void) { return sched_getcpu(); }

/* A sleeper is woken on the core it slept on.  Where that is the caller's, which does not rest
 * before the step is done, it would wait for milliseconds until the scheduler moves it: so it is
 * sent elsewhere, and free again once it runs. */
static void keep_off_this_core(struct pool *pool) {
    cpu_set_t all, others;
    int here = core_now();
    bool known = false;
    for (int i = 0; i < pool->started; i++) {
        struct helper *helper = pool->helpers[i];
        if (here < 0 || atomic_load(&helper->core) != here || atomic_load(&helper->sent)) continue;
        if (!known && (sched_getaffinity(0, sizeof all, &all) || CPU_COUNT(&all) < 2)) return;
        known = true;
        others = all;
        CPU_CLR(here, &others);
        helper->cores = all;
        atomic_store(&helper->sent, pthread_setaffinity_np(helper->thread, sizeof others, &others) == 0);
    }
}

static void free_to_move(struct helper *helper) {
    if (!atomic_load(&helper->sent)) return;
    pthread_setaffinity_np(pthread_self(), sizeof helper->cores, &helper->cores);
    atomic_store(&helper->sent, false);
}
#else
static int core_now(void) { return -1; }
static void keep_off_this_core(struct pool *pool) { (void)pool; }
static void free_to_move(struct helper *helper) { (void)helper; }
#endif

static unsigned wait_for_job(struct pool *pool, unsigned seen) {
    if (job_comes_soon(pool, seen)) return atomic_load(&pool->epoch);
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(&pool->epoch) == seen) pthread_cond_wait(&pool->wake, &pool->lock);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->lock);
    return atomic_load(&pool->epoch);
}

static void *helper_main(void *argument) {
    struct helper *helper = argument;
    struct pool *pool = helper->pool;
    unsigned seen = 0;
    workspace_enter(&helper->worker.workspace);
    while (!atomic_load(&pool->stop)) {
        if (enter_gate(pool)) {
            if (helper->index < pool->invited)
                take_part(pool, helper->index + 1, &helper->worker, helper->arguments);
            atomic_fetch_sub(&pool->gate, 1);
        }
        atomic_store(&helper->core, core_now());
        seen = wait_for_job(pool, seen);
        free_to_move(helper);
    }
    return NULL;
}

static struct helper *helper_new(struct pool *pool) {
    struct helper *helper = calloc(1, sizeof *helper);
    if (!helper) return NULL;
    helper->arguments = calloc(pool->argument_limit + 1, sizeof *helper->arguments);
    helper->pool = pool;
    atomic_store(&helper->core, -1);
    helper->index = pool->started;
    if (helper->arguments && pthread_create(&helper->thread, NULL, helper_main, helper) == 0) return helper;
    free(helper->arguments);
    free(helper);
    return NULL;
}

static void start_helpers(struct pool *pool, int wanted) {
    while (pool->started < wanted) {
        struct helper *helper = helper_new(pool);
        if (!helper) return; /* fewer threads give the same results */
        pool->helpers[pool->started++] = helper;
    }
}

/* Threads and memory for runs with so many helpers; the caller has taken the pool. */
int pool_reserve(struct pool *pool, int helpers, size_t scratch, struct sparsec_failure *failure) {
    start_helpers(pool, helpers);
    for (int i = 0; i < helpers && i < pool->started; i++)
        if (worker_reserve(&pool->helpers[i]->worker, scratch, failure)) return -1;
    return 0;
}

/* One run at a time; false when another run has the pool. */
bool pool_take(struct pool *pool) {
    unsigned seen = atomic_load(&pool->forks), now = atomic_load(&forks);
    /* A forked child has none of the threads; one of its callers sets the pool up anew. */
    if (seen != now && atomic_compare_exchange_strong(&pool->forks, &seen, now)) set_up(pool);
    return !atomic_flag_test_and_set_explicit(&pool->taken, memory_order_acquire);
}

bool pool_awake(const struct pool *pool) {
    return pool->started > 0 && atomic_load_explicit(&pool->sleepers, memory_order_relaxed) == 0;
}

void pool_give_back(struct pool *pool) { atomic_flag_clear_explicit(&pool->taken, memory_order_release); }

static void wake_all(struct pool *pool) {
    atomic_fetch_add(&pool->epoch, 1);
    if (atomic_load(&pool->sleepers) == 0) return;
    keep_off_this_core(pool);
    pthread_mutex_lock(&pool->lock);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

static void close_gate(struct pool *pool) {
    atomic_fetch_and(&pool->gate, ~OPEN);
    for (int spin = 0; atomic_load(&pool->gate) != 0; spin++) {
        PAUSE();
        if (spin > SPINS_BEFORE_YIELD) sched_yield(); /* a worker lost its core in the middle of a grain */
    }
}

static void share_out(struct pool *pool, int64_t tiles, int shares) {
    int64_t grains = (int64_t)shares * GRAINS_PER_THREAD;
    pool->grain = tiles / grains > 0 ? tiles / grains : 1;
    for (int i = 0; i < shares; i++) {
        atomic_store_explicit(&pool->shares[i].next, tiles * i / shares, memory_order_relaxed);
        pool->shares[i].end = tiles * (i + 1) / shares;
    }
}

int pool_run(struct pool *pool, struct worker *caller, const struct call *call, int helpers,
             struct sparsec_failure *failure) {
    start_helpers(pool, helpers);
    pool->call = call;
    pool->invited = helpers;
    share_out(pool, call->tiles, helpers + 1);
    atomic_store(&pool->failed, 0);
    atomic_store(&pool->gate, OPEN);
    wake_all(pool);
    take_part(pool, 0, caller, pool->arguments);
    close_gate(pool);
    if (!atomic_load(&pool->failed)) return 0;
    *failure = pool->failure;
    return -1;
}

void pool_free(struct pool *pool) {
    if (!pool) return;
    bool alive = pool->forks == atomic_load(&forks);
    atomic_store(&pool->stop, true);
    if (alive) wake_all(pool);
    for (int i = 0; i < pool->started && alive; i++) {
        pthread_join(pool->helpers[i]->thread, NULL);
        worker_release(&pool->helpers[i]->worker);
        free(pool->helpers[i]->arguments);
        free(pool->helpers[i]);
    }
    pthread_mutex_destroy(&pool->lock);
    pthread_cond_destroy(&pool->wake);
    free(pool->arguments);
    free(pool);
}
