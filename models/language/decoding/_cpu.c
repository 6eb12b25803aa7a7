/* The work of a decoding step on a CPU with AVX-512: products with packed weights, and attention over the arena.
 *
 * models/language/decoding/linear.py packs the weights, models/language/decoding/cpu.py calls what is here. A weight is cut into tiles of 16 rows and
 * blocks of 32 columns. A block of a tile lies together in memory:
 *
 *   four bits    256 bytes of codes, 16 scales, 16 minimums (half precision): weight = scale * code + minimum.
 *                Byte 64 j + 4 r + i holds, of row r, column 8 j + i in its lower half and 8 j + 4 + i in its upper.
 *   eight bits   512 bytes of signed codes, 16 scales: weight = scale * code. Byte 32 p + 2 r + i: row r, column 2 p + i.
 *
 * So one row has one lane of a register from the first column to the last, and nothing has to be added across lanes. Of
 * the input, each block of 32 is rounded to integers of sixteen bits with a scale of its own. (Of eight, as is usual, they
 * are twice as fast with many tokens and not with one; but then every fiftieth likeliest token of a model of 135M is
 * another one.) Against four bits they are two numbers of eight each, 256 * upper + lower, which one product takes after the
 * other: a block is 32 bytes of upper ones, then 32 of lower.
 *
 * A block's sum is an exact integer; blocks are added up in float, from first to last. In attention each head of each
 * token goes through the keys that it sees alone, from first to last. So a token's result depends neither on the other
 * tokens of a step nor on the number of threads: what is verified is what plain decoding would have computed, bit by bit.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ROWS 16
#define BLOCK 32
#define GROUP 8 /* the most tokens that share one reading of a tile */
#define FOUR_BYTES 320
#define EIGHT_BYTES 544
#define WITH(features) __attribute__((target(features)))
#define WITH_INLINE(features) static inline __attribute__((always_inline, target(features)))
#define AVX512 "avx512f,avx512bw,avx512vl,avx512dq,fma,f16c"
#define VNNI AVX512 ",avx512vnni"

/* The input of a product, rounded: codes of (tokens, inner), then for each block its scale and the sum of its values. */
typedef struct {
    const int16_t *codes;
    const float *scales;
    const float *sums;
    size_t inner;
    int add; /* to what is there already */
} Input;

/* Takes the tile that begins at `weights` times `count` tokens from `token` on; `columns` of its rows exist. */
typedef void Tile(const uint8_t *weights, const Input *input, size_t token, int count, float *out, size_t outer, int columns);

/* What is rounded to `LIMIT` and less can be parted: (LIMIT + 128) / 256 is still a number of eight bits. */
#define LIMIT (127 * 256)

WITH_INLINE(AVX512) void store_parted(__m512i whole, int8_t *at)
{
    const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), 8);
    _mm_storeu_si128((__m128i *)at, _mm512_cvtepi32_epi8(upper));
    _mm_storeu_si128((__m128i *)(at + BLOCK), _mm512_cvtepi32_epi8(_mm512_sub_epi32(whole, _mm512_slli_epi32(upper, 8))));
}

WITH(AVX512) static void round_row(const float *x, size_t inner, int parted, int16_t *codes, float *scales, float *sums)
{
    for (size_t block = 0; block < inner / BLOCK; block++, x += BLOCK, codes += BLOCK) {
        __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
        float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
        float scale = most / LIMIT, inverse = most > 0 ? LIMIT / most : 0;
        __m512i p = _mm512_cvtps_epi32(_mm512_mul_ps(a, _mm512_set1_ps(inverse)));
        __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(b, _mm512_set1_ps(inverse)));
        if (parted) {
            store_parted(p, (int8_t *)codes);
            store_parted(q, (int8_t *)codes + 16);
        } else {
            _mm256_storeu_si256((__m256i *)codes, _mm512_cvtsepi32_epi16(p));
            _mm256_storeu_si256((__m256i *)(codes + 16), _mm512_cvtsepi32_epi16(q));
        }
        scales[block] = scale;
        sums[block] = scale * (float)_mm512_reduce_add_epi32(_mm512_add_epi32(p, q));
    }
}

WITH_INLINE(AVX512) __m512 exponential(__m512 x)
{
    /* 2^n * e^r with |r| <= ln 2 / 2, and e^r by its series: within two units of the last place. */
    x = _mm512_max_ps(_mm512_min_ps(x, _mm512_set1_ps(88.0f)), _mm512_set1_ps(-87.0f));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 sum = _mm512_set1_ps(1.0f / 720);
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1.0f / 120));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1.0f / 24));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1.0f / 6));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(0.5f));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1.0f));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(sum, n);
}

/* The row over its root mean square, times `scale`. */
WITH(AVX512) static void norm_row(const float *x, size_t size, const float *scale, float eps, float *out)
{
    __m512 squares = _mm512_setzero_ps();
    for (size_t i = 0; i < size; i += 16)
        squares = _mm512_fmadd_ps(_mm512_loadu_ps(x + i), _mm512_loadu_ps(x + i), squares);
    const __m512 by = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)size + eps));
    for (size_t i = 0; i < size; i += 16)
        _mm512_storeu_ps(out + i, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + i), by), _mm512_loadu_ps(scale + i)));
}

/* The first half, through SiLU, times the second. */
WITH(AVX512) static void gate_row(const float *x, size_t size, float *out)
{
    for (size_t i = 0; i < size; i += 16) {
        const __m512 gate = _mm512_loadu_ps(x + i), one = _mm512_set1_ps(1.0f);
        const __m512 below = _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), gate)));
        _mm512_storeu_ps(out + i, _mm512_mul_ps(_mm512_div_ps(gate, below), _mm512_loadu_ps(x + size + i)));
    }
}

WITH_INLINE(AVX512) __m512 halves(const uint8_t *at)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at));
}

WITH_INLINE(AVX512) void store(float *out, int columns, int add, __m512 sum)
{
    const __mmask16 mask = (__mmask16)((1u << columns) - 1);
    if (add)
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, out));
    _mm512_mask_storeu_ps(out, mask, sum);
}

/* A block's product in whole numbers. Without VNNI pairs are added in 16 bits: 8 * 2 * 15 * 128 is below 2^15. */
#define DOT_VNNI(sum, w, x) sum = _mm512_dpbusd_epi32(sum, w, x)
#define DOT(sum, w, x) sum = _mm512_add_epi16(sum, _mm512_maddubs_epi16(w, x))
#define WHOLE_VNNI(sum) (sum)
#define WHOLE(sum) _mm512_madd_epi16(sum, _mm512_set1_epi16(1))

#define FOUR_BITS(name, features, DOT, WHOLE)                                                                       \
    WITH_INLINE(features)                                                                                           \
    void name##_n(const uint8_t *weights, const Input *input, size_t token, const int n, float *out, size_t outer,  \
                  int columns)                                                                                      \
    {                                                                                                               \
        const size_t blocks = input->inner / BLOCK;                                                                 \
        const int16_t *codes = input->codes + token * input->inner;                                                 \
        const float *scales = input->scales + token * blocks, *sums = input->sums + token * blocks;                 \
        const __m512i lower = _mm512_set1_epi8(15);                                                                 \
        __m512 total[GROUP];                                                                                        \
        for (int t = 0; t < n; t++)                                                                                 \
            total[t] = _mm512_setzero_ps();                                                                         \
        for (size_t block = 0; block < blocks; block++, weights += FOUR_BYTES) {                                    \
            __m512i w[8];                                                                                           \
            for (int j = 0; j < 4; j++) {                                                                           \
                __m512i both = _mm512_loadu_si512(weights + 64 * j);                                                \
                w[2 * j] = _mm512_and_si512(both, lower);                                                           \
                w[2 * j + 1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), lower);                                 \
            }                                                                                                       \
            _mm_prefetch((const char *)weights + 4 * FOUR_BYTES, _MM_HINT_T0);                                      \
            const __m512 scale = halves(weights + 256), minimum = halves(weights + 288);                            \
            for (int t = 0; t < n; t++) {                                                                           \
                const int32_t *x = (const int32_t *)(codes + t * input->inner + block * BLOCK);                     \
                __m512i high = _mm512_setzero_si512(), low = _mm512_setzero_si512();                                 \
                for (int k = 0; k < 8; k++) {                                                                       \
                    DOT(high, w[k], _mm512_set1_epi32(x[k]));                                                       \
                    DOT(low, w[k], _mm512_set1_epi32(x[8 + k]));                                                    \
                }                                                                                                   \
                const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(WHOLE(high), 8), WHOLE(low));                \
                const __m512 whole = _mm512_cvtepi32_ps(sum);                                                       \
                const __m512 by = _mm512_mul_ps(scale, _mm512_set1_ps(scales[t * blocks + block]));                 \
                total[t] = _mm512_fmadd_ps(whole, by, total[t]);                                                    \
                total[t] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(sums[t * blocks + block]), total[t]);            \
            }                                                                                                       \
        }                                                                                                           \
        for (int t = 0; t < n; t++)                                                                                 \
            store(out + (token + t) * outer, columns, input->add, total[t]);                                                    \
    }                                                                                                               \
    EACH_COUNT(name, features)

#define EIGHT_BITS(name, features)                                                                                  \
    WITH_INLINE(features)                                                                                           \
    void name##_n(const uint8_t *weights, const Input *input, size_t token, const int n, float *out, size_t outer,  \
                  int columns)                                                                                      \
    {                                                                                                               \
        const size_t blocks = input->inner / BLOCK;                                                                 \
        const int16_t *codes = input->codes + token * input->inner;                                                 \
        const float *scales = input->scales + token * blocks;                                                       \
        __m512 total[GROUP];                                                                                        \
        for (int t = 0; t < n; t++)                                                                                 \
            total[t] = _mm512_setzero_ps();                                                                         \
        for (size_t block = 0; block < blocks; block++, weights += EIGHT_BYTES) {                                   \
            __m512i sum[GROUP];                                                                                     \
            for (int t = 0; t < n; t++)                                                                             \
                sum[t] = _mm512_setzero_si512();                                                                    \
            for (int p = 0; p < 16; p++) {                                                                          \
                const __m512i w = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(weights + 32 * p)));    \
                for (int t = 0; t < n; t++) {                                                                       \
                    const int32_t *x = (const int32_t *)(codes + t * input->inner + block * BLOCK);                 \
                    sum[t] = _mm512_add_epi32(sum[t], _mm512_madd_epi16(w, _mm512_set1_epi32(x[p])));               \
                }                                                                                                   \
            }                                                                                                       \
            const __m512 scale = halves(weights + 512);                                                             \
            for (int t = 0; t < n; t++) {                                                                           \
                const __m512 by = _mm512_mul_ps(scale, _mm512_set1_ps(scales[t * blocks + block]));                 \
                total[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[t]), by, total[t]);                               \
            }                                                                                                       \
        }                                                                                                           \
        for (int t = 0; t < n; t++)                                                                                 \
            store(out + (token + t) * outer, columns, input->add, total[t]);                                                    \
    }                                                                                                               \
    EACH_COUNT(name, features)

/* The count known when compiling, sums stay in registers. */
#define EACH_COUNT(name, features)                                                                                  \
    WITH(features)                                                                                                  \
    static void name(const uint8_t *weights, const Input *input, size_t token, int count, float *out, size_t outer, \
                     int columns)                                                                                   \
    {                                                                                                               \
        switch (count) {                                                                                            \
        case 1: name##_n(weights, input, token, 1, out, outer, columns); break;                                     \
        case 2: name##_n(weights, input, token, 2, out, outer, columns); break;                                     \
        case 3: name##_n(weights, input, token, 3, out, outer, columns); break;                                     \
        case 4: name##_n(weights, input, token, 4, out, outer, columns); break;                                     \
        case 5: name##_n(weights, input, token, 5, out, outer, columns); break;                                     \
        case 6: name##_n(weights, input, token, 6, out, outer, columns); break;                                     \
        case 7: name##_n(weights, input, token, 7, out, outer, columns); break;                                     \
        default: name##_n(weights, input, token, 8, out, outer, columns); break;                                    \
        }                                                                                                           \
    }

FOUR_BITS(four_avx512, AVX512, DOT, WHOLE)
FOUR_BITS(four_vnni, VNNI, DOT_VNNI, WHOLE_VNNI)
EIGHT_BITS(eight_avx512, AVX512)

/* What becomes of the input before it is multiplied. */
enum { AS_IT_IS, NORMED, GATED };

typedef struct {
    int bits, prepare, add;
    const float *x;
    size_t tokens, inner;
    const uint8_t *weights;
    size_t outer;
    float *out;
    const float *norm;
    float eps;
} Product;

static int multiply(const Product *p)
{
    Tile *const tile = p->bits == 8                              ? eight_avx512
                       : __builtin_cpu_supports("avx512vnni") ? four_vnni
                                                              : four_avx512;
    const size_t bytes = p->bits == 8 ? EIGHT_BYTES : FOUR_BYTES;
    const size_t tokens = p->tokens, inner = p->inner, outer = p->outer, blocks = inner / BLOCK;
    float *prepared = malloc(tokens * (inner * (sizeof(float) + sizeof(int16_t)) + 2 * blocks * sizeof(float)) + 1);
    if (prepared == NULL)
        return -1;
    float *scales = prepared + tokens * inner, *sums = scales + tokens * blocks;
    int16_t *codes = (int16_t *)(sums + tokens * blocks);
    const Input input = {codes, scales, sums, inner, p->add};
    const long tiles = (long)((outer + ROWS - 1) / ROWS), some = tiles / 32 + 1;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (long t = 0; t < (long)tokens; t++) {
            const float *x = p->x + t * (p->prepare == GATED ? 2 * inner : inner);
            if (p->prepare == NORMED)
                norm_row(x, inner, p->norm, p->eps, prepared + t * inner);
            else if (p->prepare == GATED)
                gate_row(x, inner, prepared + t * inner);
            round_row(p->prepare == AS_IT_IS ? x : prepared + t * inner, inner, p->bits == 4, codes + t * inner,
                      scales + t * blocks, sums + t * blocks);
        }
#pragma omp for schedule(dynamic, some) nowait
        for (long n = 0; n < tiles; n++) {
            const int columns = outer - n * ROWS < ROWS ? (int)(outer - n * ROWS) : ROWS;
            for (size_t token = 0; token < tokens; token += GROUP) {
                const int count = tokens - token < GROUP ? (int)(tokens - token) : GROUP;
                tile(p->weights + n * blocks * bytes, &input, token, count, p->out + n * ROWS, outer, columns);
            }
        }
    }
    free(prepared);
    return 0;
}

typedef struct {
    float *qkv; /* (tokens, heads + 2 kv_heads, size); queries and keys are turned in place */
    size_t tokens, heads, kv_heads, size;
    const float *cosine, *sine; /* (tokens, size), the sine's first half negated; NULL where nothing is turned */
    const float *norm;          /* (heads + kv_heads, size), or NULL */
    float eps;
    const int64_t *slots, *starts, *lengths; /* where a token's key goes; where those begin that it sees, and how many */
    float *keys, *values;                    /* (slots, kv_heads, size) */
    float *out;                              /* (tokens, heads, size) */
} Attention;

WITH(AVX512) static void turn_and_keep(const Attention *a, size_t t)
{
    const size_t size = a->size, half = size / 2, turned = a->heads + a->kv_heads;
    float *row = a->qkv + t * (turned + a->kv_heads) * size;
    for (size_t h = 0; h < turned; h++) {
        float *x = row + h * size;
        if (a->norm != NULL)
            norm_row(x, size, a->norm + h * size, a->eps, x);
        if (a->cosine == NULL)
            continue;
        const float *cosine = a->cosine + t * size, *sine = a->sine + t * size;
        for (size_t i = 0; i < half; i += 16) {
            const __m512 low = _mm512_loadu_ps(x + i), high = _mm512_loadu_ps(x + half + i);
            const __m512 first = _mm512_mul_ps(low, _mm512_loadu_ps(cosine + i));
            const __m512 second = _mm512_mul_ps(high, _mm512_loadu_ps(cosine + half + i));
            _mm512_storeu_ps(x + i, _mm512_fmadd_ps(high, _mm512_loadu_ps(sine + i), first));
            _mm512_storeu_ps(x + half + i, _mm512_fmadd_ps(low, _mm512_loadu_ps(sine + half + i), second));
        }
    }
    const size_t bytes = a->kv_heads * size * sizeof(float), place = (size_t)a->slots[t] * a->kv_heads * size;
    memcpy(a->keys + place, row + a->heads * size, bytes);
    memcpy(a->values + place, row + turned * size, bytes);
}

/* The sums of four registers, each by the same tree. */
WITH_INLINE(AVX512) __m128 four_sums(const __m512 of[4])
{
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(of[0], of[1]), _mm512_unpackhi_ps(of[0], of[1]));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(of[2], of[3]), _mm512_unpackhi_ps(of[2], of[3]));
    const __m512 all = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

/*
 * Attention goes through a row's keys in tiles that the first cache holds, and past each tile with all queries that see it:
 * the tokens of one row, as a draft or a piece of a prompt has them, and the heads that share a key head. The tiles begin at
 * the row's first key and what is done with one query is done whatever the others are, so that its result does not depend
 * on them. The softmax is the online one (Milakov and Gimelshein 2018).
 */
enum { TILE_KEYS = 48, TILE_TOKENS = 16, CHUNK = 64 };

/* What is known of a query so far. */
typedef struct {
    float most, sum;
} Softmax;

/* Queries of one row that share keys: tokens `first` to `first + count`, heads `head` to `head + heads`. */
typedef struct {
    size_t first, count, head, heads, work;
} Queries;

WITH_INLINE(AVX512) void weigh(const float *values, size_t stride, const float *chances, size_t keys, __m512 fade,
                               float *out, const size_t width)
{
    __m512 even[CHUNK / 16], odd[CHUNK / 16];
    for (size_t i = 0; i < width / 16; i++) {
        even[i] = _mm512_mul_ps(_mm512_loadu_ps(out + 16 * i), fade);
        odd[i] = _mm512_setzero_ps();
    }
    size_t j = 0;
    for (; j + 1 < keys; j += 2) {
        const __m512 first = _mm512_set1_ps(chances[j]), second = _mm512_set1_ps(chances[j + 1]);
        for (size_t i = 0; i < width / 16; i++) {
            even[i] = _mm512_fmadd_ps(first, _mm512_loadu_ps(values + j * stride + 16 * i), even[i]);
            odd[i] = _mm512_fmadd_ps(second, _mm512_loadu_ps(values + (j + 1) * stride + 16 * i), odd[i]);
        }
    }
    for (; j < keys; j++)
        for (size_t i = 0; i < width / 16; i++)
            even[i] = _mm512_fmadd_ps(_mm512_set1_ps(chances[j]), _mm512_loadu_ps(values + j * stride + 16 * i), even[i]);
    for (size_t i = 0; i < width / 16; i++)
        _mm512_storeu_ps(out + 16 * i, _mm512_add_ps(even[i], odd[i]));
}

/* Let one query see `count` more keys, TILE_KEYS at most. */
WITH_INLINE(AVX512) void see_n(const float *query, const float *keys, const float *values, size_t stride, const size_t size,
                             size_t count, Softmax *softmax, float *out)
{
    const __m512 by = _mm512_set1_ps(1.0f / sqrtf((float)size));
    float chances[TILE_KEYS];
    for (size_t j = 0; j < count; j += 4) {
        __m512 dots[4];
        for (size_t k = 0; k < 4; k++) {
            const float *key = keys + (j + k < count ? j + k : count - 1) * stride;
            dots[k] = _mm512_setzero_ps();
            for (size_t i = 0; i < size; i += 16)
                dots[k] = _mm512_fmadd_ps(_mm512_loadu_ps(query + i), _mm512_loadu_ps(key + i), dots[k]);
        }
        _mm_storeu_ps(chances + j, four_sums(dots));
    }
    for (size_t j = count; j % 16; j++)
        chances[j] = -INFINITY;
    __m512 top = _mm512_set1_ps(softmax->most);
    for (size_t j = 0; j < count; j += 16)
        top = _mm512_max_ps(top, _mm512_loadu_ps(chances + j));
    const float most = _mm512_reduce_max_ps(top);
    const __m512 base = _mm512_set1_ps(most);
    const __m512 fade = softmax->sum == 0 ? _mm512_setzero_ps()
                                          : exponential(_mm512_mul_ps(_mm512_sub_ps(_mm512_set1_ps(softmax->most), base), by));
    __m512 sum = _mm512_setzero_ps();
    for (size_t j = 0; j < count; j += 16) {
        const __mmask16 seen = count - j < 16 ? (__mmask16)((1u << (count - j)) - 1) : (__mmask16)-1;
        const __m512 score = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(chances + j), base), by);
        const __m512 chance = _mm512_maskz_mov_ps(seen, exponential(score));
        _mm512_storeu_ps(chances + j, chance);
        sum = _mm512_add_ps(sum, chance);
    }
    softmax->sum = softmax->sum * _mm512_cvtss_f32(fade) + _mm512_reduce_add_ps(sum);
    softmax->most = most;
    size_t i = 0;
    for (; i + CHUNK <= size; i += CHUNK)
        weigh(values + i, stride, chances, count, fade, out + i, CHUNK);
    for (; i < size; i += 32)
        weigh(values + i, stride, chances, count, fade, out + i, 32);
}

WITH(AVX512) static void see(const float *query, const float *keys, const float *values, size_t stride, size_t size,
                             size_t count, Softmax *softmax, float *out)
{
    switch (size) { /* the common ones, with their loops unrolled */
    case 64: see_n(query, keys, values, stride, 64, count, softmax, out); break;
    case 128: see_n(query, keys, values, stride, 128, count, softmax, out); break;
    default: see_n(query, keys, values, stride, size, count, softmax, out); break;
    }
}

WITH(AVX512) static void attend_queries(const Attention *a, const Queries *q)
{
    const size_t size = a->size, stride = a->kv_heads * size, group = a->heads / a->kv_heads;
    const size_t from = (size_t)a->starts[q->first] * stride + q->head / group * size;
    const size_t longest = (size_t)a->lengths[q->first + q->count - 1];
    Softmax softmax[TILE_TOKENS * q->heads];
    memset(softmax, 0, sizeof softmax);
    for (size_t t = 0; t < q->count; t++)
        memset(a->out + ((q->first + t) * a->heads + q->head) * size, 0, q->heads * size * sizeof(float));
    for (size_t begin = 0; begin < longest; begin += TILE_KEYS) {
        const float *keys = a->keys + from + begin * stride, *values = a->values + from + begin * stride;
        for (size_t t = 0; t < q->count; t++) {
            const size_t token = q->first + t, length = (size_t)a->lengths[token];
            if (length <= begin)
                continue;
            const size_t count = length - begin < TILE_KEYS ? length - begin : TILE_KEYS;
            for (size_t h = 0; h < q->heads; h++) {
                const float *query = a->qkv + (token * (a->heads + 2 * a->kv_heads) + q->head + h) * size;
                float *out = a->out + (token * a->heads + q->head + h) * size;
                Softmax *so_far = softmax + t * q->heads + h;
                if (begin == 0)
                    so_far->most = -INFINITY;
                see(query, keys, values, stride, size, count, so_far, out);
            }
        }
    }
    for (size_t n = 0; n < q->count * q->heads; n++) {
        float *out = a->out + ((q->first + n / q->heads) * a->heads + q->head + n % q->heads) * size;
        const __m512 share = _mm512_set1_ps(1.0f / softmax[n].sum);
        for (size_t i = 0; i < size; i += 16)
            _mm512_storeu_ps(out + i, _mm512_mul_ps(_mm512_loadu_ps(out + i), share));
    }
}

/* How many tokens from `first` on are of one row and follow each other, TILE_TOKENS at most. */
static size_t together(const Attention *a, size_t first)
{
    size_t count = 1;
    while (first + count < a->tokens && count < TILE_TOKENS && a->starts[first + count] == a->starts[first] &&
           a->lengths[first + count] == a->lengths[first] + (int64_t)count)
        count++;
    return count;
}

static int by_work(const void *one, const void *other)
{
    const size_t x = ((const Queries *)one)->work, y = ((const Queries *)other)->work;
    return (x < y) - (x > y);
}

static int attend(const Attention *a)
{
    const size_t group = a->heads / a->kv_heads;
    Queries *const queries = malloc(a->tokens * a->kv_heads * sizeof(Queries));
    if (queries == NULL)
        return -1;
    long items = 0;
    for (size_t t = 0, count; t < a->tokens; t += count) {
        count = together(a, t);
        for (size_t h = 0; h < a->heads; h += group)
            queries[items++] = (Queries){t, count, h, group, count * (size_t)a->lengths[t + count - 1]};
    }
    qsort(queries, (size_t)items, sizeof(Queries), by_work); /* the longest first, so that no thread is left with one */
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (long t = 0; t < (long)a->tokens; t++)
            turn_and_keep(a, (size_t)t);
#pragma omp for schedule(dynamic, 1)
        for (long n = 0; n < items; n++)
            attend_queries(a, queries + n);
    }
    free(queries);
    return 0;
}

static int supported(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx2");
}

static PyObject *run_multiply(const size_t *given, double eps)
{
    const Product p = {
        .bits = (int)given[0], .prepare = (int)given[1], .add = (int)given[2], .x = (const float *)given[3],
        .tokens = given[4], .inner = given[5], .weights = (const uint8_t *)given[6], .outer = given[7],
        .out = (float *)given[8], .norm = (const float *)given[9], .eps = (float)eps,
    };
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = multiply(&p);
    Py_END_ALLOW_THREADS
    if (failed)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *run_attend(const size_t *given, double eps)
{
    const Attention a = {
        .qkv = (float *)given[0], .tokens = given[1], .heads = given[2], .kv_heads = given[3], .size = given[4],
        .cosine = (const float *)given[5], .sine = (const float *)given[6], .norm = (const float *)given[7],
        .slots = (const int64_t *)given[8], .starts = (const int64_t *)given[9], .lengths = (const int64_t *)given[10],
        .keys = (float *)given[11], .values = (float *)given[12], .out = (float *)given[13], .eps = (float)eps,
    };
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = attend(&a);
    Py_END_ALLOW_THREADS
    if (failed)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

#else /* no such CPU: `supported` says no, and nothing else is called */

#include <stddef.h>

static int supported(void) { return 0; }

static PyObject *run_multiply(const size_t *given, double eps)
{
    (void)given, (void)eps;
    PyErr_SetString(PyExc_NotImplementedError, "not for this CPU");
    return NULL;
}

static PyObject *run_attend(const size_t *given, double eps) { return run_multiply(given, eps); }

#endif

static PyObject *py_supported(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    return PyBool_FromLong(supported());
}

/* Calls `run` with `count` numbers, sizes and addresses of what the caller has checked and keeps alive, and a float. */
static PyObject *call(PyObject *(*run)(const size_t *, double), PyObject *const *arguments, Py_ssize_t given, int count)
{
    size_t numbers[16];
    if (given != count + 1)
        return PyErr_Format(PyExc_TypeError, "takes %d numbers", count + 1);
    for (int n = 0; n < count; n++)
        numbers[n] = PyLong_AsSize_t(arguments[n]);
    const double eps = PyFloat_AsDouble(arguments[count]);
    return PyErr_Occurred() ? NULL : run(numbers, eps);
}

/* multiply(bits, prepare, add, x, tokens, inner, weights, outer, out, norm, eps) */
static PyObject *py_multiply(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    (void)self;
    return call(run_multiply, arguments, given, 10);
}

/* attend(qkv, tokens, heads, kv_heads, size, cosine, sine, norm, slots, starts, lengths, keys, values, out, eps) */
static PyObject *py_attend(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    (void)self;
    return call(run_attend, arguments, given, 14);
}

static PyMethodDef methods[] = {
    {"supported", py_supported, METH_NOARGS, "Whether this CPU can do what is here."},
    {"multiply", (PyCFunction)(void (*)(void))py_multiply, METH_FASTCALL, "Multiply; see the source."},
    {"attend", (PyCFunction)(void (*)(void))py_attend, METH_FASTCALL, "Attend; see the source."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_cpu", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit__cpu(void) { return PyModuleDef_Init(&module); }
