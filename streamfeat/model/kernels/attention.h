/* Softmax attention of one clip in integers. */

#ifndef STREAMFEAT_ATTENTION_H
#define STREAMFEAT_ATTENTION_H

#include "vectors.h"

#define MOST_WIDTH 96

/* Whether heads of this width are provided for: the 64, 80 and 88 channels of the published models are. */
int streamfeat_attention_fits(size_t width);

/* Bytes in which pack() leaves what attend() reads; they begin at zero. And bytes that attend() needs for a while. */
size_t streamfeat_attention_memory(size_t tokens, size_t heads, size_t width);
size_t streamfeat_attention_scratch(size_t tokens);

/* Queries, keys and values of `rows` tokens from `first` on, (rows, 3, heads, width). Parts come in their order, and all
 * but the last have PART rows. Returns 0, with nothing packed, if one of the numbers is not finite. */
int streamfeat_attention_pack(
    const float *qkv, char *memory, size_t first, size_t rows, size_t tokens, size_t heads, size_t width);

/* Values mixed for each token, (tokens, heads, width). */
void streamfeat_attention_attend(
    char *memory, float *mixed, char *scratch, size_t tokens, size_t heads, size_t width);

#endif
