/* SPDX-License-Identifier: Apache-2.0 */
/* Runs networks that fastfer compiled (.ffe files): C, no Python, no OpenMP.
 *
 * Every function may be called from any thread, and one engine from many threads at once; only fastfer_free must come
 * last. No function throws, exits or prints. Those that return a fastfer_status leave their outputs untouched, and
 * fastfer_error() a message, unless they return FASTFER_OK. Strings are UTF-8. */
#ifndef FASTFER_H
#define FASTFER_H

#include <stddef.h>

/* Changes whenever a program has to be compiled anew; the number of the shared library, too. */
#define FASTFER_ABI 1

#if defined(FASTFER_BUILDS_ENGINE)
#define FASTFER_API __attribute__((visibility("default")))
#else
#define FASTFER_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Kinds are ints, so that a number that is none is refused. */
enum {
  FASTFER_OK = 0,
  FASTFER_BAD_ARGUMENT = 1, /* NULL, a number out of range, an instruction set that this CPU does not have */
  FASTFER_CANNOT_READ = 2,  /* the operating system does not give the file's bytes */
  FASTFER_BAD_FILE = 3,     /* damaged, or no engine file */
  FASTFER_UNSUPPORTED = 4,  /* this file does not have the precision asked for */
  FASTFER_NO_MEMORY = 5,
  FASTFER_INTERNAL = 6 /* a fault of fastfer */
};
typedef int fastfer_status;

/* What images consist of. */
enum {
  FASTFER_FLOAT32 = 0, /* what the network takes */
  FASTFER_UINT8 = 1    /* pixels 0 to 255, normalised inside; see fastfer_takes_uint8 */
};
typedef int fastfer_pixels;

/* What convolutions compute in; images and outputs are float32 in all. */
enum {
  FASTFER_AS_COMPILED = 0,
  FASTFER_PRECISION_FLOAT32 = 1,
  FASTFER_PRECISION_BFLOAT16 = 2,
  FASTFER_PRECISION_INT8 = 3
};
typedef int fastfer_precision;

typedef struct fastfer_engine fastfer_engine;

typedef struct fastfer_options {
  size_t size;                 /* sizeof(fastfer_options) */
  int threads;                 /* 0: FASTFER_NUM_THREADS, else the CPUs of this process */
  int image_threads;           /* of these, at most so many on one image; 0: as many as pay */
  fastfer_precision precision; /* default: as compiled */
  int strict; /* 1: no Winograd and no Strassen convolutions, 0: with these, -1 (default): as compiled */
  const char* isa; /* instruction set, such as "avx2"; NULL: FASTFER_ISA, else the best of this CPU */
} fastfer_options;

/* The defaults. A program sets `size` by this, so that options of later versions keep their defaults in it. */
#define FASTFER_OPTIONS_INIT {sizeof(fastfer_options), 0, 0, FASTFER_AS_COMPILED, -1, NULL}

/* Of one image: [channels][height][width], in memory in this order. */
typedef struct fastfer_shape {
  size_t channels, height, width;
} fastfer_shape;

/* A step of an engine; numbers are of one image. */
typedef struct fastfer_step {
  char name[64]; /* what it computes */
  int node; /* the first node of the file's graph that it belongs to */
  int tasks; /* parts that may run at the same time */
  double seconds; /* median */
  double macs; /* multiplications with additions */
  double bytes; /* read and written */
} fastfer_step;

/* Version of the library, such as "0.2.0". */
FASTFER_API const char* fastfer_version(void);

/* What went wrong in this thread's last call that failed: "name: what was expected, what came". Never NULL; valid until
 * the thread's next failure. */
FASTFER_API const char* fastfer_error(void);

/* An engine from a file, or from its bytes, which are not needed afterwards. `options` may be NULL. On success the
 * caller owns *engine and gives it back by fastfer_free. Nothing in a file is executed. */
FASTFER_API fastfer_status fastfer_load(const char* path, const fastfer_options* options, fastfer_engine** engine);
FASTFER_API fastfer_status fastfer_load_memory(const void* data, size_t size, const fastfer_options* options,
                                               fastfer_engine** engine);

/* No call with this engine may run then or later. NULL does nothing. */
FASTFER_API void fastfer_free(fastfer_engine* engine);

/* Images [batch][C][H][W] to outputs[i][batch][C][H][W], one pointer an output. A network of several inputs takes them
 * as one image of C numbers, input behind input (entry "inputs" of the metadata). */
FASTFER_API fastfer_status fastfer_run(const fastfer_engine* engine, const void* images, fastfer_pixels pixels,
                                       size_t batch, float* const* outputs, size_t output_count);

/* The time of each step over `repeats` runs of one image, at least 1. Writes up to `capacity` steps, and to *count how
 * many there are; with capacity 0 `steps` may be NULL, and nothing runs. */
FASTFER_API fastfer_status fastfer_profile(const fastfer_engine* engine, const void* image, fastfer_pixels pixels,
                                           int repeats, fastfer_step* steps, size_t capacity, size_t* count);

/* Of an image, of output i. All zeros for an engine that is NULL or an output that is not there. */
FASTFER_API fastfer_shape fastfer_input(const fastfer_engine* engine);
FASTFER_API size_t fastfer_output_count(const fastfer_engine* engine);
FASTFER_API fastfer_shape fastfer_output(const fastfer_engine* engine, size_t i);

/* 1 where FASTFER_UINT8 images may be given: mean and standard deviation are in the file. */
FASTFER_API int fastfer_takes_uint8(const fastfer_engine* engine);

/* The names of the logits, outputs[0], in order: 0 and NULL where none are known. */
FASTFER_API size_t fastfer_class_count(const fastfer_engine* engine);
FASTFER_API const char* fastfer_class_name(const fastfer_engine* engine, size_t i);

/* What was saved with the network: a JSON object. */
FASTFER_API const char* fastfer_metadata(const fastfer_engine* engine);

/* Instruction set and threads that are used; bytes of the packed weights, and of one caller's activations. */
FASTFER_API const char* fastfer_isa(const fastfer_engine* engine);
FASTFER_API int fastfer_threads(const fastfer_engine* engine);
FASTFER_API size_t fastfer_weight_bytes(const fastfer_engine* engine);
FASTFER_API size_t fastfer_activation_bytes(const fastfer_engine* engine);

#ifdef __cplusplus
}
#endif

#endif
