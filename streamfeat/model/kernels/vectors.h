/* What all kernels share: vectors of AVX-512 and products of 8-bit integers by its VNNI instructions. */

#ifndef STREAMFEAT_VECTORS_H
#define STREAMFEAT_VECTORS_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define VECTORS __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#define INLINE static inline __attribute__((always_inline)) VECTORS
/* For loops whose sums must stay in registers: inlined, they would share them with their surroundings. */
#define ALONE static __attribute__((noinline)) VECTORS
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

/* Rows of the left matrix of a product that are computed together, with BLOCK columns of the right one: their sums are
 * TILE times two vectors, which leaves eight registers for all else. */
#define TILE 12
#define BLOCK 32
/* Tokens that go through a layer together: a multiple of both, and few, so that caches keep what is between layers. */
#define PART 192

/* What counts as nothing. A scale is not less either, so that what it is multiplied with is not lost. */
#define LEAST 1e-30f

static inline size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }

INLINE __mmask16 first_lanes(size_t count) { return count >= 16 ? 0xffff : (__mmask16)((1u << count) - 1); }

/* Adds to each sum the products of four unsigned with four signed bytes. In assembly, since compilers copy the sums of
 * the intrinsic to and fro. */
INLINE void add_products(__m512i *sums, __m512i unsigned_bytes, __m512i signed_bytes)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sums) : "v"(unsigned_bytes), "v"(signed_bytes));
}

/* The same for two 16-bit integers. */
INLINE void add_products_16(__m512i *sums, __m512i a, __m512i b)
{
    __asm__("vpdpwssd %2, %1, %0" : "+v"(*sums) : "v"(a), "v"(b));
}

/* `f` out of [-0.5, 0.5] and `exponent`, as the low bits of a float, so that x is their sum. */
INLINE __m512 split(__m512 x, __m512i *exponent)
{
    const __m512 magic = _mm512_set1_ps(12582912.0f); /* 1.5 * 2^23: what is added to it is rounded to an integer */
    const __m512 rounded = _mm512_add_ps(x, magic);
    *exponent = _mm512_slli_epi32(_mm512_castps_si512(rounded), 23);
    return _mm512_sub_ps(x, _mm512_sub_ps(rounded, magic));
}

INLINE __m512 times_power(__m512 x, __m512i exponent)
{
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), exponent));
}

/* Factor that makes numbers up to `largest` integers up to `integer`. */
static inline float factor_for(float largest, float integer) { return largest > LEAST ? integer / largest : 0.0f; }

/* And what one of these integers is worth. */
static inline float scale_for(float largest, float integer) { return largest > LEAST ? largest / integer : LEAST; }

#endif
