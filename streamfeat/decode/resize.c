/* Resizing and normalising one frame, as preprocess.py defines it, to the last bit: so every operation is rounded, and
 * the compiler must not fuse them (-ffp-contract=off).
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(_WIN32)
#define PUBLIC __declspec(dllexport)
#else
#define PUBLIC __attribute__((visibility("default")))
#endif

typedef struct {
    int32_t height, width; /* of the result */
    const int32_t *upper, *lower; /* [row]: rows of the frame */
    const float *row_weights; /* [row]: of the lower one */
    const int32_t *left, *right; /* [column]: first bytes of pixels in a row of the frame */
    const float *column_weights; /* [column]: of the right one */
    int32_t channels[3]; /* of the result: which byte of a pixel it is */
    float scale[3], shift[3]; /* of the result's channels */
} Plan;

typedef void Across(const Plan *plan, const uint8_t *row, int32_t bytes, float *found);

static float lerp(float first, float second, float weight) { return first + weight * (second - first); }

/* A row of the frame, `bytes` long, at the columns of the result: [channel][column]. */
static void across_from(const Plan *plan, const uint8_t *row, float *found, int32_t column)
{
    for (; column < plan->width; column++)
        for (int channel = 0; channel < 3; channel++) {
            const int32_t byte = plan->channels[channel];
            found[channel * plan->width + column] =
                lerp(row[plan->left[column] + byte], row[plan->right[column] + byte], plan->column_weights[column]);
        }
}

static void across_plain(const Plan *plan, const uint8_t *row, int32_t bytes, float *found)
{
    (void)bytes;
    across_from(plan, row, found, 0);
}

/* A row of the result out of two of the frame. */
static inline void down(const Plan *plan, const float *upper, const float *lower, int32_t y, float *out)
{
    const float weight = plan->row_weights[y];
    for (int channel = 0; channel < 3; channel++) {
        const float *above = upper + channel * plan->width, *below = lower + channel * plan->width;
        const float scale = plan->scale[channel], shift = plan->shift[channel];
        float *place = out + ((ptrdiff_t)channel * plan->height + y) * plan->width;
        for (int32_t x = 0; x < plan->width; x++)
            place[x] = lerp(above[x], below[x], weight) * scale + shift;
    }
}

static inline void resize(
    const Plan *plan, const uint8_t *frame, ptrdiff_t stride, int32_t bytes, float *scratch, float *out, Across *across)
{
    float *upper = scratch, *lower = scratch + 3 * plan->width;
    int32_t upper_row = -1, lower_row = -1;
    for (int32_t y = 0; y < plan->height; y++) {
        if (plan->upper[y] == lower_row) { /* the last row's lower one */
            float *const other = upper;
            upper = lower, lower = other;
            lower_row = upper_row, upper_row = plan->upper[y];
        }
        if (plan->upper[y] != upper_row)
            across(plan, frame + (upper_row = plan->upper[y]) * stride, bytes, upper);
        if (plan->lower[y] == upper_row) {
            down(plan, upper, upper, y, out);
            continue;
        }
        if (plan->lower[y] != lower_row)
            across(plan, frame + (lower_row = plan->lower[y]) * stride, bytes, lower);
        down(plan, upper, lower, y, out);
    }
}

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))

/* The pixels whose first bytes are at `offsets`. Four bytes are read: of the last pixel those from one before it on. */
static inline __attribute__((always_inline)) AVX2 __m256i pixels(const uint8_t *row, const int32_t *offsets, __m256i last)
{
    const __m256i wanted = _mm256_loadu_si256((const __m256i *)offsets), read = _mm256_min_epi32(wanted, last);
    const __m256i four = _mm256_i32gather_epi32((const int *)row, read, 1);
    return _mm256_srlv_epi32(four, _mm256_slli_epi32(_mm256_sub_epi32(wanted, read), 3));
}

AVX2 static void across_avx2(const Plan *plan, const uint8_t *row, int32_t bytes, float *found)
{
    const __m256i last = _mm256_set1_epi32(bytes - 4), byte = _mm256_set1_epi32(255);
    int32_t column = 0;
    for (; column + 8 <= plan->width; column += 8) {
        const __m256i left = pixels(row, plan->left + column, last), right = pixels(row, plan->right + column, last);
        const __m256 weight = _mm256_loadu_ps(plan->column_weights + column);
        for (int channel = 0; channel < 3; channel++) {
            const __m128i bits = _mm_cvtsi32_si128(8 * plan->channels[channel]);
            const __m256 first = _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srl_epi32(left, bits), byte));
            const __m256 second = _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srl_epi32(right, bits), byte));
            const __m256 between = _mm256_mul_ps(weight, _mm256_sub_ps(second, first));
            _mm256_storeu_ps(found + channel * plan->width + column, _mm256_add_ps(first, between));
        }
    }
    across_from(plan, row, found, column);
}

AVX2 static void resize_avx2(
    const Plan *plan, const uint8_t *frame, ptrdiff_t stride, int32_t bytes, float *scratch, float *out)
{
    resize(plan, frame, stride, bytes, scratch, out, across_avx2);
}

#endif

/* `frame`, whose rows have `bytes` bytes and lie `stride` bytes apart, into `out`: [channel][row][column].
 * `scratch` has room for 6 rows of the result's width. */
PUBLIC void streamfeat_resize(
    const Plan *plan, const uint8_t *frame, ptrdiff_t stride, int32_t bytes, float *scratch, float *out)
{
#if defined(__x86_64__) && defined(__GNUC__)
    if (bytes >= 4 && __builtin_cpu_supports("avx2")) {
        resize_avx2(plan, frame, stride, bytes, scratch, out);
        return;
    }
#endif
    resize(plan, frame, stride, bytes, scratch, out, across_plain);
}
