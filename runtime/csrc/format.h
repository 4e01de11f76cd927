/* The file format of model.sparsec; runtime/artifact.py and tables.py write what this header describes.
 *
 * All numbers are little-endian.  Sections start at multiples of 64, WEIGHTS at a page; they lie one
 * after the other in the order of their table.  docs/artifact.md tells the same for people. */
#ifndef SPARSEC_FORMAT_H
#define SPARSEC_FORMAT_H

#include <stdint.h>

#define FORMAT_MAGIC "SPARSEC\n"
enum { FORMAT_VERSION = 2, MAGIC_BYTES = 8, ALIGNMENT = 64, MAXIMUM_RANK = 32, MAXIMUM_ISAS = 16 };

struct header {
    char magic[MAGIC_BYTES];
    uint32_t version;
    uint32_t section_count;
    uint64_t file_size;
    uint32_t crc; /* of the header, this field being 0, and the section table */
    uint32_t reserved[9];
};

struct section {
    uint32_t kind;
    uint32_t crc;
    uint64_t offset;
    uint64_t size;
    uint32_t isa; /* the row of ISAS that ARGUMENTS, STEPS and CODE belong to; else 0 */
    uint32_t reserved;
};

/* Every row of ISAS has ARGUMENTS, STEPS and CODE of its own; there is one of each other kind. */
enum section_kind {
    SECTION_MANIFEST = 1, /* JSON, for people and for sparsec.Program */
    SECTION_FEATURES,     /* uint32: strings; rows of ISAS name ranges of it */
    SECTION_STRINGS,      /* UTF-8, each ended by a zero; referred to by byte offset */
    SECTION_SYMBOLS,      /* uint32: strings */
    SECTION_EXPRESSIONS,
    SECTION_BUFFERS,
    SECTION_SHAPES, /* uint32: expressions; tensors and ports name ranges of it */
    SECTION_TENSORS,
    SECTION_INPUTS,
    SECTION_OUTPUTS,
    SECTION_ISAS, /* instruction sets there is code for, the most capable first */
    SECTION_ARGUMENTS,
    SECTION_STEPS,
    SECTION_CODE,    /* a shared object, for CUDA a cubin; its crc is checked if it is the one that runs */
    SECTION_WEIGHTS, /* its crc is checked only on request: reading all weights would undo mmap */
    SECTION_END
};

/* One instruction set: the processors that can run its code have all its features. */
struct isa {
    uint32_t name;    /* string */
    uint32_t machine; /* e_machine of ELF: 62 x86-64, 183 aarch64, 190 CUDA; 0 any */
    uint32_t first_feature; /* of CUDA there is one, the kind of GPU: "sm_80", "sm_90a" */
    uint32_t feature_count;
};

enum expression_operator { OP_CONSTANT, OP_SYMBOL, OP_ADD, OP_MULTIPLY, OP_CEIL_DIVIDE, OP_MAXIMUM, OP_END };
enum buffer_kind { BUFFER_INPUT, BUFFER_OUTPUT, BUFFER_CONSTANT, BUFFER_TEMPORARY, BUFFER_PART, BUFFER_END };
enum argument_kind {
    ARGUMENT_SCRATCH,
    ARGUMENT_POINTER,
    ARGUMENT_INTEGER,
    ARGUMENT_TENSOR,
    ARGUMENT_TILE_BEGIN,
    ARGUMENT_TILE_END,
    ARGUMENT_END
};
enum step_flags { STEP_SERIAL = 1 };
enum { MACHINE_CUDA = 190, MAXIMUM_BLOCK = 1024 };

struct expression {
    uint32_t operator;
    uint32_t reserved;
    int64_t a;
    int64_t b;
};

/* A part lies inside the earlier buffer `index`, from byte `first` (an expression) on. */
struct buffer {
    uint32_t kind;
    uint32_t nbytes; /* expression */
    int64_t index;
    uint32_t first;
    uint32_t last;
};

/* A range of SHAPES. */
struct extent {
    uint32_t start;
    uint32_t rank;
};

struct tensor {
    uint32_t buffer;
    uint32_t dtype; /* DLDataType: code, bits, lanes from the low byte up */
    struct extent shape;
};

struct argument {
    uint32_t kind;
    uint32_t value;
};

/* A step on a GPU is a launch of `tiles` blocks of `threads` threads, each block with `scratch` bytes of dynamic
 * shared memory; its arguments are pointers and integers.  All steps of a CUDA code are such. */
struct step {
    uint32_t kernel; /* string */
    uint32_t node;   /* string */
    uint32_t first_argument;
    uint32_t argument_count;
    uint32_t tiles;   /* expression */
    uint32_t scratch; /* expression */
    uint32_t flags;
    uint32_t threads; /* 0: a call of a function of the processor */
    uint64_t nanoseconds;
};

struct port {
    uint32_t name; /* string */
    uint32_t dtype;
    struct extent shape;
    uint32_t buffer;
    uint32_t reserved;
};

_Static_assert(sizeof(struct header) == 64 && sizeof(struct section) == 32, "file format");
_Static_assert(sizeof(struct expression) == 24 && sizeof(struct buffer) == 24, "file format");
_Static_assert(sizeof(struct isa) == 16 && sizeof(struct tensor) == 16 && sizeof(struct argument) == 8, "file format");
_Static_assert(sizeof(struct step) == 40 && sizeof(struct port) == 24, "file format");
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "sparsec reads its tables in place and needs a little-endian machine"
#endif

#endif
