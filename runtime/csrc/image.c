/* The model file in memory: mapped, its header and section table checked.
 *
 * The file is treated as hostile: nothing it says is believed before it was checked. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

static const char *const SECTION_NAMES[SECTION_END] = {
    "?",      "manifest", "features", "strings", "symbols",   "expressions", "buffers", "shapes",
    "tensors", "inputs",  "outputs",  "isas",    "arguments", "steps",       "code",    "weights",
};

/* How a Zstandard frame begins: RFC 8878, section 3.1.1. */
static const unsigned char ZSTANDARD[4] = {0x28, 0xB5, 0x2F, 0xFD};

/* CRC-32 as zlib computes it (polynomial 0xEDB88320), eight bytes at a time: Kounavis and Berry 2005. */
static uint32_t crc_tables[8][256];
static pthread_once_t crc_once = PTHREAD_ONCE_INIT;

static void fill_crc_tables(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++) value = (value >> 1) ^ (value & 1 ? 0xEDB88320u : 0);
        crc_tables[0][i] = value;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int t = 1; t < 8; t++)
            crc_tables[t][i] = (crc_tables[t - 1][i] >> 8) ^ crc_tables[0][crc_tables[t - 1][i] & 0xff];
}

static uint32_t crc32_of(uint32_t crc, const unsigned char *data, size_t size) {
    pthread_once(&crc_once, fill_crc_tables);
    crc = ~crc;
    for (; size >= 8; size -= 8, data += 8) {
        uint64_t word;
        memcpy(&word, data, 8);
        word ^= crc;
        crc = 0;
        for (int t = 0; t < 8; t++) crc ^= crc_tables[7 - t][(word >> (8 * t)) & 0xff];
    }
    while (size--) crc = (crc >> 8) ^ crc_tables[0][(crc ^ *data++) & 0xff];
    return ~crc;
}

static int damaged(struct sparsec_failure *failure, const char *name) {
    return fail(failure, SPARSEC_FAILURE_ARTIFACT,
                "the file is damaged in its %s; copy it again or compile the model again", name);
}

static int check_header(const struct image *image, struct sparsec_failure *failure) {
    struct header header;
    if (image->size >= sizeof ZSTANDARD && memcmp(image->base, ZSTANDARD, sizeof ZSTANDARD) == 0)
        return fail(failure, SPARSEC_FAILURE_ARTIFACT,
                    "the file is compressed for shipping; expand it first: sparsec decompress");
    if (image->size < MAGIC_BYTES || memcmp(image->base, FORMAT_MAGIC, MAGIC_BYTES) != 0)
        return fail(failure, SPARSEC_FAILURE_ARTIFACT,
                    "not a sparsec file: it does not start with the sparsec mark");
    if (image->size < sizeof header)
        return fail(failure, SPARSEC_FAILURE_ARTIFACT, "the file is truncated: %zu bytes do not hold its header",
                    image->size);
    memcpy(&header, image->base, sizeof header);
    if (header.version != FORMAT_VERSION)
        return fail(failure, SPARSEC_FAILURE_ARTIFACT,
                    "the file has format version %u, this sparsec reads version %u; compile the model again",
                    header.version, (unsigned)FORMAT_VERSION);
    if (header.file_size > image->size)
        return fail(failure, SPARSEC_FAILURE_ARTIFACT,
                    "the file is truncated: it has %zu of %llu bytes; copy it again", image->size,
                    (unsigned long long)header.file_size);
    if (header.file_size < image->size || header.section_count > 64) return damaged(failure, "header");
    size_t head = sizeof header + header.section_count * sizeof(struct section);
    if (head > image->size) return damaged(failure, "header");
    uint32_t expected = header.crc;
    header.crc = 0;
    uint32_t crc = crc32_of(0, (const unsigned char *)&header, sizeof header);
    crc = crc32_of(crc, image->base + sizeof header, head - sizeof header);
    return crc == expected ? 0 : damaged(failure, "header");
}

static bool of_an_isa(uint32_t kind) { return kind >= SECTION_ARGUMENTS && kind <= SECTION_CODE; }

/* Where a section's span is kept; NULL for a row of ISAS that cannot be. */
static struct span *place_of(struct image *image, const struct section *s) {
    if (!of_an_isa(s->kind)) return s->isa == 0 ? &image->sections[s->kind] : NULL;
    return s->isa < MAXIMUM_ISAS ? &image->isas[s->isa][s->kind - SECTION_ARGUMENTS] : NULL;
}

/* Sections follow one another: `end` is where the one before ended. */
static int check_section(struct image *image, const struct section *s, uint64_t *end, bool verify,
                         struct sparsec_failure *failure) {
    if (s->kind == 0 || s->kind >= SECTION_END) return 0; /* a later minor addition: not needed to run */
    const char *name = SECTION_NAMES[s->kind];
    size_t alignment = s->kind == SECTION_WEIGHTS ? 4096 : ALIGNMENT;
    struct span *place = place_of(image, s);
    bool inside = s->offset >= *end && s->offset <= image->size && s->size <= image->size - s->offset;
    if (!inside || s->offset % alignment != 0 || !place || place->data) return damaged(failure, name);
    *place = (struct span){image->base + s->offset, s->size};
    *end = s->offset + s->size;
    if (s->kind == SECTION_CODE) image->code_crcs[s->isa] = s->crc;
    if (!verify && (s->kind == SECTION_WEIGHTS || s->kind == SECTION_CODE)) return 0;
    return crc32_of(0, place->data, s->size) == s->crc ? 0 : damaged(failure, name);
}

static int check_sections(struct image *image, bool verify, struct sparsec_failure *failure) {
    const struct header *header = (const struct header *)image->base;
    const struct section *table = (const struct section *)(image->base + sizeof *header);
    uint64_t end = sizeof *header + header->section_count * sizeof *table;
    for (uint32_t i = 0; i < header->section_count; i++)
        if (check_section(image, &table[i], &end, verify, failure)) return -1;
    for (uint32_t kind = 1; kind < SECTION_END; kind++)
        if (!image->sections[kind].data && !of_an_isa(kind))
            return fail(failure, SPARSEC_FAILURE_ARTIFACT, "the file has no section called %s",
                        SECTION_NAMES[kind]);
    return 0;
}

int image_select(struct image *image, size_t isa, struct sparsec_failure *failure) {
    for (uint32_t kind = SECTION_ARGUMENTS; kind <= SECTION_CODE; kind++) {
        image->sections[kind] = image->isas[isa][kind - SECTION_ARGUMENTS];
        if (!image->sections[kind].data)
            return fail(failure, SPARSEC_FAILURE_ARTIFACT, "the file has no section called %s for its code %zu",
                        SECTION_NAMES[kind], isa);
    }
    struct span code = image->sections[SECTION_CODE];
    return crc32_of(0, code.data, code.size) == image->code_crcs[isa] ? 0 : damaged(failure, "code");
}

/* `digest`: NULL, or the SHA-256 the whole file must have, in hexadecimal digits. */
static int check_digest(const struct image *image, const char *digest, struct sparsec_failure *failure) {
    char found[SHA256_DIGITS + 1];
    if (!digest) return 0;
    sha256_text(image->base, image->size, found);
    if (strlen(digest) == SHA256_DIGITS && strncasecmp(digest, found, SHA256_DIGITS) == 0) return 0;
    return fail(failure, SPARSEC_FAILURE_ARTIFACT,
                "the file is not the one that was asked for: its SHA-256 is %s, not %.80s", found, digest);
}

static int check_image(struct image *image, const struct sparsec_options *options,
                       struct sparsec_failure *failure) {
    if (check_digest(image, options->sha256, failure) == 0 && check_header(image, failure) == 0 &&
        check_sections(image, options->verify, failure) == 0)
        return 0;
    image_close(image);
    return -1;
}

static int map_file(struct image *image, int descriptor, struct sparsec_failure *failure) {
    struct stat status;
    if (fstat(descriptor, &status) != 0) return fail(failure, SPARSEC_FAILURE_ARTIFACT, "%s", strerror(errno));
    if (!S_ISREG(status.st_mode)) return fail(failure, SPARSEC_FAILURE_ARTIFACT, "not a regular file");
    if (status.st_size == 0) return fail(failure, SPARSEC_FAILURE_ARTIFACT, "not a sparsec file: it is empty");
    void *base = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (base == MAP_FAILED)
        return fail(failure, SPARSEC_FAILURE_ARTIFACT, "cannot be mapped: %s", strerror(errno));
    *image = (struct image){.base = base, .size = (size_t)status.st_size};
    return 0;
}

int image_open(struct image *image, const char *path, const struct sparsec_options *options,
               struct sparsec_failure *failure) {
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0)
        return fail(failure, SPARSEC_FAILURE_ARTIFACT, errno == ENOENT ? "no such file" : "cannot be opened: %s",
                    strerror(errno));
    int status = map_file(image, descriptor, failure);
    close(descriptor);
    return status ? status : check_image(image, options, failure);
}

int image_copy(struct image *image, const void *data, size_t size, const struct sparsec_options *options,
               struct sparsec_failure *failure) {
    if (size == 0) return fail(failure, SPARSEC_FAILURE_ARTIFACT, "not a sparsec file: it is empty");
    void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) return fail_memory(failure, size);
    memcpy(base, data, size);
    mprotect(base, size, PROT_READ);
    *image = (struct image){.base = base, .size = size};
    return check_image(image, options, failure);
}

void image_close(struct image *image) {
    if (image->base) munmap(image->base, image->size);
    *image = (struct image){0};
}
