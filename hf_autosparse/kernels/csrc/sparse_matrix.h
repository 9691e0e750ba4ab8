/* A weight with unstructured zeros, stored for `Y = X W^T`.

   The columns are cut into blocks of 256, so that a column's number inside its block fits in a byte and the activations
   of one block stay in the L1 cache. The rows are cut into chunks of at most 256 with about equally many non-zeros: the
   unit of work of a thread. The cuts depend on the weight alone, so results don't depend on the number of threads.

   Inside one chunk and block, rows are sorted by their number of non-zeros and taken four at a time: a slice (sliced
   ELLPACK, Kreutzer et al. 2014). The four rows are interleaved, entry by entry, and padded with zeros to the longest:

       value   r0[0] r1[0] r2[0] r3[0]   r0[1] r1[1] r2[1] r3[1]   ...

   One column of that picture is a step. Sorting keeps the padding to a few per cent and makes the lengths of
   consecutive slices alike, so that the processor predicts where the loop over the steps ends. */

#ifndef AUTOSPARSE_SPARSE_MATRIX_H
#define AUTOSPARSE_SPARSE_MATRIX_H

#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "four columns are read by one load, lowest byte first"
#endif

enum { BLOCK = 256, CHUNK = 256, SLICE = 4 };

typedef struct {
    int64_t rows, cols;         /* of the dense weight: outputs, inputs */
    int64_t chunks;
    const int64_t *first_row;   /* [chunks + 1]; multiples of 4 but for the last */
    const int64_t *first_step;  /* [chunks + 1] */
    const uint16_t *length;     /* steps of each slice: [first_row / 4 * blocks + block * slices of the chunk + slice] */
    const uint8_t *order;       /* its four rows, counted from the chunk's first one: [4 x as many] */
    const float *value;         /* [4 * steps], or NULL: */
    const uint16_t *half;       /* the same in bfloat16, the upper half of a float, or NULL */
    const uint8_t *column;      /* [4 * steps] counted from the block's first one */
} SparseMatrix;

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

#endif
