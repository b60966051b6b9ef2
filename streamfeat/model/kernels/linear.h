/* Linear layers in 8-bit integers. */

#ifndef STREAMFEAT_LINEAR_H
#define STREAMFEAT_LINEAR_H

#include "vectors.h"

typedef struct {
    const int8_t *weight; /* [block of outputs][four inputs][output][input] */
    const float *scales; /* [output] */
    const int32_t *offsets; /* [output]: what activations, of which each is 128 too large, add too much */
    const float *bias; /* [output] */
    size_t inputs, outputs;
} Linear;

typedef struct {
    const float *weight, *bias; /* [channel] */
    float epsilon;
} Norm;

/* Activations of up to PART rows as bytes. */
typedef struct {
    uint8_t *bytes; /* [tile of rows][four inputs][row][input], 128 more than what they stand for */
    float *scales; /* [row]; NaN for a row with anything that is not finite */
} Activations;

enum then { STORE, GELU, ADD };

/* Whether a layer of this shape can be run. */
int streamfeat_linear_fits(size_t inputs, size_t outputs);

/* `x` (rows, count) to activations, a scale for each row. */
void streamfeat_quantise(const float *x, size_t rows, size_t count, Activations *found);

/* The same for a layer norm of `x`. */
void streamfeat_norm_quantise(const float *x, size_t rows, size_t count, const Norm *norm, Activations *found);

/* The layer of (rows, inputs): stored in `out` (rows, outputs), stored after GELU, or added to what is there. */
void streamfeat_linear(const Linear *layer, const Activations *x, size_t rows, float *out, enum then then);

#endif
