/* SPDX-License-Identifier: Apache-2.0
 *
 * Mutations that know the file's sections: tables change in their bytes, numbers and rows, then the file is
 * laid out again and all checksums are made right, so that only the reader's own checks are left. */
#include <stdlib.h>
#include <string.h>

#include "format.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);

enum { MOST_SECTIONS = 64, MOST_BYTES = 1 << 16, PAGE = 4096 };

static const uint8_t ROW_BYTES[SECTION_END] = {
    [SECTION_MANIFEST] = 1,    [SECTION_FEATURES] = 4, [SECTION_STRINGS] = 1, [SECTION_SYMBOLS] = 4,
    [SECTION_EXPRESSIONS] = sizeof(struct expression), [SECTION_BUFFERS] = sizeof(struct buffer),
    [SECTION_SHAPES] = 4,      [SECTION_TENSORS] = sizeof(struct tensor), [SECTION_INPUTS] = sizeof(struct port),
    [SECTION_OUTPUTS] = sizeof(struct port), [SECTION_ISAS] = sizeof(struct isa),
    [SECTION_ARGUMENTS] = sizeof(struct argument), [SECTION_STEPS] = sizeof(struct step),
    [SECTION_CODE] = 1,        [SECTION_WEIGHTS] = 1,
};

struct parts {
    struct header header;
    struct section sections[MOST_SECTIONS];
    const uint8_t *bytes[MOST_SECTIONS];
};

static uint32_t state;

static uint32_t draw(uint32_t below) {
    state = state * 1664525u + 1013904223u;
    return below ? (uint32_t)(((uint64_t)state * below) >> 32) : 0;
}

static uint32_t crc32_of(uint32_t crc, const uint8_t *data, size_t size) {
    static uint32_t table[256];
    for (uint32_t i = 0; i < 256 && !table[255]; i++) {
        table[i] = i;
        for (int bit = 0; bit < 8; bit++) table[i] = (table[i] >> 1) ^ (table[i] & 1 ? 0xEDB88320u : 0);
    }
    crc = ~crc;
    while (size--) crc = (crc >> 8) ^ table[(crc ^ *data++) & 0xff];
    return ~crc;
}

static size_t up(size_t value, size_t alignment) { return (value + alignment - 1) / alignment * alignment; }

static size_t head_bytes(const struct header *header) {
    return sizeof *header + header->section_count * sizeof(struct section);
}

static int split(const uint8_t *data, size_t size, struct parts *parts) {
    if (size < sizeof parts->header) return -1;
    memcpy(&parts->header, data, sizeof parts->header);
    if (parts->header.section_count > MOST_SECTIONS || head_bytes(&parts->header) > size) return -1;
    memcpy(parts->sections, data + sizeof parts->header, parts->header.section_count * sizeof *parts->sections);
    for (uint32_t i = 0; i < parts->header.section_count; i++) {
        const struct section *s = &parts->sections[i];
        if (s->offset > size || s->size > size - s->offset) return -1;
        parts->bytes[i] = data + s->offset;
    }
    return 0;
}

/* The checksums of what lies there; a section that lies outside keeps its own. */
static void repair(uint8_t *data, size_t size) {
    struct header header;
    struct section section;
    if (size < sizeof header) return;
    memcpy(&header, data, sizeof header);
    if (header.section_count > MOST_SECTIONS || head_bytes(&header) > size) return;
    for (uint32_t i = 0; i < header.section_count; i++) {
        uint8_t *place = data + sizeof header + i * sizeof section;
        memcpy(&section, place, sizeof section);
        if (section.offset > size || section.size > size - section.offset) continue;
        section.crc = crc32_of(0, data + section.offset, section.size);
        memcpy(place, &section, sizeof section);
    }
    header.crc = 0;
    memcpy(data, &header, sizeof header);
    header.crc = crc32_of(0, data, head_bytes(&header));
    memcpy(data, &header, sizeof header);
}

/* The file of these parts, or 0 where it has no room. */
static size_t join(struct parts *parts, uint8_t *data, size_t most) {
    static uint8_t file[MOST_BYTES];
    size_t at = head_bytes(&parts->header);
    memset(file, 0, sizeof file);
    for (uint32_t i = 0; i < parts->header.section_count; i++) {
        struct section *s = &parts->sections[i];
        at = up(at, s->kind == SECTION_WEIGHTS ? PAGE : ALIGNMENT);
        if (at > most || s->size > most - at || at + s->size > sizeof file) return 0;
        memcpy(file + at, parts->bytes[i], s->size);
        s->offset = at;
        at += s->size;
    }
    parts->header.file_size = at;
    memcpy(file, &parts->header, sizeof parts->header);
    memcpy(file + sizeof parts->header, parts->sections, parts->header.section_count * sizeof *parts->sections);
    repair(file, at);
    memcpy(data, file, at);
    return at;
}

static size_t row_bytes(uint32_t kind) { return kind < SECTION_END && ROW_BYTES[kind] ? ROW_BYTES[kind] : 1; }

static const uint64_t EDGES[] = {0x7fffffff, 0x80000000, 0xffffffff, 1ull << 48, (1ull << 48) + 1, INT64_MAX,
                                 1ull << 63, UINT64_MAX, 4096,       64,         32,               33};

/* A number at the edge, or near the one that is there. */
static size_t change_number(uint8_t *table, size_t size) {
    const size_t wide = draw(3) ? 4 : 8;
    if (size < wide) return size;
    uint8_t *place = table + draw((uint32_t)(size / wide)) * wide;
    uint64_t number = 0;
    memcpy(&number, place, wide);
    number = draw(2) ? EDGES[draw(sizeof EDGES / sizeof *EDGES)] : number + draw(5) - 2;
    memcpy(place, &number, wide);
    return size;
}

/* What the words of a row mean: a row of another table, a type, a small number, or nothing that is changed. */
enum { SMALL = SECTION_END, DTYPE, KEPT };
enum { MOST_WORDS = 10 };
static const uint8_t WORDS[SECTION_END][MOST_WORDS] = {
    [SECTION_FEATURES] = {SECTION_STRINGS},
    [SECTION_SYMBOLS] = {SECTION_STRINGS},
    [SECTION_EXPRESSIONS] = {SMALL, KEPT, SECTION_EXPRESSIONS, KEPT, SECTION_EXPRESSIONS, KEPT},
    [SECTION_BUFFERS] = {SMALL, SECTION_EXPRESSIONS, SMALL, KEPT, SECTION_EXPRESSIONS, SECTION_STEPS},
    [SECTION_SHAPES] = {SECTION_EXPRESSIONS},
    [SECTION_TENSORS] = {SECTION_BUFFERS, DTYPE, SECTION_SHAPES, SMALL},
    [SECTION_INPUTS] = {SECTION_STRINGS, DTYPE, SECTION_SHAPES, SMALL, SECTION_BUFFERS, KEPT},
    [SECTION_OUTPUTS] = {SECTION_STRINGS, DTYPE, SECTION_SHAPES, SMALL, SECTION_BUFFERS, KEPT},
    [SECTION_ISAS] = {SECTION_STRINGS, KEPT, SECTION_FEATURES, SMALL},
    [SECTION_ARGUMENTS] = {SMALL, SECTION_EXPRESSIONS},
    [SECTION_STEPS] = {SECTION_STRINGS, SECTION_STRINGS, KEPT, SMALL, SECTION_EXPRESSIONS, SECTION_EXPRESSIONS, SMALL,
                       KEPT, KEPT, KEPT},
};

static uint32_t rows_of(const struct parts *parts, uint32_t kind) {
    for (uint32_t i = 0; i < parts->header.section_count; i++)
        if (parts->sections[i].kind == kind) return (uint32_t)(parts->sections[i].size / row_bytes(kind));
    return 1;
}

/* One word of a row, to another that may be right there. */
static size_t change_word(const struct parts *parts, uint32_t kind, uint8_t *table, size_t size) {
    static const uint32_t DTYPES[] = {0x12002, 0x14002, 0x11002, 0x10800, 0x14000, 0x10801, 0x10806};
    const size_t row = row_bytes(kind), words = row / 4, rows = size / row;
    if (words == 0 || rows == 0) return size;
    const uint32_t word = draw((uint32_t)words), meaning = WORDS[kind][word];
    uint32_t value = meaning < SECTION_END ? draw(rows_of(parts, meaning)) : draw(7);
    if (meaning == DTYPE) value = DTYPES[draw(sizeof DTYPES / sizeof *DTYPES)];
    if (meaning != KEPT) memcpy(table + draw((uint32_t)rows) * row + word * 4, &value, sizeof value);
    return size;
}

/* A row again, away, or over another. */
static size_t change_rows(uint8_t *table, size_t size, size_t most, size_t row) {
    const uint32_t rows = (uint32_t)(size / row);
    if (rows == 0) return size;
    uint8_t *place = table + draw(rows) * row;
    const size_t rest = size - (size_t)(place - table);
    switch (draw(3)) {
    case 0:
        if (size + row > most) return size;
        memmove(place + row, place, rest);
        return size + row;
    case 1: memmove(place, place + row, rest - row); return size - row;
    default: memmove(place, table + draw(rows) * row, row); return size;
    }
}

static size_t change_table(const struct parts *parts, uint32_t kind, uint8_t *table, size_t size, size_t most) {
    const uint32_t choice = draw(16), known = kind < SECTION_END ? kind : 0;
    if (choice < 2) return LLVMFuzzerMutate(table, size, most);
    if (choice < 4) return change_number(table, size);
    return choice < 7 ? change_rows(table, size, most, row_bytes(known)) : change_word(parts, known, table, size);
}

/* Mostly tables: mutating code, which nobody runs here, or weights shows little. */
static uint32_t some_section(const struct parts *parts) {
    uint32_t i = draw(parts->header.section_count);
    for (int attempt = 0; attempt < 8; attempt++, i = draw(parts->header.section_count)) {
        const uint32_t kind = parts->sections[i].kind;
        if (kind != SECTION_CODE && kind != SECTION_WEIGHTS && kind != SECTION_MANIFEST) break;
    }
    return i;
}

static size_t mutate_sections(uint8_t *data, size_t size, size_t most) {
    static uint8_t tables[3][MOST_BYTES];
    struct parts parts;
    if (split(data, size, &parts) || parts.header.section_count == 0) return 0;
    for (uint32_t i = 0, times = 1 + draw(3); i < times; i++) {
        const uint32_t at = some_section(&parts);
        struct section *s = &parts.sections[at];
        if (s->size > MOST_BYTES / 2) continue;
        memmove(tables[i], parts.bytes[at], s->size);
        s->size = change_table(&parts, s->kind, tables[i], s->size, MOST_BYTES / 2);
        parts.bytes[at] = tables[i];
    }
    return join(&parts, data, most);
}

/* How the target loads: the last word of the header. */
static size_t mutate_manner(uint8_t *data, size_t size) {
    struct header header;
    if (size < sizeof header) return 0;
    memcpy(&header, data, sizeof header);
    header.reserved[sizeof header.reserved / sizeof *header.reserved - 1] ^= 1u << draw(12);
    memcpy(data, &header, sizeof header);
    repair(data, size);
    return size;
}

/* Header and section table, the rest as it lies. */
static size_t mutate_head(uint8_t *data, size_t size) {
    uint8_t head[sizeof(struct header) + MOST_SECTIONS * sizeof(struct section)];
    struct header header;
    if (size < sizeof header) return 0;
    memcpy(&header, data, sizeof header);
    size_t bytes = head_bytes(&header);
    if (header.section_count > MOST_SECTIONS || bytes > size) return 0;
    memcpy(head, data, bytes);
    if (draw(2)) bytes = LLVMFuzzerMutate(head, bytes, bytes);
    else change_number(head, bytes);
    memcpy(data, head, bytes);
    repair(data, size);
    return size;
}

/* Files that loaded: a change to one that does not seldom shows more. */
enum { REMEMBERED = 64 };
static struct {
    uint8_t *data;
    size_t size;
} remembered[REMEMBERED];

void remember(const uint8_t *data, size_t size) {
    static unsigned next;
    const unsigned at = next++ % REMEMBERED;
    free(remembered[at].data);
    remembered[at].data = malloc(size);
    remembered[at].size = remembered[at].data ? size : 0;
    if (remembered[at].data) memcpy(remembered[at].data, data, size);
}

static size_t recall(uint8_t *data, size_t size, size_t most) {
    const uint32_t at = draw(REMEMBERED);
    if (!remembered[at].size || remembered[at].size > most) return size;
    memcpy(data, remembered[at].data, remembered[at].size);
    return remembered[at].size;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed) {
    state = seed;
    const uint32_t choice = draw(32);
    if (draw(2)) size = recall(data, size, most);
    size_t changed = 0;
    if (choice > 4) changed = mutate_sections(data, size, most);
    else if (choice > 2) changed = mutate_manner(data, size);
    else if (choice > 0) changed = mutate_head(data, size);
    return changed ? changed : LLVMFuzzerMutate(data, size, most);
}

/* The first file with some sections of the second. */
size_t LLVMFuzzerCustomCrossOver(const uint8_t *one, size_t one_size, const uint8_t *two, size_t two_size,
                                 uint8_t *data, size_t most, unsigned seed);
size_t LLVMFuzzerCustomCrossOver(const uint8_t *one, size_t one_size, const uint8_t *two, size_t two_size,
                                 uint8_t *data, size_t most, unsigned seed) {
    struct parts mine, other;
    state = seed;
    if (split(one, one_size, &mine) || split(two, two_size, &other)) return 0;
    for (uint32_t i = 0; i < mine.header.section_count; i++)
        for (uint32_t k = 0; k < other.header.section_count; k++) {
            if (mine.sections[i].kind != other.sections[k].kind || draw(4)) continue;
            mine.sections[i].size = other.sections[k].size;
            mine.bytes[i] = other.bytes[k];
            break;
        }
    return join(&mine, data, most);
}
