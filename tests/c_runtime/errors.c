/* SPDX-License-Identifier: Apache-2.0
 *
 * Makes every mistake a caller can make with a model of input x[n, 37] and output y[n, 37]; prints the code and
 * the text of each.  errors MODEL ABSENT DAMAGED */
#include "arrays.h"

static struct sparsec_failure failure;

static void say(const char *what, int code) { printf("%s: %d %s\n", what, code, code ? failure.text : ""); }

static void say_bind(const char *what, struct sparsec_session *session, struct sparsec_array array) {
    say(what, sparsec_session_bind(session, &array, &failure) ? 0 : (int)failure.kind);
}

static void bind_wrong(struct sparsec_session *session, struct sparsec_array right) {
    struct sparsec_array wrong = right;
    wrong.shape = (int64_t[]){4, 36};
    say_bind("bind shape", session, wrong);
    wrong = right;
    wrong.rank = 1;
    say_bind("bind rank", session, wrong);
    wrong = right;
    wrong.dtype = SPARSEC_FLOAT64;
    say_bind("bind dtype", session, wrong);
    wrong = right;
    wrong.shape = (int64_t[]){-4, 37};
    say_bind("bind negative", session, wrong);
}

static void run_wrong(struct sparsec_session *session, struct sparsec_binding *binding, struct sparsec_array *x,
                      struct sparsec_array *y) {
    struct sparsec_array wrong = *x;
    say("run", sparsec_session_run(session, binding, x, y, &failure));
    wrong.shape = (int64_t[]){3, 37};
    say("run input shape", sparsec_session_run(session, binding, &wrong, y, &failure));
    wrong = *x;
    wrong.data = NULL;
    say("run input data", sparsec_session_run(session, binding, &wrong, y, &failure));
    wrong = *y;
    wrong.dtype = SPARSEC_INT32;
    say("run output dtype", sparsec_session_run(session, binding, x, &wrong, &failure));
    wrong = *y;
    wrong.shape = (int64_t[]){5, 37};
    say("run output shape", sparsec_session_run(session, binding, x, &wrong, &failure));
    printf("unread: %d\n", sparsec_session_run(session, binding, x, &wrong, NULL));
    say("run again", sparsec_session_run(session, binding, x, y, &failure));
    uint64_t times[8];
    say("profile", sparsec_session_profile(session, binding, x, y, 0, times, &failure));
}

int main(int argc, char **argv) {
    struct arrays inputs, outputs;
    char text[32];
    if (argc != 4) stop(argv[0], "MODEL ABSENT DAMAGED");
    for (int i = 2; i < 4; i++) {
        struct sparsec_model *none = sparsec_model_load(argv[i], true, &failure);
        say(i == 2 ? "absent" : "damaged", none ? 0 : (int)failure.kind);
    }
    printf("unread: %d\n", sparsec_model_load(argv[2], true, NULL) == NULL);
    printf("bytes: %d\n", sparsec_model_from_bytes("no model", 8, false, &failure) == NULL);
    struct sparsec_model *model = sparsec_model_load(argv[1], true, &failure);
    if (!model) stop(argv[1], failure.text);
    printf("threads: %d %d %d\n", sparsec_model_set_threads(model, 0), sparsec_model_set_threads(model, 257),
           sparsec_model_threads(model));
    printf("axes: %d %d %d\n", sparsec_model_input_axis(model, 0, 2, text, sizeof text),
           sparsec_model_input_axis(model, 1, 0, text, sizeof text),
           sparsec_model_output_axis(model, 0, -1, text, sizeof text));
    if (sparsec_model_input(model, 1).name || sparsec_model_output(model, 9).name) stop("port", "found");
    const struct sparsec_port port = sparsec_model_input(model, 0);
    sparsec_model_output_axis(model, 0, 0, text, sizeof text);
    printf("port: %s %s %d %lld %lld %s\n", port.name, sparsec_dtype_name(port.dtype), port.rank,
           (long long)port.shape[0], (long long)port.shape[1], text);
    struct sparsec_session *session = sparsec_session_take(model, &failure);
    if (!session) stop("take", failure.text);
    new_inputs(model, 4, 0, &inputs);
    bind_wrong(session, inputs.at[0]);
    struct sparsec_binding *binding = sparsec_session_bind(session, inputs.at, &failure);
    if (!binding) stop("bind", failure.text);
    new_outputs(model, session, binding, 0, &outputs);
    run_wrong(session, binding, inputs.at, outputs.at);
    free_arrays(&inputs, 1, 0);
    free_arrays(&outputs, 1, 0);
    sparsec_session_give_back(session);
    sparsec_model_free(model);
    sparsec_model_free(NULL);
    return 0;
}
