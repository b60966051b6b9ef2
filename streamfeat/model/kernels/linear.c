#include "linear.h"

/* Sums of so many products fit 32 bits. */
#define MOST_INPUTS 8192

int streamfeat_linear_fits(size_t inputs, size_t outputs)
{
    return inputs % 4 == 0 && inputs <= MOST_INPUTS && outputs % BLOCK == 0;
}

/* One row of `count` floats into place `at` of the tiles. `check` is 0 for finite rows and NaN for others. */
INLINE void quantise_row(const float *row, size_t count, float largest, float check, size_t at, Activations *found)
{
    uint8_t bytes[MOST_INPUTS];
    const __m512 factor = _mm512_set1_ps(factor_for(largest, 127.0f));
    for (size_t c = 0; c < count; c += 16) {
        const __m512 x = _mm512_mul_ps(_mm512_maskz_loadu_ps(first_lanes(count - c), row + c), factor);
        const __m512i integers = _mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(128));
        _mm_storeu_si128((__m128i *)(bytes + c), _mm512_cvtepi32_epi8(integers));
    }
    uint8_t *place = found->bytes + at / TILE * TILE * count + at % TILE * 4;
    for (size_t c = 0; c < count; c += 4)
        memcpy(place + c * TILE, bytes + c, 4);
    found->scales[at] = scale_for(largest, 127.0f) + check;
}

VECTORS void streamfeat_quantise(const float *x, size_t rows, size_t count, Activations *found)
{
    for (size_t row = 0; row < rows; row++, x += count) {
        __m512 most = _mm512_setzero_ps(), check = _mm512_setzero_ps();
        for (size_t c = 0; c < count; c += 16) {
            const __m512 value = _mm512_maskz_loadu_ps(first_lanes(count - c), x + c);
            most = _mm512_max_ps(most, _mm512_abs_ps(value));
            check = _mm512_fmadd_ps(value, _mm512_setzero_ps(), check);
        }
        quantise_row(x, count, _mm512_reduce_max_ps(most), _mm512_reduce_add_ps(check), row, found);
    }
}

VECTORS void streamfeat_norm_quantise(
    const float *x, size_t rows, size_t count, const Norm *norm, Activations *found)
{
    float normed[MOST_INPUTS];
    for (size_t row = 0; row < rows; row++, x += count) {
        __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps(), most = _mm512_setzero_ps();
        for (size_t c = 0; c < count; c += 16)
            sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(first_lanes(count - c), x + c));
        const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / (float)count);
        for (size_t c = 0; c < count; c += 16) {
            const __mmask16 lanes = first_lanes(count - c);
            const __m512 off = _mm512_maskz_sub_ps(lanes, _mm512_maskz_loadu_ps(lanes, x + c), mean);
            squares = _mm512_fmadd_ps(off, off, squares);
        }
        const float variance = _mm512_reduce_add_ps(squares) / (float)count;
        const float inverse = 1.0f / __builtin_sqrtf(variance + norm->epsilon);
        for (size_t c = 0; c < count; c += 16) {
            const __mmask16 lanes = first_lanes(count - c);
            const __m512 off = _mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, x + c), mean);
            const __m512 weight = _mm512_maskz_loadu_ps(lanes, norm->weight + c);
            const __m512 y = _mm512_fmadd_ps(
                _mm512_mul_ps(off, _mm512_set1_ps(inverse)), weight, _mm512_maskz_loadu_ps(lanes, norm->bias + c));
            most = _mm512_max_ps(most, _mm512_abs_ps(y));
            _mm512_mask_storeu_ps(normed + c, lanes, y);
        }
        quantise_row(normed, count, _mm512_reduce_max_ps(most), variance * 0.0f, row, found);
    }
}

/* x times the normal distribution at x, whose error function is Abramowitz and Stegun's 7.1.26: absolute error of
 * 1.5e-7. */
INLINE __m512 gelu(__m512 x)
{
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512i exponent;
    const __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.707106781f));
    /* a division, in a third of its time: an approximation of 14 bits, and a step of Newton's */
    const __m512 below = _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one);
    __m512 t = _mm512_rcp14_ps(below);
    t = _mm512_mul_ps(t, _mm512_fnmadd_ps(below, t, _mm512_set1_ps(2.0f)));
    __m512 y = _mm512_set1_ps(1.061405429f);
    y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(-1.453152027f));
    y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(1.421413741f));
    y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(-0.284496736f));
    y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(0.254829592f));
    /* e^(-z^2), as a power of two: minimax over [-0.5, 0.5], relative error 9.1e-08 */
    __m512 power = _mm512_mul_ps(_mm512_mul_ps(z, z), _mm512_set1_ps(-1.44269504f));
    const __m512 f = split(_mm512_max_ps(power, _mm512_set1_ps(-100.0f)), &exponent);
    power = _mm512_set1_ps(0.00132647269f);
    power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(0.00967151266f));
    power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(0.0555073374f));
    power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(0.240222421f));
    power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(0.693146978f));
    power = _mm512_fmadd_ps(power, f, one);
    /* half of what is beyond |x|, which is what the distribution lacks on the one side and is on the other */
    y = _mm512_mul_ps(_mm512_mul_ps(y, t), _mm512_set1_ps(0.5f));
    const __m512 tail = _mm512_mul_ps(y, times_power(power, exponent));
    const __mmask16 positive = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
    return _mm512_mul_ps(x, _mm512_mask_sub_ps(tail, positive, one, tail));
}

/* A tile of rows by a block of outputs; `there` rows of it are written. */
INLINE void multiply(
    const Linear *layer, const uint8_t *bytes, const float *row_scales, size_t there, size_t output, float *out,
    const enum then then)
{
    const int8_t *weight = layer->weight + output * layer->inputs;
    const __m512i low_offset = _mm512_loadu_si512(layer->offsets + output);
    const __m512i high_offset = _mm512_loadu_si512(layer->offsets + output + 16);
    __m512i sums[TILE][2];
    UNROLL for (int row = 0; row < TILE; row++) {
        sums[row][0] = low_offset;
        sums[row][1] = high_offset;
    }
    for (size_t input = 0; input < layer->inputs; input += 4, weight += 4 * BLOCK, bytes += 4 * TILE) {
        const __m512i low = _mm512_loadu_si512(weight), high = _mm512_loadu_si512(weight + 64);
        /* of long rows the block does not stay in the L1 cache */
        _mm_prefetch((const char *)weight + 4096, _MM_HINT_T0);
        _mm_prefetch((const char *)weight + 4096 + 64, _MM_HINT_T0);
        UNROLL for (int row = 0; row < TILE; row++) {
            int32_t four;
            memcpy(&four, bytes + 4 * row, 4);
            const __m512i activations = _mm512_set1_epi32(four);
            add_products(&sums[row][0], activations, low);
            add_products(&sums[row][1], activations, high);
        }
    }
    UNROLL for (int half = 0; half < 2; half++) {
        const __m512 scales = _mm512_loadu_ps(layer->scales + output + 16 * half);
        const __m512 bias = _mm512_loadu_ps(layer->bias + output + 16 * half);
        UNROLL for (int row = 0; row < TILE; row++) {
            if ((size_t)row >= there)
                break;
            float *place = out + row * layer->outputs + output + 16 * half;
            const __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(row_scales[row]));
            __m512 y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[row][half]), scale, bias);
            if (then == GELU)
                y = gelu(y);
            if (then == ADD)
                y = _mm512_add_ps(y, _mm512_loadu_ps(place));
            _mm512_storeu_ps(place, y);
        }
    }
}

#define MULTIPLY(name, then) \
    ALONE void name( \
        const Linear *layer, const uint8_t *bytes, const float *row_scales, size_t there, size_t output, float *out) \
    { \
        multiply(layer, bytes, row_scales, there, output, out, then); \
    }
MULTIPLY(multiply_store, STORE)
MULTIPLY(multiply_gelu, GELU)
MULTIPLY(multiply_add, ADD)

void streamfeat_linear(const Linear *layer, const Activations *x, size_t rows, float *out, enum then then)
{
    void (*const multiply_tile)(const Linear *, const uint8_t *, const float *, size_t, size_t, float *) =
        then == GELU ? multiply_gelu : then == ADD ? multiply_add : multiply_store;
    /* the weights of a block stay in the cache while all rows pass */
    for (size_t output = 0; output < layer->outputs; output += BLOCK)
        for (size_t row = 0; row < rows; row += TILE)
            multiply_tile(
                layer, x->bytes + row * layer->inputs, x->scales + row, rows - row < TILE ? rows - row : TILE, output,
                out + row * layer->outputs);
}
