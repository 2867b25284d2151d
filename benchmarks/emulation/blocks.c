/* What a program executed, block by block: a plugin of qemu-user's translator (TCG plugin ABI, version 1).

   Between getpriority(0x5eed, n) with n > 0 and getpriority(0x5eed, 0) the plugin writes, at each call of
   clock_gettime and at the end, how often every straight run of instructions was executed since the last such
   point. onnxruntime's profiler reads the clock before and after each operator, and an aarch64 program under
   qemu 7.2 has no vDSO: its clock is a system call that this plugin sees. The guest needs no other help.

   Output (text, argument out=FILE):  B id word word ...   a block, before its first use
                                      G n                  a recording begins
                                      R id:count ...       what ran up to this point
   Debian ships no header of the ABI: the declarations below are the ones that are used. */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t plugin_id;
struct translation;
struct instruction;
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct translation *));
extern size_t qemu_plugin_tb_n_insns(const struct translation *);
extern struct instruction *qemu_plugin_tb_get_insn(const struct translation *, size_t);
extern const void *qemu_plugin_insn_data(const struct instruction *);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct translation *, int operation, void *, uint64_t);
extern void qemu_plugin_register_vcpu_syscall_cb(plugin_id, void (*)(plugin_id, unsigned, int64_t, uint64_t, uint64_t,
                                                                    uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                                                                    uint64_t));
extern void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);
int qemu_plugin_version = 1;

enum { ADD = 0, MARK = 0x5eed, CLOCK_GETTIME = 113, GETPRIORITY = 141, BUCKETS = 1 << 16, MOST = 1 << 20, LONGEST = 4096 };

struct block {
    uint32_t id, size;
    uint32_t *words;
    struct block *next; /* of the same hash */
};

static struct block *buckets[BUCKETS], *blocks[MOST];
static uint64_t counts[MOST], before[MOST]; /* executions by block, and those up to the last point */
static char told[MOST];
static uint32_t made;
static int recording;
static FILE *out;

static struct block *block_of(const uint32_t *words, uint32_t size) {
    uint32_t hash = 2166136261u;
    for (uint32_t i = 0; i < size; i++) hash = (hash ^ words[i]) * 16777619u;
    struct block **bucket = &buckets[(hash ^ hash >> 16) % BUCKETS];
    for (struct block *b = *bucket; b; b = b->next)
        if (b->size == size && !memcmp(b->words, words, 4 * size)) return b;
    if (made == MOST) fputs("blocks.c: more blocks than MOST, raise it\n", stderr), abort();
    struct block *b = blocks[made] = calloc(1, sizeof *b);
    b->words = malloc(4 * size);
    memcpy(b->words, words, 4 * size);
    b->id = made++, b->size = size, b->next = *bucket;
    return *bucket = b;
}

static void translated(plugin_id id, struct translation *tb) {
    uint32_t words[LONGEST], size = (uint32_t)qemu_plugin_tb_n_insns(tb);
    if (size > LONGEST) fputs("blocks.c: a block longer than LONGEST, raise it\n", stderr), abort();
    for (uint32_t i = 0; i < size; i++) memcpy(&words[i], qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i)), 4);
    qemu_plugin_register_vcpu_tb_exec_inline(tb, ADD, &counts[block_of(words, size)->id], 1);
}

static void tell(const struct block *b) {
    fprintf(out, "B %" PRIu32, b->id);
    for (uint32_t i = 0; i < b->size; i++) fprintf(out, " %08" PRIx32, b->words[i]);
    fputc('\n', out);
    told[b->id] = 1;
}

static void write_region(void) {
    for (uint32_t i = 0; i < made; i++)
        if (counts[i] > before[i] && !told[i]) tell(blocks[i]);
    fputc('R', out);
    for (uint32_t i = 0; i < made; i++)
        if (counts[i] > before[i]) fprintf(out, " %" PRIu32 ":%" PRIu64, i, counts[i] - before[i]);
    fputc('\n', out);
}

static void called(plugin_id id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
                   uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
    if (number == GETPRIORITY && a1 == MARK) {
        if (recording) write_region();
        recording = (int)a2;
        if (recording) fprintf(out, "G %d\n", recording);
        fflush(out);
    } else if (number == CLOCK_GETTIME && recording) {
        write_region();
    } else {
        return;
    }
    memcpy(before, counts, sizeof *counts * made);
}

static void finished(plugin_id id, void *unused) { fclose(out); }

int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv) {
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "out=", 4)) out = fopen(argv[i] + 4, "w");
    if (!out) return fputs("blocks.c: give it a file to write to, out=FILE\n", stderr), 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    qemu_plugin_register_atexit_cb(id, finished, NULL);
    return 0;
}
