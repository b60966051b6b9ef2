/* A block of the transformer in 8-bit integers, in place, for one clip. Called through ctypes: it needs no headers of
 * Python, only a compiler.
 */

#include "attention.h"
#include "linear.h"

#define PUBLIC __attribute__((visibility("default")))

typedef struct {
    Norm norm1;
    Linear qkv, proj;
    Norm norm2;
    Linear fc1, fc2;
} Block;

/* Tokens that go through the MLP together: what is between its layers is four times as wide as other things. */
#define PASS (PART / 2)

/* Memory of one thread, and where in it things are. */
typedef struct {
    char *heads, *scratch;
    float *mixed, *rows;
    Activations activations;
    size_t bytes;
} Memory;

static size_t largest(size_t a, size_t b) { return a > b ? a : b; }

static Memory place_memory(uintptr_t start, size_t tokens, size_t heads, size_t width, size_t hidden)
{
    const size_t channels = heads * width;
    size_t used = 0;
    Memory memory;
#define PLACE(member, count) \
    memory.member = (void *)(start + used); \
    used += round_up(count, 64)
    PLACE(heads, streamfeat_attention_memory(tokens, heads, width));
    PLACE(scratch, streamfeat_attention_scratch(tokens));
    PLACE(mixed, tokens * channels * sizeof(float));
    PLACE(rows, PART * largest(3 * channels, hidden) * sizeof(float));
    PLACE(activations.bytes, PART * largest(channels, hidden));
    PLACE(activations.scales, PART * sizeof(float));
#undef PLACE
    memory.bytes = used;
    return memory;
}

/* Whether this processor can run it. Only then may the rest be called. */
PUBLIC int streamfeat_supported(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

/* Whether models of this shape can be run. */
PUBLIC int streamfeat_fits(size_t heads, size_t width, size_t hidden)
{
    return streamfeat_attention_fits(width) && streamfeat_linear_fits(heads * width, 3 * heads * width) &&
           streamfeat_linear_fits(heads * width, hidden) && streamfeat_linear_fits(hidden, heads * width);
}

/* Bytes that a thread needs for clips of this shape. They begin at zero, and on a multiple of 64. */
PUBLIC size_t streamfeat_memory(size_t tokens, size_t heads, size_t width, size_t hidden)
{
    return place_memory(0, tokens, heads, width, hidden).bytes;
}

/* The block on `x`, (tokens, heads * width). Returns 0, with `x` half done, when numbers are not finite. */
PUBLIC int streamfeat_block(
    const Block *block, float *x, char *start, size_t tokens, size_t heads, size_t width, size_t hidden)
{
    const size_t channels = heads * width;
    Memory memory = place_memory((uintptr_t)start, tokens, heads, width, hidden);
    Activations *activations = &memory.activations;
    for (size_t first = 0; first < tokens; first += PART) {
        const size_t rows = tokens - first < PART ? tokens - first : PART;
        streamfeat_norm_quantise(x + first * channels, rows, channels, &block->norm1, activations);
        streamfeat_linear(&block->qkv, activations, rows, memory.rows, STORE);
        if (!streamfeat_attention_pack(memory.rows, memory.heads, first, rows, tokens, heads, width))
            return 0;
    }
    streamfeat_attention_attend(memory.heads, memory.mixed, memory.scratch, tokens, heads, width);
    for (size_t first = 0; first < tokens; first += PASS) {
        const size_t rows = tokens - first < PASS ? tokens - first : PASS;
        float *part = x + first * channels;
        streamfeat_quantise(memory.mixed + first * channels, rows, channels, activations);
        streamfeat_linear(&block->proj, activations, rows, part, ADD);
        streamfeat_norm_quantise(part, rows, channels, &block->norm2, activations);
        streamfeat_linear(&block->fc1, activations, rows, memory.rows, GELU);
        streamfeat_quantise(memory.rows, rows, hidden, activations);
        streamfeat_linear(&block->fc2, activations, rows, part, ADD);
    }
    return 1;
}
