/* A weight with unstructured zeros as one bit a weight and its packed non-zeros.

   Rows stand one after the other. A row's mask is padded with zeros to whole words of 64 columns; bit i of a word is set
   where column 64 * word + i is kept. The values of all rows are packed in the same order, without padding:

       weight   0 a 0 0 b ...     mask   0 1 0 0 1 ...     value   a b c d ...
                c 0 0 d 0 ...            1 0 0 1 0 ...

   So `value` is, and with a multiple of 64 columns `mask` is too, what the packed checkpoint format stores. Kernels
   expand a part of a row into registers, or into the L1 cache where many tokens share it. Expanded rows are also what
   the first operand of AMX's tile products takes: kernels for it can be added without another form. */

#ifndef AUTOSPARSE_BITMASK_MATRIX_H
#define AUTOSPARSE_BITMASK_MATRIX_H

#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "masks are read in pieces of 8 to 64 bits, lowest byte first"
#endif

enum { WORD = 64 };            /* columns of a mask word */
enum { VALUE_PADDING = 64 };   /* bytes that can be read behind the last value */

/* How values, activations and results are stored. */
enum { FLOAT32, BFLOAT16, FLOAT16, INT8 };
static const int TYPE_BYTES[] = {4, 2, 2, 1};

typedef struct {
    int64_t rows, cols;      /* of the dense weight: outputs, inputs */
    int64_t type;            /* of the values */
    const uint64_t *mask;    /* [rows][words] */
    const int64_t *first;    /* [rows + 1]: values before each row */
    const void *value;       /* [first[rows]] and the padding */
    const float *scale;      /* INT8: [rows]; a weight is its value times this */
    const int32_t *sum;      /* INT8: [rows]; the sum of a row's values */
} BitmaskMatrix;

static inline int64_t words_of(int64_t cols) { return (cols + WORD - 1) / WORD; }

#endif
