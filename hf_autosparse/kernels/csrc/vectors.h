/* Vectors of 4, 8 and 16 floats, as far as the instruction set that this file is compiled for has them.

   Plain arithmetic on them is the compiler's (GCC and Clang vector extensions; `a += b * c` becomes one fused
   multiply-add where there is one). Only the broadcast of one of four neighbouring values needs intrinsics: a shuffle
   in a register instead of a load, because loads are what the sparse product runs out of. */

#ifndef AUTOSPARSE_VECTORS_H
#define AUTOSPARSE_VECTORS_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float v4 __attribute__((vector_size(16)));

INLINE v4 load4(const float *p) { v4 v; memcpy(&v, p, sizeof v); return v; }
INLINE void store4(float *p, v4 v) { memcpy(p, &v, sizeof v); }
INLINE v4 splat4(float x) { return (v4){x, x, x, x}; }

/* Four bfloat16: the upper halves of floats. */
typedef uint16_t h4 __attribute__((vector_size(8)));
typedef uint32_t u4 __attribute__((vector_size(16)));
INLINE v4 load_half4(const uint16_t *p)
{
    h4 h;
    memcpy(&h, p, sizeof h);
    return (v4)(__builtin_convertvector(h, u4) << 16);
}

/* load_quad, repeat: four values, over and over; lane(q, i): the i-th of them in every lane. */
INLINE v4 load_quad4(const float *p) { return load4(p); }
INLINE v4 repeat4(v4 q) { return q; }
#if defined(__AVX2__)
#define lane4(q, i) ((v4)_mm_permute_ps((__m128)(q), (i) * 0x55))
#elif defined(__aarch64__)
#define lane4(q, i) ((v4)vdupq_laneq_f32((float32x4_t)(q), i))
#else
#define lane4(q, i) splat4((q)[i])
#endif

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef int32_t i4 __attribute__((vector_size(16)));
#define SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, (i4){i, j, k, l})
#endif

/* sums: the sum over the lanes of each of four vectors. */
INLINE v4 sums4(v4 a, v4 b, v4 c, v4 d)
{
    const v4 ab = SHUFFLE(a, b, 0, 4, 1, 5) + SHUFFLE(a, b, 2, 6, 3, 7);
    const v4 cd = SHUFFLE(c, d, 0, 4, 1, 5) + SHUFFLE(c, d, 2, 6, 3, 7);
    return SHUFFLE(ab, cd, 0, 1, 4, 5) + SHUFFLE(ab, cd, 2, 3, 6, 7);
}

#if defined(__AVX2__)
typedef float v8 __attribute__((vector_size(32)));
INLINE v8 load8(const float *p) { v8 v; memcpy(&v, p, sizeof v); return v; }
INLINE void store8(float *p, v8 v) { memcpy(p, &v, sizeof v); }
INLINE v8 splat8(float x) { return (v8)_mm256_set1_ps(x); }
INLINE v8 load_quad8(const float *p) { return (v8)_mm256_broadcast_ps((const __m128 *)p); }
INLINE v8 repeat8(v4 q) { return (v8)_mm256_set_m128((__m128)q, (__m128)q); }
#define lane8(q, i) ((v8)_mm256_permute_ps((__m256)(q), (i) * 0x55))
INLINE v4 sums8(v8 a, v8 b, v8 c, v8 d)
{
    const __m256 ab = _mm256_hadd_ps((__m256)a, (__m256)b), cd = _mm256_hadd_ps((__m256)c, (__m256)d);
    const __m256 both = _mm256_hadd_ps(ab, cd);
    return (v4)_mm256_castps256_ps128(both) + (v4)_mm256_extractf128_ps(both, 1);
}
#endif

#if defined(__AVX512F__)
typedef float v16 __attribute__((vector_size(64)));
INLINE v16 load16(const float *p) { v16 v; memcpy(&v, p, sizeof v); return v; }
INLINE void store16(float *p, v16 v) { memcpy(p, &v, sizeof v); }
INLINE v16 splat16(float x) { return (v16)_mm512_set1_ps(x); }
INLINE v16 load_quad16(const float *p) { return (v16)_mm512_broadcast_f32x4((__m128)load4(p)); }
INLINE v16 repeat16(v4 q) { return (v16)_mm512_broadcast_f32x4((__m128)q); }
#define lane16(q, i) ((v16)_mm512_permute_ps((__m512)(q), (i) * 0x55))
INLINE v8 halves16(v16 a) { return (v8)_mm512_castps512_ps256((__m512)a) + (v8)_mm512_extractf32x8_ps((__m512)a, 1); }
INLINE v4 sums16(v16 a, v16 b, v16 c, v16 d) { return sums8(halves16(a), halves16(b), halves16(c), halves16(d)); }
#endif

#if defined(__AVX512F__)
#define WIDEST 16
#elif defined(__AVX2__)
#define WIDEST 8
#else
#define WIDEST 4
#endif

#endif
