/* Queries and keys are bytes, scaled by token; as weights of the softmax do not change when the same vector is taken
 * from all keys, their mean is, since it is what most of them have in common (Zhang et al., SageAttention, ICLR 2025).
 * Weights and values have 16 bits: bytes would lose the many small weights of a query that looks at much. Weights are
 * integers relative to the largest of their query, and are divided by the sum of these integers. All sums of products
 * are exact.
 */

#include "attention.h"

/* Largest integers. The sum over PART keys of weights times values fits 32 bits. */
#define LARGEST_BYTE 127.0f
#define LARGEST_WEIGHT 8191.0f
#define LARGEST_VALUE 1023.0f

/* Where everything of one head lies. */
typedef struct {
    float *key_mean; /* [channel] */
    int32_t *queries; /* [tile][four channels][query], each four bytes with signs */
    float *query_scales; /* [token] */
    int32_t *query_offsets; /* [token]: what keys, of which each byte is 128 too large, add too much */
    int32_t *keys; /* [block][four channels][key], each four bytes without signs */
    float *key_scales; /* [token] */
    int32_t *values; /* [pair of keys][channel], 16 bits each, pairs in the order in which exponentials() leaves them */
    float *value_scales; /* [part][channel] */
    size_t bytes;
} Head;

/* Channels in whole vectors. */
static size_t padded(size_t width) { return round_up(width, 16); }

static Head place_head(uintptr_t start, size_t tokens, size_t width)
{
    const size_t keys = round_up(tokens, BLOCK), queries = round_up(tokens, TILE);
    size_t used = 0;
    Head head;
#define PLACE(member, count) \
    head.member = (void *)(start + used); \
    used += round_up((count) * 4, 64)
    PLACE(key_mean, padded(width));
    PLACE(queries, queries * width / 4);
    PLACE(query_scales, queries);
    PLACE(query_offsets, queries);
    PLACE(keys, keys * width / 4);
    PLACE(key_scales, keys);
    PLACE(values, keys / 2 * padded(width));
    PLACE(value_scales, (keys + PART - 1) / PART * padded(width));
#undef PLACE
    head.bytes = used;
    return head;
}

static Head head_at(char *memory, size_t index, size_t tokens, size_t width)
{
    return place_head((uintptr_t)memory + index * place_head(0, tokens, width).bytes, tokens, width);
}

int streamfeat_attention_fits(size_t width)
{
    return width % 4 == 0 && (padded(width) == 64 || padded(width) == 80 || padded(width) == 96);
}

size_t streamfeat_attention_memory(size_t tokens, size_t heads, size_t width)
{
    return heads * place_head(0, tokens, width).bytes;
}

size_t streamfeat_attention_scratch(size_t tokens)
{
    return TILE * round_up(tokens, BLOCK) * (sizeof(float) + sizeof(int16_t));
}

/* One token's query or key, less `mean`, as bytes from `offset` on into fours that lie `step` apart. */
INLINE float pack_row(
    const float *row, const float *mean, size_t width, int offset, int32_t *fours, size_t step, int32_t *sum)
{
    uint8_t bytes[MOST_WIDTH];
    __m512 centred[MOST_WIDTH / 16], most = _mm512_setzero_ps();
    __m512i total = _mm512_setzero_si512();
    for (size_t c = 0; c < width; c += 16) {
        centred[c / 16] = _mm512_maskz_loadu_ps(first_lanes(width - c), row + c);
        if (mean)
            centred[c / 16] = _mm512_sub_ps(centred[c / 16], _mm512_loadu_ps(mean + c));
        most = _mm512_max_ps(most, _mm512_abs_ps(centred[c / 16]));
    }
    const float largest = _mm512_reduce_max_ps(most);
    const __m512 factor = _mm512_set1_ps(factor_for(largest, LARGEST_BYTE));
    for (size_t c = 0; c < width; c += 16) {
        const __m512i integers = _mm512_cvtps_epi32(_mm512_mul_ps(centred[c / 16], factor));
        total = _mm512_add_epi32(total, integers);
        const __m512i moved = _mm512_add_epi32(integers, _mm512_set1_epi32(offset));
        _mm_storeu_si128((__m128i *)(bytes + c), _mm512_cvtepi32_epi8(moved));
    }
    for (size_t four = 0; four < width / 4; four++)
        memcpy(fours + four * step, bytes + 4 * four, 4);
    if (sum)
        *sum = _mm512_reduce_add_epi32(total);
    return scale_for(largest, LARGEST_BYTE);
}

/* Mean over rows that lie `stride` apart. */
INLINE void mean_row(const float *rows, size_t stride, size_t count, size_t width, float *mean)
{
    for (size_t c = 0; c < width; c += 16) {
        const __mmask16 lanes = first_lanes(width - c);
        __m512 sum = _mm512_setzero_ps();
        for (size_t row = 0; row < count; row++)
            sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(lanes, rows + row * stride + c));
        _mm512_storeu_ps(mean + c, _mm512_div_ps(sum, _mm512_set1_ps((float)count)));
    }
}

/* Values of up to PART tokens, whose rows lie `stride` apart, from token `first` on. */
INLINE void pack_values(const float *rows, size_t stride, size_t count, size_t first, const Head *head, size_t width)
{
    /* Where in a block each pair of keys is, after two vectors were packed into one lane by lane. */
    static const uint8_t place[BLOCK / 2] = {0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15};
    const size_t channels = padded(width);
    for (size_t c = 0; c < channels; c += 16) {
        const __mmask16 lanes = width > c ? first_lanes(width - c) : 0;
        __m512 most = _mm512_setzero_ps();
        for (size_t row = 0; row < count; row++)
            most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_maskz_loadu_ps(lanes, rows + row * stride + c)));
        const __mmask16 some = _mm512_cmp_ps_mask(most, _mm512_set1_ps(LEAST), _CMP_GT_OQ);
        const __m512 factor = _mm512_maskz_div_ps(some, _mm512_set1_ps(LARGEST_VALUE), most);
        _mm512_storeu_ps(
            head->value_scales + first / PART * channels + c, _mm512_div_ps(most, _mm512_set1_ps(LARGEST_VALUE)));
        for (size_t row = 0; row < round_up(count, BLOCK); row += 2) {
            const size_t pair = (first + row) / BLOCK * (BLOCK / 2) + place[row % BLOCK / 2];
            __m512i both[2];
            for (size_t i = 0; i < 2; i++) {
                const __mmask16 there = row + i < count ? lanes : 0;
                const __m512 x = _mm512_maskz_loadu_ps(there, rows + (row + i) * stride + c);
                both[i] = _mm512_cvtps_epi32(_mm512_mul_ps(x, factor));
            }
            const __m512i joined = _mm512_mask_blend_epi16(0xaaaaaaaa, both[0], _mm512_slli_epi32(both[1], 16));
            _mm512_storeu_si512(head->values + pair * channels + c, joined);
        }
    }
}

VECTORS static int all_finite(const float *values, size_t count)
{
    __m512 sum = _mm512_setzero_ps();
    for (size_t i = 0; i < count; i += 16)
        sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(first_lanes(count - i), values + i), _mm512_setzero_ps(), sum);
    return _mm512_reduce_add_ps(sum) == 0.0f;
}

VECTORS int streamfeat_attention_pack(
    const float *qkv, char *memory, size_t first, size_t rows, size_t tokens, size_t heads, size_t width)
{
    const size_t stride = 3 * heads * width, fours = width / 4;
    if (!all_finite(qkv, rows * stride))
        return 0;
    for (size_t h = 0; h < heads; h++) {
        const Head head = head_at(memory, h, tokens, width);
        const float *queries = qkv + h * width, *keys = queries + heads * width, *values = keys + heads * width;
        if (first == 0)
            mean_row(keys, stride, rows, width, head.key_mean);
        for (size_t row = 0; row < rows; row++) {
            const size_t token = first + row;
            int32_t sum;
            head.query_scales[token] = pack_row(
                queries + row * stride, NULL, width, 0, head.queries + token / TILE * TILE * fours + token % TILE, TILE,
                &sum);
            head.query_offsets[token] = -128 * sum;
            head.key_scales[token] = pack_row(
                keys + row * stride, head.key_mean, width, 128,
                head.keys + token / BLOCK * BLOCK * fours + token % BLOCK, BLOCK, NULL);
        }
        pack_values(values, stride, rows, first, &head, width);
    }
    return 1;
}

/* Logits of a tile of queries, but for the queries' scale, as [block][query][key]; and the largest of each query. */
ALONE void logits(const Head *head, size_t first_query, size_t tokens, size_t width, float *found, __m512 *most)
{
    const int32_t *queries = head->queries + first_query * (width / 4);
    for (int q = 0; q < TILE; q++)
        most[q] = _mm512_set1_ps(-3e38f);
    for (size_t first = 0; first < tokens; first += BLOCK, found += TILE * BLOCK) {
        const int32_t *keys = head->keys + first * (width / 4);
        __m512i sums[TILE][2];
        UNROLL for (int q = 0; q < TILE; q++)
            sums[q][0] = sums[q][1] = _mm512_set1_epi32(head->query_offsets[first_query + q]);
        for (size_t four = 0; four < width / 4; four++) {
            const __m512i low = _mm512_loadu_si512(keys + four * BLOCK);
            const __m512i high = _mm512_loadu_si512(keys + four * BLOCK + 16);
            UNROLL for (int q = 0; q < TILE; q++) {
                const __m512i query = _mm512_set1_epi32(queries[four * TILE + q]);
                add_products(&sums[q][0], low, query);
                add_products(&sums[q][1], high, query);
            }
        }
        __m512 scales[2], none[2];
        for (int half = 0; half < 2; half++) {
            const size_t at = first + 16 * half;
            const __mmask16 there = tokens > at ? first_lanes(tokens - at) : 0;
            scales[half] = _mm512_maskz_loadu_ps(there, head->key_scales + at);
            none[half] = _mm512_mask_mov_ps(_mm512_set1_ps(-3e38f), there, _mm512_setzero_ps());
        }
        UNROLL for (int q = 0; q < TILE; q++) {
            const __m512 low = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[q][0]), scales[0], none[0]);
            const __m512 high = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[q][1]), scales[1], none[1]);
            most[q] = _mm512_max_ps(most[q], _mm512_max_ps(low, high));
            _mm512_storeu_ps(found + q * BLOCK, low);
            _mm512_storeu_ps(found + q * BLOCK + 16, high);
        }
    }
}

/* 2^x for x up to 0, times LARGEST_WEIGHT, rounded; 0 from -30 down. */
INLINE __m512i power(__m512 x)
{
    __m512i exponent;
    const __m512 f = split(_mm512_max_ps(x, _mm512_set1_ps(-30.0f)), &exponent);
    /* minimax over [-0.5, 0.5], relative error 7.5e-5: less than rounding takes */
    __m512 y = _mm512_set1_ps(0.05517166f * LARGEST_WEIGHT);
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.24261112f * LARGEST_WEIGHT));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.69326099f * LARGEST_WEIGHT));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.99992807f * LARGEST_WEIGHT));
    return _mm512_cvtps_epi32(times_power(y, exponent));
}

/* Logits of one query of a tile to its weights, [block][query][key in the order of packing]; returns their sum. */
INLINE float exponentials(const float *found, size_t tokens, float scale, __m512 most, int16_t *weights)
{
    const __m512 factor = _mm512_set1_ps(scale), shift = _mm512_set1_ps(-scale * _mm512_reduce_max_ps(most));
    __m512i sum = _mm512_setzero_si512();
    for (size_t first = 0; first < tokens; first += BLOCK, found += TILE * BLOCK, weights += TILE * BLOCK) {
        const __m512i low = power(_mm512_fmadd_ps(_mm512_loadu_ps(found), factor, shift));
        const __m512i high = power(_mm512_fmadd_ps(_mm512_loadu_ps(found + 16), factor, shift));
        sum = _mm512_add_epi32(sum, _mm512_add_epi32(low, high));
        _mm512_storeu_si512(weights, _mm512_packs_epi32(low, high));
    }
    return (float)_mm512_reduce_add_epi32(sum);
}

/* Weighted sums of the values for `count` queries of a tile, (count, padded width), before the division. */
INLINE void mix(
    const int16_t *weights, const Head *head, size_t tokens, float *mixed, const int count, const int vectors)
{
    const size_t channels = 16 * vectors;
    memset(mixed, 0, count * channels * sizeof(float));
    for (size_t part = 0; part * PART < tokens; part++) {
        const size_t begin = part * PART, end = begin + PART < tokens ? begin + PART : tokens;
        __m512i sums[6][6];
        UNROLL for (int q = 0; q < count; q++)
            UNROLL for (int v = 0; v < vectors; v++) sums[q][v] = _mm512_setzero_si512();
        for (size_t block = begin / BLOCK; block * BLOCK < end; block++) {
            const int16_t *rows = weights + block * TILE * BLOCK;
            const int32_t *values = head->values + block * (BLOCK / 2) * channels;
            for (int pair = 0; pair < BLOCK / 2; pair++, rows += 2, values += channels) {
                __m512i value[6];
                UNROLL for (int v = 0; v < vectors; v++) value[v] = _mm512_loadu_si512(values + 16 * v);
                UNROLL for (int q = 0; q < count; q++) {
                    int32_t both;
                    memcpy(&both, rows + q * BLOCK, 4);
                    const __m512i weight = _mm512_set1_epi32(both);
                    UNROLL for (int v = 0; v < vectors; v++) add_products_16(&sums[q][v], value[v], weight);
                }
            }
        }
        UNROLL for (int v = 0; v < vectors; v++) {
            const __m512 scales = _mm512_loadu_ps(head->value_scales + part * channels + 16 * v);
            UNROLL for (int q = 0; q < count; q++) {
                float *sum = mixed + q * channels + 16 * v;
                _mm512_storeu_ps(sum, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[q][v]), scales, _mm512_loadu_ps(sum)));
            }
        }
    }
}

#define MIX(count, vectors) \
    ALONE void mix_##vectors(const int16_t *weights, const Head *head, size_t tokens, float *mixed) \
    { \
        mix(weights, head, tokens, mixed, count, vectors); \
    }
MIX(6, 4)
MIX(4, 5)
MIX(4, 6)

VECTORS static void attend(
    const Head *head, float *mixed, size_t stride, size_t tokens, size_t width, char *scratch)
{
    const float scale = 1.44269504f / __builtin_sqrtf((float)width); /* log2(e), since powers are of two */
    const size_t channels = padded(width), part = channels == 64 ? 6 : 4;
    float *found = (float *)scratch, sums[TILE], rows[6 * MOST_WIDTH];
    int16_t *weights = (int16_t *)(found + TILE * round_up(tokens, BLOCK));
    for (size_t first = 0; first < tokens; first += TILE) {
        __m512 most[TILE];
        logits(head, first, tokens, width, found, most);
        for (size_t q = 0; q < TILE; q++)
            sums[q] = exponentials(
                found + q * BLOCK, tokens, scale * head->query_scales[first + q], most[q], weights + q * BLOCK);
        for (size_t begin = 0; begin < TILE; begin += part) {
            switch (channels) {
            case 64: mix_4(weights + begin * BLOCK, head, tokens, rows); break;
            case 80: mix_5(weights + begin * BLOCK, head, tokens, rows); break;
            default: mix_6(weights + begin * BLOCK, head, tokens, rows);
            }
            for (size_t q = 0; q < part && first + begin + q < tokens; q++) {
                const __m512 factor = _mm512_set1_ps(1.0f / sums[begin + q]);
                for (size_t c = 0; c < width; c += 16)
                    _mm512_mask_storeu_ps(
                        mixed + (first + begin + q) * stride + c, first_lanes(width - c),
                        _mm512_mul_ps(_mm512_loadu_ps(rows + q * channels + c), factor));
            }
        }
    }
}

void streamfeat_attention_attend(char *memory, float *mixed, char *scratch, size_t tokens, size_t heads, size_t width)
{
    for (size_t h = 0; h < heads; h++) {
        const Head head = head_at(memory, h, tokens, width);
        attend(&head, mixed + h * width, heads * width, tokens, width, scratch);
    }
}
