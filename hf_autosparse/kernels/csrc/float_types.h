/* bfloat16 and float16 <-> float, one number at a time, rounded to the nearest, ties to even. */

#ifndef AUTOSPARSE_FLOAT_TYPES_H
#define AUTOSPARSE_FLOAT_TYPES_H

#include <stdint.h>
#include <string.h>

static inline uint32_t bits_of(float x) { uint32_t b; memcpy(&b, &x, sizeof b); return b; }
static inline float of_bits(uint32_t b) { float x; memcpy(&x, &b, sizeof x); return x; }

static inline float from_bfloat16(uint16_t h) { return of_bits((uint32_t)h << 16); }
static inline uint16_t to_bfloat16(float x)
{
    const uint32_t b = bits_of(x);
    if ((b & 0x7fffffff) > 0x7f800000) return (uint16_t)(b >> 16 | 0x40);   /* NaN stays NaN */
    return (uint16_t)((b + 0x7fff + (b >> 16 & 1)) >> 16);
}

static inline float from_float16(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
    if (rest < 0x400) return of_bits(sign | bits_of((float)rest * 0x1p-24f));   /* subnormal */
    return of_bits(sign | ((rest << 13) + (rest < 0x7c00 ? 112u << 23 : 224u << 23)));   /* the latter: infinity, NaN */
}
static inline uint16_t to_float16(float x)
{
    const uint32_t b = bits_of(x), size = b & 0x7fffffff, sign = b >> 16 & 0x8000;
    if (size > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (size >> 13 & 0x3ff));
    if (size >= 0x477ff000) return (uint16_t)(sign | 0x7c00);   /* rounds to infinity */
    if (size < 0x38800000)                                      /* subnormal: the sum's last place is 2^-24 */
        return (uint16_t)(sign | (bits_of(of_bits(size) + 0.5f) - 0x3f000000));
    return (uint16_t)(sign | ((size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13));
}

#endif
