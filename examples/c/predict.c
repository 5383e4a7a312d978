/* SPDX-License-Identifier: Apache-2.0 */
/* predict model.ffe face.pgm ...: prints the most likely classes of each face, best first.
 * Pictures are binary PGM (P5) of 8 bits, cropped to the face, of any size. */
#include <fastfer.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { BEST = 3, MOST_CLASSES = 1000 };

typedef struct {
  int width, height;
  unsigned char* pixels;
} Picture;

/* A number of the header, behind blanks and comments; -1 where there is none. */
static int next_number(FILE* file) {
  int c = fgetc(file), number = -1;
  for (; c == '#' || c == ' ' || c == '\t' || c == '\r' || c == '\n'; c = fgetc(file))
    while (c == '#' && (c = fgetc(file)) != '\n' && c != EOF) c = '#';
  for (; c >= '0' && c <= '9' && number < 100000; c = fgetc(file)) number = (number < 0 ? 0 : number) * 10 + c - '0';
  return number; /* and one blank behind it has been read */
}

static int read_pgm(const char* path, Picture* picture) {
  FILE* file = fopen(path, "rb");
  int good = file && fgetc(file) == 'P' && fgetc(file) == '5';
  picture->pixels = NULL;
  if (good) {
    picture->width = next_number(file), picture->height = next_number(file);
    good = picture->width > 0 && picture->height > 0 && picture->width <= 20000 && picture->height <= 20000 &&
           next_number(file) == 255;
  }
  if (good) {
    const size_t size = (size_t)picture->width * (size_t)picture->height;
    picture->pixels = malloc(size);
    good = picture->pixels && fread(picture->pixels, 1, size, file) == size;
  }
  if (file) fclose(file);
  return good;
}

/* The picture at (y, x) of `shape`, between four pixels. */
static float sample(const Picture* p, fastfer_shape shape, size_t y, size_t x) {
  const float fy = ((float)y + 0.5f) * (float)p->height / (float)shape.height - 0.5f;
  const float fx = ((float)x + 0.5f) * (float)p->width / (float)shape.width - 0.5f;
  const int y0 = (int)floorf(fy), x0 = (int)floorf(fx);
  float sum = 0;
  for (int i = 0; i < 4; ++i) {
    int yi = y0 + i / 2, xi = x0 + i % 2;
    const float weight = (1 - fabsf(fy - (float)yi)) * (1 - fabsf(fx - (float)xi));
    yi = yi < 0 ? 0 : yi >= p->height ? p->height - 1 : yi;
    xi = xi < 0 ? 0 : xi >= p->width ? p->width - 1 : xi;
    sum += weight * (float)p->pixels[(size_t)yi * (size_t)p->width + (size_t)xi];
  }
  return sum;
}

/* Grey in every channel, as the engine takes it: pixels where it normalises itself, else 0 to 1. */
static void fill(const fastfer_engine* engine, const Picture* picture, void* image) {
  const fastfer_shape shape = fastfer_input(engine);
  size_t at = 0;
  for (size_t c = 0; c < shape.channels; ++c)
    for (size_t y = 0; y < shape.height; ++y)
      for (size_t x = 0; x < shape.width; ++x, ++at) {
        const float value = sample(picture, shape, y, x);
        if (fastfer_takes_uint8(engine))
          ((unsigned char*)image)[at] = (unsigned char)lrintf(value);
        else
          ((float*)image)[at] = value / 255;
      }
}

/* Softmax of the logits in place, then the best classes. */
static void print_best(const fastfer_engine* engine, const char* path, float* scores, size_t count) {
  float most = scores[0], sum = 0;
  for (size_t i = 1; i < count; ++i) most = scores[i] > most ? scores[i] : most;
  for (size_t i = 0; i < count; ++i) sum += scores[i] = expf(scores[i] - most);
  printf("%s:", path);
  for (size_t n = 0; n < BEST && n < count; ++n) {
    size_t best = 0;
    for (size_t i = 1; i < count; ++i) best = scores[i] > scores[best] ? i : best;
    printf("%s %s %.1f %%", n ? "," : "", fastfer_class_name(engine, best), 100 * scores[best] / sum);
    scores[best] = -1;
  }
  printf("\n");
}

static int predict(const fastfer_engine* engine, const char* path, void* image) {
  const fastfer_pixels pixels = fastfer_takes_uint8(engine) ? FASTFER_UINT8 : FASTFER_FLOAT32;
  float scores[MOST_CLASSES];
  float* outputs[] = {scores};
  Picture picture;
  fastfer_status status = FASTFER_BAD_ARGUMENT;
  if (!read_pgm(path, &picture)) {
    fprintf(stderr, "%s: not a binary PGM of 8 bits\n", path);
  } else {
    fill(engine, &picture, image);
    status = fastfer_run(engine, image, pixels, 1, outputs, 1);
    if (status == FASTFER_OK)
      print_best(engine, path, scores, fastfer_class_count(engine));
    else
      fprintf(stderr, "%s: %s\n", path, fastfer_error());
  }
  free(picture.pixels);
  return status == FASTFER_OK;
}

int main(int count, char** arguments) {
  fastfer_engine* engine = NULL;
  int good = 1;
  if (count < 3) {
    fprintf(stderr, "usage: predict model.ffe face.pgm ...\n");
    return 2;
  }
  if (fastfer_load(arguments[1], NULL, &engine) != FASTFER_OK) {
    fprintf(stderr, "%s\n", fastfer_error());
    return 1;
  }
  const size_t classes = fastfer_class_count(engine);
  if (fastfer_output_count(engine) != 1 || classes < 1 || classes > MOST_CLASSES) {
    fprintf(stderr, "%s: expected a classifier of up to %d classes with names\n", arguments[1], MOST_CLASSES);
    good = 0;
  }
  const fastfer_shape shape = fastfer_input(engine);
  void* image = malloc(shape.channels * shape.height * shape.width * sizeof(float));
  for (int i = 2; i < count && good && image; ++i) good &= predict(engine, arguments[i], image);
  free(image);
  fastfer_free(engine);
  return good && image ? 0 : 1;
}
